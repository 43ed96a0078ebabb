//! What memory and the machine allow: stores, zeroes, and whether there is a second core at all.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use granule::mem::SpinLock;
use lock_api::Mutex;

use crate::measure::{Bench, Sample, pin};

const STEP: u64 = 4096;

/// Stores growing values into entries, unrolled eight times.
#[inline(never)]
fn store(entries: &[AtomicU64], first: u64) {
    let mut value = first;
    for eight in entries.chunks_exact(8) {
        for (n, entry) in eight.iter().enumerate() {
            entry.store(value + n as u64 * STEP, Ordering::Relaxed);
        }
        value += 8 * STEP;
    }
}

#[inline(never)]
fn zero(entries: &[AtomicU64]) {
    for eight in entries.chunks_exact(8) {
        eight.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }
}

/// `floor/…`: one table's entries, and the 262,144 that map 1 GiB by 4 KiB.
pub fn run(bench: &mut Bench) {
    if !bench.wants("floor/") {
        return;
    }
    atomics(bench);
    let entries: Vec<AtomicU64> = (0..1 << 18).map(AtomicU64::new).collect();
    for (suffix, count, times) in [("", 512usize, 2000usize), ("/1G", 1 << 18, 4)] {
        let part = entries.get(..count).unwrap_or(&entries);
        bench.time("granule", &format!("floor/store{suffix}"), count * times, || {
            for n in 0..times {
                store(black_box(part), 0x4_0000_0703 + n as u64);
            }
        });
        bench.time("granule", &format!("floor/zero{suffix}"), count * times, || {
            for _ in 0..times {
                zero(black_box(part));
            }
        });
    }
}

/// What every call pays at least that takes a lock of its CPU's own, or counts for others to read.
fn atomics(bench: &mut Bench) {
    let ops = 100_000;
    let lock: Mutex<SpinLock, u64> = Mutex::new(0);
    bench.time("granule", "floor/lock+unlock", ops, || {
        (0..ops).for_each(|_| *black_box(&lock).lock() += 1);
    });
    let count = AtomicU64::new(0);
    bench.time("granule", "floor/fetch_add", ops, || {
        for _ in 0..ops {
            black_box(&count).fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// A loop that touches no memory: six chains of additions and shifts.
#[inline(never)]
fn registers(turns: u64) -> u64 {
    let (mut a, mut b, mut c, mut d, mut e, mut f) = (1u64, 2u64, 3u64, 4u64, 5u64, 6u64);
    for n in 0..turns {
        a = a.wrapping_add(n) ^ d;
        b = (b ^ a).wrapping_add(e);
        c = c.wrapping_add(7) ^ 11;
        d = (d ^ n).wrapping_add(f);
        e = e.wrapping_add(9) ^ 13;
        f = (f ^ c).wrapping_add(n);
        black_box((a, c, e));
    }
    a ^ b ^ c ^ d ^ e ^ f
}

const TURNS: u64 = 100_000;

fn turn() -> f64 {
    let begin = Instant::now();
    black_box(registers(black_box(TURNS)));
    begin.elapsed().as_nanos() as f64 / TURNS as f64
}

/// The register loop on one CPU, and on both at the same time. With a core each, the two are
/// equal; else rows with two threads show the machine and not the code.
pub fn calibrate(bench: &mut Bench, name: &str) {
    let samples = bench.samples().max(9);
    let alone = Sample::of((0..samples).map(|_| turn()).collect());
    let mut both = Vec::new();
    for _ in 0..samples {
        both.push(two_threads(|_| turn()));
    }
    bench.row(&format!("{name}/calib/threads=1"), alone);
    bench.row(&format!("{name}/calib/threads=2"), Sample::of(both));
}

/// Runs `work` on two CPUs at once; the longer of the two times.
pub fn two_threads(work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let (start, work) = (Barrier::new(2), &work);
    let start = &start;
    std::thread::scope(|scope| {
        let run = |cpu: usize| {
            scope.spawn(move || {
                pin(cpu);
                start.wait();
                work(cpu)
            })
        };
        let threads = [run(0), run(1)];
        threads.map(|thread| thread.join().unwrap_or(f64::NAN)).into_iter().fold(0.0, f64::max)
    })
}
