//! Every tier above the leaves: 64 slots, each free, taken or split.

use alloc::boxed::Box;
use core::mem::size_of;

use super::bits::{aligned, bottom, ones, rank, runs, starts_within, top};
use super::block::Block;
use super::refill::{clip, first_slot, last_slot};
use super::{Batch, Change, Child, Extents, Ledger, NoMemory, NotTaken, Query, Tier};

/// How many idle blocks of children a tree keeps, so that a range at an edge which comes and goes
/// does not allocate each time.
const IDLE_MAX: usize = 24;

/// Sixty-four slots of 2^`C::ORDER` granules; `M` is `C::ORDER`.
pub(super) struct Node<C, const M: usize> {
    /// Slots that are wholly free.
    pub(super) free: u64,
    /// Slots whose child tells; never at the same time in `free`. In neither: taken as a whole.
    split: u64,
    /// Present while a slot is split. A child that is not split is wholly free.
    block: Option<Box<[Block<C, M>; 1]>>,
}

impl<C: Child, const M: usize> Node<C, M> {
    /// The last position in a slot.
    const LAST: u64 = (1 << C::ORDER) - 1;

    #[inline]
    fn kids(&self) -> Option<&Block<C, M>> {
        self.block.as_deref().map(|[block]| block)
    }

    #[inline]
    pub(super) fn kids_mut(&mut self) -> Option<&mut Block<C, M>> {
        self.block.as_deref_mut().map(|[block]| block)
    }

    /// The child at `slot`.
    #[inline]
    fn child(&self, slot: u64) -> Option<&C> {
        self.kids().and_then(|block| block.children.get(slot as usize))
    }

    /// The split children that hold a free block of 2^`order` granules.
    #[inline]
    pub(super) fn holding(&self, order: u32) -> u64 {
        self.kids().and_then(|block| block.masks.get(order as usize)).map_or(0, |mask| *mask)
    }

    /// One more than the order of the largest free aligned block.
    fn rank(&self) -> u8 {
        if self.free != 0 {
            return C::ORDER as u8 + rank(self.free);
        }
        self.kids().map_or(0, Block::best)
    }

    /// Passes on what happened to the child at `slot`, and tells what it means for this node.
    #[inline]
    fn child_changed(&mut self, slot: u64, change: Change) -> Change {
        let free = self.free;
        let Some(block) = self.kids_mut() else { return Change::NONE };
        if change.is_none() {
            return Change::NONE;
        }
        if free != 0 {
            block.rerank(slot, change);
            return Change::NONE;
        }
        let old = block.best();
        block.rerank(slot, change);
        Change { old, new: block.best() }
    }

    /// Makes a free slot a split one, whose child is still wholly free and in no mask.
    pub(super) fn split(&mut self, slot: u64, ledger: &mut Ledger) -> Result<(), NoMemory> {
        if self.block.is_none() {
            self.block = Some(Block::allocate()?);
            ledger.bytes += size_of::<Block<C, M>>();
        } else if self.split == 0 {
            ledger.idle = ledger.idle.saturating_sub(1);
        }
        self.free &= !(1 << slot);
        self.split |= 1 << slot;
        Ok(())
    }

    /// Makes a split slot, whose child is wholly free and in no mask, a free one again.
    pub(super) fn unsplit(&mut self, slot: u64, ledger: &mut Ledger) {
        self.free |= 1 << slot;
        self.split &= !(1 << slot);
        if self.split != 0 {
            return;
        }
        ledger.idle += 1;
        if ledger.idle > IDLE_MAX {
            self.discard(ledger);
        }
    }

    /// Frees the children's block, which is idle.
    fn discard(&mut self, ledger: &mut Ledger) {
        let idle = self.idle_below();
        ledger.bytes = ledger.bytes.saturating_sub(idle.bytes);
        ledger.idle = ledger.idle.saturating_sub(idle.idle);
        self.block = None;
    }

    /// Takes a part of one slot.
    #[inline]
    fn take_in(
        &mut self,
        slot: u64,
        low: u64,
        high: u64,
        ledger: &mut Ledger,
    ) -> Result<Change, NoMemory> {
        if self.split >> slot & 1 == 0 {
            return self.take_in_free(slot, low, high, ledger);
        }
        let Some(child) = self.kids_mut().and_then(|b| b.children.get_mut(slot as usize)) else {
            return Ok(Change::NONE);
        };
        let change = child.take(low, high, ledger)?;
        Ok(self.child_changed(slot, change))
    }

    /// Takes a part of a slot that is free so far.
    fn take_in_free(
        &mut self,
        slot: u64,
        low: u64,
        high: u64,
        ledger: &mut Ledger,
    ) -> Result<Change, NoMemory> {
        let old = self.rank();
        self.split(slot, ledger)?;
        let taken = match self.kids_mut().and_then(|b| b.children.get_mut(slot as usize)) {
            Some(child) => child.take(low, high, ledger),
            None => Err(NoMemory),
        };
        match taken {
            Ok(change) => {
                self.enter(slot, change.new);
                Ok(Change { old, new: self.rank() })
            }
            Err(error) => {
                self.unsplit(slot, ledger);
                Err(error)
            }
        }
    }

