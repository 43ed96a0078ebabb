//! The shape of one table: levels, root, page sizes, all from the input bits.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::format::{Format, FormatId, MAX_LEVELS, Root, shift};
use super::{Attributes, TableError};
use crate::addr::{Access, Granule, Iova, IovaRange, PageSizes, PhysAddr, PhysRange};

/// What a page table is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableConfig {
    /// Bits of the IOVA that the table indexes.
    pub input_bits: u32,
    /// Bits of a physical address that an entry may name.
    pub output_bits: u32,
    /// The page sizes that this hardware has; those that the format lacks are ignored.
    pub page_sizes: PageSizes,
}

impl TableConfig {
    /// A table with these bits and every page size of its format.
    pub const fn new(input_bits: u32, output_bits: u32) -> Self {
        Self { input_bits, output_bits, page_sizes: PageSizes::from_bits(u64::MAX) }
    }

    /// The same with page sizes limited to `sizes` (hardware without large pages, or without the
    /// contiguous hint).
    #[must_use]
    pub const fn limited_to(mut self, sizes: PageSizes) -> Self {
        self.page_sizes = sizes;
        self
    }
}

/// The shape of a table, for the driver that programs the hardware with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLayout {
    /// The format.
    pub format: FormatId,
    /// The smallest page.
    pub granule: Granule,
    /// Bits of the IOVA that are indexed.
    pub input_bits: u32,
    /// Bits of a physical address.
    pub output_bits: u32,
    /// Levels of the walk, the root's included.
    pub levels: u32,
    /// The root tables: one, or for DART up to four, in the order of the highest input bits.
    pub roots: Vec<PhysAddr>,
    /// Bytes of IOVA space that one root entry spans.
    pub root_entry_bytes: u64,
}

/// The checked numbers behind a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) levels: u32,
    pub(super) input_bits: u32,
    pub(super) output_bits: u32,
    /// Entries of all root tables together, a power of two.
    pub(super) root_entries: usize,
    pub(super) roots: usize,
    pub(super) sizes: PageSizes,
    /// The bits that are clear in the IOVA of every page: those above the input, and the offset.
    pub(super) not_in_iova: u64,
    /// The bits that are clear in the physical address of every page.
    pub(super) not_in_phys: u64,
    /// Levels above 0 that may hold leaves.
    large: u32,
    /// The format's groups that the configuration allows.
    groups: [u32; MAX_LEVELS],
}

/// A run of entries of one level that are written alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) entries: usize,
    pub(super) group: u32,
}

fn within(bits: u32, min: u32, max: u32) -> bool {
    (min..=max).contains(&bits)
}

/// The bits that no page's address of so many bits has set.
fn not_in_page<F: Format>(bits: u32) -> u64 {
    u64::MAX.checked_shl(bits).unwrap_or(0) | F::GRANULE.mask()
}

impl Geometry {
    pub(super) fn new<F: Format>(config: &TableConfig) -> Result<Self, TableError> {
        let TableConfig { input_bits, output_bits, page_sizes } = *config;
        let (format, granule) = (F::ID, F::GRANULE);
        let (min, max) = (F::MIN_INPUT_BITS, F::MAX_INPUT_BITS);
        if !within(input_bits, min, max) {
            return Err(TableError::InputBits { format, bits: input_bits, min, max });
        }
        let (min, max) = (granule.shift(), F::MAX_OUTPUT_BITS);
        if !within(output_bits, min, max) {
            return Err(TableError::OutputBits { format, bits: output_bits, min, max });
        }
        if !page_sizes.contains(granule.size()) {
            return Err(TableError::NoGranule { format, granule });
        }
        let levels = Self::levels::<F>(input_bits);
        let (root_entries, roots) = Self::root::<F>(input_bits, levels);
        let (sizes, large, groups) = Self::pages::<F>(input_bits, levels, page_sizes);
        Ok(Self {
            levels,
            input_bits,
            output_bits,
            root_entries,
            roots,
            sizes,
            not_in_iova: not_in_page::<F>(input_bits),
            not_in_phys: not_in_page::<F>(output_bits),
            large,
            groups,
        })
    }

    fn levels<F: Format>(input_bits: u32) -> u32 {
        let extra = match F::ROOT {
            Root::Short => 0,
            Root::Tables(most) => most.trailing_zeros(),
        };
        let enough = |levels: &u32| shift::<F>(*levels) + extra >= input_bits;
        (F::MIN_LEVELS..F::MAX_LEVELS).find(enough).unwrap_or(F::MAX_LEVELS)
    }

    fn root<F: Format>(input_bits: u32, levels: u32) -> (usize, usize) {
        let used = 1usize << input_bits.saturating_sub(shift::<F>(levels - 1));
        match F::ROOT {
            Root::Short => (used.max(8), 1),
            Root::Tables(_) => {
                let roots = (used >> F::INDEX_BITS).max(1);
                (roots << F::INDEX_BITS, roots)
            }
        }
    }

