//! Unmapping: refuse what cuts a page, clear entries, detach whole tables. Never allocates.

use super::access::{self, Slot, Table};
use super::format::{DETACHED, Format, shift};
use super::hint::Hint;
use super::{Entry, PageTable, TableError, TableMemory, run};
use crate::addr::{Iova, IovaRange};

/// What an unmap did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmapped {
    /// Bytes of IOVA space that are no longer translated; holes do not count. A table that was
    /// detached counts with all it spans: it is not read.
    pub bytes: u64,
    /// Whether tables were detached: the invalidation must cover walk caches, and
    /// [`reap`](PageTable::reap) is due after it.
    pub tables: bool,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Unmaps a range; holes in it are skipped. Tables of which the range covers everything are
    /// detached with one store: they stay as they are, since a walker may still be in them, until
    /// [`reap`](Self::reap).
    ///
    /// # Errors
    /// Before anything is changed: [`TableError::Misaligned`], [`TableError::OutsideInput`], and
    /// [`TableError::CutsPage`] if an end of the range lies inside a page or a contiguous group.
    ///
    /// # Safety
    /// The range is the caller's own (see [`PageTable`]); its memory and IOVA are not reused before
    /// the invalidation has completed. `hint` is [`Hint::NONE`], or what mapping this very range
    /// returned, and that is mapped still, whole.
    #[inline]
    pub unsafe fn unmap(&self, range: IovaRange, hint: Hint) -> Result<Unmapped, TableError> {
        // SAFETY: the caller's promise about `hint`.
        match unsafe { self.unmap_page(range, hint) } {
            Some(bytes) => {
                self.memory.barrier();
                Ok(Unmapped { bytes, tables: false })
            }
            // SAFETY: as above.
            None => unsafe { self.unmap_run(range, hint) },
        }
    }

    /// One page in a table that exists. `None` if it is anything else, a wrong request included;
    /// then nothing was changed.
    ///
    /// # Safety
    /// As [`unmap`](Self::unmap), about `hint`.
    #[inline(always)]
    unsafe fn unmap_page(&self, range: IovaRange, hint: Hint) -> Option<u64> {
        if range.len() != F::GRANULE.size() {
            return None;
        }
        let entry = if hint.count() == 1 && self.memory.coherent() {
            // SAFETY: the caller's promise about `hint`.
            unsafe { access::hinted(&self.memory, hint) }.first()?
        } else {
            self.page_entry(range.start().raw())?.0
        };
        let found = entry.peek();
        if F::GROUPS[0] != 0 && F::group(found, 0) != 0 {
            return None;
        }
        entry.fill(0);
        Some(if found == 0 { 0 } else { F::GRANULE.size() })
    }

    /// # Safety
    /// As [`unmap`](Self::unmap), about `hint`.
    #[inline(never)]
    unsafe fn unmap_run(&self, range: IovaRange, hint: Hint) -> Result<Unmapped, TableError> {
        let count = hint.count();
        let done = if count != 0 && range.len() == (count as u64) << F::GRANULE.shift() {
            // SAFETY: the caller's promise about `hint`.
            let entries = unsafe { access::hinted(&self.memory, hint) };
            let cleared = run::clear(entries);
            if !self.memory.coherent() {
                access::clean(&self.memory, hint.phys(), count);
            }
            Some(pages::<F>(cleared))
        } else {
            self.clear_short(range.start().raw(), range.len())
        };
        match done {
            Some(done) => {
                self.memory.barrier();
                Ok(done)
            }
            None => self.unmap_long(range),
        }
    }

    #[cold]
    #[inline(never)]
    fn unmap_long(&self, range: IovaRange) -> Result<Unmapped, TableError> {
        let (start, end) = self.geometry.span::<F>(range.start(), range.len())?;
        let done = self.walk_and_clear(start, end)?;
        self.memory.barrier();
        Ok(done)
    }

    /// Unmaps what the same call wrote, tables left in place: nobody has to reap after an error.
    #[cold]
    pub(super) fn take_back(&self, start: u64, end: u64) {
        let mut done = Unmapped::default();
        self.clear_in(self.root(), start, end, false, &mut done);
    }

    /// The short way: entries of one table of level 0, cutting no group. `None` if there is anything
    /// to think about, a wrong request included; then nothing was changed.
    #[inline(always)]
    pub(super) fn clear_short(&self, start: u64, len: u64) -> Option<Unmapped> {
        let span = 1u64 << shift::<F>(1);
        let sound = (start | len) & F::GRANULE.mask() == 0
            && len < span
            && (start & (span - 1)) + len <= span
            && (start + (len - 1)) >> self.geometry.input_bits == 0
            && self.geometry.levels > 1;
        if !sound {
            return None;
        }
        let table = self.lowest(start);
        if table.level != 0 {
            return None;
        }
        let end = start + len;
        let index = table.index(start);
        let count = ((end - start) >> F::GRANULE.shift()) as usize;
        let entries = table.entries.get(index..index + count)?;
        if F::GROUPS[0] != 0 {
            let whole = |entry: &M::Entry, edge: u64| {
                edge & ((F::GRANULE.size() << F::group(entry.peek(), 0)) - 1) == 0
            };
            if !whole(entries.first()?, start) || !whole(entries.last()?, end) {
                return None;
            }
        }
        let cleared = run::clear(entries);
        table.clean(index, count);
        Some(pages::<F>(cleared))
    }

    fn walk_and_clear(&self, start: u64, end: u64) -> Result<Unmapped, TableError> {
        let mut done = Unmapped::default();
        let Some(table) = self.innermost(start, end)? else { return Ok(done) };
        if F::LEAF_LEVELS != 1 || F::GROUPS[0] != 0 {
            check_edge(table, start)?;
            if end & ((1u64 << shift::<F>(table.level + 1)) - 1) != 0
                && end >> self.geometry.input_bits == 0
            {
                check_edge(table, end)?;
            }
        }
        if table.level == 0 {
            self.clear_pages(table, start, end, &mut done);
        } else {
            self.clear_in(table, start, end, true, &mut done);
        }
        Ok(done)
    }

    /// The lowest table that holds all of the range, or `None` if nothing is mapped there.
    #[inline(always)]
    fn innermost(&self, start: u64, end: u64) -> Result<Option<Table<'_, F, M>>, TableError> {
        let mut table = self.root();
        while table.level > 0 {
            let bits = shift::<F>(table.level);
            if start >> bits != (end - 1) >> bits || end - start == 1 << bits {
                break;
            }
            table = match table.slot(table.index(start)) {
                Slot::Table(child, _) => child,
                Slot::Leaf(entry) => {
                    let at = if start & ((1 << bits) - 1) == 0 { end } else { start };
                    return Err(cuts::<F>(entry, table.level, at));
                }
                _ => return Ok(None),
            };
        }
        Ok(Some(table))
    }

    #[inline(always)]
    fn clear_pages(&self, table: Table<'_, F, M>, start: u64, end: u64, done: &mut Unmapped) {
        let index = table.index(start);
        let count = ((end - start) >> F::GRANULE.shift()) as usize;
        if table.level == self.root_level() {
            return self.clear_root_pages(table, index, count, done);
        }
        let cleared = run::clear(&table.entries[index..index + count]);
        table.clean(index, count);
        done.bytes += (cleared as u64) << F::GRANULE.shift();
    }

    #[cold]
    fn clear_root_pages(
        &self,
        table: Table<'_, F, M>,
        index: usize,
        count: usize,
        done: &mut Unmapped,
    ) {
        for index in index..index + count {
            if let Slot::Leaf(_) = table.slot(index) {
                self.put(&table, index, 0, false);
                done.bytes += F::GRANULE.size();
            }
        }
    }

    fn clear_in(
        &self,
        table: Table<'_, F, M>,
        start: u64,
        end: u64,
        detach: bool,
        done: &mut Unmapped,
    ) {
        if table.level == 0 {
            if start < end {
                self.clear_pages(table, start, end, done);
            }
            return;
        }
        let span = 1u64 << shift::<F>(table.level);
        let mut at = start;
        while at < end {
            let next = (at | (span - 1)).saturating_add(1);
            let whole = at & (span - 1) == 0 && next <= end;
            let index = table.index(at);
            match table.slot(index) {
                Slot::Leaf(_) if whole => {
                    self.put(&table, index, 0, false);
                    done.bytes += span;
                }
                Slot::Table(child, _) if whole && detach => {
                    self.put(&table, index, child.phys | DETACHED, false);
                    done.bytes += span;
                    done.tables = true;
                }
                Slot::Table(child, _) => self.clear_in(child, at, next.min(end), detach, done),
                _ => {}
            }
            at = next;
        }
    }
}

