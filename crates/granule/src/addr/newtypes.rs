//! The three address newtypes.

use core::fmt;

use super::{Address, Granule};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address, in bytes.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address, in bytes.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// This address plus `bytes`, or `None` past the end of the 64-bit space.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// This address minus `bytes`, or `None` below zero.
            #[inline]
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The distance from `earlier` to this address in bytes, or `None` if it is negative.
            #[inline]
            pub const fn offset_from(self, earlier: Self) -> Option<u64> {
                self.0.checked_sub(earlier.0)
            }

            /// The largest multiple of `granule` that is not above this address.
            #[inline]
            pub const fn align_down(self, granule: Granule) -> Self {
                Self(self.0 & !granule.mask())
            }

            /// The smallest multiple of `granule` that is not below this address, or `None` if
            /// there is none in 64 bits.
            #[inline]
            pub const fn align_up(self, granule: Granule) -> Option<Self> {
                match self.0.checked_add(granule.mask()) {
                    Some(raw) => Some(Self(raw & !granule.mask())),
                    None => None,
                }
            }

            /// This address modulo `granule`, in bytes.
            #[inline]
            pub const fn offset_in(self, granule: Granule) -> u64 {
                self.0 & granule.mask()
            }

            /// Whether this address is a multiple of `granule`.
            #[inline]
            pub const fn is_aligned(self, granule: Granule) -> bool {
                self.offset_in(granule) == 0
            }
        }

        impl Address for $name {
            #[inline]
            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }

            #[inline]
            fn to_raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A physical address: what the memory controller sees.
    PhysAddr
}
address! {
    /// An I/O virtual address: what a domain's translation is indexed with.
    Iova
}
address! {
    /// A DMA address: what a device is programmed with. Zero is never handed out.
    DmaAddr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_checked_at_both_ends() {
        let top = PhysAddr::new(u64::MAX);
        assert_eq!(top.checked_add(1), None);
        assert_eq!(PhysAddr::new(0).checked_sub(1), None);
        assert_eq!(top.align_up(Granule::K16), None);
        assert_eq!(top.align_down(Granule::K16).raw(), 0xffff_ffff_ffff_c000);
    }

    #[test]
    fn alignment_is_by_the_granule() {
        let addr = PhysAddr::new(0x1_5000);
        assert!(addr.is_aligned(Granule::K4));
        assert!(!addr.is_aligned(Granule::K16));
        assert_eq!(addr.offset_in(Granule::K16), 0x1000);
        assert_eq!(addr.align_up(Granule::K16), Some(PhysAddr::new(0x1_8000)));
    }
}
