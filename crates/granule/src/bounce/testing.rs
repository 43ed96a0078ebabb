//! A machine for the tests: memory on the heap that pretends to lie at a physical address.

use alloc::sync::Arc;
use core::cell::{Cell, UnsafeCell};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::vec::Vec;

use crate::addr::{PhysAddr, PhysRange};
use crate::mem::{FrameError, FrameRequest, Platform, SpinLock};

/// What the allocator writes into every block, so that whoever forgets to zero is seen.
pub(super) const POISON: u8 = 0xa5;

std::thread_local! {
    /// How many locks this thread holds, and the most that it held since it was last asked.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// The most locks that this thread held at once since the last call. It must hold none now.
pub(super) fn most_held() -> usize {
    let (held, most) = HELD.replace((0, 0));
    assert_eq!(held, 0, "a lock was left locked");
    most
}

/// A spin lock that counts.
pub(super) struct TestLock(SpinLock);

// SAFETY: all is passed on to a lock that keeps the promise.
unsafe impl lock_api::RawMutex for TestLock {
    #[allow(clippy::declare_interior_mutable_const)] // What the trait asks for.
    const INIT: Self = Self(SpinLock::INIT);
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        self.0.lock();
        let (held, most) = HELD.get();
        HELD.set((held + 1, most.max(held + 1)));
    }

    fn try_lock(&self) -> bool {
        unreachable!("the pool always waits")
    }

    unsafe fn unlock(&self) {
        let (held, most) = HELD.get();
        HELD.set((held - 1, most));
        // SAFETY: the caller's promise.
        unsafe { self.0.unlock() };
    }
}

#[derive(Clone)]
pub(super) struct Machine(Arc<Inner>);

struct Inner {
    base: u64,
    memory: Vec<UnsafeCell<u64>>,
    /// No block is longer than this.
    longest: u64,
    live: Mutex<Vec<PhysRange>>,
    next_cpu: AtomicUsize,
    cpus: usize,
    /// The memory nodes that blocks were asked of.
    nodes: Mutex<Vec<Option<u32>>>,
}

// SAFETY: the memory is only reached through raw pointers, under the rules of `Platform`.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Machine {
    /// `size` bytes of memory from `base`, in blocks of at most `longest` bytes.
    pub(super) fn new(base: u64, size: u64, longest: u64, cpus: usize) -> Self {
        let memory = (0..size / 8).map(|_| UnsafeCell::new(0)).collect();
        let (live, next_cpu) = (Mutex::default(), AtomicUsize::new(0));
        let nodes = Mutex::default();
        Self(Arc::new(Inner { base, memory, longest, live, next_cpu, cpus, nodes }))
    }

    /// The memory nodes that blocks were asked of.
    pub(super) fn nodes(&self) -> Vec<Option<u32>> {
        self.0.nodes.lock().expect("no test panics here").clone()
    }

    /// How many blocks are allocated.
    pub(super) fn live(&self) -> usize {
        self.0.live.lock().expect("no test panics here").len()
    }

    /// Overwrites memory, as a device would.
    pub(super) fn device_fill(&self, range: PhysRange, byte: u8) {
        // SAFETY: tests name ranges of allocated blocks only.
        unsafe { self.ptr(range.start()).write_bytes(byte, range.len() as usize) };
    }

    /// Reads memory, as a device would.
    pub(super) fn device_read(&self, range: PhysRange) -> Vec<u8> {
        // SAFETY: tests name ranges of allocated blocks only, while nobody writes them.
        unsafe { core::slice::from_raw_parts(self.ptr(range.start()), range.len() as usize) }
            .to_vec()
    }
}

// SAFETY: blocks are aligned, within the window, inside `memory`, and disjoint while live; `memory`
// never moves.
unsafe impl Platform for Machine {
    type Lock = TestLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        self.0.nodes.lock().expect("no test panics here").push(request.node);
        if request.size > self.0.longest {
            return Err(FrameError::OutOfMemory);
        }
        let mut live = self.0.live.lock().expect("no test panics here");
        let all = PhysRange::new(PhysAddr::new(self.0.base), self.0.memory.len() as u64 * 8);
        let all = all.map_err(|_| FrameError::Unsupported)?;
        let mut start = self.0.base.next_multiple_of(request.align);
        loop {
            let block = PhysRange::new(PhysAddr::new(start), request.size);
            let block = block.map_err(|_| FrameError::Unsupported)?;
            if !all.contains_range(&block) {
                return Err(FrameError::OutOfMemory);
            }
            let inside = request.window.is_none_or(|window| window.contains_range(&block));
            if inside && !live.iter().any(|other| other.overlaps(&block)) {
                live.push(block);
                self.device_fill(block, POISON);
                return Ok(block);
            }
            start += request.align;
        }
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        let mut live = self.0.live.lock().expect("no test panics here");
        let at = live.iter().position(|block| *block == frames).expect("a live block");
        live.swap_remove(at);
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        let offset = (phys.raw() - self.0.base) as usize;
        assert!(offset < self.0.memory.len() * 8, "{phys} is no memory");
        self.0.memory.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset)
    }

    fn phys(&self, _ptr: *const u8, _len: usize) -> Option<PhysRange> {
        None
    }

    /// Another CPU each time, so that one thread exercises all areas.
    fn cpu(&self) -> usize {
        self.0.next_cpu.fetch_add(1, Relaxed) % self.0.cpus
    }

    fn cpus(&self) -> usize {
        self.0.cpus
    }
}
