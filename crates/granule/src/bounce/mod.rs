//! An aligned bounce pool: memory that a device can reach, lent out while the CPU copies.
//!
//! A buffer is bounced where a device must not, or cannot, be given the buffer itself: it lies
//! outside the device's window; it shares an IOMMU granule with memory of somebody else and the
//! device is not trusted; it shares a cache line and the device does not snoop. The pool lends a
//! [`BounceSlot`] for the time of the mapping.
//!
//! The idea is Linux's swiotlb. What differs: a slot can be aligned to any granule, one larger than
//! the CPU's page too, and own *whole* granules, so that nobody else's bytes lie in a page that is
//! mapped for the device; a run may be as long as the block (swiotlb ends at 128 slots); and a
//! refusal says whether the pool is full, fragmented, or could never have served the request.
//!
//! # Placement
//!
//! With `unit` = the larger of the request's `align` and the pool's slot:
//!
//! ```text
//! outer.start                data.start                              outer end
//! | padding                  | data (len bytes)        | padding      |
//! ^ multiple of unit         ^ data.start & keep == orig & keep       ^ multiple of unit, if
//!                                                                       whole_granules; else of
//!                                                                       the slot
//! ```
//!
//! The data starts `orig & keep & (unit - 1)` bytes into the outer range, and the outer range is
//! chosen such that the higher bits of `keep` agree as well: the rule of swiotlb's
//! `min_align_mask` and `alloc_align_mask` (Linux 6.12, `kernel/dma/swiotlb.c`).
//!
//! # What the bytes of a slot are
//!
//! * Blocks are zeroed when the pool is made. A slot that is acquired later holds whatever its last
//!   owner left, unless the pool scrubs on release ([`BounceConfig::scrub`]).
//! * **Data.** Whoever maps a slot copies the *whole* buffer in first, for a device that only
//!   writes as well ([`BouncePool::copy_in`]). Otherwise a short transfer would copy another
//!   device's old bytes out into the buffer, and an untrusted device could read them.
//! * **Padding.** For an untrusted device call [`BouncePool::zero_padding`] before mapping the
//!   outer range.
//! * Neither touches the caches: for a device that does not snoop, the caller synchronises
//!   [`BounceSlot::outer`] afterwards.
//!
//! # Concurrency
//!
//! Each block is cut into areas, about one a CPU, each with its lock. A CPU begins with its own area
//! and goes on to the others; only a request that no single area can serve takes all locks of a
//! block, in ascending order, and sees the block as one. Every search takes the lowest place that
//! fits: it keeps long runs whole, and the slot that is used next is the one that the cache still
//! holds. No call but [`BouncePool::new`] allocates.

mod area;
mod bitmap;
mod block;
mod config;
mod copy;
mod error;
mod placement;
mod pool;
mod slot;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::{BounceConfig, BounceUsage};
pub use error::BounceError;
pub use placement::BounceRequest;
pub use pool::BouncePool;
pub use slot::{BounceSlot, RawBounceSlot};
