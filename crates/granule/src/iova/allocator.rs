//! The allocator: what callers see, and the path that nearly every call takes.

use core::fmt;
use core::mem::size_of;
use core::sync::atomic::AtomicBool;

use lock_api::Mutex;

use super::magazine::{Class, Magazines};
use super::space::{ClaimError, Space, Span};
use super::{IovaError, IovaRequest, IovaUsage};
use crate::addr::{Granule, Iova, IovaRange};
use crate::mem::{CachePadded, PerCpu, Platform};

/// What one CPU has: its magazines, once it has allocated something.
#[derive(Default)]
pub(super) struct Shard {
    pub(super) magazines: Option<Magazines>,
    /// A free found no magazines here; the next allocation that has time gets them.
    pub(super) wanted: bool,
}

impl Shard {
    #[inline]
    pub(super) fn magazines(&mut self) -> Option<&mut Magazines> {
        self.magazines.as_mut()
    }
}

/// The allocator of one IOVA space.
///
/// Granules are the unit: every range that is handed out is whole granules, at a multiple of the
/// granule. Any CPU may free what another has allocated. See the [module](super) for how it works.
pub struct IovaAllocator<P: Platform> {
    pub(super) platform: P,
    pub(super) granule: Granule,
    pub(super) aperture: IovaRange,
    pub(super) shards: PerCpu<Mutex<P::Lock, Shard>>,
    /// Whether a shard wants magazines.
    pub(super) wanted: AtomicBool,
    /// Locked after a shard, where both are.
    pub(super) space: CachePadded<Mutex<P::Lock, Space>>,
}

impl<P: Platform> IovaAllocator<P> {
    /// An allocator for `aperture`, shrunk inward to whole granules.
    ///
    /// # Errors
    /// [`IovaError::EmptyAperture`] if no whole granule is left; [`IovaError::OutOfMemory`].
    pub fn new(platform: &P, granule: Granule, aperture: IovaRange) -> Result<Self, IovaError> {
        let aperture =
            aperture.align_inward(granule).ok_or(IovaError::EmptyAperture { aperture, granule })?;
        let bounds =
            Span::new(aperture.start().raw() >> granule.shift(), aperture.len() >> granule.shift());
        let space = Space::new(bounds).map_err(|_| IovaError::OutOfMemory)?;
        Ok(Self {
            platform: platform.clone(),
            granule,
            aperture,
            shards: PerCpu::new(platform, || Mutex::new(Shard::default())),
            wanted: AtomicBool::new(false),
            space: CachePadded(Mutex::new(space)),
        })
    }

    /// The unit of allocation.
    #[inline]
    pub fn granule(&self) -> Granule {
        self.granule
    }

    /// The range that is allocated from, in whole granules.
    #[inline]
    pub fn aperture(&self) -> IovaRange {
        self.aperture
    }

    /// Allocates a range and returns where it starts. Its length is the request's size rounded up
    /// to whole granules.
    ///
    /// The range is naturally aligned, as Linux's `alloc_iova` with `size_aligned` does it: to the
    /// smallest power of two not below its length. Beyond 1 GiB (the largest page of the common
    /// table formats) natural alignment stays at 1 GiB, and only the request asks for more.
    ///
    /// Ranges come from the top of the window downwards, which spares the low addresses for devices
    /// that reach nothing else. Before an allocation is refused for lack of space, all CPUs'
    /// magazines are emptied. A refusal looks at every free extent, so it is slow.
    ///
    /// # Errors
    /// [`IovaError::ZeroSize`] and [`IovaError::BadAlignment`] for what is no request;
    /// [`IovaError::WindowOutside`], [`IovaError::TooLarge`] and [`IovaError::WindowTooSmall`] for
    /// what can never be met here; [`IovaError::Full`] and [`IovaError::Fragmented`] for what
    /// cannot be met now; [`IovaError::OutOfMemory`] if the bookkeeping finds no memory.
    #[inline]
    pub fn alloc(&self, request: &IovaRequest) -> Result<Iova, IovaError> {
        let Some(last) = request.size.checked_sub(1) else { return Err(IovaError::ZeroSize) };
        if !request.align.is_power_of_two() {
            return Err(IovaError::BadAlignment { align: request.align });
        }
        let len = (last >> self.granule.shift()) + 1;
        if let Some(class) = Class::of(len) {
            if let Some(iova) = self.alloc_cached(class, len, request) {
                return Ok(iova);
            }
        }
        self.alloc_uncached(len, request)
    }

    /// From this CPU's magazines alone.
    #[inline]
    fn alloc_cached(&self, class: Class, len: u64, request: &IovaRequest) -> Option<Iova> {
        let shift = self.granule.shift();
        let mut shard = self.shards.local(&self.platform).lock();
        let magazines = shard.magazines()?;
        let open = request.window.is_none_or(|window| window.contains_range(&self.aperture));
        let start = match (request.window, request.align <= self.granule.size()) {
            (_, true) if open => magazines.pop(class),
            (window, _) => magazines.pop_if(class, |start| {
                let first = start << shift;
                let last = first + ((len << shift) - 1);
                first & (request.align - 1) == 0
                    && window.is_none_or(|window| {
                        first >= window.start().raw() && last <= window.last().raw()
                    })
            }),
        }?;
        Some(Iova::new(start << shift))
    }

