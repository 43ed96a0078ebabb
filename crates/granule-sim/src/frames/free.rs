//! Free blocks, merged with their neighbours, and memory that is broken up only when it is reached.

use std::collections::BTreeMap;

use granule::addr::{Granule, PhysAddr, PhysRange};

/// How much fragmented memory is broken up at a time.
const STRETCH: u64 = 8 << 20;

/// The free blocks. Breaking 8 GiB into pages at the start would cost a second, so fragmented
/// memory stays `sealed` until an allocation needs it.
#[derive(Debug)]
pub(super) struct FreeList {
    free: BTreeMap<u64, u64>,
    sealed: BTreeMap<u64, u64>,
    page: Granule,
    max_block: Option<u64>,
    rng: fastrand::Rng,
}

impl FreeList {
    pub(super) fn new(
        usable: BTreeMap<u64, u64>,
        page: Granule,
        max_block: Option<u64>,
        seed: u64,
    ) -> Self {
        let whole = usable.into_iter().filter_map(|(start, len)| whole_pages(start, len, page));
        let rng = fastrand::Rng::with_seed(seed);
        let mut list =
            Self { free: BTreeMap::new(), sealed: BTreeMap::new(), page, max_block, rng };
        if max_block.is_some() {
            list.sealed = whole.collect();
        } else {
            list.free = whole.collect();
        }
        list
    }

    /// Takes a block, breaking up more memory as long as none fits.
    pub(super) fn take(&mut self, size: u64, align: u64, window: Option<PhysRange>) -> Option<u64> {
        loop {
            if let Some((block, len, start)) = self.find(size, align, window) {
                self.free.remove(&block);
                self.put(block, start - block);
                self.put(start + size, block + (len - size) - start);
                return Some(start);
            }
            if !self.unseal(window) {
                return None;
            }
        }
    }

    /// Gives a block back, merged with its neighbours.
    pub(super) fn give(&mut self, start: u64, len: u64) {
        let (mut first, mut whole) = (start, len);
        if let Some((before, its)) = self.free.range(..start).next_back() {
            if before + its == start {
                (first, whole) = (*before, its + whole);
            }
        }
        if let Some(its) = self.free.remove(&(start + len)) {
            whole += its;
        }
        self.free.insert(first, whole);
    }

    fn put(&mut self, start: u64, len: u64) {
        if len > 0 {
            self.free.insert(start, len);
        }
    }

    /// First fit; in fragmented memory from a random block on, so that neighbours are rare.
    fn find(
        &mut self,
        size: u64,
        align: u64,
        window: Option<PhysRange>,
    ) -> Option<(u64, u64, u64)> {
        let pivot = match (self.max_block, self.free.first_key_value(), self.free.last_key_value())
        {
            (Some(_), Some((first, _)), Some((last, _))) => self.rng.u64(*first..=*last),
            _ => 0,
        };
        self.free.range(pivot..).chain(self.free.range(..pivot)).find_map(|(start, len)| {
            place(*start, *len, size, align, window).map(|at| (*start, *len, at))
        })
    }

    /// Breaks up the next stretch that meets the window; `false` if there is none.
    fn unseal(&mut self, window: Option<PhysRange>) -> bool {
        let Some(max_block) = self.max_block else { return false };
        let inside = |start: u64, len: u64| match (range(start, len), window) {
            (Some(range), Some(window)) => range.intersection(&window),
            (range, _) => range,
        };
        let next = self.sealed.iter().find_map(|(start, len)| inside(*start, *len));
        let Some(next) = next else { return false };
        let unit = (2 * max_block).max(STRETCH);
        let first = next.start().raw() & !(unit - 1);
        let Some(stretch) = range(first, unit) else { return false };
        let opened: Vec<_> = self
            .sealed
            .iter()
            .filter_map(|(start, len)| range(*start, *len)?.intersection(&stretch))
            .collect();
        crate::cache::cut(&mut self.sealed, stretch);
        for part in opened {
            self.break_up(part, max_block);
        }
        true
    }

    /// Of every two blocks one stays free.
    fn break_up(&mut self, part: PhysRange, max_block: u64) {
        let mut pair = part.start().raw() & !(2 * max_block - 1);
        while pair <= part.last().raw() {
            let chosen = pair + if self.rng.bool() { max_block } else { 0 };
            let block = range(chosen, max_block).and_then(|block| block.intersection(&part));
            if let Some(block) = block.and_then(|block| block.align_inward(self.page)) {
                self.give(block.start().raw(), block.len());
            }
            pair += 2 * max_block;
        }
    }
}

fn range(start: u64, len: u64) -> Option<PhysRange> {
    PhysRange::new(PhysAddr::new(start), len).ok()
}

fn whole_pages(start: u64, len: u64, page: Granule) -> Option<(u64, u64)> {
    let inside = range(start, len)?.align_inward(page)?;
    Some((inside.start().raw(), inside.len()))
}

/// Where a request fits in a free block.
fn place(start: u64, len: u64, size: u64, align: u64, window: Option<PhysRange>) -> Option<u64> {
    let block = range(start, len)?;
    let usable = match window {
        Some(window) => block.intersection(&window)?,
        None => block,
    };
    let at = usable.start().raw().checked_add(align - 1)? & !(align - 1);
    let last = at.checked_add(size - 1)?;
    (last <= usable.last().raw()).then_some(at)
}
