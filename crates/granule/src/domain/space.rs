//! The domain: one IOVA space, one translation, one rule for when things may be reused.
//!
//! ```text
//!   map:    lease IOVA ── write entries ── (sync where absence is cached) ── live
//!   unmap:  clear entries ── invalidate ── reap tables ── free IOVA ── free memory
//!                             │ deferred: the rest waits in quarantine for a flush
//!                             └ failed: the rest never happens, and is counted
//! ```

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use lock_api::Mutex;

use super::quarantine::{Entry, Pushed, Quarantine, Release, Ticket};
use super::{
    DomainConfig, DomainError, Geometry, Invalidation, InvalidationPolicy, Reserved, ReservedUse,
    Translation, TranslationError, UnitError,
};
use crate::addr::{Attributes, Granule, Iova, IovaRange, PhysRange};
use crate::iova::{IovaAllocator, IovaRequest};
use crate::mem::{PerCpu, Platform};
use crate::table::{Fence, Hint};

/// One IOVA space whose addresses granule hands out.
///
/// Devices are attached through [`Domain::attach`](crate::dma), in the layer above; this layer is
/// useful alone for those who bring their own idea of a device.
pub struct Domain<P: Platform, T: Translation> {
    platform: P,
    translation: T,
    iova: IovaAllocator<P>,
    granule: Granule,
    quarantine: Option<Quarantine<P>>,
    /// How many devices that are not trusted are attached, or are being attached now.
    untrusted: AtomicUsize,
    /// Held while it is decided whether an untrusted device may join.
    joining: Mutex<P::Lock, ()>,
    /// Bytes exposed to the domain's devices now. Only touched by mappings that expose.
    exposed: AtomicU64,
    poisoned: AtomicBool,
    leaked: AtomicU64,
    waiting_bytes: AtomicU64,
    invalidations: PerCpu<AtomicU64>,
}

/// Where a mapping shall lie.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The size in bytes, whole granules.
    pub size: u64,
    /// The alignment in bytes, a power of two; below a granule means a granule.
    pub align: u64,
    /// The range must lie inside.
    pub window: IovaRange,
    /// Leave an unmapped granule before and after.
    pub guard: bool,
    /// Exactly here, and nowhere else.
    pub at: Option<Iova>,
}

/// A live mapping of a domain, as [`Domain::unmap`] needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// What is mapped: whole granules.
    pub range: IovaRange,
    /// What was taken from the allocator: guards included.
    pub lease: IovaRange,
    hint: Hint,
}

/// An unmap whose invalidation failed. What it covered is leaked and counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what was mapped at {range} may still be reached by the device and is never reused: {cause}"
)]
pub struct UnmapError {
    /// The range that stays in quarantine.
    pub range: IovaRange,
    /// What went wrong.
    pub cause: TranslationError,
}

/// What a domain holds and did, for people to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainStats {
    /// Pages of page table.
    pub table_pages: u64,
    /// Invalidations that completed.
    pub invalidations: u64,
    /// Ranges in quarantine, waiting for a flush.
    pub quarantined: u64,
    /// Bytes of IOVA space in quarantine.
    pub quarantined_bytes: u64,
    /// Bytes of IOVA space lost to invalidations that failed.
    pub leaked_bytes: u64,
    /// Bytes exposed to the domain's devices.
    pub exposed_bytes: u64,
    /// Bytes of IOVA space in use, quarantine included.
    pub iova_bytes: u64,
    /// Whether an invalidation failed and [`Domain::recover`] has not succeeded since.
    pub poisoned: bool,
}

impl<P: Platform, T: Translation> Domain<P, T> {
    /// A domain on a translation that nothing is mapped in.
    ///
    /// Address 0 is never handed out. Reserved ranges that are to be mapped are mapped now, before
    /// a device is attached.
    ///
    /// # Errors
    /// [`DomainError`]: an aperture without a whole granule, or a reserved range that cannot be
    /// mapped.
    pub fn new(
        platform: &P,
        translation: T,
        config: &DomainConfig,
    ) -> Result<Arc<Self>, DomainError> {
        let geometry = translation.geometry();
        let granule = geometry
            .page_sizes
            .granule()
            .ok_or(TranslationError::Unsupported { what: "any page size" })?;
        let aperture = match config.window {
            Some(window) => geometry.aperture.intersection(&window).ok_or(DomainError::Range {
                range: window,
                reason: "it lies outside of what the IOMMU translates",
            })?,
            None => geometry.aperture,
        };
        let iova = IovaAllocator::new(platform, granule, aperture)?;
        let quarantine = match config.policy {
            InvalidationPolicy::Strict => None,
            InvalidationPolicy::Deferred { capacity, max_age } => {
                Some(Quarantine::new(platform, capacity.max(1), max_age))
            }
        };
        let domain = Self {
            platform: platform.clone(),
            translation,
            iova,
            granule,
            quarantine,
            untrusted: AtomicUsize::new(0),
            joining: Mutex::new(()),
            exposed: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            leaked: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
            invalidations: PerCpu::new(platform, || AtomicU64::new(0)),
        };
        domain.reserve_zero()?;
        for reserved in &config.reserved {
            domain.reserve(reserved)?;
        }
        Ok(Arc::new(domain))
    }

