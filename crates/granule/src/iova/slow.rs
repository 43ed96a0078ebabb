//! The rare path: between the magazines and the tree, and what to say when there is no space.

use core::sync::atomic::Ordering;

use super::allocator::{IovaAllocator, Shard};
use super::magazine::{Class, Magazines};
use super::space::{ClaimError, Space, Span, order_of};
use super::tree::NoMemory;
use super::{IovaError, IovaRequest};
use crate::addr::{Iova, IovaRange};
use crate::mem::Platform;

/// Natural alignment ends here: no common table format has a larger page, save those of 512 GiB.
const NATURAL_MAX: u64 = 1 << 30;

/// A request in granules, of which it is known that an empty aperture could meet it.
#[derive(Clone, Copy, Debug)]
struct Goal {
    len: u64,
    /// The range starts at a multiple of two to this power.
    align: u32,
    /// What aperture and window share.
    span: Span,
}

impl<P: Platform, C> IovaAllocator<P, C> {
    /// Allocates what the magazines do not have.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_uncached(
        &self,
        len: u64,
        request: &IovaRequest,
    ) -> Result<Iova, IovaError> {
        let goal = self.goal(len, request, true)?;
        if let Some(start) = self.alloc_refilling(&goal) {
            return Ok(self.iova(start));
        }
        let mut outcome = self.space.lock().take_one(len, goal.align, goal.span);
        if !matches!(outcome, Ok(Some(_))) {
            self.flush_caches();
            outcome = self.space.lock().take_one(len, goal.align, goal.span);
        }
        match outcome {
            Ok(Some(start)) => Ok(self.iova(start)),
            Ok(None) => Err(self.no_space(&goal, request)),
            Err(NoMemory) => Err(IovaError::OutOfMemory),
        }
    }

    /// The highest place that a request could be given now by [`alloc_at`](Self::alloc_at): aligned as
    /// the request says, not naturally. Nothing is taken, so the answer may be out of date when it
    /// arrives; for a search that compares several allocators, and for space that is tight.
    ///
    /// `None` if there is no such place.
    pub fn highest_free(&self, request: &IovaRequest) -> Option<Iova> {
        let len = self.granule.round_up(request.size)? >> self.granule.shift();
        let goal = self.goal(len, request, false).ok()?;
        self.flush_caches();
        let start = self.space.lock().highest(len, goal.align, goal.span)?;
        Some(self.iova(start))
    }

    /// Fills this CPU's magazine with ranges that meet the goal, and takes one.
    fn alloc_refilling(&self, goal: &Goal) -> Option<u64> {
        let class = Class::of(goal.len)?;
        if goal.align > order_of(goal.len) {
            return None;
        }
        self.equip_others();
        let mut shard = self.shares.local(&self.platform).shard.lock();
        if shard.magazines.is_none() {
            shard.magazines = Magazines::allocate();
        }
        let magazines = shard.magazines()?;
        magazines.refill(class, |room| self.space.lock().take_many(class, goal.span, room));
        magazines.pop_if(class, |start| {
            start >= goal.span.low && start + (goal.len - 1) <= goal.span.high
        })
    }

    /// Gets magazines for CPUs which have only freed so far, since a free must not allocate.
    fn equip_others(&self) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        self.wanted.store(false, Ordering::Relaxed);
        for share in self.shares.iter() {
            let mut shard = share.shard.lock();
            if shard.wanted && shard.magazines.is_none() {
                shard.magazines = Magazines::allocate();
            }
            shard.wanted = false;
        }
    }

    /// Frees a range that the magazine of its class had no room for.
    #[cold]
    #[inline(never)]
    pub(super) fn free_overflowing(
        &self,
        shard: &mut Shard<C>,
        class: Class,
        range: IovaRange,
        span: Span,
    ) -> Result<(), IovaError> {
        let Some(magazines) = shard.magazines() else {
            shard.wanted = true;
            self.wanted.store(true, Ordering::Relaxed);
            return self.free_uncached(range, span);
        };
        let mut space = self.space.lock();
        magazines.drain_half(class, |starts| space.give_handy(class, starts));
        if magazines.is_full(class) {
            magazines.drain_some(class, |class, starts| space.give_cached(class, starts));
        }
        drop(space);
        if magazines.push(class, span.low) { Ok(()) } else { self.free_uncached(range, span) }
    }

    /// Frees a range into the tree.
    #[cold]
    #[inline(never)]
    pub(super) fn free_uncached(&self, range: IovaRange, span: Span) -> Result<(), IovaError> {
        self.space.lock().give(span).map_err(|_| IovaError::NotAllocated { range })
    }

    /// Fills a CPU's empty magazine from the depot, and takes one.
    #[cold]
    #[inline(never)]
    pub(super) fn pop_depot(&self, magazines: &mut Magazines, class: Class) -> Option<u64> {
        magazines.refill_half(class, |room| self.space.lock().take_handy(class, room));
        magazines.pop(class)
    }

    /// Puts a range into a CPU's full magazine after half of that has gone to the depot; false if that
    /// is full, too.
    #[cold]
    #[inline(never)]
    pub(super) fn push_depot(&self, magazines: &mut Magazines, class: Class, start: u64) -> bool {
        magazines.drain_half(class, |starts| self.space.lock().give_handy(class, starts));
        magazines.push(class, start)
    }

    /// Empties all fronts, magazines and the depot into the tree.
    pub(super) fn drain_all(&self) {
        for share in self.shares.iter() {
            share.front.drain(|start, len| {
                if let Some(class) = Class::of(len) {
                    self.space.lock().give_cached(class, &[start]);
                }
            });
            let mut shard = share.shard.lock();
            let Some(magazines) = shard.magazines() else { continue };
            if magazines.granules() != 0 {
                let mut space = self.space.lock();
                magazines.drain_all(|class, starts| space.give_cached(class, starts));
            }
        }
        self.space.lock().empty_depot();
    }

    /// Claims something in the tree; if it is taken, perhaps by a magazine, empties those and tries
    /// again.
    pub(super) fn with_caches_flushed(
        &self,
        mut claim: impl FnMut(&mut Space) -> Result<(), ClaimError>,
    ) -> Result<(), ClaimError> {
        let first = claim(&mut self.space.lock());
        if first.is_ok() {
            return first;
        }
        self.flush_caches();
        claim(&mut self.space.lock())
    }

    /// What stood in the way of an exact allocation.
    pub(super) fn claim_error(&self, error: ClaimError, range: IovaRange, span: Span) -> IovaError {
        let ClaimError::Taken(at) = error else { return IovaError::OutOfMemory };
        let region = self.space.lock().reserved_in(span);
        match region.and_then(|region| self.range(region)) {
            Some(reserved) => IovaError::Reserved { range, reserved },
            None => IovaError::InUse { range, at: self.iova(at) },
        }
    }

    /// The request in granules, or why it can never be met.
    fn goal(&self, len: u64, request: &IovaRequest, natural: bool) -> Result<Goal, IovaError> {
        let shift = self.granule.shift();
        let most = if natural { NATURAL_MAX.trailing_zeros().saturating_sub(shift) } else { 0 };
        let natural = order_of(len).min(most);
        let align = natural.max(request.align.trailing_zeros().saturating_sub(shift));
        let shared = match request.window {
            None => self.aperture,
            Some(window) => self
                .aperture
                .intersection(&window)
                .ok_or(IovaError::WindowOutside { window, aperture: self.aperture })?,
        };
        let whole = shared.align_inward(self.granule);
        let span = whole.map(|range| Span::new(range.start().raw() >> shift, range.len() >> shift));
        let Some(span) = span.filter(|span| span.len() >= len) else {
            return Err(IovaError::TooLarge {
                size: request.size,
                limit: whole.map_or(0, |range| range.len()),
            });
        };
        let first = span.low.next_multiple_of(1 << align);
        if first > span.high || span.high - first < len - 1 {
            let align = 1 << (align + shift);
            return Err(IovaError::WindowTooSmall { size: request.size, align, window: shared });
        }
        Ok(Goal { len, align, span })
    }

    /// Why a goal cannot be met now.
    fn no_space(&self, goal: &Goal, request: &IovaRequest) -> IovaError {
        let shift = self.granule.shift();
        let extents = self.space.lock().extents(goal.span);
        let (size, free, largest) = (request.size, extents.sum << shift, extents.longest << shift);
        if extents.sum < goal.len {
            return IovaError::Full { size, free };
        }
        IovaError::Fragmented { size, align: 1 << (goal.align + shift), free, largest }
    }

    fn iova(&self, granule: u64) -> Iova {
        Iova::new(granule << self.granule.shift())
    }

    fn range(&self, span: Span) -> Option<IovaRange> {
        IovaRange::new(self.iova(span.low), span.len() << self.granule.shift()).ok()
    }
}
