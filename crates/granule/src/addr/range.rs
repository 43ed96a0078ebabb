//! Checked half-open address ranges.

use core::fmt;
use core::num::NonZeroU64;

use super::{DmaAddr, Granule, Iova, PhysAddr};

/// One of the address newtypes; lets [`AddrRange`] be written once.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display + fmt::LowerHex {
    /// Wraps a raw address.
    fn from_raw(raw: u64) -> Self;
    /// The raw address.
    fn to_raw(self) -> u64;
}

/// A range of addresses that is never empty and never wraps; its last byte may be 2^64 - 1.
///
/// Holding one proves that `start + (len - 1)` does not overflow. The length is non-zero by its type,
/// so that an `Option` of a range is as large as the range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddrRange<A> {
    start: A,
    len: NonZeroU64,
}

/// A range of physical memory.
pub type PhysRange = AddrRange<PhysAddr>;
/// A range of a domain's IOVA space.
pub type IovaRange = AddrRange<Iova>;
/// A range of a device's DMA addresses.
pub type DmaRange = AddrRange<DmaAddr>;

/// A range that cannot exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no range of {len:#x} bytes starts at {start:#x}: it must not be empty nor pass 2^64")]
pub struct RangeError {
    /// The start that was asked for.
    pub start: u64,
    /// The length that was asked for, in bytes.
    pub len: u64,
}

impl<A: Address> AddrRange<A> {
    /// The range of `len` bytes from `start`.
    ///
    /// # Errors
    /// [`RangeError`] if `len` is zero or the last byte would lie past 2^64 - 1.
    #[inline]
    pub fn new(start: A, len: u64) -> Result<Self, RangeError> {
        let refused = RangeError { start: start.to_raw(), len };
        let Some(size) = NonZeroU64::new(len) else { return Err(refused) };
        match start.to_raw().checked_add(len - 1) {
            Some(_) => Ok(Self { start, len: size }),
            None => Err(refused),
        }
    }

    /// The range from `start` to `last`, both included.
    ///
    /// # Errors
    /// [`RangeError`] if `last` is below `start`, or for the whole 64-bit space, whose length does
    /// not fit 64 bits.
    #[inline]
    pub fn from_inclusive(start: A, last: A) -> Result<Self, RangeError> {
        let span = last.to_raw().checked_sub(start.to_raw());
        match span.and_then(|span| NonZeroU64::new(span.wrapping_add(1))) {
            Some(len) => Ok(Self { start, len }),
            None => Err(RangeError { start: start.to_raw(), len: 0 }),
        }
    }

    /// The first address.
    #[inline]
    pub fn start(&self) -> A {
        self.start
    }

    /// The length in bytes, never zero.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // A range is never empty.
    pub fn len(&self) -> u64 {
        self.len.get()
    }

    /// The last address that belongs to the range.
    #[inline]
    pub fn last(&self) -> A {
        // Does not overflow: that is what a range is.
        A::from_raw(self.start.to_raw().wrapping_add(self.len.get() - 1))
    }

    /// The first address past the range, or `None` at the end of the 64-bit space.
    #[inline]
    pub fn end(&self) -> Option<A> {
        self.start.to_raw().checked_add(self.len.get()).map(A::from_raw)
    }

    /// Whether `addr` lies inside.
    #[inline]
    pub fn contains(&self, addr: A) -> bool {
        addr >= self.start && addr <= self.last()
    }

    /// Whether all of `other` lies inside.
    #[inline]
    pub fn contains_range(&self, other: &Self) -> bool {
        other.start >= self.start && other.last() <= self.last()
    }

    /// Whether the two share an address.
    #[inline]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }

    /// What the two share.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let last = self.last().min(other.last());
        if start > last { None } else { Self::from_inclusive(start, last).ok() }
    }

    /// Whether `other` starts right behind the last byte of this range.
    #[inline]
    pub fn is_followed_by(&self, other: &Self) -> bool {
        self.end() == Some(other.start)
    }

    /// The part of `len` bytes that starts `offset` bytes in, or `None` if it is empty or does not
    /// lie inside.
    #[inline]
    pub fn slice(&self, offset: u64, len: u64) -> Option<Self> {
        let (end, len) = (offset.checked_add(len)?, NonZeroU64::new(len)?);
        if end > self.len.get() {
            return None;
        }
        Some(Self { start: A::from_raw(self.start.to_raw() + offset), len })
    }

    /// This range grown to whole granules on both sides, or `None` if that would pass 2^64.
    #[inline]
    pub fn align_outward(&self, granule: Granule) -> Option<Self> {
        let start = self.start.to_raw() & !granule.mask();
        let last = self.last().to_raw() | granule.mask();
        let len = NonZeroU64::new((last - start).wrapping_add(1))?;
        Some(Self { start: A::from_raw(start), len })
    }

    /// This range shrunk to whole granules on both sides, or `None` if none is left.
    pub fn align_inward(&self, granule: Granule) -> Option<Self> {
        let start = self.start.to_raw().checked_add(granule.mask())? & !granule.mask();
        let end = match self.end() {
            Some(end) => end.to_raw() & !granule.mask(),
            None => return Self::new(A::from_raw(start), start.wrapping_neg()).ok(),
        };
        let len = end.checked_sub(start)?;
        Self::new(A::from_raw(start), len).ok()
    }

    /// Whether start and length are whole granules.
    #[inline]
    pub fn is_aligned(&self, granule: Granule) -> bool {
        (self.start.to_raw() | self.len.get()) & granule.mask() == 0
    }
}

impl<A: Address> fmt::Display for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start, self.last())
    }
}

impl<A: Address> fmt::Debug for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start, self.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    #[test]
    fn the_top_of_the_space_is_a_legal_range() {
        let top = range(u64::MAX - 0xfff, 0x1000);
        assert_eq!(top.end(), None);
        assert_eq!(top.last().raw(), u64::MAX);
        assert_eq!(top.align_inward(Granule::K4), Some(top));
        assert_eq!(range(u64::MAX, 1).align_outward(Granule::K4), Some(top));
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        assert!(PhysRange::new(PhysAddr::new(4), 0).is_err());
        assert!(PhysRange::new(PhysAddr::new(u64::MAX), 2).is_err());
        assert!(PhysRange::from_inclusive(PhysAddr::new(2), PhysAddr::new(1)).is_err());
        assert!(PhysRange::from_inclusive(PhysAddr::new(0), PhysAddr::new(u64::MAX)).is_err());
    }

    #[test]
    fn alignment_outward_and_inward() {
        let r = range(0x1001, 0x8000);
        assert_eq!(r.align_outward(Granule::K16), Some(range(0, 0xc000)));
        assert_eq!(r.align_inward(Granule::K4), Some(range(0x2000, 0x7000)));
        assert_eq!(range(0x1001, 0x100).align_inward(Granule::K4), None);
    }

    #[test]
    fn no_range_costs_no_space() {
        assert_eq!(size_of::<Option<PhysRange>>(), size_of::<PhysRange>());
    }

    #[test]
    fn slices_stay_inside() {
        let r = range(0x1000, 0x100);
        assert_eq!(r.slice(0x80, 0x80), Some(range(0x1080, 0x80)));
        assert_eq!(r.slice(0x80, 0x81), None);
        assert_eq!(r.slice(u64::MAX, 2), None);
        assert_eq!(r.slice(0, 0), None);
    }
}
