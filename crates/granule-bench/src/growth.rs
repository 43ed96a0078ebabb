//! How costs grow with what is live, beside a null allocator that only touches the same memory.

use std::hint::black_box;

use granule::addr::DmaAddr;
use granule::dma::{Device, Mapping};
use granule::domain::InvalidationPolicy;
use granule::table::Lpae4k;

use crate::iova::{Ours, Space, live_name};
use crate::measure::{Bench, Rng};
use crate::platform::buffer;
use crate::unit::device;

const STEPS: [usize; 4] = [1000, 10_000, 100_000, 1_000_000];
const OPS: usize = 20_000;

/// `growth/iova/live=…`, `growth/dma/live=…`, each with its `growth/null/…`: random replacement.
pub fn run(bench: &mut Bench) {
    for live in STEPS {
        let row = |what: &str| format!("growth/{what}/live={}", live_name(live));
        let rows = ["null/iova", "iova", "null/dma", "dma"].map(row);
        if !rows.iter().any(|row| bench.wants(row)) {
            continue;
        }
        let [null_iova, iova, null_dma, dma] = &rows;
        replace(bench, null_iova, live, Null::new(live));
        replace(bench, iova, live, Ours::create());
        null_mappings(bench, null_dma, live);
        mappings(bench, dma, live);
    }
}

/// Hands out what came back last. Each range has one word of its own, which it writes.
struct Null {
    free: Vec<u64>,
    words: Vec<u64>,
}

impl Null {
    fn new(live: usize) -> Self {
        let count = live as u64 + 8;
        Self { free: (0..count).collect(), words: vec![0; count as usize] }
    }
}

impl Space for Null {
    type Handle = u64;

    #[inline(always)]
    fn alloc(&mut self, pages: u64) -> u64 {
        let start = self.free.pop().expect("room");
        self.words[start as usize] = pages;
        start
    }

    #[inline(always)]
    fn free(&mut self, start: u64, _: u64) {
        self.words[start as usize] = 0;
        self.free.push(start);
    }
}

fn replace<S: Space>(bench: &mut Bench, name: &str, live: usize, mut space: S) {
    if !bench.wants(name) {
        return;
    }
    let mut slots: Vec<S::Handle> = (0..live).map(|_| space.alloc(1)).collect();
    let mut rng = Rng::new(7);
    bench.time("granule", name, OPS, || {
        for _ in 0..OPS {
            let slot = &mut slots[rng.below(live)];
            space.free(*slot, 1);
            *slot = space.alloc(1);
        }
    });
}

/// The words of a mapping of ours beside its address and its buffer's.
const REST: usize = size_of::<Live<'static>>() / 8 - 2;

type Live<'d> = Mapping<&'d Device, &'static [u8]>;

/// Single mappings of 4 KiB, strict, format lpae4k.
fn mappings(bench: &mut Bench, name: &str, live: usize) {
    if !bench.wants(name) {
        return;
    }
    let (device, page) = (device::<Lpae4k>(InvalidationPolicy::Strict), buffer(4096, 4096));
    let map = || device.map_to_device(page).expect("space");
    let mut slots: Vec<Option<Live<'_>>> = (0..live).map(|_| Some(map())).collect();
    let mut rng = Rng::new(7);
    bench.time("granule", name, OPS, || {
        for _ in 0..OPS {
            let slot = &mut slots[rng.below(live)];
            if let Some(mapping) = slot.take() {
                mapping.unmap().expect("nothing to wait for");
            }
            *slot = Some(map());
        }
    });
}

/// What a mapping is at least: a record as large as ours that moves in and out, a word of address
/// space bookkeeping, and an entry that is cleared and set.
fn null_mappings(bench: &mut Bench, name: &str, live: usize) {
    if !bench.wants(name) {
        return;
    }
    let (mut space, mut entries) = (Null::new(live), vec![0u64; live + 8]);
    type Record = (u64, DmaAddr, [u64; REST]);
    let record = |start| (start, DmaAddr::new(start), [start; REST]);
    let mut slots: Vec<Option<Record>> = (0..live).map(|_| Some(record(space.alloc(1)))).collect();
    let mut rng = Rng::new(7);
    bench.time("granule", name, OPS, || {
        for _ in 0..OPS {
            let slot = &mut slots[rng.below(live)];
            if let Some(old) = black_box(slot.take()) {
                entries[old.0 as usize] = 0;
                space.free(old.0, 1);
            }
            let start = space.alloc(1);
            entries[start as usize] = start | 3;
            *slot = Some(record(start));
        }
    });
}
