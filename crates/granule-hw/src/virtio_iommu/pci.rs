//! Virtio over PCI, version 1 ("modern"): virtio 1.2, section 4.1.
//!
//! The transport finds the device's structures by the vendor capabilities in its configuration space
//! and then drives them through BARs that the caller has mapped.
//!
//! | structure | type | used |
//! | --- | --- | --- |
//! | common configuration | 1 | status, features, queues |
//! | notifications | 2 | one address a queue |
//! | interrupt status | 3 | not: events are polled |
//! | device configuration | 4 | page sizes and so on |

use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::transport::{QueueAddresses, VirtioTransport};
use crate::HwError;
use crate::mmio::Registers;

/// Access to the configuration space of one PCI function, by aligned byte offset.
pub trait PciConfig {
    /// Reads 32 bits.
    fn read32(&self, offset: u16) -> u32;
    /// Writes 32 bits.
    fn write32(&self, offset: u16, value: u32);
}

/// The PCI vendor of virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// The PCI device id of a virtio device is its virtio id plus this.
pub const DEVICE_BASE: u16 = 0x1040;

const STATUS_COMMAND: u16 = 4;
const CAPABILITIES_LIST: u32 = 1 << 20;
const MEMORY_SPACE: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
const VENDOR_CAPABILITY: u8 = 9;
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;

/// Offsets in the common configuration (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const STATUS: usize = 20;
    pub(super) const GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: usize = 32;
    pub(super) const QUEUE_DRIVER: usize = 40;
    pub(super) const QUEUE_DEVICE: usize = 48;
    pub(super) const LEN: u32 = 56;
}

/// Where a structure lies: part of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// The BAR's number, 0 to 5.
    pub bar: u8,
    /// The offset inside it.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// The structures of one device, as its capabilities name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structures {
    /// The virtio device id.
    pub device_type: u16,
    /// The common configuration.
    pub common: Structure,
    /// Notifications.
    pub notify: Structure,
    /// What a queue's notification offset is multiplied with.
    pub notify_multiplier: u32,
    /// The device's own configuration.
    pub device: Structure,
}

impl Structures {
    /// Reads them.
    ///
    /// # Errors
    /// [`HwError::Missing`] if the function is no virtio device of version 1, or lacks one.
    pub fn find(function: &impl PciConfig, name: &str) -> Result<Self, HwError> {
        let id = function.read32(0);
        let missing = |what| HwError::Missing { unit: name.to_string(), what, value: id.into() };
        let device = (id >> 16) as u16;
        if id as u16 != VENDOR || !(DEVICE_BASE..DEVICE_BASE + 64).contains(&device) {
            return Err(missing("the PCI id of a virtio 1 device"));
        }
        let (mut common, mut notify, mut config) = (None, None, None);
        for at in capabilities(function) {
            let head = function.read32(at);
            let place = Structure {
                bar: function.read32(at + 4) as u8,
                offset: function.read32(at + 8),
                len: function.read32(at + 12),
            };
            // The device lists what it prefers first.
            match (head >> 24) as u8 {
                _ if place.bar > 5 => {}
                COMMON => common = common.or(Some(place)),
                NOTIFY => notify = notify.or(Some((place, function.read32(at + 16)))),
                DEVICE => config = config.or(Some(place)),
                _ => {}
            }
        }
        let common = common.filter(|place| place.len >= common::LEN);
        let (notify, notify_multiplier) =
            notify.ok_or_else(|| missing("the capability of notifications"))?;
        Ok(Self {
            device_type: device - DEVICE_BASE,
            common: common.ok_or_else(|| missing("the capability of common configuration"))?,
            notify,
            notify_multiplier,
            device: config.ok_or_else(|| missing("the capability of device configuration"))?,
        })
    }
}

/// The places of all vendor capabilities; a list that runs in a circle ends.
fn capabilities(function: &impl PciConfig) -> Vec<u16> {
    let mut found = Vec::new();
    if function.read32(STATUS_COMMAND) & CAPABILITIES_LIST == 0 {
        return found;
    }
    let mut at = (function.read32(0x34) & 0xfc) as u16;
    // There is room for 48 capabilities behind the header.
    for _ in 0..48 {
        if at < 0x40 {
            break;
        }
        let head = function.read32(at);
        // The last structure read ends 20 bytes on.
        if head as u8 == VENDOR_CAPABILITY && at <= 0x100 - 20 {
            found.push(at);
        }
        at = (head >> 8) as u16 & 0xfc;
    }
    found
}

