//! The memory of the IOVA allocator itself: told to the byte, given back, and never missed where it
//! runs out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use granule::addr::{Granule, Iova, IovaRange};
use granule::iova::{IovaAllocator, IovaError, IovaRequest};
use granule_checks::quiet::Quiet;

thread_local! {
    static BYTES: Cell<i64> = const { Cell::new(0) };
    /// Allocations that succeed before all fail.
    static BUDGET: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// The system's allocator, counting each thread's live bytes.
struct Counting;

fn spend() -> bool {
    let left = BUDGET.get();
    BUDGET.set(if left == u64::MAX { left } else { left.saturating_sub(1) });
    left > 0
}

// SAFETY: every call goes to the system's allocator as it is, or is refused.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !spend() {
            return std::ptr::null_mut();
        }
        BYTES.set(BYTES.get() + layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !spend() {
            return std::ptr::null_mut();
        }
        BYTES.set(BYTES.get() + size as i64 - layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

const G: u64 = 4096;
type Allocator = IovaAllocator<Quiet>;

fn range(start: u64, pages: u64) -> IovaRange {
    IovaRange::new(Iova::new(start * G), pages * G).expect("a legal range")
}

/// An allocator of 2^40 bytes, and the heap's bytes before it.
fn allocator(platform: &Quiet) -> (i64, Allocator) {
    let before = BYTES.get();
    let real = IovaAllocator::new(platform, Granule::K4, range(0, 1 << 28)).expect("memory");
    (before, real)
}

/// What is told is what the heap holds, and the value itself.
#[track_caller]
fn told(before: i64, real: &Allocator) -> u64 {
    let bookkeeping = real.usage().bookkeeping;
    let heap = u64::try_from(BYTES.get() - before).expect("more than before");
    assert_eq!(bookkeeping, heap + size_of::<Allocator>() as u64);
    bookkeeping
}

#[test]
fn bookkeeping_is_told_to_the_byte_and_given_back() {
    let platform = Quiet::default();
    let (mut starts, mut least) = (Vec::with_capacity(4096), Vec::with_capacity(3));
    let (before, real) = allocator(&platform);
    let idle = told(before, &real);
    // The first round makes magazines, which stay.
    for round in 0..3 {
        for pages in [1, 3, 64, 65, 200, 1024, 5000, 1 << 18] {
            for _ in 0..300 {
                starts.push((real.alloc(&IovaRequest::new(pages * G)).expect("room"), pages));
            }
            told(before, &real);
        }
        // In an order that empties slots one by one.
        for step in [7, 1] {
            let mut at = 0;
            while at < starts.len() {
                let (start, pages) = starts.swap_remove(at);
                real.free(range(start.raw() / G, pages)).expect("allocated");
                at += step - 1;
            }
            told(before, &real);
        }
        assert!(starts.is_empty(), "{round}");
        real.flush_caches();
        least.push(told(before, &real));
        assert_eq!(real.usage().largest_free, G << 28);
    }
    assert_eq!(least[0], least[2], "{least:?}");
    // Nothing but the magazines of this CPU: eight bytes for each place.
    assert!(least[0] - idle < 10_240, "{idle} {least:?}");
    for region in 0..20 {
        real.reserve(range(1000 * region, 10)).expect("free");
        told(before, &real);
    }
    drop(real);
    assert_eq!(BYTES.get(), before);
}

/// Ranges at edges come and go: the few blocks that are kept for them are enough, for ever.
#[test]
fn ranges_that_come_and_go_take_no_memory() {
    let platform = Quiet::default();
    let (before, real) = allocator(&platform);
    let edges: Vec<_> = (1..=3).map(|n| range((n << 18) - 3, 6)).collect();
    let turn = || {
        edges.iter().try_for_each(|edge| real.alloc_at(*edge))?;
        let request = IovaRequest::new(70 * G);
        let start = real.alloc(&request)?;
        real.free(range(start.raw() / G, 70))?;
        edges.iter().try_for_each(|edge| real.free(*edge))
    };
    assert_eq!(turn(), Ok(()));
    let bytes = BYTES.get() - before;
    for round in 0..50 {
        BUDGET.set(0);
        let done = turn();
        BUDGET.set(u64::MAX);
        assert_eq!(done, Ok(()), "{round}");
        assert_eq!(BYTES.get() - before, bytes);
    }
}

/// A range over several words and slots, with memory for fewer and fewer of their blocks.
#[test]
fn what_could_not_be_taken_whole_is_not_taken_at_all() {
    let platform = Quiet::default();
    for wanted in [range((1 << 18) - 5, 10), range((1 << 24) - 70, 140), range(4090, 4200)] {
        let mut failed = 0;
        for budget in 0.. {
            let (before, real) = allocator(&platform);
            let free = real.usage().free;
            BUDGET.set(budget);
            let done = real.alloc_at(wanted);
            BUDGET.set(u64::MAX);
            told(before, &real);
            if done.is_ok() {
                assert_eq!(real.usage().live, wanted.len());
                break;
            }
            failed += 1;
            assert_eq!(done, Err(IovaError::OutOfMemory));
            let usage = real.usage();
            assert_eq!((usage.free, usage.live, usage.largest_free), (free, 0, free), "{budget}");
            assert_eq!(real.alloc_at(wanted), Ok(()), "{budget}");
        }
        assert!(failed >= 2, "{failed} allocations were made to fail");
    }
}
