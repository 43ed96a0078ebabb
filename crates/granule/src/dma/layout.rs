//! Where the entries of a scatter list go: the "impedance matching" between entries of any size and
//! pages of one granule. Pure arithmetic, tested against brute force.
//!
//! ```text
//!   entries (physical)     ..[===]....   [=====]  [==
//!   mapped (granules)      |-------|     |-------|-----|
//!   IOVA, one allocation   |-------||-------||-----|        pads only where a boundary asks
//! ```
//!
//! The offset of an entry is that of its *physical* address inside the granule; the CPU's page plays
//! no part. An entry that starts where the one before ended shares its granule instead of mapping it
//! again.

use crate::addr::{DmaAddr, DmaSegment, Granule, PhysRange};

/// What the device and its domain demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub granule: Granule,
    /// A power of two that no segment may cross, or 0.
    pub boundary: u64,
    /// The longest segment.
    pub max_segment: u64,
}

/// Where one entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The offset of the entry's first byte from the start of the allocation.
    pub offset: u64,
    /// Granules to map for it that the entry before did not map: their offset, and the memory.
    pub piece: Option<(u64, PhysRange)>,
}

/// Why an entry has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Longer than the longest segment.
    TooLong,
    /// It would cross a boundary wherever it lies.
    Crosses,
    /// Sums past 2^64.
    Overflow,
}

/// Places entries one after the other. Copying it starts over from the same point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placer {
    rules: Rules,
    /// The first offset that no piece covers.
    cursor: u64,
    /// The entry before: its physical end, and the offset of that end.
    last: Option<(u64, u64)>,
}

impl Placer {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, cursor: 0, last: None }
    }

    /// The length of the allocation so far: whole granules.
    pub(crate) fn len(&self) -> u64 {
        self.cursor
    }

    /// Places an entry of whole granules where there is no boundary, as [`place`](Self::place) does.
    /// `None` past 2^64.
    #[inline]
    pub(crate) fn append(&mut self, entry: PhysRange) -> Option<u64> {
        let offset = self.cursor;
        self.cursor = offset.checked_add(entry.len())?;
        // It ends with its granule: the next entry shares nothing with it.
        self.last = None;
        Some(offset)
    }

    /// Places the next entry.
    pub(crate) fn place(&mut self, entry: PhysRange) -> Result<Placed, NoPlace> {
        if entry.len() > self.rules.max_segment {
            return Err(NoPlace::TooLong);
        }
        match self.continued(entry) {
            Some(placed) => Ok(placed),
            None => self.fresh(entry),
        }
    }

    /// The entry right behind the one before, in the granule that is mapped already.
    fn continued(&mut self, entry: PhysRange) -> Option<Placed> {
        let (phys_end, offset) = self.last?;
        let inside = !entry.start().is_aligned(self.rules.granule);
        if phys_end != entry.start().raw() || !inside || self.crosses(offset, entry.len()) {
            return None;
        }
        let end = offset.checked_add(entry.len())?;
        let piece = self.piece_up_to(entry, end)?;
        self.advance(entry, offset)?;
        Some(Placed { offset, piece })
    }

    /// The granules between the cursor and those that hold the entry's end.
    fn piece_up_to(&self, entry: PhysRange, end: u64) -> Option<Option<(u64, PhysRange)>> {
        let new_cursor = self.rules.granule.round_up(end)?;
        let missing = new_cursor - self.cursor;
        if missing == 0 {
            return Some(None);
        }
        let start = entry.start().align_up(self.rules.granule)?;
        Some(Some((self.cursor, PhysRange::new(start, missing).ok()?)))
    }

    /// The entry in granules of its own.
    fn fresh(&mut self, entry: PhysRange) -> Result<Placed, NoPlace> {
        let outer = entry.align_outward(self.rules.granule).ok_or(NoPlace::Overflow)?;
        let inside = entry.start().offset_in(self.rules.granule);
        let mut start = self.cursor;
        if self.crosses(start.checked_add(inside).ok_or(NoPlace::Overflow)?, entry.len()) {
            start = align_up(start, self.rules.boundary).ok_or(NoPlace::Overflow)?;
        }
        let offset = start.checked_add(inside).ok_or(NoPlace::Overflow)?;
        if self.crosses(offset, entry.len()) {
            return Err(NoPlace::Crosses);
        }
        self.cursor = start.checked_add(outer.len()).ok_or(NoPlace::Overflow)?;
        self.last = entry.end().map(|end| (end.raw(), offset + entry.len()));
        Ok(Placed { offset, piece: Some((start, outer)) })
    }

    fn advance(&mut self, entry: PhysRange, offset: u64) -> Option<()> {
        let end = offset.checked_add(entry.len())?;
        self.cursor = self.rules.granule.round_up(end)?;
        self.last = entry.end().map(|phys| (phys.raw(), end));
        Some(())
    }

    fn crosses(&self, offset: u64, len: u64) -> bool {
        crosses(offset, len, self.rules.boundary)
    }
}

