//! RISC-V Sv39, Sv48 and Sv57, as an IOMMU's first stage uses them.
//!
//! | the manual's name | level here | a leaf spans |
//! | --- | --- | --- |
//! | 4 KiB page, with Svnapot 64 KiB | 0 | 4 KiB, ×16 = 64 KiB |
//! | megapage | 1 | 2 MiB |
//! | gigapage | 2 | 1 GiB |
//! | terapage (Sv48, Sv57) | 3 | 512 GiB |
//! | petapage (Sv57) | 4 | 256 TiB |
//!
//! The walk always starts in a whole table at the mode's top level. Addresses are sign-extended by
//! the mode, so the highest input bit must be 0 here: only the **lower half** is used (38, 47 and 56
//! input bits).
//!
//! | bits | what | here |
//! | --- | --- | --- |
//! | 0 | V | valid |
//! | 3:1 | X W R | all zero in a table entry; a leaf has R, and W if asked; X never |
//! | 4 | U | set: devices without a process id are user accesses |
//! | 6, 7 | A, D | set: no faults and no updates by hardware |
//! | 9:8 | RSW | bit 8 of a table entry: cleaned, for walkers that do not snoop |
//! | 53:10 | PPN | the address shifted right by 2; 56-bit output |
//! | 62:61 | PBMT | 0: by the platform's memory attributes, since Svpbmt may be missing |
//! | 63 | N | Svnapot: 16 equal entries whose low PPN bits are 1000 |
//!
//! Source: RISC-V Privileged Architecture, "Sv39: Page-Based 39-bit Virtual-Memory System" and what
//! follows, "Svnapot". Write without read is reserved: **write implies read**. Where the IOMMU lacks
//! Svnapot, limit the page sizes ([`TableConfig::limited_to`](super::TableConfig::limited_to)).
#![forbid(unsafe_code)]

use super::format::{Format, FormatId, Kind, MAX_LEVELS, Root};
use crate::addr::{Access, Attributes, Granule};

/// RISC-V Sv39: three levels.
#[derive(Clone, Copy, Debug)]
pub struct Sv39;

/// RISC-V Sv48: four levels.
#[derive(Clone, Copy, Debug)]
pub struct Sv48;

/// RISC-V Sv57: five levels.
#[derive(Clone, Copy, Debug)]
pub struct Sv57;

const VALID: u64 = 1;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
/// U, A and D.
const ALWAYS: u64 = 1 << 4 | 1 << 6 | 1 << 7;
const NAPOT: u64 = 1 << 63;
/// The low PPN bits of a 64 KiB page.
const NAPOT_64K: u64 = 0b1000 << 10;

macro_rules! sv {
    ($type:ident, levels $levels:literal, input $input:literal, leaves $leaves:literal) => {
        impl Format for $type {
            const ID: FormatId = FormatId::$type;
            const GRANULE: Granule = Granule::K4;
            const INDEX_BITS: u32 = 9;
            const MIN_LEVELS: u32 = $levels;
            const MAX_LEVELS: u32 = $levels;
            const MIN_INPUT_BITS: u32 = 12;
            const MAX_INPUT_BITS: u32 = $input;
            const MAX_OUTPUT_BITS: u32 = 56;
            const ROOT: Root = Root::Tables(1);
            const ADDRESS_MASK: u64 = 0x3f_ffff_ffff_fc00;
            const ADDRESS_SHIFT: u32 = 2;
            const LEAF_LEVELS: u32 = $leaves;
            const GROUPS: [u32; MAX_LEVELS] = [1 << 4, 0, 0, 0, 0, 0];
            const GROUPS_GROW: bool = false;
            const SYNCED: u64 = 1 << 8;

            #[inline]
            fn leaf(attributes: Attributes, _level: u32, group: u32) -> u64 {
                let write = if attributes.access.contains(Access::WRITE) { WRITE } else { 0 };
                let napot = if group == 0 { 0 } else { NAPOT | NAPOT_64K };
                VALID | READ | write | ALWAYS | napot
            }

            #[inline]
            fn table(_level: u32) -> u64 {
                VALID
            }

            #[inline]
            fn kind(entry: u64, level: u32) -> Kind {
                match (entry & VALID, entry & (READ | WRITE | EXECUTE), level) {
                    (0, ..) | (_, 0, 0) => Kind::Invalid,
                    (_, 0, _) => Kind::Table,
                    _ => Kind::Leaf,
                }
            }

            #[inline]
            fn group(entry: u64, level: u32) -> u32 {
                if entry & NAPOT != 0 && level == 0 { 4 } else { 0 }
            }

            #[inline]
            fn attributes(leaf: u64) -> Attributes {
                let write = if leaf & WRITE != 0 { Access::WRITE } else { Access::empty() };
                Attributes::memory(Access::READ | write)
            }
        }
    };
}

sv!(Sv39, levels 3, input 38, leaves 0b111);
sv!(Sv48, levels 4, input 47, leaves 0b1111);
sv!(Sv57, levels 5, input 56, leaves 0b1_1111);
