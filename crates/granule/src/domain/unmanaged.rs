//! An address space whose owner decides what lies where: for hypervisors, user-space drivers, and
//! pattern (a) of the kernel's maintainers (own domains plus the IOMMU API).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lock_api::Mutex;

use super::{
    DomainError, Geometry, Invalidation, Stream, Translation, TranslationError, UnitError,
    UnmapError,
};
use crate::addr::{Attributes, Granule, Iova, IovaRange, PhysRange};
use crate::mem::Platform;
use crate::table::{Hint, Resolved};

/// How an unmanaged domain is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmanagedConfig {
    /// Accept a granule larger than the CPU's page. The owner promises to map and unmap in units
    /// of [`Unmanaged::granule`], and knows that the page it maps may hold several CPU pages.
    pub allow_large_granule: bool,
}

/// A domain without an allocator. Invalidation is strict.
pub struct Unmanaged<P: Platform, T: Translation> {
    platform: P,
    translation: T,
    granule: Granule,
    /// Keeps map and unmap of the same range apart: unlike the DMA API, whose ranges are leased,
    /// nothing stops this owner from naming a range twice. Never grown, so that unmap does not
    /// allocate.
    changes: Mutex<P::Lock, Vec<IovaRange>>,
    poisoned: AtomicBool,
    leaked: AtomicU64,
}

impl<P: Platform, T: Translation> Unmanaged<P, T> {
    /// A domain on a translation that nothing is mapped in.
    ///
    /// # Errors
    /// [`DomainError::LargeGranule`] if the granule is larger than the CPU's page and `config` does
    /// not accept that.
    pub fn new(
        platform: &P,
        translation: T,
        config: UnmanagedConfig,
    ) -> Result<Arc<Self>, DomainError> {
        let sizes = translation.geometry().page_sizes;
        let granule =
            sizes.granule().ok_or(TranslationError::Unsupported { what: "any page size" })?;
        let cpu_page = platform.cpu_page();
        if granule > cpu_page && !config.allow_large_granule {
            return Err(DomainError::LargeGranule { granule, cpu_page });
        }
        Ok(Arc::new(Self {
            platform: platform.clone(),
            translation,
            granule,
            changes: Mutex::new(Vec::with_capacity(2 * platform.cpus().max(1))),
            poisoned: AtomicBool::new(false),
            leaked: AtomicU64::new(0),
        }))
    }