#[inline(always)]
fn pages<F: Format>(cleared: usize) -> Unmapped {
    Unmapped { bytes: (cleared as u64) << F::GRANULE.shift(), tables: false }
}

/// Refuses if a page or a group lies across `at`, looking down from `table`.
#[inline(always)]
fn check_edge<F: Format, M: TableMemory>(
    mut table: Table<'_, F, M>,
    at: u64,
) -> Result<(), TableError> {
    loop {
        match table.slot(table.index(at)) {
            Slot::Leaf(entry) => {
                let bits = shift::<F>(table.level) + F::group(entry, table.level);
                let inside = at & ((1u64 << bits) - 1) != 0;
                return if inside { Err(cuts::<F>(entry, table.level, at)) } else { Ok(()) };
            }
            Slot::Table(child, _) if at & ((1u64 << shift::<F>(table.level)) - 1) != 0 => {
                table = child;
            }
            _ => return Ok(()),
        }
    }
}

/// The page of `entry`, cut at `at`, which lies inside it or is its end.
#[cold]
fn cuts<F: Format>(entry: u64, level: u32, at: u64) -> TableError {
    let size = 1u64 << (shift::<F>(level) + F::group(entry, level));
    let start = at & !(size - 1);
    match IovaRange::new(Iova::new(start), size) {
        Ok(page) => TableError::CutsPage { page, at: Iova::new(at) },
        Err(_) => TableError::Misaligned { value: at, granule: F::GRANULE },
    }
}
