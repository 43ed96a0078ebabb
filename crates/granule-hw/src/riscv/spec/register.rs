//! Registers (RISC-V IOMMU 1.0, "Memory-mapped register interface"), by byte offset.
#![forbid(unsafe_code)]

/// `capabilities`, 64 bits.
pub const CAPABILITIES: usize = 0x000;
/// `fctl`: features control.
pub const FCTL: usize = 0x008;
/// `ddtp`: the device directory and the mode, 64 bits.
pub const DDTP: usize = 0x010;
/// `cqb`: the command queue's base, 64 bits.
pub const CQB: usize = 0x018;
/// `cqh`: its head, which the unit moves.
pub const CQH: usize = 0x020;
/// `cqt`: its tail.
pub const CQT: usize = 0x024;
/// `fqb`: the fault queue's base, 64 bits.
pub const FQB: usize = 0x028;
/// `fqh`: its head.
pub const FQH: usize = 0x030;
/// `fqt`: its tail, which the unit moves.
pub const FQT: usize = 0x034;
/// `cqcsr`: the command queue's control and status.
pub const CQCSR: usize = 0x048;
/// `fqcsr`: the fault queue's.
pub const FQCSR: usize = 0x04c;
/// `pqcsr`: the page request queue's.
pub const PQCSR: usize = 0x050;
/// The register block is one page.
pub const LEN: usize = 0x1000;

/// `fctl.BE`: the unit reads memory as big-endian.
pub const BIG_ENDIAN: u32 = 1;
/// `cqcsr.cqen`, `fqcsr.fqen`.
pub const QUEUE_ENABLE: u32 = 1;
/// `cqcsr.cqon`, `fqcsr.fqon`.
pub const QUEUE_ON: u32 = 1 << 16;
/// `cqcsr.busy`, `fqcsr.busy`.
pub const QUEUE_BUSY: u32 = 1 << 17;
/// `cqcsr.cqmf`, `cmd_to`, `cmd_ill`: written 1 to clear.
pub const COMMAND_ERRORS: u32 = 0b111 << 8;
/// `fqcsr.fqmf` and `fqof`: written 1 to clear.
pub const FAULT_ERRORS: u32 = 0b11 << 8;
/// `ddtp.busy`.
pub const DDTP_BUSY: u64 = 1 << 4;
/// `ddtp.iommu_mode`.
pub const DDTP_MODE: u64 = 0xf;

/// What `capabilities` says, as far as it is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `version`: 0x10 is 1.0.
    pub version: u8,
    /// `Sv39`, `Sv48`, `Sv57`: first-stage formats.
    pub formats: [bool; 3],
    /// `MSI_FLAT`: device contexts have the extended format.
    pub extended: bool,
    /// `END`: the byte order can be chosen by `fctl.BE`.
    pub endian: bool,
    /// `PAS`: physical address bits.
    pub output_bits: u32,
    /// `NL`: an invalidation by address can cover tables too (non-leaf PTE invalidation extension).
    pub non_leaf: bool,
}

impl Capabilities {
    /// Decodes the register.
    pub const fn decode(value: u64) -> Self {
        Self {
            version: value as u8,
            formats: [bit_of(value, 9), bit_of(value, 10), bit_of(value, 11)],
            extended: bit_of(value, 22),
            endian: bit_of(value, 27),
            output_bits: ((value >> 32) & 0x3f) as u32,
            non_leaf: bit_of(value, 42),
        }
    }
}

const fn bit_of(value: u64, bit: u32) -> bool {
    (value >> bit) & 1 == 1
}

/// A page number where base registers and directory entries have it: bits 53:10.
pub const fn page_number(address: u64) -> u64 {
    (address >> 12 & 0xfff_ffff_ffff) << 10
}

/// The address in such a field.
pub const fn address_of(field: u64) -> u64 {
    (field >> 10 & 0xfff_ffff_ffff) << 12
}

/// `cqb` or `fqb` of a queue of `1 << bits` entries.
pub const fn queue_base(address: u64, bits: u32) -> u64 {
    page_number(address) | (bits.saturating_sub(1) & 0x1f) as u64
}

/// `ddtp` with a directory of so many levels (1 to 3), or Off with 0.
pub const fn ddtp(address: u64, levels: u32) -> u64 {
    match levels {
        0 => 0,
        levels => page_number(address) | (levels + 1) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities() {
        let value = 0x10 | 0b101 << 9 | 1 << 22 | 1 << 27 | 56 << 32 | 1 << 42;
        let expected = Capabilities {
            version: 0x10,
            formats: [true, false, true],
            extended: true,
            endian: true,
            output_bits: 56,
            non_leaf: true,
        };
        assert_eq!(Capabilities::decode(value), expected);
        assert!(!Capabilities::decode(!value).extended);
    }

    #[test]
    fn bases() {
        assert_eq!(page_number(0x8123_4000), 0x0008_1234 << 10);
        assert_eq!(address_of(page_number(0xff_ffff_ffff_f000)), 0xff_ffff_ffff_f000);
        assert_eq!(queue_base(0x21000, 7), 0x21 << 10 | 6);
        assert_eq!(
            (ddtp(0x5000, 3), ddtp(0x5000, 1), ddtp(0x5000, 0)),
            (5 << 10 | 4, 5 << 10 | 2, 0)
        );
    }
}
