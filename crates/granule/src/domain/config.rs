//! How a domain is set up.

use alloc::vec::Vec;

use crate::addr::{Attributes, IovaRange, PhysAddr};

/// When an unmapped range's caches are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidationPolicy {
    /// Before `unmap` returns.
    Strict,
    /// Later, for many ranges at once; until then memory and IOVA wait in quarantine.
    Deferred {
        /// How many ranges wait on one CPU at most; the next one flushes. Preallocated.
        capacity: usize,
        /// How long the oldest may wait, in nanoseconds of [`Platform::now`](crate::mem::Platform::now).
        /// Checked at each unmap and by [`Domain::poll`](super::Domain::poll).
        max_age: u64,
    },
}

impl InvalidationPolicy {
    /// 64 ranges a CPU, 10 ms: Linux's flush queue waits as long.
    pub const DEFERRED: Self = Self::Deferred { capacity: 64, max_age: 10_000_000 };
}

/// What a reserved range of IOVA space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedUse {
    /// Never allocated and never mapped: a PCI bridge's window, a doorbell that the hardware
    /// intercepts before translation.
    Hole,
    /// Mapped to this physical address for the domain's life: a framebuffer that firmware left
    /// running (`iommu-addresses`, RMRR), an MSI doorbell behind an IOMMU that translates it.
    Mapped {
        /// The physical address of the first byte.
        phys: PhysAddr,
        /// Rights and kind.
        attrs: Attributes,
    },
}

/// A range of IOVA space that is not for allocation; it is grown to whole granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    range: IovaRange,
    usage: ReservedUse,
}

impl Reserved {
    /// A range that is never allocated and never mapped.
    pub const fn hole(range: IovaRange) -> Self {
        Self { range, usage: ReservedUse::Hole }
    }

    /// A range that is mapped to `phys` and what follows, for the domain's life.
    ///
    /// # Safety
    /// What lies there, in whole granules, is memory or registers that every device of the domain
    /// may access as `attrs` says for as long as the domain lives.
    pub const unsafe fn mapped(range: IovaRange, phys: PhysAddr, attrs: Attributes) -> Self {
        Self { range, usage: ReservedUse::Mapped { phys, attrs } }
    }

    /// The range.
    pub const fn range(&self) -> IovaRange {
        self.range
    }

    /// What it is for.
    pub const fn usage(&self) -> ReservedUse {
        self.usage
    }
}

/// How a domain is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// When caches are dropped.
    pub policy: InvalidationPolicy,
    /// Ranges that are not for allocation.
    pub reserved: Vec<Reserved>,
    /// Only these addresses are allocated, where the translation's aperture is larger.
    pub window: Option<IovaRange>,
}

impl Default for DomainConfig {
    /// Strict, nothing reserved, the whole aperture.
    fn default() -> Self {
        Self { policy: InvalidationPolicy::Strict, reserved: Vec::new(), window: None }
    }
}
