//! Why devices cannot share: always with their names and the constraint.

use alloc::string::String;

use super::Windows;
use crate::addr::{DmaRange, Granule, PhysRange};
use crate::dma::DmaError;
use crate::domain::{DomainError, UnmapError};
use crate::iova::IovaError;
use crate::mem::FrameError;

/// Why a plan cannot be solved, or memory not be shared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// No device was named.
    #[error("nobody to share with: name at least one device")]
    NoDevice,
    /// Nothing to share.
    #[error("a buffer of 0 bytes cannot be shared")]
    Empty,
    /// Rounded up to whole granules the length passes 2^64.
    #[error("{len:#x} bytes in whole granules of {granule} are more than 2^64")]
    TooLong {
        /// The length asked for.
        len: u64,
        /// The granule.
        granule: Granule,
    },
    /// The same device was named twice with different rights.
    #[error("{device} is named twice: name each device once")]
    Twice {
        /// The device.
        device: String,
    },
    /// A device is given no access.
    #[error(
        "{device} is to get neither read nor write access: give it an address only, by grant_address()"
    )]
    NoAccess {
        /// The device.
        device: String,
    },
    /// Two devices reach no common memory.
    #[error(
        "{first} reaches {first_windows}, {second} reaches {second_windows}: no memory is in both"
    )]
    Windows {
        /// One device.
        first: String,
        /// What it reaches.
        first_windows: Windows,
        /// The other.
        second: String,
        /// What that reaches.
        second_windows: Windows,
    },
    /// The memory that both reach holds no block of the size and alignment.
    #[error(
        "{first} and {second} together reach at most {available:#x} bytes in one piece aligned to {align}: \
         {len:#x} do not fit"
    )]
    WindowTooSmall {
        /// One device.
        first: String,
        /// The other.
        second: String,
        /// The longest stretch that both reach, in bytes.
        available: u64,
        /// The alignment.
        align: Granule,
        /// The bytes needed.
        len: u64,
    },
    /// A device's descriptors take no range so long.
    #[error("{device} takes ranges of at most {max:#x} bytes: {len:#x} do not fit one")]
    Segment {
        /// The device.
        device: String,
        /// Its longest segment.
        max: u64,
        /// The bytes needed.
        len: u64,
    },
    /// The range is longer than a device's boundary allows.
    #[error(
        "{device} takes no range that crosses {boundary:#x} bytes: {len:#x} do not fit between two of them"
    )]
    Boundary {
        /// The device.
        device: String,
        /// The boundary.
        boundary: u64,
        /// The bytes needed.
        len: u64,
    },
    /// A device's address space is shorter than the range.
    #[error("{device} can address {addresses}, which is less than the {len:#x} bytes of the range")]
    AddressSpace {
        /// The device.
        device: String,
        /// What it can be given.
        addresses: DmaRange,
        /// The bytes needed, guards included.
        len: u64,
    },
    /// No DMA address is possible for both devices.
    #[error(
        "{first} uses addresses {first_addresses}, {second} uses {second_addresses}: no address is in both"
    )]
    NoCommonAddress {
        /// One device.
        first: String,
        /// Its addresses.
        first_addresses: DmaRange,
        /// The other.
        second: String,
        /// Its addresses.
        second_addresses: DmaRange,
    },
    /// Every address that would do for all devices is in use in one of them.
    #[error(
        "no address is free in the spaces of all devices: the last obstacle is in that of {device}"
    )]
    AddressesTaken {
        /// The device in whose space nothing was left.
        device: String,
    },
    /// Devices of two machines.
    #[error("{first} and {second} are devices of two machines: they have no memory in common")]
    Machines {
        /// One device.
        first: String,
        /// The other.
        second: String,
    },
    /// Memory could not be had.
    #[error("{cause} ({len:#x} bytes in blocks of {align}, {shape})")]
    Memory {
        /// Bytes needed.
        len: u64,
        /// The alignment of blocks.
        align: Granule,
        /// "one block" or "any number of blocks".
        shape: &'static str,
        /// Why.
        cause: FrameError,
    },
    /// A device refused the memory.
    #[error(transparent)]
    Device(#[from] DmaError),
    /// A late device's constraints are not met by the memory that is there.
    #[error("{device} needs {align} blocks, and {block} is not one: plan with it from the start")]
    LateAlignment {
        /// The device.
        device: String,
        /// Its granule.
        align: Granule,
        /// The block that does not fit.
        block: PhysRange,
    },
    /// A late device does not reach the memory that is there.
    #[error("{device} reaches {windows}, not {block}: plan with it from the start")]
    LateReach {
        /// The device.
        device: String,
        /// What it reaches.
        windows: Windows,
        /// The block out of reach.
        block: PhysRange,
    },
    /// A late device needs one block.
    #[error(
        "{device} needs one physical block, and the memory has {blocks}: plan with it from the start"
    )]
    LateContiguity {
        /// The device.
        device: String,
        /// How many blocks there are.
        blocks: usize,
    },
    /// The device has the buffer already.
    #[error("{device} has this buffer already")]
    Attached {
        /// The device.
        device: String,
    },
    /// A key of another buffer, or of a device that was let go.
    #[error("this key is of another buffer, or of a device that no longer has this one")]
    ForeignKey,
    /// Bytes that do not lie inside the buffer.
    #[error("bytes {offset:#x} to {end:#x} are not inside the buffer of {len:#x} bytes")]
    OutOfBounds {
        /// The first byte.
        offset: u64,
        /// The byte past the last.
        end: u64,
        /// The buffer's length.
        len: u64,
    },
    /// A device could not be made to forget the memory.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
}

impl ShareError {
    /// Whether a fixed address was refused because it is in use.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self.iova(), Some(IovaError::InUse { .. }))
    }

    /// Whether no naturally aligned place was found. There may be others.
    pub(super) fn lacks_space(&self) -> bool {
        use IovaError::{Fragmented, TooLarge, WindowTooSmall};
        // Guards are as wide as the alignment, so that too large is no last word either.
        matches!(self.iova(), Some(TooLarge { .. } | WindowTooSmall { .. } | Fragmented { .. }))
    }

    fn iova(&self) -> Option<&IovaError> {
        match self {
            Self::Device(DmaError::Domain { cause: DomainError::Iova(cause), .. }) => Some(cause),
            _ => None,
        }
    }
}
