//! An area: a part of a block with a lock and counters of its own.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lock_api::RawMutex;

use crate::mem::CachePadded;

/// The lock and the counters of one area. The counters, in slots, change under the lock; they may
/// be read without it as a hint.
#[derive(Debug)]
pub(super) struct Area<L> {
    lock: L,
    used: AtomicU64,
    peak: AtomicU64,
    /// No slot of the area below this index of the block is free.
    first: AtomicU64,
}

impl<L: RawMutex> Area<L> {
    /// An area without a used slot, whose first slot is number `first` of its block.
    pub(super) fn new(first: u64) -> Self {
        Self {
            lock: L::INIT,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            first: AtomicU64::new(first),
        }
    }

    /// How many slots are in use.
    #[inline]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// The most that were in use at once.
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// No slot of the area below this one is free.
    #[inline]
    pub(super) fn first(&self) -> u64 {
        self.first.load(Relaxed)
    }

    /// Says that no slot of the area below `slot` is free.
    #[inline]
    pub(super) fn set_first(&self, slot: u64) {
        self.first.store(slot, Relaxed);
    }

    /// Counts slots in. Under the lock.
    #[inline]
    pub(super) fn add(&self, slots: u64) {
        let used = self.used().saturating_add(slots);
        self.used.store(used, Relaxed);
        if used > self.peak() {
            self.peak.store(used, Relaxed);
        }
    }

    /// Counts slots out, the lowest of which is number `slot` of the block. Under the lock.
    #[inline]
    pub(super) fn sub(&self, slots: u64, slot: u64) {
        self.used.store(self.used().saturating_sub(slots), Relaxed);
        self.first.store(self.first().min(slot), Relaxed);
    }
}

/// The locks of neighbouring areas, held until this is dropped.
///
/// All who take several take them in ascending order, and nobody takes a second set, so they cannot
/// wait for each other in a circle. They are released in descending order, because an
/// interrupt-safe lock restores what it found.
pub(super) struct Held<'a, L: RawMutex> {
    areas: &'a [CachePadded<Area<L>>],
    /// Not `Send` unless the locks' own guards would be.
    marker: PhantomData<L::GuardMarker>,
}

impl<'a, L: RawMutex> Held<'a, L> {
    /// Takes the locks of `areas`.
    #[inline]
    pub(super) fn new(areas: &'a [CachePadded<Area<L>>]) -> Self {
        for area in areas {
            area.lock.lock();
        }
        Self { areas, marker: PhantomData }
    }
}

impl<L: RawMutex> Drop for Held<'_, L> {
    #[inline]
    fn drop(&mut self) {
        for area in self.areas.iter().rev() {
            // SAFETY: `new` took this lock, in this context (see `marker`), and nothing else
            // unlocks it.
            unsafe { area.lock.unlock() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::SpinLock;
    use std::vec::Vec;

    #[test]
    fn all_locks_are_held_until_the_guard_goes() {
        let areas: Vec<_> = (0..3).map(|first| CachePadded(Area::<SpinLock>::new(first))).collect();
        let locked = || areas.iter().map(|area| area.lock.is_locked()).collect::<Vec<_>>();
        let held = Held::new(&areas[1..]);
        assert_eq!(locked(), [false, true, true]);
        drop(held);
        assert_eq!(locked(), [false, false, false]);
    }
}
