//! All or nothing: conflicts at every position, every allocation failing, refusals that change nothing.

use super::*;
use crate::mem::FrameError;

/// Positions to try in a range of `count` pages: all of a short one, the edges of a long one.
fn positions<F: Format>(count: u64) -> Vec<u64> {
    let table = 1u64 << F::INDEX_BITS;
    if count <= 64 {
        return (0..count).collect();
    }
    let edges = [0, table, 2 * table, count - 1];
    let near = |edge: u64| (edge.saturating_sub(10)..edge + 10).filter(move |n| *n < count);
    edges.into_iter().flat_map(near).collect()
}

/// A start inside a table and a length across a whole one into a third.
fn awkward<F: Format>() -> (u64, u64) {
    let table = 1u64 << F::INDEX_BITS;
    (table - 3, table + 3 + 5)
}

fn conflict_everywhere<F: Format>() {
    let g = F::GRANULE.size();
    let (start, count) = awkward::<F>();
    for congruent in [false, true] {
        let to = if congruent { start } else { start + 1 } * g;
        for page in positions::<F>(count) {
            let memory = TestMemory::new();
            let table = table::<F>(&memory, F::MAX_INPUT_BITS);
            let taken = (start + page) * g;
            let hint = map(&table, taken, 0x77 * g, g).expect("free");
            let before = leaves(&table);
            let error = map(&table, start * g, to, count * g).expect_err("taken");
            assert_eq!(error, TableError::AlreadyMapped { iova: Iova::new(taken) });
            assert_eq!(leaves(&table), before, "{} page {page}", F::ID);
            // What is left behind is empty tables, which a retry uses.
            unmap(&table, taken, g, hint).expect("mapped");
            assert_eq!(map(&table, start * g, to, count * g).map(|_| ()), Ok(()));
            let total: u64 = leaves(&table).iter().map(|leaf| leaf.1).sum();
            assert_eq!(total, count * g);
        }
    }
}
every_format!(a_conflict_anywhere_leaves_nothing, conflict_everywhere);

/// A list of pages that adjoin nowhere, against a page that is taken, for both kinds of walker.
fn list_conflict_everywhere<F: Format>() {
    let g = F::GRANULE.size();
    let (start, count) = ((1u64 << F::INDEX_BITS) - 3, 9);
    for memory in [TestMemory::new(), TestMemory::non_coherent()] {
        let table = table::<F>(&memory, F::MAX_INPUT_BITS);
        let pieces = (0..count).map(|n| phys((100 + 2 * n) * g, g));
        // SAFETY: the test owns the range.
        let list = || unsafe { table.map_list(Iova::new(start * g), pieces.clone(), RW) };
        for page in 0..count {
            let taken = (start + page) * g;
            let hint = map(&table, taken, 7 * g, g).expect("free");
            let before = leaves(&table);
            assert_eq!(list(), Err(TableError::AlreadyMapped { iova: Iova::new(taken) }));
            assert_eq!(leaves(&table), before);
            unmap(&table, taken, g, hint).expect("mapped");
        }
        assert_eq!(list(), Ok(()));
        let found: Vec<u64> = leaves(&table).iter().map(|leaf| leaf.2).collect();
        assert_eq!(found, pieces.map(|piece| piece.start().raw()).collect::<Vec<_>>());
    }
}
every_format!(a_list_s_conflict_leaves_nothing, list_conflict_everywhere);

