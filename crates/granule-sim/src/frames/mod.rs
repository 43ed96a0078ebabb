//! Physical frames: deterministic, suspicious, and as fragmented as a test wants them.
//!
//! Every block handed out is remembered: a double free or a free of what was never allocated is
//! recorded (a destructor is no place to panic), what is still live at the end is a leak. Freed
//! frames are filled with [`POISON`], so that a device or a walker which still reaches them is seen
//! to; blocks above [`POISON_LIMIT`] go back to the host instead and read as zero, which is cheaper.

#![forbid(unsafe_code)]

mod free;

use std::collections::BTreeMap;
use std::sync::Arc;

use granule::addr::{Granule, PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest};
use parking_lot::Mutex;

use crate::cache::cut;
use crate::faults::FaultPlan;
use crate::ram::Ram;
use free::FreeList;

/// What freed frames hold: a byte that, taken for page-table entries, maps absurd addresses with
/// some right in the DART, LPAE and VT-d formats, so that a walker in freed tables is seen.
pub const POISON: u8 = 0x47;
/// Freed blocks above this size are given back to the host instead of being filled.
pub const POISON_LIMIT: u64 = 4 << 20;

/// How physical memory is broken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmentation {
    /// The largest block that can be had, in bytes: a power of two, at least the CPU page. Of every
    /// two such blocks one is held by somebody else, chosen by the seed.
    pub max_block: u64,
}

/// A frame that should not have been freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// The block, or a part of it, is not live: freed before, or never allocated.
    #[error("{range} was freed, but is not (all) live: a double free, or never allocated")]
    NotLive {
        /// What was freed.
        range: PhysRange,
    },
    /// The block is no whole number of CPU pages.
    #[error("{range} was freed, which is not whole CPU pages of {page}")]
    Misaligned {
        /// What was freed.
        range: PhysRange,
        /// The CPU's page.
        page: Granule,
    },
}

#[derive(Debug)]
struct State {
    free: FreeList,
    live: BTreeMap<u64, u64>,
    errors: Vec<FreeError>,
    allocated: u64,
}

/// The frame allocator of a machine.
#[derive(Debug)]
pub struct Frames {
    ram: Arc<Ram>,
    page: Granule,
    faults: FaultPlan,
    max_block: Option<u64>,
    state: Mutex<State>,
}

impl Frames {
    /// An allocator over `ram` without `reserved`. Same seed, same answers.
    pub fn new(
        ram: Arc<Ram>,
        page: Granule,
        reserved: &[PhysRange],
        fragmentation: Option<Fragmentation>,
        faults: FaultPlan,
        seed: u64,
    ) -> Self {
        let mut usable: BTreeMap<u64, u64> =
            ram.ranges().map(|range| (range.start().raw(), range.len())).collect();
        for range in reserved {
            // A page that is reserved in part is left out too: the list takes whole pages only.
            cut(&mut usable, *range);
        }
        let max_block = fragmentation.map(|f| f.max_block.next_power_of_two().max(page.size()));
        let free = FreeList::new(usable, page, max_block, seed);
        let (live, errors) = (BTreeMap::new(), Vec::new());
        let state = Mutex::new(State { free, live, errors, allocated: 0 });
        Self { ram, page, faults, max_block, state }
    }

    /// The CPU's page: the unit of allocation.
    pub fn page(&self) -> Granule {
        self.page
    }

    /// Allocates a block. Its contents are whatever was there. The machine has one node, so a
    /// preferred one changes nothing.
    ///
    /// # Errors
    /// [`FrameError::Unsupported`] if the request is malformed or no RAM could ever meet it;
    /// [`FrameError::OutOfMemory`] if none does now, or the fault plan says so.
    pub fn alloc(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        let align = request.align.max(self.page.size());
        let legal = request.size > 0 && self.page.divides(request.size) && align.is_power_of_two();
        if !legal || !self.possible(request) {
            return Err(FrameError::Unsupported);
        }
        if self.faults.frames_should_fail(request.size) {
            return Err(FrameError::OutOfMemory);
        }
        if self.max_block.is_some_and(|max| request.size > max) {
            return Err(FrameError::OutOfMemory);
        }
        let mut state = self.state.lock();
        let start =
            state.free.take(request.size, align, request.window).ok_or(FrameError::OutOfMemory)?;
        state.live.insert(start, request.size);
        state.allocated += 1;
        PhysRange::new(PhysAddr::new(start), request.size).map_err(|_| FrameError::Unsupported)
    }

