//! How much of the host's memory all simulated machines of a replay may have together.
//!
//! What a machine needs grows with its granule: one that needs little leaves the rest to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A machine's share of the budget.
#[derive(Debug)]
pub(super) struct Share {
    all: Arc<AtomicU64>,
    mine: AtomicU64,
    /// What all machines may have together, in bytes.
    most: u64,
    /// What a machine may have in any case, in bytes.
    least: u64,
}

impl Share {
    /// Shares for `machines` of `most` bytes.
    pub(super) fn of(most: u64, machines: usize) -> impl Iterator<Item = Self> {
        let all = Arc::new(AtomicU64::new(0));
        let least = most / (2 * machines.max(1) as u64);
        let share = move |_| Self { all: all.clone(), mine: AtomicU64::new(0), most, least };
        (0..machines).map(share)
    }

    /// Says how many bytes this machine has now; whether it is to give some back: all have too much
    /// together, and it has more than a small part of that.
    pub(super) fn is_over(&self, now: u64) -> bool {
        let before = self.mine.swap(now, Relaxed);
        // Two steps, which is right in the end: the sum wraps, and so do both.
        let all = self.all.fetch_add(now.wrapping_sub(before), Relaxed);
        now > self.least && all.wrapping_add(now.wrapping_sub(before)) > self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_may_have_what_the_others_leave() {
        let shares: Vec<_> = Share::of(60, 3).collect();
        assert!(!shares[0].is_over(5) && !shares[1].is_over(10) && !shares[2].is_over(45));
        assert!(shares[2].is_over(46), "61 in all");
        assert!(!shares[2].is_over(0), "given back");
        assert!(!shares[0].is_over(50));
        assert!(!shares[2].is_over(10), "too much in all, but little of it is this one's");
        assert!(shares[0].is_over(50));
    }
}
