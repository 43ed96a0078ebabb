//! Scatter lists behind a domain: gathered, placed and measured in one pass, mapped as one.

use super::Translated;
use crate::addr::{Direction, DmaAddr};
use crate::dma::layout::{Joiner, NoPlace, Placer, Rules};
use crate::dma::ops::{EntryRun, ListState, Live};
use crate::dma::runs::whole;
use crate::dma::{BounceReason, DmaError, MapFlags, Memory, Piece};
use crate::domain::{Footprint, Translation};
use crate::mem::Platform;

/// What a list needs of the domain.
pub(super) struct Gathered {
    /// The size of the allocation in bytes.
    pub(super) size: u64,
    /// Whether some of it stays unmapped, for a boundary's sake.
    pub(super) gaps: bool,
    pub(super) print: Footprint,
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
        let untrusted = self.untrusted();
        let rules = self.rules();
        let mut placer = Placer::new(rules);
        let mut print = Footprint::default();
        let mut mapped = 0u64;
        let ListState { runs, segments } = state;
        let mut joiner = Joiner::new(rules.boundary, rules.max_segment, segments);
        for (index, piece) in entries.iter().enumerate() {
            let run = self.place_run(piece, untrusted, direction, flags)?;
            let (phys, slot) = (run.phys, run.slot);
            runs.push(run);
            let placed = placer.place(phys).map_err(|why| self.no_place(why, index, phys.len()))?;
            let piece = placed.piece.map_or(0, |(_, piece)| piece.len());
            if slot.is_some() {
                // A slot has its granules to itself, and may own more than are mapped.
                print.bounced += phys.len();
                print.padding += piece - phys.len();
            }
            print.bytes += phys.len();
            mapped += piece;
            joiner.push(DmaAddr::new(placed.offset), phys.len());
            if let Some(run) = runs.last_mut() {
                run.piece = placed.piece;
            }
        }
        print.exposed = mapped.saturating_sub(print.bytes + print.padding);
        Ok(Gathered { size: placer.len(), gaps: mapped != placer.len(), print })
    }

    /// Where one entry lies as the device will see it: where it is, or in a bounce slot.
    #[inline]
    pub(super) fn place_run(
        &self,
        piece: &Piece,
        untrusted: bool,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<EntryRun, DmaError> {
        let memory = Memory::One(*piece);
        let phys = whole(&self.core.platform, piece).ok_or(BounceReason::NoPhysical);
        let usable = phys.and_then(|phys| {
            let fit = self.fit(phys, direction)?;
            let exposes = untrusted && fit.outer.len() != phys.len();
            if exposes { Err(BounceReason::Exposure) } else { Ok(phys) }
        });
        match usable {
            Ok(phys) => {
                self.core.before_device(memory, phys.len(), direction, flags);
                Ok(EntryRun { phys, slot: None, piece: None })
            }
            Err(reason) => {
                let slot = self.slot(memory, piece.len(), reason, flags)?;
                Ok(EntryRun { phys: slot.data(), slot: Some(slot.into_raw()), piece: None })
            }
        }
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
        gathered: &Gathered,
        direction: Direction,
        flags: MapFlags,
        state: &mut ListState,
    ) -> Result<Live, DmaError> {
        let print = gathered.print;
        if !self.domain.expose(print.exposed) {
            // An untrusted device joined the domain a moment ago: the caller may try again.
            let device = self.device();
            return Err(DmaError::NoBounce { device, reason: BounceReason::Exposure });
        }
        let mut place = self.placement(gathered.size, flags);
        let boundary = self.core.spec.boundary;
        if boundary != 0 {
            // Offsets were checked against the boundary as if the allocation began at one.
            let natural = gathered.size.checked_next_power_of_two().unwrap_or(1 << 63);
            place.align = place.align.max(natural.min(boundary));
        }
        let pieces = state.runs.iter().filter_map(|run| run.piece);
        let attrs = self.attributes(direction.access());
        // SAFETY: pieces are whole granules around the entries, or slots lent to this mapping; the
        // rest is the caller's promise.
        let mapped = unsafe {
            if gathered.gaps {
                self.domain.map_pieces(&place, pieces, attrs)
            } else {
                self.domain.map_list(&place, pieces.map(|(_, piece)| piece), attrs)
            }
        };
        let mapped = mapped.map_err(|cause| {
            self.domain.conceal(print.exposed);
            self.domain_error(cause)
        })?;
        let base = self.dma(mapped.range.start()).raw();
        for segment in &mut state.segments {
            segment.address = DmaAddr::new(base + segment.address.raw());
        }
        Ok(self.live(mapped, 0, print.bytes, print, None))
    }
}
