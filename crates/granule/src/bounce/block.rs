//! One contiguous block of bounce memory, cut into areas.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use core::ops::Range;

use super::area::{Area, Held};
use super::bitmap::{Bitmap, Fit, Survey, WORD};
use super::placement::Placement;
use crate::addr::PhysRange;
use crate::mem::{CachePadded, OwnedFrames, Platform};

/// A block: its frames, a bit for each slot, a lock for each area.
pub(super) struct Block<P: Platform> {
    /// `None` only once `Drop` has taken them.
    frames: Option<OwnedFrames<P>>,
    range: PhysRange,
    slots: u64,
    /// Slots in each area but the last: a multiple of a bitmap word.
    area_slots: u64,
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
    /// A block of free slots of `1 << slot_shift` bytes, with areas of `area_slots` (a multiple of
    /// [`WORD`], not zero).
    pub(super) fn new(frames: OwnedFrames<P>, slot_shift: u32, area_slots: u64) -> Self {
        let range = frames.range();
        let slots = range.len() >> slot_shift;
        let area_slots = area_slots.clamp(WORD, slots.next_multiple_of(WORD));
        let starts = (0..slots.div_ceil(area_slots)).map(|index| index * area_slots);
        Self {
            frames: Some(frames),
            range,
            slots,
            area_slots,
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
        let start = index as u64 * self.area_slots;
        let (low, high) = (low.max(start), high.min(start + self.area_slots));
        // A look without the lock: whoever is turned away wrongly gets a proper answer later.
        if high.saturating_sub(low) < fit.count || self.area_slots - area.used() < fit.count {
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
        let from = (first / self.area_slots) as usize;
        let to = ((first + count - 1) / self.area_slots) as usize;
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
            let index = from / self.area_slots;
            let to = end.min((index + 1) * self.area_slots);
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
