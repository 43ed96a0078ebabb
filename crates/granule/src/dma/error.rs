//! Why the DMA API refuses.

use alloc::string::String;

use crate::addr::{Granule, PhysRange};
use crate::bounce::BounceError;
use crate::domain::{DomainError, StreamError, TranslationError, UnitError};
use crate::mem::FrameError;

/// Why a device could not be attached or set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// A stream or the domain refused.
    #[error("{device}: {cause}")]
    Stream {
        /// The device.
        device: String,
        /// What was refused.
        cause: StreamError,
    },
    /// The mask leaves no address that the route reaches.
    #[error(
        "{device}: its {kind} mask {mask:#x} ends below the first address it can use, {first:#x}"
    )]
    Mask {
        /// The device.
        device: String,
        /// Which of its masks: "streaming" or "coherent".
        kind: &'static str,
        /// The mask.
        mask: u64,
        /// The first address of its window.
        first: u64,
    },
    /// The window of emitted addresses does not fit what the IOMMU's table indexes.
    #[error(
        "{device}: the addresses {first:#x}..={last:#x} that it emits do not fit the {bits} bits \
         that its IOMMU's table indexes"
    )]
    Window {
        /// The device.
        device: String,
        /// The window's first address.
        first: u64,
        /// The window's last address.
        last: u64,
        /// The bits that the table indexes.
        bits: u32,
    },
    /// The boundary is not a power of two.
    #[error("{device}: a segment boundary of {boundary:#x} bytes is not a power of two")]
    Boundary {
        /// The device.
        device: String,
        /// The boundary.
        boundary: u64,
    },
    /// The maximum segment size is zero.
    #[error("{device}: segments of at most 0 bytes can carry nothing")]
    NoSegment {
        /// The device.
        device: String,
    },
    /// Nothing stands between an untrusted device and memory.
    #[error("{device} is not trusted, and {reason}: put it behind an IOMMU")]
    Untrusted {
        /// The device.
        device: String,
        /// Why it could reach what it was not given.
        reason: TrustReason,
    },
    /// A direct device without a window onto memory.
    #[error("{device} has no window onto memory: its bus needs dma-ranges")]
    NoWindow {
        /// The device.
        device: String,
    },
    /// A device behind an IOMMU without a stream.
    #[error("{device} has no stream: nothing of it would reach the IOMMU")]
    NoStream {
        /// The device.
        device: String,
    },
    /// Its streams lie at IOMMUs of which one maps only pages larger than a bounce pool can align
    /// to, or similar.
    #[error("{device}: {cause}")]
    Domain {
        /// The device.
        device: String,
        /// What was refused.
        cause: DomainError,
    },
    /// The hardware refused to let the device through.
    #[error("{device}: {cause}")]
    Bypass {
        /// The device.
        device: String,
        /// What was refused.
        cause: TranslationError,
    },
}

/// Why a device could not be detached; it is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DetachError {
    /// Mappings are live.
    #[error("{device} has {live} live mappings: unmap them first")]
    Live {
        /// The device.
        device: String,
        /// How many.
        live: u64,
    },
    /// Other handles of the device exist.
    #[error("{device} is in use through {handles} other handles: drop them first")]
    Shared {
        /// The device.
        device: String,
        /// How many.
        handles: usize,
    },
}

