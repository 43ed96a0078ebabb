//! What a caller holds while bounce memory is lent to it.
#![forbid(unsafe_code)]

use crate::addr::PhysRange;

/// Bounce memory on loan from one pool.
///
/// Holding one proves that nobody else has been given any byte of [`outer`](Self::outer): it is
/// neither `Copy` nor `Clone`, and [`BouncePool::release`](super::BouncePool::release) takes it by
/// value, so a second release cannot be written. Dropping it without a release leaks the memory and
/// nothing worse: the pool keeps it for ever.
///
/// A guard that must give its slot up in `Drop` keeps an `Option<BounceSlot>`, or a
/// [`RawBounceSlot`] if it needs a plain record.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a bounce slot that is not released stays in use for ever"]
pub struct BounceSlot(pub(super) RawBounceSlot);

/// The plain record of a [`BounceSlot`], for rings and guards that store words.
///
/// It proves nothing: see [`BouncePool::slot_from_raw`](super::BouncePool::slot_from_raw).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBounceSlot {
    pub(super) data: PhysRange,
    pub(super) outer: PhysRange,
    pub(super) pool: u64,
    pub(super) block: usize,
}

impl BounceSlot {
    /// Where the data goes: as long as was requested, with the low address bits that were to be
    /// kept.
    #[inline]
    pub fn data(&self) -> PhysRange {
        self.0.data
    }

    /// All that the slot owns: the data and the padding around it. This is what may be mapped for
    /// the device.
    #[inline]
    pub fn outer(&self) -> PhysRange {
        self.0.outer
    }

    /// The padding before the data and after it.
    pub fn padding(&self) -> [Option<PhysRange>; 2] {
        self.0.padding()
    }

    /// Gives the slot up as a plain record. It stays in use until somebody makes a slot of the
    /// record again and releases that.
    #[inline]
    pub fn into_raw(self) -> RawBounceSlot {
        self.0
    }
}

impl RawBounceSlot {
    /// Where the data goes.
    #[inline]
    pub fn data(&self) -> PhysRange {
        self.data
    }

    /// All that the slot owns.
    #[inline]
    pub fn outer(&self) -> PhysRange {
        self.outer
    }

    fn padding(&self) -> [Option<PhysRange>; 2] {
        let before = self.data.start().offset_from(self.outer.start()).unwrap_or(0);
        let behind = before.saturating_add(self.data.len());
        [
            self.outer.slice(0, before),
            self.outer.slice(behind, self.outer.len().saturating_sub(behind)),
        ]
    }
}
