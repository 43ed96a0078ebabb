//! The whole path: buffers and scatter lists through a device, with IOVA and tables.

use std::hint::black_box;
use std::time::Instant;

use granule::addr::{PhysAddr, PhysRange};
use granule::dma::{Device, ForeignMemory, ListMapping, Mapping, ScatterList};
use granule::domain::InvalidationPolicy;
use granule::table::{Format, FormatId, FormatVisitor, Lpae4k};

use crate::measure::{Bench, Rng, Sample};
use crate::platform::buffer;
use crate::unit::device;

const SINGLE: &str = "dma/single/map+unmap";

/// How many mappings are live at once where the peers' benchmark has as many.
const BATCH: usize = 64;

/// Rows of single mappings: format lpae4k.
pub fn single(bench: &mut Bench) {
    if !bench.wants(SINGLE) {
        return;
    }
    let page = buffer(4096, 4096);
    let strict = device::<Lpae4k>(InvalidationPolicy::Strict);
    let deferred = device::<Lpae4k>(InvalidationPolicy::DEFERRED);
    let ops = 20_000;
    bench.time("granule", SINGLE, ops, || (0..ops).for_each(|_| pair(&strict, page)));
    let name = format!("{SINGLE}/deferred");
    bench.time("granule", &name, ops, || (0..ops).for_each(|_| pair_later(&deferred, page)));
    // What a network card maps: a part of a page, whose rest the device may see.
    let packet = page.get(..1500).unwrap_or(page);
    let name = format!("{SINGLE}/1500B");
    bench.time("granule", &name, ops, || (0..ops).for_each(|_| pair(&strict, packet)));
    // As bench_sg does it: many live at once.
    let mut live = Vec::with_capacity(BATCH);
    let name = format!("{SINGLE}/batch={BATCH}");
    bench.time("granule", &name, ops / BATCH * BATCH, || {
        for _ in 0..ops / BATCH {
            live.extend((0..BATCH).map(|_| map(&strict, page)));
            live.drain(..).for_each(|mapping| {
                mapping.unmap().expect("nothing to wait for");
            });
        }
    });
}

#[inline(always)]
fn map<'d>(device: &'d Device, buffer: &'static [u8]) -> Mapping<&'d Device, &'static [u8]> {
    device.map_to_device(buffer).expect("space")
}

/// Maps and unmaps one buffer.
#[inline(always)]
pub fn pair(device: &Device, buffer: &'static [u8]) {
    let mapping = map(device, buffer);
    black_box(mapping.address());
    mapping.unmap().expect("nothing to wait for");
}

/// The same; the buffer is dropped after the next flush.
#[inline(always)]
fn pair_later(device: &Device, buffer: &'static [u8]) {
    let mapping = map(device, buffer);
    black_box(mapping.address());
    drop(mapping);
}

/// A list of single pages, far from each other or one behind the other, as bench_sg makes them.
pub fn list<F: Format>(entries: usize, isolated: bool) -> ScatterList<ForeignMemory> {
    let page = F::GRANULE.size();
    let mut rng = Rng::new(0x9E37_79B9_7F4A_7C15);
    let at = |n: usize| match isolated {
        true => PHYS + (rng.next() % 60_000) * 2 * page,
        false => PHYS + n as u64 * page,
    };
    let range = |start| PhysRange::new(PhysAddr::new(start), page).expect("a range");
    let pages: Vec<PhysRange> = (0..entries).map(at).map(range).collect();
    // SAFETY: nobody reads or writes that memory: no device exists, and it is never bounced.
    ScatterList::new([unsafe { ForeignMemory::from_pages(&pages, || ()) }])
}

const PHYS: u64 = 0x4_0000_0000;

/// Rows of scatter lists, for every format.
pub fn lists(bench: &mut Bench) {
    for id in FormatId::ALL {
        if bench.wants(&format!("sg/{id}/")) {
            id.visit(Lists(bench));
        }
    }
}

struct Lists<'a>(&'a mut Bench);

impl FormatVisitor for Lists<'_> {
    type Output = ();

    fn visit<F: Format>(self) {
        for (kind, isolated) in [("isolated", true), ("adjacent", false)] {
            for entries in [1, 64, 1024] {
                rows::<F>(self.0, kind, isolated, entries);
            }
        }
    }
}

/// As in bench_sg: short lists are live 64 at a time, so that the clock does not count much; of the
/// others, what reading the clock costs is taken off.
fn rows<F: Format>(bench: &mut Bench, kind: &str, isolated: bool, entries: usize) {
    let name = |what| format!("sg/{}/{what}/{kind}/{entries}", F::ID);
    let (map_name, unmap_name) = (name("map"), name("unmap"));
    if !bench.wants(&map_name) && !bench.wants(&unmap_name) {
        return;
    }
    let device = device::<F>(InvalidationPolicy::Strict);
    let inner = if entries <= 8 { BATCH } else { 1 };
    let rounds = if entries >= 256 { 40 } else { 400 / inner + 1 };
    let mut lists: Vec<_> = (0..inner).map(|_| list::<F>(entries, isolated)).collect();
    let mut live: Vec<ListMapping<&Device, _>> = Vec::with_capacity(inner);
    let (mut map, mut unmap) = (Vec::new(), Vec::new());
    for _ in 0..bench.samples() + 2 {
        let (mut mapped, mut unmapped) = (0.0, 0.0);
        for _ in 0..rounds {
            let begin = Instant::now();
            live.extend(
                lists.drain(..).map(|list| device.map_list_to_device(list).expect("space")),
            );
            mapped += begin.elapsed().as_nanos() as f64 - bench.clock();
            black_box(live.first().map(|mapping| mapping.segments().len()));
            let begin = Instant::now();
            lists.extend(live.drain(..).map(|mapping| mapping.unmap().expect("no wait")));
            unmapped += begin.elapsed().as_nanos() as f64 - bench.clock();
        }
        let ops = (rounds * inner * entries) as f64;
        map.push(mapped / ops);
        unmap.push(unmapped / ops);
    }
    bench.row(&map_name, Sample::of(map));
    bench.row(&unmap_name, Sample::of(unmap));
}
