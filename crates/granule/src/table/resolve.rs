//! Reading a live table: one address, every leaf of a range, the empty tables.
#![forbid(unsafe_code)]

use super::access::{Slot, Table};
use super::format::{Fence, Format, Kind, decode, shift};
use super::{Entry, PageTable, TableMemory};
use crate::addr::{Attributes, Iova, IovaRange, PhysAddr};

/// What an address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Where the byte at the address that was asked for lies.
    pub phys: PhysAddr,
    /// The size of its page, or of its contiguous group, in bytes.
    pub page_size: u64,
    /// What the device may do.
    pub attributes: Attributes,
    /// What is closed to the device at the ends of the page (DART; unverified).
    pub fence: Fence,
}

/// One page, as [`for_each_leaf`](PageTable::for_each_leaf) reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where the page, or contiguous group, starts.
    pub iova: Iova,
    /// Where it leads, from its start, with its size and rights.
    pub to: Resolved,
}

/// What the leaf that spans `iova` translates it to.
#[inline(always)]
pub(super) fn resolved<F: Format>(entry: u64, level: u32, iova: u64) -> Resolved {
    let size = 1u64 << (shift::<F>(level) + F::group(entry, level));
    Resolved {
        phys: PhysAddr::new(decode::<F>(entry) & !(size - 1) | iova & (size - 1)),
        page_size: size,
        attributes: F::attributes(entry),
        fence: F::fence(entry),
    }
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// What the walker makes of an address; `None` if it faults.
    ///
    /// Must not run beside a [`reap`](Self::reap) of this address: that is `reap`'s contract.
    #[inline]
    pub fn resolve(&self, iova: Iova) -> Option<Resolved> {
        let iova = iova.raw();
        if iova >> self.geometry.input_bits != 0 {
            return None;
        }
        let table = self.lowest(iova);
        if table.level != 0 || self.geometry.levels == 1 {
            return elsewhere::<F, M>(table.entries, table.level, iova);
        }
        // Here level and length are constants, and with them every shift and mask.
        let entry = table.entries.get(table.index(iova))?.load();
        (F::kind(entry, 0) == Kind::Leaf).then(|| resolved::<F>(entry, 0, iova))
    }

    /// Calls `each` for every page that meets `range`, in order; a page that begins before the range
    /// is reported whole. For reports: it reads every entry.
    ///
    /// Must not run beside a [`reap`](Self::reap) of any of it: that is `reap`'s contract.
    pub fn for_each_leaf(&self, range: IovaRange, mut each: impl FnMut(Leaf)) {
        if let Some((start, end)) = self.geometry.clip(range) {
            leaves_in(self.root(), start, end, &mut each);
        }
    }

    /// How many table pages below the root hold no entry: what mappings left behind, and later
    /// mappings use again. Reads the whole table.
    ///
    /// Must not run beside any [`reap`](Self::reap): that is `reap`'s contract.
    pub fn empty_table_pages(&self) -> usize {
        let root = self.root();
        (0..root.entries.len()).map(|index| empty_below(&root, index)).sum()
    }
}

/// What an address translates to where the walk ends in a root, or above level 0: by a large page,
/// if at all. Takes a table in parts: a whole one would be put into memory before every look-up.
#[inline(never)]
fn elsewhere<F: Format, M: TableMemory>(
    entries: &[M::Entry],
    level: u32,
    iova: u64,
) -> Option<Resolved> {
    let index = (iova >> shift::<F>(level)) as usize & entries.len().wrapping_sub(1);
    let entry = entries.get(index)?.load();
    (F::kind(entry, level) == Kind::Leaf).then(|| resolved::<F>(entry, level, iova))
}

fn empty_below<F: Format, M: TableMemory>(table: &Table<'_, F, M>, index: usize) -> usize {
    let Slot::Table(child, _) = table.slot(index) else { return 0 };
    if child.entries.iter().all(|entry| entry.peek() == 0) {
        return 1;
    }
    if child.level == 0 {
        return 0;
    }
    (0..child.entries.len()).map(|index| empty_below(&child, index)).sum()
}

fn leaves_in<F: Format, M: TableMemory>(
    table: Table<'_, F, M>,
    start: u64,
    end: u64,
    each: &mut impl FnMut(Leaf),
) {
    let span = 1u64 << shift::<F>(table.level);
    let mut at = start;
    while at < end {
        let mut next = (at | (span - 1)).saturating_add(1);
        match table.slot(table.index(at)) {
            Slot::Table(child, _) => leaves_in(child, at, next.min(end), each),
            Slot::Leaf(entry) => {
                let size = resolved::<F>(entry, table.level, at).page_size;
                let first = at & !(size - 1);
                each(Leaf { iova: Iova::new(first), to: resolved::<F>(entry, table.level, first) });
                next = (at | (size - 1)).saturating_add(1);
            }
            _ => {}
        }
        at = next;
    }
}
