//! The granule: a power of two between 4 KiB and 2^62 bytes, and nothing else.

use core::fmt;

/// The smallest page a domain maps, or a CPU's page: a power of two from 4 KiB up.
///
/// Holding a `Granule` proves that the size is a power of two and at least 4096, so its mask and
/// shift need no checks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granule {
    shift: u8,
}

/// A size that cannot be a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{size:#x} is not a granule: it must be a power of two from 0x1000 (4 KiB) to 2^62")]
pub struct GranuleError {
    /// The size that was refused, in bytes.
    pub size: u64,
}

impl Granule {
    /// 4 KiB.
    pub const K4: Self = Self { shift: 12 };
    /// 16 KiB.
    pub const K16: Self = Self { shift: 14 };
    /// 64 KiB.
    pub const K64: Self = Self { shift: 16 };

    /// A granule of `size` bytes.
    ///
    /// # Errors
    /// [`GranuleError`] if `size` is not a power of two from 4 KiB to 2^62.
    pub const fn new(size: u64) -> Result<Self, GranuleError> {
        if size.is_power_of_two() && size >= 4096 && size <= 1 << 62 {
            Ok(Self { shift: size.trailing_zeros() as u8 })
        } else {
            Err(GranuleError { size })
        }
    }

    /// The size in bytes.
    #[inline]
    pub const fn size(self) -> u64 {
        1 << self.shift
    }

    /// The size minus one: the bits of an offset inside the granule.
    #[inline]
    pub const fn mask(self) -> u64 {
        self.size() - 1
    }

    /// The logarithm of the size to base two.
    #[inline]
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }

    /// `len` bytes rounded up to whole granules, or `None` past 2^64.
    #[inline]
    pub const fn round_up(self, len: u64) -> Option<u64> {
        match len.checked_add(self.mask()) {
            Some(sum) => Some(sum & !self.mask()),
            None => None,
        }
    }

    /// `len` bytes rounded down to whole granules.
    #[inline]
    pub const fn round_down(self, len: u64) -> u64 {
        len & !self.mask()
    }

    /// Whether `len` is a whole number of granules.
    #[inline]
    pub const fn divides(self, len: u64) -> bool {
        len & self.mask() == 0
    }
}

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shift {
            shift @ 12..=19 => write!(f, "{} KiB", 1u64 << (shift - 10)),
            shift @ 20..=29 => write!(f, "{} MiB", 1u64 << (shift - 20)),
            shift => write!(f, "{} GiB", 1u64 << (shift - 30)),
        }
    }
}

impl fmt::Debug for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Granule({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_from_4k() {
        assert_eq!(Granule::new(16384), Ok(Granule::K16));
        for size in [0, 1, 2048, 4097, 12288, u64::MAX, 1 << 63] {
            assert_eq!(Granule::new(size), Err(GranuleError { size }));
        }
    }

    #[test]
    fn rounding_is_checked() {
        assert_eq!(Granule::K16.round_up(1), Some(16384));
        assert_eq!(Granule::K16.round_up(u64::MAX), None);
        assert_eq!(Granule::K16.round_up(0), Some(0));
        assert_eq!(Granule::K64.round_down(65537), 65536);
    }
}
