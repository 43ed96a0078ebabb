//! Another device's registers or doorbell, as a device's DMA target (`dma_map_resource`).

use core::mem::ManuallyDrop;

use super::ops::Live;
use super::{Device, DeviceRef, DmaError};
use crate::addr::{Access, DmaAddr, PhysRange};
use crate::domain::UnmapError;

/// Registers that a device reaches by DMA, until this is dropped.
pub struct ResourceMapping<D: DeviceRef> {
    device: ManuallyDrop<D>,
    live: Live,
}

impl Device {
    /// Lets the device reach another device's registers.
    ///
    /// # Errors
    /// [`DmaError::Resource`] for an untrusted device unless the registers fill whole granules:
    /// registers cannot be bounced. [`DmaError::Unreachable`] for a direct device whose bus does not
    /// reach them.
    ///
    /// # Safety
    /// `range` is registers, no memory, that this device may access as `access` says whenever it
    /// likes while the mapping lives.
    pub unsafe fn map_resource(
        &self,
        range: PhysRange,
        access: Access,
    ) -> Result<ResourceMapping<&Self>, DmaError> {
        // SAFETY: the caller's promise.
        unsafe { ResourceMapping::new(self, range, access) }
    }
}

impl<D: DeviceRef> ResourceMapping<D> {
    /// Lets a device reach another device's registers.
    ///
    /// # Errors
    /// As [`Device::map_resource`].
    ///
    /// # Safety
    /// As [`Device::map_resource`].
    pub unsafe fn new(device: D, range: PhysRange, access: Access) -> Result<Self, DmaError> {
        // SAFETY: the caller's promise.
        let live = unsafe { device.device().ops().map_resource(range, access) }?;
        Ok(Self { device: ManuallyDrop::new(device), live })
    }

    /// The address that the device is programmed with.
    pub fn address(&self) -> DmaAddr {
        self.live.dma
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.live.len
    }

    /// Takes the registers away from the device.
    ///
    /// # Errors
    /// [`UnmapError`] if the hardware did not confirm: the device may still reach them.
    pub fn unmap(self) -> Result<(), UnmapError> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again; its parts end once, here.
        unsafe {
            let device = ManuallyDrop::take(&mut this.device);
            device.device().ops().end(&this.live)
        }
    }
}

impl<D: DeviceRef> Drop for ResourceMapping<D> {
    fn drop(&mut self) {
        // SAFETY: the mapping ends once. Registers are not freed: nothing to leak.
        unsafe {
            let _ = self.device.device().ops().end(&self.live);
            ManuallyDrop::drop(&mut self.device);
        }
    }
}
