//! What a call makes of its neighbours: pieces that adjoin, pages that are in the way, groups over tables
//! that others left, how much an unmap says it took.

use super::*;

/// The sizes above the granule that a test can afford to list page by page.
fn large_sizes<F: Format>(table: &PageTable<F, TestMemory>) -> Vec<u64> {
    let most = F::GRANULE.size() << 13;
    let sizes = (F::GRANULE.shift() + 1..63).map(|bits| 1u64 << bits);
    sizes.filter(|size| *size <= most && table.page_sizes().contains(*size)).collect()
}

fn config_bits<F: Format>() -> u32 {
    F::MAX_INPUT_BITS.min(39).max(F::MIN_INPUT_BITS)
}

/// A page of every size is put together from single pages, from halves, and behind pages that stand
/// alone, where the table is written through a window.
fn adjoining_pieces_share_a_page<F: Format>() {
    let memory = TestMemory::new();
    let g = F::GRANULE.size();
    for size in large_sizes(&table::<F>(&memory, config_bits::<F>())) {
        let (at, to) = (4 * size, 8 * size);
        let pages = |piece: u64| (0..size / piece).map(move |n| phys(to + n * piece, piece));
        let alone = (1..=3).map(|n| phys(n * 0x1000 * g, g)).collect::<Vec<_>>();
        let lone = |n: u64| (at - (3 - n) * g, g, (n + 1) * 0x1000 * g);
        for piece in [g, size / 2] {
            let table = table::<F>(&memory, config_bits::<F>());
            let map_list = |start, list| map_list(&table, start, list).expect("free");
            map_list(at, pages(piece).collect());
            assert_eq!(leaves(&table), [(at, size, to)], "{}, from {piece:#x}", F::ID);
            unmap(&table, at, size, Hint::NONE).expect("whole");
            reap(&table, at, size);
            map_list(at - 3 * g, alone.iter().copied().chain(pages(piece)).collect());
            let found = leaves(&table);
            let (front, rest) = found.split_at(3.min(found.len()));
            assert_eq!(front, [lone(0), lone(1), lone(2)], "{}", F::ID);
            // Where the unmap left an empty table, its pages are filled instead.
            assert_eq!(rest.first().map(|leaf| (leaf.0, leaf.2)), Some((at, to)), "{}", F::ID);
            if size < g << F::INDEX_BITS {
                assert_eq!(rest, [(at, size, to)], "{}, behind others", F::ID);
            }
        }
    }
}
every_format!(pieces_that_adjoin_share_large_pages, adjoining_pieces_share_a_page);

/// The page that is in the way is named, wherever it lies in the run, and nothing stays written.
fn the_first_taken_page_is_named<F: Format>() {
    let memory = TestMemory::new();
    for input in [config_bits::<F>(), F::MIN_INPUT_BITS] {
        let table = table::<F>(&memory, input);
        let g = F::GRANULE.size();
        let most = (1u64 << input) / g;
        let places = [0, 1, 3, 7, 8, 9, 15, 16, 19, 24, 27];
        for taken in places.into_iter().filter(|taken| *taken < most) {
            map(&table, taken * g, 0x1_0001 * g, g).expect("free");
            let range = iova(0, 64.min(most) * g);
            let there = || {
                let mut found = Vec::new();
                table.for_each_leaf(range, |leaf| found.push(leaf));
                found
            };
            let before = there();
            // At an odd distance every page stands alone; at an even one there may be groups.
            for (first, to) in [(0, 0x1001 * g), (0, 0x1000 * g), (3.min(taken), 0x2000 * g)] {
                let len = 36.min(most - first) * g;
                let want = Err(TableError::AlreadyMapped { iova: Iova::new(taken * g) });
                assert_eq!(map(&table, first * g, to, len), want, "{}", F::ID);
                assert_eq!(there(), before);
            }
            unmap(&table, taken * g, g, Hint::NONE).expect("whole");
        }
    }
}
every_format!(a_page_in_the_way_is_named, the_first_taken_page_is_named);

/// A group of large pages where one of their slots holds a table: an empty one is filled, one in
/// use is in the way; neither is written over.
fn groups_keep_off_tables<F: Format>() {
    for level in 1..F::MAX_LEVELS {
        for k in (1..10).filter(|k| F::GROUPS[level as usize] >> k & 1 == 1) {
            let block = F::GRANULE.size() << (level * F::INDEX_BITS);
            let input = F::MAX_INPUT_BITS;
            if block << k <= 1 << 36 && block << k < 1 << input {
                for slot in [1, (1 << k) - 1] {
                    group_over_a_table::<F>(input, block, k, slot);
                }
            }
        }
    }
}

fn group_over_a_table<F: Format>(input: u32, block: u64, k: u32, slot: u64) {
    let memory = TestMemory::new();
    let table = table::<F>(&memory, input);
    let (g, size) = (F::GRANULE.size(), block << k);
    let page = slot * block + g;
    map(&table, page, 0x10 * g, g).expect("free");
    let pages = table.table_pages();
    let taken = map(&table, 0, size, size).expect_err("a page of it is taken");
    assert_eq!(taken, TableError::AlreadyMapped { iova: Iova::new(page) }, "{}", F::ID);
    assert_eq!(leaves(&table), [(page, g, 0x10 * g)], "{}", F::ID);
    unmap(&table, page, g, Hint::NONE).expect("whole");
    map(&table, 0, size, size).expect("free");
    for at in [0, block - g, slot * block - g, slot * block, page, slot * block + block - g] {
        let found = table.resolve(Iova::new(at)).map(|found| found.phys.raw());
        assert_eq!(found, Some(size + at), "{}, {at:#x}", F::ID);
    }
    assert_eq!(table.table_pages(), pages, "{}: the tables that were there were used", F::ID);
    unmap(&table, 0, size, Hint::NONE).expect("whole");
    reap(&table, 0, size);
    assert_eq!(leaves(&table), []);
    drop(table);
    assert_eq!(memory.live(), 0, "{}: a table was written over", F::ID);
}
every_format!(groups_of_large_pages_keep_off_tables, groups_keep_off_tables);

