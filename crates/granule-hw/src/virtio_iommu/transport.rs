//! What the driver needs of a virtio transport, and no more.
//!
//! The transport of the crate `virtio-drivers` (0.11, for Rust 1.85) needs `&mut self` for a
//! notification and its queues a stateless allocator (`Hal` has no `self`) and unbounded waits, none
//! of which fits a driver that many CPUs share. A wrapper around it is a few lines.

/// Where the three parts of a split virtqueue lie, as physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// What the driver writes: the available ring.
    pub driver: u64,
    /// What the device writes: the used ring.
    pub device: u64,
}

/// The transport of a virtio device, version 1 (virtio 1.2, chapter 4).
///
/// [`notify`](Self::notify) may be called from several CPUs at once; everything else is called by
/// one at a time.
pub trait VirtioTransport: Send + Sync + 'static {
    /// The virtio device id: 23 for an IOMMU.
    fn device_type(&self) -> u16;
    /// The device's status.
    fn status(&self) -> u8;
    /// Sets the status; 0 resets the device.
    fn set_status(&self, status: u8);
    /// What the device offers.
    fn device_features(&self) -> u64;
    /// What the driver takes of it.
    fn set_driver_features(&self, features: u64);
    /// The most entries that a queue can have; 0 if there is no such queue.
    fn max_queue_size(&self, queue: u16) -> u16;
    /// Sets a queue up and enables it.
    fn set_queue(&self, queue: u16, size: u16, addresses: QueueAddresses);
    /// Tells the device that there is something in a queue.
    fn notify(&self, queue: u16);
    /// Changes when the configuration changed between two reads.
    fn config_generation(&self) -> u8;
    /// Reads 32 bits of the device's configuration.
    fn config32(&self, offset: usize) -> u32;
    /// Writes 8 bits of the device's configuration.
    fn write_config8(&self, offset: usize, value: u8);
}

/// Bits of the status (virtio 1.2, 2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The features are agreed upon.
    pub const FEATURES_OK: u8 = 8;
    /// The device has met an error that it cannot recover from.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}
