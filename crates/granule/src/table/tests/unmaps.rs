//! Unmaps over the borders of tables, on every level: what is in the range goes, what is beside it stays,
//! and what is cut is refused.

use super::*;

/// The borders between tables of every level but the root's own end, and the input bits.
fn borders<F: Format>() -> (u32, Vec<u64>) {
    let input = F::MAX_INPUT_BITS;
    let shifts = (1..8).map(|level| F::GRANULE.shift() + level * F::INDEX_BITS);
    (input, shifts.take_while(|shift| *shift < input).map(|shift| 1 << shift).collect())
}

fn ranges_over_borders<F: Format>() {
    let memory = TestMemory::new();
    let g = F::GRANULE.size();
    let (input, borders) = borders::<F>();
    for border in borders {
        for (before, after) in [(1, 1), (3, 2), (1, 5), (6, 1)] {
            let table = table::<F>(&memory, input);
            // Neighbours at both ends, and where a walk that goes on in the wrong table would come by.
            let lower = border - (g << F::INDEX_BITS);
            let beside = [lower, border - (before + 1) * g, border + after * g, border + 7 * g];
            let mut beside = beside.to_vec();
            beside.dedup();
            for (n, at) in (0..).zip(&beside) {
                map(&table, *at, (0x100 + 2 * n) * g, g).expect("free");
            }
            let (start, len) = (border - before * g, (before + after) * g);
            for holes in [false, true] {
                let mut mapped = 0;
                for page in (0..before + after).filter(|page| !holes || page % 2 == 0) {
                    // At an odd distance from its place: single pages.
                    map(&table, start + page * g, (0x1_0001 + 2 * page) * g, g).expect("free");
                    mapped += g;
                }
                let done = unmap(&table, start, len, Hint::NONE);
                let want = Unmapped { bytes: mapped, tables: false };
                assert_eq!(done, Ok(want), "{} at {border:#x}: {before} {after}", F::ID);
                for page in 0..before + after {
                    assert_eq!(table.resolve(Iova::new(start + page * g)), None, "{}", F::ID);
                }
                for (n, at) in (0..).zip(&beside) {
                    let found = table.resolve(Iova::new(*at)).map(|found| found.phys.raw());
                    assert_eq!(found, Some((0x100 + 2 * n) * g), "{}: {at:#x} is gone", F::ID);
                }
            }
        }
    }
}
every_format!(ranges_over_the_borders_of_tables, ranges_over_borders);

/// A page or a group at a border, of which the range takes a part; at either end, on every level.
fn cut_pages_are_refused<F: Format>() {
    let memory = TestMemory::new();
    let g = F::GRANULE.size();
    let (input, borders) = borders::<F>();
    let sizes = table::<F>(&memory, input).page_sizes();
    let sizes =
        (F::GRANULE.shift() + 1..44).map(|bits| 1u64 << bits).filter(|s| sizes.contains(*s));
    for size in sizes {
        let fit = borders.iter().filter(|border| **border >= size && **border + size < 1 << input);
        for border in fit.copied() {
            let (one, two) = (border - size, border);
            for at in [one, two] {
                let table = table::<F>(&memory, input);
                let beside = if at == one { border } else { border - g };
                map(&table, at, 2 * size, size).expect("free");
                map(&table, beside, (0x1_0001 + 2 * size / g) * g, g).expect("free");
                let cut = if at == one { border - g } else { border + g };
                let page = iova(at, size);
                let want = Err(TableError::CutsPage { page, at: Iova::new(cut) });
                let (start, len) = if at == one { (cut, 2 * g) } else { (border - g, 2 * g) };
                let done = unmap(&table, start, len, Hint::NONE);
                assert_eq!(done, want, "{}: {size:#x} at {at:#x}", F::ID);
                for there in [at, at + size - g, beside] {
                    assert!(table.resolve(Iova::new(there)).is_some(), "{}: {there:#x}", F::ID);
                }
                let whole = unmap(&table, at, size, Hint::NONE).map(|done| done.bytes);
                assert_eq!(whole, Ok(size), "{}: {size:#x} at {at:#x}", F::ID);
            }
        }
    }
}
every_format!(a_range_that_cuts_a_page_is_refused, cut_pages_are_refused);
