//! Counts checks, prints each, and ends the run.

use alloc::string::String;

/// What was checked so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    /// Notes a check. `values` says what was found, and is printed if the check failed.
    pub(crate) fn check(&mut self, what: &str, holds: bool, values: impl FnOnce() -> String) {
        if holds {
            self.passed += 1;
            println!("ok      {what}");
        } else {
            self.failed += 1;
            println!("FAILED  {what}: {}", values());
        }
    }

    /// Notes a check that could not be made at all.
    pub(crate) fn broken(&mut self, what: &str, error: &dyn core::fmt::Display) {
        self.failed += 1;
        println!("FAILED  {what}: {error}");
    }

    /// Prints the sums and ends the emulator. A run without a check is a failure.
    pub(crate) fn finish(self) -> ! {
        println!("{} passed, {} failed", self.passed, self.failed);
        crate::arch::exit(self.failed == 0 && self.passed > 0)
    }
}