    /// Whether RAM and window leave room for the request at all.
    fn possible(&self, request: &FrameRequest) -> bool {
        self.ram.ranges().any(|range| {
            let inside = match request.window {
                Some(window) => range.intersection(&window),
                None => Some(range),
            };
            inside.is_some_and(|inside| inside.len() >= request.size)
        })
    }

    /// Frees a block, or a part of one in whole CPU pages, and poisons it.
    ///
    /// # Errors
    /// [`FreeError`]; it is recorded, and nothing is freed.
    pub fn free(&self, range: PhysRange) -> Result<(), FreeError> {
        self.release(range).inspect_err(|error| self.state.lock().errors.push(*error))?;
        self.poison(range);
        // Only now can the next owner have it.
        self.state.lock().free.give(range.start().raw(), range.len());
        Ok(())
    }

    fn release(&self, range: PhysRange) -> Result<(), FreeError> {
        if !range.is_aligned(self.page) {
            return Err(FreeError::Misaligned { range, page: self.page });
        }
        let mut state = self.state.lock();
        let start = range.start().raw();
        let block = state.live.range(..=start).next_back().map(|(at, len)| (*at, *len));
        let covered = block.is_some_and(|(at, len)| range.last().raw() - at < len);
        if !covered {
            return Err(FreeError::NotLive { range });
        }
        cut(&mut state.live, range);
        Ok(())
    }

    fn poison(&self, range: PhysRange) {
        // Both stay inside RAM: the block was allocated from it.
        if range.len() <= POISON_LIMIT {
            let _ = self.ram.fill(range, POISON);
        } else {
            let _ = self.ram.discard(range);
        }
    }

    /// The blocks that are allocated now: at the end of a run, what leaked.
    pub fn live(&self) -> Vec<PhysRange> {
        let state = self.state.lock();
        let range = |(start, len): (&u64, &u64)| PhysRange::new(PhysAddr::new(*start), *len).ok();
        state.live.iter().filter_map(range).collect()
    }

    /// Whether all of `range` is allocated, as one block.
    pub fn is_live(&self, range: &PhysRange) -> bool {
        let state = self.state.lock();
        let block = state.live.range(..=range.start().raw()).next_back();
        block.is_some_and(|(start, len)| range.last().raw() - start < *len)
    }

    /// How many bytes are allocated now.
    pub fn live_bytes(&self) -> u64 {
        self.state.lock().live.values().sum()
    }

    /// How many allocations succeeded so far.
    pub fn allocations(&self) -> u64 {
        self.state.lock().allocated
    }

