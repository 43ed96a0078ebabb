//! The front of each CPU's share: one free range for every power of two, each in an atomic word.
//!
//! A free puts its range into the empty word of its size, the next allocation of that size takes it:
//! one atomic step each, and no lock. A word that is full, or empty, sends the call to the magazines.
//!
//! A word holds the range's first granule plus one, or zero. Whoever changes a word from a range to
//! zero owns that range, and nobody else can: so neither a CPU number that is stale nor two CPUs in
//! one share hand a range out twice. That the same range may come back in between does no harm: then
//! it is free again, and taking it is right.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

/// Sizes of 1 to 1024 granules: the powers of two that magazines have a class for.
const ORDERS: usize = 11;

/// One word. A trait, so that a model checker can put its own atomics in the machine's place.
pub(super) trait Word: Default {
    /// What it holds, by the way.
    fn peek(&self) -> u64;
    /// Leaves it empty, and answers what it held.
    fn empty(&self) -> u64;
    /// Replaces `old` by `new`; false if something else stood there. A range that goes in is
    /// released to whoever takes it out (acquire).
    fn replace(&self, old: u64, new: u64) -> bool;
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn peek(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn empty(&self) -> u64 {
        self.swap(0, Ordering::AcqRel)
    }

    #[inline(always)]
    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// The words of one CPU.
#[derive(Debug, Default)]
pub(super) struct Front<W = AtomicU64> {
    words: [W; ORDERS],
}

impl<W: Word> Front<W> {
    /// The word for ranges of `len` granules, not zero, if there is one.
    #[inline(always)]
    fn word(&self, len: u64) -> Option<&W> {
        if len & (len - 1) != 0 {
            return None;
        }
        self.words.get(len.trailing_zeros() as usize)
    }

    /// Takes the range of `len` granules, if there is one. No look before the step: where calls follow each
    /// other that load would wait for the last step, and this one for the load.
    #[inline(always)]
    pub(super) fn take(&self, len: u64) -> Option<u64> {
        self.word(len)?.empty().checked_sub(1)
    }

    /// The same if it `fits`.
    #[inline(always)]
    pub(super) fn take_fitting(&self, len: u64, fits: impl FnOnce(u64) -> bool) -> Option<u64> {
        let word = self.word(len)?;
        let found = word.peek();
        let start = found.checked_sub(1)?;
        (fits(start) && word.replace(found, 0)).then_some(start)
    }

    /// Puts a range of `len` granules in; false if there is no room.
    #[inline(always)]
    pub(super) fn put(&self, len: u64, start: u64) -> bool {
        self.word(len).is_some_and(|word| word.replace(0, start + 1))
    }

    /// Hands everything to `sink` (start and length).
    pub(super) fn drain(&self, mut sink: impl FnMut(u64, u64)) {
        for order in 0..ORDERS {
            let len = 1 << order;
            if let Some(start) = self.take(len) {
                sink(start, len);
            }
        }
    }

    /// The granules held.
    pub(super) fn granules(&self) -> u64 {
        let held = self.words.iter().enumerate().filter(|(_, word)| word.peek() != 0);
        held.map(|(order, _)| 1 << order).sum()
    }
}
