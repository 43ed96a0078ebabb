//! The cursor of a long map: walks once a table, picks the largest page, knows what it has written.

use core::slice::Iter;

use super::access::{Slot, Table};
use super::format::{Fence, Format, encode, shift};
use super::hint::Hint;
use super::{Contents, Entry, PageTable, TableError, TableMemory, run};
use crate::addr::{Attributes, PhysRange};

/// Where a call stands: everything from its start up to `at` was written by it.
pub(super) struct Cursor<'t, F: Format, M: TableMemory> {
    table: &'t PageTable<F, M>,
    attributes: Attributes,
    /// The bits of a single page's leaf.
    page: u64,
    at: u64,
    /// The table of level 0 found last, unless that is the root.
    leaf: &'t [M::Entry],
    leaf_phys: u64,
    /// Where it starts, or [`NOWHERE`].
    base: u64,
    /// The entries from `at` on that a list may write without another look: of the table found last, and
    /// no further than the list goes.
    span: &'t [M::Entry],
}

/// An address far above every table.
const NOWHERE: u64 = 1 << 63;

/// The first entry of a run and the step between entries.
#[inline(always)]
pub(super) fn pattern<F: Format>(bits: u64, phys: u64, level: u32, group: u32) -> (u64, u64) {
    let same = group != 0 && !F::GROUPS_GROW;
    let step = if same { 0 } else { encode::<F>(1 << shift::<F>(level)) };
    (encode::<F>(phys) | bits, step)
}

impl<'t, F: Format, M: TableMemory> Cursor<'t, F, M> {
    #[inline(always)]
    pub(super) fn new(table: &'t PageTable<F, M>, at: u64, attributes: Attributes) -> Self {
        let page = F::leaf(attributes, 0, 0);
        Self { table, attributes, page, at, leaf: &[], leaf_phys: 0, base: NOWHERE, span: &[] }
    }

    #[inline(always)]
    fn remember(&mut self, table: &Table<'t, F, M>) {
        if self.table.geometry.levels > 1 {
            self.leaf = table.entries;
            self.leaf_phys = table.phys;
            self.base = self.at & !((1u64 << shift::<F>(1)) - 1);
        }
    }

    /// Makes what was written visible, or takes it back.
    #[inline(always)]
    pub(super) fn finish(
        &self,
        start: u64,
        done: Result<(), TableError>,
    ) -> Result<(), TableError> {
        if done.is_err() {
            self.table.take_back(start, self.at);
        }
        self.table.memory.barrier();
        done
    }

    /// The place of all that was written since `start`, if that is one short run of pages.
    #[inline(always)]
    pub(super) fn hint(&self, start: u64) -> Hint {
        let offset = start.wrapping_sub(self.base);
        if offset >= 1 << shift::<F>(1) {
            return Hint::NONE;
        }
        let phys = self.leaf_phys + (offset >> F::GRANULE.shift()) * 8;
        Hint::new(phys, ((self.at - start) >> F::GRANULE.shift()) as usize)
    }

