//! The contract between a domain and one piece of IOMMU hardware.
//!
//! A driver implements [`Unit`] on its registers and queues; the domain brings the page tables.
//! Translations that have no table of ours (virtio-iommu, VFIO, iommufd) implement
//! [`Translation`](super::Translation) instead.

use alloc::string::String;
use alloc::vec::Vec;

use crate::addr::{IovaRange, PageSizes, PhysAddr};
use crate::table::{FormatId, TableLayout};

/// What a device's transactions carry at one IOMMU: an id, and the bits of it that are ignored.
///
/// Two streams overlap if some transaction matches both; such devices form a group and can only
/// share one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// The id: a DART's stream, an SMMU's StreamID, a PCI requester id.
    pub id: u32,
    /// Bits set here are not compared (SMMUv2's SMR mask); 0 for exact match.
    pub mask: u32,
}

impl StreamId {
    /// The stream with exactly this id.
    pub const fn exact(id: u32) -> Self {
        Self { id, mask: 0 }
    }

    /// Whether some transaction could belong to both.
    pub const fn overlaps(self, other: Self) -> bool {
        (self.id ^ other.id) & !(self.mask | other.mask) == 0
    }
}

impl core::fmt::Display for StreamId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.mask {
            0 => write!(f, "{:#x}", self.id),
            mask => write!(f, "{:#x} (mask {mask:#x})", self.id),
        }
    }
}

/// What a unit is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// Its name in messages and reports.
    pub name: String,
    /// The table formats that it walks.
    pub formats: Vec<FormatId>,
    /// The width of the addresses that its tables index, in bits.
    pub input_bits: u32,
    /// The width of the physical addresses that it puts out, in bits.
    pub output_bits: u32,
    /// The page sizes that it translates, of those that the formats have; every bit set if nothing
    /// is missing.
    pub page_sizes: PageSizes,
    /// Whether its walker snoops the CPU's caches; if not, every table entry is cleaned.
    pub coherent_walk: bool,
    /// Whether it caches the absence of an entry, so that a new mapping needs an invalidation too
    /// (VT-d's caching mode).
    pub caches_absent: bool,
    /// Whether a stream can be let through untranslated.
    pub can_bypass: bool,
}

/// What must be forgotten by an IOMMU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The range, or `None` for the whole address space.
    pub range: Option<IovaRange>,
    /// Whether page tables were unlinked: caches of table pointers must be dropped too, not only
    /// those of leaf entries.
    pub tables: bool,
}

impl Invalidation {
    /// Everything, walk caches included.
    pub const ALL: Self = Self { range: None, tables: true };

    /// The leaf entries of a range.
    pub const fn leaves(range: IovaRange) -> Self {
        Self { range: Some(range), tables: false }
    }
}

/// What hardware answered instead of doing as it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// An invalidation did not complete in time: what it covered may still be reached.
    #[error("{unit}: an invalidation did not complete; what it covers stays in quarantine")]
    Timeout {
        /// The unit.
        unit: String,
    },
    /// The unit has no such stream.
    #[error("{unit} has no stream {stream}: it has {limit} of them")]
    NoSuchStream {
        /// The unit.
        unit: String,
        /// The stream asked for.
        stream: StreamId,
        /// How many it has.
        limit: u32,
    },
    /// The unit cannot walk such tables.
    #[error("{unit} does not walk {format} tables of {input_bits} input bits")]
    Unsupported {
        /// The unit.
        unit: String,
        /// The format offered.
        format: FormatId,
        /// The width of the addresses that the tables index.
        input_bits: u32,
    },
    /// A stream's table base or bypass bit is locked.
    #[error(
        "{unit}: stream {stream} is locked by firmware, it can neither be rerouted nor bypassed"
    )]
    Locked {
        /// The unit.
        unit: String,
        /// The stream.
        stream: StreamId,
    },
    /// The unit cannot let a stream through untranslated.
    #[error("{unit} cannot bypass: give stream {stream} a domain")]
    NoBypass {
        /// The unit.
        unit: String,
        /// The stream.
        stream: StreamId,
    },
    /// The unit ran out of contexts (ASIDs, domain ids, stream table entries).
    #[error("{unit} has no free {what} left")]
    Exhausted {
        /// The unit.
        unit: String,
        /// What ran out.
        what: &'static str,
    },
    /// The unit refused something that should have been right.
    #[error("{unit} refused {what} (code {code:#x})")]
    Refused {
        /// The unit.
        unit: String,
        /// What it refused.
        what: &'static str,
        /// What it answered, as its specification numbers it.
        code: u32,
    },
}

/// One IOMMU of a machine, which walks tables of ours.
///
/// All methods take `&self` and may be called from several CPUs at once.
///
/// # Safety
///
/// Law 3 rests on these promises:
///
/// * When [`invalidate`](Self::invalidate) returns `Ok`, no transaction of the context's streams
///   uses a cached entry that the request covers, and those that used one have completed. If that
///   is not certain, it returns an error.
/// * When [`detach`](Self::detach) returns `Ok`, the stream reaches nothing through the context:
///   new transactions fault and old ones have completed.
/// * A stream that was never attached or bypassed reaches nothing (except through a root that
///   firmware locked, see [`locked_roots`](Self::locked_roots)).
/// * Tables are only walked for attached streams, by the layout that [`open`](Self::open) was given.
pub unsafe trait Unit: Send + Sync + 'static {
    /// The hardware's handle of one address space: an ASID, a domain id, a set of streams.
    type Context: Send + Sync + 'static;

    /// What the unit is and can do. Constant.
    fn info(&self) -> &UnitInfo;

    /// The roots that firmware left in a stream whose table base is locked, empty if it is not.
    fn locked_roots(&self, stream: StreamId) -> Vec<PhysAddr>;

    /// Makes an address space out of tables; no stream uses it yet.
    ///
    /// # Errors
    /// [`UnitError::Unsupported`] or [`UnitError::Exhausted`].
    fn open(&self, tables: &TableLayout) -> Result<Self::Context, UnitError>;

    /// Gives an address space back. All its streams are detached.
    fn close(&self, context: &Self::Context);

    /// Routes a stream through the context. For a locked stream the root stays as it is: the
    /// context's entries were mirrored into it before.
    ///
    /// # Errors
    /// [`UnitError`]; the stream is then as it was.
    ///
    /// # Safety
    /// The tables behind the context stay valid until the stream is detached.
    unsafe fn attach(&self, context: &Self::Context, stream: StreamId) -> Result<(), UnitError>;

    /// Blocks a stream of the context and drops what is cached for it.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: the stream may still reach what the context maps.
    fn detach(&self, context: &Self::Context, stream: StreamId) -> Result<(), UnitError>;

    /// Lets a stream through untranslated (`on`), or blocks it.
    ///
    /// # Errors
    /// [`UnitError::NoBypass`], [`UnitError::Locked`], [`UnitError::NoSuchStream`].
    ///
    /// # Safety
    /// A bypassed stream reaches all memory: the caller vouches for the device.
    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError>;

    /// Drops what is cached of the context and returns when that is done.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: nothing may be assumed to be dropped.
    fn invalidate(&self, context: &Self::Context, request: &Invalidation) -> Result<(), UnitError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_make_streams_overlap() {
        let a = StreamId { id: 0x840, mask: 0x400 };
        assert!(a.overlaps(StreamId::exact(0xc40)));
        assert!(!a.overlaps(StreamId::exact(0x841)));
        assert!(StreamId::exact(3).overlaps(StreamId::exact(3)));
        assert!(StreamId { id: 0, mask: u32::MAX }.overlaps(StreamId::exact(77)));
    }
}
