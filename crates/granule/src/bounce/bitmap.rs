//! A bitmap of slots: find a run of free ones that starts at a suitable index.
//!
//! Bits are read and written under the locks of the areas that they belong to. The words are atomic
//! only so that no unsafe code is needed; every access is relaxed, and the locks order them.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many slots share a word. Areas hold whole words, so two areas never write the same one.
pub(super) const WORD: u64 = 64;

/// A run that is looked for: `count` slots from an index that is `phase` modulo `stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    /// How many slots, at least one.
    pub(super) count: u64,
    /// A power of two.
    pub(super) stride: u64,
    /// Below `stride`.
    pub(super) phase: u64,
}

impl Fit {
    /// The first index from `from` on that a run may start at.
    #[inline]
    fn next(&self, from: u64) -> Option<u64> {
        let ahead = self.phase.wrapping_sub(from) & (self.stride - 1);
        from.checked_add(ahead)
    }

    /// How many slots of `from..to` remain behind the first index that a run may start at.
    pub(super) fn room(&self, from: u64, to: u64) -> u64 {
        self.next(from).map_or(0, |start| to.saturating_sub(start))
    }

    /// The bits of a word that a run may start at, for a stride of at most 64.
    #[inline]
    fn starts(&self) -> u64 {
        let (mut starts, mut width) = (1 << self.phase, self.stride);
        if width == 1 {
            return u64::MAX;
        }
        while width < WORD {
            starts |= starts << width;
            width *= 2;
        }
        starts
    }
}

/// What is free in a part of a bitmap, in slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// All free slots.
    pub(super) free: u64,
    /// The longest free run.
    pub(super) longest: u64,
    /// The longest free run from an index that a run may start at.
    pub(super) usable: u64,
}

/// One bit a slot; a set bit is a slot in use.
#[derive(Debug)]
pub(super) struct Bitmap {
    words: Box<[AtomicU64]>,
}

