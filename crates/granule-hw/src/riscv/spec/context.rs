//! The device directory (RISC-V IOMMU 1.0, "Device-Directory-Table" and "Device-context").
#![forbid(unsafe_code)]

use granule::table::FormatId;

use super::register::page_number;

/// Words of a context that are used: `tc`, `iohgatp`, `ta`, `fsc`. The extended format's others
/// (MSI remapping) stay zero: off.
pub const WORDS: usize = 4;

/// A device context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceContext {
    /// `tc.V` 0: every transaction faults, with cause 258.
    Blocked,
    /// Both stages Bare.
    Bypass,
    /// First stage.
    Translate {
        /// The root table.
        root: u64,
        /// `fsc.MODE`.
        mode: Mode,
        /// `ta.PSCID`, 20 bits.
        space: u32,
    },
}

/// A first-stage mode, `iosatp.MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 8.
    Sv39 = 8,
    /// 9.
    Sv48 = 9,
    /// 10.
    Sv57 = 10,
}

impl Mode {
    /// The mode that walks a format of the core's.
    pub const fn of(format: FormatId) -> Option<Self> {
        match format {
            FormatId::Sv39 => Some(Self::Sv39),
            FormatId::Sv48 => Some(Self::Sv48),
            FormatId::Sv57 => Some(Self::Sv57),
            _ => None,
        }
    }
}

const VALID: u64 = 1;

impl DeviceContext {
    /// The words. What makes the context take effect is in word 0.
    pub const fn words(&self) -> [u64; WORDS] {
        match *self {
            Self::Blocked => [0; WORDS],
            Self::Bypass => [VALID, 0, 0, 0],
            Self::Translate { root, mode, space } => {
                let first_stage = (mode as u64) << 60 | root >> 12 & 0xfff_ffff_ffff;
                [VALID, 0, ((space & 0xf_ffff) as u64) << 12, first_stage]
            }
        }
    }
}

/// A non-leaf directory entry.
pub const fn non_leaf(table: u64) -> u64 {
    page_number(table) | VALID
}

/// Bits of the device id that each level indexes, the leaf level first.
pub const fn index_bits(extended: bool) -> [u32; 3] {
    // A page holds 128 contexts of 32 bytes, or 64 of 64; 512 non-leaf entries; ids have 24 bits.
    if extended { [6, 9, 9] } else { [7, 9, 8] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts() {
        assert_eq!(DeviceContext::Blocked.words(), [0; 4]);
        assert_eq!(DeviceContext::Bypass.words(), [1, 0, 0, 0]);
        let context =
            DeviceContext::Translate { root: 0x8_1234_5000, mode: Mode::Sv48, space: 0x12345 };
        assert_eq!(context.words(), [1, 0, 0x1234_5000, 0x9000_0000_0081_2345]);
        assert_eq!(non_leaf(0x8000_1000), 0x8_0001 << 10 | 1);
        assert_eq!(Mode::of(FormatId::Lpae4k), None);
    }

    #[test]
    fn indices_make_24_bits() {
        assert_eq!(index_bits(true).iter().sum::<u32>(), 24);
        assert_eq!(index_bits(false).iter().sum::<u32>(), 24);
    }
}
