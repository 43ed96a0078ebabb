//! What a device behind a domain does for each operation of the DMA API.

use alloc::sync::Arc;

use super::Translated;
use crate::addr::{
    Access, Attributes, Direction, DmaAddr, DmaRange, Iova, IovaRange, MemoryKind, PhysRange,
};
use crate::dma::ops::{
    BlockPlacement, Brief, Demands, LinkPlace, ListState, Live, Ops, Single, TranslatedDemands,
};
use crate::dma::route::{RouteCore, Routed};
use crate::dma::{DmaError, MapFlags, Memory, Piece, RouteReport};
use crate::domain::{
    DomainError, DomainStats, Footprint, Placement, Release, Ticket, Translation, Under, UnitError,
    UnmapError,
};
use crate::iova::IovaRequest;
use crate::mem::Platform;

impl<P: Platform, T: Translation> Routed for Translated<P, T> {
    type Platform = P;

    fn core(&self) -> &RouteCore<P> {
        &self.core
    }
}

impl<P: Platform, T: Translation> Ops for Translated<P, T> {
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

    unsafe fn map_brief(
        &self,
        piece: &Piece,
        direction: Direction,
        flags: MapFlags,
    ) -> Option<Brief> {
        // SAFETY: the caller's promise.
        unsafe { self.try_map(piece, direction, flags) }
    }

    unsafe fn unmap_brief(&self, brief: Brief, len: u64) -> Result<(), UnmapError> {
        let Some((mapped, account)) = self.taken(brief, len) else { return Ok(()) };
        // SAFETY: the caller's promise.
        unsafe { self.domain.unmap_counted(&mapped, Some(&account)) }
    }

    unsafe fn end_brief_later(
        &self,
        brief: Brief,
        len: u64,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        let Some((mapped, account)) = self.taken(brief, len) else { return Ok(None) };
        // SAFETY: the caller's promise.
        unsafe { self.domain.unmap_later(&mapped, release, &account) }
    }

    unsafe fn map(
        &self,
        memory: Memory<'_>,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Single, DmaError> {
        // SAFETY: the caller's promise.
        unsafe { self.map_any(memory, direction, flags) }
    }

    unsafe fn map_list(
        &self,
        entries: &[Piece],
        direction: Direction,
        flags: MapFlags,
        state: &mut ListState,
    ) -> Result<Live, DmaError> {
        let gathered = self.gather(entries, direction, flags, state);
        // SAFETY: the caller's promise.
        let live = gathered.and_then(|gathered| unsafe {
            self.map_gathered(entries, &gathered, direction, flags, state)
        });
        if let Err(error) = &live {
            if !error.is_stale() {
                // SAFETY: the map was undone, or never begun. Else the slots may still be reached,
                // and are never given back.
                unsafe { self.core.release_all(&mut state.slots) };
            }
            state.clear();
        }
        live
    }

    unsafe fn map_resource(&self, range: PhysRange, access: Access) -> Result<Live, DmaError> {
        let granule = self.domain.granule();
        let outer = range
            .align_outward(granule)
            .ok_or_else(|| DmaError::TooLong { device: self.device() })?;
        let exposed = outer.len() - range.len();
        let attrs = Attributes { access, kind: MemoryKind::Device };
        let place = self.placement(outer.len(), MapFlags::empty());
        let account =
            self.account(Footprint { bytes: range.len(), exposed, ..Footprint::default() });
        let mapped = self.domain.check_reach(outer).and_then(|()| {
            // SAFETY: the caller's promise.
            unsafe { self.domain.map_within(&place, outer, attrs, None, Some(&account)) }
        });
        let mapped = mapped.map_err(|cause| match cause {
            DomainError::Exposes { .. } => {
                DmaError::Resource { device: self.device(), range, granule }
            }
            cause => self.domain_error(cause),
        })?;
        let front = range.start().raw() - outer.start().raw();
        Ok(self.live(mapped, front, range.len(), account.print))
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
        let padding = size - place.len;
        let account = self.account(Footprint { bytes: place.len, padding, ..Footprint::default() });
        let (memory, attrs) = (blocks.iter().copied(), self.attributes(place.access));
        let mapped = blocks.iter().try_for_each(|block| self.domain.check_reach(*block));
        let mapped = mapped.and_then(|()| {
            // SAFETY: the blocks are the caller's own, whole granules.
            unsafe { self.domain.map_list_within(&placement, memory, attrs, Some(&account)) }
        });
        let mapped = mapped.map_err(|cause| self.domain_error(cause))?;
        Ok(self.live(mapped, 0, place.len, account.print))
    }