    fn reserve_zero(&self) -> Result<(), DomainError> {
        let zero = Iova::new(0);
        match IovaRange::new(zero, self.granule.size()) {
            Ok(first) if self.iova.aperture().contains(zero) => Ok(self.iova.reserve(first)?),
            _ => Ok(()),
        }
    }

    fn reserve(&self, reserved: &Reserved) -> Result<(), DomainError> {
        let range = reserved.range().align_outward(self.granule).ok_or(DomainError::Range {
            range: reserved.range(),
            reason: "it passes the end of the address space",
        })?;
        if let Some(inside) = range.intersection(&self.iova.aperture()) {
            self.iova.reserve(inside)?;
        }
        let ReservedUse::Mapped { phys, attrs } = reserved.usage() else {
            return Ok(());
        };
        if phys.offset_in(self.granule) != reserved.range().start().offset_in(self.granule) {
            return Err(DomainError::Misaligned { value: phys.raw(), granule: self.granule });
        }
        let phys = PhysRange::new(phys.align_down(self.granule), range.len()).map_err(|_| {
            DomainError::Range {
                range,
                reason: "its physical memory passes the end of the address space",
            }
        })?;
        self.check_reach(phys)?;
        // SAFETY: the range is reserved for this; `Reserved::mapped` vouches for the memory.
        unsafe { self.translation.map(range.start(), phys, attrs) }?;
        Ok(())
    }

    /// The machine.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// What translates.
    pub fn translation(&self) -> &T {
        &self.translation
    }

    /// The smallest page.
    pub fn granule(&self) -> Granule {
        self.granule
    }

    /// What can be mapped.
    pub fn geometry(&self) -> &Geometry {
        self.translation.geometry()
    }

    /// The addresses that are allocated from.
    pub fn aperture(&self) -> IovaRange {
        self.iova.aperture()
    }

    /// The addresses that can be handed out: the aperture without the granule at 0.
    pub(crate) fn usable(&self) -> IovaRange {
        let aperture = self.aperture();
        let zero = if aperture.start().raw() == 0 { self.granule.size() } else { 0 };
        let rest = aperture.len().checked_sub(zero);
        rest.and_then(|len| aperture.slice(zero, len)).unwrap_or(aperture)
    }

    /// The allocator. Not for users: freeing what a mapping leases would break that mapping.
    pub(crate) fn allocator(&self) -> &IovaAllocator<P> {
        &self.iova
    }

    /// Whether unmapped ranges wait for a flush.
    pub fn is_deferred(&self) -> bool {
        self.quarantine.is_some()
    }

    /// Whether a device that is not trusted is attached: nothing is then exposed to any device of
    /// the domain.
    pub fn is_untrusted(&self) -> bool {
        self.untrusted.load(Ordering::SeqCst) != 0
    }

    /// Whether an invalidation failed; nothing new is mapped then.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Whether the IOMMU can put out all of `phys`.
    pub(crate) fn check_reach(&self, phys: PhysRange) -> Result<(), DomainError> {
        let output = self.geometry().output;
        if output.contains_range(&phys) {
            Ok(())
        } else {
            Err(DomainError::OutOfReach { memory: phys, output })
        }
    }