    /// Enters the child of a slot that has just been split into the masks.
    fn enter(&mut self, slot: u64, rank: u8) {
        if let Some(block) = self.kids_mut() {
            block.rerank(slot, Change { old: 0, new: rank });
        }
    }

    /// Gives a part of one slot back.
    #[inline]
    fn give_in(
        &mut self,
        slot: u64,
        low: u64,
        high: u64,
        ledger: &mut Ledger,
    ) -> Result<Change, NotTaken> {
        if self.split >> slot & 1 == 0 {
            return Err(NotTaken);
        }
        let Some(child) = self.kids_mut().and_then(|b| b.children.get_mut(slot as usize)) else {
            return Err(NotTaken);
        };
        let change = child.give(low, high, ledger)?;
        if change.is_none() {
            return Ok(Change::NONE);
        }
        let whole = child.is_free();
        Ok(self.settle(slot, change, whole, ledger))
    }

    /// Gives slots back that were taken as wholes.
    fn give_slots(&mut self, slots: u64) -> Result<Change, NotTaken> {
        if (self.free | self.split) & slots != 0 {
            return Err(NotTaken);
        }
        let old = self.rank();
        self.free |= slots;
        Ok(Change { old, new: self.rank() })
    }

    /// Passes on that more of the child at `slot` is free, perhaps the whole.
    #[inline(never)]
    fn settle(&mut self, slot: u64, change: Change, whole: bool, ledger: &mut Ledger) -> Change {
        if !whole {
            return self.child_changed(slot, change);
        }
        let old = self.rank();
        if let Some(block) = self.kids_mut() {
            block.rerank(slot, Change { old: change.old, new: 0 });
        }
        self.unsplit(slot, ledger);
        Change { old, new: self.rank() }
    }

    /// The highest suitable block in a slot that is wholly free.
    fn find_in_free(query: &Query, low: u64, high: u64) -> Option<u64> {
        let room = (high + 1).checked_sub(1 << query.order)?;
        let start = if query.align >= C::ORDER { 0 } else { room >> query.align << query.align };
        if start >= low && start <= room { Some(start) } else { None }
    }

    /// A block of at least one slot.
    fn find_slots(&self, query: &Query, low: u64, high: u64) -> Option<u64> {
        let order = query.order - C::ORDER;
        let starts = runs(self.free, order) & aligned(query.align.saturating_sub(C::ORDER));
        let within = starts_within(order, first_slot::<C>(low)?, last_slot::<C>(high)?);
        top(starts & within).map(|slot| slot << C::ORDER)
    }
}

impl<C: Child, const M: usize> Child for Node<C, M> {
    const ORDER: u32 = C::ORDER + 6;
    const FREE: Self = Self { free: u64::MAX, split: 0, block: None };

    #[inline]
    fn is_free(&self) -> bool {
        self.free == u64::MAX
    }

    fn idle_below(&self) -> Ledger {
        let mut sum = Ledger::default();
        let Some(block) = self.kids() else { return sum };
        sum.bytes = size_of::<Block<C, M>>();
        sum.idle = 1;
        for child in &block.children {
            let below = child.idle_below();
            sum.bytes += below.bytes;
            sum.idle += below.idle;
        }
        sum
    }
}

impl<C: Child, const M: usize> Tier for Node<C, M> {
    fn find(&self, query: &Query, low: u64, high: u64) -> Option<u64> {
        if query.order >= C::ORDER {
            return self.find_slots(query, low, high);
        }
        let within =
            ones(low >> C::ORDER, high >> C::ORDER) & aligned(query.align.saturating_sub(C::ORDER));
        let mut split = self.holding(query.order) & within;
        let mut free = self.free & within;
        loop {
            let next =
                if query.pack { top(split).or_else(|| top(free)) } else { top(split | free) };
            let slot = next?;
            let (low, high) = clip::<C>(slot, low, high);
            let found = if self.free >> slot & 1 == 1 {
                Self::find_in_free(query, low, high)
            } else {
                self.child(slot).and_then(|child| child.find(query, low, high))
            };
            if let Some(start) = found {
                return Some((slot << C::ORDER) + start);
            }
            split &= !(1 << slot);
            free &= !(1 << slot);
        }
    }

    fn take(&mut self, low: u64, high: u64, ledger: &mut Ledger) -> Result<Change, NoMemory> {
        let (first, last) = (low >> C::ORDER, high >> C::ORDER);
        let (low, high) = (low & Self::LAST, high & Self::LAST);
        if first == last && (low != 0 || high != Self::LAST) {
            return self.take_in(first, low, high, ledger);
        }
        let old = self.rank();
        let (mut from, mut to) = (first, last + 1);
        if low != 0 {
            self.take_in(first, low, Self::LAST, ledger)?;
            from += 1;
        }
        if high != Self::LAST {
            if let Err(error) = self.take_in(last, 0, high, ledger) {
                if low != 0 {
                    // What was just taken can be given.
                    let _ = self.give_in(first, low, Self::LAST, ledger);
                }
                return Err(error);
            }
            to -= 1;
        }
        if from < to {
            self.free &= !ones(from, to - 1);
        }
        Ok(Change { old, new: self.rank() })
    }

