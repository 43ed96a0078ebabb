//! The brute force that the allocator is compared with.

use alloc::collections::BTreeMap;

/// The brute force: every range in granules, and nothing clever.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Start and length of what is allocated.
    pub(super) live: BTreeMap<u64, u64>,
    /// Granules that are reserved, one by one.
    pub(super) reserved: BTreeMap<u64, ()>,
    pub(super) low: u64,
    pub(super) end: u64,
}

impl Model {
    pub(super) fn is_live(&self, granule: u64) -> bool {
        self.live.range(..=granule).next_back().is_some_and(|(start, len)| granule < start + len)
    }

    pub(super) fn is_free(&self, granule: u64) -> bool {
        granule >= self.low
            && granule < self.end
            && !self.is_live(granule)
            && !self.reserved.contains_key(&granule)
    }

    pub(super) fn all_free(&self, start: u64, len: u64) -> bool {
        (start..start + len).all(|granule| self.is_free(granule))
    }

    /// The highest aligned place within the bounds that is free.
    pub(super) fn highest(&self, len: u64, align: u64, low: u64, end: u64) -> Option<u64> {
        let (low, end) = (low.max(self.low), end.min(self.end));
        let mut start = end.checked_sub(len)? / align * align;
        while start >= low {
            if self.all_free(start, len) {
                return Some(start);
            }
            start = start.checked_sub(align)?;
        }
        None
    }

    pub(super) fn free_within(&self, low: u64, end: u64) -> (u64, u64) {
        let (mut sum, mut longest, mut run) = (0, 0, 0);
        for granule in low.max(self.low)..end.min(self.end) {
            run = if self.is_free(granule) { run + 1 } else { 0 };
            sum += u64::from(run != 0);
            longest = longest.max(run);
        }
        (sum, longest)
    }

    pub(super) fn live_granules(&self) -> u64 {
        self.live.values().sum()
    }
}
