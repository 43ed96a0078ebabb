//! A format that exists nowhere: tables of eight entries, so that a few pages cross all levels, and
//! groups of two and four whose entries are all the same (as AMD's and RISC-V's are).

use super::*;
use crate::addr::Granule;

pub(crate) struct Tiny;

const VALID: u64 = 1;
const LEAF: u64 = 2;
const READ: u64 = 1 << 3;
const WRITE: u64 = 1 << 4;

impl Format for Tiny {
    // The enum is closed to tests; the name only shows in errors.
    const ID: FormatId = FormatId::Dart1;
    const GRANULE: Granule = Granule::K4;
    const INDEX_BITS: u32 = 3;
    const MIN_LEVELS: u32 = 1;
    const MAX_LEVELS: u32 = 4;
    const MIN_INPUT_BITS: u32 = 15;
    const MAX_INPUT_BITS: u32 = 24;
    const MAX_OUTPUT_BITS: u32 = 48;
    const ROOT: Root = Root::Short;
    const ADDRESS_MASK: u64 = 0xffff_ffff_f000;
    const ADDRESS_SHIFT: u32 = 0;
    const LEAF_LEVELS: u32 = 0b11;
    const GROUPS: [u32; 6] = [0b110, 0b100, 0, 0, 0, 0];
    const GROUPS_GROW: bool = false;

    fn leaf(attributes: Attributes, _level: u32, group: u32) -> u64 {
        let read = if attributes.access.contains(Access::READ) { READ } else { 0 };
        let write = if attributes.access.contains(Access::WRITE) { WRITE } else { 0 };
        VALID | LEAF | read | write | u64::from(group) << 8
    }

    fn table(_level: u32) -> u64 {
        VALID
    }

    fn kind(entry: u64, level: u32) -> Kind {
        match (entry & VALID != 0, entry & LEAF != 0 || level == 0) {
            (false, _) => Kind::Invalid,
            (true, true) => Kind::Leaf,
            (true, false) => Kind::Table,
        }
    }

    fn group(entry: u64, _level: u32) -> u32 {
        (entry >> 8) as u32 & 3
    }

    fn attributes(leaf: u64) -> Attributes {
        let read = if leaf & READ != 0 { Access::READ } else { Access::empty() };
        let write = if leaf & WRITE != 0 { Access::WRITE } else { Access::empty() };
        Attributes::memory(read | write)
    }
}