impl Bitmap {
    /// A bitmap of `slots` free slots.
    pub(super) fn new(slots: u64) -> Self {
        Self { words: (0..slots.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The used bits of a word; behind the end all are used.
    #[inline]
    fn used(&self, word: u64) -> u64 {
        usize::try_from(word)
            .ok()
            .and_then(|index| self.words.get(index))
            .map_or(u64::MAX, |word| word.load(Relaxed))
    }

    /// The free bits of a word that lie in `low..high`.
    #[inline]
    fn free(&self, word: u64, low: u64, high: u64) -> u64 {
        !self.used(word) & within(word, low, high)
    }

    /// The first free run as requested inside `low..high`.
    #[inline]
    pub(super) fn find(&self, low: u64, high: u64, fit: &Fit) -> Option<u64> {
        if fit.count <= WORD && fit.stride <= WORD {
            self.find_short(low, high, fit)
        } else {
            self.find_long(low, high, fit)
        }
    }

    /// Tests all 64 starts of a word at once: bit *i* survives if bits *i* to *i* + count - 1 of
    /// this word and the next are free.
    #[inline]
    fn find_short(&self, low: u64, high: u64, fit: &Fit) -> Option<u64> {
        let starts = fit.starts();
        let mut here = self.free(low / WORD, low, high);
        for word in low / WORD..high.div_ceil(WORD) {
            let next = self.free(word + 1, low, high);
            if here != 0 {
                let both = u128::from(here) | u128::from(next) << 64;
                let hits = runs(both, fit.count) as u64 & starts;
                if hits != 0 {
                    return Some(word * WORD + u64::from(hits.trailing_zeros()));
                }
            }
            here = next;
        }
        None
    }

    /// Goes from one place where the run may start to the next that nothing is known against.
    fn find_long(&self, low: u64, high: u64, fit: &Fit) -> Option<u64> {
        let mut from = low;
        loop {
            let start = fit.next(self.first_free(from, high)?)?;
            let end = start.checked_add(fit.count).filter(|&end| end <= high)?;
            match self.first_used(start, end) {
                None => return Some(start),
                Some(used) => from = used,
            }
        }
    }

    /// The first free slot inside `low..high`.
    #[inline]
    fn first_free(&self, low: u64, high: u64) -> Option<u64> {
        first_bit(low, high, |word| self.free(word, low, high))
    }

    /// The first used slot inside `low..high`.
    #[inline]
    fn first_used(&self, low: u64, high: u64) -> Option<u64> {
        first_bit(low, high, |word| self.used(word) & within(word, low, high))
    }

    /// Counts what is free inside `low..high`.
    pub(super) fn survey(&self, low: u64, high: u64, fit: &Fit) -> Survey {
        let words = low / WORD..high.div_ceil(WORD);
        let free = words.map(|word| u64::from(self.free(word, low, high).count_ones())).sum();
        if free == 0 {
            return Survey::default();
        }
        let longest = self.longest(low, high, &Fit { count: 1, stride: 1, phase: 0 });
        Survey { free, longest, usable: self.longest(low, high, fit) }
    }

    /// The longest free run that starts where `fit` may. Looks only at runs longer than the longest
    /// so far (or than 63 slots), so it is about as fast as one search, however many runs there are.
    fn longest(&self, low: u64, high: u64, fit: &Fit) -> u64 {
        let (mut from, mut longest) = (low, 0);
        while let Some(start) = self.find(from, high, &Fit { count: WORD.min(longest + 1), ..*fit })
        {
            let end = self.first_used(start, high).unwrap_or(high);
            longest = longest.max(end - start);
            from = end;
        }
        longest
    }

    /// Marks `count` slots from `first` as used.
    #[inline]
    pub(super) fn set(&self, first: u64, count: u64) {
        self.update(first, count, |word, mask| word | mask);
    }

    /// Marks `count` slots from `first` as free.
    #[inline]
    pub(super) fn clear(&self, first: u64, count: u64) {
        self.update(first, count, |word, mask| word & !mask);
    }

    #[inline]
    fn update(&self, first: u64, count: u64, change: impl Fn(u64, u64) -> u64) {
        let end = first.saturating_add(count);
        let mut from = first;
        while from < end {
            let to = end.min((from / WORD + 1) * WORD);
            let mask = (u64::MAX >> (WORD - (to - from))) << (from % WORD);
            if let Some(word) = self.words.get((from / WORD) as usize) {
                word.store(change(word.load(Relaxed), mask), Relaxed);
            }
            from = to;
        }
    }
}

/// The bits of word `word` that lie in `low..high`.
#[inline]
fn within(word: u64, low: u64, high: u64) -> u64 {
    let base = word * WORD;
    below(high.saturating_sub(base)) & !below(low.saturating_sub(base))
}

/// The lowest `count` bits of a word, or all.
#[inline]
fn below(count: u64) -> u64 {
    if count < WORD { (1 << count) - 1 } else { u64::MAX }
}

/// The first set bit in the words of `low..high`, as `word` shows them.
#[inline]
fn first_bit(low: u64, high: u64, word: impl Fn(u64) -> u64) -> Option<u64> {
    (low / WORD..high.div_ceil(WORD)).find_map(|index| match word(index) {
        0 => None,
        bits => Some(index * WORD + u64::from(bits.trailing_zeros())),
    })
}

/// The bits of `free` that start a run of at least `count` (1 to 64) set bits.
#[inline]
fn runs(mut free: u128, count: u64) -> u128 {
    let mut have = 1;
    while have < count {
        let step = have.min(count - have);
        free &= free >> step;
        have += step;
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The definition, slot by slot.
    fn brute(used: &[bool], low: u64, high: u64, fit: &Fit) -> Option<u64> {
        (low..high).find(|&start| {
            start % fit.stride == fit.phase
                && start + fit.count <= high
                && (start..start + fit.count).all(|slot| !used[slot as usize])
        })
    }

    fn brute_survey(used: &[bool], low: u64, high: u64, fit: &Fit) -> Survey {
        let run =
            |start: u64| (start..high).take_while(|&slot| !used[slot as usize]).count() as u64;
        Survey {
            free: (low..high).filter(|&slot| !used[slot as usize]).count() as u64,
            longest: (low..high).map(run).max().unwrap_or(0),
            usable: (low..high)
                .filter(|start| start % fit.stride == fit.phase)
                .map(run)
                .max()
                .unwrap_or(0),
        }
    }

    /// Runs of used and free slots of many lengths.
    fn pattern() -> impl Strategy<Value = Vec<bool>> {
        let piece = (any::<bool>(), prop_oneof![1..5usize, 1..140usize]);
        proptest::collection::vec(piece, 1..12).prop_map(|pieces| {
            pieces.into_iter().flat_map(|(used, len)| std::iter::repeat_n(used, len)).collect()
        })
    }

    proptest! {
        #[test]
        fn finding_and_counting_agree_with_the_definition(
            used in pattern(),
            count in prop_oneof![1..4u64, 1..70u64, 1..200u64],
            stride in 0..9u32,
            phase in any::<u64>(),
            low in any::<prop::sample::Index>(),
            high in any::<prop::sample::Index>(),
        ) {
            let bitmap = Bitmap::new(used.len() as u64);
            for (slot, _) in used.iter().enumerate().filter(|(_, used)| **used) {
                bitmap.set(slot as u64, 1);
            }
            let (a, b) = (low.index(used.len() + 1) as u64, high.index(used.len() + 1) as u64);
            let (low, high) = (a.min(b), a.max(b));
            let fit = Fit { count, stride: 1 << stride, phase: phase & ((1 << stride) - 1) };
            prop_assert_eq!(bitmap.find(low, high, &fit), brute(&used, low, high, &fit));
            prop_assert_eq!(bitmap.survey(low, high, &fit), brute_survey(&used, low, high, &fit));
        }

        #[test]
        fn setting_and_clearing_touch_exactly_the_run(first in 0..300u64, count in 1..200u64) {
            let every = Fit { count: 1, stride: 1, phase: 0 };
            let bitmap = Bitmap::new(500);
            bitmap.set(0, 500);
            bitmap.clear(first, count);
            let survey = bitmap.survey(0, 500, &every);
            prop_assert_eq!((survey.free, survey.longest), (count, count));
            prop_assert_eq!(bitmap.find(0, 500, &Fit { count, ..every }), Some(first));
            bitmap.set(first, count);
            prop_assert_eq!(bitmap.find(0, 500, &every), None);
        }
    }
}