/// The transport of a virtio device over PCI.
pub struct VirtioPci<R: Registers> {
    structures: Structures,
    common: R,
    notify: R,
    device: R,
    /// The notification offset of each queue plus one; 0 until it is set up. Read then, since the
    /// register that selects a queue is shared.
    doorbells: [AtomicUsize; QUEUES],
}

/// The queues that can be notified: an IOMMU has two.
const QUEUES: usize = 4;

impl<R: Registers> VirtioPci<R> {
    /// Finds the structures of `function`, turns on its memory space and bus mastering, and takes
    /// the registers of each structure from `map`, which the caller has made of the BARs.
    ///
    /// # Errors
    /// [`HwError::Missing`] as [`Structures::find`]; [`HwError::Registers`] if `map` gave less than
    /// was asked for, or nothing.
    pub fn new(
        function: &impl PciConfig,
        name: &str,
        mut map: impl FnMut(Structure) -> Option<R>,
    ) -> Result<Self, HwError> {
        let structures = Structures::find(function, name)?;
        let mut take = |place: Structure| {
            let registers = map(place);
            let (len, need) = (registers.as_ref().map_or(0, R::len), place.len as usize);
            let registers = registers.filter(|_| len >= need);
            registers.ok_or(HwError::Registers { unit: name.to_string(), len, need })
        };
        let common = take(structures.common)?;
        let notify = take(structures.notify)?;
        let device = take(structures.device)?;
        // The upper half is the status, whose bits are cleared by writing ones.
        let command = function.read32(STATUS_COMMAND) & 0xffff;
        function.write32(STATUS_COMMAND, command | MEMORY_SPACE | BUS_MASTER);
        Ok(Self { structures, common, notify, device, doorbells: Default::default() })
    }

    /// Two writes: devices need not take 64 bits at once (4.1.3.1).
    fn write_address(&self, offset: usize, value: u64) {
        self.common.write32(offset, value as u32);
        self.common.write32(offset + 4, (value >> 32) as u32);
    }
}

impl<R: Registers> VirtioTransport for VirtioPci<R> {
    fn device_type(&self) -> u16 {
        self.structures.device_type
    }

    fn status(&self) -> u8 {
        self.common.read8(common::STATUS)
    }

    fn set_status(&self, status: u8) {
        self.common.write8(common::STATUS, status);
    }

    fn device_features(&self) -> u64 {
        self.common.write32(common::DEVICE_FEATURE_SELECT, 0);
        let low = self.common.read32(common::DEVICE_FEATURE);
        self.common.write32(common::DEVICE_FEATURE_SELECT, 1);
        u64::from(low) | u64::from(self.common.read32(common::DEVICE_FEATURE)) << 32
    }

    fn set_driver_features(&self, features: u64) {
        self.common.write32(common::DRIVER_FEATURE_SELECT, 0);
        self.common.write32(common::DRIVER_FEATURE, features as u32);
        self.common.write32(common::DRIVER_FEATURE_SELECT, 1);
        self.common.write32(common::DRIVER_FEATURE, (features >> 32) as u32);
    }

    fn max_queue_size(&self, queue: u16) -> u16 {
        self.common.write16(common::QUEUE_SELECT, queue);
        self.common.read16(common::QUEUE_SIZE)
    }

    fn set_queue(&self, queue: u16, size: u16, addresses: QueueAddresses) {
        self.common.write16(common::QUEUE_SELECT, queue);
        self.common.write16(common::QUEUE_SIZE, size);
        self.write_address(common::QUEUE_DESC, addresses.descriptors);
        self.write_address(common::QUEUE_DRIVER, addresses.driver);
        self.write_address(common::QUEUE_DEVICE, addresses.device);
        let offset = usize::from(self.common.read16(common::QUEUE_NOTIFY_OFF));
        let offset = offset.saturating_mul(self.structures.notify_multiplier as usize);
        if let Some(doorbell) = self.doorbells.get(usize::from(queue)) {
            doorbell.store(offset.saturating_add(1), Ordering::Release);
        }
        self.common.write16(common::QUEUE_ENABLE, 1);
    }

    fn notify(&self, queue: u16) {
        let doorbell = self.doorbells.get(usize::from(queue));
        let offset = doorbell.and_then(|at| at.load(Ordering::Acquire).checked_sub(1));
        if let Some(offset) = offset {
            self.notify.write16(offset, queue);
        }
    }

    fn config_generation(&self) -> u8 {
        self.common.read8(common::GENERATION)
    }

    fn config32(&self, offset: usize) -> u32 {
        self.device.read32(offset)
    }

    fn write_config8(&self, offset: usize, value: u8) {
        self.device.write8(offset, value);
    }
}
