//! What an IOMMU is like, what a stream of it does, and why it refuses.

use std::time::Duration;

use granule::addr::{Access, DmaAddr, PhysAddr};

use crate::walk::{FormatError, SimFormat, WalkFault};

/// A stream whose table base firmware has locked: its root can be read, but not replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedStream {
    /// The stream.
    pub stream: u32,
    /// The context that firmware's table is tagged with.
    pub context: u32,
    /// Firmware's live root tables.
    pub roots: Vec<PhysAddr>,
    /// The input bits that firmware's table indexes.
    pub input_bits: u32,
}

/// What an IOMMU is like. Start from [`IommuConfig::new`] and change what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuConfig {
    /// Its name, unique in the machine.
    pub name: String,
    /// The page tables that it walks.
    pub format: SimFormat,
    /// The widest input address in bits.
    pub input_bits: u32,
    /// The widest output address in bits; a translation beyond it faults.
    pub output_bits: u32,
    /// Whether the walker snoops the CPU's caches.
    pub coherent_walk: bool,
    /// Whether streams can bypass translation.
    pub can_bypass: bool,
    /// How many streams it has.
    pub streams: u32,
    /// Streams that firmware has locked.
    pub locked: Vec<LockedStream>,
    /// Whether entries that map nothing are cached too (VT-d's caching mode).
    pub caching_mode: bool,
    /// How long an invalidation takes; until it has passed the stale entries serve.
    pub invalidation_latency: Duration,
    /// A random cached entry is dropped before one access in so many; 0 is never, which is the
    /// longest that hardware may keep one.
    pub evict_one_in: u32,
    /// Whether the table is indexed with the low `input_bits` of what the device emits, whatever
    /// stands above them (DART), or wider addresses fault (all others).
    pub index_low_bits: bool,
}

impl IommuConfig {
    /// An IOMMU of 16 streams with snooping walks and bypass, without locks, caching mode or random
    /// eviction.
    pub fn new(name: &str, format: SimFormat, input_bits: u32) -> Self {
        Self {
            name: name.into(),
            format,
            input_bits,
            output_bits: format.max_output_bits(),
            coherent_walk: true,
            can_bypass: true,
            streams: 16,
            locked: Vec::new(),
            caching_mode: false,
            invalidation_latency: Duration::ZERO,
            evict_one_in: 0,
            index_low_bits: format.is_dart(),
        }
    }
}

/// What an IOMMU does with what a stream emits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StreamState {
    /// Everything faults: the state after reset.
    #[default]
    Blocked,
    /// Addresses pass unchanged.
    Bypass,
    /// Addresses are translated.
    Translate {
        /// The tag of what is cached (a domain id, ASID or VMID).
        context: u32,
        /// The root tables: one, or up to four with DART.
        roots: Vec<PhysAddr>,
        /// How many input bits the tables index.
        input_bits: u32,
    },
}

/// Why an IOMMU refuses a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimIommuError {
    /// There is no such stream.
    #[error("{iommu} has streams 0 to {last}, not {stream}")]
    NoSuchStream {
        /// The IOMMU.
        iommu: String,
        /// The stream.
        stream: u32,
        /// The last stream it has.
        last: u32,
    },
    /// The stream's registers are locked.
    #[error(
        "stream {stream} of {iommu} is locked by firmware: it keeps its root and is neither \
         blocked nor bypassed"
    )]
    Locked {
        /// The IOMMU.
        iommu: String,
        /// The stream.
        stream: u32,
    },
    /// The hardware has no bypass.
    #[error("{iommu} cannot bypass translation (stream {stream})")]
    NoBypass {
        /// The IOMMU.
        iommu: String,
        /// The stream.
        stream: u32,
    },
    /// The tables are of a shape that the format does not have.
    #[error(transparent)]
    Shape(#[from] FormatError),
    /// The tables index more bits than the IOMMU has.
    #[error("{iommu} has {limit} input bits, the table indexes {input_bits}")]
    InputBits {
        /// The IOMMU.
        iommu: String,
        /// What the table indexes.
        input_bits: u32,
        /// What the IOMMU has.
        limit: u32,
    },
    /// An invalidation did not complete: whatever it covered is still cached.
    #[error("{iommu}: the invalidation timed out; what it covered is still cached")]
    InvalidationTimedOut {
        /// The IOMMU.
        iommu: String,
    },
}

/// Why an access faulted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultReason {
    /// There is no such stream.
    #[error("no such stream")]
    NoSuchStream,
    /// The stream is blocked.
    #[error("the stream is blocked")]
    Blocked,
    /// The walk ended without a translation.
    #[error(transparent)]
    Walk(#[from] WalkFault),
    /// The cache remembers that nothing is mapped (caching mode).
    #[error("a cached entry says that nothing is mapped")]
    NegativeEntry,
    /// The mapping does not grant this.
    #[error("only {granted} is granted")]
    Permission {
        /// What is granted.
        granted: Access,
    },
    /// The byte lies outside the page's fence.
    #[error("outside the fence {first:#x}..={last:#x} of the page")]
    Fence {
        /// The first reachable byte of the page.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The output address is wider than the IOMMU's bus.
    #[error("the output address {phys:#x} does not fit {output_bits} bits")]
    OutputSize {
        /// The address.
        phys: PhysAddr,
        /// What fits.
        output_bits: u32,
    },
}

/// An entry of the fault log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// The stream.
    pub stream: u32,
    /// What the device emitted.
    pub address: DmaAddr,
    /// What it wanted.
    pub access: Access,
    /// Why it was refused.
    pub reason: FaultReason,
}

/// What an IOMMU has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Walks of tables.
    pub walks: u64,
    /// Walks that began at a cached pointer instead of the root.
    pub walk_cache_hits: u64,
    /// Accesses served by a cached leaf.
    pub hits: u64,
    /// Accesses refused by a cached negative entry.
    pub negative_hits: u64,
    /// Accesses that two cached leaves of different size matched: software changed a page size
    /// without invalidating in between.
    pub conflicts: u64,
    /// Invalidations that completed.
    pub invalidations: u64,
    /// Invalidations that timed out.
    pub timeouts: u64,
    /// Faults, logged or not.
    pub faults: u64,
}