fn every_allocation_fails<F: Format>() {
    let g = F::GRANULE.size();
    let (start, count) = awkward::<F>();
    for list in [false, true] {
        for allowed in 0.. {
            let memory = TestMemory::new();
            let table = table::<F>(&memory, F::MAX_INPUT_BITS);
            memory.fail_after(allowed);
            let attempt = || {
                let pieces = [phys(0x100 * g, (count - 2) * g), phys(0x10_0000 * g, 2 * g)];
                match list {
                    // SAFETY: the test owns the range.
                    true => unsafe { table.map_list(Iova::new(start * g), pieces.into_iter(), RW) },
                    false => map(&table, start * g, 0x100 * g, count * g).map(|_| ()),
                }
            };
            let done = attempt();
            if done.is_ok() {
                assert!(allowed >= 2, "{}: the range crosses tables", F::ID);
                break;
            }
            assert_eq!(done, Err(TableError::Frames(FrameError::OutOfMemory)));
            assert_eq!(leaves(&table), []);
            assert!(table.empty_table_pages() <= table.table_pages());
            memory.fail_after(usize::MAX);
            assert_eq!(attempt(), Ok(()), "a retry finds no trace");
            drop(table);
            assert_eq!(memory.live(), 0);
        }
    }
}
every_format!(the_kth_allocation_may_fail, every_allocation_fails);

#[test]
fn a_failed_root_frees_nothing_twice() {
    let memory = TestMemory::new();
    memory.fail_after(0);
    let config = TableConfig::new(48, 48);
    let error = PageTable::<Lpae4k, _>::new(memory.clone(), config).expect_err("no memory");
    assert_eq!(error, TableError::Frames(FrameError::OutOfMemory));
    // The arena starts at 16 MiB: above what 20 output bits name.
    memory.fail_after(usize::MAX);
    let error = PageTable::<Lpae4k, _>::new(memory.clone(), TableConfig::new(48, 20));
    assert!(matches!(error, Err(TableError::TableAddress { bits: 20, .. })));
    assert_eq!(memory.live(), 0);
}

#[test]
fn a_cut_is_refused_and_named() {
    let memory = TestMemory::new();
    let table = table::<Lpae4k>(&memory, 48);
    const M2: u64 = 2 << 20;
    map(&table, 0, 0, 32 << 20).expect("a group of blocks");
    map(&table, 1 << 30, 1 << 30, 1 << 30).expect("a block of level 1");
    map(&table, 2 << 30, 0x1_0000, 0x1_0000).expect("a group of pages");
    map(&table, (2 << 30) + M2, M2, M2).expect("a block");
    let before = leaves(&table);
    assert_eq!(before.len(), 4);
    let cases = [
        (0, M2, (0, 32 << 20), M2),
        (M2, 31 << 20, (0, 32 << 20), M2),
        ((1 << 30) + 4096, 4096, (1 << 30, 1 << 30), (1 << 30) + 4096),
        (2 << 30, 4096, (2 << 30, 0x1_0000), (2 << 30) + 4096),
        ((2 << 30) + M2 - 4096, 8192, ((2 << 30) + M2, M2), (2 << 30) + M2 + 4096),
        ((2 << 30) + 0xf000, 0x2000, (2 << 30, 0x1_0000), (2 << 30) + 0xf000),
    ];
    for (at, len, (start, size), cut) in cases {
        let error = unmap(&table, at, len, Hint::NONE).expect_err("a cut");
        assert_eq!(error, TableError::CutsPage { page: iova(start, size), at: Iova::new(cut) });
        assert_eq!(leaves(&table), before);
    }
    let all = unmap(&table, 0, 4 << 30, Hint::NONE).expect("whole pages");
    assert!(all.tables);
    assert_eq!(leaves(&table), []);
}

