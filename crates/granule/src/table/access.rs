//! Views of live tables: the one place where addresses in entries become pointers.
//!
//! The invariant behind every view: **an entry of a live table that is of kind `Table`, or marked
//! detached, names a table of the right size that stays allocated until that entry is zeroed.** Only
//! this module's [`Table::child`] follows them. A table is freed by its owner alone: by `reap`, whose
//! caller owns every address that the table spans, or by the loser of an install, who never linked it.

use core::marker::PhantomData;

use super::format::{DETACHED, Format, Kind, decode, shift};
use super::hint::Hint;
use super::{Entry, TableMemory};
use crate::addr::{PhysAddr, PhysRange};

/// A live table at one level.
pub(super) struct Table<'t, F: Format, M: TableMemory> {
    pub(super) memory: &'t M,
    pub(super) entries: &'t [M::Entry],
    pub(super) phys: u64,
    pub(super) level: u32,
    format: PhantomData<F>,
}

impl<F: Format, M: TableMemory> Clone for Table<'_, F, M> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format, M: TableMemory> Copy for Table<'_, F, M> {}

/// What one entry of a table is.
pub(super) enum Slot<'t, F: Format, M: TableMemory> {
    Empty,
    Detached,
    Leaf(u64),
    Table(Table<'t, F, M>, u64),
}

impl<'t, F: Format, M: TableMemory> Table<'t, F, M> {
    /// The root, or a fresh table that is not linked yet.
    ///
    /// # Safety
    /// `phys` is a table of `entries` (a power of two) initialised entries from `memory`, alive for
    /// `'t`, in which the invariant above holds.
    #[inline(always)]
    pub(super) unsafe fn at(memory: &'t M, phys: u64, level: u32, entries: usize) -> Self {
        let first = memory.entry(PhysAddr::new(phys));
        // SAFETY: `TableMemory::entry` points to the array of entries up to the table's end, valid
        // until the table is freed; entries are only changed through shared, atomic access.
        let entries = unsafe { core::slice::from_raw_parts(first, entries) };
        Self { memory, entries, phys, level, format: PhantomData }
    }

    /// Where the entry for an address is.
    #[inline(always)]
    pub(super) fn index(&self, iova: u64) -> usize {
        (iova >> shift::<F>(self.level)) as usize & (self.entries.len() - 1)
    }

    /// The lowest table on the way to `iova` that exists, from a root of `LEVELS` levels. The shifts
    /// are constants: this is what single maps, unmaps and look-ups spend their time in.
    #[inline(always)]
    pub(super) fn lowest<const LEVELS: u32>(mut self, iova: u64) -> Self {
        self.level = LEVELS - 1;
        for level in (1..LEVELS).rev() {
            let index = (iova >> shift::<F>(level)) as usize;
            let index =
                if level == LEVELS - 1 { index } else { index & ((1 << F::INDEX_BITS) - 1) };
            let Some(entry) = self.entries.get(index) else { return self };
            let entry = entry.load();
            if F::kind(entry, level) != Kind::Table {
                return self;
            }
            self = self.child(entry);
        }
        self
    }

    /// Looks at an entry.
    #[inline(always)]
    pub(super) fn slot(&self, index: usize) -> Slot<'t, F, M> {
        let entry = self.entries[index].load();
        match F::kind(entry, self.level) {
            Kind::Table => Slot::Table(self.child(entry), entry),
            Kind::Leaf => Slot::Leaf(entry),
            Kind::Invalid if entry & DETACHED != 0 => Slot::Detached,
            Kind::Invalid => Slot::Empty,
        }
    }

    /// The table that a detached entry remembers.
    pub(super) fn detached(&self, index: usize) -> Option<Self> {
        let entry = self.entries[index].load();
        let is = F::kind(entry, self.level) == Kind::Invalid && entry & DETACHED != 0;
        // SAFETY: the module's invariant holds for detached entries too.
        is.then(|| unsafe {
            Self::at(
                self.memory,
                entry & !DETACHED,
                self.level.saturating_sub(1),
                1 << F::INDEX_BITS,
            )
        })
    }

    /// The table that `entry`, just loaded from this table and of kind `Table`, names.
    #[inline(always)]
    fn child(&self, entry: u64) -> Self {
        let phys = decode::<F>(entry);
        // SAFETY: the module's invariant; kind `Table` never occurs at level 0.
        unsafe { Self::at(self.memory, phys, self.level.wrapping_sub(1), 1 << F::INDEX_BITS) }
    }

    /// Makes entries visible to a walker that does not snoop.
    #[inline(always)]
    pub(super) fn clean(&self, index: usize, count: usize) {
        if !self.memory.coherent() {
            clean(self.memory, self.phys + index as u64 * 8, count);
        }
    }
}

/// Cleans `count` entries from physical address `at`.
#[cold]
pub(super) fn clean<M: TableMemory>(memory: &M, at: u64, count: usize) {
    if let Ok(range) = PhysRange::new(PhysAddr::new(at), count as u64 * 8) {
        memory.clean(range);
    }
}

/// The entries that a hint names.
///
/// # Safety
/// The hint came from a map into a table of `memory`, and what that call mapped is mapped still, so
/// that the entries are live leaves which pin their table.
#[inline(always)]
pub(super) unsafe fn hinted<M: TableMemory>(memory: &M, hint: Hint) -> &[M::Entry] {
    let first = memory.entry(PhysAddr::new(hint.phys()));
    // SAFETY: the entries lie in one live table (the caller's promise).
    unsafe { core::slice::from_raw_parts(first, hint.count()) }
}

/// Frees the subtree below and including a table that nothing names any more; returns how many
/// tables that were.
///
/// # Safety
/// No entry names the table, and neither a CPU nor a walker reaches it or anything below it.
pub(super) unsafe fn free_subtree<F: Format, M: TableMemory>(table: Table<'_, F, M>) -> usize {
    let mut freed = 1;
    if table.level > 0 {
        for index in 0..table.entries.len() {
            let child = match table.slot(index) {
                Slot::Table(child, _) => Some(child),
                Slot::Detached => table.detached(index),
                _ => None,
            };
            if let Some(child) = child {
                // SAFETY: only this entry names the child, and nothing reads it after this.
                freed += unsafe { free_subtree(child) };
            }
        }
    }
    // SAFETY: the caller's promise; the last use of the view's entries was above.
    unsafe { table.memory.free(PhysAddr::new(table.phys), 8 << F::INDEX_BITS) };
    freed
}
