//! Page tables of every format: pages one by one, in bulk, by whole tables; look-ups.

use std::hint::black_box;
use std::time::Instant;

use granule::addr::{Access, Attributes, Iova, IovaRange, PageSizes, PhysAddr, PhysRange};
use granule::table::{
    Format, FormatId, FormatVisitor, Hint, PageTable, PlatformTables, TableConfig,
};

use crate::measure::{Bench, Rng, Sample};
use crate::platform::Machine;
use crate::unit::input_bits;

/// Where the peers' benchmarks map, and what.
const IOVA: u64 = 0x4000_0000;
const PHYS: u64 = 0x4_0000_0000;
const GIB: u64 = 1 << 30;
/// Pages that the rows of 1, 16 and 512 map before they unmap them.
const PAGES: u64 = 2048;
const RW: Attributes = Attributes::memory(Access::READ.union(Access::WRITE));

/// A table in the machine's memory.
pub type BenchTable<F> = PageTable<F, PlatformTables<Machine>>;

/// An empty table that maps pages of one granule only, as the peers' benchmarks ask for.
pub fn table<F: Format>() -> BenchTable<F> {
    let only: PageSizes = [F::GRANULE.size()].into_iter().collect();
    let config = TableConfig::new(input_bits::<F>(), F::MAX_OUTPUT_BITS).limited_to(only);
    PageTable::new(PlatformTables::new(Machine, true), config).expect("a table")
}

/// The rights that everything is mapped with. Not known to the compiler; to be asked for outside of
/// the loop, since looking through memory at two bytes costs more than mapping a page.
pub fn rights() -> Attributes {
    black_box(RW)
}

/// Maps `len` bytes at an offset of the benchmark's range.
#[inline(always)]
pub fn map<F: Format>(table: &BenchTable<F>, offset: u64, len: u64, rights: Attributes) -> Hint {
    let phys = PhysRange::new(PhysAddr::new(PHYS + offset), len).expect("a range");
    // SAFETY: one thread maps and unmaps everything here, and there is no device.
    unsafe { table.map(Iova::new(IOVA + offset), phys, rights) }.expect("free")
}

/// Unmaps `len` bytes.
#[inline(always)]
pub fn unmap<F: Format>(table: &BenchTable<F>, offset: u64, len: u64, hint: Hint) -> u64 {
    // SAFETY: as in `map`; hints are passed with the range that they came for.
    unsafe { table.unmap(range(offset, len), hint) }.expect("whole pages").bytes
}

/// Frees what was detached.
pub fn reap<F: Format>(table: &BenchTable<F>, offset: u64, len: u64) {
    // SAFETY: there is no hardware that could hold anything.
    unsafe { table.reap(range(offset, len)) };
}

fn range(offset: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(IOVA + offset), len).expect("a range")
}

/// Sees to it that the tables of a range exist, by a page that comes and goes in each.
pub fn make_tables<F: Format>(table: &BenchTable<F>, len: u64) {
    let rights = rights();
    let (page, span) = (F::GRANULE.size(), F::GRANULE.size() << F::INDEX_BITS);
    for offset in (0..len).step_by(span as usize) {
        let hint = map(table, offset, page, rights);
        unmap(table, offset, page, hint);
    }
}

/// All rows of all formats.
pub fn run(bench: &mut Bench) {
    for id in FormatId::ALL {
        if bench.wants(&format!("table/{id}/")) {
            id.visit(Rows(bench));
        }
    }
}

struct Rows<'a>(&'a mut Bench);

impl FormatVisitor for Rows<'_> {
    type Output = ();

    fn visit<F: Format>(self) {
        let table = table::<F>();
        for pages in [1, 16, 512] {
            pieces(self.0, &table, pages);
        }
        live(self.0, &table);
        whole(self.0, &table);
        resolve(self.0, &table);
    }
}

fn per(begin: Instant, ops: u64) -> f64 {
    begin.elapsed().as_nanos() as f64 / ops as f64
}

/// Four columns of times and the rows that they become.
struct Columns<const N: usize> {
    names: [String; N],
    times: [Vec<f64>; N],
}

impl<const N: usize> Columns<N> {
    fn new<F: Format>(names: [String; N]) -> Self {
        let names = names.map(|name| format!("table/{}/{name}", F::ID));
        Self { names, times: [const { Vec::new() }; N] }
    }

    fn wanted(&self, bench: &Bench) -> bool {
        self.names.iter().any(|name| bench.wants(name))
    }

    fn push(&mut self, times: [f64; N]) {
        self.times.iter_mut().zip(times).for_each(|(column, time)| column.push(time));
    }

    fn enter(self, bench: &mut Bench) {
        for (name, times) in self.names.into_iter().zip(self.times) {
            // Hints are for small mappings: one of 512 pages has none.
            if !name.ends_with("/512/hint") {
                bench.row(&name, Sample::of(times));
            }
        }
    }
}

