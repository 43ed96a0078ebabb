//! IOVA allocation on one CPU: pairs, random replacement, mixed sizes.

use std::hint::black_box;
use std::time::Instant;

use granule::addr::{Granule, Iova, IovaRange};
use granule::iova::{IovaAllocator, IovaRequest};

use crate::measure::{Bench, Rng, sizes};
use crate::platform::Machine;

/// An allocator of pages' worth of address space.
pub trait Space {
    /// What is given back.
    type Handle: Copy + Send;
    /// Takes some pages.
    fn alloc(&mut self, pages: u64) -> Self::Handle;
    /// Gives them back.
    fn free(&mut self, handle: Self::Handle, pages: u64);
}

/// Ours: 48 bits of address space in granules of 4 KiB, without page 0.
#[derive(Debug)]
pub struct Ours(pub IovaAllocator<Machine>);

impl Ours {
    /// Takes pages through a shared reference.
    #[inline(always)]
    pub fn take(&self, pages: u64) -> u64 {
        self.0.alloc(&IovaRequest::new(pages << 12)).expect("space").raw()
    }

    /// Gives pages back through a shared reference.
    #[inline(always)]
    pub fn give(&self, start: u64, pages: u64) {
        let range = IovaRange::new(Iova::new(start), pages << 12).expect("a range");
        self.0.free(range).expect("allocated");
    }
}

impl Ours {
    /// An empty space.
    pub fn create() -> Self {
        let all = IovaRange::new(Iova::new(0x1000), (1 << 48) - 0x1000).expect("a range");
        Self(IovaAllocator::new(&Machine, Granule::K4, all).expect("an allocator"))
    }
}

impl Space for &Ours {
    type Handle = u64;

    #[inline(always)]
    fn alloc(&mut self, pages: u64) -> u64 {
        self.take(pages)
    }

    #[inline(always)]
    fn free(&mut self, start: u64, pages: u64) {
        self.give(start, pages);
    }
}

impl Space for Ours {
    type Handle = u64;

    #[inline(always)]
    fn alloc(&mut self, pages: u64) -> u64 {
        self.take(pages)
    }

    #[inline(always)]
    fn free(&mut self, start: u64, pages: u64) {
        self.give(start, pages);
    }
}

/// How `size` pages of 4 KiB are written: `4K`, `1M`.
pub fn size_name(pages: u64) -> String {
    if pages >= 256 { format!("{}M", pages / 256) } else { format!("{}K", pages * 4) }
}

/// How a count of live ranges is written: `1k`, `1M`.
pub fn live_name(live: usize) -> String {
    match live {
        0..1000 => live.to_string(),
        1000..1_000_000 => format!("{}k", live / 1000),
        _ => format!("{}M", live / 1_000_000),
    }
}

/// All one-CPU rows for one allocator. `limit` bounds the pages that are live in all.
pub fn run<S: Space>(bench: &mut Bench, by: &str, limit: u64, create: fn() -> S) {
    for pages in [1, 2, 4, 8, 16, 32] {
        let name = format!("iova/pair/{}", size_name(pages));
        if !bench.wants(&name) {
            continue;
        }
        let mut space = create();
        bench.time_auto(by, &name, |ops| pairs(&mut space, pages, ops));
    }
    for pages in [64u64, 256, 1024] {
        for live in [0usize, 1000, 100_000] {
            if pages * live as u64 <= limit {
                with_live(bench, by, pages, live, create);
            }
        }
    }
    mixed(bench, by, create());
}

#[inline(always)]
fn pairs<S: Space>(space: &mut S, pages: u64, ops: usize) {
    for _ in 0..ops {
        let handle = space.alloc(pages);
        space.free(black_box(handle), pages);
    }
}

fn with_live<S: Space>(bench: &mut Bench, by: &str, pages: u64, live: usize, create: fn() -> S) {
    let size = size_name(pages);
    let pair = format!("iova/pair/{size}/live={}", live_name(live));
    let replace = format!("iova/replace/{size}/live={}", live_name(live));
    if !bench.wants(&pair) && !bench.wants(&replace) {
        return;
    }
    let mut space = create();
    let begin = Instant::now();
    let mut slots = Vec::with_capacity(live);
    while slots.len() < live && begin.elapsed().as_secs() < 12 {
        (0..64.min(live - slots.len())).for_each(|_| slots.push(space.alloc(pages)));
    }
    if slots.len() < live {
        eprintln!("{by:16} {pair}: too slow to fill ({} ranges in 12 s)", slots.len());
        return;
    }
    bench.time_auto(by, &pair, |ops| pairs(&mut space, pages, ops));
    if pages == 1024 && live == 0 {
        // The name that the list of targets has for it.
        bench.time_auto(by, "iova/pair/4M", |ops| pairs(&mut space, pages, ops));
    }
    if live > 0 {
        let mut rng = Rng::new(7);
        bench.time_auto(by, &replace, |ops| {
            for _ in 0..ops {
                let slot = &mut slots[rng.below(live)];
                space.free(*slot, pages);
                *slot = space.alloc(pages);
            }
        });
    }
}

/// Ranges of 1 to 64 pages that replace each other at random.
pub struct Mixed<H> {
    slots: Vec<Option<(H, u64)>>,
    sizes: Vec<u8>,
    rng: Rng,
}

impl<H: Copy> Mixed<H> {
    /// With room for `live` of them.
    pub fn new(live: usize, seed: u64) -> Self {
        Self { slots: vec![None; live], sizes: sizes(), rng: Rng::new(seed) }
    }

    /// One replacement.
    #[inline(always)]
    pub fn step<S: Space<Handle = H>>(&mut self, space: &mut S) {
        let random = self.rng.next();
        let pages = u64::from(self.sizes[(random & 65535) as usize]);
        let live = self.slots.len();
        let slot = &mut self.slots[(random >> 33) as usize % live];
        if let Some((handle, pages)) = *slot {
            space.free(handle, pages);
        }
        *slot = Some((space.alloc(pages), pages));
    }

    /// Frees what is left.
    pub fn clear<S: Space<Handle = H>>(&mut self, space: &mut S) {
        let left = self.slots.iter_mut().filter_map(Option::take);
        left.for_each(|(handle, pages)| space.free(handle, pages));
    }
}

fn mixed<S: Space>(bench: &mut Bench, by: &str, mut space: S) {
    let name = "iova/mixed";
    if !bench.wants(name) {
        return;
    }
    let mut mixed = Mixed::new(20_000, 99);
    let mut go = |ops: usize| (0..ops).for_each(|_| mixed.step(&mut space));
    // Into the steady state, as far as four seconds get there.
    go(20_000);
    let begin = Instant::now();
    (0..300).take_while(|_| begin.elapsed().as_secs() < 4).for_each(|_| go(1000));
    bench.time_auto(by, name, &mut go);
    let rounds = if bench.quick { 20_000 } else { 200_000 };
    let begin_all = Instant::now();
    let mut latencies: Vec<f64> = Vec::with_capacity(rounds);
    while latencies.len() < rounds && begin_all.elapsed().as_secs() < 4 {
        let begin = Instant::now();
        go(1);
        latencies.push(begin.elapsed().as_nanos() as f64 - bench.clock());
    }
    latencies.sort_by(f64::total_cmp);
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    if let Some(row) = bench.report.rows.last_mut() {
        row.extra.extend([("p50", at(0.5)), ("p99", at(0.99)), ("p99.9", at(0.999))]);
        eprintln!("{row}");
    }
}
