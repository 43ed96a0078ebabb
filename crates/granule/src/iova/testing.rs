//! A platform for this layer's tests: no memory, a lock, and as many CPUs as asked for.

use core::cell::Cell;

use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicBool, Ordering};

use crate::addr::{PhysAddr, PhysRange};
use crate::mem::{FrameError, FrameRequest, Platform, SpinLock};

std::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// Says on which CPU this thread claims to run.
pub(super) fn run_on(cpu: usize) {
    CPU.with(|cell| cell.set(cpu));
}

/// How many locks of [`Counted`] machines this thread has taken.
pub(super) fn locks_taken() -> u64 {
    TAKEN.with(Cell::get)
}

/// A machine with CPUs and nothing else.
#[derive(Clone, Debug)]
pub(super) struct Cpus(pub(super) usize);

// SAFETY: no frames are ever allocated, and `cpu` is reduced below `cpus`.
unsafe impl Platform for Cpus {
    type Lock = SpinLock;

    fn alloc_frames(&self, _: &FrameRequest) -> Result<PhysRange, FrameError> {
        Err(FrameError::Unsupported)
    }

    unsafe fn free_frames(&self, _: PhysRange) {}

    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        core::ptr::null_mut()
    }

    fn phys(&self, _: *const u8, _: usize) -> Option<PhysRange> {
        None
    }

    fn cpu(&self) -> usize {
        CPU.with(Cell::get) % self.0
    }

    fn cpus(&self) -> usize {
        self.0
    }
}

/// A spin lock that counts how often this thread took one.
pub(super) struct CountingLock(SpinLock);

// SAFETY: all is passed on to a lock that keeps the promise.
unsafe impl lock_api::RawMutex for CountingLock {
    #[allow(clippy::declare_interior_mutable_const)] // What the trait asks for.
    const INIT: Self = Self(SpinLock::INIT);
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        TAKEN.set(TAKEN.get() + 1);
        self.0.lock();
    }

    fn try_lock(&self) -> bool {
        let taken = self.0.try_lock();
        TAKEN.set(TAKEN.get() + u64::from(taken));
        taken
    }

    unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.unlock() };
    }
}

/// As [`Cpus`], with that lock.
#[derive(Clone, Debug)]
pub(super) struct Counted(pub(super) Cpus);

// SAFETY: as `Cpus`.
unsafe impl Platform for Counted {
    type Lock = CountingLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        self.0.alloc_frames(request)
    }

    unsafe fn free_frames(&self, _: PhysRange) {}

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.0.ptr(phys)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        self.0.phys(ptr, len)
    }

    fn cpu(&self) -> usize {
        self.0.cpu()
    }

    fn cpus(&self) -> usize {
        self.0.cpus()
    }
}

/// A spin lock whose every step the scheduler sees.
pub(super) struct ScheduledLock(AtomicBool);

// SAFETY: one holder at a time, by compare-and-swap.
unsafe impl lock_api::RawMutex for ScheduledLock {
    #[allow(clippy::declare_interior_mutable_const)] // What the trait asks for.
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            shuttle::thread::yield_now();
        }
    }

    fn try_lock(&self) -> bool {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A machine under a scheduler. Threads move between its two CPUs at any moment: the number that they
/// are told may be stale, and every question is a place where another thread may come in.
#[derive(Clone, Debug)]
pub(super) struct Scheduled;

// SAFETY: no frames are ever allocated, and `cpu` is below `cpus`.
unsafe impl Platform for Scheduled {
    type Lock = ScheduledLock;

    fn alloc_frames(&self, _: &FrameRequest) -> Result<PhysRange, FrameError> {
        Err(FrameError::Unsupported)
    }

    unsafe fn free_frames(&self, _: PhysRange) {}

    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        core::ptr::null_mut()
    }

    fn phys(&self, _: *const u8, _: usize) -> Option<PhysRange> {
        None
    }

    fn cpu(&self) -> usize {
        let cpu = shuttle::rand::thread_rng().gen_range(0..2);
        shuttle::thread::yield_now();
        cpu
    }

    fn cpus(&self) -> usize {
        2
    }
}
