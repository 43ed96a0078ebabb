//! The shared part of the allocator: the tree with its bounds, its count and its reserved regions.
//!
//! Everything here is in granules, numbered from address 0, and runs under one lock.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::size_of;

use super::depot::Depot;
use super::magazine::Class;
use super::tree::{Batch, Extents, Ledger, NoMemory, NotTaken, Query, Tier, tree_of_order};

/// A range of granules, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) low: u64,
    pub(super) high: u64,
}

impl Span {
    /// `len` granules from `low`, `len` not zero.
    #[inline]
    pub(super) fn new(low: u64, len: u64) -> Self {
        Self { low, high: low + (len - 1) }
    }

    /// The number of granules.
    #[inline]
    pub(super) fn len(self) -> u64 {
        self.high - self.low + 1
    }

    /// The class of magazine that holds such a range.
    #[inline]
    pub(super) fn class(self) -> Option<Class> {
        Class::of(self.len()).filter(|class| class.is_natural(self.low))
    }

    /// What the two share.
    #[inline]
    pub(super) fn intersection(self, other: Self) -> Option<Self> {
        let (low, high) = (self.low.max(other.low), self.high.min(other.high));
        if low > high { None } else { Some(Self { low, high }) }
    }
}

/// The order of the smallest power of two that is not below `len`.
#[inline]
pub(super) fn order_of(len: u64) -> u32 {
    64 - len.saturating_sub(1).leading_zeros()
}

/// Why [`Space::claim`] refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum ClaimError {
    /// This granule is taken, by an allocation, a magazine or a reservation.
    Taken(u64),
    /// No memory for the tree.
    NoMemory,
}

/// What of the IOVA space is free.
pub(super) struct Space {
    tree: Box<dyn Tier>,
    /// The granule at which the tree begins, a multiple of its size.
    base: u64,
    bounds: Span,
    free: u64,
    /// Sorted, disjoint, not touching.
    reserved: Vec<Span>,
    ledger: Ledger,
    /// Free ranges that are still taken in the tree.
    depot: Depot,
}

/// The depot holds at most one granule for so many that are free in the tree: where space is tight, all
/// of it is at hand for every size.
const FREE_FOR_DEPOT: u64 = 8;

impl Space {
    /// All of `bounds`, free.
    pub(super) fn new(bounds: Span) -> Result<Self, NoMemory> {
        let differing = 64 - (bounds.low ^ bounds.high).leading_zeros();
        let (tree, order) = tree_of_order(differing);
        let base = bounds.low >> order << order;
        let mut space = Self {
            tree,
            base,
            bounds,
            free: bounds.len(),
            reserved: Vec::new(),
            ledger: Ledger::default(),
            depot: Depot::new()?,
        };
        let (first, last) = (bounds.low - base, bounds.high - base);
        if let Some(below) = first.checked_sub(1) {
            space.tree.take(0, below, &mut space.ledger)?;
        }
        let end = (1u64 << order) - 1;
        if last < end {
            space.tree.take(last + 1, end, &mut space.ledger)?;
        }
        Ok(space)
    }

    /// What is free in the tree, in granules.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// What the depot holds, in granules.
    pub(super) fn in_depot(&self) -> u64 {
        self.depot.granules()
    }

