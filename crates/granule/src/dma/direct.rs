//! The route of a device that no domain of ours confines: directly on the bus, let through by its
//! IOMMU, or in an identity domain.
//!
//! Such a device reaches its whole window for ever; nothing here pretends otherwise.

use alloc::vec::Vec;

use lock_api::Mutex;

use super::layout::{Joiner, crosses};
use super::ops::{BlockPlacement, Brief, Demands, LinkPlace, ListState, Live, Made, Ops, Single};
use super::route::{RouteCore, Routed, SlotShape};
use super::runs::whole;
use super::{BounceReason, BusWindow, DmaError, MapFlags, Memory, Piece, RouteReport};
use crate::addr::{Access, Direction, DmaAddr, DmaRange, PhysRange};
use crate::bounce::RawBounceSlot;
use crate::domain::{DomainStats, Footprint, Release, Ticket, Under, UnitError, UnmapError};
use crate::mem::{PerCpu, Platform};
use crate::table::Hint;

/// Keeps whatever lets the device through, and ends it.
pub(super) trait Passage: Send + Sync {
    /// Blocks the device; whether that worked.
    fn close(&self) -> bool;
}

/// A device directly on the bus.
pub(super) struct Direct<P: Platform> {
    pub core: RouteCore<P>,
    /// Sorted by physical address.
    pub windows: Vec<BusWindow>,
    /// How it comes to be direct.
    pub how: &'static str,
    pub passage: Option<alloc::boxed::Box<dyn Passage>>,
    /// Each CPU's counters change under its lock, which knows the CPU's number.
    pub locks: PerCpu<Mutex<P::Lock, usize>>,
}

impl<P: Platform> Direct<P> {
    /// One lock a CPU.
    pub(super) fn locks(platform: &P) -> PerCpu<Mutex<P::Lock, usize>> {
        let mut cpus = 0..;
        PerCpu::new(platform, || Mutex::new(cpus.next().unwrap_or(0)))
    }

    fn counting(&self, count: impl FnOnce(usize)) {
        count(*self.locks.local(&self.core.platform).lock());
    }

    fn device(&self) -> alloc::string::String {
        self.core.spec.name.clone()
    }

    /// The DMA address of physical memory, if the device can be given it.
    ///
    /// Address 0 is never handed out: memory there counts as out of reach.
    #[inline]
    fn bus(&self, phys: PhysRange, mask: u64) -> Option<DmaAddr> {
        self.windows.iter().find_map(|window| window.translate(phys, mask))
    }

    /// The memory of each window that a device with this mask can be given, and the DMA address of
    /// its start. What lies at DMA address 0 is left out, with the CPU page around it.
    fn reach(&self, mask: u64) -> impl Iterator<Item = (PhysRange, DmaAddr)> + '_ {
        let page = self.core.platform.cpu_page().size();
        self.windows.iter().filter_map(move |window| {
            let memory = window.below(mask)?;
            let skip = if window.bus.raw() == 0 { page } else { 0 };
            let left = memory.slice(skip, memory.len().checked_sub(skip)?)?;
            Some((left, window.bus.checked_add(skip)?))
        })
    }

    /// Where a slot must lie: in the part of a window that the mask reaches.
    fn shapes(&self, boundary: u64) -> impl Iterator<Item = SlotShape> + '_ {
        let reach = self.reach(self.core.spec.mask);
        let spec = &self.core.spec;
        let align = if spec.snoops { 1 } else { self.core.platform.cache_line() as u64 };
        reach.map(move |(window, bus)| SlotShape {
            align,
            boundary,
            shift: bus.raw().wrapping_sub(window.start().raw()),
            whole: false,
            window: Some(window),
            clean: false,
        })
    }

    /// Copies the buffer to where the device reaches it.
    #[cold]
    fn bounce(
        &self,
        memory: Memory<'_>,
        len: u64,
        boundary: u64,
        reason: BounceReason,
        flags: MapFlags,
    ) -> Result<(RawBounceSlot, DmaAddr), DmaError> {
        // Built only if it is returned: a map that succeeds allocates nothing.
        let mut refused = None;
        for shape in self.shapes(boundary) {
            match self.core.bounce(memory, len, &shape, reason, flags) {
                Ok(slot) => {
                    let raw = slot.into_raw();
                    // Another window may show the same memory, where its boundaries are others.
                    let address = raw.data().start().raw().wrapping_add(shape.shift);
                    return Ok((raw, DmaAddr::new(address)));
                }
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| DmaError::NoBounce { device: self.device(), reason }))
    }

    fn begin(&self, dma: DmaAddr, print: Footprint) -> Live {
        self.counting(|cpu| self.core.counters.begin(cpu, &print));
        Live { dma, len: print.bytes, mapped: None, print }
    }

    /// Counts a buffer out.
    fn count_out(&self, len: u64, slot: Option<RawBounceSlot>) {
        let print = buffer(len, slot);
        self.counting(|cpu| self.core.counters.end(cpu, Under::Map, &print));
    }

    /// One entry of a list: where the device sees it.
    fn place_entry(
        &self,
        index: usize,
        piece: &Piece,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<(Option<RawBounceSlot>, DmaAddr), DmaError> {
        let spec = &self.core.spec;
        let len = piece.len();
        if len > spec.max_segment {
            return Err(DmaError::Segment {
                device: self.device(),
                index,
                len,
                max: spec.max_segment,
            });
        }
        let memory = Memory::One(*piece);
        let reason = match self.usable(piece, direction) {
            Ok(dma) if !crosses(dma.raw(), len, spec.boundary) => {
                self.core.before_device(memory, len, direction, flags);
                return Ok((None, dma));
            }
            Ok(_) => BounceReason::Boundary,
            Err(reason) => reason,
        };
        // A slot begins no earlier behind a boundary than the bits that it keeps say.
        if crosses(self.core.kept_bits(memory), len, spec.boundary) {
            return Err(DmaError::Boundary {
                device: self.device(),
                index,
                len,
                boundary: spec.boundary,
            });
        }
        let (slot, dma) = self.bounce(memory, len, spec.boundary, reason, flags)?;
        Ok((Some(slot), dma))
    }

    /// The DMA address of a piece, or why the device cannot use it where it lies.
    #[inline]
    fn usable(&self, piece: &Piece, direction: Direction) -> Result<DmaAddr, BounceReason> {
        let phys = whole(&self.core.platform, piece).ok_or(BounceReason::NoPhysical)?;
        if self.core.shares_line(phys, direction) {
            return Err(BounceReason::CacheLine);
        }
        self.bus(phys, self.core.spec.mask).ok_or(BounceReason::OutOfReach)
    }
}

