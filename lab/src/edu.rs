//! QEMU's `edu` device: a PCI function that copies between memory and 4 KiB of its own.
//! (QEMU's docs/specs/edu.rst.)
//!
//! Only its own copies reach the 4 KiB: what a device has read is seen by letting it write it to
//! memory elsewhere. A read that the IOMMU blocks leaves zeroes in them.

use granule::addr::DmaAddr;

use crate::pci::Function;

/// Vendor and device.
pub(crate) const ID: (u16, u16) = (0x1234, 0x11e8);

/// How much it holds, in bytes.
pub(crate) const CAPACITY: usize = 4096;

/// Where its memory lies in its own addresses.
const MEMORY: u64 = 0x4_0000;

/// Registers: source and destination address, length, command.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const LENGTH: usize = 0x90;
const COMMAND: usize = 0x98;

/// The command: run (cleared when done), and from its own memory out.
const RUN: u64 = 1;
const OUT: u64 = 2;

/// One such device, with bus mastering on.
pub(crate) struct Edu {
    registers: u64,
    /// Its requester id.
    pub rid: u16,
}

impl Edu {
    /// The device of this function.
    pub(crate) fn new(function: &Function) -> Option<Self> {
        let registers = function.bar(0)?;
        function.enable();
        Some(Self { registers, rid: function.rid })
    }

    /// Reads `len` bytes at `from` into its memory, at `offset`.
    pub(crate) fn read(&self, from: DmaAddr, offset: usize, len: usize) {
        self.transfer(from.raw(), MEMORY + offset as u64, (offset, len), 0);
    }

    /// Writes `len` bytes of its memory, from `offset` on, to `to`.
    pub(crate) fn write(&self, to: DmaAddr, offset: usize, len: usize) {
        self.transfer(MEMORY + offset as u64, to.raw(), (offset, len), OUT);
    }

    fn transfer(&self, from: u64, to: u64, (offset, len): (usize, usize), direction: u64) {
        // Beyond its memory the emulator would end.
        assert!(offset < CAPACITY && len <= CAPACITY - offset, "no such part of edu's memory");
        self.put(SOURCE, from);
        self.put(DESTINATION, to);
        self.put(LENGTH, len as u64);
        // What the CPU wrote must be in memory before the device is told to look.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.put(COMMAND, RUN | direction);
        while self.get(COMMAND) & RUN != 0 {
            // A transfer takes a tenth of a virtual second, and looking at the device is what costs
            // real time.
            (0..1000).for_each(|_| core::hint::black_box(()));
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    fn register(&self, offset: usize) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut(self.registers as usize + offset)
    }

    fn put(&self, offset: usize, value: u64) {
        // SAFETY: a register of the device, mapped one to one. What it makes the device do is what
        // the IOMMU is there for; the scenario owns all memory that it lets the device reach.
        unsafe { self.register(offset).write_volatile(value) };
    }

    fn get(&self, offset: usize) -> u64 {
        // SAFETY: as above; reading changes nothing.
        unsafe { self.register(offset).read_volatile() }
    }
}