/// Without anything in the way, every entry of a group leads where it should.
fn groups_lead_where_they_should<F: Format>() {
    let memory = TestMemory::new();
    for level in 0..F::MAX_LEVELS {
        for k in (1..10).filter(|k| F::GROUPS[level as usize] >> k & 1 == 1) {
            let page = F::GRANULE.size() << (level * F::INDEX_BITS);
            let size = page << k;
            if size >= 1 << F::MAX_INPUT_BITS || 4 * size >= 1 << F::MAX_OUTPUT_BITS {
                continue;
            }
            let table = table::<F>(&memory, F::MAX_INPUT_BITS);
            map(&table, 0, 2 * size, size).expect("free");
            assert_eq!(leaves(&table), [(0, size, 2 * size)], "{}", F::ID);
            // What the walker reads, entry by entry; nobody but our own reads the tiny format.
            let known = F::INDEX_BITS != tiny::Tiny::INDEX_BITS;
            for n in (0..1 << k).filter(|_| known) {
                let size_there = table.resolve(Iova::new(n * page)).map(|found| found.page_size);
                assert_eq!(size_there, Some(size), "{}, entry {n}", F::ID);
                let found = reader::translate(&table.layout(), &memory, n * page + 5);
                assert_eq!(found, Some(2 * size + n * page + 5), "{}", F::ID);
            }
        }
    }
}
every_format!(every_entry_of_a_group_leads_on, groups_lead_where_they_should);

/// What was there is counted, holes are not, whatever the pattern.
fn only_what_was_there_counts<F: Format>() {
    let memory = TestMemory::new();
    let table = table::<F>(&memory, config_bits::<F>());
    let g = F::GRANULE.size();
    for there in [&[0, 1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 19][..], &[1, 16, 17], &[7], &[]] {
        for page in there {
            map(&table, page * g, 0x1_0000 * g + 2 * page * g, g).expect("free");
        }
        // One more, so that no table is detached as a whole.
        let (mut bytes, tables) = (0, F::INDEX_BITS < 5);
        let step = if tables { 4 } else { 24 };
        for first in (0..24).step_by(step) {
            let done = unmap(&table, first * g, step as u64 * g, Hint::NONE).expect("whole");
            assert!(!done.tables, "{}", F::ID);
            bytes += done.bytes;
        }
        assert_eq!(bytes, there.len() as u64 * g, "{}: {there:?}", F::ID);
        assert_eq!(leaves(&table), []);
    }
}
every_format!(holes_do_not_count_as_unmapped, only_what_was_there_counts);

/// Tables without entries are counted on every level, the root not among them.
fn empty_tables_are_counted<F: Format>() {
    let memory = TestMemory::new();
    let table = table::<F>(&memory, F::MAX_INPUT_BITS);
    let (g, span) = (F::GRANULE.size(), F::GRANULE.size() << F::INDEX_BITS);
    assert_eq!(table.empty_table_pages(), 0);
    map(&table, g, 0x10 * g, g).expect("free");
    map(&table, span + g, 0x11 * g, g).expect("free");
    assert_eq!(table.empty_table_pages(), 0, "{}", F::ID);
    unmap(&table, g, g, Hint::NONE).expect("whole");
    assert_eq!(table.empty_table_pages(), 1, "{}", F::ID);
    unmap(&table, span + g, g, Hint::NONE).expect("whole");
    assert_eq!(table.empty_table_pages(), 2, "{}", F::ID);
    map(&table, 2 * g, 0x10 * g, g).expect("free");
    assert_eq!(table.empty_table_pages(), 1, "{}", F::ID);
    let levels = table.layout().levels;
    if levels >= 3 {
        // In the last slot of the root: a table is made on the way, the one below it is not.
        memory.fail_after(1);
        let far = (1u64 << table.layout().input_bits) - 2 * g;
        map(&table, far, 0x10 * g, g).expect_err("no memory");
        memory.fail_after(usize::MAX);
        assert_eq!(table.empty_table_pages(), 2, "{}", F::ID);
    }
}
every_format!(empty_tables_are_counted_on_every_level, empty_tables_are_counted);

/// A table of one level, mapped from end to end.
fn a_root_alone_is_filled<F: Format>() {
    let memory = TestMemory::new();
    let table = table::<F>(&memory, F::MIN_INPUT_BITS);
    if table.layout().levels > 1 {
        return;
    }
    let (g, all) = (F::GRANULE.size(), 1u64 << F::MIN_INPUT_BITS);
    for (at, len) in [(0, all), (0, all - g), (g, all - g), (3 * g, 3 * g)] {
        // At an odd distance, so that no group is as long.
        let to = 0x1001 * g + at;
        map(&table, at, to, len).expect("free");
        for offset in (0..len).step_by(g as usize) {
            let found = table.resolve(Iova::new(at + offset)).map(|found| found.phys.raw());
            assert_eq!(found, Some(to + offset), "{}", F::ID);
        }
        assert_eq!(table.table_pages(), 1, "{}", F::ID);
        assert_eq!(unmap(&table, at, len, Hint::NONE).map(|done| done.bytes), Ok(len));
        assert_eq!(leaves(&table), []);
    }
}
every_format!(a_root_alone_is_filled_from_end_to_end, a_root_alone_is_filled);