fn detached_until_reaped<F: Format>() {
    let memory = TestMemory::new();
    let table = table::<F>(&memory, F::MAX_INPUT_BITS);
    let (g, span) = (F::GRANULE.size(), F::GRANULE.size() << F::INDEX_BITS);
    // Odd, so that no large page fits: a whole table.
    map(&table, span, 5 * g, span).expect("free");
    let before = memory.live();
    let leaf_bytes: Vec<u64> = snapshot(&memory);
    let done = unmap(&table, span, span, Hint::NONE).expect("whole");
    assert_eq!(done, Unmapped { bytes: span, tables: true });
    assert_eq!(table.resolve(Iova::new(span)), None);
    assert_eq!(memory.live(), before, "nothing is freed before the invalidation");
    // A walker that still holds the table finds in it what was there.
    let after = snapshot(&memory);
    let changed = leaf_bytes.iter().zip(&after).filter(|(old, new)| old != new).count();
    assert_eq!(changed, 1, "only the parent entry was written");
    let error = map(&table, span + g, 0, g).expect_err("not reaped");
    assert_eq!(error, TableError::NotReaped { iova: Iova::new(span + g) });
    let error = map(&table, span - g, 5 * g, span + g).expect_err("not reaped");
    assert_eq!(error, TableError::NotReaped { iova: Iova::new(span) });
    assert_eq!(leaves(&table), []);
    // A second unmap has nothing to do; reaping a part frees nothing.
    assert_eq!(unmap(&table, span, span, Hint::NONE), Ok(Unmapped::default()));
    reap(&table, span, span - g);
    assert!(matches!(map(&table, span, 0, g), Err(TableError::NotReaped { .. })));
    let detached = table.table_pages();
    reap(&table, span, span);
    assert_eq!(table.table_pages(), detached - 1);
    map(&table, span, 0, span).expect("free again");
    drop(table);
    assert_eq!(memory.live(), 0);
}
every_format!(a_detached_table_stays_whole_until_reaped, detached_until_reaped);

fn snapshot(memory: &TestMemory) -> Vec<u64> {
    let live = memory.0.live.lock().unwrap();
    let mut blocks: Vec<_> = live.iter().map(|(at, size)| (*at, *size)).collect();
    blocks.sort_unstable();
    blocks
        .iter()
        .flat_map(|(at, size)| (0..size / 8).map(move |n| memory.read(at + n * 8)))
        .collect()
}

fn detached_trees<F: Format>() {
    // Leave a detached table inside a tree, then detach the tree above it, then drop or reap.
    for reaped in [true, false] {
        let memory = TestMemory::new();
        let table = table::<F>(&memory, F::MAX_INPUT_BITS);
        let g = F::GRANULE.size();
        let layout = table.layout();
        let entry = layout.root_entry_bytes;
        let span = g << F::INDEX_BITS;
        map(&table, 0, 5 * g, span).expect("free");
        if entry != span {
            map(&table, span, 3 * g, 2 * g).expect("free");
            unmap(&table, 0, span, Hint::NONE).expect("whole");
        }
        let pages = table.table_pages();
        let done = unmap(&table, 0, entry, Hint::NONE).expect("everything below a root entry");
        assert!(done.tables);
        assert_eq!(table.table_pages(), pages);
        if reaped {
            reap(&table, 0, entry);
            assert_eq!(table.table_pages(), layout.roots.len());
            assert_eq!(memory.live(), 1);
        }
        drop(table);
        assert_eq!(memory.live(), 0, "reaped: {reaped}");
    }
}
every_format!(trees_with_detached_tables_are_reaped, detached_trees);

#[test]
fn wrong_requests_write_nothing() {
    let memory = TestMemory::new();
    let table = table::<Lpae4k>(&memory, 39);
    let before = snapshot(&memory);
    let misaligned = |done| assert!(matches!(done, Err(TableError::Misaligned { .. })));
    misaligned(map(&table, 1, 0, 4096));
    misaligned(map(&table, 0, 8, 4096));
    misaligned(map(&table, 0, 0, 100));
    misaligned(unmap(&table, 1, 4096, Hint::NONE).map(|_| Hint::NONE));
    let top = 1 << 39;
    assert!(matches!(map(&table, top, 0, 4096), Err(TableError::OutsideInput { .. })));
    assert!(matches!(map(&table, top - 4096, 0, 8192), Err(TableError::OutsideInput { .. })));
    assert!(matches!(map(&table, u64::MAX - 4095, 0, 8192), Err(TableError::OutsideInput { .. })));
    let high = map(&table, 0, (1 << 48) - 4096, 8192);
    assert!(matches!(high, Err(TableError::OutsideOutput { output_bits: 48, .. })));
    let none = Attributes::memory(Access::empty());
    // SAFETY: refused.
    let refused = unsafe { table.map(Iova::new(0), phys(0, 4096), none) };
    assert_eq!(refused, Err(TableError::NoAccess));
    let list = [phys(0, 4096), phys(1 << 48, 4096)];
    // SAFETY: refused.
    let refused = unsafe { table.map_list(Iova::new(0), list.into_iter(), RW) };
    assert!(matches!(refused, Err(TableError::OutsideOutput { .. })));
    assert_eq!(snapshot(&memory), before);
    assert!(map(&table, top - 4096, (1 << 48) - 4096, 4096).is_ok());
}

