//! What each CPU keeps at hand: a stack of free ranges for every common size.
//!
//! There is a class for each size from 1 to 64 granules, and for the powers of two up to 1024. The
//! classes are exact: a range of 33 granules does not keep 64, and the rest stays for others.
//! Depths follow how often a size is wanted and how much space it may hold back; together with
//! the counts they stay below 10 KiB.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::size_of;

/// The number of classes.
pub(super) const CLASSES: usize = 68;
/// The largest size that has a class for every number of granules.
const DENSE: u64 = 64;
/// The largest size that has a class at all: 4 MiB in granules of 4 KiB.
const LARGEST: u64 = 1024;

/// The size of a class in granules.
const fn size_of_class(class: usize) -> u64 {
    if class < DENSE as usize { class as u64 + 1 } else { (2 * DENSE) << (class - DENSE as usize) }
}

/// How many ranges of a class a CPU keeps at most.
const fn depth_of_class(class: usize) -> usize {
    let size = size_of_class(class);
    match (size, size.is_power_of_two()) {
        (1, _) => 128,
        (2..=4, true) => 64,
        (5..=16, true) => 48,
        (17..=64, true) => 32,
        (65..=256, true) => 16,
        (_, true) => 8,
        (2..=4, false) => 32,
        (5..=8, false) => 24,
        (9..=16, false) => 18,
        (17..=32, false) => 14,
        (_, false) => 11,
    }
}

/// All classes, one behind the other in the common array.
static TABLE: [Place; CLASSES] = PLACES;

const PLACES: [Place; CLASSES] = {
    let mut table = [Place { index: 0, base: 0, end: 0, mask: 0 }; CLASSES];
    let (mut index, mut base) = (0, 0);
    while index < CLASSES {
        let end = base + depth_of_class(index) as u16;
        let mask = size_of_class(index).next_power_of_two() as u16 - 1;
        table[index] = Place { index: index as u8, base, end, mask };
        base = end;
        index += 1;
    }
    table
};

const _: () = assert!(size_of::<Magazines>() + Magazines::HEAP_BYTES <= 10 * 1024 - 128);

const SLOTS: usize = PLACES[CLASSES - 1].end as usize;

/// The longest run of ranges that moves between a magazine and the tree at once.
const BATCH_MAX: usize = 32;

/// Where the ranges of a class are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u8,
    /// Its part of the common array.
    base: u16,
    end: u16,
    /// The bits that are clear in a naturally aligned start.
    mask: u16,
}

/// A size that is cached, with its place in the common array: looked up before the CPU's lock is
/// taken, since what comes behind the lock cannot overlap with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(&'static Place);

impl Class {
    /// The class of `len` granules, if it has one.
    #[inline(always)]
    pub(super) fn of(len: u64) -> Option<Self> {
        if len.wrapping_sub(1) < DENSE {
            return Self::at((len - 1) as usize);
        }
        if len > DENSE && len <= LARGEST && len.is_power_of_two() {
            let above = len.trailing_zeros() - DENSE.trailing_zeros() - 1;
            return Self::at(DENSE as usize + above as usize);
        }
        None
    }

    /// All classes.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..CLASSES).filter_map(Self::at)
    }

    /// Its place among the classes.
    #[inline]
    pub(super) fn index(self) -> usize {
        usize::from(self.0.index)
    }

    /// The granules of each range.
    #[inline]
    pub(super) fn size(self) -> u64 {
        size_of_class(self.index())
    }

    /// Whether a range that starts at granule `low` is naturally aligned.
    #[inline]
    pub(super) fn is_natural(self, low: u64) -> bool {
        low & u64::from(self.0.mask) == 0
    }

    /// How many ranges a magazine keeps at most.
    #[inline]
    pub(super) fn depth(self) -> usize {
        usize::from(self.0.end - self.0.base)
    }

    #[inline(always)]
    fn at(index: usize) -> Option<Self> {
        TABLE.get(index).map(Self)
    }

    /// How many ranges move between the tree and an empty or full magazine: few, since each is a walk. What an unlucky call
    /// costs grows with them. Of sizes that come and go at random (the odd ones), two are best: more
    /// at a time would be as many in all.
    fn batch(self) -> usize {
        let quarter = self.depth() / 4;
        if self.size().is_power_of_two() { quarter.clamp(2, BATCH_MAX) } else { 2 }
    }
}

/// A CPU's free ranges, by class; each is named by its first granule.
pub(super) struct Magazines {
    count: [u16; CLASSES],
    slots: Box<[u64; SLOTS]>,
}

impl Magazines {
    /// The bytes behind each value; with the value itself, below 10 KiB a CPU.
    pub(super) const HEAP_BYTES: usize = SLOTS * size_of::<u64>();

