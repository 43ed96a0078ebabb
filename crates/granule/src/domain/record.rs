//! The record of what a domain maps, for backends that keep their tables to themselves: a device that
//! loses them in a reset, a kernel that does not show them.
#![forbid(unsafe_code)]

use alloc::collections::BTreeMap;

use crate::addr::{Attributes, Iova, IovaRange, PageSizes, PhysAddr};
use crate::table::{Fence, Resolved, TableError};

/// One mapping, as one request made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedMapping {
    /// The IOVA range.
    pub range: IovaRange,
    /// What its first byte leads to.
    pub phys: u64,
    /// Rights and kind.
    pub attrs: Attributes,
}

/// Mappings by their first address; they do not overlap.
///
/// Noting a mapping takes memory of the global allocator, which has no way to say that there is
/// none; forgetting one takes none.
#[derive(Debug, Default)]
pub struct MappingRecord {
    by_start: BTreeMap<u64, RecordedMapping>,
}

impl MappingRecord {
    /// The first mapping that meets `range`.
    pub fn first_in(&self, range: IovaRange) -> Option<RecordedMapping> {
        self.overlapping(range).next()
    }

    /// All mappings that meet `range`, in order.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = RecordedMapping> + '_ {
        let (start, last) = (range.start().raw(), range.last().raw());
        let before = self.by_start.range(..start).next_back();
        let before = before.filter(move |(_, mapping)| mapping.range.last().raw() >= start);
        before.into_iter().chain(self.by_start.range(start..=last)).map(|(_, mapping)| *mapping)
    }

    /// All mappings, in order.
    pub fn iter(&self) -> impl Iterator<Item = &RecordedMapping> {
        self.by_start.values()
    }

    /// How many bytes of `range` are mapped.
    pub fn mapped_bytes(&self, range: IovaRange) -> u64 {
        let inside = self.overlapping(range).filter_map(|one| one.range.intersection(&range));
        inside.map(|part| part.len()).fold(0, u64::saturating_add)
    }

    /// Notes a mapping that overlaps none.
    pub fn insert(&mut self, mapping: RecordedMapping) {
        self.by_start.insert(mapping.range.start().raw(), mapping);
    }

    /// Refuses if an end of `range` lies inside a mapping: requests are undone whole.
    ///
    /// # Errors
    /// [`TableError::CutsPage`], with the mapping that would be cut.
    pub fn check_whole(&self, range: IovaRange) -> Result<(), TableError> {
        for mapping in self.overlapping(range) {
            let page = mapping.range;
            if !range.contains(page.start()) {
                return Err(TableError::CutsPage { page, at: range.start() });
            }
            if !range.contains(page.last()) {
                let at = range.end().unwrap_or(page.last());
                return Err(TableError::CutsPage { page, at });
            }
        }
        Ok(())
    }

    /// Forgets all mappings inside `range`, which cuts none; gives their bytes. Never allocates.
    pub fn remove(&mut self, range: IovaRange) -> u64 {
        let mut bytes = 0;
        while let Some(mapping) = self.first_in(range) {
            bytes += mapping.range.len();
            self.by_start.remove(&mapping.range.start().raw());
        }
        bytes
    }

    /// What an address leads to.
    pub fn resolve(&self, iova: Iova, sizes: PageSizes) -> Option<Resolved> {
        let (_, mapping) = self.by_start.range(..=iova.raw()).next_back()?;
        let offset = iova.offset_from(mapping.range.start())?;
        if !mapping.range.contains(iova) {
            return None;
        }
        Some(Resolved {
            phys: PhysAddr::new(mapping.phys.checked_add(offset)?),
            page_size: page_size(mapping, iova.raw(), sizes),
            attributes: mapping.attrs,
            fence: Fence::default(),
        })
    }

    /// Calls `visit` for each page that meets `range`, as large as the device may have made it.
    pub fn for_each_page(
        &self,
        range: IovaRange,
        sizes: PageSizes,
        visit: &mut dyn FnMut(Iova, u64),
    ) {
        for mapping in self.overlapping(range) {
            let mut at = mapping.range.start().raw().max(range.start().raw());
            let last = mapping.range.last().raw().min(range.last().raw());
            while at <= last {
                let size = page_size(&mapping, at, sizes);
                visit(Iova::new(at & !(size - 1)), size);
                match (at | (size - 1)).checked_add(1) {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
    }
}

/// The largest page around `iova` that lies in the mapping and is aligned at both ends.
fn page_size(mapping: &RecordedMapping, iova: u64, sizes: PageSizes) -> u64 {
    let (start, last) = (mapping.range.start().raw(), mapping.range.last().raw());
    let fits = |size: &u64| {
        let page = iova & !(size - 1);
        (start ^ mapping.phys) & (size - 1) == 0 && page >= start && page | (size - 1) <= last
    };
    sizes.iter().rev().find(fits).unwrap_or_else(|| sizes.granule().map_or(1, |g| g.size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Access;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn mapping(start: u64, len: u64, phys: u64) -> RecordedMapping {
        let range = IovaRange::new(Iova::new(start), len).expect("a range");
        RecordedMapping { range, phys, attrs: Attributes::memory(Access::READ) }
    }

    #[test]
    fn pages_are_as_large_as_they_can_be() {
        let sizes: PageSizes = [0x4000, 0x20_0000].into_iter().collect();
        let mut mappings = MappingRecord::default();
        mappings.insert(mapping(0x1f_c000, 0x40_8000, 0x81f_c000));
        let mut pages = Vec::new();
        let all = IovaRange::new(Iova::new(0), 1 << 40).expect("a range");
        mappings.for_each_page(all, sizes, &mut |iova, size| pages.push((iova.raw(), size)));
        let want = [
            (0x1f_c000, 0x4000),
            (0x20_0000, 0x20_0000),
            (0x40_0000, 0x20_0000),
            (0x60_0000, 0x4000),
        ];
        assert_eq!(pages, want);
        let found = mappings.resolve(Iova::new(0x20_0123), sizes).expect("mapped");
        assert_eq!((found.phys.raw(), found.page_size), (0x820_0123, 0x20_0000));
        assert_eq!(mappings.resolve(Iova::new(0x60_4000), sizes), None);
        let cut = IovaRange::new(Iova::new(0x20_0000), 0x20_0000).expect("a range");
        assert!(matches!(mappings.check_whole(cut), Err(TableError::CutsPage { .. })));
        assert_eq!(mappings.remove(all), 0x40_8000);
        assert_eq!(mappings.iter().count(), 0);
    }

    #[test]
    fn a_page_lies_alike_in_both_address_spaces() {
        let sizes: PageSizes = [0x1000, 0x4000, 0x20_0000].into_iter().collect();
        let size = |start, phys| page_size(&mapping(start, 0x40_0000, phys), start, sizes);
        assert_eq!(size(0x20_0000, 0x80_0000), 0x20_0000);
        for (phys, wanted) in [(0x1000, 0x1000), (0x4000, 0x4000), (0x10_0000, 0x4000)] {
            assert_eq!(size(0x20_0000, 0x80_0000 + phys), wanted, "{phys:#x}");
        }
    }

    proptest! {
        /// Against a map of single granules.
        #[test]
        fn the_record_is_what_was_noted(steps in proptest::collection::vec((0u64..32, 1u64..6, any::<bool>()), 1..60)) {
            let sizes: PageSizes = [0x1000].into_iter().collect();
            let mut mappings = MappingRecord::default();
            let mut model: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
            for (number, (at, len, map)) in steps.into_iter().enumerate() {
                let new = mapping(at << 12, len << 12, (number as u64) << 20);
                let taken: Vec<_> = model.range(at..at + len).map(|(_, (_, by))| *by).collect();
                if map {
                    prop_assert_eq!(mappings.first_in(new.range).is_some(), !taken.is_empty());
                    if taken.is_empty() {
                        mappings.insert(new);
                        model.extend((0..len).map(|n| (at + n, (new.phys + (n << 12), number))));
                    }
                    continue;
                }
                let inside = (taken.len() as u64) << 12;
                prop_assert_eq!(mappings.mapped_bytes(new.range), inside);
                let outside = |page: &u64| !(at..at + len).contains(page);
                let cuts = model.iter().any(|(page, (_, by))| outside(page) && taken.contains(by));
                prop_assert_eq!(mappings.check_whole(new.range).is_err(), cuts);
                if !cuts {
                    prop_assert_eq!(mappings.remove(new.range), inside);
                    model.retain(|page, _| outside(page));
                }
            }
            for page in 0..40 {
                let found = mappings.resolve(Iova::new(page << 12 | 5), sizes).map(|r| r.phys.raw());
                prop_assert_eq!(found, model.get(&page).map(|(phys, _)| phys | 5));
            }
        }
    }
}
