//! What is asked of the allocator, and what it says of itself.

use crate::addr::IovaRange;

/// A request for IOVA space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRequest {
    /// The size in bytes, rounded up to whole granules; not zero.
    pub size: u64,
    /// The least alignment in bytes, a power of two. The granule and natural alignment (see
    /// [`IovaAllocator::alloc`](super::IovaAllocator::alloc)) hold in any case.
    pub align: u64,
    /// The range, granules and all, lies inside this window if one is given: the device's mask, the
    /// bus's limit.
    pub window: Option<IovaRange>,
}

impl IovaRequest {
    /// `size` bytes, naturally aligned, anywhere in the aperture.
    #[inline]
    pub const fn new(size: u64) -> Self {
        Self { size, align: 1, window: None }
    }

    /// The same, aligned to `align` bytes at least.
    #[inline]
    #[must_use]
    pub const fn aligned(mut self, align: u64) -> Self {
        self.align = align;
        self
    }

    /// The same, wholly inside `window`.
    #[inline]
    #[must_use]
    pub const fn within(mut self, window: Option<IovaRange>) -> Self {
        self.window = window;
        self
    }
}

/// How much of the aperture is used for what. All figures are bytes.
///
/// `live + free + reserved` is the aperture's length. The figures are exact when no other call is
/// under way; otherwise each part is from a slightly different moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IovaUsage {
    /// Allocated and not freed.
    pub live: u64,
    /// Free, cached ranges included.
    pub free: u64,
    /// The longest run of free granules in the shared tree. Cached ranges are not part of it: call
    /// [`flush_caches`](super::IovaAllocator::flush_caches) first for the true figure.
    pub largest_free: u64,
    /// Set aside by [`reserve`](super::IovaAllocator::reserve), as far as it lies in the aperture.
    pub reserved: u64,
    /// Free, and held in the CPUs' magazines.
    pub cached: u64,
    /// Memory that the allocator itself occupies.
    pub bookkeeping: u64,
}
