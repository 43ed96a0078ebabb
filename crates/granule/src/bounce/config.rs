//! What a pool is made of, and how full it is.
#![forbid(unsafe_code)]

use crate::addr::{Granule, PhysRange};

/// How to build a [`BouncePool`](super::BouncePool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BounceConfig {
    /// The size in bytes; rounded up to a multiple of the alignment, the slot and the CPU's page.
    pub size: u64,
    /// The unit of allocation in bytes: a power of two, at least 64 and at least the cache line.
    /// 2 KiB unless changed, as in swiotlb.
    pub slot: u64,
    /// The memory must lie inside this range: what the devices reach. `None`: anywhere.
    pub window: Option<PhysRange>,
    /// The largest granule that the pool serves: its blocks are aligned to it. Requests may ask for
    /// more alignment, and then waste what lies before the first aligned address.
    pub align: Granule,
    /// The memory node to prefer, if the machine has several.
    pub node: Option<u32>,
    /// Zero a slot when it is released. Costs a write of the whole slot each time; keeps a
    /// finished transfer's bytes from lying in memory that devices reach. Not needed for isolation
    /// if the caller keeps the rule of copying in first.
    pub scrub: bool,
}

impl BounceConfig {
    /// A pool of `size` bytes with 2 KiB slots, anywhere, aligned to 4 KiB, not scrubbed.
    pub const fn new(size: u64) -> Self {
        Self { size, slot: 2048, window: None, align: Granule::K4, node: None, scrub: false }
    }
}

/// How full a pool is, and what it refused. All sizes in bytes.
///
/// While other CPUs acquire and release, the figures are of slightly different moments; at rest
/// they are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BounceUsage {
    /// The size of the pool.
    pub total: u64,
    /// Owned by live slots, padding included.
    pub used: u64,
    /// The high-water mark: the sum of what each area had in use at its fullest, so never below
    /// the most that was in use at once, and equal to it while there is one area. (An exact mark
    /// would be a counter that all CPUs write.)
    pub peak: u64,
    /// The longest contiguous free run.
    pub largest_free: u64,
    /// How many contiguous blocks of memory the pool is made of; 1 where the platform had one.
    pub blocks: usize,
    /// Requests refused because too little was free.
    pub refused_full: u64,
    /// Requests refused although enough was free, because no run of it was long enough.
    pub refused_fragmented: u64,
    /// Requests refused that the pool could not have served when empty.
    pub refused_impossible: u64,
    /// Slots of other pools that were given to `release`; they stay in use in their own pool. Not
    /// zero means a bug in the caller.
    pub foreign_releases: u64,
}
