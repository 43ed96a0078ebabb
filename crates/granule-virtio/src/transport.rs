//! A transport whose device uses the IOMMU: acknowledges ACCESS_PLATFORM for drivers that do not.

use virtio_drivers::PhysAddr;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM (virtio 1.2, 6).
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;

/// The device does not offer to use the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device (features {features:#x}) does not offer ACCESS_PLATFORM: it takes addresses for \
     physical ones. With QEMU: iommu_platform=on,disable-legacy=on"
)]
pub struct NotOffered {
    /// What it offers.
    pub features: u64,
}

/// A transport that acknowledges ACCESS_PLATFORM besides what its driver asks for.
#[derive(Debug)]
pub struct AccessPlatform<T: Transport> {
    inner: T,
}

impl<T: Transport> AccessPlatform<T> {
    /// Wraps a transport.
    ///
    /// # Errors
    /// [`NotOffered`].
    pub fn new(mut inner: T) -> Result<Self, NotOffered> {
        let features = inner.read_device_features();
        match features & ACCESS_PLATFORM {
            0 => Err(NotOffered { features }),
            _ => Ok(Self { inner }),
        }
    }
}

impl<T: Transport> Transport for AccessPlatform<T> {
    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        // ACCESS_PLATFORM is one of version 1's.
        let ours = self.inner.read_device_features() & (VERSION_1 | ACCESS_PLATFORM);
        self.inner.write_driver_features(driver_features | ours);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.inner.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.inner.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.inner.queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> bool {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<V: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<V> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<V: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: V,
    ) -> virtio_drivers::Result<()> {
        self.inner.write_config_space(offset, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that offers some features and remembers what was acknowledged.
    #[derive(Debug)]
    struct Fake {
        offered: u64,
        acknowledged: u64,
    }

    impl Transport for Fake {
        fn device_type(&self) -> DeviceType {
            DeviceType::Block
        }
        fn read_device_features(&mut self) -> u64 {
            self.offered
        }
        fn write_driver_features(&mut self, driver_features: u64) {
            self.acknowledged = driver_features;
        }
        fn max_queue_size(&mut self, _: u16) -> u32 {
            0
        }
        fn notify(&mut self, _: u16) {}
        fn get_status(&self) -> DeviceStatus {
            DeviceStatus::empty()
        }
        fn set_status(&mut self, _: DeviceStatus) {}
        fn set_guest_page_size(&mut self, _: u32) {}
        fn requires_legacy_layout(&self) -> bool {
            false
        }
        fn queue_set(&mut self, _: u16, _: u32, _: PhysAddr, _: PhysAddr, _: PhysAddr) {}
        fn queue_unset(&mut self, _: u16) {}
        fn queue_used(&mut self, _: u16) -> bool {
            false
        }
        fn ack_interrupt(&mut self) -> bool {
            false
        }
        fn read_config_generation(&self) -> u32 {
            0
        }
        fn read_config_space<V: FromBytes + IntoBytes>(
            &self,
            _: usize,
        ) -> virtio_drivers::Result<V> {
            Err(virtio_drivers::Error::ConfigSpaceMissing)
        }
        fn write_config_space<V: IntoBytes + Immutable>(
            &mut self,
            _: usize,
            _: V,
        ) -> virtio_drivers::Result<()> {
            Err(virtio_drivers::Error::ConfigSpaceMissing)
        }
    }

    #[test]
    fn access_platform_is_acknowledged_and_nothing_that_is_not_offered() {
        let offered = ACCESS_PLATFORM | VERSION_1 | 0b1011;
        let mut transport =
            AccessPlatform::new(Fake { offered, acknowledged: 0 }).expect("offered");
        transport.write_driver_features(0b0010);
        assert_eq!(transport.inner.acknowledged, ACCESS_PLATFORM | VERSION_1 | 0b0010);
    }

    #[test]
    fn a_device_that_takes_addresses_for_physical_ones_is_refused() {
        let refused = AccessPlatform::new(Fake { offered: VERSION_1, acknowledged: 0 }).err();
        assert_eq!(refused, Some(NotOffered { features: VERSION_1 }));
    }
}
