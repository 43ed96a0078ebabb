//! Table memory for tests: counted, made to fail, never reused, with a view for hardware that does
//! not snoop.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::*;
use crate::mem::{FrameError, SpinLock};

/// The physical address where the arena starts.
pub(crate) const BASE: u64 = 0x100_0000;
/// Bytes of the arena; the operating system backs what is touched.
const SIZE: u64 = 64 << 20;
/// What a freed table holds: entries that look valid in every format and lead nowhere.
pub(crate) const POISON: u64 = 0xdead_0003;

#[derive(Clone)]
pub(crate) struct TestMemory(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    arena: Vec<AtomicU64>,
    next: AtomicU64,
    /// Allocations that succeed before one fails.
    pub(crate) budget: AtomicUsize,
    /// Live blocks, by address.
    pub(crate) live: Mutex<HashMap<u64, u64>>,
    coherent: bool,
    pub(crate) barriers: AtomicUsize,
    /// What a walker that does not snoop sees: lines, as cleaned last.
    view: Mutex<HashMap<u64, [u64; 8]>>,
}

impl TestMemory {
    pub(crate) fn new() -> Self {
        Self::with(true)
    }

    pub(crate) fn non_coherent() -> Self {
        Self::with(false)
    }

    fn with(coherent: bool) -> Self {
        let words = SIZE as usize / 8;
        // Zeroed memory straight from the operating system, not one store a word.
        let arena = std::vec![0u64; words];
        let mut arena = std::mem::ManuallyDrop::new(arena);
        // SAFETY: `AtomicU64` has the size and alignment of `u64`, and the vector is given up.
        let arena =
            unsafe { Vec::from_raw_parts(arena.as_mut_ptr().cast(), words, arena.capacity()) };
        Self(Arc::new(Inner {
            arena,
            next: AtomicU64::new(0),
            budget: AtomicUsize::new(usize::MAX),
            live: Mutex::default(),
            coherent,
            barriers: AtomicUsize::new(0),
            view: Mutex::default(),
        }))
    }

    /// What a snooping walker, or the CPU, reads.
    pub(crate) fn read(&self, at: u64) -> u64 {
        self.0.arena[((at - BASE) / 8) as usize].load(Ordering::Acquire)
    }

    pub(crate) fn write(&self, at: u64, value: u64) {
        self.0.arena[((at - BASE) / 8) as usize].store(value, Ordering::Release);
    }

    /// What a walker reads: for one that does not snoop, the line as it was cleaned last, and rubbish
    /// that looks valid if it never was.
    pub(crate) fn hardware(&self, at: u64) -> u64 {
        if self.0.coherent {
            return self.read(at);
        }
        let view = self.0.view.lock().unwrap();
        view.get(&(at & !63)).map_or(POISON, |line| line[(at as usize & 63) / 8])
    }

    /// Makes a walker that does not snoop see the line as it was before anything was written.
    pub(crate) fn forget(&self, at: u64) {
        self.0.view.lock().unwrap().insert(at & !63, [0; 8]);
    }

    /// Cleans what firmware wrote.
    pub(crate) fn clean_all(&self, at: PhysAddr, len: u64) {
        if !self.0.coherent {
            self.clean(phys(at.raw(), len));
        }
    }

    pub(crate) fn live(&self) -> usize {
        self.0.live.lock().unwrap().len()
    }

    pub(crate) fn fail_after(&self, allocations: usize) {
        self.0.budget.store(allocations, Ordering::SeqCst);
    }
}

// SAFETY: every block is handed out once and never again; `entry` points into the arena, which lives
// as long as the value.
unsafe impl TableMemory for TestMemory {
    type Entry = AtomicU64;
    type Lock = SpinLock;

    fn alloc(&self, size: u64, align: u64, contents: Contents) -> Result<PhysAddr, FrameError> {
        let budget = &self.0.budget;
        budget
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .map_err(|_| FrameError::OutOfMemory)?;
        // A real table is at least a CPU page; the tiny format names nothing finer either.
        let align = align.max(4096);
        let span = size + align;
        let start = BASE + self.0.next.fetch_add(span, Ordering::SeqCst);
        let start = (start + align - 1) & !(align - 1);
        assert!(start + size <= BASE + SIZE, "the test's arena is too small");
        if contents == Contents::Any {
            (0..size / 8).for_each(|n| self.write(start + n * 8, POISON));
        }
        self.0.live.lock().unwrap().insert(start, size);
        Ok(PhysAddr::new(start))
    }

    unsafe fn free(&self, table: PhysAddr, size: u64) {
        let had = self.0.live.lock().unwrap().remove(&table.raw());
        assert_eq!(had, Some(size), "freed what was not allocated");
        (0..size / 8).for_each(|n| self.write(table.raw() + n * 8, POISON));
    }

    fn entry(&self, at: PhysAddr) -> *const AtomicU64 {
        // To the end of the arena, not a reference to one word.
        self.0.arena[((at.raw() - BASE) / 8) as usize..].as_ptr()
    }

    fn coherent(&self) -> bool {
        self.0.coherent
    }

    fn clean(&self, entries: PhysRange) {
        assert!(!self.0.coherent, "nothing to clean");
        let mut view = self.0.view.lock().unwrap();
        let mut line = entries.start().raw() & !63;
        while line <= entries.last().raw() {
            view.insert(line, std::array::from_fn(|n| self.read(line + n as u64 * 8)));
            line += 64;
        }
    }

    fn barrier(&self) {
        self.0.barriers.fetch_add(1, Ordering::SeqCst);
    }
}
