//! Scatter lists behind a domain: gathered, placed and measured in one pass, mapped as one.

use super::Translated;
use crate::addr::{Direction, DmaAddr, DmaSegment, PhysRange};
use crate::dma::layout::{Joiner, NoPlace, Placer, Rules};
use crate::dma::ops::{ListState, Live};
use crate::dma::runs::whole;
use crate::dma::{BounceReason, DmaError, MapFlags, Memory, Piece};
use crate::domain::{DomainError, Footprint, Translation};
use crate::mem::{FrameError, Platform};

/// What a list needs of the domain.
pub(super) struct Gathered {
    /// The size of the allocation in bytes.
    pub(super) size: u64,
    /// Whether some of it stays unmapped, for a boundary's sake.
    pub(super) gaps: bool,
    /// Whether the list's entries are what is mapped; else the gathered pieces are.
    pub(super) whole: bool,
    pub(super) print: Footprint,
}

/// A list that is being gathered.
struct Gather<'a> {
    placer: Placer,
    untrusted: bool,
    print: Footprint,
    /// Bytes that will be mapped.
    mapped: u64,
    state: &'a mut ListState,
}

impl Gather<'_> {
    /// Notes what is mapped for an entry and what the device is told of it.
    #[inline]
    fn push(&mut self, rules: Rules, piece: Option<(u64, PhysRange)>, offset: u64, len: u64) {
        if let Some(piece) = piece {
            self.state.pieces.push(piece);
        }
        Joiner::new(rules.boundary, rules.max_segment, &mut self.state.segments)
            .push(DmaAddr::new(offset), len);
    }
}

