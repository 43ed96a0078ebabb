//! What an IOMMU remembers: leaves, pointers to tables, and that nothing is mapped.
//!
//! Entries are tagged by context and stay until an invalidation covers them, however often the
//! tables change: the longest that hardware may keep them.

use std::collections::{BTreeMap, BTreeSet};

use granule::addr::{Access, Iova, IovaRange, PhysAddr};

use crate::walk::{Geometry, Start, Translation};

/// A cached leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) translation: Translation,
    /// The older of two that match wins.
    serial: u64,
}

/// The caches of one IOMMU.
#[derive(Debug, Default)]
pub(super) struct Tlb {
    /// By context and page shift, then by first IOVA.
    leaves: BTreeMap<(u32, u32), BTreeMap<u64, Leaf>>,
    /// By context, height and first IOVA of what the table spans; with the logarithm of the span.
    pointers: BTreeMap<(u32, u32, u64), (u32, Start)>,
    /// By context: granules in which nothing is mapped, with their size.
    negative: BTreeMap<u32, BTreeSet<u64>>,
    granule: u64,
    serial: u64,
}

/// A pointer that a walk cache holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pointer {
    pub(super) first: u64,
    pub(super) start: Start,
}

impl Tlb {
    pub(super) fn new(granule: u64) -> Self {
        Self { granule, ..Self::default() }
    }

    /// The leaf for `iova`, and whether more than one matched.
    pub(super) fn leaf(&self, context: u32, iova: Iova) -> Option<(Translation, bool)> {
        let mut found: Option<Leaf> = None;
        let mut matches = 0;
        for ((_, shift), pages) in self.leaves.range((context, 0)..=(context, 63)) {
            let Some(leaf) = pages.get(&(iova.raw() & !((1 << shift) - 1))) else { continue };
            matches += 1;
            if found.is_none_or(|other| leaf.serial < other.serial) {
                found = Some(*leaf);
            }
        }
        found.map(|leaf| (leaf.translation, matches > 1))
    }

    pub(super) fn add_leaf(&mut self, context: u32, translation: Translation) {
        let shift = translation.page_size.trailing_zeros();
        self.serial += 1;
        let leaf = Leaf { translation, serial: self.serial };
        let pages = self.leaves.entry((context, shift)).or_default();
        pages.insert(translation.page_iova.raw(), leaf);
    }

    pub(super) fn negative(&self, context: u32, iova: Iova) -> bool {
        let page = iova.raw() & !(self.granule - 1);
        self.negative.get(&context).is_some_and(|pages| pages.contains(&page))
    }

    pub(super) fn add_negative(&mut self, context: u32, iova: Iova) {
        let page = iova.raw() & !(self.granule - 1);
        self.negative.entry(context).or_default().insert(page);
    }

    /// The deepest table that is cached on the way to `iova`.
    pub(super) fn pointer(&self, geometry: &Geometry, context: u32, iova: Iova) -> Option<Start> {
        (0..geometry.top).find_map(|height| {
            let first = span_start(geometry, height, iova);
            self.pointers.get(&(context, height, first)).map(|(_, start)| *start)
        })
    }

    pub(super) fn add_pointer(
        &mut self,
        geometry: &Geometry,
        context: u32,
        iova: Iova,
        start: Start,
    ) {
        let first = span_start(geometry, start.height, iova);
        let span = geometry.shift(start.height + 1);
        self.pointers.insert((context, start.height, first), (span, start));
    }

    /// Drops what speaks for any address of `range` (all of the context without one): leaves and
    /// negative entries, and pointers too unless `leaf_only`.
    pub(super) fn invalidate(&mut self, context: u32, range: Option<IovaRange>, leaf_only: bool) {
        let covered = |first: u64, span: u64| match range {
            Some(range) => {
                range.start().raw() <= first.saturating_add(span - 1) && first <= range.last().raw()
            }
            None => true,
        };
        for ((_, shift), pages) in self.leaves.range_mut((context, 0)..=(context, 63)) {
            pages.retain(|first, _| !covered(*first, 1 << shift));
        }
        if let Some(pages) = self.negative.get_mut(&context) {
            pages.retain(|first| !covered(*first, self.granule));
        }
        if !leaf_only {
            self.pointers.retain(|(tag, _, first), (span, _)| {
                *tag != context || !covered(*first, 1u64.checked_shl(*span).unwrap_or(u64::MAX))
            });
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.granule);
    }

    /// Drops one random leaf or pointer of any context.
    pub(super) fn evict(&mut self, rng: &mut fastrand::Rng) {
        let leaves: usize = self.leaves.values().map(BTreeMap::len).sum();
        let total = leaves + self.pointers.len();
        if total == 0 {
            return;
        }
        let mut place = rng.usize(0..total);
        for pages in self.leaves.values_mut() {
            if let Some(first) = pages.keys().nth(place).copied() {
                pages.remove(&first);
                return;
            }
            place -= pages.len();
        }
        if let Some(key) = self.pointers.keys().nth(place).copied() {
            self.pointers.remove(&key);
        }
    }

    /// Every leaf of a context.
    pub(super) fn leaves(&self, context: u32) -> Vec<Translation> {
        let pages = self.leaves.range((context, 0)..=(context, 63));
        pages.flat_map(|(_, pages)| pages.values().map(|leaf| leaf.translation)).collect()
    }

    /// Every pointer of a context.
    pub(super) fn pointers(&self, context: u32) -> Vec<Pointer> {
        let all = self.pointers.range((context, 0, 0)..=(context, u32::MAX, u64::MAX));
        all.map(|((_, _, first), (_, start))| Pointer { first: *first, start: *start }).collect()
    }
}

impl Translation {
    /// The same page, for another address inside it.
    pub(super) fn at(&self, iova: Iova) -> Self {
        let inside = iova.raw().wrapping_sub(self.page_iova.raw()) & (self.page_size - 1);
        Self { phys: PhysAddr::new(self.page_phys.raw().wrapping_add(inside)), ..*self }
    }

    /// Whether `access` is granted.
    pub(super) fn grants(&self, access: Access) -> bool {
        self.access.contains(access)
    }
}

fn span_start(geometry: &Geometry, height: u32, iova: Iova) -> u64 {
    let shift = geometry.shift(height + 1);
    iova.raw().checked_shr(shift).and_then(|top| top.checked_shl(shift)).unwrap_or(0)
}
