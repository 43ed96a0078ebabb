//! The route of a device whose accesses a domain translates.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::layout::{Joiner, NoPlace, Placer, Rules};
use super::ops::{
    BlockPlacement, Demands, EntryRun, FrameSource, LinkPlace, ListState, Live, Ops,
    PlatformFrames, Side, SlotRelease, TranslatedDemands,
};
use super::route::{RouteCore, SlotShape};
use super::runs::{Runs, whole};
use super::{BounceReason, DeviceSpec, DmaError, MapFlags, Memory, Piece, RouteReport};
use crate::addr::{
    Access, Attributes, Direction, DmaAddr, DmaRange, Iova, IovaRange, MemoryKind, PhysAddr,
    PhysRange,
};
use crate::bounce::RawBounceSlot;
use crate::domain::{
    Domain, DomainError, DomainStats, Footprint, Mapped, Placement, Release, Stats, Stream, Ticket,
    Translation, UnitError, UnmapError,
};
use crate::iova::IovaRequest;
use crate::mem::Platform;
use crate::table::Fence;

/// A device behind a domain.
pub(super) struct Translated<P: Platform, T: Translation> {
    pub core: RouteCore<P>,
    pub domain: Arc<Domain<P, T>>,
    pub streams: Vec<Stream>,
    /// What a DMA address has above the bits that the table indexes.
    pub base: u64,
    /// IOVA that streaming mappings may use: window and mask.
    pub streaming: IovaRange,
    /// The same for coherent memory.
    pub coherent: IovaRange,
}

/// What a list needs of the domain.
struct Gathered {
    /// The size of the allocation in bytes.
    size: u64,
    /// Whether some of it stays unmapped, for a boundary's sake.
    gaps: bool,
    print: Footprint,
}

/// How one run shall be mapped.
struct Fit {
    outer: PhysRange,
    fence: Option<Fence>,
    /// Bytes that belong to somebody else and that no fence closes.
    exposed: u64,
}

impl<P: Platform, T: Translation> Translated<P, T> {
    fn device(&self) -> alloc::string::String {
        self.core.spec.name.clone()
    }

    fn domain_error(&self, cause: DomainError) -> DmaError {
        DmaError::Domain { device: self.device(), cause }
    }

    #[inline]
    fn dma(&self, iova: Iova) -> DmaAddr {
        DmaAddr::new(self.base | iova.raw())
    }

    fn iova(&self, address: DmaAddr) -> Option<Iova> {
        address.raw().checked_sub(self.base).map(Iova::new)
    }

    #[inline]
    fn attributes(&self, access: Access) -> Attributes {
        let kind =
            if self.core.spec.snoops { MemoryKind::Coherent } else { MemoryKind::NonCoherent };
        Attributes { access, kind }
    }

    fn untrusted(&self) -> bool {
        !self.core.spec.trusted || self.domain.is_untrusted()
    }

    fn shape(&self) -> SlotShape {
        let output = self.domain.geometry().output;
        // Any device of the domain reaches the slot, and one that is not trusted may join later.
        let align = self.domain.granule().size();
        SlotShape { align, whole: true, window: Some(output), clean: true }
    }

    fn placement(&self, size: u64, flags: MapFlags) -> Placement {
        Placement {
            size,
            align: self.domain.granule().size(),
            window: self.streaming,
            guard: flags.contains(MapFlags::GUARD),
            at: None,
        }
    }

    /// How a run fits granules, or why it must be bounced.
    #[inline]
    fn fit(&self, phys: PhysRange, direction: Direction) -> Result<Fit, BounceReason> {
        if self.core.shares_line(phys, direction) {
            return Err(BounceReason::CacheLine);
        }
        let geometry = self.domain.geometry();
        let outer = phys.align_outward(self.domain.granule()).ok_or(BounceReason::OutOfReach)?;
        if !geometry.output.contains_range(&outer) {
            return Err(BounceReason::OutOfReach);
        }
        let slack = outer.len() - phys.len();
        let unit = geometry.fence_unit;
        if slack == 0 || unit == 0 || !self.core.spec.unverified_fences {
            return Ok(Fit { outer, fence: None, exposed: slack });
        }
        let front = phys.start().raw() - outer.start().raw();
        let fence = Fence { front: front & !(unit - 1), back: (slack - front) & !(unit - 1) };
        Ok(Fit { outer, fence: Some(fence), exposed: slack - fence.front - fence.back })
    }

