//! The lowest tier: one word, one bit a granule.

use super::bits::{aligned, bottom, ones, rank, runs, starts_within, top};
use super::{Batch, Change, Child, Extents, Ledger, NoMemory, NotTaken, Query, Tier};

/// Sixty-four granules; a set bit is a free one.
#[derive(Debug)]
#[repr(transparent)]
pub(in super::super) struct Leaf(u64);

impl Child for Leaf {
    const ORDER: u32 = 6;
    const FREE: Self = Self(u64::MAX);

    #[inline]
    fn is_free(&self) -> bool {
        self.0 == u64::MAX
    }

    #[inline]
    fn idle_below(&self) -> Ledger {
        Ledger::default()
    }
}

impl Leaf {
    #[inline]
    fn replace(&mut self, word: u64) -> Change {
        let old = core::mem::replace(&mut self.0, word);
        Change { old: rank(old), new: rank(word) }
    }
}

impl Tier for Leaf {
    #[inline]
    fn find(&self, query: &Query, low: u64, high: u64) -> Option<u64> {
        let starts = runs(self.0, query.order) & aligned(query.align);
        top(starts & starts_within(query.order, low, high))
    }

    #[inline]
    fn take(&mut self, low: u64, high: u64, _: &mut Ledger) -> Result<Change, NoMemory> {
        Ok(self.replace(self.0 & !ones(low, high)))
    }

    #[inline]
    fn take_many(
        &mut self,
        batch: &mut Batch<'_>,
        base: u64,
        low: u64,
        high: u64,
        _: &mut Ledger,
    ) -> Change {
        let piece = ones(0, batch.len - 1);
        let mut starts = runs(self.0, batch.order) & starts_within(batch.order, low, high);
        let mut taken = 0;
        while let Some(start) = top(starts) {
            if batch.is_done() {
                break;
            }
            starts &= !(1 << start);
            taken |= piece << start;
            batch.push(base + start);
        }
        self.replace(self.0 & !taken)
    }

    #[inline]
    fn give(&mut self, low: u64, high: u64, ledger: &mut Ledger) -> Result<Change, NotTaken> {
        self.give_small(low, ones(0, high - low), ledger)
    }

    #[inline(always)]
    fn give_small(&mut self, at: u64, bits: u64, _: &mut Ledger) -> Result<Change, NotTaken> {
        let bits = bits << at;
        if self.0 & bits != 0 {
            return Err(NotTaken);
        }
        Ok(self.replace(self.0 | bits))
    }

    #[inline]
    fn holds(&self, low: u64, high: u64) -> bool {
        self.0 & ones(low, high) == 0
    }

    #[inline]
    fn first_taken(&self, low: u64, high: u64) -> Option<u64> {
        bottom(!self.0 & ones(low, high))
    }

    fn extents(&self, base: u64, low: u64, high: u64, into: &mut Extents) {
        let mut left = self.0 & ones(low, high);
        while let Some(start) = bottom(left) {
            let len = u64::from((left >> start).trailing_ones());
            into.add(base + start, len);
            left &= !ones(start, start + len - 1);
        }
    }

    fn trim(&mut self, _: &mut Ledger) {}
}
