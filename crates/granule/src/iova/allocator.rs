//! The allocator: what callers see, and the path that nearly every call takes.

use core::fmt;
use core::mem::size_of;
use core::sync::atomic::AtomicBool;

use lock_api::Mutex;

use super::front::Front;
use super::magazine::{Class, Magazines};
use super::space::{ClaimError, Space, Span};
use super::{IovaError, IovaRequest, IovaUsage};
use crate::addr::{Granule, Iova, IovaRange};
use crate::mem::{CachePadded, PerCpu, Platform};

/// What one CPU has.
pub(super) struct Share<P: Platform, C> {
    pub(super) front: Front,
    pub(super) shard: Mutex<P::Lock, Shard<C>>,
}

/// The part of it behind a lock: its magazines, once it has allocated something.
pub(super) struct Shard<C> {
    pub(super) magazines: Option<Magazines>,
    /// A free found no magazines here; the next allocation that has time gets them.
    pub(super) wanted: bool,
    /// What the user counts under this lock.
    pub(super) counts: C,
}

impl<C> Shard<C> {
    #[inline]
    pub(super) fn magazines(&mut self) -> Option<&mut Magazines> {
        self.magazines.as_mut()
    }
}

/// The allocator of one IOVA space.
///
/// Granules are the unit: every range that is handed out is whole granules, at a multiple of the
/// granule. Any CPU may free what another has allocated. See the [module](super) for how it works.
///
/// `C` is what its user counts, one value a CPU: see [`alloc_counted`](Self::alloc_counted).
pub struct IovaAllocator<P: Platform, C = ()> {
    pub(super) platform: P,
    pub(super) granule: Granule,
    pub(super) aperture: IovaRange,
    pub(super) shares: PerCpu<Share<P, C>>,
    /// Whether a shard wants magazines.
    pub(super) wanted: AtomicBool,
    /// Locked after a shard, where both are.
    pub(super) space: CachePadded<Mutex<P::Lock, Space>>,
}

impl<P: Platform> IovaAllocator<P> {
    /// An allocator for `aperture`, shrunk inward to whole granules, that counts nothing.
    ///
    /// # Errors
    /// [`IovaError::EmptyAperture`] if no whole granule is left; [`IovaError::OutOfMemory`].
    pub fn new(platform: &P, granule: Granule, aperture: IovaRange) -> Result<Self, IovaError> {
        Self::with_shares(platform, granule, aperture, |_| ())
    }
}

