//! The registers of Apple's DART: offsets and bits of two generations.
//!
//! The vendor documents nothing. These are the facts that Linux's driver relies on (`apple-dart.c`,
//! 6.12), which OpenBSD's and U-Boot's agree with.
#![forbid(unsafe_code)]

use granule::addr::Access;
use granule::table::FormatId;

use crate::FaultReason;

/// Which DART it is, as the device tree's `compatible` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// `apple,t8103-dart` (M1): 36-bit output, tables of the first generation.
    T8103,
    /// `apple,t6000-dart` (M1 Pro, Max): the same registers, tables of the second generation.
    T6000,
    /// `apple,t8110-dart` (M2 and later): other registers, 256 streams.
    T8110,
}

/// `PARAMS1`: the page's logarithm in bits 27:24.
pub const PARAMS1: usize = 0x00;
/// `PARAMS2`: bit 0 says that streams can bypass.
pub const PARAMS2: usize = 0x04;
/// `PARAMS3` of the T8110: output bits in 29:24, input bits in 21:16.
pub const PARAMS3: usize = 0x08;
/// `PARAMS4` of the T8110: the number of streams in 8:0.
pub const PARAMS4: usize = 0x0c;
/// The block's size.
pub const LEN: usize = 0x4000;

/// Where a generation has its registers, and what their bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The lock: the register and its bit.
    pub lock: (usize, u32),
    /// The streams that are enabled, a bit each, 32 a register.
    pub enable: usize,
    /// The error register; written back to clear it.
    pub error: usize,
    /// The error's mask: 0 lets every error through. The first generation has none.
    pub error_mask: Option<usize>,
    /// The streams that have had errors, a bit each. The first generation has none.
    pub error_streams: Option<usize>,
    /// The address of the error, low and high half.
    pub error_address: (usize, usize),
    /// `TCR`: a stream's control.
    pub control: usize,
    /// In `TCR`: translate.
    pub translate: u32,
    /// In `TCR`: let through, past the table and past the filter behind it (DAPF).
    pub bypass: u32,
    /// In `TCR`: one level more. The first generation has none.
    pub more_levels: u32,
    /// `TTBR`: a stream's table bases.
    pub bases: usize,
    /// How many each stream has.
    pub bases_each: usize,
}

const T8020: Registers = Registers {
    lock: (0x60, 1 << 15),
    enable: 0xfc,
    error: 0x40,
    error_mask: None,
    error_streams: None,
    error_address: (0x50, 0x54),
    control: 0x100,
    translate: 1 << 7,
    bypass: 1 << 8 | 1 << 12,
    more_levels: 0,
    bases: 0x200,
    bases_each: 4,
};

const T8110: Registers = Registers {
    lock: (0x200, 1),
    enable: 0xc00,
    error: 0x100,
    error_mask: Some(0x104),
    error_streams: Some(0x1c0),
    error_address: (0x170, 0x174),
    control: 0x1000,
    translate: 1,
    bypass: 1 << 1 | 1 << 2,
    more_levels: 1 << 3,
    bases: 0x1400,
    bases_each: 1,
};

impl Registers {
    /// A stream's control register.
    pub const fn control_of(&self, stream: u32) -> usize {
        self.control + 4 * stream as usize
    }

    /// A stream's table base number `index`.
    pub const fn base_of(&self, stream: u32, index: usize) -> usize {
        self.bases + 4 * (self.bases_each * stream as usize + index)
    }
}

/// `STREAM_SELECT` of the T8020: the streams that the next command is for.
pub const SELECT_T8020: usize = 0x34;
/// `STREAM_COMMAND` of the T8020.
pub const COMMAND_T8020: usize = 0x20;
/// In it: drop what is cached of the selected streams.
pub const COMMAND_T8020_FLUSH: u32 = 1 << 20;
/// In it: not done yet.
pub const COMMAND_T8020_BUSY: u32 = 1 << 2;
/// `TLB_CMD` of the T8110.
pub const COMMAND_T8110: usize = 0x80;
/// In it: drop what is cached of the stream in bits 7:0.
pub const COMMAND_T8110_FLUSH: u32 = 1 << 8;
/// In it: not done yet.
pub const COMMAND_T8110_BUSY: u32 = 1 << 31;

impl Model {
    /// Its registers.
    pub const fn registers(self) -> Registers {
        match self {
            Self::T8103 | Self::T6000 => T8020,
            Self::T8110 => T8110,
        }
    }

