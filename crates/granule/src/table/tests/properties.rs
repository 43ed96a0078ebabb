//! Random maps and unmaps against a map from page to physical page, for every format and geometry.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::effort::effort;

/// One random step: where, how long, and in what mood.
type Op = (u8, u64, u64, u64);

fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec((any::<u8>(), any::<u64>(), any::<u64>(), any::<u64>()), 1..most)
}

struct Case<F: Format> {
    table: PageTable<F, TestMemory>,
    memory: TestMemory,
    /// Granule to granule.
    pages: BTreeMap<u64, u64>,
    /// Whether the format is one of the crate's, which the independent reader knows.
    known: bool,
}

const G: fn(u32) -> u64 = |bits| 1u64 << bits;

impl<F: Format> Case<F> {
    fn new(input: u32, coherent: bool, known: bool) -> Self {
        let memory = if coherent { TestMemory::new() } else { TestMemory::non_coherent() };
        Self { table: table(&memory, input), memory, pages: BTreeMap::new(), known }
    }

    fn granule(&self) -> u64 {
        F::GRANULE.size()
    }

    /// A length in granules: short, or about as long as a table.
    fn length(mood: u8, raw: u64) -> u64 {
        let whole = G(F::INDEX_BITS);
        match mood & 3 {
            0 => 1,
            1 => 1 + raw % 40,
            2 => whole + raw % 5 - raw % 3,
            _ => whole * (1 + raw % 2) + (raw >> 8) % 3,
        }
    }

    /// A place in a small part of the IOVA space, so that calls meet each other.
    fn place(&self, mood: u8, raw: u64, len: u64) -> u64 {
        let space = G(self.table.layout().input_bits - F::GRANULE.shift());
        let window = (G(F::INDEX_BITS) * 5).min(space);
        let base = if mood & 32 == 0 { 0 } else { space - window };
        let at = raw % window;
        let at = if mood & 16 == 0 { at } else { at & !(G(F::INDEX_BITS) - 1) };
        base + at.min(window.saturating_sub(len))
    }

    fn run(&mut self, op: Op) -> Result<(), TestCaseError> {
        let (mood, a, b, c) = op;
        let len = Self::length(mood, b);
        let at = self.place(mood, a, len);
        if mood & 64 == 0 { self.map(mood, at, len, c) } else { self.unmap(at, len) }
    }

    fn map(&mut self, mood: u8, at: u64, len: u64, raw: u64) -> Result<(), TestCaseError> {
        let mut to = raw % G(F::MAX_OUTPUT_BITS - F::GRANULE.shift() - 3);
        if mood & 4 != 0 {
            // Congruent, so that large pages and groups fit.
            let mask = G(F::INDEX_BITS * 2) - 1;
            to = (to & !mask) | (at & mask);
        }
        let g = self.granule();
        let free = (at..at + len).find(|page| self.pages.contains_key(page));
        let fits = at * g + len * g <= G(self.table.layout().input_bits);
        let done = map(&self.table, at * g, to * g, len * g);
        match (free, fits) {
            (_, false) => {
                prop_assert!(matches!(done, Err(TableError::OutsideInput { .. })), "{:?}", done)
            }
            (None, true) => {
                prop_assert!(done.is_ok(), "{:?}", done);
                self.pages.extend((0..len).map(|n| (at + n, to + n)));
            }
            (Some(page), true) => {
                let iova = Iova::new(page * g);
                let found = match done {
                    Err(TableError::AlreadyMapped { iova }) => iova,
                    other => return Err(TestCaseError::fail(std::format!("{other:?}"))),
                };
                // A large page is named by where it was met.
                prop_assert_eq!(found.raw() / g, iova.raw() / g);
            }
        }
        self.compare(at, len)
    }

    fn straddles(&self, at: u64) -> bool {
        let g = self.granule();
        let found = self.table.resolve(Iova::new(at * g));
        found.is_some_and(|page| at * g % page.page_size != 0)
    }

    fn unmap(&mut self, at: u64, len: u64) -> Result<(), TestCaseError> {
        let g = self.granule();
        let end = at + len;
        if end * g > G(self.table.layout().input_bits) {
            return Ok(());
        }
        let cut = self.straddles(at) || self.straddles(end);
        let before = leaves(&self.table);
        let there = self.pages.range(at..end).count() as u64;
        let done = unmap(&self.table, at * g, len * g, Hint::NONE);
        if cut {
            prop_assert!(matches!(done, Err(TableError::CutsPage { .. })), "{:?}", done);
            prop_assert_eq!(leaves(&self.table), before);
            return Ok(());
        }
        let done = done.map_err(|error| TestCaseError::fail(std::format!("{error}")))?;
        prop_assert!(done.bytes >= there * g && done.bytes <= len * g);
        if !done.tables {
            prop_assert_eq!(done.bytes, there * g);
        }
        self.pages.retain(|page, _| !(at..end).contains(page));
        self.compare(at, len)?;
        reap(&self.table, at * g, len * g);
        self.compare(at, len)
    }