    /// What is reserved, in granules.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.iter().map(|span| span.len()).sum()
    }

    /// The bytes of memory behind this value.
    pub(super) fn bytes(&self) -> usize {
        self.ledger.bytes
            + self.depot.bytes()
            + self.reserved.capacity() * size_of::<Span>()
            + size_of::<[u64; 3]>()
    }

    /// The first reserved region that overlaps `span`.
    #[inline]
    pub(super) fn reserved_in(&self, span: Span) -> Option<Span> {
        let next = self.reserved.partition_point(|region| region.high < span.low);
        self.reserved.get(next).copied().filter(|region| region.low <= span.high)
    }

    /// The free extents within `span`.
    pub(super) fn extents(&self, span: Span) -> Extents {
        let mut extents = Extents::default();
        if let Some(span) = span.intersection(self.bounds) {
            self.tree.extents(0, span.low - self.base, span.high - self.base, &mut extents);
        }
        extents
    }

    /// Takes as many ranges of a class from the depot as it has and `room` has places for.
    #[inline]
    pub(super) fn take_handy(&mut self, class: Class, room: &mut [u64]) -> usize {
        self.depot.take(class, room)
    }

    /// Gives ranges of a class back, as many as the depot has room for; the number given.
    #[inline]
    pub(super) fn give_handy(&mut self, class: Class, starts: &[u64]) -> usize {
        self.depot.put(class, starts, self.free / FREE_FOR_DEPOT)
    }

    /// Gives what the depot holds to the tree.
    pub(super) fn empty_depot(&mut self) {
        for class in Class::all() {
            while let Some(start) = self.depot.pop(class) {
                self.give_cached(class, &[start]);
            }
        }
    }

    /// Gives cached ranges back. If the tree does not know one as taken, somebody has freed what was
    /// not allocated, and it must not become free a second time.
    pub(super) fn give_cached(&mut self, class: Class, starts: &[u64]) {
        for start in starts {
            let span = Span::new(*start, class.size());
            if self.reserved_in(span).is_none() {
                let _ = self.give_any(span);
            }
        }
        self.depot.count_given(class, starts.len());
    }

    /// Takes as many blocks of a class within `span` as `room` has places; the number taken.
    pub(super) fn take_many(&mut self, class: Class, span: Span, room: &mut [u64]) -> usize {
        let len = class.size();
        let Some(span) = span.intersection(self.bounds) else { return 0 };
        let mut batch = Batch { order: order_of(len), len, room, filled: 0, no_memory: false };
        let (low, high) = (span.low - self.base, span.high - self.base);
        self.tree.take_many(&mut batch, self.base, low, high, &mut self.ledger);
        self.free -= batch.filled as u64 * len;
        let filled = batch.filled;
        self.depot.count_taken(class, filled);
        filled
    }

    /// Takes `len` granules within `span` at a multiple of 2^`align`.
    pub(super) fn take_one(
        &mut self,
        len: u64,
        align: u32,
        span: Span,
    ) -> Result<Option<u64>, NoMemory> {
        let Some(span) = span.intersection(self.bounds) else { return Ok(None) };
        let Some(start) = self.search(len, align, span.low - self.base, span.high - self.base)
        else {
            return Ok(None);
        };
        self.tree.take(start, start + (len - 1), &mut self.ledger)?;
        self.free -= len;
        let taken = Span::new(self.base + start, len);
        self.count_taken(taken);
        Ok(Some(taken.low))
    }

    /// The highest place for `len` granules within `span` at a multiple of 2^`align`.
    pub(super) fn highest(&self, len: u64, align: u32, span: Span) -> Option<u64> {
        let span = span.intersection(self.bounds)?;
        let start = self.search_runs(len, align, span.low - self.base, span.high - self.base)?;
        Some(self.base + start)
    }

    /// Where `len` granules at a multiple of 2^`align` are free in `low..=high` of the tree.
    fn search(&self, len: u64, align: u32, low: u64, high: u64) -> Option<u64> {
        let order = order_of(len);
        if align >= order {
            let whole = self.tree.find(&Query { order, align, pack: true }, low, high);
            if whole.is_some() || len.is_power_of_two() {
                return whole;
            }
        }
        self.search_runs(len, align, low, high)
    }

    /// The same, where the granules behind the range need not be free up to the next power of two,
    /// or the range is longer than its alignment: from the highest place downwards.
    fn search_runs(&self, len: u64, align: u32, low: u64, high: u64) -> Option<u64> {
        // The range begins with a free aligned block of this order.
        let order = align.min(63 - len.leading_zeros());
        let query = Query { order, align, pack: false };
        let mut last_start = (high + 1).checked_sub(len)?;
        // Below an obstacle there may be less room than the range is long.
        while last_start >= low {
            let start = self.tree.find(&query, low, last_start + ((1 << order) - 1))?;
            match self.tree.first_taken(start, start + (len - 1)) {
                None => return Some(start),
                Some(obstacle) => last_start = obstacle.checked_sub(len)?,
            }
        }
        None
    }

    /// Takes exactly `span`, all or nothing. It must lie within the bounds.
    pub(super) fn claim(&mut self, span: Span) -> Result<(), ClaimError> {
        self.claim_any(span)?;
        self.count_taken(span);
        Ok(())
    }

    /// Counts a range that was taken and will be given, if it is one that the depot may come to hold.
    fn count_taken(&mut self, span: Span) {
        if let Some(class) = span.class() {
            self.depot.count_taken(class, 1);
        }
    }

    fn claim_any(&mut self, span: Span) -> Result<(), ClaimError> {
        let (low, high) = (span.low - self.base, span.high - self.base);
        if let Some(at) = self.tree.first_taken(low, high) {
            return Err(ClaimError::Taken(self.base + at));
        }
        self.tree.take(low, high, &mut self.ledger).map_err(|_| ClaimError::NoMemory)?;
        self.free -= span.len();
        Ok(())
    }

    /// Frees `span`, which was taken as one and lies within the bounds. Never allocates.
    pub(super) fn give(&mut self, span: Span) -> Result<(), NotTaken> {
        if self.reserved_in(span).is_some() {
            return Err(NotTaken);
        }
        self.give_any(span)?;
        if let Some(class) = span.class() {
            self.depot.count_given(class, 1);
        }
        Ok(())
    }

    fn give_any(&mut self, span: Span) -> Result<(), NotTaken> {
        let (low, high) = (span.low - self.base, span.high - self.base);
        if span.len() < 64 && low >> 6 == high >> 6 {
            self.tree.give_small(low, (1 << span.len()) - 1, &mut self.ledger)?;
        } else {
            self.tree.give(low, high, &mut self.ledger)?;
        }
        self.free += span.len();
        Ok(())
    }

    /// Reserves `span`, all or nothing. It must lie within the bounds, and may overlap what is
    /// reserved already.
    pub(super) fn reserve(&mut self, span: Span) -> Result<(), ClaimError> {
        self.reserved.try_reserve(1).map_err(|_| ClaimError::NoMemory)?;
        let mut next = Some(span.low);
        while let Some(gap) = next.and_then(|low| self.gap_from(low, span.high)) {
            if let Err(error) = self.claim_any(gap) {
                self.unclaim_gaps(span.low, gap.low);
                return Err(error);
            }
            next = gap.high.checked_add(1);
        }
        self.merge(span);
        Ok(())
    }

    /// The first part of `low..=high` that is not reserved.
    fn gap_from(&self, low: u64, high: u64) -> Option<Span> {
        let behind = self.reserved.partition_point(|region| region.high < low);
        let mut gap = low;
        for region in self.reserved.iter().skip(behind) {
            if region.low > gap {
                return Some(Span { low: gap, high: high.min(region.low - 1) })
                    .filter(|_| gap <= high);
            }
            gap = region.high + 1;
        }
        if gap <= high { Some(Span { low: gap, high }) } else { None }
    }

    /// Gives the gaps from `low` up to `end` back, which have just been claimed.
    fn unclaim_gaps(&mut self, low: u64, end: u64) {
        let mut low = low;
        while let Some(gap) = end.checked_sub(1).and_then(|high| self.gap_from(low, high)) {
            // It was claimed as exactly this range.
            let _ = self.give_any(gap);
            low = gap.high + 1;
        }
    }

    /// Enters `span` into the list, for which there is room.
    fn merge(&mut self, span: Span) {
        let first =
            self.reserved.partition_point(|region| region.high.saturating_add(1) < span.low);
        let touching = self
            .reserved
            .iter()
            .skip(first)
            .take_while(|region| region.low <= span.high.saturating_add(1));
        let (mut merged, mut count) = (span, 0);
        for region in touching {
            merged = Span { low: merged.low.min(region.low), high: merged.high.max(region.high) };
            count += 1;
        }
        self.reserved.drain(first..first + count);
        self.reserved.insert(first, merged);
    }

    /// Frees memory that is only kept for the next split.
    pub(super) fn trim(&mut self) {
        self.tree.trim(&mut self.ledger);
        self.depot.trim();
    }
}
