//! The IOVA workloads on other crates' allocators. They have no lock; offset-allocator cannot align.

use buddy_system_allocator::FrameAllocator;
use offset_allocator::{Allocation, Allocator};
use range_alloc::RangeAllocator;

use crate::iova::Space;
use crate::measure::Bench;
use crate::{iova, iova_threads};

struct Offset(Allocator<u32>);

impl Space for Offset {
    type Handle = Allocation<u32>;

    #[inline]
    fn alloc(&mut self, pages: u64) -> Self::Handle {
        self.0.allocate(pages as u32).expect("space")
    }

    #[inline]
    fn free(&mut self, handle: Self::Handle, _: u64) {
        self.0.free(handle);
    }
}

struct Ranges(RangeAllocator<u64>);

impl Space for Ranges {
    type Handle = u64;

    #[inline]
    fn alloc(&mut self, pages: u64) -> u64 {
        self.0.allocate_range_aligned(pages, pages.next_power_of_two()).expect("space").start
    }

    #[inline]
    fn free(&mut self, start: u64, pages: u64) {
        self.0.free_range(start..start + pages);
    }
}

struct Buddy(FrameAllocator<33>);

impl Space for Buddy {
    type Handle = usize;

    #[inline]
    fn alloc(&mut self, pages: u64) -> usize {
        self.0.alloc(pages as usize).expect("space")
    }

    #[inline]
    fn free(&mut self, start: usize, pages: u64) {
        self.0.dealloc(start, pages as usize);
    }
}

fn offset() -> Offset {
    Offset(Allocator::with_max_allocs(1 << 30, 400_000))
}

fn ranges() -> Ranges {
    Ranges(RangeAllocator::new(1..1 << 36))
}

fn buddy() -> Buddy {
    let mut buddy = FrameAllocator::new();
    buddy.insert(1..1 << 30);
    Buddy(buddy)
}

/// All rows of all crates.
pub fn run(bench: &mut Bench) {
    if !bench.wants("iova/") {
        return;
    }
    iova::run(bench, "offset-allocator", 1 << 27, offset);
    iova_threads::run_peer(bench, "offset-allocator", offset, 20_000);
    iova::run(bench, "buddy", 1 << 27, buddy);
    iova_threads::run_peer(bench, "buddy", buddy, 20_000);
    iova::run(bench, "range-alloc", 1 << 27, ranges);
    iova_threads::run_peer(bench, "range-alloc", ranges, 500);
}
