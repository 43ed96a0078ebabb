//! A PCI function in user space: configuration space, register windows, bus mastering, reset.
#![forbid(unsafe_code)]

use std::any::Any;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vfio_ioctls::VfioDevice;

use crate::bar::{self, Bar};
use crate::checks::Candidate;
use crate::{Bdf, Error};

/// The command register's offset and its bus-master bit (PCI 3.0, section 6.2.2).
const COMMAND: u64 = 0x04;
const BUS_MASTER: u16 = 1 << 2;
/// The window's name in messages.
const CONFIG: &str = "the configuration space";

/// A PCI function that this process drives.
pub struct Pci {
    address: Bdf,
    device: VfioDevice,
    /// Whether it is in its address space, so that it may master the bus.
    attached: Mutex<bool>,
    group: u32,
    /// What must outlive the device: its address space in the kernel, and the note that it is open.
    _held: Held,
}

/// Something that is only kept alive.
pub(crate) type Held = Vec<Arc<dyn Any + Send + Sync>>;

impl Pci {
    pub(crate) fn new(candidate: Candidate, device: VfioDevice, held: Held) -> Self {
        let Candidate { device: address, group } = candidate;
        Self { address, device, attached: Mutex::new(true), group, _held: held }
    }

    /// Where it is.
    pub fn address(&self) -> Bdf {
        self.address
    }

    /// Its IOMMU group.
    pub fn group(&self) -> u32 {
        self.group
    }

    /// The device as `vfio-ioctls` has it, for interrupts (`enable_msix` and the like). Its DMA goes
    /// through granule: map nothing past it, and leave bus mastering to the methods here.
    pub fn vfio(&self) -> &VfioDevice {
        &self.device
    }

    /// Lets the device make DMA. Off when a device is opened.
    ///
    /// # Errors
    /// [`Error::Detached`] after the device was taken off its address space; [`Error::Kernel`].
    pub fn enable_bus_mastering(&self) -> Result<(), Error> {
        let attached = self.attached.lock();
        if !*attached {
            return Err(Error::Detached { device: self.address });
        }
        self.set_bus_master(true)
    }

    /// Keeps the device from making DMA.
    ///
    /// # Errors
    /// [`Error::Kernel`]: it may still make DMA.
    pub fn disable_bus_mastering(&self) -> Result<(), Error> {
        let _attached = self.attached.lock();
        self.set_bus_master(false)
    }

    /// Ends bus mastering for good.
    pub(crate) fn detach(&self) -> Result<(), Error> {
        let mut attached = self.attached.lock();
        self.set_bus_master(false)?;
        *attached = false;
        Ok(())
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        let mut bytes = [0; 2];
        self.read_config(COMMAND, &mut bytes)?;
        let command = u16::from_le_bytes(bytes);
        let wanted = if on { command | BUS_MASTER } else { command & !BUS_MASTER };
        self.write_raw(COMMAND, &wanted.to_le_bytes())?;
        self.read_config(COMMAND, &mut bytes)?;
        if u16::from_le_bytes(bytes) & BUS_MASTER == wanted & BUS_MASTER {
            return Ok(());
        }
        Err(self
            .kernel("the command register", io::Error::other("it does not keep what is written")))
    }

    /// Reads bytes of the configuration space.
    ///
    /// # Errors
    /// [`Error::Register`] outside of it; [`Error::Kernel`].
    pub fn read_config(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let at = self.config(offset, bytes.len())?;
        bar::read_at(&self.device, bytes, at).map_err(|error| self.kernel(CONFIG, error))
    }

    /// Writes bytes of the configuration space, other than the command register.
    ///
    /// # Errors
    /// [`Error::CommandRegister`]; [`Error::Register`] outside of it; [`Error::Kernel`].
    pub fn write_config(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.saturating_add(bytes.len() as u64);
        if offset < COMMAND + 2 && end > COMMAND {
            return Err(Error::CommandRegister { device: self.address, offset });
        }
        self.write_raw(offset, bytes)
    }

    fn write_raw(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let at = self.config(offset, bytes.len())?;
        bar::write_at(&self.device, bytes, at).map_err(|error| self.kernel(CONFIG, error))
    }

    /// Where in the device's file a part of the configuration space is.
    fn config(&self, offset: u64, width: usize) -> Result<u64, Error> {
        let index = VFIO_PCI_CONFIG_REGION_INDEX;
        let len = self.device.get_region_size(index);
        let end = offset.checked_add(width as u64).filter(|end| *end <= len);
        let base = self.device.get_region_offset(index);
        end.and(base.checked_add(offset)).ok_or_else(|| {
            let (device, window) = (self.address, CONFIG.into());
            Error::Register { device, window, offset, width, len }
        })
    }

    /// Vendor and device id.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn ids(&self) -> Result<(u16, u16), Error> {
        let mut bytes = [0; 4];
        self.read_config(0, &mut bytes)?;
        let [v0, v1, d0, d1] = bytes;
        Ok((u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1])))
    }

    /// A window of registers, 0 to 5, mapped into this process where the kernel allows that.
    ///
    /// # Errors
    /// [`Error::NoBar`]; [`Error::Kernel`] if it cannot be mapped.
    pub fn bar(self: &Arc<Self>, bar: u32) -> Result<Bar, Error> {
        Bar::new(self, bar)
    }

    /// Resets the function, where it can be. Mappings stay; bus mastering is off afterwards.
    pub fn reset(&self) {
        self.device.reset();
    }

    pub(crate) fn kernel(&self, what: &str, error: io::Error) -> Error {
        Error::Kernel { device: self.address, what: what.into(), error }
    }
}

impl std::fmt::Debug for Pci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pci").field("address", &self.address).finish_non_exhaustive()
    }
}
