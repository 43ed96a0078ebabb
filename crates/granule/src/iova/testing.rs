//! A platform for this layer's tests: no memory, a lock, and as many CPUs as asked for.

use core::cell::Cell;

use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicBool, Ordering};

use crate::addr::{PhysAddr, PhysRange};
use crate::mem::{FrameError, FrameRequest, Platform, SpinLock};

std::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Says on which CPU this thread claims to run.
pub(super) fn run_on(cpu: usize) {
    CPU.with(|cell| cell.set(cpu));
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
