//! The contract between a domain and whatever translates for it.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Invalidation, StreamId, TranslationError, UnitError};
use crate::addr::{Attributes, Iova, IovaRange, PageSizes, PhysRange};
use crate::table::{Fence, Hint, Resolved, TableLayout, Unmapped};

/// What a translation can map. Constant for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The page sizes; the smallest is the granule. Not empty.
    pub page_sizes: PageSizes,
    /// The addresses that it translates.
    pub aperture: IovaRange,
    /// The physical addresses that it can put out.
    pub output: PhysRange,
    /// The step in which a leaf can be fenced to a part of its granule, in bytes; 0 if it cannot.
    pub fence_unit: u64,
    /// Whether the bits above the aperture's of what a device emits are ignored (DART), so that a
    /// device whose addresses all have the same ones there is served.
    pub upper_bits_ignored: bool,
}

/// One stream of a device, at one of a translation's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Which unit of the translation: the index in the order in which they were given.
    pub unit: usize,
    /// The stream at that unit.
    pub id: StreamId,
}

impl Stream {
    /// The stream `id` of the only, or first, unit.
    pub const fn new(id: u32) -> Self {
        Self { unit: 0, id: StreamId::exact(id) }
    }

    /// The same stream at the unit with this index.
    #[must_use]
    pub const fn at_unit(mut self, unit: usize) -> Self {
        self.unit = unit;
        self
    }
}

/// What an attached stream brought along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// IOVA ranges that firmware's own entries occupy in a locked root: nobody may allocate there.
    pub firmware: Vec<IovaRange>,
}

/// One IOMMU behind a translation, as a report shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitReport {
    /// The unit's name.
    pub name: String,
    /// The tables that it walks, if they are ours.
    pub layout: Option<TableLayout>,
}

