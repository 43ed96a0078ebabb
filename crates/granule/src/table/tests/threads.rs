//! Real threads on disjoint ranges that share tables at every level.

use std::sync::Barrier;
use std::thread;

use super::tiny::Tiny;
use super::*;

const CPUS: u64 = 4;
const ROUNDS: u64 = 60;

/// Each thread owns every fourth stripe of pages, so that all share leaf tables, and its own whole
/// tables among the others'; it maps, checks, unmaps and reaps, and then leaves half mapped.
fn disjoint<F: Format>() {
    for memory in [TestMemory::new(), TestMemory::non_coherent()] {
        let input = F::MIN_INPUT_BITS.max(F::MAX_INPUT_BITS.min(39));
        let table = &table::<F>(&memory, input);
        let start = &Barrier::new(CPUS as usize);
        let whole = 1u64 << F::INDEX_BITS;
        let stripe = (whole / (2 * CPUS)).clamp(1, 5);
        thread::scope(|scope| {
            for cpu in 0..CPUS {
                scope.spawn(move || {
                    start.wait();
                    for round in 0..ROUNDS {
                        one_round(table, cpu, round, stripe, round + 1 == ROUNDS);
                    }
                });
            }
        });
        let g = F::GRANULE.size();
        for cpu in 0..CPUS {
            let at = (cpu * stripe) * g;
            assert_eq!(
                table.resolve(Iova::new(at)).map(|found| found.phys.raw()),
                Some((cpu + 1) << 24)
            );
        }
        let sum: u64 = leaves(table).iter().map(|leaf| leaf.1).sum();
        assert_eq!(sum, CPUS * stripe * g);
        let pages = table.table_pages();
        assert_eq!(pages, memory.live() + table.layout().roots.len() - 1);
    }
}

fn one_round<F: Format>(
    table: &PageTable<F, TestMemory>,
    cpu: u64,
    round: u64,
    stripe: u64,
    last: bool,
) {
    let (g, whole) = (F::GRANULE.size(), 1u64 << F::INDEX_BITS);
    let to = (cpu + 1) << 24;
    let at = (cpu * stripe) * g;
    let hint = map(table, at, to, stripe * g).expect("own stripe");
    let found = table.resolve(Iova::new(at + (stripe - 1) * g)).expect("mapped");
    assert_eq!(found.phys.raw(), to + (stripe - 1) * g);
    // Own whole tables, below entries that others write beside.
    let tables = (1 + (cpu + round) % CPUS + CPUS * cpu) * whole * g;
    let far = to + g * (1 + round % 2);
    map(table, tables, far, whole * g).expect("own table");
    let found = table.resolve(Iova::new(tables + g)).expect("mapped");
    assert_eq!(found.phys.raw(), far + g);
    let done = unmap(table, tables, whole * g, Hint::NONE).expect("own table");
    assert_eq!(done.bytes, whole * g);
    if done.tables {
        reap(table, tables, whole * g);
    }
    if !last {
        let hint = if round % 2 == 0 { hint } else { Hint::NONE };
        assert_eq!(unmap(table, at, stripe * g, hint).map(|done| done.bytes), Ok(stripe * g));
        assert_eq!(table.resolve(Iova::new(at)), None);
    }
}

#[test]
fn cpus_share_tables_on_disjoint_ranges() {
    disjoint::<Dart2>();
    disjoint::<Lpae4k>();
    disjoint::<Tiny>();
}

/// All CPUs want the same missing tables at once: one of each is linked, the others are freed.
#[test]
fn one_of_many_installs_wins() {
    for round in 0..30 {
        let memory = TestMemory::new();
        let table = &table::<Lpae4k>(&memory, 48);
        let start = &Barrier::new(CPUS as usize);
        thread::scope(|scope| {
            for cpu in 0..CPUS {
                scope.spawn(move || {
                    start.wait();
                    map(table, (round * CPUS + cpu) << 12, cpu << 12, 4096).expect("own page");
                });
            }
        });
        assert_eq!(leaves(table).len(), CPUS as usize);
        assert_eq!(memory.live(), 4, "a root and three tables");
        assert_eq!(table.table_pages(), 4);
    }
}
