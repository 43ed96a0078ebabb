//! One contiguous block of bounce memory, cut into areas.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use core::ops::Range;

use super::area::{Area, Held};
use super::bitmap::{Bitmap, Fit, Survey, WORD};
use super::placement::Placement;
use crate::addr::PhysRange;
use crate::mem::{CachePadded, OwnedFrames, Platform};

/// Areas larger than this mean nothing; it keeps the arithmetic on them from overflowing.
const MOST_AREA_SHIFT: u32 = 30;

/// A block: its frames, a bit for each slot, a lock for each area.
pub(super) struct Block<P: Platform> {
    /// `None` only once `Drop` has taken them.
    frames: Option<OwnedFrames<P>>,
    range: PhysRange,
    slots: u64,
    /// The logarithm of the slots in each area but the last, which are whole bitmap words.
    area_shift: u32,
    bitmap: Bitmap,
    areas: Box<[CachePadded<Area<P::Lock>>]>,
}

/// Why a block could not serve a request, in slots.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shortage {
    /// What is free inside the request's window.
    pub(super) survey: Survey,
    /// How many slots of the block lie inside the window.
    pub(super) reach: u64,
}

impl<P: Platform> Block<P> {
    /// A block of free slots of `1 << slot_shift` bytes, with areas of `1 << area_shift`
    /// slots, or of a bitmap word if that is more.
    pub(super) fn new(frames: OwnedFrames<P>, slot_shift: u32, area_shift: u32) -> Self {
        let range = frames.range();
        let slots = range.len() >> slot_shift;
        let area_shift = area_shift.clamp(WORD.trailing_zeros(), MOST_AREA_SHIFT);
        let starts = (0..slots).step_by(1 << area_shift);
        Self {
            frames: Some(frames),
            range,
            slots,
            area_shift,
            bitmap: Bitmap::new(slots),
            areas: starts.map(|first| CachePadded(Area::new(first))).collect(),
        }
    }

    /// Where the block lies.
    #[inline]
    pub(super) fn range(&self) -> PhysRange {
        self.range
    }

    /// How many areas there are.
    pub(super) fn areas(&self) -> usize {
        self.areas.len()
    }

    /// Takes a run that lies inside area `index`, if there is one. Returns its first slot.
    #[inline]
    pub(super) fn take_in_area(&self, index: usize, placement: &Placement) -> Option<u64> {
        let area = self.areas.get(index)?;
        let fit = placement.fit(self.range.start());
        let (low, high) = placement.reach(self.range);
        let area_slots = 1 << self.area_shift;
        let start = (index as u64) << self.area_shift;
        let (low, high) = (low.max(start), high.min(start + area_slots));
        // A look without the lock: whoever is turned away wrongly gets a proper answer later.
        if high.saturating_sub(low) < fit.count || area_slots - area.used() < fit.count {
            return None;
        }
        let _held = Held::new(core::slice::from_ref(area));
        let from = low.max(area.first());
        let found = self.bitmap.find(from, high, &fit)?;
        self.bitmap.set(found, fit.count);
        area.add(fit.count);
        // All below `found` is in use if the search began at the first slot that could be free, and
        // either took it or would have taken any.
        if from == area.first() && (found == from || (fit.count, fit.stride) == (1, 1)) {
            area.set_first(found + fit.count);
        }
        Some(found)
    }

    /// Takes a run anywhere in the block, across areas too. Returns its first slot.
    ///
    /// # Errors
    /// [`Shortage`] as it was while all locks of the block were held.
    pub(super) fn take_anywhere(&self, placement: &Placement) -> Result<u64, Shortage> {
        let fit = placement.fit(self.range.start());
        let (low, high) = placement.reach(self.range);
        let _held = Held::new(&self.areas);
        match self.bitmap.find(low, high, &fit) {
            Some(found) => {
                self.bitmap.set(found, fit.count);
                self.each_area(found, fit.count, |area, part| area.add(part.end - part.start));
                Ok(found)
            }
            None => {
                let survey = self.bitmap.survey(low, high, &fit);
                Err(Shortage { survey, reach: high - low })
            }
        }
    }

    /// The longest run from where `placement` may start, if the whole block were free, in slots.
    pub(super) fn possible(&self, placement: &Placement) -> u64 {
        let (low, high) = placement.reach(self.range);
        placement.fit(self.range.start()).room(low, high)
    }

    /// Gives back `count` slots from `first` on, which were taken together.
    #[inline]
    pub(super) fn give(&self, first: u64, count: u64) {
        let from = (first >> self.area_shift) as usize;
        let to = ((first + count - 1) >> self.area_shift) as usize;
        let Some(areas) = self.areas.get(from..=to) else {
            return; // Not of this block: the type of a slot excludes it.
        };
        let _held = Held::new(areas);
        self.bitmap.clear(first, count);
        self.each_area(first, count, |area, part| area.sub(part.end - part.start, part.start));
    }

    /// Calls `change` with each area that holds some of `count` slots from `first`, and with those.
    #[inline]
    fn each_area(&self, first: u64, count: u64, change: impl Fn(&Area<P::Lock>, Range<u64>)) {
        let end = first + count;
        let mut from = first;
        while from < end {
            let index = from >> self.area_shift;
            let to = end.min((index + 1) << self.area_shift);
            if let Some(area) = self.areas.get(index as usize) {
                change(area, from..to);
            }
            from = to;
        }
    }

    /// The slots in use.
    pub(super) fn used(&self) -> u64 {
        self.areas.iter().map(|area| area.used()).sum()
    }