    /// A domain in which every address of `memory` means itself.
    ///
    /// # Errors
    /// [`DomainError`]: memory beyond the aperture or the output, or not in whole granules.
    ///
    /// # Safety
    /// Devices attached to it reach all of `memory`: the caller vouches for them.
    pub unsafe fn identity(
        platform: &P,
        translation: T,
        memory: &[PhysRange],
    ) -> Result<Arc<Self>, DomainError> {
        let domain =
            Self::new(platform, translation, UnmanagedConfig { allow_large_granule: true })?;
        for range in memory {
            let attrs = Attributes::memory(crate::addr::Access::all());
            // SAFETY: the caller vouches for the devices.
            unsafe { domain.map(Iova::new(range.start().raw()), *range, attrs) }?;
        }
        Ok(domain)
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

    /// Bytes of IOVA space whose invalidation failed, and that [`recover`](Self::recover) has not
    /// made good since.
    pub fn leaked_bytes(&self) -> u64 {
        self.leaked.load(Ordering::Relaxed)
    }

    /// Maps physical memory at an address of the caller's choice.
    ///
    /// # Errors
    /// [`DomainError`]: misaligned, outside the aperture, mapped already; nothing is then changed.
    ///
    /// # Safety
    /// The domain's devices may reach `phys` as `attrs` says, and it stays allocated until
    /// [`unmap`](Self::unmap) has returned `Ok`.
    pub unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<(), DomainError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(DomainError::Poisoned);
        }
        let range = self.checked_range(iova, phys.len())?;
        if !phys.start().is_aligned(self.granule) {
            return Err(DomainError::Misaligned {
                value: phys.start().raw(),
                granule: self.granule,
            });
        }
        let output = self.geometry().output;
        if !output.contains_range(&phys) {
            return Err(DomainError::OutOfReach { memory: phys, output });
        }
        self.exclusively(range, || {
            // SAFETY: no other change of the range is under way, and the table refuses what is
            // mapped; the memory is the caller's promise.
            if let Err(error) = unsafe { self.translation.map(iova, phys, attrs) } {
                // Entries may have been visible for a moment.
                let forgotten =
                    self.translation.invalidate(&Invalidation { range: Some(range), tables: true });
                match forgotten {
                    // A side of a mirror may have undone its map, and detached tables.
                    // SAFETY: the covering invalidation has completed.
                    Ok(()) => unsafe { self.translation.reap(range) },
                    Err(_) => self.poison(range),
                }
                return Err(error.into());
            }
            if let Err(error) = self.translation.sync_map(range) {
                // SAFETY: the range was just mapped by us.
                let undone = unsafe { self.remove(range) };
                return Err(undone.map_or_else(
                    |unmap| unmap.cause.into(),
                    |()| TranslationError::from(error).into(),
                ));
            }
            Ok(())
        })
    }

    /// Unmaps a range that is mapped as a whole. When this returns `Ok` no device reaches the
    /// memory through it any more.
    ///
    /// # Errors
    /// [`DomainError`]: misaligned, a hole in the range, or a large page that the range cuts;
    /// nothing is then changed. [`DomainError::Translation`] with a time-out: the memory must never
    /// be reused, and the domain is poisoned.
    ///
    /// # Safety
    /// The caller owns the mappings in the range: ending them breaks nobody.
    pub unsafe fn unmap(&self, range: IovaRange) -> Result<(), DomainError> {
        self.checked_range(range.start(), range.len())?;
        self.exclusively(range, || {
            if self.translation.mapped_bytes(range) < range.len() {
                return Err(DomainError::Range {
                    range,
                    reason: "not all of it is mapped: unmap what was mapped",
                });
            }
            // SAFETY: no other change of the range is under way, and the mappings are the caller's.
            unsafe { self.remove(range) }.map_err(|error| error.cause.into())
        })
    }

    /// Leaves the poisoned state after the hardware was reset or has recovered: programs the streams
    /// again and drops all that is cached. From then on every unmap is complete that ended with an
    /// error because its invalidation failed, and the memory may be reused.
    ///
    /// # Errors
    /// [`DomainError::Translation`]: the domain stays poisoned. [`DomainError::Range`] while another
    /// call is mapping or unmapping.
    pub fn recover(&self) -> Result<(), DomainError> {
        let all = self.geometry().aperture;
        self.exclusively(all, || {
            self.translation.resume()?;
            self.translation.invalidate(&Invalidation::ALL).map_err(TranslationError::from)?;
            // SAFETY: an invalidation of everything has completed, no change is under way, and only
            // what an unmap has detached is freed.
            unsafe { self.translation.reap(all) };
            self.leaked.store(0, Ordering::Relaxed);
            self.poisoned.store(false, Ordering::Release);
            Ok(())
        })
    }

    /// # Safety
    /// No other change of the range is under way.
    unsafe fn remove(&self, range: IovaRange) -> Result<(), UnmapError> {
        // SAFETY: the caller's promise.
        let unmapped = unsafe { self.translation.unmap(range, Hint::NONE) }
            .map_err(|cause| UnmapError { range, cause })?;
        let request = Invalidation { range: Some(range), tables: unmapped.tables };
        if let Err(error) = self.translation.invalidate(&request) {
            self.poison(range);
            return Err(UnmapError { range, cause: error.into() });
        }
        if unmapped.tables {
            // SAFETY: the covering invalidation has completed.
            unsafe { self.translation.reap(range) };
        }
        Ok(())
    }

    fn poison(&self, range: IovaRange) {
        self.leaked.fetch_add(range.len(), Ordering::Relaxed);
        self.poisoned.store(true, Ordering::Release);
    }

    /// Runs `change` while no other change of an overlapping range is under way.
    fn exclusively<R>(
        &self,
        range: IovaRange,
        change: impl FnOnce() -> Result<R, DomainError>,
    ) -> Result<R, DomainError> {
        while !self.begin_change(range)? {
            self.platform.relax(); // More threads than CPUs are inside: one of them will be done.
        }
        let result = change();
        let mut changes = self.changes.lock();
        if let Some(index) = changes.iter().position(|other| *other == range) {
            changes.swap_remove(index);
        }
        result
    }

    /// Enters a range into the list; `false` if that is full.
    fn begin_change(&self, range: IovaRange) -> Result<bool, DomainError> {
        let mut changes = self.changes.lock();
        if changes.iter().any(|other| other.overlaps(&range)) {
            return Err(DomainError::Range {
                range,
                reason: "another call is changing it at this moment",
            });
        }
        let room = changes.len() < changes.capacity();
        if room {
            changes.push(range);
        }
        Ok(room)
    }

    fn checked_range(&self, iova: Iova, len: u64) -> Result<IovaRange, DomainError> {
        for value in [iova.raw(), len] {
            if !self.granule.divides(value) {
                return Err(DomainError::Misaligned { value, granule: self.granule });
            }
        }
        let aperture = self.geometry().aperture;
        match IovaRange::new(iova, len) {
            Ok(range) if aperture.contains_range(&range) => Ok(range),
            _ => Err(DomainError::Range {
                range: aperture,
                reason: "this is all that the IOMMU translates",
            }),
        }
    }

    /// What an address means now.
    pub fn resolve(&self, iova: Iova) -> Option<Resolved> {
        self.translation.resolve(iova)
    }

    /// Attaches a stream.
    ///
    /// # Errors
    /// [`TranslationError`]; the stream is then as it was.
    pub fn attach(&self, stream: Stream) -> Result<(), TranslationError> {
        // SAFETY: the translation's drop detaches what is left before it frees a table.
        unsafe { self.translation.attach(stream) }.map(|_| ())
    }

    /// Blocks a stream.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: the stream may reach what is mapped.
    pub fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        self.translation.detach(stream)
    }
}
