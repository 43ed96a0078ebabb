//! Which page sizes are used: those that the format has and the hardware was said to have, and no others.

use super::*;
use crate::addr::PageSizes;

/// Every leaf has one of these sizes, and they map all of `len` bytes from `at` on to `to`.
fn only<F: Format>(
    table: &PageTable<F, TestMemory>,
    sizes: PageSizes,
    (at, to, len): (u64, u64, u64),
) {
    let mut next = at;
    table.for_each_leaf(iova(at, len), |leaf| {
        let size = leaf.to.page_size;
        assert!(sizes.contains(size), "{}: a page of {size:#x}", F::ID);
        assert_eq!((leaf.iova.raw(), leaf.to.phys.raw()), (next, to + (next - at)), "{}", F::ID);
        next += size;
    });
    assert_eq!(next, at + len, "{}", F::ID);
}

/// Hardware may have fewer sizes than its format: all but one of them, and the smallest alone.
fn sizes_that_are_not_there<F: Format>() {
    let all = table::<F>(&TestMemory::new(), F::MAX_INPUT_BITS).page_sizes();
    let g = F::GRANULE.size();
    let large = (F::GRANULE.shift() + 1..31).map(|bits| 1u64 << bits).filter(|s| all.contains(*s));
    for size in large {
        for sizes in [all.bits() & !size, g] {
            let sizes = PageSizes::from_bits(sizes);
            let memory = TestMemory::new();
            let config = TableConfig::new(F::MAX_INPUT_BITS, F::MAX_OUTPUT_BITS);
            let config = TableConfig { page_sizes: sizes, ..config };
            let table = PageTable::<F, _>::new(memory, config).expect("the granule is there");
            // A group goes with the page that it is made of.
            assert_eq!(table.page_sizes().bits() & !sizes.bits(), 0, "{}", F::ID);
            assert!(table.page_sizes().contains(g), "{}", F::ID);
            let len = size.min(g << 12);
            map(&table, 4 * size, 8 * size, len).expect("free");
            only(&table, sizes, (4 * size, 8 * size, len));
            unmap(&table, 4 * size, len, Hint::NONE).expect("whole");
        }
    }
}
every_format!(only_sizes_that_the_hardware_has_are_used, sizes_that_are_not_there);

/// A range as long as an entry that can only be a table.
fn levels_without_leaves<F: Format>() {
    let memory = TestMemory::new();
    let table = table::<F>(&memory, F::MAX_INPUT_BITS);
    for level in 1..table.layout().levels {
        let len = F::GRANULE.size() << (level * F::INDEX_BITS);
        let leaf = |level: u32| F::LEAF_LEVELS >> level & 1 == 1;
        let inside = len < 1 << (F::MAX_INPUT_BITS - 1) && len < 1 << (F::MAX_OUTPUT_BITS - 1);
        if !leaf(level) && leaf(level - 1) && inside {
            map(&table, len, len, len).expect("free");
            only(&table, table.page_sizes(), (len, len, len));
            unmap(&table, len, len, Hint::NONE).expect("whole");
            reap(&table, len, len);
        }
    }
}
every_format!(levels_without_leaves_get_none, levels_without_leaves);
