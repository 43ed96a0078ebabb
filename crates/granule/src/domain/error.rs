//! What can go wrong between a domain and its hardware.

use alloc::string::String;

use super::{StreamId, UnitError};
use crate::addr::{Granule, IovaRange, PageSizes, PhysRange};
use crate::iova::IovaError;
use crate::table::{FormatId, TableError};

/// Why a translation refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TranslationError {
    /// The page table refused.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The hardware refused.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// This translation cannot do that.
    #[error("this translation does not support {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// The stream names a unit that the translation does not have.
    #[error("the translation has {count} IOMMUs, there is none with index {unit}")]
    NoSuchUnit {
        /// The index asked for.
        unit: usize,
        /// How many there are.
        count: usize,
    },
    /// The stream overlaps one that is in another domain: the two form a group.
    #[error(
        "{unit}: stream {stream} overlaps stream {other}, which is in another domain: \
         devices that share streams form a group and need one domain"
    )]
    Group {
        /// The unit.
        unit: String,
        /// The stream to be attached.
        stream: StreamId,
        /// The stream that is attached elsewhere.
        other: StreamId,
    },
    /// Two IOMMUs of one translation have no page size in common.
    #[error(
        "{first} maps {first_sizes}, {second} maps {second_sizes}: no common page size, one domain cannot span both"
    )]
    NoCommonPageSize {
        /// One unit.
        first: String,
        /// Its page sizes.
        first_sizes: PageSizes,
        /// The other.
        second: String,
        /// Its page sizes.
        second_sizes: PageSizes,
    },
    /// An IOMMU does not walk the format asked for.
    #[error("{unit} does not walk {format} tables")]
    Format {
        /// The unit.
        unit: String,
        /// The format.
        format: FormatId,
    },
    /// A backend whose tables are not ours refused, in its own words.
    #[error("{unit}: {reason}")]
    Backend {
        /// What refused.
        unit: String,
        /// What it answered, as its interface numbers it; 0 if it was not asked.
        code: u32,
        /// What that means here, with the numbers, and what to do.
        reason: String,
    },
    /// No IOMMU was given.
    #[error("a translation needs at least one IOMMU")]
    NoUnit,
}

/// Why a domain refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// No address range could be had.
    #[error(transparent)]
    Iova(#[from] IovaError),
    /// The translation refused.
    #[error(transparent)]
    Translation(#[from] TranslationError),
    /// An invalidation failed earlier: what it covered is leaked, and nothing new is mapped.
    #[error(
        "the domain is poisoned: an invalidation did not complete. Reset the IOMMU, then call recover()"
    )]
    Poisoned,
    /// The mapping would let devices see bytes beside it, and one of them is not trusted.
    #[error(
        "{bytes} bytes beside the mapping would be exposed, and the domain has a device that is not \
         trusted: map whole granules, or bounce"
    )]
    Exposes {
        /// How many bytes.
        bytes: u64,
    },
    /// A map failed, and so did the invalidation of what it had written: memory and IOVA stay in
    /// quarantine for ever, and the domain is poisoned.
    #[error(
        "{cause}; the device may have seen the memory, and was not made to forget it: it is never reused"
    )]
    Stale {
        /// Why the map failed.
        cause: TranslationError,
    },
    /// The granule is larger than the CPU's page and the owner of an unmanaged domain did not
    /// opt in.
    #[error(
        "the IOMMU's granule ({granule}) is larger than the CPU page ({cpu_page}): \
         an unmanaged domain of it needs allow_large_granule"
    )]
    LargeGranule {
        /// The granule.
        granule: Granule,
        /// The CPU's page.
        cpu_page: Granule,
    },
    /// Memory lies where the IOMMU cannot put out addresses.
    #[error("physical memory {memory} is beyond what the IOMMU can address ({output})")]
    OutOfReach {
        /// The memory.
        memory: PhysRange,
        /// What the IOMMU reaches.
        output: PhysRange,
    },
    /// Memory is longer or shorter than its placement.
    #[error("{memory:#x} bytes of memory for a placement of {size:#x}: they must be the same")]
    Length {
        /// The placement's bytes.
        size: u64,
        /// The memory's bytes.
        memory: u64,
    },
    /// A piece begins before the one ahead of it ends, or is not all inside the placement.
    #[error(
        "a piece of {len:#x} bytes at offset {offset:#x} of a placement of {size:#x} bytes: \
         order the pieces by offset, without overlap, and inside the placement"
    )]
    Piece {
        /// The piece's offset in the placement.
        offset: u64,
        /// The piece's bytes.
        len: u64,
        /// The placement's bytes.
        size: u64,
    },
    /// A range of an unmanaged domain is in use, reserved, or not mapped where it should be.
    #[error("IOVA range {range}: {reason}")]
    Range {
        /// The range.
        range: IovaRange,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A range is not made of whole granules.
    #[error("{value:#x} is not a multiple of the granule ({granule})")]
    Misaligned {
        /// The address or length.
        value: u64,
        /// The granule.
        granule: Granule,
    },
}

impl DomainError {
    /// Whether the memory of the failed call must never be reused.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Stale { .. })
    }
}
