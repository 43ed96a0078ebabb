//! Intel VT-d second stage.
//!
//! | the manual's name | level here | a leaf spans |
//! | --- | --- | --- |
//! | SS-PTE | 0 | 4 KiB |
//! | SS-PDE | 1 | 2 MiB, if CAP.SSLPS bit 0 |
//! | SS-PDPE | 2 | 1 GiB, if CAP.SSLPS bit 1 |
//! | SS-PML4E, SS-PML5E | 3, 4 | table only |
//!
//! Three, four or five levels (address widths of 39, 48 and 57 bits, CAP.SAGAW); the root is a whole
//! table. Limit the page sizes to what CAP.SSLPS reports
//! ([`TableConfig::limited_to`](super::TableConfig::limited_to)).
//!
//! | bits | what | here |
//! | --- | --- | --- |
//! | 0, 1 | read, write | both zero: not present; both set in a table entry |
//! | 2 | execute | 0 |
//! | 7 | page size | set in a leaf above level 0 |
//! | 11 | snoop | 0: reserved where ECAP.SC is clear, so a device's own requests decide |
//! | 51:12 | address | 52-bit output |
//! | 52 | ignored | set in a table entry once cleaned, for walkers that do not snoop |
//!
//! Source: Intel Virtualization Technology for Directed I/O, "Second-Stage Paging Entries".
#![forbid(unsafe_code)]

use super::format::{Format, FormatId, Kind, Root};
use crate::addr::{Access, Attributes, Granule};

/// Intel VT-d second stage.
#[derive(Clone, Copy, Debug)]
pub struct Vtd2;

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

impl Format for Vtd2 {
    const ID: FormatId = FormatId::Vtd2;
    const GRANULE: Granule = Granule::K4;
    const INDEX_BITS: u32 = 9;
    const MIN_LEVELS: u32 = 3;
    const MAX_LEVELS: u32 = 5;
    const MIN_INPUT_BITS: u32 = 30;
    const MAX_INPUT_BITS: u32 = 57;
    const MAX_OUTPUT_BITS: u32 = 52;
    const ROOT: Root = Root::Tables(1);
    const ADDRESS_MASK: u64 = 0xf_ffff_ffff_f000;
    const ADDRESS_SHIFT: u32 = 0;
    const LEAF_LEVELS: u32 = 0b111;
    const SYNCED: u64 = 1 << 52;

    #[inline]
    fn leaf(attributes: Attributes, level: u32, _group: u32) -> u64 {
        // `Access` has VT-d's own bits: read 1, write 2.
        u64::from(attributes.access.bits() & 3) | if level == 0 { 0 } else { LARGE }
    }

    #[inline]
    fn table(_level: u32) -> u64 {
        READ | WRITE
    }

    #[inline]
    fn kind(entry: u64, level: u32) -> Kind {
        match (entry & (READ | WRITE), entry & LARGE, level) {
            (0, ..) => Kind::Invalid,
            (_, _, 0) | (_, LARGE, 1 | 2) => Kind::Leaf,
            (_, 0, _) => Kind::Table,
            _ => Kind::Invalid,
        }
    }

    #[inline]
    fn attributes(leaf: u64) -> Attributes {
        Attributes::memory(Access::from_bits_truncate((leaf & 3) as u8))
    }
}
