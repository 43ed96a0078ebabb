//! A bus's view of memory: `dma-ranges`.

use crate::addr::{DmaAddr, PhysAddr, PhysRange, RangeError};

/// A stretch of physical memory and where a bus sees it (one entry of `dma-ranges`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusWindow {
    /// The DMA address of the first byte.
    pub bus: DmaAddr,
    /// The memory.
    pub memory: PhysRange,
}

impl BusWindow {
    /// A window in which every address means itself.
    pub fn identity(memory: PhysRange) -> Self {
        Self { bus: DmaAddr::new(memory.start().raw()), memory }
    }

    /// A window of `len` bytes of memory from `phys`, seen from `bus` on.
    ///
    /// # Errors
    /// [`RangeError`] if either side is empty or passes 2^64.
    pub fn new(bus: DmaAddr, phys: PhysAddr, len: u64) -> Result<Self, RangeError> {
        crate::addr::DmaRange::new(bus, len)?;
        Ok(Self { bus, memory: PhysRange::new(phys, len)? })
    }

    /// The DMA address of `phys`, if all of it lies in the window and below `mask`, and is not 0.
    #[inline]
    pub fn translate(&self, phys: PhysRange, mask: u64) -> Option<DmaAddr> {
        if !self.memory.contains_range(&phys) {
            return None;
        }
        let dma = self.bus.raw().checked_add(phys.start().raw() - self.memory.start().raw())?;
        let last = dma.checked_add(phys.len() - 1)?;
        if last > mask || dma == 0 { None } else { Some(DmaAddr::new(dma)) }
    }

    /// The memory of the window that a device with this mask reaches.
    pub fn below(&self, mask: u64) -> Option<PhysRange> {
        let most = mask.checked_sub(self.bus.raw())?.saturating_add(1);
        self.memory.slice(0, self.memory.len().min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(bus: u64, phys: u64, len: u64) -> BusWindow {
        BusWindow::new(DmaAddr::new(bus), PhysAddr::new(phys), len).expect("a legal window")
    }

    fn memory(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    #[test]
    fn the_offset_is_applied_and_the_mask_holds() {
        let window = window(0xc000_0000, 0, 0x4000_0000);
        assert_eq!(
            window.translate(memory(0x1000, 0x1000), u64::MAX),
            Some(DmaAddr::new(0xc000_1000))
        );
        assert_eq!(window.translate(memory(0x3fff_f000, 0x1001), u64::MAX), None);
        assert_eq!(window.translate(memory(0x1000, 0x1000), 0xc000_1ffe), None);
        assert_eq!(window.below(0xc000_0fff), Some(memory(0, 0x1000)));
        assert_eq!(window.below(0xbfff_ffff), None);
    }

    #[test]
    fn address_zero_is_out_of_reach() {
        let window = window(0, 0x8000_0000, 0x1000_0000);
        assert_eq!(window.translate(memory(0x8000_0000, 16), u64::MAX), None);
        assert_eq!(window.translate(memory(0x8000_0010, 16), u64::MAX), Some(DmaAddr::new(16)));
    }
}
