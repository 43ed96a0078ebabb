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

use super::counters::{Account, Tally, Under};
use super::quarantine::Quarantine;
use super::{
    DomainConfig, DomainError, Geometry, InvalidationPolicy, Reserved, ReservedUse, Translation,
    TranslationError,
};
use crate::addr::{Granule, Iova, IovaRange, PhysRange};
use crate::iova::{IovaAllocator, IovaError};
use crate::mem::Platform;
use crate::table::Hint;

/// One IOVA space whose addresses granule hands out.
///
/// Devices are attached through [`Domain::attach`](crate::dma), in the layer above; this layer is
/// useful alone for those who bring their own idea of a device.
pub struct Domain<P: Platform, T: Translation> {
    pub(super) platform: P,
    pub(super) translation: T,
    pub(super) iova: IovaAllocator<P, Tally>,
    pub(super) granule: Granule,
    /// The aperture without the granule at 0.
    usable: IovaRange,
    pub(super) quarantine: Option<Quarantine<P>>,
    /// How many devices that are not trusted are attached, or are being attached now.
    pub(super) untrusted: AtomicUsize,
    /// Held while it is decided whether an untrusted device may join.
    pub(super) joining: Mutex<P::Lock, ()>,
    pub(super) poisoned: AtomicBool,
    pub(super) leaked: AtomicU64,
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
    pub(super) hint: Hint,
}

impl Mapped {
    /// A mapping that has what it leases to itself.
    #[inline]
    pub(crate) fn whole(range: IovaRange, hint: Hint) -> Self {
        Self { range, lease: range, hint }
    }

    /// What spares the unmap its walk.
    pub(crate) fn hint(&self) -> Hint {
        self.hint
    }
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
        let aperture =
            aperture.align_inward(granule).ok_or(IovaError::EmptyAperture { aperture, granule })?;
        let iova = IovaAllocator::with_shares(platform, granule, aperture, Tally::new)?;
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
            usable: without_zero(aperture, granule),
            quarantine,
            untrusted: AtomicUsize::new(0),
            joining: Mutex::new(()),
            poisoned: AtomicBool::new(false),
            leaked: AtomicU64::new(0),
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
    #[inline]
    pub(crate) fn usable(&self) -> IovaRange {
        self.usable
    }

    /// The allocator. Not for users: freeing what a mapping leases would break that mapping.
    pub(crate) fn allocator(&self) -> &IovaAllocator<P, Tally> {
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

    /// Counts a mapping in, unless it would expose something and the domain may expose nothing.
    ///
    /// This runs under the lock of a CPU's tally. [`distrust`](Self::distrust) takes trust away first
    /// and takes each of these locks afterwards: a mapping that was counted in before that is seen
    /// there, and one that comes later sees here that trust is gone. What is counted out, on whatever
    /// CPU, was counted in before, and nothing is counted in once trust is gone, so a sum of zero
    /// means that nothing is exposed.
    #[inline(always)]
    pub(super) fn admit(&self, tally: &mut Tally, account: Option<&Account<'_>>) -> bool {
        let Some(account) = account else { return true };
        let exposed = account.print.exposed;
        if exposed != 0 {
            if self.is_untrusted() {
                return false;
            }
            tally.exposed = tally.exposed.wrapping_add(exposed);
        }
        account.counters.begin(tally.cpu, &account.print);
        true
    }

    /// Counts in what is mapped in a range that was leased before, unless that would expose something
    /// and the domain may expose nothing.
    pub(crate) fn begin(&self, account: &Account<'_>) -> bool {
        self.iova.count(|tally| self.admit(tally, Some(account)))
    }

    /// Counts a mapping out that was not made. If devices may be left with it (`stale`), what it exposes
    /// stays exposed.
    #[cold]
    pub(crate) fn cancel(&self, account: &Account<'_>, stale: bool) {
        let exposed = if stale { 0 } else { account.print.exposed };
        self.iova.count(|tally| {
            tally.exposed = tally.exposed.wrapping_sub(exposed);
            account.counters.cancel(tally.cpu, &account.print);
        });
    }

    /// Counts a mapping out. If the devices have not `lost` it, what it exposes stays exposed.
    pub(crate) fn end(&self, account: &Account<'_>, lost: bool) {
        let exposed = if lost { account.print.exposed } else { 0 };
        self.iova.count(|tally| {
            tally.exposed = tally.exposed.wrapping_sub(exposed);
            account.counters.end(tally.cpu, Under::Map, &account.print);
        });
    }

    /// Runs `count` with a CPU's number under the lock under which mappings are counted there.
    pub(crate) fn counting(&self, count: impl FnOnce(usize)) {
        self.iova.count(|tally| count(tally.cpu));
    }

    /// Bytes exposed to the domain's devices now: whole granules that mappings do not fill.
    fn exposed(&self) -> u64 {
        let concealed = self.quarantine.as_ref().map_or(0, Quarantine::concealed);
        let mut exposed = 0u64.wrapping_sub(concealed);
        self.iova.counts(|tally| exposed = exposed.wrapping_add(tally.exposed));
        exposed
    }

    /// Counts in a device that is not trusted: from now on the domain exposes nothing. If it does
    /// already, answers how many bytes, and stays as it was.
    pub(crate) fn distrust(&self) -> Result<(), u64> {
        // Two who join at once must not rely on each other: the first may yet be refused.
        let _one_at_a_time = self.joining.lock();
        let before = self.untrusted.fetch_add(1, Ordering::SeqCst);
        let exposed = self.exposed();
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

    /// What the domain holds and did.
    pub fn stats(&self) -> DomainStats {
        let usage = self.iova.usage();
        let mut invalidations = 0u64;
        self.iova.counts(|tally| invalidations = invalidations.wrapping_add(tally.invalidations));
        DomainStats {
            table_pages: self.translation.table_pages() as u64,
            invalidations,
            quarantined: self.quarantine.as_ref().map_or(0, Quarantine::waiting),
            quarantined_bytes: self.quarantine.as_ref().map_or(0, Quarantine::bytes),
            leaked_bytes: self.leaked.load(Ordering::Relaxed),
            // CPUs are read one after the other: a mapping that comes and goes meanwhile may be seen
            // going only.
            exposed_bytes: (self.exposed() as i64).max(0) as u64,
            iova_bytes: usage.live,
            poisoned: self.is_poisoned(),
        }
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

/// An aperture without the granule at 0, unless that is all of it.
fn without_zero(aperture: IovaRange, granule: Granule) -> IovaRange {
    let zero = if aperture.start().raw() == 0 { granule.size() } else { 0 };
    let rest = aperture.len().checked_sub(zero);
    rest.and_then(|len| aperture.slice(zero, len)).unwrap_or(aperture)
}

impl<P: Platform, T: Translation> Drop for Domain<P, T> {
    fn drop(&mut self) {
        // What cannot be flushed is leaked by the quarantine.
        let _ = self.flush();
    }
}
