//! The route of a device whose accesses a domain translates: how one buffer is mapped.

mod list;
mod ops;

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::addr::{Access, Attributes, Direction, DmaAddr, Iova, IovaRange, MemoryKind, PhysRange};
use crate::bounce::{BounceSlot, RawBounceSlot};
use crate::dma::ops::{Brief, Live, Made, Single};
use crate::dma::route::{RouteCore, SlotShape};
use crate::dma::runs::{Runs, whole};
use crate::dma::{BounceReason, DmaError, MapFlags, Memory, Piece};
use crate::domain::{
    Account, Domain, DomainError, Footprint, Mapped, Placement, Release, Stream, Ticket,
    Translation, UnmapError,
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
    /// The most bytes that the shortest way maps. 0 if it is closed: streaming mappings may not lie
    /// anywhere, caches are to be maintained, fences are asked for, or the translation has no such way.
    pub few: u64,
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
        let window = Some(output);
        SlotShape { align, boundary: 0, shift: 0, whole: true, window, clean: true }
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
        let front = phys.start().raw() - outer.start().raw();
        Ok(match self.fence(front, slack) {
            Some((fence, exposed)) => Fit { outer, fence: Some(fence), exposed },
            None => Fit { outer, fence: None, exposed: slack },
        })
    }

    /// The fence for a run with `slack` bytes around it, `front` of them before it, and what it leaves
    /// open. `None` if there is none.
    #[inline]
    fn fence(&self, front: u64, slack: u64) -> Option<(Fence, u64)> {
        let unit = self.domain.geometry().fence_unit;
        if slack == 0 || unit == 0 || !self.core.spec.unverified_fences {
            return None;
        }
        let fence = Fence { front: front & !(unit - 1), back: (slack - front) & !(unit - 1) };
        Some((fence, slack - fence.front - fence.back))
    }

    /// Maps a run of a few granules that the device may be given where it lies, with neither guards nor
    /// fences, and without caches to maintain.
    ///
    /// # Safety
    /// As [`Ops::map`](crate::dma::ops::Ops::map).
    #[inline(always)]
    unsafe fn try_map(
        &self,
        piece: &Piece,
        direction: Direction,
        flags: MapFlags,
    ) -> Option<Brief> {
        if flags.contains(MapFlags::GUARD) {
            return None;
        }
        let phys = whole(&self.core.platform, piece)?;
        let outer = phys.align_outward(self.domain.granule())?;
        if outer.len() > self.few || !self.domain.geometry().output.contains_range(&outer) {
            return None;
        }
        let len = phys.len();
        let exposed = outer.len() - len;
        if exposed != 0 && self.domain.is_untrusted() {
            return None;
        }
        let attrs = Attributes { access: direction.access(), kind: MemoryKind::Coherent };
        let account = self.account(Footprint { bytes: len, exposed, ..Footprint::default() });
        // SAFETY: the caller's promise.
        let (start, hint) = unsafe { self.domain.try_map(outer, attrs, &account) }?;
        let front = phys.start().raw() - outer.start().raw();
        Some(Brief::new(DmaAddr::new(self.dma(start).raw() + front), hint))
    }

    /// What a buffer's mapping took and counted, where it was mapped where it lies, without guards and
    /// fences: IOVA has the offset in a granule that memory has.
    #[inline(always)]
    fn taken(&self, brief: Brief, len: u64) -> Option<(Mapped, Account<'_>)> {
        let iova = Iova::new(brief.address.get() - self.base);
        let range = IovaRange::new(iova, len).ok()?.align_outward(self.domain.granule())?;
        let exposed = range.len() - len;
        let account = self.account(Footprint { bytes: len, exposed, ..Footprint::default() });
        Some((Mapped::whole(range, brief.hint), account))
    }

    /// The same for any buffer's mapping.
    #[inline(never)]
    fn taken_by(
        &self,
        single: &Single,
        len: u64,
        flags: MapFlags,
    ) -> Option<(Mapped, Account<'_>)> {
        let (mut mapped, mut account) = self.taken(single.brief, len)?;
        if let Some(slot) = &single.slot {
            let (data, outer) = (slot.data(), slot.outer());
            let front = data.start().raw() - outer.start().raw();
            let start = Iova::new(single.brief.address.get() - self.base - front);
            let range = IovaRange::new(start, outer.len()).ok()?;
            mapped = Mapped::whole(range, single.brief.hint);
            account = self.account(bounced(slot));
        }
        if single.made == Made::Fenced {
            let front = single.brief.address.get() & self.domain.granule().mask();
            let slack = account.print.exposed;
            account.print.exposed = self.fence(front, slack).map_or(slack, |(_, open)| open);
        }
        if flags.contains(MapFlags::GUARD) {
            let guard = self.domain.granule().size();
            let start = mapped.range.start().checked_sub(guard)?;
            mapped.lease = IovaRange::new(start, mapped.range.len() + 2 * guard).ok()?;
        }
        Some((mapped, account))
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
    ) -> Result<Single, DmaError> {
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
    ) -> Result<Single, DomainError> {
        let (outer, exposed) = (fit.outer, fit.exposed);
        let place = self.placement(outer.len(), flags);
        let attrs = self.attributes(direction.access());
        let account =
            self.account(Footprint { bytes: phys.len(), exposed, ..Footprint::default() });
        // SAFETY: the caller's promise.
        let mapped =
            unsafe { self.domain.map_within(&place, outer, attrs, fit.fence, Some(&account)) }?;
        let front = phys.start().raw() - outer.start().raw();
        let made = if fit.fence.is_some() { Made::Fenced } else { Made::Fully };
        Ok(Single { brief: self.brief(mapped, front), slot: None, made })
    }

    /// This device's account of a mapping.
    #[inline]
    fn account(&self, print: Footprint) -> Account<'_> {
        Account { counters: &self.core.counters, print }
    }

    #[inline]
    fn live(&self, mapped: Mapped, front: u64, len: u64, print: Footprint) -> Live {
        let dma = DmaAddr::new(self.dma(mapped.range.start()).raw() + front);
        Live { dma, len, mapped: Some(mapped), print }
    }

    fn brief(&self, mapped: Mapped, front: u64) -> Brief {
        Brief::new(DmaAddr::new(self.dma(mapped.range.start()).raw() + front), mapped.hint())
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

    /// The same at the next flush.
    ///
    /// # Safety
    /// As [`Ops::end`](crate::dma::ops::Ops::end).
    #[inline(never)]
    unsafe fn end_mapped_later(
        &self,
        mapped: &Mapped,
        print: &Footprint,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        // SAFETY: the caller's promise.
        unsafe { self.domain.unmap_later(mapped, release, &self.account(*print)) }
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
    ) -> Result<Single, DmaError> {
        let slot = self.slot(memory, len, reason, flags)?;
        let raw = slot.into_raw();
        let (data, outer) = (raw.data(), raw.outer());
        let attrs = self.attributes(direction.access());
        let account = self.account(bounced(&raw));
        let place = self.placement(outer.len(), flags);
        // SAFETY: the slot is whole granules that the pool lent to this mapping alone.
        match unsafe { self.domain.map_within(&place, outer, attrs, None, Some(&account)) } {
            Ok(mapped) => {
                let front = data.start().raw() - outer.start().raw();
                Ok(Single { brief: self.brief(mapped, front), slot: Some(raw), made: Made::Fully })
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
    ) -> Result<Single, DmaError> {
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
            Ok(mapped) => {
                Ok(Single { brief: self.brief(mapped, front), slot: None, made: Made::Fully })
            }
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

/// What a buffer in a slot counts for.
fn bounced(slot: &RawBounceSlot) -> Footprint {
    let len = slot.data().len();
    Footprint { bytes: len, padding: slot.outer().len() - len, exposed: 0, bounced: len }
}
