//! Counters that people read, kept per CPU and changed under a lock that the CPU holds anyway, so that
//! counting costs neither a shared cache line nor an atomic step.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::mem::{PerCpu, Platform};

/// What a device (or a domain, for all its devices) has mapped now, and what happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Mappings that are live now.
    pub live_mappings: u64,
    /// Bytes that live mappings were asked for.
    pub mapped_bytes: u64,
    /// Bytes mapped beside them and owned by the mapping, zeroed.
    pub padding_bytes: u64,
    /// Bytes mapped beside them that belong to somebody else.
    pub exposed_bytes: u64,
    /// Bytes of live mappings that lie in a bounce buffer.
    pub bounced_bytes: u64,
    /// Mappings made so far.
    pub maps: u64,
    /// Mappings so far that went through a bounce buffer.
    pub bounces: u64,
}

/// What one mapping adds to the counters, and takes away when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes asked for.
    pub bytes: u64,
    /// Bytes mapped beside them, owned by the mapping.
    pub padding: u64,
    /// Bytes mapped beside them, owned by somebody else.
    pub exposed: u64,
    /// Bytes that lie in a bounce buffer.
    pub bounced: u64,
}

/// Which lock a share is changed under. Each CPU has a share for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    /// The lock that every map takes: the IOVA allocator's, or a direct device's own.
    Map,
    /// The quarantine ring's: deferred unmaps.
    Ring,
}

/// What is changed under one lock of one CPU. A mapping may end on another CPU, and under another
/// lock, than it began, so only sums mean something; they are right modulo 2^64.
///
/// The fields are atomic for those who read them without the lock. Whoever changes them holds it, so
/// that a plain load and store is enough: no atomic step is spent on counting.
#[derive(Debug, Default)]
struct Share {
    begun: AtomicU64,
    ended: AtomicU64,
    bytes: AtomicU64,
    padding: AtomicU64,
    exposed: AtomicU64,
    bounced: AtomicU64,
    bounces: AtomicU64,
}

#[inline(always)]
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Release);
}

impl Share {
    #[inline]
    fn add(&self, print: &Footprint, sign: u64) {
        add(&self.bytes, print.bytes.wrapping_mul(sign));
        if print.padding | print.exposed | print.bounced != 0 {
            add(&self.padding, print.padding.wrapping_mul(sign));
            add(&self.exposed, print.exposed.wrapping_mul(sign));
            add(&self.bounced, print.bounced.wrapping_mul(sign));
        }
    }
}

const PLUS: u64 = 1;
const MINUS: u64 = u64::MAX;

/// The counters of one device.
#[derive(Debug)]
pub(crate) struct Counters {
    shares: PerCpu<[Share; 2]>,
}

impl Counters {
    pub(crate) fn new<P: Platform>(platform: &P) -> Self {
        Self { shares: PerCpu::new(platform, Default::default) }
    }

    #[inline]
    fn share(&self, cpu: usize, under: Under) -> &Share {
        let [map, ring] = self.shares.at(cpu);
        match under {
            Under::Map => map,
            Under::Ring => ring,
        }
    }

    /// Counts a mapping in. The caller holds the lock [`Under::Map`] of `cpu`.
    #[inline]
    pub(crate) fn begin(&self, cpu: usize, print: &Footprint) {
        let share = self.share(cpu, Under::Map);
        add(&share.begun, 1);
        share.add(print, PLUS);
        if print.bounced != 0 {
            add(&share.bounces, 1);
        }
    }

    /// Takes [`begin`](Self::begin) back: the mapping was not made. The caller holds the lock
    /// [`Under::Map`] of `cpu`.
    #[cold]
    pub(crate) fn cancel(&self, cpu: usize, print: &Footprint) {
        let share = self.share(cpu, Under::Map);
        share.add(print, MINUS);
        if print.bounced != 0 {
            add(&share.bounces, MINUS);
        }
        add(&share.begun, MINUS);
    }

    /// Counts a mapping out. The caller holds the lock `under` of `cpu`.
    #[inline]
    pub(crate) fn end(&self, cpu: usize, under: Under, print: &Footprint) {
        let share = self.share(cpu, under);
        share.add(print, MINUS);
        add(&share.ended, 1);
    }

    /// How many mappings are live.
    pub(crate) fn live(&self) -> u64 {
        // Ends are read first: a mapping that begins and ends meanwhile is not counted as -1.
        let ended = self.sum(|share| &share.ended);
        self.sum(|share| &share.begun).wrapping_sub(ended)
    }

    /// The sums.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            live_mappings: self.live(),
            mapped_bytes: self.sum(|share| &share.bytes),
            padding_bytes: self.sum(|share| &share.padding),
            exposed_bytes: self.sum(|share| &share.exposed),
            bounced_bytes: self.sum(|share| &share.bounced),
            maps: self.sum(|share| &share.begun),
            bounces: self.sum(|share| &share.bounces),
        }
    }

    fn sum(&self, pick: impl Fn(&Share) -> &AtomicU64) -> u64 {
        self.shares
            .iter()
            .flatten()
            .map(|share| pick(share).load(Ordering::Acquire))
            .fold(0, u64::wrapping_add)
    }
}

/// What a domain counts on each CPU, under the lock of the allocator's share.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Which CPU it is, for the counters of devices.
    pub cpu: usize,
    /// Bytes exposed now. As with all that is counted a CPU, only the sum means something.
    pub exposed: u64,
    /// Invalidations that completed.
    pub invalidations: u64,
}

impl Tally {
    pub(crate) fn new(cpu: usize) -> Self {
        Self { cpu, exposed: 0, invalidations: 0 }
    }
}

/// Who counts a mapping, and what it adds.
#[derive(Clone, Copy)]
pub(crate) struct Account<'a> {
    pub counters: &'a Counters,
    pub print: Footprint,
}
