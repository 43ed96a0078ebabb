//! Machines for the drivers' tests.

use std::time::Duration;

use granule::addr::{Direction, PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, Platform};
use granule_sim::machine::Machine;
use granule_sim::platform::SimPlatform;

/// 64 MiB of RAM from 256 MiB on, and a clock that moves by a microsecond a turn.
pub(crate) fn machine() -> Machine {
    let ram = PhysRange::new(PhysAddr::new(0x1000_0000), 64 << 20).expect("a range");
    Machine::builder().ram(ram).build().expect("a machine")
}

/// The same with caches that no device snoops: what was not cleaned does not reach RAM, and what a
/// device wrote is not seen before the lines are dropped.
pub(crate) fn without_snooping() -> Machine {
    let ram = PhysRange::new(PhysAddr::new(0x1000_0000), 64 << 20).expect("a range");
    Machine::builder().ram(ram).with_cache().build().expect("a machine")
}

/// A simulated platform whose clock stands still, or moves by a millisecond a turn so that time-outs
/// come soon.
#[derive(Clone)]
pub(crate) struct Clocked {
    inner: SimPlatform,
    still: bool,
}

impl Clocked {
    pub(crate) fn still(machine: &Machine) -> Self {
        Self { inner: machine.platform().clone(), still: true }
    }

    pub(crate) fn hasty(machine: &Machine) -> Self {
        Self { inner: machine.platform().clone(), still: false }
    }
}

// SAFETY: everything that memory safety rests on is the inner platform's.
unsafe impl Platform for Clocked {
    type Lock = <SimPlatform as Platform>::Lock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        self.inner.alloc_frames(request)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.free_frames(frames) };
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.inner.ptr(phys)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        self.inner.phys(ptr, len)
    }

    fn sync_for_device(&self, range: PhysRange, direction: Direction) {
        self.inner.sync_for_device(range, direction);
    }

    fn sync_for_cpu(&self, range: PhysRange, direction: Direction) {
        self.inner.sync_for_cpu(range, direction);
    }

    fn now(&self) -> u64 {
        if self.still { 0 } else { self.inner.now() }
    }

    fn relax(&self) {
        self.inner.clock().pass(Duration::from_millis(1));
    }
}
