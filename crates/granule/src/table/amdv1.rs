//! AMD I/O page tables, host format ("version 1"), with their page sizes between the levels.
//!
//! | the manual's name | level here | a leaf spans | and in groups |
//! | --- | --- | --- | --- |
//! | level 1, PTE | 0 | 4 KiB | 8 KiB … 1 MiB |
//! | level 2, PDE | 1 | 2 MiB | 4 MiB … 512 MiB |
//! | level 3, PDE | 2 | 1 GiB | 2 GiB … 256 GiB |
//! | level 4, 5, PDE | 3, 4 | table only | |
//!
//! The root is a whole table; a device's entry says how many levels there are ("mode", 3 to 5 here;
//! six levels would index more than 57 bits). Leaves above level 3 are legal and not used.
//!
//! | bits | what | here |
//! | --- | --- | --- |
//! | 0 | PR | present |
//! | 4:1 | ignored | bit 1 of a table entry: cleaned, for walkers that do not snoop |
//! | 11:9 | next level | 0: a leaf of the level's own size; 7: a group; else the level of the table named, always the next lower one |
//! | 51:12 | address | 52-bit output |
//! | 60 | FC | coherent memory: a device's request not to snoop is overruled |
//! | 61, 62 | IR, IW | read, write; both set in a table entry |
//!
//! A group is a naturally aligned run of equal entries. Its address field holds the address of the
//! page with the size in its low bits: the lowest 0, from bit 12 on, is in the place of half the size
//! (8 KiB: bit 12 is 0; 16 KiB: bit 12 is 1 and bit 13 is 0).
//!
//! Source: AMD I/O Virtualization Technology (IOMMU) Specification, 48882, 2.2.3 "I/O Page Tables for
//! Host Translations".
#![forbid(unsafe_code)]

use super::format::{Format, FormatId, Kind, MAX_LEVELS, Root};
use crate::addr::{Access, Attributes, Granule, MemoryKind};

/// AMD I/O page tables, version 1.
#[derive(Clone, Copy, Debug)]
pub struct Amdv1;

const PRESENT: u64 = 1;
const NEXT_LEVEL_SHIFT: u32 = 9;
/// The next level of an entry that belongs to a group.
const GROUP: u64 = 7;
const COHERENT: u64 = 1 << 60;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;
/// Groups of 2 to 256 entries.
const ALL_GROUPS: u32 = 0x1fe;
/// The largest level of leaves, in the manual's count from 1.
const LEAVES: u32 = 3;

/// The bits below the lowest 0 for a page of 2^`size` bytes.
#[inline]
const fn size_bits(size: u32) -> u64 {
    ((1 << (size - 1)) - 1) & !0xfff
}

impl Format for Amdv1 {
    const ID: FormatId = FormatId::Amdv1;
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
    const LEAF_LEVELS: u32 = (1 << LEAVES) - 1;
    const GROUPS: [u32; MAX_LEVELS] = [ALL_GROUPS, ALL_GROUPS, ALL_GROUPS, 0, 0, 0];
    const GROUPS_GROW: bool = false;
    const SYNCED: u64 = 1 << 1;

    #[inline]
    fn leaf(attributes: Attributes, level: u32, group: u32) -> u64 {
        let access = attributes.access;
        let read = if access.contains(Access::READ) { READ } else { 0 };
        let write = if access.contains(Access::WRITE) { WRITE } else { 0 };
        let coherent = if attributes.kind == MemoryKind::Coherent { COHERENT } else { 0 };
        let size = match group {
            0 => 0,
            _ => GROUP << NEXT_LEVEL_SHIFT | size_bits(12 + 9 * level + group),
        };
        PRESENT | read | write | coherent | size
    }

    #[inline]
    fn table(level: u32) -> u64 {
        // Level n here is the manual's n + 1, and names a table of level n there.
        PRESENT | READ | WRITE | u64::from(level) << NEXT_LEVEL_SHIFT
    }

    #[inline]
    fn kind(entry: u64, level: u32) -> Kind {
        let next = entry >> NEXT_LEVEL_SHIFT & 7;
        match (entry & PRESENT, next) {
            (0, _) => Kind::Invalid,
            (_, 0) if level < LEAVES => Kind::Leaf,
            (_, GROUP) if level < LEAVES && Self::group(entry, level) != 0 => Kind::Leaf,
            (_, next) if next == u64::from(level) => Kind::Table,
            _ => Kind::Invalid,
        }
    }

    #[inline]
    fn group(entry: u64, level: u32) -> u32 {
        if entry >> NEXT_LEVEL_SHIFT & 7 != GROUP {
            return 0;
        }
        let size = 13 + (entry >> 12).trailing_ones();
        let group = size.checked_sub(12 + 9 * level);
        group.filter(|group| (1..=8).contains(group)).unwrap_or(0)
    }

    #[inline]
    fn attributes(leaf: u64) -> Attributes {
        let read = if leaf & READ != 0 { Access::READ } else { Access::empty() };
        let write = if leaf & WRITE != 0 { Access::WRITE } else { Access::empty() };
        let coherent = leaf & COHERENT != 0;
        let kind = if coherent { MemoryKind::Coherent } else { MemoryKind::NonCoherent };
        Attributes { access: read | write, kind }
    }
}