    /// Writes leaves for `len` bytes at `at`, with pages of level `cap` at most.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        mut phys: u64,
        mut len: u64,
        cap: u32,
    ) -> Result<(), TableError> {
        while len > 0 {
            let before = self.at;
            match self.table.geometry.level_for::<F>(self.at, phys, len, cap) {
                0 => self.pages(phys, len)?,
                level => self.block(phys, level, len)?,
            }
            phys += self.at - before;
            len -= self.at - before;
        }
        Ok(())
    }

    pub(super) fn write_fenced(&mut self, phys: PhysRange, fence: Fence) -> Result<(), TableError> {
        let (granule, cap) = (F::GRANULE.size(), self.table.root_level());
        let (start, len) = (phys.start().raw(), phys.len());
        let open = self.page;
        if len == granule {
            self.page = F::fenced(open, fence);
            return self.write(start, granule, cap);
        }
        self.page = F::fenced(open, Fence { back: 0, ..fence });
        self.write(start, granule, cap)?;
        self.page = open;
        self.write(start + granule, len - 2 * granule, cap)?;
        self.page = F::fenced(open, Fence { front: 0, ..fence });
        self.write(start + len - granule, granule, cap)
    }

    /// Writes a list whose pieces were checked, `total` bytes long. The iterator belongs to the caller and
    /// may differ the second time, so every piece is checked again where it counts, and nothing is
    /// written behind the end.
    #[inline(always)]
    pub(super) fn write_list<I>(&mut self, mut list: I, total: u64) -> Result<(), TableError>
    where
        I: Iterator<Item = PhysRange>,
    {
        let end = self.at + total;
        let (mut start, mut len) = (0, 0);
        let mut window = [].iter();
        let mut ahead = list.next();
        while let Some(piece) = ahead {
            if let Err(error) = self.table.geometry.output::<F>(piece) {
                self.leave(window);
                return Err(error);
            }
            ahead = list.next();
            if start + len == piece.start().raw() {
                len += piece.len();
                continue;
            }
            window = self.write_long_piece(window, start, len, end)?;
            (start, len) = (piece.start().raw(), piece.len());
            if len == F::GRANULE.size() {
                (start, ahead) = self.pages_apart(&mut window, start, ahead, &mut list);
            }
        }
        window = self.write_long_piece(window, start, len, end)?;
        self.leave(window);
        Ok(())
    }

    /// Writes the page at `start` and those that follow it in the list, for as long as each is a single
    /// one that does not adjoin the next: the first that is left, and what was read ahead. `window` is what
    /// is left of the span; it alone moves, and `at` is brought up to date when it is left.
    #[inline(always)]
    fn pages_apart<I>(
        &self,
        window: &mut Iter<'t, M::Entry>,
        mut start: u64,
        mut ahead: Option<PhysRange>,
        list: &mut I,
    ) -> (u64, Option<PhysRange>)
    where
        I: Iterator<Item = PhysRange>,
    {
        let (page, not_in_phys, bits) =
            (F::GRANULE.size(), self.table.geometry.not_in_phys, self.page);
        while let Some(piece) = ahead {
            let next = piece.start().raw();
            // One by one: a chain of conditions is compiled to moves, which are slower here.
            if piece.len() != page || next & not_in_phys != 0 {
                break;
            }
            if next == start + page {
                break;
            }
            let mut rest = window.clone();
            let Some(entry) = rest.next() else { break };
            if entry.peek() != 0 {
                break;
            }
            entry.fill(encode::<F>(start) | bits);
            *window = rest;
            (start, ahead) = (next, list.next());
        }
        (start, ahead)
    }

    #[inline(never)]
    fn write_long_piece(
        &mut self,
        window: Iter<'t, M::Entry>,
        phys: u64,
        len: u64,
        end: u64,
    ) -> Result<Iter<'t, M::Entry>, TableError> {
        self.leave(window);
        self.write(phys, len.min(end - self.at), self.table.root_level())?;
        // Where walkers do not snoop, every entry is cleaned, so there is no short way.
        let open = self.base != NOWHERE && self.table.memory.coherent();
        let first = (self.at.wrapping_sub(self.base) >> F::GRANULE.shift()) as usize;
        let behind = self.leaf.get(first..).filter(|_| open).unwrap_or(&[]);
        let left = ((end - self.at) >> F::GRANULE.shift()) as usize;
        self.span = behind.get(..left).unwrap_or(behind);
        Ok(self.span.iter())
    }

    /// Brings `at` up to date with what is left of the span.
    #[inline(always)]
    fn leave(&mut self, window: Iter<'t, M::Entry>) {
        let done = (self.span.len() - window.len()) as u64;
        self.at += done << F::GRANULE.shift();
        self.span = &[];
    }

    #[inline(always)]
    fn pattern(&self, phys: u64, level: u32, group: u32) -> (u64, u64) {
        let page = level == 0 && group == 0;
        let bits = if page { self.page } else { F::leaf(self.attributes, level, group) };
        pattern::<F>(bits, phys, level, group)
    }

    /// One run of single granules: at most to the end of their table.
    #[inline(always)]
    fn pages(&mut self, phys: u64, len: u64) -> Result<(), TableError> {
        let span = 1u64 << shift::<F>(1);
        if len >= span && self.at & (span - 1) == 0 && self.whole_table(phys)? {
            return Ok(());
        }
        let table = self.leaf_table()?;
        let index = table.index(self.at);
        let most = (table.entries.len() - index).min((len >> F::GRANULE.shift()) as usize);
        let part = self.table.geometry.run::<F>(self.at, phys, 0, most);
        let (first, step) = self.pattern(phys, 0, part.group);
        let done = if table.level == self.table.root_level() {
            self.root_pages(&table, index, part.entries, first, step)
        } else {
            run::fill(&table.entries[index..index + part.entries], first, step)
        };
        let written = done.err().unwrap_or(part.entries);
        table.clean(index, written);
        self.at += (written as u64) << F::GRANULE.shift();
        match done {
            Ok(()) => Ok(()),
            Err(_) => Err(self.taken(&table, index + written)),
        }
    }

    /// Leaves in the root itself, where a table has one level.
    #[cold]
    fn root_pages(
        &self,
        table: &Table<'t, F, M>,
        index: usize,
        count: usize,
        first: u64,
        step: u64,
    ) -> Result<(), usize> {
        for n in 0..count {
            if !self.table.put(table, index + n, first + step * n as u64, true) {
                return Err(n);
            }
        }
        Ok(())
    }

    /// Names the first entry from `index` on that is in the way; `at` is the address of `index`.
    #[cold]
    fn taken(&self, table: &Table<'t, F, M>, index: usize) -> TableError {
        let behind = &table.entries[index..];
        let skipped = behind.iter().position(|entry| entry.load() != 0).unwrap_or(0);
        let skipped = if table.level == self.table.root_level() { 0 } else { skipped };
        let iova = self.at + ((skipped as u64) << F::GRANULE.shift());
        self.table.conflict(table, index + skipped, iova)
    }

    #[inline(always)]
    fn leaf_table(&mut self) -> Result<Table<'t, F, M>, TableError> {
        let base = self.at & !((1u64 << shift::<F>(1)) - 1);
        if self.base != base {
            let table = self.table.table_at(self.at, 0)?;
            self.remember(&table);
            return Ok(table);
        }
        // SAFETY: the table found by the walk that set `base`; our own entries keep it linked.
        Ok(unsafe { Table::at(&self.table.memory, self.leaf_phys, 0, self.leaf.len()) })
    }

    /// Fills a private table and links it, if the entry above is free; false if it is not.
    fn whole_table(&mut self, phys: u64) -> Result<bool, TableError> {
        let pt = self.table;
        if pt.geometry.levels == 1 {
            return Ok(false);
        }
        let parent = pt.table_at(self.at, 1)?;
        let index = parent.index(self.at);
        if parent.entries[index].load() != 0 {
            return Ok(false);
        }
        let child = pt.alloc(0, Contents::Any)?;
        let mut n = 0;
        while n < child.entries.len() {
            let offset = (n as u64) << F::GRANULE.shift();
            let part =
                pt.geometry.run::<F>(self.at + offset, phys + offset, 0, child.entries.len() - n);
            let (first, step) = self.pattern(phys + offset, 0, part.group);
            run::fill_private(&child.entries[n..n + part.entries], first, step);
            n += part.entries;
        }
        pt.clean_table(child);
        let linked = pt.link(&parent, index, child);
        if linked {
            self.at += 1 << shift::<F>(1);
        } else {
            pt.discard(child);
        }
        Ok(linked)
    }

    /// One large page, or one group of them; where a table hangs already, what fits below it.
    fn block(&mut self, phys: u64, level: u32, len: u64) -> Result<(), TableError> {
        let pt = self.table;
        let table = pt.table_at(self.at, level)?;
        let (index, page) = (table.index(self.at), 1u64 << shift::<F>(level));
        let most = (table.entries.len() - index).min((len / page) as usize);
        let group = pt.geometry.run::<F>(self.at, phys, level, most).group;
        let free = |count| table.entries[index..index + count].iter().all(|e| e.load() == 0);
        let group = if free(1 << group) { group } else { 0 };
        if let (0, Slot::Table(..)) = (group, table.slot(index)) {
            return self.write_below(phys, page, level - 1);
        }
        if !free(1) {
            return Err(pt.conflict(&table, index, self.at));
        }
        let (first, step) = self.pattern(phys, level, group);
        for n in 0..1 << group {
            if !pt.put(&table, index + n, first + step * n as u64, true) {
                return Err(pt.conflict(&table, index + n, self.at));
            }
            self.at += page;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn write_below(&mut self, phys: u64, len: u64, cap: u32) -> Result<(), TableError> {
        self.write(phys, len, cap)
    }
}
