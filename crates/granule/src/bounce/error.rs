//! Why a bounce pool refuses.
#![forbid(unsafe_code)]

use crate::addr::PhysRange;
use crate::mem::FrameError;

/// What went wrong in the bounce layer. A failed call changed nothing but a counter of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BounceError {
    /// The slot size cannot be used.
    #[error("a bounce slot of {slot:#x} bytes: it must be a power of two of at least {least:#x}")]
    BadSlotSize {
        /// What was asked for, in bytes.
        slot: u64,
        /// The smallest that this machine allows, in bytes.
        least: u64,
    },
    /// The pool's size is zero, or too large to round up.
    #[error(
        "a bounce pool of {size:#x} bytes cannot be: give a size that is not zero and fits memory"
    )]
    BadPoolSize {
        /// What was asked for, in bytes.
        size: u64,
    },
    /// The platform has no memory for the pool.
    #[error(
        "no memory for a bounce pool of {size:#x} bytes in blocks aligned to {align:#x} \
         ({found:#x} bytes were found): make the pool at boot, smaller, or widen its window"
    )]
    NoMemory {
        /// The size of the pool in bytes, rounded up.
        size: u64,
        /// The alignment of its blocks in bytes.
        align: u64,
        /// How much could be had (and was given back), in bytes.
        found: u64,
        /// What the platform said last.
        #[source]
        source: FrameError,
    },
    /// The request has no bytes.
    #[error("a bounce request of zero bytes")]
    EmptyRequest,
    /// The alignment of the request is no power of two.
    #[error("a bounce request aligned to {align:#x}: it must be a power of two")]
    BadAlign {
        /// What was asked for, in bytes.
        align: u64,
    },
    /// The minimum-alignment mask is not of the form 2^n - 1.
    #[error("a minimum-alignment mask of {keep:#x}: it must be a power of two minus one")]
    BadKeepMask {
        /// What was asked for.
        keep: u64,
    },
    /// The pool could not serve the request even when empty.
    #[error(
        "a bounce run of {requested:#x} bytes can never come from this pool: with that alignment its \
         longest is {largest:#x} bytes of {total:#x}; split the transfer or enlarge the pool"
    )]
    TooLarge {
        /// What the request takes, padding included, in bytes (at most 2^64).
        requested: u64,
        /// The longest run that starts at a suitable address when the pool is empty, in bytes.
        largest: u64,
        /// The size of the pool in bytes.
        total: u64,
    },
    /// The pool could serve the request, but not from the part inside the request's window.
    #[error(
        "a bounce run of {requested:#x} bytes can never lie inside {window}, where the pool's longest \
         is {largest:#x} bytes: make a pool for that window"
    )]
    OutOfReach {
        /// What the request takes, padding included, in bytes.
        requested: u64,
        /// The longest run inside the window that starts at a suitable address when the pool is
        /// empty, in bytes.
        largest: u64,
        /// What the device reaches.
        window: PhysRange,
    },
    /// Too little is free: exhaustion.
    #[error(
        "bounce pool full: {requested:#x} bytes requested, {free:#x} of {total:#x} free (longest run \
         {largest:#x}); retry when a mapping ends, or enlarge the pool"
    )]
    Full {
        /// What the request takes, padding included, in bytes.
        requested: u64,
        /// What is free inside the request's window, in bytes.
        free: u64,
        /// The longest free run inside the window, in bytes.
        largest: u64,
        /// The size of the pool inside the window, in bytes.
        total: u64,
    },
    /// Enough is free, but not in one suitable run: fragmentation.
    #[error(
        "bounce pool fragmented: {requested:#x} bytes requested, {free:#x} of {total:#x} free, but the \
         longest run is {largest:#x} ({usable:#x} from a suitably aligned address); split the transfer, \
         or give the long transfers a pool of their own"
    )]
    Fragmented {
        /// What the request takes, padding included, in bytes.
        requested: u64,
        /// What is free inside the request's window, in bytes.
        free: u64,
        /// The longest free run inside the window, in bytes.
        largest: u64,
        /// The longest free run that starts at an address as requested, in bytes.
        usable: u64,
        /// The size of the pool inside the window, in bytes.
        total: u64,
    },
    /// A copy would pass the end of the slot's data.
    #[error(
        "{len:#x} bytes at offset {offset:#x} pass the end of a bounce slot's {size:#x} bytes of data"
    )]
    OutOfBounds {
        /// Where the copy starts, in bytes from the start of the data.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The length of the data in bytes.
        size: u64,
    },
    /// The slot belongs to another pool.
    #[error("the bounce slot at {outer} belongs to another pool")]
    ForeignSlot {
        /// What the slot owns.
        outer: PhysRange,
    },
}