    /// Every wrong free so far.
    pub fn errors(&self) -> Vec<FreeError> {
        self.state.lock().errors.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Point;
    use crate::walk::PhysRead;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    fn frames(fragmentation: Option<Fragmentation>, seed: u64) -> Frames {
        let ram = Arc::new(Ram::new(&[range(0x8_0000_0000, 8 << 30)]).expect("RAM"));
        let reserved = [range(0x8_0000_0000, 0x1_0800)];
        Frames::new(ram, Granule::K4, &reserved, fragmentation, FaultPlan::new(), seed)
    }

    #[test]
    fn size_alignment_window_and_reservation_hold() {
        let frames = frames(None, 0);
        let first = frames.alloc(&FrameRequest::new(0x1000, 0x1000)).expect("free memory");
        assert_eq!(first.start().raw(), 0x8_0001_1000);
        let second = frames.alloc(&FrameRequest::new(0x4000, 0x1_0000)).expect("free memory");
        assert_eq!(second, range(0x8_0002_0000, 0x4000));
        let window = Some(range(0x9_0000_0000, 0x10_0000));
        let third = frames.alloc(&FrameRequest::new(0x1000, 0x1000).within(window)).expect("free");
        assert_eq!(third.start().raw(), 0x9_0000_0000);
        let low = Some(range(0, 1 << 32));
        let refused = frames.alloc(&FrameRequest::new(0x1000, 0x1000).within(low));
        assert_eq!(refused, Err(FrameError::Unsupported));
        // The window is long enough, but not from an aligned address on.
        let skew = Some(range(0x9_0100_1000, 0x4000));
        let refused = frames.alloc(&FrameRequest::new(0x4000, 0x4000).within(skew));
        assert_eq!(refused, Err(FrameError::OutOfMemory));
        for (size, align) in [(0, 4096), (100, 4096), (4096, 3 * 4096), (16 << 30, 4096)] {
            let refused = frames.alloc(&FrameRequest::new(size, align));
            assert_eq!(refused, Err(FrameError::Unsupported));
        }
    }

    #[test]
    fn fragmented_memory_has_no_large_blocks() {
        let frames = frames(Some(Fragmentation { max_block: 0x4000 }), 7);
        assert_eq!(frames.alloc(&FrameRequest::new(0x8000, 0x1000)), Err(FrameError::OutOfMemory));
        let blocks: Vec<_> = (0..64)
            .map(|_| frames.alloc(&FrameRequest::new(0x4000, 0x4000)).expect("free memory"))
            .collect();
        let seams = blocks.windows(2).filter(|pair| !pair[0].is_followed_by(&pair[1])).count();
        assert!(seams > 50, "{seams} of 63");
        let again = super::tests::frames(Some(Fragmentation { max_block: 0x4000 }), 7);
        for block in blocks {
            assert_eq!(again.alloc(&FrameRequest::new(0x4000, 0x4000)), Ok(block));
        }
    }

    #[test]
    fn wrong_frees_are_recorded() {
        let frames = frames(None, 0);
        let block = frames.alloc(&FrameRequest::new(0x4000, 0x1000)).expect("free memory");
        let middle = block.slice(0x1000, 0x1000).expect("inside");
        frames.free(middle).expect("a part of a block");
        assert_eq!(frames.live_bytes(), 0x3000);
        assert_eq!(frames.free(middle), Err(FreeError::NotLive { range: middle }));
        assert_eq!(frames.free(block), Err(FreeError::NotLive { range: block }));
        let odd = block.slice(0, 0x800).expect("inside");
        assert!(matches!(frames.free(odd), Err(FreeError::Misaligned { .. })));
        assert_eq!(frames.errors().len(), 3);
        assert_eq!(frames.live().len(), 2);
        assert!(frames.is_live(&range(block.start().raw(), 0x1000)) && !frames.is_live(&middle));
    }

    #[test]
    fn freed_frames_are_poisoned() {
        let frames = frames(None, 0);
        let small = frames.alloc(&FrameRequest::new(0x1000, 0x1000)).expect("free memory");
        frames.free(small).expect("live");
        assert_eq!(frames.ram.read_u64(small.start()), Some(u64::from_le_bytes([POISON; 8])));
        let large = frames.alloc(&FrameRequest::new(64 << 20, 1 << 20)).expect("free memory");
        frames.ram.write_u64(large.start(), 1).expect("inside");
        frames.free(large).expect("live");
        assert_eq!(frames.ram.read_u64(large.start()), Some(0));
    }

    #[test]
    fn all_of_memory_can_be_had_and_given_back() {
        let ram = Arc::new(Ram::new(&[range(0x1_0000, 0x4_0000)]).expect("RAM"));
        let frames = Frames::new(ram, Granule::K16, &[], None, FaultPlan::new(), 1);
        for _ in 0..3 {
            let mut blocks = Vec::new();
            while let Ok(block) = frames.alloc(&FrameRequest::new(0x4000, 0x4000)) {
                blocks.push(block);
            }
            assert_eq!(blocks.len(), 16);
            for block in blocks.into_iter().rev() {
                frames.free(block).expect("live");
            }
            let whole = frames.alloc(&FrameRequest::new(0x4_0000, 0x4000)).expect("merged again");
            frames.free(whole).expect("live");
        }
        assert!(frames.live().is_empty());
    }

    #[test]
    fn the_plan_is_asked() {
        let frames = frames(None, 0);
        frames.faults.fail_nth(Point::Frames, 1);
        let request = FrameRequest::new(0x1000, 0x1000);
        let results: Vec<_> = (0..3).map(|_| frames.alloc(&request).is_ok()).collect();
        assert_eq!(results, [true, false, true]);
    }
}
