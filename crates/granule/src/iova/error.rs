//! What an IOVA allocator refuses, and why.

use crate::addr::{Granule, Iova, IovaRange};

/// Why an IOVA operation failed. Nothing has changed then, except that cached ranges may have gone
/// back to the shared tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IovaError {
    /// No whole granule lies inside the aperture.
    #[error(
        "the aperture {aperture} holds no whole granule of {granule}: widen it, or use a smaller granule"
    )]
    EmptyAperture {
        /// The aperture that was asked for.
        aperture: IovaRange,
        /// The granule.
        granule: Granule,
    },
    /// A size of zero.
    #[error("an IOVA range of zero bytes was asked for")]
    ZeroSize,
    /// The alignment is no power of two.
    #[error("an IOVA alignment must be a power of two, and {align:#x} is none")]
    BadAlignment {
        /// The alignment that was asked for, in bytes.
        align: u64,
    },
    /// No part of the window lies in the aperture.
    #[error(
        "the window {window} lies outside the aperture {aperture}: the device cannot use this domain"
    )]
    WindowOutside {
        /// The window that was asked for.
        window: IovaRange,
        /// The allocator's aperture.
        aperture: IovaRange,
    },
    /// More than aperture and window could hold even if nothing else were in them.
    #[error(
        "{size:#x} bytes can never fit: the aperture has {limit:#x} within reach; split the request"
    )]
    TooLarge {
        /// The size that was asked for, in bytes.
        size: u64,
        /// The whole granules that aperture and window share, in bytes.
        limit: u64,
    },
    /// The window has the bytes, but no aligned place for them, even when empty.
    #[error(
        "{size:#x} bytes aligned to {align:#x} have no place in {window}: lower the alignment or widen the window"
    )]
    WindowTooSmall {
        /// The size that was asked for, in bytes.
        size: u64,
        /// The alignment that the range needs, natural alignment included, in bytes.
        align: u64,
        /// What aperture and window share.
        window: IovaRange,
    },
    /// Fewer free bytes than asked for.
    #[error(
        "IOVA space is full: {size:#x} bytes asked for, {free:#x} free within reach; unmap something"
    )]
    Full {
        /// The size that was asked for, in bytes.
        size: u64,
        /// The bytes that are free within aperture and window.
        free: u64,
    },
    /// Enough free bytes, but not in one block, or not where the alignment wants them.
    #[error(
        "IOVA space is fragmented: {size:#x} bytes aligned to {align:#x} asked for; {free:#x} are free, the largest block is {largest:#x}"
    )]
    Fragmented {
        /// The size that was asked for, in bytes.
        size: u64,
        /// The alignment that the range needs, natural alignment included, in bytes.
        align: u64,
        /// The bytes that are free within aperture and window.
        free: u64,
        /// The largest free run of granules, in bytes, whatever its alignment.
        largest: u64,
    },
    /// A range that must be whole granules is not.
    #[error("{range} is not a whole number of granules of {granule}")]
    Misaligned {
        /// The range that was given.
        range: IovaRange,
        /// The granule.
        granule: Granule,
    },
    /// A range that must lie inside the aperture does not.
    #[error("{range} does not lie inside the aperture {aperture}")]
    OutsideAperture {
        /// The range that was given.
        range: IovaRange,
        /// The allocator's aperture.
        aperture: IovaRange,
    },
    /// A part of the range is allocated.
    #[error("{range} is in use at {at}: free that first, or choose another place")]
    InUse {
        /// The range that was given.
        range: IovaRange,
        /// The first address in it that is allocated.
        at: Iova,
    },
    /// A part of the range is reserved.
    #[error("{range} overlaps the reserved region {reserved}: choose another place")]
    Reserved {
        /// The range that was given.
        range: IovaRange,
        /// The reserved region, as far as it lies inside the aperture.
        reserved: IovaRange,
    },
    /// The range, or a part of it, is not allocated, or was allocated as a part of something else.
    #[error("{range} is not an allocated range: free exactly what was allocated, and once")]
    NotAllocated {
        /// The range that was given.
        range: IovaRange,
    },
    /// The allocator's own bookkeeping found no memory.
    #[error("no memory for the bookkeeping of IOVA space: free memory and try again")]
    OutOfMemory,
}