    fn take_many(
        &mut self,
        batch: &mut Batch<'_>,
        base: u64,
        low: u64,
        high: u64,
        ledger: &mut Ledger,
    ) -> Change {
        let free = self.free;
        let best = if free == 0 { self.rank() } else { 0 };
        // 33 to 63 granules want a leaf that is wholly free, and still split it.
        if batch.len >> C::ORDER != 0 {
            self.take_slots(batch, base, low, high);
        } else {
            self.take_smaller(batch, base, low, high, ledger);
        }
        if free == 0 {
            return Change { old: best, new: self.rank() };
        }
        if free == self.free {
            return Change::NONE; // Free slots outrank all split ones.
        }
        Change { old: C::ORDER as u8 + rank(free), new: self.rank() }
    }

    #[inline(always)] // One straight function from the root to the leaf.
    fn give_small(&mut self, at: u64, bits: u64, ledger: &mut Ledger) -> Result<Change, NotTaken> {
        let slot = (at >> C::ORDER) & 63;
        if self.split >> slot & 1 == 0 {
            return Err(NotTaken);
        }
        let Some(child) = self.kids_mut().and_then(|b| b.children.get_mut(slot as usize)) else {
            return Err(NotTaken);
        };
        let change = child.give_small(at & Self::LAST, bits, ledger)?;
        if change.is_none() {
            return Ok(Change::NONE);
        }
        let whole = child.is_free();
        Ok(self.settle(slot, change, whole, ledger))
    }

    fn give(&mut self, low: u64, high: u64, ledger: &mut Ledger) -> Result<Change, NotTaken> {
        let (first, last) = (low >> C::ORDER, high >> C::ORDER);
        let whole = low & Self::LAST == 0 && high & Self::LAST == Self::LAST;
        if whole {
            return self.give_slots(ones(first, last));
        }
        if first == last {
            return self.give_in(first, low & Self::LAST, high & Self::LAST, ledger);
        }
        if !self.holds(low, high) {
            return Err(NotTaken);
        }
        let old = self.rank();
        let (low, high) = (low & Self::LAST, high & Self::LAST);
        let (mut from, mut to) = (first, last + 1);
        if low != 0 {
            self.give_in(first, low, Self::LAST, ledger)?;
            from += 1;
        }
        if high != Self::LAST {
            self.give_in(last, 0, high, ledger)?;
            to -= 1;
        }
        if from < to {
            self.free |= ones(from, to - 1);
        }
        Ok(Change { old, new: self.rank() })
    }

    fn holds(&self, low: u64, high: u64) -> bool {
        let slots = ones(low >> C::ORDER, high >> C::ORDER);
        if self.free & slots != 0 {
            return false;
        }
        let (first, last) = (low >> C::ORDER, high >> C::ORDER);
        let edges = [
            (first, low & Self::LAST != 0 || (first == last && high & Self::LAST != Self::LAST)),
            (last, high & Self::LAST != Self::LAST),
        ];
        let mut partial = 0;
        for (slot, cut) in edges {
            partial |= u64::from(cut) << slot;
        }
        // A whole slot must be taken as a whole, a part of one piece by piece.
        if self.split & slots != partial {
            return false;
        }
        let mut left = partial;
        while let Some(slot) = bottom(left) {
            left &= left - 1;
            let (low, high) = clip::<C>(slot, low, high);
            if !self.child(slot).is_some_and(|child| child.holds(low, high)) {
                return false;
            }
        }
        true
    }

    fn first_taken(&self, low: u64, high: u64) -> Option<u64> {
        let mut busy = !self.free & ones(low >> C::ORDER, high >> C::ORDER);
        while let Some(slot) = bottom(busy) {
            busy &= busy - 1;
            let (low, high) = clip::<C>(slot, low, high);
            let taken = if self.split >> slot & 1 == 0 {
                Some(low)
            } else {
                self.child(slot).and_then(|child| child.first_taken(low, high))
            };
            if let Some(at) = taken {
                return Some((slot << C::ORDER) + at);
            }
        }
        None
    }

    fn extents(&self, base: u64, low: u64, high: u64, into: &mut Extents) {
        let mut some = (self.free | self.holding(0)) & ones(low >> C::ORDER, high >> C::ORDER);
        while let Some(slot) = bottom(some) {
            some &= some - 1;
            let (low, high) = clip::<C>(slot, low, high);
            let base = base + (slot << C::ORDER);
            if self.free >> slot & 1 == 1 {
                into.add(base + low, high - low + 1);
            } else if let Some(child) = self.child(slot) {
                child.extents(base, low, high, into);
            }
        }
    }

    fn trim(&mut self, ledger: &mut Ledger) {
        if self.split == 0 {
            self.discard(ledger);
        } else if let Some(block) = self.kids_mut() {
            for child in &mut block.children {
                child.trim(ledger);
            }
        }
    }
}
