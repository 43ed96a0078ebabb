//! The concurrent steps under a scheduler that picks interleavings: entries are the scheduler's
//! atomics, and a walker reads them at every moment.

use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::tiny::Tiny;
use super::*;
use crate::effort::effort;
use crate::mem::FrameError;

/// An entry of the model, and what a walker that does not snoop sees of it.
struct Cell {
    cpu: AtomicU64,
    cleaned: AtomicU64,
}

// SAFETY: one atomic word, sequentially consistent under the scheduler.
unsafe impl Entry for Cell {
    fn load(&self) -> u64 {
        self.cpu.load(Ordering::Acquire)
    }
    fn peek(&self) -> u64 {
        self.cpu.load(Ordering::Relaxed)
    }
    fn store(&self, value: u64) {
        self.cpu.store(value, Ordering::Release);
    }
    fn fill(&self, value: u64) {
        self.cpu.store(value, Ordering::Relaxed);
    }
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.cpu.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }
}

/// A lock that yields to the scheduler.
struct ModelLock(AtomicBool);

// SAFETY: compare-and-swap lets one in.
unsafe impl lock_api::RawMutex for ModelLock {
    #[allow(clippy::declare_interior_mutable_const)] // What the trait asks for.
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            shuttle::thread::yield_now();
        }
    }
    fn try_lock(&self) -> bool {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

const TABLES: usize = 24;
const PAGE: u64 = 4096;

#[derive(Clone)]
struct Model(Arc<Inner>);

struct Inner {
    cells: Vec<Cell>,
    /// The next free table, and those freed: nothing is handed out twice.
    state: Mutex<(u64, Vec<u64>)>,
    coherent: bool,
    levels: u32,
}

impl Model {
    fn new(coherent: bool, levels: u32) -> Self {
        let cell = || Cell { cpu: AtomicU64::new(0), cleaned: AtomicU64::new(3) };
        let cells = (0..TABLES * 8).map(|_| cell()).collect();
        Self(Arc::new(Inner { cells, state: Mutex::new((1, Vec::new())), coherent, levels }))
    }

    fn cell(&self, at: u64) -> &Cell {
        &self.0.cells[(at / PAGE * 8 + at % PAGE / 8) as usize]
    }

    /// What hardware makes of an address, walking from the root of a table of two or three levels.
    fn walk(&self, root: u64, iova: u64) -> Option<u64> {
        let see = |at: u64| {
            let cell = self.cell(at);
            if self.0.coherent { cell.load() } else { cell.cleaned.load(Ordering::Acquire) }
        };
        let mut table = root;
        for shift in [18, 15].into_iter().skip(usize::from(self.0.levels == 2)) {
            let entry = see(table + (iova >> shift & 7) * 8);
            if entry & 1 == 0 {
                return None;
            }
            table = entry & !0xfff;
            assert!(!self.0.state.lock().unwrap().1.contains(&table), "walked a freed table");
        }
        let leaf = see(table + (iova >> 12 & 7) * 8);
        (leaf & 1 != 0).then_some(leaf & 0xffff_ffff_f000)
    }
}

// SAFETY: tables are handed out once; cells live as long as the model.
unsafe impl TableMemory for Model {
    type Entry = Cell;
    type Lock = ModelLock;

    fn alloc(&self, _: u64, _: u64, contents: Contents) -> Result<PhysAddr, FrameError> {
        let mut state = self.0.state.lock().unwrap();
        let at = state.0 * PAGE;
        state.0 += 1;
        assert!((state.0 as usize) < TABLES, "the model's memory is too small");
        drop(state);
        if contents == Contents::Any {
            (0..8).for_each(|n| self.cell(at + n * 8).fill(3));
        }
        Ok(PhysAddr::new(at))
    }
    unsafe fn free(&self, table: PhysAddr, _: u64) {
        self.0.state.lock().unwrap().1.push(table.raw());
    }
    fn entry(&self, at: PhysAddr) -> *const Cell {
        let freed = self.0.state.lock().unwrap().1.contains(&(at.raw() & !(PAGE - 1)));
        assert!(!freed, "the CPU reaches into a freed table");
        let index = at.raw() / PAGE * 8 + at.raw() % PAGE / 8;
        self.0.cells[index as usize..].as_ptr()
    }
    fn coherent(&self) -> bool {
        self.0.coherent
    }
    fn clean(&self, entries: PhysRange) {
        for n in 0..entries.len() / 8 {
            let cell = self.cell(entries.start().raw() + n * 8);
            // Read and write-back in one step, as a cache does it.
            let _ = cell.cleaned.fetch_update(Ordering::AcqRel, Ordering::Acquire, |_| {
                Some(cell.cpu.load(Ordering::Acquire))
            });
        }
    }
    fn barrier(&self) {}
}

type Tables = PageTable<Tiny, Model>;

fn tables(model: &Model) -> Arc<Tables> {
    // A root of eight entries, of 32 KiB each with two levels.
    let config = TableConfig::new(12 + 3 * model.0.levels, 40);
    Arc::new(PageTable::new(model.clone(), config).expect("a table"))
}

fn check(name: &str, iterations: u32, body: impl Fn(bool) + Send + Sync + 'static) {
    let body = Arc::new(body);
    for coherent in [true, false] {
        let body = Arc::clone(&body);
        std::println!("{name}, coherent: {coherent}");
        shuttle::check_random(move || body(coherent), effort(iterations) as usize);
    }
}

fn together(jobs: Vec<std::boxed::Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = jobs.into_iter().map(shuttle::thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

fn put(table: &Tables, at: u64, to: u64, len: u64) -> Hint {
    // SAFETY: each thread of a model owns its range.
    unsafe { table.map(Iova::new(at), phys(to, len), RW) }.expect("own range")
}

fn take(table: &Tables, at: u64, len: u64, hint: Hint) -> Unmapped {
    // SAFETY: each thread of a model owns its range.
    let done = unsafe { table.unmap(iova(at, len), hint) }.expect("own range");
    if done.tables {
        // SAFETY: the model's walkers hold nothing; they look at entries that are live now.
        unsafe { table.reap(iova(at, len)) };
    }
    done
}

/// Two CPUs need the same missing table; each sees its page through the walker as soon as its map
/// has returned, whoever linked the table.
#[test]
fn installs_race() {
    check("install", 300, |coherent| {
        let model = Model::new(coherent, 3);
        let table = tables(&model);
        let root = table.layout().roots[0].raw();
        let job = |n: u64| -> std::boxed::Box<dyn FnOnce() + Send> {
            let (model, table) = (model.clone(), Arc::clone(&table));
            std::boxed::Box::new(move || {
                let hint = put(&table, n * PAGE, (n + 1) << 16, PAGE);
                assert_eq!(model.walk(root, n * PAGE), Some((n + 1) << 16));
                let hint = if n == 0 { hint } else { Hint::NONE };
                assert_eq!(take(&table, n * PAGE, PAGE, hint).bytes, PAGE);
                assert_eq!(model.walk(root, n * PAGE), None);
            })
        };
        together(std::vec![job(0), job(1), job(7)]);
        assert_eq!(table.table_pages(), 3);
        let freed = model.0.state.lock().unwrap().1.len();
        assert_eq!(model.0.state.lock().unwrap().0 as usize - 1 - freed, 3);
    });
}

/// A CPU maps, unmaps, detaches and reaps a whole table while its neighbours in the parent work on.
#[test]
fn a_neighbour_is_detached_and_reaped() {
    check("detach", 300, |coherent| {
        let model = Model::new(coherent, 3);
        let table = tables(&model);
        let root = table.layout().roots[0].raw();
        let whole = {
            let (model, table) = (model.clone(), Arc::clone(&table));
            move || {
                for _ in 0..2 {
                    // Not congruent: no large page, so a whole table.
                    put(&table, 8 * PAGE, 3 * PAGE, 8 * PAGE);
                    assert_eq!(model.walk(root, 15 * PAGE), Some(10 * PAGE));
                    assert!(take(&table, 8 * PAGE, 8 * PAGE, Hint::NONE).tables);
                    assert_eq!(model.walk(root, 15 * PAGE), None);
                }
            }
        };
        let pages = |n: u64| {
            let (model, table) = (model.clone(), Arc::clone(&table));
            move || {
                for _ in 0..2 {
                    let hint = put(&table, n * PAGE, n << 20, PAGE);
                    assert_eq!(model.walk(root, n * PAGE), Some(n << 20));
                    take(&table, n * PAGE, PAGE, hint);
                }
                put(&table, n * PAGE, n << 20, PAGE);
            }
        };
        together(std::vec![
            std::boxed::Box::new(whole),
            std::boxed::Box::new(pages(7)),
            std::boxed::Box::new(pages(16)),
        ]);
        assert_eq!(model.walk(root, 7 * PAGE), Some(7 << 20));
        assert_eq!(model.walk(root, 16 * PAGE), Some(16 << 20));
    });
}

/// A live root is adopted while CPUs link tables that they share: what a map has returned is found
/// through the live root from the adoption on, and firmware's entry never moves.
#[test]
fn a_root_is_adopted_meanwhile() {
    check("adopt", 300, |coherent| {
        let model = Model::new(coherent, 2);
        let table = tables(&model);
        let live = model.alloc(64, 64, Contents::Zeroed).expect("room").raw();
        (0..8).for_each(|n| model.cell(live + n * 8).fill(0));
        model.cell(live + 7 * 8).fill(0x7001);
        if !coherent {
            model.clean(phys(live, 64));
        }
        let adopted = Arc::new(AtomicBool::new(false));
        let mapper = |first: u64| -> std::boxed::Box<dyn FnOnce() + Send> {
            let (model, table, adopted) = (model.clone(), Arc::clone(&table), Arc::clone(&adopted));
            std::boxed::Box::new(move || {
                for page in [first, first + 8] {
                    let before = adopted.load(Ordering::Acquire);
                    put(&table, page * PAGE, (page + 1) << 20, PAGE);
                    if before {
                        assert_eq!(model.walk(live, page * PAGE), Some((page + 1) << 20));
                    }
                }
            })
        };
        let adopter = {
            let (model, table, adopted) = (model.clone(), Arc::clone(&table), Arc::clone(&adopted));
            move || {
                // SAFETY: only this table writes the live root.
                let root = unsafe { table.adopt_root(&[PhysAddr::new(live)]) }.expect("no clash");
                adopted.store(true, Ordering::Release);
                assert_eq!(root.firmware(), [iova(7 << 15, 1 << 15)]);
                assert_eq!(model.cell(live + 7 * 8).load(), 0x7001);
                std::mem::forget(root);
            }
        };
        together(std::vec![mapper(0), mapper(1), std::boxed::Box::new(adopter)]);
        for page in [0, 1, 8, 9] {
            assert_eq!(model.walk(live, page * PAGE), Some((page + 1) << 20));
        }
        assert_eq!(model.cell(live + 7 * 8).load(), 0x7001);
    });
}

/// What a mapping's owner leaves behind when its range goes to the next one. A page is unmapped by its
/// hint; who gets all that its table spans then fills that table with a cursor, detaches it and reaps it,
/// and links a whole one in its place; then the page is mapped anew. Others work by hints beside it.
#[test]
fn hints_cursors_and_detached_tables_hand_over() {
    check("hand over", 300, |coherent| {
        let model = Model::new(coherent, 3);
        let table = tables(&model);
        let root = table.layout().roots[0].raw();
        let turn = Arc::new(AtomicU64::new(0));
        let wait = |turn: &AtomicU64, for_turn: u64| {
            while turn.load(Ordering::Acquire) != for_turn {
                shuttle::thread::yield_now();
            }
        };
        let page = {
            let (model, table, turn) = (model.clone(), Arc::clone(&table), Arc::clone(&turn));
            move || {
                for round in [0, 2] {
                    wait(&turn, round);
                    let hint = put(&table, 9 * PAGE, 5 << 20, PAGE);
                    assert_ne!(hint, Hint::NONE);
                    assert_eq!(model.walk(root, 9 * PAGE), Some(5 << 20));
                    assert_eq!(take(&table, 9 * PAGE, PAGE, hint).bytes, PAGE);
                    turn.store(round + 1, Ordering::Release);
                }
            }
        };
        let whole = {
            let (model, table, turn) = (model.clone(), Arc::clone(&table), Arc::clone(&turn));
            move || {
                wait(&turn, 1);
                for _ in 0..2 {
                    // Not congruent: no large page. First into the page's table, then a whole one.
                    put(&table, 8 * PAGE, 3 * PAGE, 8 * PAGE);
                    assert_eq!(model.walk(root, 15 * PAGE), Some(10 * PAGE));
                    assert!(take(&table, 8 * PAGE, 8 * PAGE, Hint::NONE).tables);
                    assert_eq!(model.walk(root, 9 * PAGE), None);
                }
                turn.store(2, Ordering::Release);
            }
        };
        let beside = {
            let (model, table) = (model.clone(), Arc::clone(&table));
            move || {
                for n in [7, 16] {
                    let hint = put(&table, n * PAGE, n << 20, PAGE);
                    assert_eq!(model.walk(root, n * PAGE), Some(n << 20));
                    assert_eq!(take(&table, n * PAGE, PAGE, hint).bytes, PAGE);
                }
            }
        };
        together(std::vec![
            std::boxed::Box::new(page),
            std::boxed::Box::new(whole),
            std::boxed::Box::new(beside),
        ]);
        assert_eq!(turn.load(Ordering::Acquire), 3);
        // The root, the level below it, and the tables of pages 7, 9 and 16, all empty.
        let freed = model.0.state.lock().unwrap().1.len();
        let linked = model.0.state.lock().unwrap().0 as usize - 1 - freed;
        assert_eq!(table.table_pages(), linked, "a table was lost");
    });
}