/// Whether `[at, at + len)` holds addresses on both sides of a multiple of `boundary`.
#[inline]
pub(crate) fn crosses(at: u64, len: u64, boundary: u64) -> bool {
    if boundary == 0 || len == 0 {
        return false;
    }
    let room = boundary - (at & (boundary - 1));
    len > room
}

fn align_up(value: u64, align: u64) -> Option<u64> {
    if align == 0 { Some(value) } else { Some(value.checked_add(align - 1)? & !(align - 1)) }
}

/// Joins entries to segments, in order: an entry that starts where the segment ends makes it
/// longer, as far as the longest segment and the boundary allow.
pub(crate) struct Joiner<'a> {
    boundary: u64,
    max_segment: u64,
    segments: &'a mut alloc::vec::Vec<DmaSegment>,
}

impl<'a> Joiner<'a> {
    /// Writes to `segments`, and goes on where an earlier one stopped.
    #[inline]
    pub(crate) fn new(
        boundary: u64,
        max_segment: u64,
        segments: &'a mut alloc::vec::Vec<DmaSegment>,
    ) -> Self {
        Self { boundary, max_segment, segments }
    }

    #[inline]
    pub(crate) fn push(&mut self, address: DmaAddr, len: u64) {
        if let Some(open) = self.segments.last_mut() {
            let joined = open.len.saturating_add(len);
            let follows = open.address.checked_add(open.len) == Some(address);
            if follows
                && joined <= self.max_segment
                && !crosses(open.address.raw(), joined, self.boundary)
            {
                open.len = joined;
                return;
            }
        }
        self.segments.push(DmaSegment { address, len });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PhysAddr;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = PhysRange> {
        (0u64..1 << 20, 1u64..0x1_2000).prop_map(|(start, len)| {
            PhysRange::new(PhysAddr::new(0x8_0000_0000 + start * 64), len).expect("in range")
        })
    }

    /// Lists in which entries often follow each other.
    fn list() -> impl Strategy<Value = Vec<PhysRange>> {
        proptest::collection::vec((entry(), any::<bool>()), 1..24).prop_map(|pairs| {
            let mut list: Vec<PhysRange> = Vec::new();
            for (entry, adjacent) in pairs {
                let start = match list.last() {
                    Some(last) if adjacent => last.end().expect("far below the top"),
                    _ => entry.start(),
                };
                list.push(PhysRange::new(start, entry.len()).expect("in range"));
            }
            list
        })
    }

    fn rules() -> impl Strategy<Value = Rules> {
        (prop_oneof![Just(Granule::K4), Just(Granule::K16), Just(Granule::K64)], 0u32..8, 0u32..3)
            .prop_map(|(granule, boundary, max)| Rules {
                granule,
                boundary: if boundary == 0 { 0 } else { 0x1000 << (2 * boundary) },
                max_segment: [u64::MAX, 0x1_0000, 0x8000][max as usize],
            })
    }

    proptest! {
        /// The short way through a list places entries where the long way does.
        #[test]
        fn whole_granules_are_appended_where_they_would_be_placed(
            list in list(), short in proptest::collection::vec(any::<bool>(), 24), rules in rules(),
        ) {
            let rules = Rules { boundary: 0, max_segment: u64::MAX, ..rules };
            let (mut one, mut other) = (Placer::new(rules), Placer::new(rules));
            for (entry, short) in list.iter().zip(short) {
                let outer = entry.align_outward(rules.granule).expect("far below the top");
                // Some entries fill their granules, the others lie as they come.
                let entry = if short { outer } else { *entry };
                let placed = one.place(entry).expect("a place");
                if entry == outer {
                    prop_assert_eq!(placed.piece, Some((placed.offset, entry)));
                    prop_assert_eq!(other.append(entry), Some(placed.offset));
                } else {
                    prop_assert_eq!(other.place(entry), Ok(placed));
                }
                prop_assert_eq!(one.len(), other.len());
            }
        }

        /// Laws 1 and 6 on the arithmetic alone: the mapped granules put every byte of every entry
        /// where its offset says, pieces never overlap, and segments obey the device.
        #[test]
        fn every_byte_lands_where_its_entry_was_placed(list in list(), rules in rules()) {
            let base = 0x40_0000_0000u64;
            let mut placer = Placer::new(rules);
            let mut mapped: Vec<(u64, PhysRange)> = Vec::new();
            let mut segments = Vec::new();
            let mut joiner = Joiner::new(rules.boundary, rules.max_segment, &mut segments);
            let mut kept = Vec::new();
            for entry in &list {
                match placer.place(*entry) {
                    Ok(placed) => {
                        if let Some((offset, piece)) = placed.piece {
                            prop_assert!(piece.is_aligned(rules.granule) && rules.granule.divides(offset));
                            let end = mapped.last().map_or(0, |(o, p): &(u64, PhysRange)| o + p.len());
                            prop_assert!(offset >= end, "pieces overlap");
                            mapped.push((offset, piece));
                        }
                        joiner.push(DmaAddr::new(base + placed.offset), entry.len());
                        kept.push((placed.offset, *entry));
                    }
                    Err(NoPlace::TooLong) => prop_assert!(entry.len() > rules.max_segment),
                    Err(NoPlace::Crosses) => {
                        let inside = entry.start().offset_in(rules.granule);
                        prop_assert!(inside + entry.len() > rules.boundary || crosses(inside, entry.len(), rules.boundary));
                    }
                    Err(NoPlace::Overflow) => prop_assert!(false, "nothing here overflows"),
                }
            }
            for (offset, entry) in &kept {
                for at in [0, entry.len() / 2, entry.len() - 1] {
                    let (start, piece) = mapped.iter().rfind(|(start, _)| *start <= offset + at).expect("mapped");
                    let inside = offset + at - start;
                    prop_assert!(inside < piece.len());
                    prop_assert_eq!(piece.start().raw() + inside, entry.start().raw() + at);
                }
            }
            prop_assert!(segments.len() <= kept.len());
            let sum: u64 = segments.iter().map(|segment| segment.len).sum();
            prop_assert_eq!(sum, kept.iter().map(|(_, entry)| entry.len()).sum::<u64>());
            for segment in &segments {
                prop_assert!(segment.len <= rules.max_segment);
                prop_assert!(!crosses(segment.address.raw(), segment.len, rules.boundary));
            }
            // In order: reading the segments one after the other gives the entries' addresses.
            let mut bytes = segments.iter().flat_map(|s| [(s.address.raw(), s.len)]);
            let (mut at, mut left) = bytes.next().unwrap_or((0, 0));
            for (offset, entry) in &kept {
                prop_assert_eq!(base + offset, at);
                prop_assert!(entry.len() <= left);
                (at, left) = (at + entry.len(), left - entry.len());
                if left == 0 {
                    (at, left) = bytes.next().unwrap_or((0, 0));
                }
            }
        }
    }
}