    /// Counts bytes that a mapping is about to expose; `false` if the domain may expose nothing.
    ///
    /// The count goes up before trust is read, and [`distrust`](Self::distrust) does it the other
    /// way round, so that one of the two sees the other.
    pub(crate) fn expose(&self, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        self.exposed.fetch_add(bytes, Ordering::SeqCst);
        if self.is_untrusted() {
            self.exposed.fetch_sub(bytes, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Takes back what [`expose`](Self::expose) counted.
    pub(crate) fn conceal(&self, bytes: u64) {
        if bytes != 0 {
            self.exposed.fetch_sub(bytes, Ordering::SeqCst);
        }
    }

    /// Counts in a device that is not trusted: from now on the domain exposes nothing. If it does
    /// already, answers how many bytes, and stays as it was.
    pub(crate) fn distrust(&self) -> Result<(), u64> {
        // Two who join at once must not rely on each other: the first may yet be refused.
        let _one_at_a_time = self.joining.lock();
        let before = self.untrusted.fetch_add(1, Ordering::SeqCst);
        let exposed = self.exposed.load(Ordering::SeqCst);
        if exposed != 0 && before == 0 {
            self.trust_again();
            return Err(exposed);
        }
        Ok(())
    }

    /// Counts such a device out again: it is gone, or was never attached.
    pub(crate) fn trust_again(&self) {
        self.untrusted.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes IOVA space. If there is none, what waits in quarantine is flushed first.
    pub(crate) fn lease(&self, place: &Placement) -> Result<(IovaRange, IovaRange), DomainError> {
        if self.is_poisoned() {
            return Err(DomainError::Poisoned);
        }
        match self.try_lease(place) {
            Err(DomainError::Iova(_)) if self.has_waiting() => {
                self.flush().map_err(TranslationError::from)?;
                self.try_lease(place)
            }
            result => result,
        }
    }

    /// The range for the mapping, and the range that was taken for it.
    fn try_lease(&self, place: &Placement) -> Result<(IovaRange, IovaRange), DomainError> {
        let overflow =
            || DomainError::Range { range: place.window, reason: "the request passes 2^64 bytes" };
        let guard = if place.guard { place.align.max(self.granule.size()) } else { 0 };
        if let Some(at) = place.at {
            let range = IovaRange::new(at, place.size).map_err(|_| overflow())?;
            if !place.window.contains_range(&range) {
                let reason = "the device cannot use all of it: its mask or window ends before";
                return Err(DomainError::Range { range, reason });
            }
            let guarded = guard_around(range, if place.guard { self.granule.size() } else { 0 })
                .ok_or_else(overflow)?;
            self.iova.alloc_at(guarded)?;
            return Ok((range, guarded));
        }
        let size = place
            .size
            .checked_add(guard)
            .and_then(|s| s.checked_add(guard))
            .ok_or_else(overflow)?;
        let request = IovaRequest { size, align: place.align, window: Some(place.window) };
        let start = self.iova.alloc(&request)?;
        let lease = IovaRange::new(start, size).map_err(|_| overflow())?;
        let range = lease.slice(guard, place.size).ok_or_else(overflow)?;
        Ok((range, lease))
    }

    fn has_waiting(&self) -> bool {
        self.quarantine.as_ref().is_some_and(|quarantine| quarantine.waiting() != 0)
    }

    /// Maps one piece of physical memory.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is then mapped or taken.
    ///
    /// # Safety
    /// `phys` is whole granules of memory that the domain's devices may reach as `attrs` says; it
    /// stays allocated until [`unmap`](Self::unmap) has returned `Ok`, or for ever.
    #[inline]
    pub unsafe fn map(
        &self,
        place: &Placement,
        phys: PhysRange,
        attrs: Attributes,
        fence: Option<Fence>,
    ) -> Result<Mapped, DomainError> {
        self.check_reach(phys)?;
        let (range, lease) = self.lease(place)?;
        let result = match fence {
            // SAFETY: the range was just leased, so it is ours and unmapped; the memory is the
            // caller's promise.
            None => unsafe { self.translation.map(range.start(), phys, attrs) },
            // SAFETY: as above.
            Some(fence) => unsafe {
                self.translation.map_fenced(range.start(), phys, attrs, fence)
            },
        };
        self.settle(range, lease, result)
    }

    /// Maps pieces one behind the other from the start of the placement on.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is then mapped or taken.
    ///
    /// # Safety
    /// As [`map`](Self::map), for each piece. Together they are as long as the placement.
    #[inline]
    pub unsafe fn map_list<I>(
        &self,
        place: &Placement,
        pieces: I,
        attrs: Attributes,
    ) -> Result<Mapped, DomainError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        pieces.clone().try_for_each(|phys| self.check_reach(phys))?;
        let (range, lease) = self.lease(place)?;
        // SAFETY: the range was just leased; the rest is the caller's promise.
        let result = unsafe { self.translation.map_list(range.start(), pieces, attrs) };
        self.settle(range, lease, result.map(|()| Hint::NONE))
    }

    /// Maps pieces at their offsets from the start of the placement. What lies between stays
    /// unmapped.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is then mapped or taken.
    ///
    /// # Safety
    /// As [`map`](Self::map), for each piece. Offsets grow, and the pieces lie inside the placement
    /// without overlap.
    pub unsafe fn map_pieces<I>(
        &self,
        place: &Placement,
        pieces: I,
        attrs: Attributes,
    ) -> Result<Mapped, DomainError>
    where
        I: Iterator<Item = (u64, PhysRange)> + Clone,
    {
        pieces.clone().try_for_each(|(_, phys)| self.check_reach(phys))?;
        let (range, lease) = self.lease(place)?;
        // SAFETY: the range was just leased; the rest is the caller's promise.
        let result = unsafe { self.map_runs(range.start(), pieces, attrs) };
        self.settle(range, lease, result.map(|()| Hint::NONE))
    }

    /// Maps each run of pieces that follow each other without a gap in one go.
    ///
    /// # Safety
    /// As [`Self::map_pieces`], with everything from `start` on leased.
    unsafe fn map_runs<I>(
        &self,
        start: Iova,
        mut pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = (u64, PhysRange)> + Clone,
    {
        while let Some((offset, count)) = next_run(pieces.clone()) {
            let run = pieces.clone().take(count).map(|(_, phys)| phys);
            let iova = Iova::new(start.raw().wrapping_add(offset));
            // SAFETY: the caller's promise.
            if let Err(error) = unsafe { self.translation.map_list(iova, run, attrs) } {
                if let Ok(before) = IovaRange::new(start, offset) {
                    // SAFETY: all of it is leased, and was mapped by this call or not at all.
                    unsafe { self.translation.unmap(before, Hint::NONE) }?;
                }
                return Err(error);
            }
            pieces.nth(count - 1);
        }
        Ok(())
    }

    /// Takes IOVA space and maps nothing there yet.
    pub(crate) fn reserve_only(&self, place: &Placement) -> Result<Mapped, DomainError> {
        let (range, lease) = self.lease(place)?;
        Ok(Mapped { range, lease, hint: Hint::NONE })
    }

    /// Maps memory in a part of a reservation.
    ///
    /// # Safety
    /// As [`map`](Self::map); the part was reserved by the caller and nothing is mapped there.
    pub(crate) unsafe fn link(
        &self,
        part: IovaRange,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<(), DomainError> {
        self.check_reach(phys)?;
        if self.is_poisoned() {
            return Err(DomainError::Poisoned);
        }
        // SAFETY: the caller's promise.
        let linked = unsafe { self.translation.map(part.start(), phys, attrs) };
        let linked = linked.and_then(|_| Ok(self.translation.sync_map(part)?));
        linked.map_err(|error| {
            // SAFETY: the part is the caller's, and nothing else is mapped there.
            match unsafe { self.unlink(part) } {
                Ok(()) => {
                    // A side of a mirror may have undone its map already, and detached tables.
                    // SAFETY: a covering invalidation has completed.
                    unsafe { self.translation.reap(part) };
                    error.into()
                }
                Err(_) => DomainError::Stale { cause: error },
            }
        })
    }

    /// Unmaps a part of a reservation, at once.
    ///
    /// # Safety
    /// The part was linked by the caller.
    pub(crate) unsafe fn unlink(&self, part: IovaRange) -> Result<(), UnmapError> {
        // SAFETY: the caller's promise.
        let unmapped = unsafe { self.translation.unmap(part, Hint::NONE) }
            .map_err(|cause| UnmapError { range: part, cause })?;
        let request = Invalidation { range: Some(part), tables: true };
        if let Err(error) = self.invalidate(&request) {
            self.poison(part.len());
            return Err(UnmapError { range: part, cause: error.into() });
        }
        if unmapped.tables {
            // SAFETY: a covering invalidation has completed.
            unsafe { self.translation.reap(part) };
        }
        Ok(())
    }

    /// A stream could not be blocked: nothing new is mapped for it.
    pub(crate) fn lose(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Ends a map: hands out the mapping, or sees to it that nothing of it is left.
    #[inline]
    fn settle(
        &self,
        range: IovaRange,
        lease: IovaRange,
        result: Result<Hint, TranslationError>,
    ) -> Result<Mapped, DomainError> {
        match result {
            Ok(hint) => {
                let mapped = Mapped { range, lease, hint };
                match self.translation.sync_map(range) {
                    Ok(()) => Ok(mapped),
                    Err(error) => Err(self.abandon(mapped, error.into())),
                }
            }
            Err(error) => Err(self.abandon(Mapped { range, lease, hint: Hint::NONE }, error)),
        }
    }

    /// Cleans up after a map that failed. Entries were visible for a moment, so the IOVA may only
    /// be reused once the caches have forgotten them.
    #[cold]
    fn abandon(&self, mapped: Mapped, error: TranslationError) -> DomainError {
        // SAFETY: the range is leased to the call that failed.
        let undone = unsafe { self.translation.unmap(mapped.range, Hint::NONE) };
        let request = Invalidation { range: Some(mapped.range), tables: true };
        let dropped = undone.is_ok() && self.invalidate(&request).is_ok();
        if dropped {
            // SAFETY: a covering invalidation has completed.
            unsafe { self.translation.reap(mapped.range) };
            self.give_back(mapped.lease);
            return error.into();
        }
        self.poison(mapped.lease.len());
        DomainError::Stale { cause: error }
    }

    /// Ends a mapping, now or at the next flush.
    ///
    /// `release` runs once the memory may be reused; if that moment never comes it never runs. In
    /// strict mode, and with `now`, it has run when this returns. The answer tells where an unmap
    /// waits.
    ///
    /// # Errors
    /// [`UnmapError`] if the invalidation failed: memory and IOVA are leaked, and the domain is
    /// poisoned.
    ///
    /// # Safety
    /// `mapped` came from this domain and is ended once.
    pub(crate) unsafe fn unmap_with(
        &self,
        mapped: &Mapped,
        release: Option<Release>,
        now: bool,
    ) -> Result<Option<Ticket>, UnmapError> {
        // SAFETY: the mapping is live and the caller's, who ends it once.
        let unmapped = match unsafe { self.translation.unmap(mapped.range, mapped.hint) } {
            Ok(unmapped) => unmapped,
            Err(cause) => return Err(self.leak(mapped, release, cause)),
        };
        let entry = Entry {
            lease: mapped.lease,
            tables: unmapped.tables,
            bytes: mapped.lease.len(),
            release,
        };
        match &self.quarantine {
            Some(quarantine) if !now => self.defer(quarantine, entry, mapped),
            _ => {
                let request = Invalidation { range: Some(mapped.range), tables: unmapped.tables };
                if let Err(cause) = self.invalidate(&request) {
                    return Err(self.leak(mapped, entry.release, cause.into()));
                }
                self.finish(&entry);
                if let Some(release) = entry.release {
                    release.run();
                }
                Ok(None)
            }
        }
    }

    /// Ends a mapping; when this returns `Ok` no device reaches the memory any more.
    ///
    /// # Errors
    /// [`UnmapError`] if the invalidation failed: the memory must never be reused.
    ///
    /// # Safety
    /// `mapped` came from this domain and is ended once.
    pub unsafe fn unmap(&self, mapped: &Mapped) -> Result<(), UnmapError> {
        // SAFETY: the caller's promise.
        unsafe { self.unmap_with(mapped, None, true) }.map(|_| ())
    }

    fn defer(
        &self,
        quarantine: &Quarantine<P>,
        entry: Entry,
        mapped: &Mapped,
    ) -> Result<Option<Ticket>, UnmapError> {
        self.waiting_bytes.fetch_add(entry.bytes, Ordering::Relaxed);
        let mut entry = entry;
        loop {
            match quarantine.push(&self.platform, entry) {
                Pushed::Waiting(ticket) => return Ok(Some(ticket)),
                Pushed::Due(ticket) => {
                    // The entry is safe where it is; a flush that fails now is tried again.
                    let _ = self.flush();
                    return Ok(Some(ticket));
                }
                Pushed::Full(back) => {
                    entry = back;
                    if let Err(cause) = self.flush() {
                        self.waiting_bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
                        return Err(self.leak(mapped, entry.release, cause.into()));
                    }
                }
            }
        }
    }

    /// Invalidates, and gives back everything that waits in quarantine.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: everything stays in quarantine, and the domain is poisoned until
    /// [`recover`](Self::recover).
    pub fn flush(&self) -> Result<(), UnitError> {
        let Some(quarantine) = &self.quarantine else {
            return Ok(());
        };
        let result = quarantine.flush(
            || self.invalidate(&Invalidation::ALL),
            |entry| {
                self.waiting_bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
                self.finish(entry);
            },
        );
        if result.is_err() {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }

    /// Flushes if something has waited as long as it may. For the platform's timer.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn poll(&self) -> Result<(), UnitError> {
        match &self.quarantine {
            Some(quarantine) if quarantine.is_due(self.platform.now()) => self.flush(),
            _ => Ok(()),
        }
    }

    /// Tries to leave the poisoned state after the hardware was reset or has recovered: programs
    /// the streams again, drops all caches, and gives back what waits in quarantine. What was leaked
    /// stays leaked.
    ///
    /// # Errors
    /// [`TranslationError`]; the domain stays poisoned.
    pub fn recover(&self) -> Result<(), TranslationError> {
        self.translation.resume()?;
        self.invalidate(&Invalidation::ALL)?;
        self.flush()?;
        self.poisoned.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether a deferred unmap has been flushed.
    pub(crate) fn is_flushed(&self, ticket: Ticket) -> bool {
        self.quarantine.as_ref().is_none_or(|quarantine| quarantine.is_flushed(ticket))
    }

    /// What the domain holds and did.
    pub fn stats(&self) -> DomainStats {
        let usage = self.iova.usage();
        DomainStats {
            table_pages: self.translation.table_pages() as u64,
            invalidations: self
                .invalidations
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .sum(),
            quarantined: self.quarantine.as_ref().map_or(0, Quarantine::waiting),
            quarantined_bytes: self.waiting_bytes.load(Ordering::Relaxed),
            leaked_bytes: self.leaked.load(Ordering::Relaxed),
            exposed_bytes: self.exposed.load(Ordering::SeqCst),
            iova_bytes: usage.live,
            poisoned: self.is_poisoned(),
        }
    }

    #[inline]
    fn invalidate(&self, request: &Invalidation) -> Result<(), UnitError> {
        let result = self.translation.invalidate(request);
        if result.is_ok() {
            self.invalidations.local(&self.platform).fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// What follows a completed invalidation.
    #[inline]
    fn finish(&self, entry: &Entry) {
        if entry.tables {
            // SAFETY: an invalidation of tables that covers the range has completed, and the
            // lease keeps the range ours.
            unsafe { self.translation.reap(entry.lease) };
        }
        self.give_back(entry.lease);
    }

    #[inline]
    fn give_back(&self, lease: IovaRange) {
        let freed = self.iova.free(lease);
        debug_assert!(freed.is_ok(), "a lease is freed once, as it was taken");
    }

    /// Leaves a mapping's memory and IOVA in quarantine for ever.
    #[cold]
    fn leak(
        &self,
        mapped: &Mapped,
        release: Option<Release>,
        cause: TranslationError,
    ) -> UnmapError {
        // A release that is dropped does not run: running it would let memory be reused that a
        // device may still reach.
        let _never = release;
        self.poison(mapped.lease.len());
        UnmapError { range: mapped.range, cause }
    }

    fn poison(&self, bytes: u64) {
        self.leaked.fetch_add(bytes, Ordering::Relaxed);
        self.poisoned.store(true, Ordering::Release);
    }

    /// Counts the pages of each size that a range is mapped with, smallest first.
    pub fn page_sizes_used(&self, range: IovaRange) -> Vec<(u64, u64)> {
        let mut counts: Vec<(u64, u64)> = Vec::new();
        self.translation.for_each_page(range, &mut |_, size| match counts
            .iter_mut()
            .find(|(known, _)| *known == size)
        {
            Some((_, count)) => *count += 1,
            None => counts.push((size, 1)),
        });
        counts.sort_unstable();
        counts
    }
}

impl<P: Platform, T: Translation> Drop for Domain<P, T> {
    fn drop(&mut self) {
        // What cannot be flushed is leaked by the quarantine.
        let _ = self.flush();
    }
}

fn guard_around(range: IovaRange, guard: u64) -> Option<IovaRange> {
    let start = range.start().checked_sub(guard)?;
    IovaRange::new(start, range.len().checked_add(guard)?.checked_add(guard)?).ok()
}

/// The first run of pieces that follow each other without a gap: its offset, and how many pieces
/// it has, at least one.
fn next_run(mut pieces: impl Iterator<Item = (u64, PhysRange)>) -> Option<(u64, usize)> {
    let (offset, first) = pieces.next()?;
    let mut end = offset + first.len();
    let joined = pieces.take_while(|(at, phys)| {
        let joins = *at == end;
        end += phys.len();
        joins
    });
    Some((offset, 1 + joined.count()))
}
