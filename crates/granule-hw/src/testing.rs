//! Machines for the drivers' tests.

use granule::addr::{PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, Platform};
use granule_sim::machine::Machine;
use granule_sim::platform::SimPlatform;

/// 64 MiB of RAM from 256 MiB on, and a clock that moves by a microsecond a turn.
pub(crate) fn machine() -> Machine {
    Machine::builder().ram(ram()).build().expect("a machine")
}

/// The RAM of [`machine`].
pub(crate) fn ram() -> PhysRange {
    PhysRange::new(PhysAddr::new(0x1000_0000), 64 << 20).expect("a range")
}

/// The same platform without a clock.
#[derive(Clone)]
pub(crate) struct Still(pub(crate) SimPlatform);

// SAFETY: everything that memory safety rests on is the inner platform's.
unsafe impl Platform for Still {
    type Lock = <SimPlatform as Platform>::Lock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        self.0.alloc_frames(request)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free_frames(frames) };
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.0.ptr(phys)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        self.0.phys(ptr, len)
    }
}