/// Why a mapping was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// Nothing to map.
    #[error("{device}: a mapping of 0 bytes has no address")]
    Empty {
        /// The device.
        device: String,
    },
    /// Memory that the CPU caches cannot be coherent for a device that does not snoop.
    #[error(
        "{device} does not snoop, and the CPU caches this memory: allocate it for {device}, then map it for others"
    )]
    Cached {
        /// The device.
        device: String,
    },
    /// Lengths that do not add up in 64 bits.
    #[error("{device}: the lengths add up to more than 2^64 bytes")]
    TooLong {
        /// The device.
        device: String,
    },
    /// The domain refused.
    #[error("{device}: {cause}")]
    Domain {
        /// The device.
        device: String,
        /// What was refused.
        cause: DomainError,
    },
    /// The memory must go through a bounce buffer, and there is none for this device.
    #[error(
        "{device}: {reason}, and it has no bounce pool: align the buffer, or give the device a pool"
    )]
    NoBounce {
        /// The device.
        device: String,
        /// Why the memory cannot be mapped as it is.
        reason: BounceReason,
    },
    /// The memory must go through a bounce buffer, and the pool refused.
    #[error("{device}: {reason}, and the bounce pool refused: {cause}")]
    Bounce {
        /// The device.
        device: String,
        /// Why the memory cannot be mapped as it is.
        reason: BounceReason,
        /// Why it could not be bounced.
        cause: BounceError,
    },
    /// An entry of a scatter list is longer than the device's longest segment.
    #[error("{device}: entry {index} has {len} bytes, a segment takes at most {max}: split it")]
    Segment {
        /// The device.
        device: String,
        /// Which entry.
        index: usize,
        /// Its length in bytes.
        len: u64,
        /// The longest segment in bytes.
        max: u64,
    },
    /// An entry of a scatter list cannot be placed without crossing the device's boundary.
    #[error(
        "{device}: entry {index} of {len} bytes would cross a {boundary:#x}-byte boundary wherever it lies: split it"
    )]
    Boundary {
        /// The device.
        device: String,
        /// Which entry.
        index: usize,
        /// Its length in bytes.
        len: u64,
        /// The boundary in bytes.
        boundary: u64,
    },
    /// Another device's registers cannot be bounced.
    #[error(
        "{device} is not trusted, and the registers at {range} are not whole granules of {granule}: \
         what lies beside them would be exposed, and registers cannot be bounced"
    )]
    Resource {
        /// The device.
        device: String,
        /// The registers.
        range: PhysRange,
        /// The granule.
        granule: Granule,
    },
    /// A direct device cannot reach what it should.
    #[error("{device} cannot reach {range} from its bus")]
    Unreachable {
        /// The device.
        device: String,
        /// The memory or registers.
        range: PhysRange,
    },
    /// Coherent memory was not to be padded, and its length is not whole granules.
    #[error("{device}: {len} bytes are not whole granules of {granule}, and padding was excluded")]
    Padding {
        /// The device.
        device: String,
        /// The length in bytes.
        len: u64,
        /// The granule.
        granule: Granule,
    },
    /// No physical memory.
    #[error("{device}: {cause}")]
    Frames {
        /// The device.
        device: String,
        /// Why.
        cause: FrameError,
    },
    /// The memory is in pieces, and the device needs one block.
    #[error("{device} is not translated: it cannot see {blocks} blocks of memory as one range")]
    NotContiguous {
        /// The device.
        device: String,
        /// How many blocks there are.
        blocks: usize,
    },
    /// A block of memory is not aligned to the granule, so that it cannot be part of a contiguous
    /// range.
    #[error("{device}: the block {block} is not whole granules of {granule}")]
    BlockAlignment {
        /// The device.
        device: String,
        /// The block.
        block: PhysRange,
        /// The granule.
        granule: Granule,
    },
    /// The device is not translated, so there is no IOVA to reserve.
    #[error("{device} is not translated: it has no address space to reserve from")]
    NotTranslated {
        /// The device.
        device: String,
    },
    /// A piece linked into a reservation does not fit there.
    #[error("{device}: a piece of {len} bytes at offset {offset:#x} {reason}")]
    Link {
        /// The device.
        device: String,
        /// Where it should go, in bytes from the start of the reservation.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A part that does not lie inside the mapping.
    #[error("{device}: bytes {offset:#x} to {end:#x} are not inside the mapping of {len:#x} bytes")]
    OutOfBounds {
        /// The device.
        device: String,
        /// The first byte.
        offset: u64,
        /// The byte past the last.
        end: u64,
        /// The mapping's length.
        len: u64,
    },
    /// The CPU wants to write to a buffer that was given for reading.
    #[error("{device} reads this buffer, which may be shared: unmap it before writing")]
    ReadOnly {
        /// The device.
        device: String,
    },
    /// The memory belongs to another machine.
    #[error("{device} is a device of another machine than the memory")]
    OtherMachine {
        /// The device.
        device: String,
    },
    /// The hardware did not answer.
    #[error("{device}: {cause}")]
    Unit {
        /// The device.
        device: String,
        /// What happened.
        cause: UnitError,
    },
}

/// Why memory cannot be mapped where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BounceReason {
    /// The buffer does not fill its granules, and the device is not trusted.
    #[error("the buffer does not fill its granules and the device is not trusted")]
    Exposure,
    /// The buffer shares cache lines with other data, and the device does not snoop.
    #[error("the buffer shares a cache line with other data and the device does not snoop")]
    CacheLine,
    /// The device cannot reach the memory.
    #[error("the device cannot reach the buffer's memory")]
    OutOfReach,
    /// The memory has no physical address known to the platform.
    #[error("the buffer's physical address is unknown")]
    NoPhysical,
    /// The memory is in pieces that do not join at granules.
    #[error("the buffer lies in pieces that do not join at granules")]
    Scattered,
    /// The entry would cross a segment boundary where it lies.
    #[error("the entry crosses a segment boundary")]
    Boundary,
}

/// Why an untrusted device cannot be kept to what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustReason {
    /// No IOMMU translates it.
    #[error("it is directly on the bus, from where it reaches all memory")]
    Direct,
    /// Its IOMMU would let it through.
    #[error("a bypassed stream reaches all memory")]
    Bypass,
    /// Its domain maps all memory one to one.
    #[error("an identity domain maps all memory")]
    Identity,
}

impl DmaError {
    /// Whether the memory of the failed call may still be reached by the device, and is leaked.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Domain { cause, .. } if cause.is_stale())
    }
}
