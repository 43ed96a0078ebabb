//! The route of a device whose accesses a domain translates: how one buffer is mapped.

mod list;
mod ops;

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::addr::{Access, Attributes, Direction, DmaAddr, Iova, IovaRange, MemoryKind, PhysRange};
use crate::bounce::{BounceSlot, RawBounceSlot};
use crate::dma::ops::Live;
use crate::dma::route::{RouteCore, SlotShape};
use crate::dma::runs::{Runs, whole};
use crate::dma::{BounceReason, DmaError, MapFlags, Memory};
use crate::domain::{
    Account, Domain, DomainError, Footprint, Mapped, Placement, Stream, Translation, UnmapError,
};
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

/// A run that is given to the device where it lies, and the granules around it.
struct Plain {
    phys: PhysRange,
    outer: PhysRange,
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

    #[cold]
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

    /// Whether nothing stands in the way of mapping memory where it lies but its place.
    #[inline]
    fn is_plain(&self) -> bool {
        self.core.spec.snoops && !self.core.spec.unverified_fences
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

    #[inline]
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

    /// The common case: one run that the device may be given where it lies, with neither guards nor
    /// fences, and no caches to maintain. Whether it exposes anything is not said here.
    #[inline(always)]
    fn plain(&self, memory: Memory<'_>, flags: MapFlags) -> Option<Plain> {
        let [piece] = memory.pieces() else { return None };
        let phys = whole(&self.core.platform, piece)?;
        let outer = phys.align_outward(self.domain.granule())?;
        let reached = self.domain.geometry().output.contains_range(&outer);
        let plain = reached && self.is_plain() && !flags.contains(MapFlags::GUARD);
        plain.then_some(Plain { phys, outer })
    }

    /// Maps such a run; `None` if it would expose what it must not.
    ///
    /// # Safety
    /// As [`Ops::map`](crate::dma::ops::Ops::map).
    #[inline(always)]
    unsafe fn map_plain(
        &self,
        plain: &Plain,
        direction: Direction,
    ) -> Option<Result<Live, DmaError>> {
        let len = plain.phys.len();
        let exposed = plain.outer.len() - len;
        if exposed != 0 && self.domain.is_untrusted() {
            return None;
        }
        let place = self.placement(plain.outer.len(), MapFlags::empty());
        let attrs = self.attributes(direction.access());
        let account = self.account(Footprint { bytes: len, exposed, ..Footprint::default() });
        // SAFETY: the caller's promise.
        match unsafe { self.domain.map_plain(&place, plain.outer, attrs, Some(&account)) } {
            Ok(mapped) => {
                let front = plain.phys.start().raw() - plain.outer.start().raw();
                Some(Ok(self.live(mapped, front, len, account.print, None)))
            }
            Err(DomainError::Exposes { .. }) => None,
            Err(cause) => Some(Err(self.domain_error(cause))),
        }
    }

    /// Maps whatever is not the common case.
    ///
    /// # Safety
    /// As [`Ops::map`](crate::dma::ops::Ops::map).
    #[inline(never)]
    unsafe fn map_any(
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
        if self.core.maintains(flags) {
            self.core.platform.sync_for_device(phys, direction);
        }
        // SAFETY: the caller's promise.
        match unsafe { self.map_run(phys, &fit, direction, flags) } {
            Err(DomainError::Exposes { .. }) => {
                self.map_bounced(memory, len, BounceReason::Exposure, direction, flags)
            }
            result => result.map_err(|cause| self.domain_error(cause)),
        }
    }

    /// Maps a run where it lies.
    ///
    /// # Safety
    /// As [`Ops::map`](crate::dma::ops::Ops::map).
    unsafe fn map_run(
        &self,
        phys: PhysRange,
        fit: &Fit,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Live, DomainError> {
        let (outer, exposed) = (fit.outer, fit.exposed);
        let place = self.placement(outer.len(), flags);
        let attrs = self.attributes(direction.access());
        let account =
            self.account(Footprint { bytes: phys.len(), exposed, ..Footprint::default() });
        // SAFETY: the caller's promise.
        let mapped =
            unsafe { self.domain.map_within(&place, outer, attrs, fit.fence, Some(&account)) }?;
        let front = phys.start().raw() - outer.start().raw();
        Ok(self.live(mapped, front, phys.len(), account.print, None))
    }

    /// This device's account of a mapping.
    #[inline]
    fn account(&self, print: Footprint) -> Account<'_> {
        Account { counters: &self.core.counters, print }
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
        let dma = DmaAddr::new(self.dma(mapped.range.start()).raw() + front);
        Live { dma, len, mapped: Some(mapped), slot, print }
    }

    /// Ends what the domain mapped, for every caller but the shortest way.
    ///
    /// # Safety
    /// As [`Ops::end`](crate::dma::ops::Ops::end).
    #[inline(never)]
    unsafe fn end_mapped(&self, mapped: &Mapped, print: &Footprint) -> Result<(), UnmapError> {
        // SAFETY: the caller's promise.
        unsafe { self.domain.unmap_counted(mapped, Some(&self.account(*print))) }
    }

    /// Takes a bounce slot. If the pool has none, slots of ended mappings may be waiting for a flush.
    fn slot(
        &self,
        memory: Memory<'_>,
        len: u64,
        reason: BounceReason,
        flags: MapFlags,
    ) -> Result<BounceSlot, DmaError> {
        match self.core.bounce(memory, len, &self.shape(), reason, flags) {
            Err(DmaError::Bounce { .. })
                if self.domain.has_waiting() && self.domain.flush().is_ok() =>
            {
                self.core.bounce(memory, len, &self.shape(), reason, flags)
            }
            result => result,
        }
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
        let slot = self.slot(memory, len, reason, flags)?;
        let raw = slot.into_raw();
        let (data, outer) = (raw.data(), raw.outer());
        let attrs = self.attributes(direction.access());
        let padding = outer.len() - data.len();
        let account = self.account(Footprint { bytes: len, padding, exposed: 0, bounced: len });
        let place = self.placement(outer.len(), flags);
        // SAFETY: the slot is whole granules that the pool lent to this mapping alone.
        match unsafe { self.domain.map_within(&place, outer, attrs, None, Some(&account)) } {
            Ok(mapped) => {
                let front = data.start().raw() - outer.start().raw();
                Ok(self.live(mapped, front, len, account.print, Some(raw)))
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
    /// As [`Ops::map`](crate::dma::ops::Ops::map).
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
        let Some(size) = len.checked_add(exposed) else {
            return Err(DmaError::TooLong { device: self.device() });
        };
        let runs = Runs::new(&self.core.platform, memory.pieces());
        let pieces = runs.filter_map(|run| run.ok()?.align_outward(granule));
        self.core.before_device(memory, len, direction, flags);
        let attrs = self.attributes(direction.access());
        let place = self.placement(size, flags);
        let account = self.account(Footprint { bytes: len, exposed, ..Footprint::default() });
        // SAFETY: the survey found that the runs join at granules; the rest is the caller's
        // promise.
        match unsafe { self.domain.map_list_within(&place, pieces, attrs, Some(&account)) } {
            Ok(mapped) => Ok(self.live(mapped, front, len, account.print, None)),
            Err(DomainError::Exposes { .. }) => {
                self.map_bounced(memory, len, BounceReason::Exposure, direction, flags)
            }
            Err(cause) => Err(self.domain_error(cause)),
        }
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

    fn within(&self, live: &Live) -> Result<Mapped, DmaError> {
        live.mapped.ok_or_else(|| DmaError::NotTranslated { device: self.device() })
    }
}
