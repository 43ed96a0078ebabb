//! Apple DART, first and second generation.
//!
//! | the driver's name | level here | entry | spans (16 KiB granule) |
//! | --- | --- | --- | --- |
//! | TTBR 0..3 | – | a register each: which root table | 64 GiB |
//! | L1 | 1 | table | 32 MiB |
//! | L2 | 0 | page | 16 KiB |
//!
//! With more than 38 input bits, DART 2 walks three levels (L0 above L1).
//!
//! | bits | DART 1 | DART 2 |
//! | --- | --- | --- |
//! | 0 | valid | valid |
//! | 1 | sub-page protection disabled | not cached |
//! | 2, 3 | – | no write, no read |
//! | 7, 8 | no write, no read | – |
//! | address | 35:12, in place | 37:10, shifted right by 4: 42-bit output |
//! | 51:40, 63:52 | sub-page end, start | the same |
//!
//! Source: the facts that Linux's driver for these IOMMUs relies on (`io-pgtable-dart.c`, 6.12); the
//! vendor documents nothing. A leaf opens the whole page with sub-page start 0 and end 0xfff. The
//! unit of those fields (a 4096th of the granule, the end included) is inferred and **unverified**;
//! on DART 1 they need bit 1 clear, so a leaf without a fence sets it.
#![forbid(unsafe_code)]

use super::format::{Fence, Format, FormatId, Kind, Root};
use crate::addr::{Access, Attributes, Granule, MemoryKind};

/// Apple DART, first generation (t8103).
#[derive(Clone, Copy, Debug)]
pub struct Dart1;

/// Apple DART, second generation (t6000 and later).
#[derive(Clone, Copy, Debug)]
pub struct Dart2;

const VALID: u64 = 1;
const START: u32 = 52;
const END: u32 = 40;
const FIELD: u64 = 0xfff;
/// Sub-page start 0, end 0xfff.
const OPEN: u64 = FIELD << END;
const UNIT: u64 = Granule::K16.size() / (FIELD + 1);

const SUBPAGE_DISABLE_1: u64 = 1 << 1;
const NO_WRITE_1: u64 = 1 << 7;
const NO_READ_1: u64 = 1 << 8;
const NO_CACHE_2: u64 = 1 << 1;
const NO_WRITE_2: u64 = 1 << 2;
const NO_READ_2: u64 = 1 << 3;

#[inline]
fn denied(access: Access, no_read: u64, no_write: u64) -> u64 {
    let read = if access.contains(Access::READ) { 0 } else { no_read };
    let write = if access.contains(Access::WRITE) { 0 } else { no_write };
    read | write
}

#[inline]
fn allowed(leaf: u64, no_read: u64, no_write: u64) -> Access {
    let read = if leaf & no_read == 0 { Access::READ } else { Access::empty() };
    let write = if leaf & no_write == 0 { Access::WRITE } else { Access::empty() };
    read | write
}

#[inline]
fn kind(entry: u64, level: u32) -> Kind {
    match (entry & VALID, level) {
        (0, _) => Kind::Invalid,
        (_, 0) => Kind::Leaf,
        _ => Kind::Table,
    }
}

fn with_fence(leaf: u64, fence: Fence) -> u64 {
    let start = (fence.front / UNIT) & FIELD;
    let end = FIELD.saturating_sub(fence.back / UNIT);
    (leaf & !(FIELD << START | FIELD << END)) | start << START | end << END
}

fn fence_of(leaf: u64) -> Fence {
    let (start, end) = ((leaf >> START) & FIELD, (leaf >> END) & FIELD);
    Fence { front: start * UNIT, back: (FIELD - end) * UNIT }
}

impl Format for Dart1 {
    const ID: FormatId = FormatId::Dart1;
    const GRANULE: Granule = Granule::K16;
    const INDEX_BITS: u32 = 11;
    const MIN_LEVELS: u32 = 2;
    const MAX_LEVELS: u32 = 2;
    const MIN_INPUT_BITS: u32 = 25;
    const MAX_INPUT_BITS: u32 = 38;
    const MAX_OUTPUT_BITS: u32 = 36;
    const ROOT: Root = Root::Tables(4);
    const ADDRESS_MASK: u64 = 0xf_ffff_f000;
    const ADDRESS_SHIFT: u32 = 0;
    const LEAF_LEVELS: u32 = 1;
    const FENCE_UNIT: u64 = UNIT;
    const UPPER_BITS_IGNORED: bool = true;

    #[inline]
    fn leaf(attributes: Attributes, _level: u32, _group: u32) -> u64 {
        OPEN | VALID | SUBPAGE_DISABLE_1 | denied(attributes.access, NO_READ_1, NO_WRITE_1)
    }

    #[inline]
    fn table(_level: u32) -> u64 {
        VALID
    }

    #[inline]
    fn kind(entry: u64, level: u32) -> Kind {
        kind(entry, level)
    }

    fn attributes(leaf: u64) -> Attributes {
        Attributes::memory(allowed(leaf, NO_READ_1, NO_WRITE_1))
    }

    fn fenced(leaf: u64, fence: Fence) -> u64 {
        if fence == Fence::default() { leaf } else { with_fence(leaf & !SUBPAGE_DISABLE_1, fence) }
    }

    fn fence(leaf: u64) -> Fence {
        if leaf & SUBPAGE_DISABLE_1 == 0 { fence_of(leaf) } else { Fence::default() }
    }
}

impl Format for Dart2 {
    const ID: FormatId = FormatId::Dart2;
    const GRANULE: Granule = Granule::K16;
    const INDEX_BITS: u32 = 11;
    const MIN_LEVELS: u32 = 2;
    const MAX_LEVELS: u32 = 3;
    const MIN_INPUT_BITS: u32 = 25;
    const MAX_INPUT_BITS: u32 = 47;
    const MAX_OUTPUT_BITS: u32 = 42;
    const ROOT: Root = Root::Tables(4);
    const ADDRESS_MASK: u64 = 0x3f_ffff_fc00;
    const ADDRESS_SHIFT: u32 = 4;
    const LEAF_LEVELS: u32 = 1;
    const FENCE_UNIT: u64 = UNIT;
    const UPPER_BITS_IGNORED: bool = true;

    #[inline]
    fn leaf(attributes: Attributes, _level: u32, _group: u32) -> u64 {
        let cached = if attributes.kind == MemoryKind::Coherent { 0 } else { NO_CACHE_2 };
        OPEN | VALID | cached | denied(attributes.access, NO_READ_2, NO_WRITE_2)
    }

    #[inline]
    fn table(_level: u32) -> u64 {
        VALID
    }

    #[inline]
    fn kind(entry: u64, level: u32) -> Kind {
        kind(entry, level)
    }

    fn attributes(leaf: u64) -> Attributes {
        let kind =
            if leaf & NO_CACHE_2 == 0 { MemoryKind::Coherent } else { MemoryKind::NonCoherent };
        Attributes { access: allowed(leaf, NO_READ_2, NO_WRITE_2), kind }
    }

    fn fenced(leaf: u64, fence: Fence) -> u64 {
        with_fence(leaf, fence)
    }

    fn fence(leaf: u64) -> Fence {
        fence_of(leaf)
    }
}
