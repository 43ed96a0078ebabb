//! Counts checks, and prints each as the launcher reads it.

use std::fmt::Display;

/// What was checked so far.
#[derive(Debug)]
pub(crate) struct Report {
    step: String,
    passed: u32,
    failed: u32,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { step: "start".to_string(), passed: 0, failed: 0 }
    }

    /// What follows belongs to this step.
    pub(crate) fn begin(&mut self, step: &str) {
        self.step = step.to_string();
    }

    /// Notes a check. `values` says what was found, and is printed if the check failed.
    pub(crate) fn check(&mut self, what: &str, holds: bool, values: impl FnOnce() -> String) {
        if holds {
            self.passed += 1;
            println!("ok      {}: {what}", self.step);
        } else {
            self.fail(what, &values());
        }
    }

    /// Notes a check that failed, or could not be made.
    pub(crate) fn fail(&mut self, what: &str, values: &dyn Display) {
        self.failed += 1;
        let values = values.to_string().replace('\n', " | ");
        println!("FAILED  {}: {what}: {values}", self.step);
    }

    /// Prints the sums.
    pub(crate) fn finish(self) {
        println!("{} passed, {} failed", self.passed, self.failed);
    }
}
