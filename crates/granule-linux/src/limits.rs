//! How much memory this process may lock: what a device reaches is pinned, and counts.
#![forbid(unsafe_code)]

use std::fmt;

use rustix::process::{Resource, getrlimit};

use crate::Error;
use crate::sysfs::Sysfs;

/// The limit of locked memory, and what of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LockedMemory {
    /// RLIMIT_MEMLOCK in bytes; `None` if there is no limit.
    pub limit: Option<u64>,
    /// Bytes that are locked or pinned now (`VmLck`, `VmPin`).
    pub locked: u64,
    /// Whether the process has CAP_IPC_LOCK, so that no limit holds.
    pub exempt: bool,
}

const CAP_IPC_LOCK: u32 = 14;

impl LockedMemory {
    /// What holds for this process.
    pub(crate) fn of(sysfs: &Sysfs) -> Self {
        let status = sysfs.text("proc/self/status").unwrap_or_default();
        let limit = if sysfs.is_live() {
            getrlimit(Resource::Memlock).current
        } else {
            limit_of(&sysfs.text("proc/self/limits").unwrap_or_default())
        };
        Self { limit, ..Self::from_status(&status) }
    }

    fn from_status(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()
        };
        let kib = |name| field(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let locked = (kib("VmLck:") + kib("VmPin:")) << 10;
        let caps = field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
        let exempt = caps.is_some_and(|caps| caps >> CAP_IPC_LOCK & 1 == 1);
        Self { limit: None, locked, exempt }
    }

    /// Refuses if so many bytes cannot be pinned on top of what is. A container of VFIO counts every
    /// byte that it maps, though another one has pinned the same page: ask for the sum.
    ///
    /// # Errors
    /// [`Error::LockedMemory`], which says what the limit must be.
    pub fn check(&self, len: u64) -> Result<(), Error> {
        match self.left() {
            Some(left) if left < len => Err(Error::LockedMemory { locked: *self, len }),
            _ => Ok(()),
        }
    }

    /// How many bytes can still be given to devices; `None` if nothing limits them.
    pub fn left(&self) -> Option<u64> {
        let limit = self.limit.filter(|_| !self.exempt)?;
        Some(limit.saturating_sub(self.locked))
    }
}

/// `Max locked memory  8388608  8388608  bytes`.
fn limit_of(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

impl fmt::Display for LockedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.limit, self.exempt) {
            (None, _) => write!(f, "no limit"),
            (Some(limit), true) => write!(f, "{} KiB, which CAP_IPC_LOCK lifts", limit >> 10),
            (Some(limit), false) => {
                write!(f, "{} KiB, of which {} KiB are used", limit >> 10, self.locked >> 10)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let status =
            "Name:\tx\nVmPin:\t      16 kB\nVmLck:\t     100 kB\nCapEff:\t0000000000004000\n";
        let read = LockedMemory::from_status(status);
        assert_eq!(read, LockedMemory { limit: None, locked: 116 << 10, exempt: true });
        assert!(!LockedMemory::from_status("CapEff:\t000001ffffffbfff\n").exempt);
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
            Max locked memory         8388608              unlimited            bytes\n";
        assert_eq!(limit_of(limits), Some(8 << 20));
        assert_eq!(
            limit_of("Max locked memory         unlimited            unlimited            bytes"),
            None
        );
        let limited = LockedMemory { limit: Some(1 << 20), locked: 1 << 19, exempt: false };
        assert_eq!(limited.left(), Some(1 << 19));
        let exempt = LockedMemory { exempt: true, ..limited };
        assert_eq!(exempt.left(), None);
        assert!(limited.check(1 << 19).is_ok() && exempt.check(1 << 40).is_ok());
        let refused = limited.check((1 << 19) + 1).expect_err("too much").to_string();
        assert!(
            refused.contains("RLIMIT_MEMLOCK is 1024 KiB") && refused.contains("`ulimit -l 1025`"),
            "{refused}"
        );
    }
}
