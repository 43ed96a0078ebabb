//! The short ways of maps and unmaps: they serve what they are for, leave the rest to the long way, and
//! both ways agree.

use super::*;

/// A table in which a leaf table for the first pages exists, and what that spans.
fn with_leaf_table<F: Format>(memory: &TestMemory) -> (PageTable<F, TestMemory>, u64, u64) {
    let table = table::<F>(memory, F::MAX_INPUT_BITS);
    let granule = F::GRANULE.size();
    map(&table, 0, 0x40 * granule, granule).expect("free");
    (table, granule, granule << F::INDEX_BITS)
}

fn what_the_short_way_serves<F: Format>() {
    let memory = TestMemory::new();
    let (table, g, span) = with_leaf_table::<F>(&memory);
    let odd = 0x41 * g;
    // One page, the last page, a few pages (placed so that no group fits), up to the end.
    for (at, len) in [(3 * g, g), (span - g, g), (5 * g, 3 * g), (span - 4 * g, 3 * g)] {
        let to = odd + at + 0x100 * g;
        let hint = try_map(&table, at, to, len).unwrap_or_else(|| panic!("{}: {at:#x}", F::ID));
        assert_ne!(hint, Hint::NONE);
        for page in 0..len / g {
            let found = table.resolve(Iova::new(at + page * g)).map(|found| found.phys.raw());
            assert_eq!(found, Some(to + page * g), "{}", F::ID);
        }
        // Taken: not even in part.
        assert_eq!(try_map(&table, at, to, len), None);
        let cleared = table.clear_short(at, len).unwrap_or_else(|| panic!("{}: {at:#x}", F::ID));
        assert_eq!(cleared.bytes, len);
        assert_eq!(table.resolve(Iova::new(at)), None);
    }
    assert_eq!(leaves(&table), [(0, g, 0x40 * g)]);
}
every_format!(short_ways_serve_runs_in_one_table, what_the_short_way_serves);

fn what_the_short_way_leaves<F: Format>() {
    let memory = TestMemory::new();
    let (table, g, span) = with_leaf_table::<F>(&memory);
    let input = 1u64 << F::MAX_INPUT_BITS;
    let to = 0x141 * g;
    for (at, to, len, why) in [
        (span - 2 * g, to, 3 * g, "it ends in another table"),
        (span, to, g, "its table is not there"),
        (3 * g, to, span, "it is a table's worth"),
        (0, to, g, "the page is taken"),
        (3 * g + 0x800, to, g, "the address is no page's"),
        (3 * g, to + 0x800, g, "the memory is no page"),
        (3 * g, to, g + 0x800, "the length is no page's"),
        (input, to, g, "it is outside of the table"),
        (3 * g, 1 << F::MAX_OUTPUT_BITS, g, "no entry can say so"),
    ] {
        assert_eq!(try_map(&table, at, to, len), None, "{}: {why}", F::ID);
    }
    let none = Attributes::memory(Access::empty());
    assert_eq!(try_map_as(&table, 3 * g, to, g, none), None);
    for (at, len) in [(span - 2 * g, 3 * g), (span, g), (3 * g, span), (0x800, g), (0, 0x800)] {
        assert!(table.clear_short(at, len).is_none(), "{}: {at:#x}", F::ID);
    }
    assert!(table.clear_short(input, g).is_none());
    assert_eq!(leaves(&table), [(0, g, 0x40 * g)], "nothing was written");
    assert!(memory.live() < 16);
    let deaf = TestMemory::non_coherent();
    let (table, g, _) = with_leaf_table::<F>(&deaf);
    assert_eq!(try_map(&table, 3 * g, to, g), None, "{}: its walker does not snoop", F::ID);
}
every_format!(short_ways_leave_the_rest_alone, what_the_short_way_leaves);

/// The long way and the short one report the same.
fn both_ways_agree<F: Format>() {
    let memory = TestMemory::new();
    let (table, g, _) = with_leaf_table::<F>(&memory);
    for count in 1..=5 {
        let (at, len) = (2 * g, count * g);
        map(&table, at, 0x141 * g, len).expect("free");
        let short = table.clear_short(at, len).expect("one table");
        map(&table, at, 0x141 * g, len).expect("free");
        let long = unmap(&table, at, len, Hint::NONE).expect("mapped");
        assert_eq!((short.bytes, short.tables), (long.bytes, long.tables), "{}", F::ID);
        let hint = map(&table, at, 0x141 * g, len).expect("free");
        let hinted = unmap(&table, at, len, hint).expect("mapped");
        assert_eq!((hinted.bytes, hinted.tables), (long.bytes, long.tables));
    }
}
every_format!(short_and_long_ways_agree, both_ways_agree);

/// A run that is a group is mapped as one on the short way too, and one that goes on behind the group is
/// left to the long way.
fn groups_on_the_short_way<F: Format>() {
    let memory = TestMemory::new();
    let (table, g, span) = with_leaf_table::<F>(&memory);
    for k in (1..F::INDEX_BITS).filter(|k| F::GROUPS[0] >> k & 1 == 1) {
        let (size, to) = (g << k, span << 4);
        let at = size.max(g << 1);
        if at + 2 * size > span {
            continue;
        }
        map(&table, at, to, size).expect("free");
        let found = table.resolve(Iova::new(at)).map(|found| found.page_size);
        assert_eq!(found, Some(size), "{}", F::ID);
        unmap(&table, at, size, Hint::NONE).expect("whole");
        map(&table, at, to, size + g).expect("free");
        let found = [at, at + size].map(|at| table.resolve(Iova::new(at)).map(|r| r.page_size));
        assert_eq!(found, [Some(size), Some(g)], "{}", F::ID);
        unmap(&table, at, size + g, Hint::NONE).expect("whole");
    }
    assert_eq!(leaves(&table), [(0, g, 0x40 * g)]);
}
every_format!(groups_are_mapped_on_the_short_way, groups_on_the_short_way);
