//! Arm LPAE / AArch64 stage 1 (VMSAv8-64), with granules of 4, 16 and 64 KiB.
//!
//! | the manual's name | level here | 4 KiB: a leaf, ×16 | 16 KiB | 64 KiB |
//! | --- | --- | --- | --- | --- |
//! | level 3: page | 0 | 4 KiB, 64 KiB | 16 KiB, ×128 = 2 MiB | 64 KiB, ×32 = 2 MiB |
//! | level 2: block | 1 | 2 MiB, 32 MiB | 32 MiB, ×32 = 1 GiB | 512 MiB, ×32 = 16 GiB |
//! | level 1: block | 2 | 1 GiB, 16 GiB | table only | table only |
//! | level 0 | 3 | table only | table only | – |
//!
//! The walk starts at the level that the input bits ask for (TCR.T0SZ), in a root that is shorter
//! than a table where they do not fill one.
//!
//! | bits | what | here |
//! | --- | --- | --- |
//! | 1:0 | 11 table or page, 01 block | |
//! | 4:2 | AttrIndx | 0 normal non-cacheable, 1 write-back, 2 device: see [`MAIR`] |
//! | 7:6 | AP\[2:1\] | bit 6 unprivileged access, set; bit 7 read-only |
//! | 9:8 | SH | 11 inner for coherent memory, else 10 outer |
//! | 10 | AF | set: no faults for the access flag |
//! | 11 | nG | set: tagged with the ASID |
//! | 47:12 | address | 48-bit output; FEAT_LPA's 52 bits are not used |
//! | 52 | contiguous | groups as above |
//! | 54:53 | XN | set: devices do not execute |
//! | 55 | ignored in a table entry | set once cleaned, for walkers that do not snoop |
//!
//! Source: Arm ARM (DDI 0487), D8.3 "Translation table descriptor formats", D8.7.1 for the
//! contiguous bit; SMMUv3 (IHI 0070) 3.4 for its use by SMMUs. Write-only cannot be expressed:
//! **write implies read**, which [`Format::effective`] reports.
#![forbid(unsafe_code)]

use super::format::{Format, FormatId, Kind, MAX_LEVELS, Root};
use crate::addr::{Access, Attributes, Granule, MemoryKind};

/// The memory attribute register (MAIR_EL1, or an SMMU context's MAIR0 and MAIR1) that the entries'
/// AttrIndx values stand for: 0 normal non-cacheable (0x44), 1 normal write-back, read- and
/// write-allocate (0xff), 2 device nGnRE (0x04).
pub const MAIR: u64 = 0x0004_ff44;

/// Arm stage 1 with a 4 KiB granule.
#[derive(Clone, Copy, Debug)]
pub struct Lpae4k;

/// Arm stage 1 with a 16 KiB granule.
#[derive(Clone, Copy, Debug)]
pub struct Lpae16k;

/// Arm stage 1 with a 64 KiB granule.
#[derive(Clone, Copy, Debug)]
pub struct Lpae64k;

const TABLE_OR_PAGE: u64 = 0b11;
const BLOCK: u64 = 0b01;
const READ_ONLY: u64 = 1 << 7;
const CONTIGUOUS: u64 = 1 << 52;
/// AP[1], AF, nG, PXN and UXN.
const ALWAYS: u64 = 1 << 6 | 1 << 10 | 1 << 11 | 0b11 << 53;

#[inline]
fn leaf(attributes: Attributes, level: u32, group: u32) -> u64 {
    let class = match attributes.kind {
        MemoryKind::Coherent => 1 << 2 | 0b11 << 8,
        MemoryKind::NonCoherent => 0b10 << 8,
        MemoryKind::Device => 2 << 2 | 0b10 << 8,
    };
    let rights = if attributes.access.contains(Access::WRITE) { 0 } else { READ_ONLY };
    let contiguous = if group == 0 { 0 } else { CONTIGUOUS };
    ALWAYS | class | rights | contiguous | if level == 0 { TABLE_OR_PAGE } else { BLOCK }
}

#[inline]
fn attributes(leaf: u64) -> Attributes {
    let kind = match (leaf >> 2) & 7 {
        1 => MemoryKind::Coherent,
        2 => MemoryKind::Device,
        _ => MemoryKind::NonCoherent,
    };
    let write = if leaf & READ_ONLY == 0 { Access::WRITE } else { Access::empty() };
    Attributes { access: Access::READ | write, kind }
}

#[inline]
fn kind<F: Format>(entry: u64, level: u32) -> Kind {
    match (entry & 0b11, level) {
        (TABLE_OR_PAGE, 0) => Kind::Leaf,
        (TABLE_OR_PAGE, _) => Kind::Table,
        (BLOCK, 1..) if (F::LEAF_LEVELS >> level) & 1 == 1 => Kind::Leaf,
        _ => Kind::Invalid,
    }
}

#[inline]
fn group<F: Format>(entry: u64, level: u32) -> u32 {
    match F::GROUPS.get(level as usize) {
        Some(&sizes) if entry & CONTIGUOUS != 0 && sizes != 0 => sizes.trailing_zeros(),
        _ => 0,
    }
}

macro_rules! lpae {
    ($type:ident, $granule:expr, $index_bits:literal, levels $levels:literal,
     leaves $leaves:literal, groups $groups:expr) => {
        impl Format for $type {
            const ID: FormatId = FormatId::$type;
            const GRANULE: Granule = $granule;
            const INDEX_BITS: u32 = $index_bits;
            const MIN_LEVELS: u32 = 1;
            const MAX_LEVELS: u32 = $levels;
            const MIN_INPUT_BITS: u32 = 25;
            const MAX_INPUT_BITS: u32 = 48;
            const MAX_OUTPUT_BITS: u32 = 48;
            const ROOT: Root = Root::Short;
            const ADDRESS_MASK: u64 = 0xffff_ffff_f000;
            const ADDRESS_SHIFT: u32 = 0;
            const LEAF_LEVELS: u32 = $leaves;
            const GROUPS: [u32; MAX_LEVELS] = $groups;
            const SYNCED: u64 = 1 << 55;

            #[inline]
            fn leaf(attributes: Attributes, level: u32, group: u32) -> u64 {
                leaf(attributes, level, group)
            }

            #[inline]
            fn table(_level: u32) -> u64 {
                TABLE_OR_PAGE
            }

            #[inline]
            fn kind(entry: u64, level: u32) -> Kind {
                kind::<Self>(entry, level)
            }

            #[inline]
            fn group(entry: u64, level: u32) -> u32 {
                group::<Self>(entry, level)
            }

            #[inline]
            fn attributes(leaf: u64) -> Attributes {
                attributes(leaf)
            }
        }
    };
}

lpae!(Lpae4k, Granule::K4, 9, levels 4, leaves 0b111, groups [1 << 4, 1 << 4, 1 << 4, 0, 0, 0]);
lpae!(Lpae16k, Granule::K16, 11, levels 4, leaves 0b11, groups [1 << 7, 1 << 5, 0, 0, 0, 0]);
lpae!(Lpae64k, Granule::K64, 13, levels 3, leaves 0b11, groups [1 << 5, 1 << 5, 0, 0, 0, 0]);