impl<P: Platform, T: Translation> Translated<P, T> {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            granule: self.domain.granule(),
            boundary: self.core.spec.boundary,
            max_segment: self.core.spec.max_segment,
        }
    }

    /// Decides for every entry of a list where it lies as the device will see it (bounced where it
    /// must be) and where it goes in the allocation. Segments are written relative to its start.
    pub(super) fn gather(
        &self,
        entries: &[Piece],
        direction: Direction,
        flags: MapFlags,
        state: &mut ListState,
    ) -> Result<Gathered, DmaError> {
        state.clear();
        if entries.is_empty() {
            return Err(DmaError::Empty { device: self.device() });
        }
        if let Some(gathered) = self.gather_whole(entries, state) {
            return Ok(gathered);
        }
        let rules = self.rules();
        let output = self.domain.geometry().output;
        let plain = self.is_plain() && rules.boundary == 0;
        let mut gather = Gather {
            placer: Placer::new(rules),
            untrusted: self.untrusted(),
            print: Footprint::default(),
            mapped: 0,
            state,
        };
        for (index, piece) in entries.iter().enumerate() {
            let phys = whole(&self.core.platform, piece);
            match phys {
                // The common case: whole granules, given to the device where they lie.
                Some(phys)
                    if plain
                        && phys.is_aligned(rules.granule)
                        && phys.len() <= rules.max_segment
                        && output.contains_range(&phys) =>
                {
                    let offset = gather.placer.append(phys);
                    let offset =
                        offset.ok_or_else(|| DmaError::TooLong { device: self.device() })?;
                    gather.mapped += phys.len();
                    gather.print.bytes += phys.len();
                    gather.push(rules, Some((offset, phys)), offset, phys.len());
                }
                _ => self.gather_one(&mut gather, index, piece, phys, direction, flags)?,
            }
        }
        let Gather { placer, mut print, mapped, .. } = gather;
        print.exposed = mapped.saturating_sub(print.bytes + print.padding);
        Ok(Gathered { size: placer.len(), gaps: mapped != placer.len(), whole: false, print })
    }

    /// A list of whole granules, all known by their physical addresses: one behind the other, each where
    /// it lies. The entries themselves are what is mapped then, so this only looks at them.
    #[inline(always)]
    fn gather_whole(&self, entries: &[Piece], state: &mut ListState) -> Option<Gathered> {
        let rules = self.rules();
        if !self.is_plain() || rules.boundary != 0 {
            return None;
        }
        let output = self.domain.geometry().output;
        // Looking at the sums once is quicker than at each entry.
        let (mut size, mut carried, mut longest, mut edges) = (0u64, false, 0, 0);
        let (mut first, mut last) = (output.start().raw(), output.last().raw());
        for piece in entries {
            let Piece::Phys(phys) = piece else { return None };
            let carry;
            (size, carry) = size.overflowing_add(phys.len());
            carried |= carry;
            longest = phys.len().max(longest);
            edges |= phys.start().raw() | phys.len();
            first = first.min(phys.start().raw());
            last = last.max(phys.last().raw());
        }
        let aligned = edges & rules.granule.mask() == 0;
        let within = (first, last) == (output.start().raw(), output.last().raw());
        if carried || longest > rules.max_segment || !aligned || !within {
            return None;
        }
        if size <= rules.max_segment {
            state.segments.push(DmaSegment { address: DmaAddr::new(0), len: size });
        } else {
            let mut joiner = Joiner::new(0, rules.max_segment, &mut state.segments);
            let mut offset = 0;
            for piece in entries {
                joiner.push(DmaAddr::new(offset), piece.len());
                offset += piece.len();
            }
        }
        let print = Footprint { bytes: size, ..Footprint::default() };
        Some(Gathered { size, gaps: false, whole: true, print })
    }

    /// Gathers an entry that needs thought.
    #[inline(never)]
    fn gather_one(
        &self,
        gather: &mut Gather<'_>,
        index: usize,
        piece: &Piece,
        phys: Option<PhysRange>,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<(), DmaError> {
        if piece.is_empty() {
            return Err(DmaError::Empty { device: self.device() });
        }
        let phys = match self.usable(phys, gather.untrusted, direction) {
            Ok(phys) => {
                self.core.before_device(Memory::One(*piece), phys.len(), direction, flags);
                phys
            }
            Err(reason) => self.gather_slot(gather, index, piece, reason, flags)?,
        };
        let rules = self.rules();
        let placed = gather.placer.place(phys);
        let placed = placed.map_err(|why| self.no_place(why, index, phys.len()))?;
        let mapped = placed.piece.map_or(0, |(_, piece)| piece.len());
        if gather.state.slots.last().is_some_and(|(last, _)| *last == index) {
            // A slot has its granules to itself, and may own more than are mapped.
            gather.print.bounced += phys.len();
            gather.print.padding += mapped - phys.len();
        }
        gather.print.bytes += phys.len();
        gather.mapped += mapped;
        gather.push(rules, placed.piece, placed.offset, phys.len());
        Ok(())
    }

    /// The memory of an entry, if the device may be given it where it lies.
    fn usable(
        &self,
        phys: Option<PhysRange>,
        untrusted: bool,
        direction: Direction,
    ) -> Result<PhysRange, BounceReason> {
        let phys = phys.ok_or(BounceReason::NoPhysical)?;
        let fit = self.fit(phys, direction)?;
        let exposes = untrusted && fit.outer.len() != phys.len();
        if exposes { Err(BounceReason::Exposure) } else { Ok(phys) }
    }

    /// Takes a bounce slot for an entry: where its data goes.
    fn gather_slot(
        &self,
        gather: &mut Gather<'_>,
        index: usize,
        piece: &Piece,
        reason: BounceReason,
        flags: MapFlags,
    ) -> Result<PhysRange, DmaError> {
        gather.state.slots.try_reserve(1).map_err(|_| DmaError::Frames {
            device: self.device(),
            cause: FrameError::OutOfMemory,
        })?;
        let slot = self.slot(Memory::One(*piece), piece.len(), reason, flags)?;
        let data = slot.data();
        gather.state.slots.push((index, slot.into_raw()));
        Ok(data)
    }

    pub(super) fn no_place(&self, why: NoPlace, index: usize, len: u64) -> DmaError {
        let device = self.device();
        match why {
            NoPlace::TooLong => {
                DmaError::Segment { device, index, len, max: self.core.spec.max_segment }
            }
            NoPlace::Crosses => {
                DmaError::Boundary { device, index, len, boundary: self.core.spec.boundary }
            }
            NoPlace::Overflow => DmaError::TooLong { device },
        }
    }

    /// Maps the gathered runs into one allocation and moves the segments there.
    ///
    /// # Safety
    /// As [`Ops::map_list`](crate::dma::ops::Ops::map_list).
    pub(super) unsafe fn map_gathered(
        &self,
        entries: &[Piece],
        gathered: &Gathered,
        direction: Direction,
        flags: MapFlags,
        state: &mut ListState,
    ) -> Result<Live, DmaError> {
        let print = gathered.print;
        let mut place = self.placement(gathered.size, flags);
        let boundary = self.core.spec.boundary;
        if boundary != 0 {
            // Offsets were checked against the boundary as if the allocation began at one.
            let natural = gathered.size.checked_next_power_of_two().unwrap_or(1 << 63);
            place.align = place.align.max(natural.min(boundary));
        }
        let pieces = state.pieces.iter().copied();
        let attrs = self.attributes(direction.access());
        let account = self.account(print);
        // SAFETY: pieces are whole granules around the entries, or slots lent to this mapping; the
        // rest is the caller's promise.
        let mapped = unsafe {
            if gathered.whole {
                let pieces = entries.iter().filter_map(|piece| match piece {
                    Piece::Phys(phys) => Some(*phys),
                    Piece::Cpu { .. } => None,
                });
                self.domain.map_list_within(&place, pieces, attrs, Some(&account))
            } else if gathered.gaps {
                self.domain.map_pieces_within(&place, pieces, attrs, Some(&account))
            } else {
                let pieces = pieces.map(|(_, piece)| piece);
                self.domain.map_list_within(&place, pieces, attrs, Some(&account))
            }
        };
        let mapped = mapped.map_err(|cause| match cause {
            // An untrusted device joined the domain a moment ago: the caller may try again.
            DomainError::Exposes { .. } => {
                DmaError::NoBounce { device: self.device(), reason: BounceReason::Exposure }
            }
            cause => self.domain_error(cause),
        })?;
        let base = self.dma(mapped.range.start()).raw();
        for segment in &mut state.segments {
            segment.address = DmaAddr::new(base + segment.address.raw());
        }
        Ok(self.live(mapped, 0, print.bytes, print))
    }
}