/// The list of the second pass may lie; the engine stays inside what it checked.
#[test]
fn a_list_that_changes_its_mind_is_contained() {
    use std::cell::Cell;
    let table = table::<Lpae4k>(&TestMemory::new(), 39);
    let turn = Cell::new(0);
    let list = std::iter::from_fn(|| {
        turn.set(turn.get() + 1);
        match turn.get() {
            1 => Some(phys(0x1000, 0x1000)),
            2 => None,
            3 => Some(phys(0x8000, 0x4000)),
            4 => Some(phys(0x2_0000, 0x1000)),
            _ => None,
        }
    });
    #[derive(Clone)]
    struct Shared<'a, I>(&'a std::cell::RefCell<I>);
    impl<I: Iterator> Iterator for Shared<'_, I> {
        type Item = I::Item;
        fn next(&mut self) -> Option<I::Item> {
            self.0.borrow_mut().next()
        }
    }
    let list = std::cell::RefCell::new(list);
    // SAFETY: the test owns everything.
    let done = unsafe { table.map_list(Iova::new(0), Shared(&list), RW) };
    assert_eq!(done, Ok(()));
    assert_eq!(leaves(&table), [(0, 0x1000, 0x8000)]);
}

/// A list that was said to be checked, and was not: what is wrong with it is refused, nothing stays
/// mapped, and nothing is written behind the range.
#[test]
fn a_list_that_was_not_checked_is_contained() {
    let table = table::<Lpae4k>(&TestMemory::new(), 39);
    let range = |start, len| IovaRange::new(Iova::new(start), len).expect("legal");
    let map = |at, list: &[PhysRange]| {
        // SAFETY: the test owns everything.
        unsafe { table.map_checked_list(at, list.iter().copied(), RW) }
    };
    let apart = |n: u64| phys(0x10_0000 + n * 0x2000, 0x1000);
    let (four, bad) = ([0, 1, 2, 3].map(apart), phys(1 << 48, 0x1000));
    let misaligned = phys(0x20_0800, 0x1000);
    for wrong in [bad, misaligned] {
        for place in 0..=4 {
            let mut list = four.to_vec();
            list.insert(place, wrong);
            map(range(0x4000, 0x5000), &list).expect_err("no page of this table");
            assert_eq!(leaves(&table), []);
        }
    }
    // Too long: by single pages, by a longer piece, by pages that adjoin.
    for list in [&four[..], &[phys(0x10_0000, 0x4000)], &[apart(0), phys(0x30_0000, 0x2000)]] {
        assert_eq!(map(range(0x4000, 0x2000), list), Ok(()));
        let end = leaves(&table).iter().map(|(at, size, _)| at + size).max();
        assert_eq!(end, Some(0x6000));
        unmap(&table, 0x4000, 0x2000, Hint::NONE).expect("mapped");
    }
    let outside = map(range((1 << 39) - 0x1000, 0x2000), &four[..2]);
    assert!(matches!(outside, Err(TableError::OutsideInput { .. })));
    assert_eq!(leaves(&table), []);
}
