//! The page table itself: making and freeing it, walking to a table, linking one.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering};

use lock_api::Mutex;

use super::access::{self, Slot, Table};
use super::adopt::LiveRoots;
use super::format::{DETACHED, Format, decode, encode, shift};
use super::geometry::Geometry;
use super::{Contents, Entry, TableConfig, TableError, TableLayout, TableMemory};
use crate::addr::{Iova, IovaRange, PageSizes, PhysAddr};

/// A page table of format `F` in memory `M`.
///
/// All methods take `&self`: CPUs map and unmap disjoint ranges at the same time, without a lock
/// around the table (one guards writes of root entries, which are rare).
///
/// # What the caller keeps to
///
/// The `unsafe` methods share one contract. **A range is its caller's own** from before it is mapped
/// until it was unmapped, invalidated (walk caches included) and, if tables were detached, reaped:
/// no other call touches an address inside it in the meantime. The IOVA allocator of the layer above
/// gives just that. [`resolve`](Self::resolve) and the other readers may look at anything; it is
/// [`reap`](Self::reap) that must not run while they look at what it frees.
pub struct PageTable<F: Format, M: TableMemory> {
    pub(super) memory: M,
    pub(super) geometry: Geometry,
    root: u64,
    /// The levels, or zero where single pages must not go the short way: their walker does not snoop.
    short: u32,
    pub(super) live: Mutex<M::Lock, LiveRoots>,
    pages: AtomicUsize,
    format: PhantomData<F>,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// An empty table: its root, and nothing mapped.
    ///
    /// # Errors
    /// A typed error if the format cannot do what `config` asks for, if there is no memory for the
    /// root, or if that memory lies above the output bits.
    pub fn new(memory: M, config: TableConfig) -> Result<Self, TableError> {
        let geometry = Geometry::new::<F>(&config)?;
        let size = geometry.root_bytes();
        let root = memory.alloc(size, size / geometry.roots as u64, Contents::Zeroed)?;
        let short = if memory.coherent() { geometry.levels } else { 0 };
        let table = Self {
            memory,
            geometry,
            root: root.raw(),
            short,
            live: Mutex::new(LiveRoots::default()),
            pages: AtomicUsize::new(geometry.roots),
            format: PhantomData,
        };
        // From here on, dropping `table` frees the root.
        table.check_table_address(root.raw(), size)?;
        table.clean_table(table.root());
        Ok(table)
    }

    /// What the hardware is programmed with.
    pub fn layout(&self) -> TableLayout {
        let bytes = self.geometry.root_bytes() / self.geometry.roots as u64;
        TableLayout {
            format: F::ID,
            granule: F::GRANULE,
            input_bits: self.geometry.input_bits,
            output_bits: self.geometry.output_bits,
            levels: self.geometry.levels,
            roots: (0..self.geometry.roots as u64)
                .map(|n| PhysAddr::new(self.root + n * bytes))
                .collect::<Vec<_>>(),
            root_entry_bytes: 1 << shift::<F>(self.root_level()),
        }
    }

    /// The page sizes that this table maps, contiguous groups included.
    pub fn page_sizes(&self) -> PageSizes {
        self.geometry.sizes
    }

    /// The memory that the table pages come from.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// How many table pages are allocated now, roots and detached ones included.
    pub fn table_pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(super) fn root_level(&self) -> u32 {
        self.geometry.levels - 1
    }