    /// Empty magazines, or `None` if there is no memory for them.
    pub(super) fn allocate() -> Option<Self> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(SLOTS).ok()?;
        slots.resize(SLOTS, 0); // In place: ten kilobytes would be much for a kernel's stack.
        Some(Self { count: [0; CLASSES], slots: Box::try_from(slots).ok()? })
    }

    /// The stack of a class: its count and its slots.
    #[inline]
    fn stack(&mut self, class: Class) -> Option<(&mut u16, &mut [u64])> {
        let slots = self.slots.get_mut(usize::from(class.0.base)..usize::from(class.0.end))?;
        Some((self.count.get_mut(class.index())?, slots))
    }

    /// Takes the range that was put in last.
    #[inline(always)]
    pub(super) fn pop(&mut self, class: Class) -> Option<u64> {
        let count = self.count.get_mut(class.index())?;
        let left = count.checked_sub(1)?;
        let start = *self.slots.get(usize::from(class.0.base) + usize::from(left))?;
        *count = left;
        Some(start)
    }

    /// Takes the latest range among the last eight that `fits`.
    #[inline]
    pub(super) fn pop_if(&mut self, class: Class, fits: impl Fn(u64) -> bool) -> Option<u64> {
        let (count, slots) = self.stack(class)?;
        let filled = slots.get_mut(..usize::from(*count))?;
        let (last, _) = filled.split_last()?;
        let last = *last;
        let from_top = filled.iter().rev().take(8).position(|start| fits(*start))?;
        let at = filled.len() - 1 - from_top;
        let start = core::mem::replace(filled.get_mut(at)?, last);
        *count -= 1;
        Some(start)
    }

    /// Puts a range in; false if the magazine is full.
    #[inline]
    pub(super) fn push(&mut self, class: Class, start: u64) -> bool {
        let Some(count) = self.count.get_mut(class.index()) else { return false };
        let place = class.0.base + *count;
        if place >= class.0.end {
            return false;
        }
        let Some(slot) = self.slots.get_mut(usize::from(place)) else { return false };
        *slot = start;
        *count += 1;
        true
    }

    /// Whether there is no room for another range of a class.
    pub(super) fn is_full(&mut self, class: Class) -> bool {
        self.stack(class).is_none_or(|(count, slots)| usize::from(*count) >= slots.len())
    }

    /// Fills an empty magazine from `source`, which tells how many ranges it put into the room: for a
    /// batch from the tree.
    pub(super) fn refill(&mut self, class: Class, source: impl FnOnce(&mut [u64]) -> usize) {
        self.fill(class, class.batch(), source);
    }

    /// The same with room for half a magazine: such copies cost little, and half-way to full and to
    /// empty is where the next one is farthest off.
    pub(super) fn refill_half(&mut self, class: Class, source: impl FnOnce(&mut [u64]) -> usize) {
        self.fill(class, class.depth() / 2, source);
    }

    fn fill(&mut self, class: Class, most: usize, source: impl FnOnce(&mut [u64]) -> usize) {
        let Some((count, slots)) = self.stack(class) else { return };
        let filled = usize::from(*count);
        let room = slots.len().min(filled + most);
        let Some(room) = slots.get_mut(filled..room) else { return };
        let limit = room.len();
        *count += source(room).min(limit) as u16;
    }

    /// Offers the older half of a class to `sink`, which tells how many of them it took.
    pub(super) fn drain_half(&mut self, class: Class, sink: impl FnOnce(&[u64]) -> usize) {
        let Some((count, slots)) = self.stack(class) else { return };
        let filled = usize::from(*count);
        let Some(half) = slots.get(..filled.div_ceil(2)) else { return };
        let drained = sink(half).min(half.len());
        slots.copy_within(drained..filled, 0);
        *count = (filled - drained) as u16;
    }

    /// Hands the oldest ranges of a class to `sink`.
    pub(super) fn drain_some(&mut self, class: Class, sink: impl FnMut(Class, &[u64])) {
        self.drain(class, class.batch(), sink);
    }

    /// Hands everything to `sink`, class by class.
    pub(super) fn drain_all(&mut self, mut sink: impl FnMut(Class, &[u64])) {
        for class in Class::all() {
            self.drain(class, usize::MAX, &mut sink);
        }
    }

    fn drain(&mut self, class: Class, limit: usize, mut sink: impl FnMut(Class, &[u64])) {
        let Some((count, slots)) = self.stack(class) else { return };
        let filled = usize::from(*count);
        let drained = filled.min(limit);
        let Some(oldest) = slots.get(..drained) else { return };
        sink(class, oldest);
        slots.copy_within(drained..filled, 0);
        *count = (filled - drained) as u16;
    }

    /// The granules held in all classes.
    pub(super) fn granules(&self) -> u64 {
        let sizes = (0..CLASSES).map(size_of_class);
        self.count.iter().zip(sizes).map(|(count, size)| u64::from(*count) * size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_sizes_agree() {
        for class in 0..CLASSES {
            assert_eq!(Class::of(size_of_class(class)), Class::at(class));
        }
        for len in [0, 65, 96, 127, 129, 1023, 1025, 2048, u64::MAX] {
            assert_eq!(Class::of(len), None);
        }
        let all = (1..=LARGEST).filter_map(Class::of).count();
        assert_eq!(all, CLASSES);
    }

    #[test]
    fn a_full_magazine_refuses_and_drains_the_oldest_first() {
        let mut magazines = Magazines::allocate().expect("memory");
        let class = Class::of(1024).expect("a class");
        let mut pushed = 0;
        while magazines.push(class, pushed * 1024) {
            pushed += 1;
        }
        assert_eq!(magazines.granules(), pushed * 1024);
        let mut drained = std::vec::Vec::new();
        magazines.drain_some(class, |class, starts| {
            drained.extend(starts.iter().map(|start| (*start, class.size())));
        });
        assert_eq!(drained.first(), Some(&(0, 1024)));
        let drained = drained.len() as u64;
        assert!(drained != 0 && drained < pushed);
        assert_eq!(magazines.pop(class), Some((pushed - 1) * 1024));
        assert_eq!(magazines.granules(), (pushed - drained - 1) * 1024);
    }

    #[test]
    fn pop_if_passes_over_what_does_not_fit() {
        let mut magazines = Magazines::allocate().expect("memory");
        let class = Class::of(1).expect("a class");
        for start in [10, 20, 30] {
            assert!(magazines.push(class, start));
        }
        assert_eq!(magazines.pop_if(class, |start| start < 5), None);
        assert_eq!(magazines.pop_if(class, |start| start < 25), Some(20));
        assert_eq!(
            [magazines.pop(class), magazines.pop(class), magazines.pop(class)],
            [Some(30), Some(10), None]
        );
    }
}
