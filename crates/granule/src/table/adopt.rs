//! Root entries: written under a lock, and mirrored into live roots that firmware left.
//!
//! A locked table-base register cannot be pointed at our root. So firmware's root stays, its entries
//! are preserved, and ours are written into it as well: first there, then in our own root, so that a
//! CPU which finds an entry in ours knows that the walker finds it too.

use alloc::vec::Vec;

use super::access::{self, Table};
use super::format::{Format, Kind, Root, shift};
use super::{Entry, PageTable, TableError, TableMemory};
use crate::addr::{Iova, IovaRange, PhysAddr};

/// The live roots that mirror ours.
#[derive(Debug, Default)]
pub(super) struct LiveRoots {
    roots: Vec<LiveRoot>,
    next: u64,
}

#[derive(Debug)]
struct LiveRoot {
    id: u64,
    tables: Vec<PhysAddr>,
}

impl LiveRoots {
    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

/// A live root that mirrors our entries, until it is given to
/// [`release_root`](PageTable::release_root).
#[derive(Debug)]
#[must_use = "a root that is never released keeps the tables for ever"]
pub struct Adopted {
    id: u64,
    firmware: Vec<IovaRange>,
}

impl Adopted {
    /// What firmware's own entries span: IOVA space that the domain must reserve.
    pub fn firmware(&self) -> &[IovaRange] {
        &self.firmware
    }
}

impl LiveRoot {
    /// Where an entry lies, and the entry.
    fn entry<'t, F: Format, M: TableMemory>(
        &self,
        memory: &'t M,
        index: usize,
    ) -> Option<(u64, &'t M::Entry)> {
        let (table, index) = match F::ROOT {
            Root::Short => (0, index),
            Root::Tables(_) => (index >> F::INDEX_BITS, index & ((1 << F::INDEX_BITS) - 1)),
        };
        let at = self.tables.get(table)?.raw() + index as u64 * 8;
        // SAFETY: the caller of `adopt_root` promised live tables of the right size, and the index
        // was split to lie inside one.
        Some((at, unsafe { &*memory.entry(PhysAddr::new(at)) }))
    }

    fn is_free<F: Format, M: TableMemory>(&self, memory: &M, index: usize, level: u32) -> bool {
        self.entry::<F, M>(memory, index)
            .is_none_or(|(_, entry)| F::kind(entry.load(), level) == Kind::Invalid)
    }

    fn write<F: Format, M: TableMemory>(&self, memory: &M, index: usize, value: u64) {
        if let Some((at, entry)) = self.entry::<F, M>(memory, index) {
            entry.store(value);
            if !memory.coherent() {
                access::clean(memory, at, 1);
            }
        }
    }
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Writes a root entry where ours is zero and every live root's is free.
    #[inline(never)]
    pub(super) fn install_root(&self, index: usize, value: u64) -> bool {
        let (root, level) = (self.root(), self.root_level());
        let live = self.live.lock();
        let free = |live: &LiveRoot| live.is_free::<F, M>(&self.memory, index, level);
        if root.entries[index].load() != 0 || !live.roots.iter().all(free) {
            return false;
        }
        self.mirror(&live, index, value);
        root.entries[index].store(value);
        true
    }

    /// Takes a root entry away; `value` is zero or the mark of a detached table.
    #[inline(never)]
    pub(super) fn clear_root(&self, index: usize, value: u64) -> bool {
        let live = self.live.lock();
        self.mirror(&live, index, 0);
        self.root().entries[index].store(value);
        true
    }

    /// Not ordered: every call that changes entries ends with a barrier.
    fn mirror(&self, live: &LiveRoots, index: usize, value: u64) {
        for root in &live.roots {
            root.write::<F, M>(&self.memory, index, value);
        }
    }

    /// Mirrors our root entries, now and from now on, into the root tables that a stream with a
    /// locked base register walks. Firmware's entries stay; what they span is in the result.
    ///
    /// # Errors
    /// [`TableError::LiveRoots`] if the number of tables differs from
    /// [`layout`](Self::layout)`().roots`, [`TableError::Misaligned`] if one is not aligned, and
    /// [`TableError::FirmwareEntry`] if firmware holds a slot that we use. Nothing was written then.
    ///
    /// # Safety
    /// `live` are the tables that the hardware walks, of this format and geometry, reachable by the
    /// CPU through [`TableMemory::entry`], written by nobody else, until
    /// [`release_root`](Self::release_root).
    pub unsafe fn adopt_root(&self, live: &[PhysAddr]) -> Result<Adopted, TableError> {
        let geometry = &self.geometry;
        if live.len() != geometry.roots {
            return Err(TableError::LiveRoots { expected: geometry.roots, given: live.len() });
        }
        let mask = geometry.root_bytes() / geometry.roots as u64 - 1;
        if let Some(odd) = live.iter().find(|table| table.raw() & mask != 0) {
            return Err(TableError::Misaligned { value: odd.raw(), granule: F::GRANULE });
        }
        let mut roots = self.live.lock();
        let new = LiveRoot { id: roots.next, tables: live.to_vec() };
        let firmware = self.compare_roots(&new)?;
        self.each_own_root_entry(|index, value| new.write::<F, M>(&self.memory, index, value));
        self.memory.barrier();
        roots.next += 1;
        let id = new.id;
        roots.roots.push(new);
        Ok(Adopted { id, firmware })
    }

    /// What firmware's entries span, or the slot where they meet ours.
    fn compare_roots(&self, live: &LiveRoot) -> Result<Vec<IovaRange>, TableError> {
        let (root, level) = (self.root(), self.root_level());
        let mut found: Vec<IovaRange> = Vec::new();
        for index in 0..self.used_root_entries() {
            if live.is_free::<F, M>(&self.memory, index, level) {
                continue;
            }
            let Some(slot) = self.root_slot(index) else { continue };
            if root.entries[index].load() != 0 {
                return Err(TableError::FirmwareEntry { slot });
            }
            match found.last_mut() {
                Some(last) if last.is_followed_by(&slot) => {
                    *last = IovaRange::new(last.start(), last.len() + slot.len()).unwrap_or(*last);
                }
                _ => found.push(slot),
            }
        }
        Ok(found)
    }

    fn used_root_entries(&self) -> usize {
        let bits = self.geometry.input_bits.saturating_sub(shift::<F>(self.root_level()));
        self.geometry.root_entries.min(1 << bits)
    }

    fn root_slot(&self, index: usize) -> Option<IovaRange> {
        let bits = shift::<F>(self.root_level());
        IovaRange::new(Iova::new((index as u64) << bits), 1 << bits).ok()
    }

    fn each_own_root_entry(&self, mut each: impl FnMut(usize, u64)) {
        let root: Table<'_, F, M> = self.root();
        for (index, entry) in root.entries.iter().enumerate() {
            let value = entry.load();
            if F::kind(value, root.level) != Kind::Invalid {
                each(index, value);
            }
        }
    }

    /// Takes our entries out of a live root; firmware's stay as they were. An invalidation of what
    /// is mapped, walk caches included, must follow.
    ///
    /// # Safety
    /// `adopted` came from this page table, and its live tables are still reachable.
    pub unsafe fn release_root(&self, adopted: Adopted) {
        let mut roots = self.live.lock();
        let Some(at) = roots.roots.iter().position(|root| root.id == adopted.id) else { return };
        let live = roots.roots.swap_remove(at);
        self.each_own_root_entry(|index, _| live.write::<F, M>(&self.memory, index, 0));
        self.memory.barrier();
    }
}
