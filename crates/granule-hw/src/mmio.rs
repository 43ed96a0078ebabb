//! Registers: read and written by offset, through one trait, so that models can stand in for them.
//!
//! [`Mmio`] is the real thing. Its accesses are those of `safe-mmio`, which never makes a reference to
//! device memory and, on AArch64, uses only instructions that a hypervisor can emulate.

use core::ptr::NonNull;

use safe_mmio::UniqueMmioPointer;
use safe_mmio::fields::ReadPureWrite;

/// A block of registers, little-endian, by byte offset.
///
/// An access must be naturally aligned and inside the block; [`Mmio`] reads all ones and drops the
/// write otherwise, as a bus does where nothing answers. Drivers check [`len`](Self::len) once.
pub trait Registers: Send + Sync + 'static {
    /// The size of the block in bytes.
    fn len(&self) -> usize;
    /// Whether the block has no registers.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);
    /// Reads 64 bits in one access.
    fn read64(&self, offset: usize) -> u64;
    /// Writes 64 bits in one access.
    fn write64(&self, offset: usize, value: u64);
    /// Reads 8 bits.
    fn read8(&self, offset: usize) -> u8;
    /// Writes 8 bits.
    fn write8(&self, offset: usize, value: u8);
    /// Reads 16 bits.
    fn read16(&self, offset: usize) -> u16;
    /// Writes 16 bits.
    fn write16(&self, offset: usize, value: u16);
}

/// Memory-mapped registers.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: every access is one volatile load or store of device memory, which any CPU may make; who
// may write what when is the drivers' business, which lock where order matters.
unsafe impl Send for Mmio {}
// SAFETY: as above.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// Registers of `len` bytes at `base`. A null `base` has none.
    ///
    /// # Safety
    /// `base` is mapped as device memory (uncached) for `len` bytes for as long as the result and
    /// the driver made of it live, is aligned to 8 bytes, and no other code drives the device.
    pub unsafe fn new(base: *mut u8, len: usize) -> Self {
        match NonNull::new(base) {
            Some(base) => Self { base, len },
            None => Self { base: NonNull::dangling(), len: 0 },
        }
    }

    /// The register at `offset`, if it lies inside and is aligned.
    #[inline]
    fn at<T>(&self, offset: usize) -> Option<UniqueMmioPointer<'_, ReadPureWrite<T>>> {
        let size = size_of::<T>();
        let inside = offset & (size - 1) == 0 && offset.checked_add(size)? <= self.len;
        if !inside {
            return None;
        }
        // SAFETY: inside the block, by the check above.
        let register = unsafe { self.base.add(offset) }.cast();
        // SAFETY: a mapped, aligned register (the constructor's contract); the pointer lives for
        // one access, which is volatile, and nothing here ever makes a reference to it.
        Some(unsafe { UniqueMmioPointer::new(register) })
    }
}

impl Registers for Mmio {
    fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn read8(&self, offset: usize) -> u8 {
        self.at::<u8>(offset).map_or(u8::MAX, |register| register.read())
    }

    #[inline]
    fn write8(&self, offset: usize, value: u8) {
        if let Some(mut register) = self.at::<u8>(offset) {
            register.write(value);
        }
    }

    #[inline]
    fn read16(&self, offset: usize) -> u16 {
        self.at::<u16>(offset).map_or(u16::MAX, |register| register.read())
    }

    #[inline]
    fn write16(&self, offset: usize, value: u16) {
        if let Some(mut register) = self.at::<u16>(offset) {
            register.write(value);
        }
    }

    #[inline]
    fn read32(&self, offset: usize) -> u32 {
        self.at::<u32>(offset).map_or(u32::MAX, |register| register.read())
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        if let Some(mut register) = self.at::<u32>(offset) {
            register.write(value);
        }
    }

    #[inline]
    fn read64(&self, offset: usize) -> u64 {
        self.at::<u64>(offset).map_or(u64::MAX, |register| register.read())
    }

    #[inline]
    fn write64(&self, offset: usize, value: u64) {
        if let Some(mut register) = self.at::<u64>(offset) {
            register.write(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_inside_and_aligned_is_touched() {
        let mut block = [0x1111_1111_1111_1111u64, 0x8877_6655_4433_2211, 0x3333_3333_3333_3333];
        // SAFETY: 8 bytes in the middle of an array that outlives the value.
        let mmio = unsafe { Mmio::new(block.as_mut_ptr().add(1).cast(), 8) };
        assert_eq!(mmio.read64(0), 0x8877_6655_4433_2211);
        assert_eq!(mmio.read32(4), 0x8877_6655);
        assert_eq!(mmio.read16(2), 0x4433);
        assert_eq!(mmio.read8(7), 0x88);
        mmio.write32(0, 5);
        mmio.write8(7, 9);
        assert_eq!(mmio.read64(0), 0x0977_6655_0000_0005);
        for offset in [1, 8, 4096, usize::MAX - 3, usize::MAX] {
            mmio.write64(offset, 0);
            assert_eq!(mmio.read64(offset), u64::MAX);
        }
        assert_eq!((mmio.read32(2), mmio.read16(7), mmio.read8(8)), (u32::MAX, u16::MAX, u8::MAX));
        assert_eq!(block[0], 0x1111_1111_1111_1111);
        assert_eq!(block[2], 0x3333_3333_3333_3333);
        // SAFETY: no registers at all.
        let none = unsafe { Mmio::new(core::ptr::null_mut(), 100) };
        assert!(none.is_empty());
        assert_eq!(none.read32(0), u32::MAX);
    }
}
