//! Table pages from a platform: larger and smaller than its pages, freed to the last one.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::addr::{Direction, Granule};
use crate::mem::{FrameError, FrameRequest, Platform, SpinLock};

/// Memory at fake addresses, one allocation a block, in a machine whose pages are `page` bytes.
#[derive(Clone)]
struct Machine {
    page: Granule,
    arena: Arc<Box<[u64]>>,
    state: Arc<Mutex<(u64, BTreeMap<u64, u64>)>>,
    barriers: Arc<AtomicUsize>,
    cleans: Arc<AtomicUsize>,
}

const BASE: u64 = 0x4000_0000;
const WORDS: usize = 1 << 20;

impl Machine {
    fn new(page: Granule) -> Self {
        let arena = Arc::new(std::vec![!0u64; WORDS].into_boxed_slice());
        let (barriers, cleans) = Default::default();
        Self { page, arena, state: Arc::default(), barriers, cleans }
    }

    fn live(&self) -> Vec<(u64, u64)> {
        self.state.lock().unwrap().1.iter().map(|(at, len)| (*at, *len)).collect()
    }
}

// SAFETY: blocks are handed out once and lie in the arena, which all clones keep alive.
unsafe impl Platform for Machine {
    type Lock = SpinLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        assert!(self.page.divides(request.size) && request.align >= self.page.size());
        let mut state = self.state.lock().unwrap();
        let offset = state.0.next_multiple_of(request.align.max(1 << 16));
        state.0 = offset + request.size;
        assert!(state.0 <= WORDS as u64 * 8);
        let range = phys(BASE + offset, request.size);
        if request.window.is_some_and(|window| !window.contains_range(&range)) {
            return Err(FrameError::OutOfMemory);
        }
        state.1.insert(range.start().raw(), range.len());
        Ok(range)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        let had = self.state.lock().unwrap().1.remove(&frames.start().raw());
        assert_eq!(had, Some(frames.len()));
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        let offset = phys.raw() - BASE;
        assert!(offset < WORDS as u64 * 8);
        // Shared atomics and whole-block zeroing only, as the trait's users promise.
        self.arena.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset as usize)
    }

    fn phys(&self, _: *const u8, _: usize) -> Option<PhysRange> {
        None
    }

    fn cpu_page(&self) -> Granule {
        self.page
    }

    fn sync_for_device(&self, _: PhysRange, _: Direction) {
        self.cleans.fetch_add(1, Ordering::Relaxed);
    }

    fn barrier(&self) {
        self.barriers.fetch_add(1, Ordering::Relaxed);
    }
}

fn on<F: Format>(page: Granule, input: u32) -> (Machine, PageTable<F, PlatformTables<Machine>>) {
    let machine = Machine::new(page);
    let memory = PlatformTables::new(machine.clone(), true);
    let config = TableConfig::new(input, F::MAX_OUTPUT_BITS);
    (machine, PageTable::new(memory, config).expect("a table"))
}

fn fill<F: Format>(table: &PageTable<F, PlatformTables<Machine>>, tables: u64) {
    let span = F::GRANULE.size() << F::INDEX_BITS;
    for n in 0..tables {
        // SAFETY: the test owns the range.
        let done = unsafe { table.map(Iova::new(n * span), phys(0, F::GRANULE.size()), RW) };
        done.expect("free");
    }
}

#[test]
fn a_small_page_gives_several_frames_to_a_table() {
    let (machine, table) = on::<Dart1>(Granule::K4, 36);
    fill(&table, 3);
    assert!(machine.live().iter().all(|(at, len)| *len == 0x4000 && at % 0x4000 == 0));
    assert_eq!(machine.live().len(), 4);
    drop(table);
    assert_eq!(machine.live(), []);
}

#[test]
fn a_large_page_is_shared_by_tables() {
    let (machine, table) = on::<Lpae4k>(Granule::K64, 39);
    // Root (4 KiB), one table of level 1, and 30 of level 0: 32 shares of 4 KiB.
    fill(&table, 30);
    assert_eq!(table.table_pages(), 32);
    assert_eq!(machine.live().len(), 2);
    let span = 2u64 << 20;
    // SAFETY: the test owns the range, and there is no hardware.
    unsafe {
        let range = iova(0, 30 * span);
        assert!(table.unmap(range, Hint::NONE).expect("whole").tables);
        table.reap(range);
    }
    assert_eq!(table.table_pages(), 2);
    assert_eq!(machine.live().len(), 1, "the frame without tables went back");
    fill(&table, 14);
    assert_eq!(machine.live().len(), 1, "shares are used again");
    assert_eq!(table.resolve(Iova::new(span)).map(|found| found.phys.raw()), Some(0));
    drop(table);
    assert_eq!(machine.live(), []);
}

#[test]
fn a_window_is_kept() {
    let machine = Machine::new(Granule::K4);
    let tables = PlatformTables::new(machine.clone(), true).within(Some(phys(0, BASE)));
    let done = PageTable::<Dart1, _>::new(tables, TableConfig::new(32, 36));
    assert_eq!(done.err(), Some(TableError::Frames(FrameError::OutOfMemory)));
    let tables = PlatformTables::new(machine, true).within(Some(phys(BASE, 1 << 30)));
    assert!(PageTable::<Dart1, _>::new(tables, TableConfig::new(32, 36)).is_ok());
}

#[test]
fn what_was_written_is_ordered_by_the_platform() {
    let (machine, table) = on::<Dart1>(Granule::K4, 36);
    for n in 1..4 {
        let before = machine.barriers.load(Ordering::Relaxed);
        fill(&table, 1);
        let mapped = machine.barriers.load(Ordering::Relaxed);
        assert!(mapped > before, "map {n}");
        // SAFETY: the test owns the range.
        unsafe { table.unmap(iova(0, 0x4000), Hint::NONE) }.expect("whole");
        assert!(machine.barriers.load(Ordering::Relaxed) > mapped, "unmap {n}");
    }
}

#[test]
fn only_what_a_walker_does_not_snoop_is_cleaned() {
    for coherent in [true, false] {
        let machine = Machine::new(Granule::K4);
        let tables = PlatformTables::new(machine.clone(), coherent);
        let table = PageTable::new(tables, TableConfig::new(36, 36)).expect("a table");
        fill::<Dart1>(&table, 2);
        assert_eq!(machine.cleans.load(Ordering::Relaxed) == 0, coherent);
    }
}

#[test]
fn a_huge_page_has_no_more_shares_than_a_word_has_bits() {
    let huge = Granule::new(2 << 20).expect("a power of two");
    let (machine, table) = on::<Lpae4k>(huge, 39);
    fill(&table, 70);
    assert_eq!((table.table_pages(), machine.live().len()), (72, 2));
    for n in 0..70 {
        let found = table.resolve(Iova::new(n << 21)).map(|found| found.phys.raw());
        assert_eq!(found, Some(0));
    }
    drop(table);
    assert_eq!(machine.live(), []);
}
