//! The image's heap: blocks of powers of two, from a stretch at the start of free memory.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

use granule::mem::SpinLock;
use lock_api::Mutex;

use crate::arch::Boot;

/// How much of free memory is the heap, in bytes.
pub(crate) const SIZE: u64 = 32 << 20;

/// The smallest block is 2^5 bytes.
const SMALLEST: usize = 5;

/// The largest block is 2^22 bytes.
const CLASSES: usize = 18;

struct State {
    /// The first free block of each size, which holds the address of the next one.
    free: [usize; CLASSES],
    /// What was never handed out.
    fresh: usize,
    end: usize,
}

struct Heap(Mutex<SpinLock, State>);

#[global_allocator]
static HEAP: Heap = Heap(Mutex::new(State { free: [0; CLASSES], fresh: 0, end: 0 }));

/// Gives the heap its memory. Nothing may be allocated before.
pub(crate) fn init(boot: &Boot) {
    let mut state = HEAP.0.lock();
    state.fresh = boot.memory.0 as usize;
    state.end = (boot.memory.0 + SIZE.min(boot.memory.1)) as usize;
}

/// Which size of block a request takes, counted from the smallest; `None` beyond the largest.
fn class(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(1 << SMALLEST);
    let class = size.next_power_of_two().trailing_zeros() as usize - SMALLEST;
    (class < CLASSES).then_some(class)
}

impl State {
    fn take(&mut self, class: usize) -> Option<usize> {
        let block = self.free[class];
        if block != 0 {
            // SAFETY: a free block begins with the address of the next one, and is nobody's.
            self.free[class] = unsafe { ptr::with_exposed_provenance::<usize>(block).read() };
            return Some(block);
        }
        let size = 1 << (class + SMALLEST);
        let start = self.fresh.checked_next_multiple_of(size)?;
        let end = start.checked_add(size).filter(|end| *end <= self.end)?;
        self.fresh = end;
        Some(start)
    }
}

// SAFETY: blocks are of the size and alignment of their class, at least what is asked for, and each
// is handed out to one owner until it is given back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = class(layout).and_then(|class| self.0.lock().take(class));
        block.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else { return };
        let mut state = self.0.lock();
        // SAFETY: the block was handed out for this layout, so it is large enough and aligned.
        unsafe { block.cast::<usize>().write(state.free[class]) };
        state.free[class] = block.expose_provenance();
    }
}
