//! granule's platform: memory is mapped one to one, frames come from a bitmap of all free pages.
//!
//! Frames are handed out from both ends of memory in turn, so that two requests never get
//! neighbours: what is contiguous for a device is so by its IOMMU, not by luck.

use core::ptr;

use granule::addr::{PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, Platform, SpinLock};
use lock_api::Mutex;

use crate::arch::{self, Boot};
use crate::heap;

/// The CPU's page in bytes.
pub(crate) const PAGE: u64 = 4096;

/// The bitmap covers this many pages: 256 MiB.
const PAGES: usize = 1 << 16;

struct State {
    /// A bit a page, set if it is in use.
    used: [u64; PAGES / 64],
    /// The first page's address.
    base: u64,
    /// How many pages there are.
    count: usize,
    /// The longest block that is handed out, in bytes.
    longest: u64,
    from_top: bool,
}

static FRAMES: Mutex<SpinLock, State> = Mutex::new(State {
    used: [0; PAGES / 64],
    base: 0,
    count: 0,
    longest: u64::MAX,
    from_top: false,
});

/// Gives the allocator the memory behind the heap.
pub(crate) fn init(boot: &Boot) {
    let (start, len) = boot.memory;
    let base = (start + heap::SIZE.min(len)).next_multiple_of(PAGE);
    let mut state = FRAMES.lock();
    state.base = base;
    state.count = (((start + len).saturating_sub(base) / PAGE) as usize).min(PAGES);
}

/// Refuses blocks of more than `bytes` from now on, as memory in small pieces would.
pub(crate) fn limit_blocks(bytes: u64) {
    FRAMES.lock().longest = bytes;
}

/// How many pages are in use.
pub(crate) fn pages_in_use() -> u32 {
    FRAMES.lock().used.iter().map(|word| word.count_ones()).sum()
}

impl State {
    fn is_used(&self, page: usize) -> bool {
        self.used[page / 64] >> (page % 64) & 1 != 0
    }

    fn mark(&mut self, first: usize, count: usize, used: bool) {
        for page in first..first + count {
            assert!(self.is_used(page) != used, "page {page} is taken or given back twice");
            self.used[page / 64] ^= 1 << (page % 64);
        }
    }

    /// A free block, and the next from the other end.
    fn take(&mut self, request: &FrameRequest) -> Option<u64> {
        let count = usize::try_from(request.size.div_ceil(PAGE)).ok()?;
        let step = (request.align.max(PAGE) / PAGE) as usize;
        let skew = (self.base / PAGE) as usize % step;
        let last = self.count.checked_sub(count)?;
        let aligned = |page: &usize| (page + skew) % step == 0;
        let fits = |page: &usize| {
            let start = PhysAddr::new(self.base + *page as u64 * PAGE);
            let range = PhysRange::new(start, request.size).ok();
            let inside = request
                .window
                .is_none_or(|window| range.is_some_and(|range| window.contains_range(&range)));
            inside && (*page..page + count).all(|page| !self.is_used(page))
        };
        let mut pages = (0..=last).filter(aligned);
        let found = if self.from_top { pages.rfind(fits) } else { pages.find(fits) }?;
        self.from_top = !self.from_top;
        self.mark(found, count, true);
        Some(self.base + found as u64 * PAGE)
    }
}

/// The lab's machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lab;

// SAFETY: frames come from a bitmap of free memory, so they are real and nobody else's until they
// are given back, and lie as requested. Memory is mapped one to one and does not move. All that
// QEMU emulates is coherent.
unsafe impl Platform for Lab {
    type Lock = SpinLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        let mut state = FRAMES.lock();
        if request.size > state.longest {
            return Err(FrameError::OutOfMemory);
        }
        let start = state.take(request).ok_or(FrameError::OutOfMemory)?;
        PhysRange::new(PhysAddr::new(start), request.size).map_err(|_| FrameError::Unsupported)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        let mut state = FRAMES.lock();
        let first = (frames.start().raw() - state.base) / PAGE;
        state.mark(first as usize, frames.len().div_ceil(PAGE) as usize, false);
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        ptr::with_exposed_provenance_mut(phys.raw() as usize)
    }

    fn phys(&self, start: *const u8, len: usize) -> Option<PhysRange> {
        PhysRange::new(PhysAddr::new(start.expose_provenance() as u64), len as u64).ok()
    }

    fn now(&self) -> u64 {
        arch::now()
    }
}
