//! One page with a bad address, where its leaf table exists: the short way must refuse like the long
//! one, and leave the table as it was.

use super::*;

fn refuses_bad_pages<F: Format>() {
    let memory = TestMemory::new();
    let input = F::MAX_INPUT_BITS.min(38).max(F::MIN_INPUT_BITS);
    let table = table::<F>(&memory, input);
    let g = F::GRANULE.size();
    // A table of 16 pages or more exists around the last address, and around 16 pages.
    let top = (1u64 << input) - g;
    map(&table, top, 0x10 * g, g).expect("the last page");
    map(&table, 16 * g, 0x20 * g, g).expect("a page");
    let before = leaves(&table);
    let output = 1u64 << F::MAX_OUTPUT_BITS;
    let bad = [
        ("a misaligned IOVA", 17 * g + 8, 0x30 * g, g),
        ("a misaligned physical address", 17 * g, 0x30 * g + 8, g),
        ("memory beyond the output bits", 17 * g, output, g),
        ("an IOVA beyond the input bits", 1 << input, 0x30 * g, g),
        ("an IOVA that only its high bits tell from a legal one", (1 << 62) + 17 * g, 0x30 * g, g),
        ("a page that is mapped", 16 * g, 0x30 * g, g),
    ];
    for (what, at, to, len) in bad {
        map(&table, at, to, len).expect_err(what);
        assert_eq!(leaves(&table), before, "{}: {what} changed the table", F::ID);
    }
    for (what, at) in [("misaligned", 16 * g + 8), ("outside", (1 << 62) + 16 * g)] {
        unmap(&table, at, g, Hint::NONE).expect_err(what);
        assert_eq!(leaves(&table), before, "{}: {what} changed the table", F::ID);
    }
    map(&table, 17 * g, 0x30 * g, g).expect("a good page beside them");
}
every_format!(a_single_bad_page_is_refused, refuses_bad_pages);
