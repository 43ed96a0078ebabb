//! IOVA allocation on two CPUs at once: one allocator for both, beside one for each.

use std::hint::black_box;
use std::time::Instant;

use granule::mem::SpinLock;
use lock_api::Mutex;

use crate::floor::{calibrate, two_threads};
use crate::iova::{Mixed, Ours, Space};
use crate::measure::{Bench, Sample};
use crate::report::Row;

/// A peer behind a spin lock, since it has none of its own.
pub struct Locked<S>(Mutex<SpinLock, S>);

impl<S> Locked<S> {
    /// Puts a lock around it.
    pub fn new(space: S) -> Self {
        Self(Mutex::new(space))
    }
}

impl<S: Space> Space for &Locked<S> {
    type Handle = S::Handle;

    #[inline(always)]
    fn alloc(&mut self, pages: u64) -> S::Handle {
        self.0.lock().alloc(pages)
    }

    #[inline(always)]
    fn free(&mut self, handle: S::Handle, pages: u64) {
        self.0.lock().free(handle, pages);
    }
}

/// Pairs of 4 KiB; time of the slower thread for one operation.
fn pair<'a, T: Sync>(spaces: [&'a T; 2], ops: usize) -> f64
where
    &'a T: Space + Send,
{
    two_threads(|cpu| {
        let mut space = spaces[cpu & 1];
        let mut go = |ops: usize| {
            for _ in 0..ops {
                let handle = space.alloc(1);
                space.free(black_box(handle), 1);
            }
        };
        go(ops / 10);
        let begin = Instant::now();
        go(ops);
        begin.elapsed().as_nanos() as f64 / ops as f64
    })
}

/// Two times 10,000 live ranges of 1 to 64 pages.
fn mixed<'a, T: Sync>(spaces: [&'a T; 2], ops: usize) -> f64
where
    &'a T: Space + Send,
{
    two_threads(|cpu| {
        let mut space = spaces[cpu & 1];
        let mut mixed = Mixed::new(10_000, 99 + cpu as u64);
        (0..ops * 2).for_each(|_| mixed.step(&mut space));
        let begin = Instant::now();
        (0..ops).for_each(|_| mixed.step(&mut space));
        let time = begin.elapsed().as_nanos() as f64 / ops as f64;
        mixed.clear(&mut space);
        time
    })
}

const PAIR: &str = "iova/pair/4K/threads=2";
const MIXED: &str = "iova/mixed/threads=2";

/// Our rows. Shared and separate allocators take turns, so that both see the same machine.
pub fn run(bench: &mut Bench) {
    let (pairs, steps) = (300_000, 50_000);
    if bench.wants(PAIR) {
        calibrate(bench, PAIR);
        side_by_side(bench, PAIR, |a, b| pair([a, b], pairs));
    }
    if bench.wants(MIXED) {
        calibrate(bench, MIXED);
        side_by_side(bench, MIXED, |a, b| mixed([a, b], steps));
    }
    // Whoever runs next is back on one CPU.
    crate::measure::pin(crate::HOME);
}

fn side_by_side(bench: &mut Bench, name: &str, run: impl Fn(&Ours, &Ours) -> f64) {
    let (shared, one, two) = (Ours::create(), Ours::create(), Ours::create());
    let samples = bench.samples().max(9);
    let (mut together, mut apart) = (Vec::new(), Vec::new());
    run(&shared, &shared);
    for _ in 0..samples {
        together.push(run(&shared, &shared));
        apart.push(run(&one, &two));
    }
    bench.row(name, Sample::of(together));
    bench.row(&format!("{name}/own"), Sample::of(apart));
}

/// A peer's rows; it is slow, so few samples will do.
pub fn run_peer<S: Space + Send>(bench: &mut Bench, by: &str, create: fn() -> S, steps: usize) {
    if bench.wants(PAIR) {
        let space = Locked::new(create());
        let times = (0..7).map(|_| pair([&space, &space], 50_000)).collect();
        bench.enter(Row::new(by, PAIR, Sample::of(times)));
    }
    if bench.wants(MIXED) {
        let space = Locked::new(create());
        let times = (0..3).map(|_| mixed([&space, &space], steps)).collect();
        bench.enter(Row::new(by, MIXED, Sample::of(times)));
    }
    crate::measure::pin(crate::HOME);
}