    #[inline(always)]
    pub(super) fn root(&self) -> Table<'_, F, M> {
        // SAFETY: the root was allocated zeroed with this many entries and lives as long as `self`.
        unsafe { Table::at(&self.memory, self.root, self.root_level(), self.geometry.root_entries) }
    }

    /// The lowest table on the way to `iova` that exists. `iova` must be inside the input bits.
    #[inline(always)]
    pub(super) fn lowest(&self, iova: u64) -> Table<'_, F, M> {
        let fixed = F::MIN_LEVELS == F::MAX_LEVELS;
        let levels = if fixed { F::MIN_LEVELS } else { self.geometry.levels };
        self.lowest_of(levels, iova).unwrap_or(self.root())
    }

    /// The same in a table of so many levels, if that is more than one.
    #[inline(always)]
    fn lowest_of(&self, levels: u32, iova: u64) -> Option<Table<'_, F, M>> {
        let root = self.root();
        // Levels that the format does not have leave no code behind. Most tables have four or three.
        let is = |n: u32| F::MIN_LEVELS <= n && n <= F::MAX_LEVELS && levels == n;
        if is(4) {
            Some(root.lowest::<4>(iova))
        } else if is(3) {
            Some(root.lowest::<3>(iova))
        } else if is(2) {
            Some(root.lowest::<2>(iova))
        } else if is(5) {
            Some(root.lowest::<5>(iova))
        } else if is(6) {
            Some(root.lowest::<6>(iova))
        } else {
            None
        }
    }

    /// The entry of level 0 for one page, and where it is, if its table exists and nothing else is
    /// to be thought of: the short way of single maps and unmaps. `at` is a whole page's address.
    #[inline(always)]
    pub(super) fn page_entry(&self, at: u64) -> Option<(&M::Entry, u64)> {
        if at & self.geometry.not_in_iova != 0 {
            return None;
        }
        // Where walkers do not snoop, the slow walk sees to the entries on the way.
        let table = self.lowest_of(self.short, at)?;
        if table.level != 0 {
            return None;
        }
        let index = table.index(at);
        Some((table.entries.get(index)?, table.phys + index as u64 * 8))
    }

    /// The table of `level` that `iova` is looked up in; missing ones are made and linked.
    #[inline(always)]
    pub(super) fn table_at(&self, iova: u64, level: u32) -> Result<Table<'_, F, M>, TableError> {
        let mut table = self.root();
        while table.level > level {
            let index = table.index(iova);
            table = match table.slot(index) {
                Slot::Table(child, entry) => {
                    self.trust(&table, index, entry);
                    child
                }
                _ => self.install(table, index, iova)?,
            };
        }
        Ok(table)
    }

    /// Sees to it that a walker which does not snoop finds an entry that another CPU linked: that
    /// CPU may not have come to clean it yet.
    #[inline(always)]
    fn trust(&self, table: &Table<'_, F, M>, index: usize, entry: u64) {
        if !self.memory.coherent() && entry & F::SYNCED == 0 {
            table.clean(index, 1);
        }
    }

    /// Makes a table below an entry, or takes the one that another CPU made meanwhile.
    #[cold]
    #[inline(never)]
    fn install<'t>(
        &'t self,
        table: Table<'t, F, M>,
        index: usize,
        iova: u64,
    ) -> Result<Table<'t, F, M>, TableError> {
        if let Slot::Empty = table.slot(index) {
            let child = self.alloc(table.level - 1, Contents::Zeroed)?;
            self.clean_table(child);
            if self.link(&table, index, child) {
                return Ok(child);
            }
            self.discard(child);
        }
        match table.slot(index) {
            Slot::Table(child, entry) => {
                self.trust(&table, index, entry);
                Ok(child)
            }
            _ => Err(self.conflict(&table, index, iova)),
        }
    }

    /// Links a finished, cleaned table below an empty entry; false if the entry is taken.
    pub(super) fn link(
        &self,
        table: &Table<'_, F, M>,
        index: usize,
        child: Table<'_, F, M>,
    ) -> bool {
        let entry = encode::<F>(child.phys) | F::table(table.level);
        let linked = if table.level == self.root_level() {
            self.install_root(index, entry)
        } else {
            table.entries[index].compare_exchange(0, entry).is_ok()
        };
        if linked && !self.memory.coherent() {
            table.clean(index, 1);
            if F::SYNCED != 0 {
                // Only now may others rely on it. The entry cannot be detached meanwhile: part of
                // what it spans is ours.
                let _ = table.entries[index].compare_exchange(entry, entry | F::SYNCED);
            }
        }
        linked
    }

    /// Writes an entry that this call's caller owns: a leaf where `expect_free`, else zero or the
    /// mark of a detached table. False if firmware or somebody else holds it.
    #[inline(always)]
    pub(super) fn put(
        &self,
        table: &Table<'_, F, M>,
        index: usize,
        entry: u64,
        install: bool,
    ) -> bool {
        let done = match (table.level == self.root_level(), install) {
            (true, true) => self.install_root(index, entry),
            (true, false) => self.clear_root(index, entry),
            (false, _) => {
                table.entries[index].store(entry);
                true
            }
        };
        table.clean(index, 1);
        done
    }

    /// A table that nobody else sees yet.
    pub(super) fn alloc(
        &self,
        level: u32,
        contents: Contents,
    ) -> Result<Table<'_, F, M>, TableError> {
        let size = 8 << F::INDEX_BITS;
        let phys = self.memory.alloc(size, size, contents)?.raw();
        self.pages.fetch_add(1, Ordering::Relaxed);
        // SAFETY: just allocated with this size. With `Contents::Any`, every entry is written
        // before the table is linked and before any is read.
        let table = unsafe { Table::at(&self.memory, phys, level, 1 << F::INDEX_BITS) };
        match self.check_table_address(phys, size) {
            Ok(()) => Ok(table),
            Err(error) => {
                self.discard(table);
                Err(error)
            }
        }
    }

    /// Frees a table that was never linked.
    pub(super) fn discard(&self, table: Table<'_, F, M>) {
        self.pages.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: from `alloc`, never linked: only this call knows it, and gives it up.
        unsafe { self.memory.free(PhysAddr::new(table.phys), 8 << F::INDEX_BITS) };
    }

    fn check_table_address(&self, phys: u64, size: u64) -> Result<(), TableError> {
        let last = phys.saturating_add(size - 1);
        let named = decode::<F>(encode::<F>(phys)) == phys && phys & DETACHED == 0;
        if phys != 0 && named && last >> self.geometry.output_bits == 0 {
            return Ok(());
        }
        Err(TableError::TableAddress { phys: PhysAddr::new(phys), bits: self.geometry.output_bits })
    }

    pub(super) fn clean_table(&self, table: Table<'_, F, M>) {
        table.clean(0, table.entries.len());
    }

    /// Why an entry cannot be taken; `iova` is an address that it spans.
    #[cold]
    pub(super) fn conflict(&self, table: &Table<'_, F, M>, index: usize, iova: u64) -> TableError {
        let span = 1u64 << shift::<F>(table.level);
        match table.slot(index) {
            Slot::Detached => TableError::NotReaped { iova: Iova::new(iova) },
            Slot::Empty => match IovaRange::new(Iova::new(iova & !(span - 1)), span) {
                Ok(slot) => TableError::FirmwareEntry { slot },
                Err(_) => TableError::AlreadyMapped { iova: Iova::new(iova) },
            },
            _ => TableError::AlreadyMapped { iova: Iova::new(iova) },
        }
    }

    /// Frees what unmap detached inside `range`, once the invalidation has completed.
    ///
    /// # Safety
    /// The range is the caller's own (see the type's contract), was unmapped, and an invalidation
    /// that covers it **and the walk caches** has completed since. No other thread is in
    /// [`resolve`](Self::resolve) of an address of the range, nor in
    /// [`for_each_leaf`](Self::for_each_leaf) or [`empty_table_pages`](Self::empty_table_pages)
    /// over any of it.
    pub unsafe fn reap(&self, range: IovaRange) {
        if let Some((start, end)) = self.geometry.clip(range) {
            let freed = self.reap_in(self.root(), start, end);
            self.pages.fetch_sub(freed, Ordering::Relaxed);
        }
    }

    fn reap_in(&self, table: Table<'_, F, M>, start: u64, end: u64) -> usize {
        let span = 1u64 << shift::<F>(table.level);
        let (mut at, mut freed) = (start, 0);
        while table.level > 0 && at < end {
            let next = (at | (span - 1)).saturating_add(1);
            let index = table.index(at);
            let whole = at & (span - 1) == 0 && next <= end;
            match table.slot(index) {
                Slot::Detached if whole => freed += self.reap_slot(&table, index),
                Slot::Table(child, _) => freed += self.reap_in(child, at, next.min(end)),
                _ => {}
            }
            at = next;
        }
        freed
    }

    fn reap_slot(&self, table: &Table<'_, F, M>, index: usize) -> usize {
        let Some(child) = table.detached(index) else { return 0 };
        table.entries[index].store(0);
        // SAFETY: the entry that named it is zero, was invalid since the unmap, and every cached
        // copy is gone (the contract of `reap`).
        unsafe { access::free_subtree(child) }
    }
}

impl<F: Format, M: TableMemory> Drop for PageTable<F, M> {
    /// Frees all tables; the hardware must have been detached and invalidated before. If a live
    /// root is still adopted, the hardware may walk our tables: then they are leaked.
    fn drop(&mut self) {
        if !self.live.get_mut().is_empty() {
            return;
        }
        let root = self.root();
        for index in 0..root.entries.len() {
            let child = match root.slot(index) {
                Slot::Table(child, _) => Some(child),
                Slot::Detached => root.detached(index),
                _ => None,
            };
            if let Some(child) = child {
                // SAFETY: `&mut self`: no other CPU uses the table, and nothing is read after this.
                unsafe { access::free_subtree(child) };
            }
        }
        // SAFETY: the root's last use was above.
        unsafe { self.memory.free(PhysAddr::new(self.root), self.geometry.root_bytes()) };
    }
}

impl<F: Format, M: TableMemory> fmt::Debug for PageTable<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable")
            .field("layout", &self.layout())
            .field("table_pages", &self.table_pages())
            .finish_non_exhaustive()
    }
}