/// What an IOMMU backend implements: a way to make IOVAs mean physical memory, and to end that.
///
/// A page table with an invalidator is one ([`Paged`](super::Paged)); so is a hypervisor's or a
/// kernel's interface that keeps the tables to itself.
///
/// # Safety
///
/// * An IOVA translates to what [`map`](Self::map) said and nothing else, until
///   [`unmap`](Self::unmap); after `unmap` and a covering [`invalidate`](Self::invalidate) that
///   returned `Ok`, no device reaches the memory through it.
/// * A failed `map`, `map_list`, `attach` leaves no reachable mapping behind that was not there
///   before.
/// * `unmap`, `invalidate` and `reap` do not allocate.
pub unsafe trait Translation: Send + Sync + 'static {
    /// What can be mapped.
    fn geometry(&self) -> &Geometry;

    /// Maps whole granules.
    ///
    /// # Errors
    /// [`TranslationError`]; nothing is then mapped that was not before.
    ///
    /// # Safety
    /// `iova` and as much as `phys` is long are the caller's own and unmapped; the memory stays
    /// allocated until it was unmapped and invalidated.
    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError>;

    /// How many granules at most [`try_map`](Self::try_map) is worth a call for. Constant for its life.
    fn few(&self) -> u64 {
        0
    }

    /// As [`map`](Self::map) with [`sync_map`](Self::sync_map), if that takes a few entries in a table
    /// that exists and no more. `None` if it takes more, or cannot be done: then nothing was done.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    #[inline(always)]
    unsafe fn try_map(&self, iova: Iova, phys: PhysRange, attrs: Attributes) -> Option<Hint> {
        let _ = (iova, phys, attrs);
        None
    }

    /// Maps whole granules with the first and last ones fenced to a part of themselves.
    ///
    /// # Errors
    /// As [`map`](Self::map), and [`TranslationError::Unsupported`] where
    /// [`Geometry::fence_unit`] is 0.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    unsafe fn map_fenced(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
        fence: Fence,
    ) -> Result<Hint, TranslationError> {
        let _ = (iova, phys, attrs, fence);
        Err(TranslationError::Unsupported { what: "fences inside a granule" })
    }

    /// Maps pieces of whole granules one behind the other from `iova` on.
    ///
    /// # Errors
    /// As [`map`](Self::map); none of the pieces is then mapped.
    ///
    /// # Safety
    /// As [`map`](Self::map), for all pieces together.
    unsafe fn map_list<I>(
        &self,
        iova: Iova,
        pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = PhysRange> + Clone;

    /// As [`map_list`](Self::map_list), for pieces that were checked already: whole granules inside
    /// [`Geometry::output`] that fill `range`. A translation may then spare itself another look.
    ///
    /// # Errors
    /// As [`map_list`](Self::map_list).
    ///
    /// # Safety
    /// As [`map_list`](Self::map_list), and the pieces are what is said of them, each time that they are
    /// looked at.
    #[inline]
    unsafe fn map_checked_list<I>(
        &self,
        range: IovaRange,
        pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        // SAFETY: the caller's promise.
        unsafe { self.map_list(range.start(), pieces, attrs) }
    }

    /// Makes new mappings visible where the hardware caches the absence of entries.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: a device may still see the range as unmapped.
    fn sync_map(&self, range: IovaRange) -> Result<(), UnitError> {
        let _ = range;
        Ok(())
    }

    /// Removes all mappings of a range; holes are skipped. The device may reach the memory until
    /// [`invalidate`](Self::invalidate) has returned.
    ///
    /// # Errors
    /// [`TranslationError::Table`] if the range cuts a large page; nothing is then changed.
    ///
    /// # Safety
    /// The range is the caller's own. `hint` came from the `map` of exactly this range or is
    /// [`Hint::NONE`].
    unsafe fn unmap(&self, range: IovaRange, hint: Hint) -> Result<Unmapped, TranslationError>;

    /// Drops what IOMMUs have cached, and returns when that is done.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: nothing may be assumed to be dropped.
    fn invalidate(&self, request: &Invalidation) -> Result<(), UnitError>;

    /// Frees the table pages that `unmap` of this range unlinked.
    ///
    /// # Safety
    /// An invalidation that covers `range` with [`Invalidation::tables`] set has completed since,
    /// and the range is the caller's own.
    unsafe fn reap(&self, range: IovaRange) {
        let _ = range;
    }

    /// What an IOVA translates to now.
    fn resolve(&self, iova: Iova) -> Option<Resolved>;

    /// Calls `visit` with the IOVA and size of every page mapped in `range`.
    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64));

    /// How many bytes of `range` are mapped.
    ///
    /// Asks for every page, unless an implementation knows better: one that notes requests need not
    /// look at each of the pages of a request.
    fn mapped_bytes(&self, range: IovaRange) -> u64 {
        let mut mapped = 0u64;
        self.for_each_page(range, &mut |at, size| {
            let inside = IovaRange::new(at, size).ok().and_then(|page| page.intersection(&range));
            mapped = mapped.saturating_add(inside.map_or(0, |part| part.len()));
        });
        mapped
    }

    /// How many pages of page table are allocated.
    fn table_pages(&self) -> usize {
        0
    }

    /// The IOMMUs behind this translation.
    fn units(&self) -> Vec<UnitReport>;

    /// Routes a stream through this translation.
    ///
    /// # Errors
    /// [`TranslationError`]; the stream is then as it was.
    ///
    /// # Safety
    /// The translation outlives the attachment: it is not dropped before
    /// [`detach`](Self::detach).
    unsafe fn attach(&self, stream: Stream) -> Result<Attached, TranslationError>;

    /// Blocks a stream.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: the stream may reach what is mapped; the translation keeps its
    /// tables for ever.
    fn detach(&self, stream: Stream) -> Result<(), UnitError>;

    /// Programs the hardware again after it lost its state (resume): all attached streams, from
    /// what this translation holds.
    ///
    /// # Errors
    /// [`TranslationError`] of the first stream that could not be attached again; it and those
    /// behind it are blocked.
    fn resume(&self) -> Result<(), TranslationError>;
}
