//! A stress of real threads: workers map, transfer and unmap on one device, while a hostile thread
//! makes the same device read and write wherever something is or was mapped.
//!
//! Every byte says whose it is. What was given to the device has its top bit set, padding is zero, and
//! the hostile thread leaves [`MARK`]s; everything else (what the CPU took back, neighbours of buffers,
//! freed frames, page tables) holds other bytes, so that one byte read tells whether it was given. The
//! checks:
//!
//! * no two live ranges of one address space overlap;
//! * a device reads what the CPU wrote, the CPU what the device wrote, or a mark where the device may
//!   write;
//! * what the CPU took back stays as it is;
//! * the hostile thread sees nothing that was not given;
//! * in the end nothing is mapped, counted or leaked.

mod guards;
mod hostile;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use granule::addr::{Access, DmaAddr};
use granule::dma::{CoherentPool, Device, Pending};
use granule::domain::Stream;
use granule_sim::device::SimDevice;
use granule_sim::platform::SimPlatform;

use crate::bench::{Bench, Case};
use crate::buffer::{SECRET, SimBuffer};
use guards::Held;

/// What the hostile thread writes.
pub const MARK: u8 = 1;
/// How many addresses the hostile thread picks from.
const KNOWN: usize = 256;
/// What a worker holds at once.
const LIVE: usize = 6;
/// Size of the objects of the common pool, in bytes.
const OBJECT: u64 = 96;

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Threads that map and unmap; a hostile one comes on top.
    pub workers: usize,
    /// Operations of each.
    pub operations: u32,
}

/// What a run tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Operations of the workers.
    pub operations: u64,
    /// Bytes that were compared.
    pub verified: u64,
    /// Of them, those that the hostile thread had overwritten, where it may.
    pub marked: u64,
    /// Devices that joined the domain under load, and left it.
    pub joined: u64,
    /// Accesses of the hostile thread.
    pub probes: u64,
    /// Of them, those that got through.
    pub hits: u64,
}

impl Tried {
    /// Counts another run in.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.verified += other.verified;
        self.marked += other.marked;
        self.joined += other.joined;
        self.probes += other.probes;
        self.hits += other.hits;
    }
}

/// The `offset`-th byte of data number `id`: differs everywhere, top bit set.
fn given(id: u64, offset: u64) -> u8 {
    crate::buffer::byte(id, offset) | 0x80
}

fn given_bytes(id: u64, len: u64) -> Vec<u8> {
    (0..len).map(|offset| given(id, offset)).collect()
}

/// One of two address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    Dev,
    Other,
}

/// What all threads share.
struct Arena<'b> {
    bench: &'b Bench,
    other: Device,
    pool: CoherentPool,
    /// Live ranges: address space and first address to the last one.
    live: Mutex<BTreeMap<(Space, u64), u64>>,
    /// Addresses that are or were mapped; 0 is none.
    known: Vec<AtomicU64>,
    next: AtomicUsize,
    running: AtomicUsize,
    /// Held by the worker whose turn it is to let another device join.
    door: Mutex<()>,
}

impl<'b> Arena<'b> {
    fn sim(&self, space: Space) -> &'b SimDevice {
        let name = if space == Space::Dev { "dev" } else { "other" };
        self.bench.machine.device(name).expect("as built")
    }

    /// Notes a live range: nobody else may have any of it.
    fn claim(&self, space: Space, first: u64, len: u64) {
        let mut live = self.live.lock().expect("no panic");
        let last = first + len - 1;
        let before = live.range(..=(space, last)).next_back();
        if let Some(((_, other), end)) = before.filter(|((at, _), _)| *at == space) {
            let case = &self.bench.case;
            assert!(*end < first, "{case:?}: {first:#x}–{last:#x} and {other:#x}–{end:#x}");
        }
        live.insert((space, first), last);
        drop(live);
        if space == Space::Dev {
            let place = self.next.fetch_add(1, Ordering::Relaxed) % KNOWN;
            self.known[place].store(first, Ordering::Relaxed);
        }
    }

    /// The range is about to be given back.
    fn disclaim(&self, space: Space, first: u64) {
        let gone = self.live.lock().expect("no panic").remove(&(space, first));
        assert!(gone.is_some(), "{first:#x} was not live");
    }
}

/// Ends a thread's part in the count, also if it panics: the hostile thread waits for that.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Runs a load on a fresh bench and closes it.
///
/// # Panics
/// If a law is broken.
pub fn run(case: &Case, load: &Load) -> Tried {
    let case = case.clone().untrusted();
    // Room to bounce whatever all workers hold at once.
    let case = Case { cpus: load.workers + 1, pool: 16 << 20, max_block: None, ..case };
    let bench = case.bench();
    let (other, other_domain) = bench.other();
    let pool = CoherentPool::new(bench.dev(), OBJECT, 32).expect("a pool");
    let arena = Arena {
        bench: &bench,
        other,
        pool,
        live: Mutex::default(),
        known: (0..KNOWN).map(|_| AtomicU64::new(0)).collect(),
        next: AtomicUsize::new(0),
        running: AtomicUsize::new(load.workers),
        door: Mutex::default(),
    };
    let mut sum = Tried::default();
    std::thread::scope(|scope| {
        let arena = &arena;
        let workers = (0..load.workers).map(|number| {
            scope.spawn(move || {
                let _running = Running(&arena.running);
                SimPlatform::set_cpu(number);
                Worker::new(arena, number as u64).run(load.operations)
            })
        });
        let mut threads: Vec<_> = workers.collect();
        threads.push(scope.spawn(move || {
            SimPlatform::set_cpu(load.workers);
            hostile::run(arena)
        }));
        for thread in threads {
            let done = thread.join().unwrap_or_else(|why| std::panic::resume_unwind(why));
            sum.add(&done);
        }
    });
    assert!(arena.live.lock().expect("no panic").is_empty());
    drop(arena);
    for domain in [&bench.domain, &other_domain] {
        domain.flush().expect("hardware that answers");
        let stats = domain.stats();
        let left = (stats.iova_bytes, stats.exposed_bytes, stats.leaked_bytes, stats.quarantined);
        assert_eq!(left, (0, 0, 0, 0), "{case:?}");
    }
    assert_eq!(bench.dev().stats().live_mappings, 0);
    assert_eq!(bench.pool.as_ref().map(|pool| pool.usage().used), Some(0), "{case:?}");
    drop(other_domain);
    assert_eq!(bench.close(), [""; 0], "{case:?}");
    sum
}