    /// Allocates exactly `range`, all or nothing.
    ///
    /// # Errors
    /// [`IovaError::Misaligned`] if it is not whole granules, [`IovaError::OutsideAperture`],
    /// [`IovaError::Reserved`] or [`IovaError::InUse`] if a part of it is not free,
    /// [`IovaError::OutOfMemory`] if the bookkeeping finds no memory.
    pub fn alloc_at(&self, range: IovaRange) -> Result<(), IovaError> {
        let span = self.span_of(range)?;
        let result = self.with_caches_flushed(|space| space.claim(span));
        result.map_err(|error| self.claim_error(error, range, span))
    }

    /// Sets `range`, grown outward to whole granules, aside for good: an address that the hardware
    /// or the firmware uses, or that must not be used. What of it lies outside the aperture needs
    /// nothing; regions may overlap each other.
    ///
    /// # Errors
    /// [`IovaError::InUse`] if a part of it is allocated, [`IovaError::OutOfMemory`] if the
    /// bookkeeping finds no memory; nothing of it is reserved then that was not before.
    pub fn reserve(&self, range: IovaRange) -> Result<(), IovaError> {
        let shift = self.granule.shift();
        let grown = Span { low: range.start().raw() >> shift, high: range.last().raw() >> shift };
        let Some(span) = grown.intersection(self.bounds()) else { return Ok(()) };
        let result = self.with_caches_flushed(|space| space.reserve(span));
        result.map_err(|error| match error {
            ClaimError::NoMemory => IovaError::OutOfMemory,
            ClaimError::Taken(at) => IovaError::InUse { range, at: Iova::new(at << shift) },
        })
    }

    /// Frees a range: the start and the length (in whole granules) that were allocated. Never
    /// allocates memory, and does not fail for a range that is allocated.
    ///
    /// A range that is *not* allocated is the caller's bug. What is noticed at once is reported; a
    /// second free of a small range may go unnoticed in a magazine, and the range could then be
    /// handed out twice, so the layer above must own what it frees.
    ///
    /// # Errors
    /// [`IovaError::Misaligned`] and [`IovaError::OutsideAperture`] for what cannot have been
    /// allocated here; [`IovaError::NotAllocated`] where that is noticed.
    #[inline]
    pub fn free(&self, range: IovaRange) -> Result<(), IovaError> {
        let span = self.span_of(range)?;
        let aligned = span.low & (span.len().next_power_of_two() - 1) == 0;
        let class = if aligned { Class::of(span.len()) } else { None };
        let Some(class) = class else { return self.free_uncached(range, span) };
        let mut shard = self.shards.local(&self.platform).lock();
        if shard.magazines().is_some_and(|magazines| magazines.push(class, span.low)) {
            return Ok(());
        }
        self.free_overflowing(&mut shard, class, range, span)
    }

    /// Gives all CPUs' magazines back to the tree, and frees bookkeeping memory that was kept for
    /// the next range. Done before an allocation is refused; of use otherwise to see the true
    /// [`IovaUsage::largest_free`].
    pub fn flush_caches(&self) {
        self.drain_all();
        self.space.lock().trim();
    }

    /// How much is used for what.
    pub fn usage(&self) -> IovaUsage {
        let mut memory =
            size_of::<Self>() + self.shards.len() * size_of::<CachePadded<Mutex<P::Lock, Shard>>>();
        let mut cached = 0;
        for shard in self.shards.iter() {
            if let Some(magazines) = shard.lock().magazines() {
                cached += magazines.granules();
                memory += Magazines::HEAP_BYTES;
            }
        }
        let space = self.space.lock();
        let (in_tree, reserved) = (space.free(), space.reserved());
        let largest = space.extents(self.bounds()).longest;
        memory += space.bytes();
        drop(space);
        let shift = self.granule.shift();
        let free = in_tree + cached;
        IovaUsage {
            live: self.bounds().len().saturating_sub(free + reserved) << shift,
            free: free << shift,
            largest_free: largest << shift,
            reserved: reserved << shift,
            cached: cached << shift,
            bookkeeping: memory as u64,
        }
    }

    /// The aperture in granules.
    #[inline]
    pub(super) fn bounds(&self) -> Span {
        let shift = self.granule.shift();
        Span::new(self.aperture.start().raw() >> shift, self.aperture.len() >> shift)
    }

    /// A caller's range in granules.
    #[inline]
    fn span_of(&self, range: IovaRange) -> Result<Span, IovaError> {
        if !range.is_aligned(self.granule) {
            return Err(IovaError::Misaligned { range, granule: self.granule });
        }
        if !self.aperture.contains_range(&range) {
            return Err(IovaError::OutsideAperture { range, aperture: self.aperture });
        }
        let shift = self.granule.shift();
        Ok(Span::new(range.start().raw() >> shift, range.len() >> shift))
    }
}

impl<P: Platform> fmt::Debug for IovaAllocator<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IovaAllocator")
            .field("granule", &self.granule)
            .field("aperture", &self.aperture)
            .finish_non_exhaustive()
    }
}