impl<P: Platform, C> IovaAllocator<P, C> {
    /// The same as [`new`](IovaAllocator::new), with counts for each CPU: `counts` makes those of the
    /// CPU whose number it is given.
    ///
    /// # Errors
    /// As [`new`](IovaAllocator::new).
    pub fn with_shares(
        platform: &P,
        granule: Granule,
        aperture: IovaRange,
        mut counts: impl FnMut(usize) -> C,
    ) -> Result<Self, IovaError> {
        let aperture =
            aperture.align_inward(granule).ok_or(IovaError::EmptyAperture { aperture, granule })?;
        let bounds =
            Span::new(aperture.start().raw() >> granule.shift(), aperture.len() >> granule.shift());
        let space = Space::new(bounds).map_err(|_| IovaError::OutOfMemory)?;
        let mut cpus = 0..;
        let shares = PerCpu::new(platform, || Share {
            front: Front::default(),
            shard: Mutex::new(Shard {
                magazines: None,
                wanted: false,
                counts: counts(cpus.next().unwrap_or(0)),
            }),
        });
        Ok(Self {
            platform: platform.clone(),
            granule,
            aperture,
            shares,
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
    #[inline(always)]
    pub fn alloc(&self, request: &IovaRequest) -> Result<Iova, IovaError> {
        if request.align.is_power_of_two() && self.is_open(request) {
            // A size of zero becomes a length that no word and no class is for.
            let len = (request.size.wrapping_sub(1) >> self.granule.shift()) + 1;
            let share = self.shares.local(&self.platform);
            if let Some(start) = share.front.take(len) {
                return Ok(Iova::new(start << self.granule.shift()));
            }
            if let Some(start) = self.pop_open(share, len) {
                return Ok(Iova::new(start << self.granule.shift()));
            }
        }
        // What else is to be thought of, a wrong request included.
        self.alloc_behind(request)
    }

    /// From the magazines, or from the depot by way of them.
    #[inline(never)]
    fn pop_open(&self, share: &Share<P, C>, len: u64) -> Option<u64> {
        let class = Class::of(len)?;
        let mut shard = share.shard.lock();
        let magazines = shard.magazines()?;
        magazines.pop(class).or_else(|| self.pop_depot(magazines, class))
    }

    /// From the front or a magazine if a range there happens to fit a narrow request, else from the tree.
    #[inline(never)]
    fn alloc_behind(&self, request: &IovaRequest) -> Result<Iova, IovaError> {
        let len = self.granules(request)?;
        if !self.is_open(request) {
            let share = self.shares.local(&self.platform);
            let fits = |start| self.fits(request, start, len);
            if let Some(start) = share.front.take_fitting(len, fits) {
                return Ok(Iova::new(start << self.granule.shift()));
            }
            if let Some(class) = Class::of(len) {
                let mut shard = share.shard.lock();
                if let Some(iova) = self.pop(&mut shard, class, len, request) {
                    return Ok(iova);
                }
            }
        }
        self.alloc_uncached(len, request)
    }

    /// The request's length in granules.
    #[inline(always)]
    pub(super) fn granules(&self, request: &IovaRequest) -> Result<u64, IovaError> {
        let Some(last) = request.size.checked_sub(1) else { return Err(IovaError::ZeroSize) };
        if !request.align.is_power_of_two() {
            return Err(IovaError::BadAlignment { align: request.align });
        }
        Ok((last >> self.granule.shift()) + 1)
    }

    /// Whether any range of its size meets the request.
    #[inline(always)]
    fn is_open(&self, request: &IovaRequest) -> bool {
        request.align <= self.granule.size()
            && request.window.is_none_or(|window| window.contains_range(&self.aperture))
    }

    /// Whether a free range of `len` granules at granule `start` meets the request.
    #[inline]
    fn fits(&self, request: &IovaRequest, start: u64, len: u64) -> bool {
        let shift = self.granule.shift();
        let first = start << shift;
        let last = first + ((len << shift) - 1);
        first & (request.align - 1) == 0
            && request
                .window
                .is_none_or(|window| first >= window.start().raw() && last <= window.last().raw())
    }

    /// From a CPU's magazines alone.
    #[inline]
    pub(super) fn pop(
        &self,
        shard: &mut Shard<C>,
        class: Class,
        len: u64,
        request: &IovaRequest,
    ) -> Option<Iova> {
        let magazines = shard.magazines()?;
        if self.is_open(request) {
            if let Some(start) = magazines.pop(class) {
                return Some(Iova::new(start << self.granule.shift()));
            }
        }
        let start = self.pop_else(magazines, class, len, request)?;
        Some(Iova::new(start << self.granule.shift()))
    }

    /// What fits a narrow request, or what the depot has for any other.
    #[inline(never)]
    fn pop_else(
        &self,
        magazines: &mut Magazines,
        class: Class,
        len: u64,
        request: &IovaRequest,
    ) -> Option<u64> {
        if self.is_open(request) {
            return self.pop_depot(magazines, class);
        }
        magazines.pop_if(class, |start| self.fits(request, start, len))
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
    #[inline(always)]
    pub fn free(&self, range: IovaRange) -> Result<(), IovaError> {
        if self.free_open(range) { Ok(()) } else { self.free_behind(range) }
    }

    /// To what this CPU has at hand; false if there is anything else to think of.
    #[inline(always)]
    fn free_open(&self, range: IovaRange) -> bool {
        let (start, bytes) = (range.start().raw(), range.len());
        if bytes & self.granule.mask() != 0 || !self.aperture.contains_range(&range) {
            return false;
        }
        let share = self.shares.local(&self.platform);
        let shift = self.granule.shift();
        // The front takes powers of two alone.
        if start & (bytes - 1) == 0 && share.front.put(bytes >> shift, start >> shift) {
            return true;
        }
        start & self.granule.mask() == 0 && self.push_open(share, start >> shift, bytes >> shift)
    }

    /// Into the magazines, if need be by way of them into the depot.
    #[inline(never)]
    fn push_open(&self, share: &Share<P, C>, low: u64, len: u64) -> bool {
        let Some(class) = Class::of(len).filter(|class| class.is_natural(low)) else {
            return false;
        };
        let mut shard = share.shard.lock();
        let Some(magazines) = shard.magazines() else { return false };
        magazines.push(class, low) || self.push_depot(magazines, class, low)
    }

    /// What [`free_open`](Self::free_open) leaves: mistakes, and what goes to the tree.
    #[inline(never)]
    fn free_behind(&self, range: IovaRange) -> Result<(), IovaError> {
        let span = self.span_of(range)?;
        match span.class() {
            Some(class) => {
                let mut shard = self.shares.local(&self.platform).shard.lock();
                self.push(&mut shard, class, range, span)
            }
            None => self.free_uncached(range, span),
        }
    }

    /// Into a CPU's magazines, or past them.
    #[inline]
    pub(super) fn push(
        &self,
        shard: &mut Shard<C>,
        class: Class,
        range: IovaRange,
        span: Span,
    ) -> Result<(), IovaError> {
        if shard.magazines().is_some_and(|magazines| magazines.push(class, span.low)) {
            return Ok(());
        }
        self.free_overflowing(shard, class, range, span)
    }

    /// Gives all that CPUs keep at hand back to the tree, and frees bookkeeping memory that was kept for
    /// the next range. Done before an allocation is refused; of use otherwise to see the true
    /// [`IovaUsage::largest_free`].
    pub fn flush_caches(&self) {
        self.drain_all();
        self.space.lock().trim();
    }

    /// How much is used for what.
    pub fn usage(&self) -> IovaUsage {
        let mut memory =
            size_of::<Self>() + self.shares.len() * size_of::<CachePadded<Share<P, C>>>();
        let mut cached = 0;
        for share in self.shares.iter() {
            cached += share.front.granules();
            if let Some(magazines) = share.shard.lock().magazines() {
                cached += magazines.granules();
                memory += Magazines::HEAP_BYTES;
            }
        }
        let space = self.space.lock();
        let (in_tree, reserved) = (space.free(), space.reserved());
        let largest = space.extents(self.bounds()).longest;
        memory += space.bytes();
        cached += space.in_depot();
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
    pub(super) fn span_of(&self, range: IovaRange) -> Result<Span, IovaError> {
        if !range.is_aligned(self.granule) || !self.aperture.contains_range(&range) {
            return Err(self.no_span(range));
        }
        let shift = self.granule.shift();
        Ok(Span::new(range.start().raw() >> shift, range.len() >> shift))
    }

    #[cold]
    fn no_span(&self, range: IovaRange) -> IovaError {
        if !range.is_aligned(self.granule) {
            return IovaError::Misaligned { range, granule: self.granule };
        }
        IovaError::OutsideAperture { range, aperture: self.aperture }
    }
}

impl<P: Platform, C> fmt::Debug for IovaAllocator<P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IovaAllocator")
            .field("granule", &self.granule)
            .field("aperture", &self.aperture)
            .finish_non_exhaustive()
    }
}
