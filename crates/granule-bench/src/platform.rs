//! The machine that everything is measured on: one arena of memory, mapped at its physical addresses, as
//! the peers have theirs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use granule::addr::{PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, Platform, SpinLock};
use lock_api::Mutex;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// The arena's physical address: every format's output bits hold it. Programs and their heaps lie far above.
const PHYS: u64 = 0x1_0000_0000;
/// The arena's size; most of it is never touched.
const SIZE: u64 = 1 << 30;
/// What is touched beforehand, so that no page fault is measured.
const WARM: usize = 128 << 20;

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Says on which CPU this thread claims to run.
pub fn run_on(cpu: usize) {
    CPU.with(|cell| cell.set(cpu));
}

/// How often this thread has taken memory from the heap.
pub fn heap_allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// How often frames were allocated.
pub fn frame_allocations() -> u64 {
    FRAMES.load(Ordering::Relaxed)
}

static FRAMES: AtomicU64 = AtomicU64::new(0);
static ARENA: OnceLock<Arena> = OnceLock::new();

/// Free blocks, by the logarithm of their size, and the first byte that was never handed out.
struct Pool {
    free: [Vec<u64>; 31],
    next: u64,
}

struct Arena {
    pool: Mutex<SpinLock, Pool>,
}

/// Makes the machine; to be called before any [`Machine`] is used.
pub fn boot() {
    ARENA.get_or_init(|| {
        let (at, size) = (core::ptr::without_provenance_mut(PHYS as usize), SIZE as usize);
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: without `FIXED` nothing that is mapped already is replaced.
        let base = unsafe { mmap_anonymous(at, size, rights, flags) };
        let base = base.expect("1 GiB of address space for the arena").cast::<u8>();
        assert_eq!(base, at.cast(), "something else is mapped where the arena belongs");
        // SAFETY: the arena is longer than that, and nobody uses it yet.
        unsafe { base.write_bytes(1, WARM) };
        base.expose_provenance();
        let pool = Pool { free: [const { Vec::new() }; 31], next: 0 };
        Arena { pool: Mutex::new(pool) }
    });
}

/// Memory for good: `len` bytes at a multiple of `align`, as a buffer for mappings.
pub fn buffer(len: usize, align: u64) -> &'static [u8] {
    let size = (len as u64).next_power_of_two().max(4096);
    let range = Machine.alloc_frames(&FrameRequest::new(size, align)).expect("room in the arena");
    let ptr = Machine.ptr(range.start());
    // SAFETY: the frames are ours for ever, and were initialised here.
    unsafe {
        ptr.write_bytes(0, len);
        core::slice::from_raw_parts(ptr, len)
    }
}

/// The machine: a handle without a size.
#[derive(Clone, Copy, Debug)]
pub struct Machine;

// SAFETY: blocks are handed out once, inside the arena, which lives for ever at one place; `cpu` is
// reduced below `cpus`. No device exists, so nothing reaches memory behind the CPU's back.
unsafe impl Platform for Machine {
    type Lock = SpinLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        let arena = ARENA.get().ok_or(FrameError::Unsupported)?;
        let size = request.size.max(request.align).next_power_of_two();
        let class = size.trailing_zeros() as usize;
        FRAMES.fetch_add(1, Ordering::Relaxed);
        let mut pool = arena.pool.lock();
        let free = pool.free.get_mut(class).ok_or(FrameError::Unsupported)?;
        if let Some(at) = free.pop() {
            return PhysRange::new(PhysAddr::new(at), size).map_err(|_| FrameError::Unsupported);
        }
        let at = pool.next.next_multiple_of(size);
        if at + size > SIZE {
            return Err(FrameError::OutOfMemory);
        }
        pool.next = at + size;
        PhysRange::new(PhysAddr::new(PHYS + at), size).map_err(|_| FrameError::Unsupported)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        let Some(arena) = ARENA.get() else { return };
        let class = frames.len().next_power_of_two().trailing_zeros() as usize;
        arena.pool.lock().free[class].push(frames.start().raw());
    }

    #[inline(always)]
    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(phys.raw() as usize)
    }

    #[inline(always)]
    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        let phys = ptr.addr() as u64;
        if phys.wrapping_sub(PHYS) >= SIZE {
            return None;
        }
        PhysRange::new(PhysAddr::new(phys), len as u64).ok()
    }

    /// The processor orders stores among themselves on x86; so do the peers' shims count it.
    #[inline(always)]
    fn barrier(&self) {
        if cfg!(target_arch = "x86_64") {
            compiler_fence(Ordering::SeqCst);
        } else {
            std::sync::atomic::fence(Ordering::SeqCst);
        }
    }

    #[inline(always)]
    fn cpu(&self) -> usize {
        CPU.with(Cell::get) & 1
    }

    fn cpus(&self) -> usize {
        2
    }
}

/// The heap, with a count of what each thread takes.
#[derive(Debug)]
pub struct CountingHeap;

// SAFETY: the system's allocator, and a counter in thread-local storage that needs no destructor.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
