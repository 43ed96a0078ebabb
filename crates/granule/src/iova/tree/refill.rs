//! Taking many blocks of one size at a time, and the arithmetic of slots.

use super::bits::{ones, runs, starts_within, top};
use super::node::Node;
use super::{Batch, Change, Child, Ledger};

/// The part of `low..=high` that lies in one slot, counted from the slot's start.
#[inline]
pub(super) fn clip<C: Child>(slot: u64, low: u64, high: u64) -> (u64, u64) {
    let start = slot << C::ORDER;
    let last = start | ((1 << C::ORDER) - 1);
    (low.max(start) - start, high.min(last) - start)
}

/// The first slot that begins at or behind `low`.
#[inline]
pub(super) fn first_slot<C: Child>(low: u64) -> Option<u64> {
    let slot = (low >> C::ORDER) + u64::from(low & ((1 << C::ORDER) - 1) != 0);
    if slot < 64 { Some(slot) } else { None }
}

/// The last slot that ends at or before `high`.
#[inline]
pub(super) fn last_slot<C: Child>(high: u64) -> Option<u64> {
    ((high + 1) >> C::ORDER).checked_sub(1)
}

impl<C: Child, const M: usize> Node<C, M> {
    /// Takes blocks of at least one slot each.
    pub(super) fn take_slots(&mut self, batch: &mut Batch<'_>, base: u64, low: u64, high: u64) {
        let order = batch.order - C::ORDER;
        let (Some(first), last) = (first_slot::<C>(low), last_slot::<C>(high)) else { return };
        let Some(last) = last else { return };
        let mut starts = runs(self.free, order) & starts_within(order, first, last);
        while let Some(start) = top(starts) {
            if batch.is_done() {
                break;
            }
            starts &= !(1 << start);
            self.free &= !ones(start, start + (1 << order) - 1);
            batch.push(base + (start << C::ORDER));
        }
    }

    /// Takes blocks that are smaller than a slot, from split slots first if they have them.
    pub(super) fn take_smaller(
        &mut self,
        batch: &mut Batch<'_>,
        base: u64,
        low: u64,
        high: u64,
        ledger: &mut Ledger,
    ) {
        let mut within = ones(low >> C::ORDER, high >> C::ORDER);
        while !batch.is_done() {
            let Some(slot) =
                top(self.holding(batch.order) & within).or_else(|| top(self.free & within))
            else {
                return;
            };
            let (low, high) = clip::<C>(slot, low, high);
            let before = batch.filled;
            self.take_smaller_in(slot, batch, base + (slot << C::ORDER), low, high, ledger);
            if batch.filled == before {
                within &= !(1 << slot); // At the window's edge: nothing there lies wholly inside.
            }
        }
    }

    fn take_smaller_in(
        &mut self,
        slot: u64,
        batch: &mut Batch<'_>,
        base: u64,
        low: u64,
        high: u64,
        ledger: &mut Ledger,
    ) {
        let fresh = self.free >> slot & 1 == 1;
        if fresh && self.split(slot, ledger).is_err() {
            batch.no_memory = true;
            return;
        }
        let Some(block) = self.kids_mut() else { return };
        let Some(child) = block.children.get_mut(slot as usize) else { return };
        let change = child.take_many(batch, base, low, high, ledger);
        let untouched = child.is_free();
        if untouched {
            self.unsplit(slot, ledger);
        } else if fresh {
            // It was wholly free, so the change is a real one.
            block.rerank(slot, Change { old: 0, new: change.new });
        } else {
            block.rerank(slot, change);
        }
    }
}