impl<P: Platform> Routed for Direct<P> {
    type Platform = P;

    fn core(&self) -> &RouteCore<P> {
        &self.core
    }
}

impl<P: Platform> Ops for Direct<P> {
    fn demands(&self) -> Demands {
        let windows: Vec<(PhysRange, DmaAddr)> = self.reach(self.core.spec.coherent_mask).collect();
        let first = windows.iter().map(|(_, dma)| dma.raw()).min().unwrap_or(0);
        let last =
            windows.iter().map(|(range, dma)| dma.raw() + (range.len() - 1)).max().unwrap_or(0);
        let addresses =
            DmaRange::from_inclusive(DmaAddr::new(first.max(1)), DmaAddr::new(last.max(1)));
        let one = || DmaRange::from_inclusive(DmaAddr::new(1), DmaAddr::new(u64::MAX));
        let addresses = addresses.or_else(|_| one());
        Demands {
            translated: None,
            windows,
            // Both bounds are at least 1 and in order: a legal range.
            addresses: match addresses {
                Ok(addresses) => addresses,
                Err(_) => unreachable!(),
            },
        }
    }

    fn domain_stats(&self) -> Option<DomainStats> {
        None
    }

    fn report(&self, _range: Option<DmaRange>) -> RouteReport {
        RouteReport::Direct { how: self.how.into() }
    }

    unsafe fn map_brief(
        &self,
        piece: &Piece,
        direction: Direction,
        _flags: MapFlags,
    ) -> Option<Brief> {
        if !self.core.spec.snoops {
            return None;
        }
        let phys = whole(&self.core.platform, piece)?;
        let dma = self.usable(&Piece::Phys(phys), direction).ok()?;
        self.counting(|cpu| self.core.counters.begin(cpu, &buffer(phys.len(), None)));
        Some(Brief::new(dma, Hint::NONE))
    }

    unsafe fn unmap_brief(&self, _brief: Brief, len: u64) -> Result<(), UnmapError> {
        self.count_out(len, None);
        Ok(())
    }

    unsafe fn end_brief_later(
        &self,
        _brief: Brief,
        len: u64,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        self.count_out(len, None);
        if let Some(release) = release.take() {
            release.run();
        }
        Ok(None)
    }

    unsafe fn map(
        &self,
        memory: Memory<'_>,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Single, DmaError> {
        let len = memory.len().ok_or_else(|| DmaError::TooLong { device: self.device() })?;
        if len == 0 {
            return Err(DmaError::Empty { device: self.device() });
        }
        let phys = self.core.whole(memory);
        let usable = match phys {
            Some(phys) => self.usable(&Piece::Phys(phys), direction),
            None if memory.pieces().len() == 1 => Err(BounceReason::NoPhysical),
            None => Err(BounceReason::Scattered),
        };
        let (slot, dma) = match usable {
            Ok(dma) => {
                self.core.before_device(memory, len, direction, flags);
                (None, dma)
            }
            Err(reason) => {
                let (slot, dma) = self.bounce(memory, len, 0, reason, flags)?;
                (Some(slot), dma)
            }
        };
        self.counting(|cpu| self.core.counters.begin(cpu, &buffer(len, slot)));
        Ok(Single { brief: Brief::new(dma, Hint::NONE), slot, made: Made::Fully })
    }

