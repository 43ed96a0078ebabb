//! A platform for this layer's tests: no memory, a lock, and as many CPUs as asked for.

use core::cell::Cell;

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