/// A buffer that the CPU took back, with what is in it from now on.
struct Private(SimBuffer);

impl Private {
    fn take(buffer: SimBuffer) -> Self {
        buffer.write(&vec![SECRET; buffer.len() as usize]);
        Self(buffer)
    }

    fn check(&self, case: &Case) {
        let at = self.0.contents().iter().position(|byte| *byte != SECRET);
        assert_eq!(at, None, "{case:?}: a device wrote to a buffer after its unmap");
    }
}

struct Worker<'a, 'b> {
    arena: &'a Arena<'b>,
    rng: fastrand::Rng,
    held: Vec<Held>,
    pending: Vec<(Pending<Device, SimBuffer>, Answer)>,
    quiet: VecDeque<Private>,
    tried: Tried,
}

/// What must be found in a buffer that comes back.
#[derive(Clone, Copy, Debug)]
struct Answer {
    id: u64,
    /// Whether the device may write, so that the hostile thread may have.
    writable: bool,
}

impl<'a, 'b> Worker<'a, 'b> {
    fn new(arena: &'a Arena<'b>, number: u64) -> Self {
        let rng = fastrand::Rng::with_seed(arena.bench.case.seed ^ number << 32);
        let (held, pending, quiet, tried) = Default::default();
        Self { arena, rng, held, pending, quiet, tried }
    }

    fn run(mut self, operations: u32) -> Tried {
        for _ in 0..operations {
            self.tried.operations += 1;
            let ends = self.held.len() >= LIVE || (!self.held.is_empty() && self.rng.bool());
            if ends {
                self.end()
            } else {
                self.begin()
            }
            match self.rng.u8(0..16) {
                0 => self.arena.bench.domain.flush().expect("hardware that answers"),
                1 => self.arena.bench.domain.poll().expect("hardware that answers"),
                2 => self.join(),
                3 => drop(self.arena.bench.dev().report(None)),
                4..=7 => self.finish(),
                _ => {}
            }
            self.settle(4);
        }
        while !self.held.is_empty() {
            self.end();
        }
        while !self.pending.is_empty() {
            self.finish();
        }
        self.settle(0);
        self.tried
    }

    /// Takes one deferred buffer back.
    fn finish(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let (pending, answer) = self.pending.swap_remove(self.rng.usize(0..self.pending.len()));
        let buffer = pending.finish().expect("hardware that answers");
        self.back(buffer, answer);
    }

    /// A buffer is the CPU's again.
    fn back(&mut self, buffer: SimBuffer, answer: Answer) {
        self.compare(&buffer.contents(), answer, 0);
        self.quiet.push_back(Private::take(buffer));
    }

    /// Looks at the oldest of the buffers that were taken back until `most` are left.
    fn settle(&mut self, most: usize) {
        while self.quiet.len() > most {
            if let Some(private) = self.quiet.pop_front() {
                private.check(&self.arena.bench.case);
            }
        }
    }

    /// Compares what somebody sees of data, from `offset` on, with what it must be.
    fn compare(&mut self, seen: &[u8], answer: Answer, offset: u64) {
        for (byte, at) in seen.iter().zip(offset..) {
            let marked = answer.writable && *byte == MARK;
            self.tried.marked += u64::from(marked);
            let case = &self.arena.bench.case;
            assert!(marked || *byte == given(answer.id, at), "{case:?}: {byte:#x} at {at:#x}");
        }
        self.tried.verified += seen.len() as u64;
    }

    /// The device reads all of a range, if it may, and writes new data into it, if it may.
    fn transfer(&mut self, at: DmaAddr, offset: u64, len: u64, access: Access, new: u64, old: u64) {
        let sim = self.arena.sim(Space::Dev);
        let writable = access.contains(Access::WRITE);
        if access.contains(Access::READ) {
            let mut seen = vec![0; len as usize];
            sim.read(at, &mut seen).unwrap_or_else(|fault| panic!("{fault}"));
            self.compare(&seen, Answer { id: old, writable }, offset);
        }
        if writable {
            let data: Vec<u8> = (offset..offset + len).map(|at| given(new, at)).collect();
            sim.write(at, &data).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }

    /// Another device joins the domain and leaves it, while others map and unmap.
    fn join(&mut self) {
        let Ok(_door) = self.arena.door.try_lock() else { return };
        let bench = self.arena.bench;
        let spec = bench.case.spec("mate");
        let mate = bench.attach(&bench.domain, spec, &[Stream::new(1)]).expect("attached");
        let mate = mate.detach().map_err(|(_, error)| error);
        mate.expect("nothing is mapped for it");
        self.tried.joined += 1;
    }
}
