//! IOVA allocation past the magazines: a million ranges, and ranges freed on another CPU.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use crate::iova::Ours;
use crate::measure::{Bench, Rng, Sample, pin};
use crate::platform::run_on;
use crate::report::Row;

/// `iova/ramp/…` and `iova/cross-cpu`.
pub fn run(bench: &mut Bench) {
    if bench.wants("iova/ramp") {
        ramp(bench, 1_000_000);
    }
    if bench.wants("iova/cross-cpu") {
        let samples = bench.samples().max(9);
        let times = (0..samples).map(|_| two_cpus(500_000)).collect();
        bench.row("iova/cross-cpu", Sample::of(times));
        let times = (0..samples).map(|_| one_thread(1000)).collect();
        bench.row("iova/cross-cpu/threads=1", Sample::of(times));
        pin(crate::HOME);
    }
}

/// Fills, then frees in random order, several times with the same allocator.
fn ramp(bench: &mut Bench, count: usize) {
    let space = Ours::create();
    let mut rng = Rng::new(99);
    let (mut fill, mut drain) = (Vec::new(), Vec::new());
    for _ in 0..if bench.quick { 3 } else { 9 } {
        // Not zero: then the memory is there before it is measured.
        let mut starts = vec![1u64; count];
        let begin = Instant::now();
        starts.iter_mut().for_each(|start| *start = space.take(1));
        fill.push(begin.elapsed().as_nanos() as f64 / count as f64);
        for last in (1..count).rev() {
            starts.swap(last, rng.below(last + 1));
        }
        let begin = Instant::now();
        starts.iter().for_each(|start| space.give(*start, 1));
        drain.push(begin.elapsed().as_nanos() as f64 / count as f64);
    }
    let both = fill.iter().zip(&drain).map(|(fill, drain)| fill + drain).collect();
    let (fill, drain) = (Sample::of(fill), Sample::of(drain));
    let mut row = Row::new("granule", "iova/ramp", Sample::of(both));
    row.extra.extend([("fill", fill.min), ("drain", drain.min)]);
    bench.enter(row);
    bench.row("iova/ramp/fill", fill);
    bench.row("iova/ramp/drain", drain);
}

const BATCH: usize = 256;

/// One thread allocates, the other frees: wall time a range. Batches travel to and fro.
fn two_cpus(ops: usize) -> f64 {
    let space = Ours::create();
    let (send, receive) = sync_channel::<Vec<u64>>(64);
    let (back, empty) = sync_channel::<Vec<u64>>(128);
    std::thread::scope(|scope| {
        let freeing = &space;
        scope.spawn(move || {
            pin(1);
            while let Ok(mut batch) = receive.recv() {
                batch.drain(..).for_each(|start| freeing.give(start, 1));
                let _ = back.try_send(batch);
            }
        });
        pin(0);
        let begin = Instant::now();
        for _ in 0..ops / BATCH {
            let mut batch = empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH));
            batch.extend((0..BATCH).map(|_| space.take(1)));
            if send.send(batch).is_err() {
                return f64::NAN;
            }
        }
        drop(send);
        // The other thread is done when its end of the way back is gone.
        while empty.recv().is_ok() {}
        begin.elapsed().as_nanos() as f64 / ops as f64
    })
}

/// The same on one thread that says it is on the one CPU, then on the other: no waiting.
fn one_thread(rounds: usize) -> f64 {
    let space = Ours::create();
    let mut batch = vec![0u64; BATCH];
    let begin = Instant::now();
    for _ in 0..rounds {
        run_on(0);
        batch.iter_mut().for_each(|start| *start = space.take(1));
        run_on(1);
        batch.iter().for_each(|start| space.give(*start, 1));
    }
    begin.elapsed().as_nanos() as f64 / (rounds * BATCH) as f64
}