    /// Maps a run where it lies.
    ///
    /// # Safety
    /// As [`Ops::map`].
    #[inline]
    unsafe fn map_run(
        &self,
        phys: PhysRange,
        fit: &Fit,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Live, DmaError> {
        let place = self.placement(fit.outer.len(), flags);
        let attrs = self.attributes(direction.access());
        // SAFETY: the caller's promise.
        let mapped = unsafe { self.domain.map(&place, fit.outer, attrs, fit.fence) };
        let mapped = mapped.map_err(|cause| self.domain_error(cause))?;
        let print = Footprint { bytes: phys.len(), exposed: fit.exposed, ..Footprint::default() };
        let front = phys.start().raw() - fit.outer.start().raw();
        Ok(self.live(mapped, front, phys.len(), print, None))
    }

    #[inline]
    fn live(
        &self,
        mapped: Mapped,
        front: u64,
        len: u64,
        print: Footprint,
        slot: Option<RawBounceSlot>,
    ) -> Live {
        self.core.counters.begin(&self.core.platform, &print);
        let dma = DmaAddr::new(self.dma(mapped.range.start()).raw() + front);
        Live { dma, len, mapped: Some(mapped), slot, print }
    }

    /// Maps a slot that holds the buffer's bytes.
    #[cold]
    fn map_bounced(
        &self,
        memory: Memory<'_>,
        len: u64,
        reason: BounceReason,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Live, DmaError> {
        let slot = self.core.bounce(memory, len, &self.shape(), reason, flags)?;
        let raw = slot.into_raw();
        let (data, outer) = (raw.data(), raw.outer());
        let attrs = self.attributes(direction.access());
        // SAFETY: the slot is whole granules that the pool lent to this mapping alone.
        let mapped =
            unsafe { self.domain.map(&self.placement(outer.len(), flags), outer, attrs, None) };
        match mapped {
            Ok(mapped) => {
                let padding = outer.len() - data.len();
                let print = Footprint { bytes: len, padding, exposed: 0, bounced: len };
                let front = data.start().raw() - outer.start().raw();
                Ok(self.live(mapped, front, len, print, Some(raw)))
            }
            Err(cause) => {
                if !cause.is_stale() {
                    // SAFETY: the map failed and was undone: no device reaches the slot.
                    unsafe { self.core.release(raw) };
                }
                Err(self.domain_error(cause))
            }
        }
    }

    /// Maps a buffer of several runs as one range, if they join at granules.
    ///
    /// # Safety
    /// As [`Ops::map`].
    unsafe fn map_scattered(
        &self,
        memory: Memory<'_>,
        len: u64,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Live, DmaError> {
        let granule = self.domain.granule();
        let (exposed, front) = match self.survey(memory, direction) {
            Ok(survey) => survey,
            Err(reason) => return self.map_bounced(memory, len, reason, direction, flags),
        };
        if !self.domain.expose(exposed) {
            return self.map_bounced(memory, len, BounceReason::Exposure, direction, flags);
        }
        let Some(size) = len.checked_add(exposed) else {
            self.domain.conceal(exposed);
            return Err(DmaError::TooLong { device: self.device() });
        };
        let runs = Runs::new(&self.core.platform, memory.pieces());
        let pieces = runs.filter_map(|run| run.ok()?.align_outward(granule));
        self.core.before_device(memory, len, direction, flags);
        let attrs = self.attributes(direction.access());
        // SAFETY: the survey found that the runs join at granules; the rest is the caller's
        // promise.
        let mapped = unsafe { self.domain.map_list(&self.placement(size, flags), pieces, attrs) };
        let mapped = mapped.map_err(|cause| {
            self.domain.conceal(exposed);
            self.domain_error(cause)
        })?;
        let print = Footprint { bytes: len, exposed, ..Footprint::default() };
        Ok(self.live(mapped, front, len, print, None))
    }

    /// Whether the runs of a buffer join at granules: the bytes exposed at both ends, and the
    /// offset of the first byte in its granule.
    fn survey(&self, memory: Memory<'_>, direction: Direction) -> Result<(u64, u64), BounceReason> {
        let granule = self.domain.granule();
        let mut front = None;
        let mut previous: Option<PhysRange> = None;
        for run in Runs::new(&self.core.platform, memory.pieces()) {
            let run = run.map_err(|_| BounceReason::NoPhysical)?;
            if self.core.shares_line(run, direction) {
                return Err(BounceReason::CacheLine);
            }
            let outer = run.align_outward(granule).ok_or(BounceReason::OutOfReach)?;
            if !self.domain.geometry().output.contains_range(&outer) {
                return Err(BounceReason::OutOfReach);
            }
            if let Some(previous) = previous {
                let joins = previous.end().is_some_and(|end| end.is_aligned(granule));
                if !joins || !run.start().is_aligned(granule) {
                    return Err(BounceReason::Scattered);
                }
            }
            front.get_or_insert(run.start().offset_in(granule));
            previous = Some(run);
        }
        let front = front.unwrap_or(0);
        let back = previous.and_then(|run| run.align_outward(granule).map(|outer| (run, outer)));
        let back = back.map_or(0, |(run, outer)| outer.last().raw() - run.last().raw());
        Ok((front + back, front))
    }

    fn rules(&self) -> Rules {
        Rules {
            granule: self.domain.granule(),
            boundary: self.core.spec.boundary,
            max_segment: self.core.spec.max_segment,
        }
    }

    /// Decides for every entry of a list where it lies as the device will see it (bounced where it
    /// must be) and where it goes in the allocation. Segments are written relative to its start.
    fn gather(
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
    fn place_run(
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
                let slot = self.core.bounce(memory, piece.len(), &self.shape(), reason, flags)?;
                Ok(EntryRun { phys: slot.data(), slot: Some(slot.into_raw()), piece: None })
            }
        }
    }

    fn no_place(&self, why: NoPlace, index: usize, len: u64) -> DmaError {
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
    /// As [`Ops::map_list`].
    unsafe fn map_gathered(
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

    fn within(&self, live: &Live) -> Result<Mapped, DmaError> {
        live.mapped.ok_or_else(|| DmaError::NotTranslated { device: self.device() })
    }
}

impl<P: Platform, T: Translation> Ops for Translated<P, T> {
    fn spec(&self) -> &DeviceSpec {
        &self.core.spec
    }

    fn demands(&self) -> Demands {
        let geometry = self.domain.geometry();
        let first = self.dma(self.coherent.start());
        let addresses = DmaRange::new(first, self.coherent.len());
        Demands {
            translated: Some(TranslatedDemands {
                granule: self.domain.granule(),
                page_sizes: geometry.page_sizes,
                domain: Arc::as_ptr(&self.domain).addr(),
                base: self.base,
            }),
            windows: alloc::vec![(geometry.output, DmaAddr::new(0))],
            // A part of a legal range, moved by a base that has none of its bits.
            addresses: addresses.unwrap_or_else(|_| whole_addresses()),
        }
    }

    fn frames(&self) -> Arc<dyn FrameSource> {
        Arc::new(PlatformFrames(self.core.platform.clone()))
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.core.platform.ptr(phys)
    }

    fn stats(&self) -> Stats {
        self.core.counters.stats()
    }

    fn live(&self) -> u64 {
        self.core.counters.live()
    }

    fn domain_stats(&self) -> Option<DomainStats> {
        Some(self.domain.stats())
    }

    fn report(&self, range: Option<DmaRange>) -> RouteReport {
        let range =
            range.and_then(|range| IovaRange::new(self.iova(range.start())?, range.len()).ok());
        RouteReport::Translated {
            granule: self.domain.granule(),
            units: self.domain.translation().units(),
            streams: self.streams.clone(),
            page_sizes: range.map(|range| self.domain.page_sizes_used(range)).unwrap_or_default(),
        }
    }

    unsafe fn map(
        &self,
        memory: Memory<'_>,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Live, DmaError> {
        let len = memory.len().ok_or_else(|| DmaError::TooLong { device: self.device() })?;
        if len == 0 {
            return Err(DmaError::Empty { device: self.device() });
        }
        let Some(phys) = self.core.whole(memory) else {
            // SAFETY: the caller's promise.
            return unsafe { self.map_scattered(memory, len, direction, flags) };
        };
        let fit = match self.fit(phys, direction) {
            Ok(fit) => fit,
            Err(reason) => return self.map_bounced(memory, len, reason, direction, flags),
        };
        if !self.domain.expose(fit.exposed) {
            return self.map_bounced(memory, len, BounceReason::Exposure, direction, flags);
        }
        if self.core.maintains(flags) {
            self.core.platform.sync_for_device(phys, direction);
        }
        // SAFETY: the caller's promise.
        let live = unsafe { self.map_run(phys, &fit, direction, flags) };
        if live.is_err() {
            self.domain.conceal(fit.exposed);
        }
        live
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
        let gathered = self.gather(entries, direction, flags, state);
        // SAFETY: the caller's promise.
        let live = gathered
            .and_then(|gathered| unsafe { self.map_gathered(&gathered, direction, flags, state) });
        if let Err(error) = &live {
            state.segments.clear();
            if error.is_stale() {
                // The slots may still be reached: they are never given back.
                state.runs.clear();
            }
            // SAFETY: the map was undone, or never begun.
            unsafe { self.core.release_all(&mut state.runs) };
        }
        live
    }

    unsafe fn map_resource(&self, range: PhysRange, access: Access) -> Result<Live, DmaError> {
        let granule = self.domain.granule();
        let outer = range
            .align_outward(granule)
            .ok_or_else(|| DmaError::TooLong { device: self.device() })?;
        let exposed = outer.len() - range.len();
        if !self.domain.expose(exposed) {
            return Err(DmaError::Resource { device: self.device(), range, granule });
        }
        let attrs = Attributes { access, kind: MemoryKind::Device };
        // SAFETY: the caller's promise.
        let mapped = unsafe {
            self.domain.map(&self.placement(outer.len(), MapFlags::empty()), outer, attrs, None)
        };
        let mapped = mapped.map_err(|cause| {
            self.domain.conceal(exposed);
            self.domain_error(cause)
        })?;
        let print = Footprint { bytes: range.len(), exposed, ..Footprint::default() };
        let front = range.start().raw() - outer.start().raw();
        Ok(self.live(mapped, front, range.len(), print, None))
    }

    unsafe fn map_blocks(
        &self,
        blocks: &[PhysRange],
        place: &BlockPlacement,
    ) -> Result<Live, DmaError> {
        let device = || self.device();
        let granule = self.domain.granule();
        if let Some(block) = blocks.iter().find(|block| !block.is_aligned(granule)) {
            return Err(DmaError::BlockAlignment { device: device(), block: *block, granule });
        }
        let size =
            crate::addr::total_len(blocks).ok_or_else(|| DmaError::TooLong { device: device() })?;
        if size == 0 {
            return Err(DmaError::Empty { device: device() });
        }
        let largest = blocks.iter().filter_map(|block| {
            self.domain.geometry().page_sizes.best(0, block.start().raw(), block.len())
        });
        let at = match place.at {
            Some(address) => Some(self.iova(address).ok_or_else(|| DmaError::OutOfBounds {
                device: device(),
                offset: address.raw(),
                end: address.raw().saturating_add(size),
                len: self.coherent.len(),
            })?),
            None => None,
        };
        // Aligned to its own size a range crosses no boundary that is at least as long.
        let natural = size.checked_next_power_of_two().unwrap_or(1 << 63);
        let placement = Placement {
            size,
            align: largest
                .max()
                .unwrap_or(1)
                .max(granule.size())
                .max(natural.min(self.core.spec.boundary)),
            window: self.coherent,
            guard: place.guard,
            at,
        };
        // SAFETY: the blocks are the caller's own, whole granules.
        let mapped = unsafe {
            self.domain.map_list(&placement, blocks.iter().copied(), self.attributes(place.access))
        };
        let mapped = mapped.map_err(|cause| self.domain_error(cause))?;
        let print =
            Footprint { bytes: place.len, padding: size - place.len, ..Footprint::default() };
        Ok(self.live(mapped, 0, place.len, print, None))
    }

    unsafe fn end(
        &self,
        live: &Live,
        now: bool,
        release: Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        let Some(mapped) = &live.mapped else {
            return Ok(None);
        };
        // SAFETY: the caller's promise.
        let result = unsafe { self.domain.unmap_with(mapped, release, now) };
        if result.is_ok() {
            self.domain.conceal(live.print.exposed);
        }
        self.core.counters.end(&self.core.platform, &live.print);
        result
    }

    fn join(&self, live: &Live) {
        self.core.counters.begin(&self.core.platform, &live.print);
    }

    fn leave(&self, live: &Live) {
        self.core.counters.end(&self.core.platform, &live.print);
    }

    fn is_flushed(&self, ticket: Ticket) -> bool {
        self.domain.is_flushed(ticket)
    }

    fn flush(&self) -> Result<(), UnitError> {
        self.domain.flush()
    }

    unsafe fn sync(
        &self,
        live: &Live,
        memory: Memory<'_>,
        part: (u64, u64),
        direction: Direction,
        side: Side,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.core.sync(live.slot, memory, part, direction, side) };
    }

    unsafe fn sync_list(
        &self,
        entries: &[Piece],
        state: &ListState,
        direction: Direction,
        side: Side,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.core.sync_list(entries, state, direction, side) };
    }

    unsafe fn release_slot(&self, slot: RawBounceSlot) {
        // SAFETY: the caller's promise.
        unsafe { self.core.release(slot) };
    }

    fn slot_releaser(&self) -> Option<Arc<dyn SlotRelease>> {
        self.core.slot_releaser()
    }

    fn reserve(&self, len: u64) -> Result<Live, DmaError> {
        let granule = self.domain.granule();
        let too_long = || DmaError::TooLong { device: self.device() };
        if len == 0 {
            return Err(DmaError::Empty { device: self.device() });
        }
        let size = granule.round_up(len).ok_or_else(too_long)?;
        let lease = self.domain.reserve_only(&self.placement(size, MapFlags::empty()));
        let mapped = lease.map_err(|cause| self.domain_error(cause))?;
        Ok(self.live(mapped, 0, size, Footprint::default(), None))
    }

    unsafe fn link(&self, live: &Live, link: &LinkPlace, access: Access) -> Result<(), DmaError> {
        let mapped = self.within(live)?;
        let part = mapped.range.slice(link.offset, link.outer.len()).ok_or_else(|| {
            DmaError::OutOfBounds {
                device: self.device(),
                offset: link.offset,
                end: link.offset.saturating_add(link.outer.len()),
                len: live.len,
            }
        })?;
        let print = link.print();
        if !self.domain.expose(print.exposed) {
            return Err(DmaError::Link {
                device: self.device(),
                offset: link.offset,
                len: link.len,
                reason: "does not fill its granules, and the device is not trusted",
            });
        }
        // SAFETY: the part is leased and unmapped; the rest is the caller's promise.
        let linked = unsafe { self.domain.link(part, link.outer, self.attributes(access)) };
        match linked {
            Ok(()) => self.core.counters.begin(&self.core.platform, &print),
            Err(_) => self.domain.conceal(print.exposed),
        }
        linked.map_err(|cause| self.domain_error(cause))
    }

    unsafe fn unlink(&self, live: &Live, link: &LinkPlace) -> Result<(), UnmapError> {
        let part = live.mapped.and_then(|mapped| mapped.range.slice(link.offset, link.outer.len()));
        let Some(part) = part else { return Ok(()) };
        // SAFETY: the caller's promise.
        let result = unsafe { self.domain.unlink(part) };
        if result.is_ok() {
            self.domain.conceal(link.print().exposed);
        }
        self.core.counters.end(&self.core.platform, &link.print());
        result
    }

    fn shares_line(&self, phys: PhysRange, direction: Direction) -> bool {
        self.core.shares_line(phys, direction)
    }

    fn whole(&self, piece: &Piece) -> Option<PhysRange> {
        whole(&self.core.platform, piece)
    }

    fn highest_free(&self, most: DmaAddr, len: u64, align: u64, guard: bool) -> Option<DmaAddr> {
        let guard = if guard { align.max(self.domain.granule().size()) } else { 0 };
        let size = len.checked_add(guard)?.checked_add(guard)?;
        let last = self.iova(most)?.checked_add(size - guard - 1).unwrap_or(Iova::new(u64::MAX));
        let last = last.min(self.coherent.last());
        let window = IovaRange::from_inclusive(self.coherent.start(), last).ok()?;
        let request = IovaRequest { size, align, window: Some(window) };
        let start = self.domain.allocator().highest_free(&request)?;
        Some(self.dma(start.checked_add(guard)?))
    }

    fn max_mapping_size(&self) -> u64 {
        if !self.untrusted() {
            return self.streaming.len();
        }
        let shape = self.shape();
        self.core.max_bounce(&shape)
    }

    fn detach(&self) -> bool {
        let blocked = self.domain.detach_streams(&self.streams, self.core.spec.trusted);
        if !blocked {
            self.domain.lose();
        }
        blocked
    }
}

fn whole_addresses() -> DmaRange {
    // Not empty and below 2^64: a legal range.
    match DmaRange::new(DmaAddr::new(0), u64::MAX) {
        Ok(range) => range,
        Err(_) => unreachable!(),
    }
}