    unsafe fn end(&self, live: &Live) -> Result<(), UnmapError> {
        let Some(mapped) = &live.mapped else {
            return Ok(());
        };
        // SAFETY: the caller's promise.
        unsafe { self.end_mapped(mapped, &live.print) }
    }

    unsafe fn end_single(
        &self,
        single: &Single,
        len: u64,
        flags: MapFlags,
    ) -> Result<(), UnmapError> {
        let Some((mapped, account)) = self.taken_by(single, len, flags) else { return Ok(()) };
        // SAFETY: the caller's promise.
        unsafe { self.end_mapped(&mapped, &account.print) }
    }

    unsafe fn end_single_later(
        &self,
        single: &Single,
        len: u64,
        flags: MapFlags,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        let Some((mapped, account)) = self.taken_by(single, len, flags) else { return Ok(None) };
        // SAFETY: the caller's promise.
        unsafe { self.end_mapped_later(&mapped, &account.print, release) }
    }

    unsafe fn end_later(
        &self,
        live: &Live,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        let Some(mapped) = &live.mapped else {
            return Ok(None);
        };
        // SAFETY: the caller's promise.
        unsafe { self.end_mapped_later(mapped, &live.print, release) }
    }

    fn join(&self, live: &Live) {
        self.domain.counting(|cpu| self.core.counters.begin(cpu, &live.print));
    }

    fn leave(&self, live: &Live) {
        self.domain.counting(|cpu| self.core.counters.end(cpu, Under::Map, &live.print));
    }

    fn is_flushed(&self, ticket: Ticket) -> bool {
        self.domain.is_flushed(ticket)
    }

    fn flush(&self) -> Result<(), UnitError> {
        self.domain.flush()
    }

    fn reserve(&self, len: u64) -> Result<Live, DmaError> {
        let granule = self.domain.granule();
        let too_long = || DmaError::TooLong { device: self.device() };
        if len == 0 {
            return Err(DmaError::Empty { device: self.device() });
        }
        let size = granule.round_up(len).ok_or_else(too_long)?;
        let account = self.account(Footprint::default());
        let lease = self.domain.reserve_only(&self.placement(size, MapFlags::empty()), &account);
        let mapped = lease.map_err(|cause| self.domain_error(cause))?;
        Ok(self.live(mapped, 0, size, account.print))
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
        let account = self.account(link.print());
        if !self.domain.begin(&account) {
            return Err(DmaError::Link {
                device: self.device(),
                offset: link.offset,
                len: link.len,
                reason: "does not fill its granules, and the device is not trusted",
            });
        }
        // SAFETY: the part is leased and unmapped; the rest is the caller's promise.
        let linked = unsafe { self.domain.link(part, link.outer, self.attributes(access)) };
        if let Err(cause) = &linked {
            self.domain.cancel(&account, cause.is_stale());
        }
        linked.map_err(|cause| self.domain_error(cause))
    }

    unsafe fn unlink(&self, live: &Live, link: &LinkPlace) -> Result<(), UnmapError> {
        let part = live.mapped.and_then(|mapped| mapped.range.slice(link.offset, link.outer.len()));
        let Some(part) = part else { return Ok(()) };
        // SAFETY: the caller's promise.
        let result = unsafe { self.domain.unlink(part) };
        self.domain.end(&self.account(link.print()), result.is_ok());
        result
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
