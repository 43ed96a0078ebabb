//! Machines for the drivers' tests.

use std::time::Duration;

use granule::addr::{Access, Attributes, Direction, DmaAddr, Iova, IovaRange, PhysAddr, PhysRange};
use granule::domain::Translation;
use granule::mem::{FrameError, FrameRequest, OwnedFrames, Platform};
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

/// The same with caches that no device snoops: what was not cleaned does not reach RAM, and what a
/// device wrote is not seen before the lines are dropped.
pub(crate) fn without_snooping() -> Machine {
    Machine::builder().ram(ram()).with_cache().build().expect("a machine")
}

/// Memory that a device may read and write.
pub(crate) const RW: Attributes = Attributes::memory(Access::READ.union(Access::WRITE));

/// `len` bytes of IOVA space.
pub(crate) fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), len).expect("a range")
}

/// Maps memory that outlives the table.
pub(crate) fn map(table: &impl Translation, at: u64, phys: PhysRange, attrs: Attributes) {
    // SAFETY: the memory outlives the mapping, which nobody else makes.
    unsafe { table.map(Iova::new(at), phys, attrs) }.expect("mapped");
}

/// Frames of `size` bytes aligned to `align`, filled with a pattern that devices see.
pub(crate) fn filled(
    machine: &Machine,
    size: u64,
    align: u64,
    fill: u8,
) -> OwnedFrames<SimPlatform> {
    let platform = machine.platform();
    let frames = OwnedFrames::new(platform, &FrameRequest::new(size, align)).expect("memory");
    machine.ram().write(frames.start(), &std::vec![fill; size as usize]).expect("RAM");
    platform.sync_for_device(frames.range(), Direction::Bidirectional);
    frames
}

/// The byte that a device of the machine reads, unless its access faults.
pub(crate) fn byte_read_by(machine: &Machine, device: &str, address: u64) -> Option<u8> {
    let mut byte = [0];
    let device = machine.device(device).expect("as built");
    device.read(DmaAddr::new(address), &mut byte).ok().map(|()| byte[0])
}

/// Whether a device of the machine can write.
pub(crate) fn written_by(machine: &Machine, device: &str, address: u64, data: &[u8]) -> bool {
    let device = machine.device(device).expect("as built");
    device.write(DmaAddr::new(address), data).is_ok()
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

/// Registers of these widths are what a model does not have: whoever touches one fails the test.
macro_rules! no_registers_of {
    ($($bits:tt)*) => { $(crate::testing::no_registers!($bits);)* };
}
macro_rules! no_registers {
    (8) => {
        crate::testing::no_registers!(u8, read8, write8);
    };
    (16) => {
        crate::testing::no_registers!(u16, read16, write16);
    };
    (32) => {
        crate::testing::no_registers!(u32, read32, write32);
    };
    (64) => {
        crate::testing::no_registers!(u64, read64, write64);
    };
    ($word:ty, $read:ident, $write:ident) => {
        fn $read(&self, offset: usize) -> $word {
            panic!("{} at {offset:#x}", stringify!($read))
        }

        fn $write(&self, offset: usize, value: $word) {
            panic!("{} of {value:#x} at {offset:#x}", stringify!($write))
        }
    };
}
pub(crate) use {no_registers, no_registers_of};
