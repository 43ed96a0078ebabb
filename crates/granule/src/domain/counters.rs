//! Counters that people read, kept per CPU so that counting costs no shared cache line.

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

/// One CPU's share. A mapping may end on another CPU than it began on, so only sums mean
/// something; they are right modulo 2^64.
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

/// The counters of one device.
#[derive(Debug)]
pub(crate) struct Counters {
    shares: PerCpu<Share>,
}

impl Counters {
    pub(crate) fn new<P: Platform>(platform: &P) -> Self {
        Self { shares: PerCpu::new(platform, Share::default) }
    }

    /// Counts a mapping in.
    #[inline]
    pub(crate) fn begin<P: Platform>(&self, platform: &P, print: &Footprint) {
        let share = self.shares.local(platform);
        share.begun.fetch_add(1, Ordering::Relaxed);
        share.bytes.fetch_add(print.bytes, Ordering::Relaxed);
        if print.padding != 0 {
            share.padding.fetch_add(print.padding, Ordering::Relaxed);
        }
        if print.exposed != 0 {
            share.exposed.fetch_add(print.exposed, Ordering::Relaxed);
        }
        if print.bounced != 0 {
            share.bounced.fetch_add(print.bounced, Ordering::Relaxed);
            share.bounces.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a mapping out.
    #[inline]
    pub(crate) fn end<P: Platform>(&self, platform: &P, print: &Footprint) {
        let share = self.shares.local(platform);
        share.bytes.fetch_sub(print.bytes, Ordering::Relaxed);
        if print.padding != 0 {
            share.padding.fetch_sub(print.padding, Ordering::Relaxed);
        }
        if print.exposed != 0 {
            share.exposed.fetch_sub(print.exposed, Ordering::Relaxed);
        }
        if print.bounced != 0 {
            share.bounced.fetch_sub(print.bounced, Ordering::Relaxed);
        }
        share.ended.fetch_add(1, Ordering::Release);
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
            .map(|share| pick(share).load(Ordering::Acquire))
            .fold(0, u64::wrapping_add)
    }
}