/// 2,048 pages by pieces of `pages`, into tables that exist. Pieces of 512 begin at page 8 of a
/// table, so that none is a whole one.
fn pieces<F: Format>(bench: &mut Bench, table: &BenchTable<F>, pages: u64) {
    let rights = rights();
    let mut columns = Columns::new::<F>([
        format!("map/{pages}"),
        format!("unmap/{pages}"),
        format!("unmap/{pages}/hint"),
    ]);
    if !columns.wanted(bench) {
        return;
    }
    let page = F::GRANULE.size();
    let (len, first) = (pages * page, if pages == 512 { 8 * page } else { 0 });
    make_tables(table, (PAGES + 8) * page);
    let mut hints = vec![Hint::NONE; PAGES as usize];
    let offsets = || (0..PAGES).step_by(pages as usize).map(|n| first + n * page);
    let repeat = if pages == 1 { 4 } else { 16 };
    for _ in 0..bench.samples() + 2 {
        let mut times = [0.0; 3];
        for _ in 0..repeat {
            let begin = Instant::now();
            for offset in offsets() {
                black_box(map(table, offset, len, rights));
            }
            times[0] += per(begin, PAGES * repeat);
            let begin = Instant::now();
            let sum: u64 = offsets().map(|offset| unmap(table, offset, len, Hint::NONE)).sum();
            times[1] += per(begin, PAGES * repeat);
            assert_eq!(black_box(sum), PAGES * page);
            for (offset, hint) in offsets().zip(&mut hints) {
                *hint = map(table, offset, len, rights);
            }
            let begin = Instant::now();
            for (offset, hint) in offsets().zip(&hints) {
                unmap(table, offset, len, *hint);
            }
            times[2] += per(begin, PAGES * repeat);
        }
        columns.push(times);
    }
    columns.enter(bench);
}

/// 1 GiB into live tables. It is unmapped by halves of tables, so that the tables stay.
fn live<F: Format>(bench: &mut Bench, table: &BenchTable<F>) {
    let rights = rights();
    let mut columns = Columns::new::<F>(["map/1G".into(), "unmap/1G".into()]);
    if !columns.wanted(bench) {
        return;
    }
    let pages = GIB / F::GRANULE.size();
    let half = (F::GRANULE.size() << F::INDEX_BITS).min(GIB) / 2;
    make_tables(table, GIB);
    for _ in 0..bench.samples() + 2 {
        let begin = Instant::now();
        map(table, 0, GIB, rights);
        let mapped = per(begin, pages);
        let begin = Instant::now();
        for offset in (0..GIB).step_by(half as usize) {
            unmap(table, offset, half, Hint::NONE);
        }
        columns.push([mapped, per(begin, pages)]);
    }
    columns.enter(bench);
}

/// 1 GiB by tables that are filled first and linked then; detached, and freed after that.
fn whole<F: Format>(bench: &mut Bench, table: &BenchTable<F>) {
    let rights = rights();
    let mut columns =
        Columns::new::<F>(["map/1G-whole", "unmap/1G-whole", "reap/1G-whole"].map(String::from));
    if !columns.wanted(bench) {
        return;
    }
    let pages = GIB / F::GRANULE.size();
    unmap(table, 0, GIB, Hint::NONE);
    reap(table, 0, GIB);
    for _ in 0..bench.samples() + 2 {
        let begin = Instant::now();
        map(table, 0, GIB, rights);
        let mapped = per(begin, pages);
        let begin = Instant::now();
        unmap(table, 0, GIB, Hint::NONE);
        let unmapped = per(begin, pages);
        let begin = Instant::now();
        reap(table, 0, GIB);
        columns.push([mapped, unmapped, per(begin, pages)]);
    }
    columns.enter(bench);
}

/// Look-ups over 1 GiB, one page after the other and at random.
fn resolve<F: Format>(bench: &mut Bench, table: &BenchTable<F>) {
    let rights = rights();
    let mut columns = Columns::new::<F>(["resolve".into(), "resolve/random".into()]);
    if !columns.wanted(bench) {
        return;
    }
    let (page, pages) = (F::GRANULE.size(), GIB / F::GRANULE.size());
    map(table, 0, GIB, rights);
    let find = |offset| table.resolve(Iova::new(IOVA + offset)).map_or(0, |found| found.phys.raw());
    assert_eq!(find(5 * page + 8), PHYS + 5 * page + 8);
    for _ in 0..bench.samples() {
        let begin = Instant::now();
        black_box((0..pages).fold(0, |sum, n| sum ^ find(n * page + 8)));
        let sequential = per(begin, pages);
        let mut rng = Rng::new(5);
        let begin = Instant::now();
        let random = |sum, _| sum ^ find((rng.next() >> 20 & (pages - 1)) * page);
        black_box((0..100_000).fold(0, random));
        columns.push([sequential, per(begin, 100_000)]);
    }
    columns.enter(bench);
    unmap(table, 0, GIB, Hint::NONE);
    reap(table, 0, GIB);
}