    /// The pages around a range, and some of all others, translate as the model says.
    fn compare(&self, at: u64, len: u64) -> Result<(), TestCaseError> {
        let step = (len / 64).max(1) as usize;
        let near =
            (at.saturating_sub(2)..at + len + 2).step_by(step).chain([at + len - 1, at + len]);
        let far = self.pages.keys().copied().step_by(self.pages.len() / 64 + 1);
        let g = self.granule();
        let layout = self.table.layout();
        for page in near.chain(far).filter(|page| page * g < G(layout.input_bits)) {
            let want = self.pages.get(&page).map(|to| to * g + 8);
            let address = page * g + 8;
            let found = self.table.resolve(Iova::new(address)).map(|found| found.phys.raw());
            prop_assert_eq!(found, want, "page {:#x}", page * g);
            if self.known {
                prop_assert_eq!(reader::translate(&layout, &self.memory, address), want);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), TestCaseError> {
        // Everything reported adds up to the model.
        let reported: u64 = leaves(&self.table).iter().map(|leaf| leaf.1).sum();
        prop_assert_eq!(reported, self.pages.len() as u64 * self.granule());
        prop_assert_eq!(
            self.table.layout().roots.len() - 1 + self.memory.live(),
            self.table.table_pages()
        );
        let memory = self.memory.clone();
        drop(self);
        prop_assert_eq!(memory.live(), 0);
        Ok(())
    }
}

pub(crate) fn inputs<F: Format>() -> Vec<u32> {
    let (min, max) = (F::MIN_INPUT_BITS, F::MAX_INPUT_BITS);
    [min, 32, 36, 39, max].into_iter().filter(|bits| (min..=max).contains(bits)).collect()
}

fn against_the_model<F: Format>() {
    let known = F::INDEX_BITS > 3;
    let (cases, most) = if known { (6, 16) } else { (200, 40) };
    for input in inputs::<F>() {
        for coherent in [true, false] {
            let mut runner = TestRunner::new(Config {
                cases: effort(cases),
                failure_persistence: None,
                ..Config::default()
            });
            runner
                .run(&ops(most), |ops| {
                    let mut case = Case::<F>::new(input, coherent, known);
                    ops.into_iter().try_for_each(|op| case.run(op))?;
                    case.finish()
                })
                .unwrap_or_else(|error| panic!("{} {input} bits: {error}", F::ID));
        }
    }
}
every_format!(random_calls_agree_with_a_model, against_the_model);

/// In a fresh table, pages are what trying every size at every step gives.
fn largest_pages<F: Format>() {
    let mut runner = TestRunner::new(Config {
        cases: effort(40),
        failure_persistence: None,
        ..Config::default()
    });
    let sizes: Vec<u64> =
        table::<F>(&TestMemory::new(), F::MAX_INPUT_BITS).page_sizes().iter().collect();
    let top = *sizes.iter().rev().find(|size| **size <= 40 << 20).expect("a size");
    let picks = proptest::sample::select(sizes.clone());
    let strategy = (picks.clone(), picks, 0u64..4, 0u64..4, 1u64..4, any::<u64>());
    runner
        .run(&strategy, |(a, b, i, p, n, odd)| {
            let g = F::GRANULE.size();
            let start = (i * a.min(top) + odd % 5 * g).min(G(F::MAX_INPUT_BITS - 1));
            let to = (p + 1) * b.min(top) + odd % 3 * g;
            let len = n * b.min(top) + odd % 7 * g;
            let memory = TestMemory::new();
            let table = table::<F>(&memory, F::MAX_INPUT_BITS);
            let done = map(&table, start, to, len);
            if start + len > G(F::MAX_INPUT_BITS) {
                prop_assert!(done.is_err());
                return Ok(());
            }
            prop_assert!(done.is_ok(), "{:?}", done);
            let mut want = Vec::new();
            let (mut at, mut left) = (start, len);
            while left > 0 {
                let phys = to + (at - start);
                let size = sizes.iter().rev().find(|s| left >= **s && (at | phys) % **s == 0);
                let size = *size.expect("the granule fits");
                want.push((at, size, phys));
                (at, left) = (at + size, left - size);
            }
            prop_assert_eq!(leaves(&table), want);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{}: {error}", F::ID));
}
every_format!(pages_are_the_largest_that_fit, largest_pages);

/// A list maps like its pieces, and adjoining pieces like one.
fn lists<F: Format>() {
    let mut runner = TestRunner::new(Config {
        cases: effort(30),
        failure_persistence: None,
        ..Config::default()
    });
    let piece = (0u64..4096, 1u64..30, any::<bool>());
    runner
        .run(&proptest::collection::vec(piece, 0..40), |pieces| {
            let g = F::GRANULE.size();
            let mut list: Vec<PhysRange> = Vec::new();
            for (start, len, follows) in pieces {
                let start = match list.last() {
                    Some(last) if follows => last.last().raw() + 1,
                    _ => start * g,
                };
                list.push(phys(start, len * g));
            }
            let memory =
                if list.len() % 2 == 0 { TestMemory::new() } else { TestMemory::non_coherent() };
            let table = table::<F>(&memory, F::MAX_INPUT_BITS);
            let layout = table.layout();
            let first = g * 3;
            let known = IovaRange::new(Iova::new(first), list.iter().map(PhysRange::len).sum());
            let pieces = list.iter().copied();
            // SAFETY: the test owns the range.
            let done = unsafe {
                match known {
                    Ok(range) if list.len() % 3 == 0 => table.map_checked_list(range, pieces, RW),
                    _ => table.map_list(Iova::new(first), pieces, RW),
                }
            };
            prop_assert_eq!(done, Ok(()));
            let mut at = first;
            for piece in &list {
                for offset in (0..piece.len()).step_by(g as usize) {
                    let found = table.resolve(Iova::new(at + offset)).map(|found| found.phys.raw());
                    prop_assert_eq!(found, Some(piece.start().raw() + offset));
                    if F::INDEX_BITS > 3 {
                        prop_assert_eq!(reader::translate(&layout, &memory, at + offset), found);
                    }
                }
                at += piece.len();
            }
            prop_assert_eq!(table.resolve(Iova::new(at)), None);
            prop_assert_eq!(table.resolve(Iova::new(first - 1)), None);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{}: {error}", F::ID));
}
every_format!(lists_map_their_pieces_in_order, lists);
