//! The smallest machine: one CPU, memory in a static array, nothing is ever freed.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use granule::addr::{AddrRange, PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, Platform, SpinLock};

const SIZE: usize = 1 << 20;

/// Memory that is handed out from its start to its end.
#[repr(C, align(65536))]
struct Arena {
    bytes: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

// SAFETY: the bytes are only handed out, each to one owner, as `used` grows atomically.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena { bytes: UnsafeCell::new([0xaa; SIZE]), used: AtomicUsize::new(0) };

/// Memory of that size, or null. `align` is a power of two.
fn take(size: usize, align: usize) -> *mut u8 {
    let base = ARENA.bytes.get().cast::<u8>();
    let place = |used: usize| {
        let start = (base.addr() + used).checked_next_multiple_of(align)? - base.addr();
        let end = start.checked_add(size).filter(|end| *end <= SIZE)?;
        Some((start, end))
    };
    let grow = |used| place(used).map(|(_, end)| end);
    match ARENA.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow) {
        Ok(used) => place(used).map_or(ptr::null_mut(), |(start, _)| base.wrapping_add(start)),
        Err(_) => ptr::null_mut(),
    }
}

/// What `alloc` allocates from.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: `take` returns memory of that size and alignment that nobody else has, or null.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size(), layout.align())
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// The platform. Physical addresses are the CPU's.
#[derive(Clone)]
pub(crate) struct Machine;

// SAFETY: frames come from `take`, so they are real, aligned and nobody else's; one that lies
// outside the window is never returned. Memory is identity-mapped and does not move. No device
// exists.
unsafe impl Platform for Machine {
    type Lock = SpinLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        let size = usize::try_from(request.size).map_err(|_| FrameError::Unsupported)?;
        let align = usize::try_from(request.align).map_err(|_| FrameError::Unsupported)?;
        let start = take(size, align).addr() as u64;
        let frames = AddrRange::new(PhysAddr::new(start), request.size)
            .map_err(|_| FrameError::Unsupported)?;
        let inside = request.window.is_none_or(|window| window.contains_range(&frames));
        if start == 0 || !inside { Err(FrameError::OutOfMemory) } else { Ok(frames) }
    }

    unsafe fn free_frames(&self, _: PhysRange) {}

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        ptr::with_exposed_provenance_mut(phys.raw() as usize)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        AddrRange::new(PhysAddr::new(ptr.addr() as u64), len as u64).ok()
    }
}
