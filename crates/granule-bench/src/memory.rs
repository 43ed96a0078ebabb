//! Memory: pages of tables, bytes of bookkeeping, and that mapping allocates nothing.

use granule::domain::InvalidationPolicy;
use granule::table::{Format, FormatId, FormatVisitor, Hint, Lpae4k};

use crate::iova::{Ours, live_name, size_name};
use crate::measure::Bench;
use crate::platform::{buffer, frame_allocations, heap_allocations};
use crate::unit::{device, input_bits};
use crate::{dma, table};

/// `memory/…`: amounts, not times.
pub fn run(bench: &mut Bench) {
    if !bench.wants("memory/") {
        return;
    }
    for id in FormatId::ALL {
        id.visit(TablePages(bench));
    }
    bookkeeping(bench);
    allocations(bench);
}

struct TablePages<'a>(&'a mut Bench);

impl FormatVisitor for TablePages<'_> {
    type Output = ();

    /// 1 GiB by granules at an aligned address, against one page a level and as many leaf tables
    /// as that needs.
    fn visit<F: Format>(self) {
        let table = table::table::<F>();
        table::map(&table, 0, 1 << 30, table::rights());
        let span = F::GRANULE.size() << F::INDEX_BITS;
        let (mut least, mut covered) = (0u64, span);
        let layout = table.layout();
        for _ in 1..layout.levels {
            least += (1u64 << 30).div_ceil(covered);
            covered = covered.saturating_mul(1 << F::INDEX_BITS);
        }
        least += layout.roots.len() as u64;
        debug_assert_eq!(layout.input_bits, input_bits::<F>());
        let name = format!("memory/table-pages/{}/1G", F::ID);
        self.0.report.note(&name, table.table_pages() as f64, "pages");
        self.0.report.note(format!("{name}/least"), least as f64, "pages");
        table::unmap(&table, 0, 1 << 30, Hint::NONE);
        table::reap(&table, 0, 1 << 30);
    }
}

/// What the allocator holds for each live range, beside what each CPU has (below 10 KiB).
fn bookkeeping(bench: &mut Bench) {
    let empty = Ours::create();
    bench.report.note("memory/iova/new", empty.0.usage().bookkeeping as f64, "bytes");
    let start = empty.take(1);
    empty.give(start, 1);
    bench.report.note("memory/iova/one-cpu", empty.0.usage().bookkeeping as f64, "bytes");
    for (pages, live) in [(1, 1000), (1, 1_000_000), (64, 100_000), (1024, 1000), (1024, 100_000)] {
        let space = Ours::create();
        let before = space.take(1);
        space.give(before, 1);
        let fixed = space.0.usage().bookkeeping;
        let mut starts = Vec::with_capacity(live);
        starts.extend((0..live).map(|_| space.take(pages)));
        let each = space.0.usage().bookkeeping.saturating_sub(fixed) as f64 / live as f64;
        let name = format!("memory/iova/range/{}/live={}", size_name(pages), live_name(live));
        bench.report.note(name, each, "bytes");
    }
}

/// Heap and frames taken per operation once everything has been used once.
fn allocations(bench: &mut Bench) {
    for (policy, name) in
        [(InvalidationPolicy::Strict, "strict"), (InvalidationPolicy::DEFERRED, "deferred")]
    {
        let (device, page) = (device::<Lpae4k>(policy), buffer(4096, 4096));
        let mut list = Some(dma::list::<Lpae4k>(64, true));
        let mut round = || {
            dma::pair(&device, page);
            let mapping = list.take().map(|list| device.map_list_to_device(list).expect("space"));
            list = mapping.map(|mapping| mapping.unmap().expect("nothing to wait for"));
            drop(device.map_to_device(page).expect("space"));
        };
        (0..1000).for_each(|_| round());
        let before = (heap_allocations(), frame_allocations());
        (0..1000).for_each(|_| round());
        let taken = (heap_allocations() - before.0, frame_allocations() - before.1);
        let name = format!("memory/allocations/{name}");
        bench.report.note(format!("{name}/heap"), taken.0 as f64 / 1000.0, "a round");
        bench.report.note(format!("{name}/frames"), taken.1 as f64 / 1000.0, "a round");
    }
}
