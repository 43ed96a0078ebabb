//! The bitmap of page sizes that a translation can map.

use core::fmt;

use super::Granule;

/// A set of page sizes: bit *n* set means that pages of 2^*n* bytes can be mapped.
///
/// The form that Linux calls `pgsize_bitmap`. It may be empty; [`PageSizes::granule`] then has no
/// answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageSizes(u64);

impl PageSizes {
    /// The set whose bitmap is `bits`; bits below 4 KiB are dropped.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & !0xfff)
    }

    /// The bitmap.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether no size is in the set.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether pages of `size` bytes are in the set.
    #[inline]
    pub const fn contains(self, size: u64) -> bool {
        size.is_power_of_two() && self.0 & size != 0
    }

    /// The sizes in both sets.
    #[inline]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The sizes in either set.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The smallest size of the set: its granule.
    #[inline]
    pub const fn granule(self) -> Option<Granule> {
        if self.0 == 0 {
            return None;
        }
        match Granule::new(1 << self.0.trailing_zeros()) {
            Ok(granule) => Some(granule),
            Err(_) => None,
        }
    }

    /// The largest size of the set that is not above `limit` bytes.
    #[inline]
    pub const fn largest_up_to(self, limit: u64) -> Option<u64> {
        if limit == 0 {
            return None;
        }
        let below = u64::MAX >> limit.leading_zeros();
        let fitting = self.0 & below;
        if fitting == 0 { None } else { Some(1 << (63 - fitting.leading_zeros())) }
    }

    /// The largest page that fits a step at `iova` and `phys` (both in bytes) with `len` bytes
    /// left: the rule by which every map picks its page size.
    ///
    /// Source: the page-size choice of Linux `iommu_pgsize`.
    #[inline]
    pub const fn best(self, iova: u64, phys: u64, len: u64) -> Option<u64> {
        let fits = match self.largest_up_to(len) {
            Some(size) => self.0 & (size | (size - 1)),
            None => return None,
        };
        let merged = iova | phys;
        let aligned = if merged == 0 {
            fits
        } else {
            let low = merged & merged.wrapping_neg();
            fits & (low | (low - 1))
        };
        if aligned == 0 { None } else { Some(1 << (63 - aligned.leading_zeros())) }
    }

    /// The sizes in bytes, smallest first.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = u64> {
        (12..64).map(|bit| 1u64 << bit).filter(move |size| self.0 & size != 0)
    }
}

impl FromIterator<u64> for PageSizes {
    /// Collects sizes in bytes; what is no power of two is dropped.
    fn from_iter<I: IntoIterator<Item = u64>>(sizes: I) -> Self {
        Self::from_bits(
            sizes
                .into_iter()
                .filter(|size| size.is_power_of_two())
                .fold(0, |bits, size| bits | size),
        )
    }
}

impl fmt::Display for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, size) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match Granule::new(size) {
                Ok(granule) => write!(f, "{comma}{granule}")?,
                Err(_) => write!(f, "{comma}{size:#x}")?,
            }
        }
        if self.is_empty() { write!(f, "no page size") } else { Ok(()) }
    }
}

impl fmt::Debug for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSizes({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The bit tricks agree with trying every size.
        #[test]
        fn best_is_the_largest_that_fits(bits: u64, iova: u64, phys: u64, len: u64, a in 0u32..52, b in 0u32..52, l in 0u32..52) {
            let (iova, phys, len) = (iova << a, phys << b, len >> l);
            let sizes = PageSizes::from_bits(bits);
            let brute = sizes.iter().filter(|size| len >= *size && (iova | phys) % size == 0).max();
            prop_assert_eq!(sizes.best(iova, phys, len), brute);
        }

        #[test]
        fn largest_up_to_agrees_with_iteration(bits: u64, limit: u64, shift in 0u32..64) {
            let (sizes, limit) = (PageSizes::from_bits(bits), limit >> shift);
            prop_assert_eq!(sizes.largest_up_to(limit), sizes.iter().filter(|s| *s <= limit).max());
        }
    }
}
