//! An IOMMU under test, and ways to break its driver on purpose.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::error::Error;

use granule::addr::{Access, Attributes, Iova, IovaRange, PhysRange};
use granule::domain::{
    Attached, Domain, DomainConfig, Geometry, Invalidation, InvalidationPolicy, Reserved, Stream,
    Translation, TranslationError, UnitError, UnitReport,
};
use granule::table::{Hint, Resolved, Unmapped};
use granule_hw::FaultEvent;

use crate::platform::Lab;

/// Why something could not be done.
pub(crate) type Failure = Box<dyn Error>;

/// What each kind of IOMMU brings: the scenario is the same for all.
pub(crate) trait Rig {
    /// What translates.
    type Translation: Translation;

    /// A translation of its own, in which nothing is mapped.
    fn translation(&self) -> Result<Self::Translation, Failure>;

    /// The stream of the PCI function with this requester id.
    fn stream(&self, rid: u16) -> Result<Stream, Failure>;

    /// Ranges that are not for allocation in a domain of that function.
    fn reserved(&self, rid: u16) -> Result<Vec<Reserved>, Failure>;

    /// The smallest page that domains use, in bytes, where that is not the translation's own.
    fn smallest_page(&self) -> u64 {
        0
    }

    /// A page size that has to be used where memory allows, or 0.
    fn large_page(&self) -> u64;

    /// Whether an entry can be written that lets a device write and not read.
    fn write_only(&self) -> bool;

    /// Hands over the faults that the hardware recorded since the last call.
    fn take_faults(&self, each: &mut dyn FnMut(FaultEvent));

    /// Whether the emulated hardware records faults at all.
    fn records_faults(&self) -> bool;
}

/// A domain of a rig.
pub(crate) type RigDomain<R> = Domain<Lab, Saboteur<<R as Rig>::Translation>>;

/// A domain for one function.
pub(crate) fn domain<R: Rig>(
    rig: &R,
    sabotage: Option<Sabotage>,
    rid: u16,
    policy: InvalidationPolicy,
) -> Result<Arc<RigDomain<R>>, Failure> {
    let inner = rig.translation()?;
    let mut geometry = inner.geometry().clone();
    let sizes = geometry.page_sizes.iter().filter(|size| *size >= rig.smallest_page());
    geometry.page_sizes = sizes.collect();
    let translation = Saboteur { inner, geometry, sabotage };
    let config = DomainConfig { policy, reserved: rig.reserved(rid)?, window: None };
    Ok(Domain::new(&Lab, translation, &config)?)
}

/// How to break a driver: the checks have to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Invalidations of mappings do not reach the hardware.
    SkipInvalidate,
    /// What may be read may be written instead, and the other way round.
    SwapRights,
}

impl Sabotage {
    /// The one that the command line names.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "skip-invalidate" => Some(Self::SkipInvalidate),
            "swap-rights" => Some(Self::SwapRights),
            _ => None,
        }
    }
}

/// A translation that does as it is told, or not quite.
pub(crate) struct Saboteur<T> {
    inner: T,
    /// The inner one's, with the page sizes that the row is about.
    geometry: Geometry,
    sabotage: Option<Sabotage>,
}

impl<T> Saboteur<T> {
    fn attributes(&self, mut attributes: Attributes) -> Attributes {
        let swapped = match attributes.access {
            access if access == Access::READ => Access::WRITE,
            access if access == Access::WRITE => Access::READ,
            both => both,
        };
        if self.sabotage == Some(Sabotage::SwapRights) {
            attributes.access = swapped;
        }
        attributes
    }
}

// SAFETY: without sabotage every call goes to a translation that keeps the promises. With it they
// are broken on purpose, in a machine that holds nothing but the scenario's own memory, which
// devices are made to touch only where the scenario looks.
unsafe impl<T: Translation> Translation for Saboteur<T> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.map(iova, phys, self.attributes(attrs)) }
    }

    unsafe fn map_list<I>(
        &self,
        iova: Iova,
        pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        // SAFETY: the caller's promise.
        unsafe { self.inner.map_list(iova, pieces, self.attributes(attrs)) }
    }

    fn sync_map(&self, range: IovaRange) -> Result<(), UnitError> {
        self.inner.sync_map(range)
    }

    unsafe fn unmap(&self, range: IovaRange, hint: Hint) -> Result<Unmapped, TranslationError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.unmap(range, hint) }
    }

    fn invalidate(&self, request: &Invalidation) -> Result<(), UnitError> {
        match self.sabotage {
            Some(Sabotage::SkipInvalidate) => Ok(()),
            _ => self.inner.invalidate(request),
        }
    }

    unsafe fn reap(&self, range: IovaRange) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.reap(range) };
    }

    fn resolve(&self, iova: Iova) -> Option<Resolved> {
        self.inner.resolve(iova)
    }

    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64)) {
        self.inner.for_each_page(range, visit);
    }

    fn table_pages(&self) -> usize {
        self.inner.table_pages()
    }

    fn units(&self) -> Vec<UnitReport> {
        self.inner.units()
    }

    unsafe fn attach(&self, stream: Stream) -> Result<Attached, TranslationError> {
        // SAFETY: the caller's promise: this, and with it what it wraps, outlives the attachment.
        unsafe { self.inner.attach(stream) }
    }

    fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        self.inner.detach(stream)
    }

    fn resume(&self) -> Result<(), TranslationError> {
        self.inner.resume()
    }
}