    /// The sum of the areas' high-water marks, in slots.
    pub(super) fn peak(&self) -> u64 {
        self.areas.iter().map(|area| area.peak()).sum()
    }

    /// The longest free run, in slots.
    pub(super) fn longest_free(&self) -> u64 {
        let any = Fit { count: 1, stride: 1, phase: 0 };
        let _held = Held::new(&self.areas);
        self.bitmap.survey(0, self.slots, &any).longest
    }
}

impl<P: Platform> Drop for Block<P> {
    /// Frees the memory, unless slots are still in use: a device may reach those, so the whole
    /// block is leaked.
    fn drop(&mut self) {
        if self.used() == 0 {
            return;
        }
        if let Some(frames) = self.frames.take() {
            let _leaked = frames.into_raw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, most_held};
    use super::*;
    use crate::bounce::BounceRequest;
    use crate::mem::FrameRequest;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const SLOTS: u64 = 200;

    /// A block of 200 slots in areas of 128 and 72.
    fn block() -> Block<Machine> {
        let machine = Machine::new(0x10_0000, 0x10_0000, u64::MAX, 1);
        let frames =
            OwnedFrames::new(&machine, &FrameRequest::new(SLOTS * 2048, 4096)).expect("memory");
        Block::new(frames, 11, 7)
    }

    fn slots(count: u64, align: u64) -> Placement {
        let request = BounceRequest { align: align * 2048, ..BounceRequest::new(count * 2048) };
        Placement::new(&request, 11).expect("legal")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::effort::effort(256)))]

        /// The hint of an area never hides a free slot.
        #[test]
        fn an_area_finds_the_lowest_run_whatever_went_before(
            ops in proptest::collection::vec((any::<bool>(), 0..2usize, 1..6u64, 0..3u32, any::<u8>()), 1..200),
        ) {
            let block = block();
            let mut used = vec![false; SLOTS as usize];
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (release, area, count, align, pick) in ops {
                if release && !live.is_empty() {
                    let (first, count) = live.swap_remove(usize::from(pick) % live.len());
                    block.give(first, count);
                    used[first as usize..(first + count) as usize].fill(false);
                    continue;
                }
                let bounds = if area == 0 { 0..128 } else { 128..SLOTS };
                let lowest = bounds.clone().step_by(1 << align).find(|&first| {
                    first + count <= bounds.end
                        && used[first as usize..(first + count) as usize].iter().all(|used| !used)
                });
                prop_assert_eq!(block.take_in_area(area, &slots(count, 1 << align)), lowest);
                if let Some(first) = lowest {
                    used[first as usize..(first + count) as usize].fill(true);
                    live.push((first, count));
                }
            }
            live.into_iter().for_each(|(first, count)| block.give(first, count));
        }
    }

    #[test]
    fn the_hint_of_an_area_is_its_first_free_slot_while_single_slots_come_and_go() {
        let block = block();
        assert_eq!(block.areas(), 2);
        let first = |area: usize| block.areas[area].first();
        assert_eq!((first(0), first(1)), (0, 128));
        let one = slots(1, 1);
        let taken: Vec<_> = (0..5).filter_map(|_| block.take_in_area(1, &one)).collect();
        assert_eq!((taken, first(1)), (vec![128, 129, 130, 131, 132], 133));
        block.give(130, 1);
        assert_eq!(first(1), 130);
        // A run found behind the first free slot leaves it first.
        assert_eq!(block.take_in_area(1, &slots(2, 1)), Some(133));
        assert_eq!(first(1), 130);
        assert_eq!(block.take_in_area(1, &one), Some(130));
        assert_eq!(first(1), 131);
        block.give(128, 2);
        block.give(130, 5);
        assert_eq!((first(0), first(1), block.used(), block.peak()), (0, 128, 0, 7));
    }

    #[test]
    fn who_asks_for_more_than_is_free_takes_no_lock() {
        let block = block();
        let held = block.take_in_area(0, &slots(120, 1)).expect("free");
        most_held();
        assert_eq!(block.take_in_area(0, &slots(9, 1)), None);
        assert_eq!(block.take_in_area(1, &slots(73, 1)), None);
        assert_eq!(most_held(), 0);
        // As much as is free, to the slot.
        assert_eq!(block.take_in_area(0, &slots(8, 1)), Some(120));
        assert_eq!(block.take_in_area(1, &slots(72, 1)), Some(128));
        assert_eq!((most_held(), block.longest_free()), (1, 0));
        block.give(held, 120);
        block.give(120, 8);
        block.give(128, 72);
    }

    #[test]
    fn a_shortage_says_what_the_window_reaches() {
        let block = block();
        let low = 0x10_0000 + 10 * 2048;
        let window = PhysRange::new(crate::addr::PhysAddr::new(low), 90 * 2048).expect("legal");
        let request = BounceRequest { window: Some(window), ..BounceRequest::new(91 * 2048) };
        let placement = Placement::new(&request, 11).expect("legal");
        let shortage = block.take_anywhere(&placement).expect_err("too long");
        assert_eq!((shortage.reach, shortage.survey.free), (90, 90));
    }

    #[test]
    fn a_run_is_taken_and_given_under_the_locks_of_its_areas() {
        let block = block();
        most_held();
        let one = block.take_in_area(1, &slots(1, 1)).expect("free");
        block.give(one, 1);
        assert_eq!((one, most_held()), (128, 1));
        let across = block.take_anywhere(&slots(150, 1)).expect("free");
        assert_eq!((across, most_held()), (0, 2));
        block.give(across, 150);
        assert_eq!(most_held(), 2);
        assert_eq!((block.used(), block.peak(), block.longest_free()), (0, 128 + 22, SLOTS));
    }
}
