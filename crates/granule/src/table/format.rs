//! What a format is: constants and pure functions, and the names that formats go by.

use core::fmt;
use core::str::FromStr;

use crate::addr::{Attributes, Granule};

/// More levels than any format here has.
pub(super) const MAX_LEVELS: usize = 6;

/// The mark of an entry whose table was detached and waits to be reaped. Such an entry is invalid to
/// the hardware, which ignores every other bit of an invalid entry in all formats here; the rest of
/// it is the table's physical address.
pub(super) const DETACHED: u64 = 1 << 6;

/// What an entry is at its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The walk ends in a fault.
    Invalid,
    /// The walk goes on in the table that the entry names.
    Table,
    /// The entry maps a page.
    Leaf,
}

/// What the first table of a walk looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// As many entries as the input bits ask for, at least 64 bytes of them.
    Short,
    /// Whole tables, at most this many (a power of two), chosen by the highest input bits.
    Tables(u32),
}

/// Bytes closed to the device at both ends of a mapping.
///
/// Only DART entries can express it, in units of a 4096th of the granule. That unit, and that the
/// end is inclusive, are inferred and **unverified** on hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// Bytes closed at the start of the first granule.
    pub front: u64,
    /// Bytes closed at the end of the last granule.
    pub back: u64,
}

/// One page-table format: constants known at compile time, and pure functions of bits.
///
/// Levels count from the bottom: level 0 holds the entries that map one granule. A page of level
/// *n* spans `GRANULE << (n * INDEX_BITS)` bytes. Entries are 8 bytes, little-endian.
pub trait Format: Send + Sync + 'static {
    /// The format's name.
    const ID: FormatId;
    /// The smallest page.
    const GRANULE: Granule;
    /// Logarithm of the number of entries of a whole table; at least 3.
    const INDEX_BITS: u32;
    /// The fewest levels that the walker takes.
    const MIN_LEVELS: u32;
    /// The most levels; at most 6.
    const MAX_LEVELS: u32;
    /// The fewest input bits.
    const MIN_INPUT_BITS: u32;
    /// The most input bits; below 64.
    const MAX_INPUT_BITS: u32;
    /// The most output bits.
    const MAX_OUTPUT_BITS: u32;
    /// The first table.
    const ROOT: Root;
    /// The address field of tables and leaves: the physical address shifted right by
    /// [`ADDRESS_SHIFT`](Self::ADDRESS_SHIFT), and this mask. It leaves bit 6 out.
    const ADDRESS_MASK: u64;
    /// How far right the address field is shifted.
    const ADDRESS_SHIFT: u32;
    /// Bit *n*: level *n* may hold leaves. Bit 0 is set.
    const LEAF_LEVELS: u32;
    /// For each level a set of group sizes: bit *k* means that 2^*k* neighbouring entries, aligned,
    /// can make one page. Zero where there are none.
    const GROUPS: [u32; MAX_LEVELS] = [0; MAX_LEVELS];
    /// Whether the address grows from entry to entry inside a group; else all are the same.
    const GROUPS_GROW: bool = true;
    /// A bit of a table entry that hardware ignores, or 0: set once the entry was cleaned for a
    /// walker that does not snoop.
    const SYNCED: u64 = 0;
    /// The unit of fences in bytes, or 0 if the format has none.
    const FENCE_UNIT: u64 = 0;
    /// Whether the hardware indexes with the low input bits of what a device emits, whatever stands
    /// above them; else wider addresses fault.
    const UPPER_BITS_IGNORED: bool = false;

    /// The bits of a leaf of `level` without its address; `group` is the logarithm of its group.
    fn leaf(attributes: Attributes, level: u32, group: u32) -> u64;
    /// The bits, without the address, of an entry of `level` that names a table.
    fn table(level: u32) -> u64;
    /// What an entry of `level` is. Never [`Kind::Table`] at level 0.
    fn kind(entry: u64, level: u32) -> Kind;
    /// The logarithm of the group that a leaf belongs to: 0 if to none.
    fn group(entry: u64, level: u32) -> u32 {
        let _ = (entry, level);
        0
    }
    /// What a leaf allows.
    fn attributes(leaf: u64) -> Attributes;
    /// What a device is really allowed when `attributes` are asked for; a format that cannot
    /// express them exactly allows more (Arm: write implies read).
    #[inline]
    fn effective(attributes: Attributes) -> Attributes {
        Self::attributes(Self::leaf(attributes, 0, 0))
    }
    /// The leaf with a fence inside its page; the leaf itself where there are no fences.
    fn fenced(leaf: u64, fence: Fence) -> u64 {
        let _ = fence;
        leaf
    }
    /// The fence of a leaf.
    fn fence(leaf: u64) -> Fence {
        let _ = leaf;
        Fence::default()
    }
}

/// Logarithm of the bytes that one entry of `level` spans.
#[inline]
pub(super) const fn shift<F: Format>(level: u32) -> u32 {
    F::GRANULE.shift() + level * F::INDEX_BITS
}

/// The address field of `phys`.
#[inline]
pub(super) const fn encode<F: Format>(phys: u64) -> u64 {
    (phys >> F::ADDRESS_SHIFT) & F::ADDRESS_MASK
}

/// The physical address in an entry's address field.
#[inline]
pub(super) const fn decode<F: Format>(entry: u64) -> u64 {
    (entry & F::ADDRESS_MASK) << F::ADDRESS_SHIFT
}

macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident, $type:ty, $name:literal;)*) => {
        /// A format, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum FormatId {
            $($(#[$doc])* $variant,)*
        }

        impl FormatId {
            /// All formats.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name: `dart1`, `lpae4k` and so on.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Runs generic code for the format that this value names.
            pub fn visit<V: FormatVisitor>(self, visitor: V) -> V::Output {
                match self { $(Self::$variant => visitor.visit::<$type>(),)* }
            }
        }
    };
}

/// Code that is written for every format and run for one, see [`FormatId::visit`].
pub trait FormatVisitor {
    /// What it returns.
    type Output;
    /// Runs it for `F`.
    fn visit<F: Format>(self) -> Self::Output;
}

formats! {
    /// Apple DART, first generation: 16 KiB granule, 36-bit output.
    Dart1, super::Dart1, "dart1";
    /// Apple DART, second generation: 16 KiB granule, 42-bit output.
    Dart2, super::Dart2, "dart2";
    /// Arm stage 1, 4 KiB granule.
    Lpae4k, super::Lpae4k, "lpae4k";
    /// Arm stage 1, 16 KiB granule.
    Lpae16k, super::Lpae16k, "lpae16k";
    /// Arm stage 1, 64 KiB granule.
    Lpae64k, super::Lpae64k, "lpae64k";
    /// Intel VT-d second stage.
    Vtd2, super::Vtd2, "vtd2";
    /// AMD I/O page tables, version 1.
    Amdv1, super::Amdv1, "amdv1";
    /// RISC-V Sv39.
    Sv39, super::Sv39, "sv39";
    /// RISC-V Sv48.
    Sv48, super::Sv48, "sv48";
    /// RISC-V Sv57.
    Sv57, super::Sv57, "sv57";
}

impl fmt::Display for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no page-table format has that name: dart1, dart2, lpae4k, lpae16k, lpae64k, vtd2, amdv1, sv39, sv48 or sv57"
)]
pub struct UnknownFormat;

impl FromStr for FormatId {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.iter().copied().find(|id| id.name() == name).ok_or(UnknownFormat)
    }
}