    fn pages<F: Format>(
        input_bits: u32,
        levels: u32,
        allowed: PageSizes,
    ) -> (PageSizes, u32, [u32; MAX_LEVELS]) {
        let (mut sizes, mut large, mut groups) = (PageSizes::default(), 0, [0; MAX_LEVELS]);
        let fits = |bits: u32| bits <= input_bits && allowed.contains(1u64 << bits);
        for level in (0..levels).filter(|level| (F::LEAF_LEVELS >> level) & 1 == 1) {
            let page = shift::<F>(level);
            if !fits(page) {
                continue;
            }
            large |= 1 << level;
            sizes = sizes.union(PageSizes::from_bits(1 << page));
            let index = level as usize;
            for k in (1..32).filter(|k| (F::GROUPS[index] >> k) & 1 == 1 && fits(page + k)) {
                groups[index] |= 1 << k;
                sizes = sizes.union(PageSizes::from_bits(1 << (page + k)));
            }
        }
        (sizes, large & !1, groups)
    }

    /// The level of the largest page that fits a step, not above `cap`.
    #[inline(always)]
    pub(super) fn level_for<F: Format>(&self, iova: u64, phys: u64, len: u64, cap: u32) -> u32 {
        if F::LEAF_LEVELS == 1 {
            return 0;
        }
        let merged = iova | phys;
        let mut levels = self.large & ((2 << cap) - 1);
        while levels != 0 {
            let level = levels.ilog2();
            let page = 1u64 << shift::<F>(level);
            if len >= page && merged & (page - 1) == 0 {
                return level;
            }
            levels &= !(1 << level);
        }
        0
    }

    /// How many of the next `most` entries of `level` to write alike, and in groups of what size.
    #[inline(always)]
    pub(super) fn run<F: Format>(&self, iova: u64, phys: u64, level: u32, most: usize) -> Run {
        let mut sizes = self.groups.get(level as usize).copied().unwrap_or(0);
        let mut entries = most;
        let first = iova >> shift::<F>(level);
        let off = first ^ (phys >> shift::<F>(level));
        while sizes != 0 {
            let group = sizes.ilog2();
            sizes &= !(1 << group);
            let mask = (1usize << group) - 1;
            if off as usize & mask != 0 {
                continue;
            }
            let head = (first as usize).wrapping_neg() & mask;
            if head == 0 && entries > mask {
                let whole = if F::GROUPS_GROW { entries & !mask } else { mask + 1 };
                return Run { entries: whole, group };
            }
            if head != 0 && entries > head + mask {
                entries = head;
            }
        }
        Run { entries, group: 0 }
    }

    /// The group in which `count` pages of level 0 are all written alike, if they are.
    #[inline(always)]
    pub(super) fn alike<F: Format>(&self, iova: u64, phys: u64, count: usize) -> Option<u32> {
        if count == 1 || F::GROUPS[0] == 0 {
            return Some(0);
        }
        let run = self.run::<F>(iova, phys, 0, count);
        (run.entries == count).then_some(run.group)
    }

    /// Checks a range of IOVA space against granule and input bits; gives start and end.
    #[inline(always)]
    pub(super) fn span<F: Format>(&self, iova: Iova, len: u64) -> Result<(u64, u64), TableError> {
        let start = iova.raw();
        if (start | len) & F::GRANULE.mask() != 0 {
            return Err(misaligned::<F>(start | len));
        }
        match start.checked_add(len) {
            Some(end) if end <= 1 << self.input_bits => Ok((start, end)),
            _ => Err(TableError::OutsideInput { iova, len, input_bits: self.input_bits }),
        }
    }

    /// Checks physical memory against granule and output bits.
    #[inline(always)]
    pub(super) fn output<F: Format>(&self, range: PhysRange) -> Result<(), TableError> {
        if !range.is_aligned(F::GRANULE) {
            return Err(misaligned::<F>(range.start().raw() | range.len()));
        }
        if range.last().raw() >> self.output_bits != 0 {
            return Err(TableError::OutsideOutput { range, output_bits: self.output_bits });
        }
        Ok(())
    }

    /// The part of `range` that the table indexes, as start and end.
    pub(super) fn clip(&self, range: IovaRange) -> Option<(u64, u64)> {
        let limit = 1u64 << self.input_bits;
        let end = range.end().map_or(limit, |end| end.raw().min(limit));
        (range.start().raw() < end).then_some((range.start().raw(), end))
    }

    pub(super) fn root_bytes(&self) -> u64 {
        self.root_entries as u64 * 8
    }
}

#[cold]
fn misaligned<F: Format>(value: u64) -> TableError {
    TableError::Misaligned { value, granule: F::GRANULE }
}

/// A mapping must allow something.
#[inline(always)]
pub(super) fn check_access(attributes: Attributes) -> Result<(), TableError> {
    if attributes.access == Access::empty() { Err(TableError::NoAccess) } else { Ok(()) }
}
