//! Memory that the driver and its unit share: queues, logs, device tables.
//!
//! All unsafe access to such memory is here. Reads and writes are bounds-checked single accesses of
//! their natural width, so that the unit never sees half of one; nothing makes a reference to memory
//! that a unit writes.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use granule::addr::{Direction, PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, OwnedFrames, Platform};

use crate::HwError;

/// What a block is allocated for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockRequest<'a> {
    /// The unit, for the error.
    pub(crate) unit: &'a str,
    /// What the memory is for, for the error.
    pub(crate) what: &'static str,
    /// At least so many bytes.
    pub(crate) size: u64,
    /// Aligned to at least this power of two.
    pub(crate) align: u64,
    /// Below this power of two: the unit's address width.
    pub(crate) address_bits: u32,
    /// Whether the unit's accesses to it snoop the CPU's caches.
    pub(crate) snooped: bool,
}

/// Zeroed, physically contiguous memory that a unit reads and writes.
///
/// Whoever drops it has stopped the unit from using it.
pub(crate) struct Block<P: Platform> {
    frames: OwnedFrames<P>,
    platform: P,
    snooped: bool,
}

macro_rules! accessors {
    ($read:ident, $write:ident, $type:ty, $atomic:ty) => {
        /// Reads at `offset`, which is aligned; zero beyond the end.
        pub(crate) fn $read(&self, offset: usize) -> $type {
            match self.cell::<$type>(offset) {
                // SAFETY: inside live frames and aligned, by `cell`; every access is atomic.
                Some(at) => unsafe { <$atomic>::from_ptr(at) }.load(Ordering::Acquire),
                None => 0,
            }
        }

        /// Writes at `offset`, which is aligned; nothing beyond the end.
        #[allow(dead_code)] // Not every width is written by somebody.
        pub(crate) fn $write(&self, offset: usize, value: $type) {
            if let Some(at) = self.cell::<$type>(offset) {
                // SAFETY: as above.
                unsafe { <$atomic>::from_ptr(at) }.store(value, Ordering::Release);
            }
        }
    };
}

impl<P: Platform> Block<P> {
    pub(crate) fn new(platform: &P, request: &BlockRequest<'_>) -> Result<Self, HwError> {
        let failed = HwError::no_memory(request.unit, request.what);
        let (size, align, bits) = (request.size, request.align, request.address_bits);
        Self::zeroed(platform, size, align, bits, request.snooped).map_err(failed)
    }

    /// As [`new`](Self::new), for whoever words the error.
    pub(crate) fn zeroed(
        platform: &P,
        size: u64,
        align: u64,
        address_bits: u32,
        snooped: bool,
    ) -> Result<Self, FrameError> {
        let page = platform.cpu_page();
        let size = page.round_up(size.max(1)).ok_or(FrameError::Unsupported)?;
        let limit = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX);
        let window = PhysRange::new(PhysAddr::new(0), limit).ok();
        let request = FrameRequest::new(size, align.max(page.size())).within(window);
        let frames = OwnedFrames::zeroed(platform, &request)?;
        let block = Self { frames, platform: platform.clone(), snooped };
        block.publish(0, block.len());
        Ok(block)
    }

    /// The physical address.
    pub(crate) fn phys(&self) -> u64 {
        self.frames.start().raw()
    }

    /// The size in bytes: whole CPU pages.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.frames.range().len()).unwrap_or(0)
    }

    fn cell<T>(&self, offset: usize) -> Option<*mut T> {
        let size = size_of::<T>();
        let inside = offset % size == 0 && offset.checked_add(size)? <= self.len();
        // SAFETY: inside the frames, which `ptr` is valid for.
        inside.then(|| unsafe { self.frames.ptr().add(offset) }.cast())
    }

    accessors!(read8, write8, u8, AtomicU8);
    accessors!(read16, write16, u16, AtomicU16);
    accessors!(read32, write32, u32, AtomicU32);
    accessors!(read64, write64, u64, AtomicU64);

    /// Makes what was written to a part visible to the unit, before what is written later.
    pub(crate) fn publish(&self, offset: usize, len: usize) {
        if !self.snooped {
            if let Some(part) = self.part(offset, len) {
                self.platform.sync_for_device(part, Direction::Bidirectional);
            }
        }
        self.platform.barrier();
    }

    /// Makes what the unit wrote to a part visible here.
    pub(crate) fn refresh(&self, offset: usize, len: usize) {
        if !self.snooped {
            if let Some(part) = self.part(offset, len) {
                self.platform.sync_for_cpu(part, Direction::FromDevice);
            }
        }
    }

    /// Zeroes all of it.
    pub(crate) fn clear(&self) {
        for offset in (0..self.len()).step_by(8) {
            self.write64(offset, 0);
        }
        self.publish(0, self.len());
    }

    /// Gives the memory up for ever: the unit could not be stopped.
    pub(crate) fn leak(self) {
        let _ = self.frames.into_raw();
    }

    fn part(&self, offset: usize, len: usize) -> Option<PhysRange> {
        self.frames.range().slice(u64::try_from(offset).ok()?, u64::try_from(len).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn accesses_stay_inside() {
        let machine = machine();
        let request = BlockRequest {
            unit: "unit",
            what: "a test",
            size: 5000,
            align: 1 << 14,
            address_bits: 40,
            snooped: true,
        };
        let block = Block::new(machine.platform(), &request).expect("memory");
        assert_eq!((block.len(), block.phys() % (1 << 14)), (8192, 0));
        block.write64(8184, 0x8877_6655_4433_2211);
        assert_eq!(block.read32(8188), 0x8877_6655);
        assert_eq!((block.read16(8184), block.read8(8191)), (0x2211, 0x88));
        for offset in [8192, 8185, usize::MAX] {
            block.write64(offset, 1);
            assert_eq!(block.read64(offset), 0);
        }
        block.clear();
        assert_eq!(block.read64(8184), 0);
        let low = BlockRequest { address_bits: 20, ..request };
        assert!(matches!(
            Block::new(machine.platform(), &low).err(),
            Some(HwError::Memory { what: "a test", .. })
        ));
    }
}
