//! Allocation that counts: what the user keeps for each CPU changes under the lock that an allocation
//! takes anyway, so that counting costs no atomic step of its own.
//!
//! These calls pass by the front: they take the lock in any case.

use super::allocator::Shard;
use super::magazine::Class;
use super::{IovaAllocator, IovaError, IovaRequest};
use crate::addr::{Iova, IovaRange};
use crate::mem::Platform;

/// On what terms a range is taken. A trait and no closure, since a closure cannot say that it is always to
/// be inlined.
pub trait Terms<C> {
    /// Changes a CPU's counts, or refuses and changes nothing. This runs under a lock: it must be short,
    /// and must not call the allocator.
    fn admit(self, counts: &mut C) -> bool;
}

impl<P: Platform, C> IovaAllocator<P, C> {
    /// As [`alloc`](Self::alloc); once that has succeeded, `count` changes a CPU's counts.
    ///
    /// `count` runs under a lock: it must be short, and must not call this allocator.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc); then nothing is counted.
    #[inline(always)]
    pub fn alloc_counted(
        &self,
        request: &IovaRequest,
        count: impl FnOnce(&mut C),
    ) -> Result<Iova, IovaError> {
        let len = self.granules(request)?;
        if let Some(class) = Class::of(len) {
            let mut shard = self.shares.local(&self.platform).shard.lock();
            if let Some(iova) = self.pop(&mut shard, class, len, request) {
                count(&mut shard.counts);
                return Ok(iova);
            }
        }
        let iova = self.alloc_uncached(len, request)?;
        self.count(count);
        Ok(iova)
    }

    /// Takes a range of `size` bytes, whole granules, that this CPU has at hand, if `terms` admit it.
    /// `None` if they do not, or if nothing is at hand: what else there is to be done,
    /// [`alloc_counted`](Self::alloc_counted) does.
    #[inline(always)]
    pub fn take_counted(&self, size: u64, terms: impl Terms<C>) -> Option<Iova> {
        let class = Class::of(size >> self.granule.shift())?;
        let mut shard = self.shares.local(&self.platform).shard.lock();
        let Shard { magazines, counts, .. } = &mut *shard;
        let magazines = magazines.as_mut()?;
        let start = magazines.pop(class)?;
        if !terms.admit(counts) {
            // It was there a moment ago: there is room.
            magazines.push(class, start);
            return None;
        }
        Some(Iova::new(start << self.granule.shift()))
    }

    /// As [`free`](Self::free); once that has succeeded, `count` changes a CPU's counts, perhaps
    /// another's than those that the allocation changed: only sums over all CPUs mean something.
    ///
    /// `count` runs under a lock: it must be short, and must not call this allocator.
    ///
    /// # Errors
    /// As [`free`](Self::free); then nothing is counted.
    #[inline(always)]
    pub fn free_counted(
        &self,
        range: IovaRange,
        count: impl FnOnce(&mut C),
    ) -> Result<(), IovaError> {
        let mut shard = self.shares.local(&self.platform).shard.lock();
        self.free_locked(&mut shard, range)?;
        count(&mut shard.counts);
        Ok(())
    }

    /// Frees several ranges, as [`free_counted`](Self::free_counted) does it, under one lock; `count` is
    /// called for each that was freed. `ranges` is read under the lock, too.
    ///
    /// # Errors
    /// The first of the errors of [`free`](Self::free); all other ranges are freed nevertheless.
    pub fn free_many(
        &self,
        ranges: impl IntoIterator<Item = IovaRange>,
        mut count: impl FnMut(&mut C, IovaRange),
    ) -> Result<(), IovaError> {
        let mut shard = self.shares.local(&self.platform).shard.lock();
        let mut result = Ok(());
        for range in ranges {
            match self.free_locked(&mut shard, range) {
                Ok(()) => count(&mut shard.counts, range),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    #[inline(always)]
    fn free_locked(&self, shard: &mut Shard<C>, range: IovaRange) -> Result<(), IovaError> {
        let span = self.span_of(range)?;
        match span.class() {
            Some(class) => self.push(shard, class, range, span),
            None => self.free_uncached(range, span),
        }
    }

    /// Changes a CPU's counts alone, under the same lock and the same terms.
    #[inline]
    pub fn count<R>(&self, count: impl FnOnce(&mut C) -> R) -> R {
        count(&mut self.shares.local(&self.platform).shard.lock().counts)
    }

    /// Shows every CPU's counts, one after the other, each under its lock.
    pub fn counts(&self, mut each: impl FnMut(&C)) {
        self.shares.iter().for_each(|share| each(&share.shard.lock().counts));
    }
}