    unsafe fn map_list(
        &self,
        entries: &[Piece],
        direction: Direction,
        flags: MapFlags,
        state: &mut ListState,
    ) -> Result<Live, DmaError> {
        if entries.is_empty() || entries.iter().any(Piece::is_empty) {
            return Err(DmaError::Empty { device: self.device() });
        }
        if Memory::Many(entries).len().is_none() {
            return Err(DmaError::TooLong { device: self.device() });
        }
        let mut print = Footprint::default();
        state.clear();
        for (index, piece) in entries.iter().enumerate() {
            match self.place_entry(index, piece, direction, flags) {
                Ok((slot, dma)) => {
                    // The sum was checked before.
                    print.bytes = print.bytes.saturating_add(piece.len());
                    if let Some(slot) = slot {
                        print.bounced += piece.len();
                        state.slots.push((index, slot));
                    }
                    let spec = &self.core.spec;
                    Joiner::new(spec.boundary, spec.max_segment, &mut state.segments)
                        .push(dma, piece.len());
                }
                Err(error) => {
                    state.segments.clear();
                    // SAFETY: no device was told of the slots.
                    unsafe { self.core.release_all(&mut state.slots) };
                    return Err(error);
                }
            }
        }
        let first = state.segments.first().map_or(DmaAddr::new(0), |segment| segment.address);
        Ok(self.begin(first, print))
    }

    unsafe fn map_resource(&self, range: PhysRange, _access: Access) -> Result<Live, DmaError> {
        let dma = self.bus(range, self.core.spec.mask);
        let dma = dma.ok_or_else(|| DmaError::Unreachable { device: self.device(), range })?;
        Ok(self.begin(dma, Footprint { bytes: range.len(), ..Footprint::default() }))
    }

    unsafe fn map_blocks(
        &self,
        blocks: &[PhysRange],
        place: &BlockPlacement,
    ) -> Result<Live, DmaError> {
        let [block] = blocks else {
            return Err(DmaError::NotContiguous { device: self.device(), blocks: blocks.len() });
        };
        let unreachable = || DmaError::Unreachable { device: self.device(), range: *block };
        let dma = self.bus(*block, self.core.spec.coherent_mask).ok_or_else(unreachable)?;
        if place.at.is_some_and(|at| at != dma) {
            return Err(unreachable());
        }
        let print = Footprint {
            bytes: place.len,
            padding: block.len() - place.len,
            ..Footprint::default()
        };
        Ok(self.begin(dma, print))
    }

    unsafe fn end(&self, live: &Live) -> Result<(), UnmapError> {
        self.counting(|cpu| self.core.counters.end(cpu, Under::Map, &live.print));
        Ok(())
    }

    unsafe fn end_single(
        &self,
        single: &Single,
        len: u64,
        _flags: MapFlags,
    ) -> Result<(), UnmapError> {
        // A device that nothing confines has lost the memory when it is told so.
        self.count_out(len, single.slot);
        Ok(())
    }

    unsafe fn end_single_later(
        &self,
        single: &Single,
        len: u64,
        _flags: MapFlags,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        self.count_out(len, single.slot);
        if let Some(release) = release.take() {
            release.run();
        }
        Ok(None)
    }

    unsafe fn end_later(
        &self,
        live: &Live,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        self.counting(|cpu| self.core.counters.end(cpu, Under::Map, &live.print));
        if let Some(release) = release.take() {
            release.run();
        }
        Ok(None)
    }

    fn join(&self, live: &Live) {
        self.counting(|cpu| self.core.counters.begin(cpu, &live.print));
    }

    fn leave(&self, live: &Live) {
        self.counting(|cpu| self.core.counters.end(cpu, Under::Map, &live.print));
    }

    fn is_flushed(&self, _ticket: Ticket) -> bool {
        true
    }

    fn flush(&self) -> Result<(), UnitError> {
        Ok(())
    }

    fn reserve(&self, _len: u64) -> Result<Live, DmaError> {
        Err(DmaError::NotTranslated { device: self.device() })
    }

    unsafe fn link(&self, _: &Live, _: &LinkPlace, _: Access) -> Result<(), DmaError> {
        Err(DmaError::NotTranslated { device: self.device() })
    }

    unsafe fn unlink(&self, _: &Live, _: &LinkPlace) -> Result<(), UnmapError> {
        Ok(())
    }

    fn highest_free(&self, _: DmaAddr, _: u64, _: u64, _: bool) -> Option<DmaAddr> {
        None
    }

    fn max_mapping_size(&self) -> u64 {
        self.reach(self.core.spec.mask).map(|(range, _)| range.len()).max().unwrap_or(0)
    }

    fn detach(&self) -> bool {
        self.passage.as_ref().is_none_or(|passage| passage.close())
    }
}

/// What a buffer counts for.
fn buffer(len: u64, slot: Option<RawBounceSlot>) -> Footprint {
    let bounced = if slot.is_some() { len } else { 0 };
    Footprint { bytes: len, bounced, ..Footprint::default() }
}