    /// The tables that it walks.
    pub const fn format(self) -> FormatId {
        match self {
            Self::T8103 => FormatId::Dart1,
            Self::T6000 | Self::T8110 => FormatId::Dart2,
        }
    }

    /// The value of a table base register.
    pub const fn base(self, root: u64) -> u32 {
        match self {
            Self::T8103 | Self::T6000 => (root >> 12) as u32 & 0x7fff_ffff | 1 << 31,
            Self::T8110 => ((root >> 14) as u32) << 2 | 1,
        }
    }

    /// The root in a table base register, if it is valid.
    pub const fn root(self, base: u32) -> Option<u64> {
        match (self, base >> 31, base & 1) {
            (Self::T8103 | Self::T6000, 1, _) => Some(((base & 0x7fff_ffff) as u64) << 12),
            (Self::T8110, _, 1) => Some(((base >> 2) as u64) << 14),
            _ => None,
        }
    }

    /// Decodes the error register; `None` if there is no error.
    pub const fn error(self, value: u32) -> Option<Error> {
        if value >> 31 == 0 {
            return None;
        }
        Some(match self {
            Self::T8103 | Self::T6000 => {
                Error { stream: value >> 24 & 0xf, code: value & 0xfff, levels: 2 }
            }
            Self::T8110 => Error { stream: value >> 20 & 0xff, code: value & 0x7fff, levels: 3 },
        })
    }
}

/// An error: bit 0 no table base, then a bit for each level without an entry, then write and read
/// not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// The stream.
    pub stream: u32,
    /// The code.
    pub code: u32,
    /// How many levels have a bit.
    levels: u32,
}

impl Error {
    /// The reason in words that all IOMMUs share.
    pub const fn reason(&self) -> FaultReason {
        let entries = ((1 << self.levels) - 1) << 1;
        let rights = 0b11 << (self.levels + 1);
        match self.code {
            code if code & 1 != 0 => FaultReason::NotAttached,
            code if code & entries != 0 => FaultReason::NotMapped,
            code if code & rights != 0 => FaultReason::Permission,
            _ => FaultReason::Other,
        }
    }

    /// What the device wanted, where the code says.
    pub fn access(&self) -> Access {
        let has = |bit: u32| self.code >> bit & 1 == 1;
        let write = if has(self.levels + 1) { Access::WRITE } else { Access::empty() };
        let read = if has(self.levels + 2) { Access::READ } else { Access::empty() };
        read | write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_name_roots() {
        for (model, root, base) in [
            (Model::T8103, 0x8_1234_4000, 0x8081_2344),
            (Model::T6000, 0x3ff_ffff_c000, 0xbfff_fffc),
            (Model::T8110, 0x100_1234_4000, 0x1001_2345),
        ] {
            assert_eq!(model.base(root), base, "{model:?}");
            assert_eq!(model.root(base), Some(root), "{model:?}");
            assert_eq!(model.root(0), None);
        }
    }

    #[test]
    fn places_of_stream_registers() {
        let old = Model::T8103.registers();
        assert_eq!((old.control_of(15), old.base_of(15, 3)), (0x13c, 0x2fc));
        let new = Model::T8110.registers();
        assert_eq!((new.control_of(255), new.base_of(255, 0)), (0x13fc, 0x17fc));
    }

    #[test]
    fn errors_are_decoded() {
        assert_eq!(Model::T8103.error(0x7fff_ffff), None);
        let error = Model::T8103.error(1 << 31 | 4 << 24 | 1 << 2).expect("an error");
        assert_eq!((error.stream, error.reason()), (4, FaultReason::NotMapped));
        let error = Model::T8110.error(1 << 31 | 0x42 << 20 | 1 << 4).expect("an error");
        assert_eq!((error.stream, error.reason()), (0x42, FaultReason::Permission));
        assert_eq!(error.access(), Access::WRITE);
        let error = Model::T6000.error(1 << 31 | 1 << 4).expect("an error");
        assert_eq!((error.access(), error.reason()), (Access::READ, FaultReason::Permission));
        assert_eq!(
            Model::T8110.error(1 << 31 | 1).map(|e| e.reason()),
            Some(FaultReason::NotAttached)
        );
        assert_eq!(Model::T8110.error(1 << 31).map(|e| e.reason()), Some(FaultReason::Other));
    }
}
