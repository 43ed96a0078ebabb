//! A window of registers (BAR): mapped into the process, or reached through the device's file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use granule::addr::{PhysAddr, PhysRange};
use rustix::mm::{MapFlags, ProtFlags};
use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_MMAP;
use vfio_ioctls::VfioDevice;

use crate::pci::Pci;
use crate::{Bdf, Error};

/// A register's type: 1, 2, 4 or 8 bytes, little-endian on the bus.
pub trait Register: Copy + sealed::Sealed {}

mod sealed {
    pub trait Sealed: Sized {
        fn from_bus(bytes: &[u8; 8]) -> Self;
        fn to_bus(self) -> [u8; 8];
        fn swap(self) -> Self;
    }
}

macro_rules! register {
    ($($type:ty),*) => {$(
        impl sealed::Sealed for $type {
            fn from_bus(bytes: &[u8; 8]) -> Self {
                u64::from_le_bytes(*bytes) as Self
            }
            fn to_bus(self) -> [u8; 8] {
                u64::from(self).to_le_bytes()
            }
            fn swap(self) -> Self {
                self.to_le()
            }
        }
        impl Register for $type {}
    )*};
}
register!(u8, u16, u32, u64);

/// A window of a device's registers. It keeps the device open.
pub struct Bar {
    pci: Arc<Pci>,
    index: u32,
    len: u64,
    access: Access,
}

enum Access {
    /// Mapped at this pointer.
    Mapped(NonNull<u8>),
    /// At this offset of the device's file.
    File(u64),
}

// SAFETY: the pointer is to registers, which any thread may access; accesses are volatile.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Bar {
    pub(crate) fn new(pci: &Arc<Pci>, index: u32) -> Result<Self, Error> {
        let len = if index < 6 { pci.vfio().get_region_size(index) } else { 0 };
        if len == 0 {
            return Err(Error::NoBar { device: pci.address(), bar: index });
        }
        let offset = pci.vfio().get_region_offset(index);
        let mappable = pci.vfio().get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP != 0;
        let access = if mappable {
            let mapped = map(pci.vfio(), offset, len);
            Access::Mapped(mapped.map_err(|error| pci.kernel(&format!("BAR {index}"), error))?)
        } else {
            Access::File(offset)
        };
        Ok(Self { pci: pci.clone(), index, len, access })
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The device.
    pub fn device(&self) -> Bdf {
        self.pci.address()
    }

    /// Where the registers are in this process, if they are mapped: what another device's
    /// [`ResourceMapping`](granule::dma::ResourceMapping) takes, where the kernel allows DMA from
    /// device to device.
    pub fn range(&self) -> Option<PhysRange> {
        match self.access {
            Access::Mapped(ptr) => {
                PhysRange::new(PhysAddr::new(ptr.as_ptr().expose_provenance() as u64), self.len)
                    .ok()
            }
            Access::File(_) => None,
        }
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`Error::Register`] outside of the window or misaligned; [`Error::Kernel`] if the window is not
    /// mapped and the kernel refuses.
    pub fn read<R: Register>(&self, offset: u64) -> Result<R, Error> {
        self.check(offset, size_of::<R>())?;
        match self.access {
            Access::Mapped(base) => {
                let at = base.as_ptr().wrapping_add(offset as usize).cast::<R>();
                // SAFETY: inside the mapping and aligned; registers of integers have any value.
                let value = unsafe { at.read_volatile() }.swap();
                // What the device wrote to memory before is seen after.
                fence(Ordering::SeqCst);
                Ok(value)
            }
            Access::File(base) => {
                let mut bytes = [0; 8];
                let read = read_at(self.pci.vfio(), &mut bytes[..size_of::<R>()], base + offset);
                read.map_err(|error| self.kernel(error))?;
                Ok(R::from_bus(&bytes))
            }
        }
    }

    /// Writes a register. What was written to memory before is visible to the device first.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write<R: Register>(&self, offset: u64, value: R) -> Result<(), Error> {
        self.check(offset, size_of::<R>())?;
        fence(Ordering::SeqCst);
        match self.access {
            Access::Mapped(base) => {
                let at = base.as_ptr().wrapping_add(offset as usize).cast::<R>();
                // SAFETY: inside the mapping and aligned.
                unsafe { at.write_volatile(value.swap()) };
                Ok(())
            }
            Access::File(base) => {
                let bytes = value.to_bus();
                let written = write_at(self.pci.vfio(), &bytes[..size_of::<R>()], base + offset);
                written.map_err(|error| self.kernel(error))
            }
        }
    }

    fn check(&self, offset: u64, width: usize) -> Result<(), Error> {
        let end = offset.checked_add(width as u64);
        if end.is_some_and(|end| end <= self.len) && offset % width as u64 == 0 {
            return Ok(());
        }
        let (device, window, len) = (self.device(), format!("BAR {}", self.index), self.len);
        Err(Error::Register { device, window, offset, width, len })
    }

    fn kernel(&self, error: io::Error) -> Error {
        self.pci.kernel(&format!("BAR {}", self.index), error)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Access::Mapped(base) = self.access {
            // SAFETY: our mapping, which nobody uses any more.
            let _ = unsafe { rustix::mm::munmap(base.as_ptr().cast(), self.len as usize) };
        }
    }
}

impl std::fmt::Debug for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mapped = matches!(self.access, Access::Mapped(_));
        f.debug_struct("Bar")
            .field("index", &self.index)
            .field("len", &self.len)
            .field("mapped", &mapped)
            .finish()
    }
}

fn map(device: &VfioDevice, offset: u64, len: u64) -> io::Result<NonNull<u8>> {
    let size = usize::try_from(len).map_err(io::Error::other)?;
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the file is the device's, open for as long as it lives; a new mapping of registers.
    let mapped = unsafe {
        rustix::mm::mmap(
            core::ptr::null_mut(),
            size,
            rights,
            MapFlags::SHARED,
            file(device),
            offset,
        )
    };
    NonNull::new(mapped?.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

fn file(device: &VfioDevice) -> BorrowedFd<'_> {
    // SAFETY: the device has its file open for as long as it lives.
    unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }
}

/// Reads all of `bytes` at an offset of the device's file.
pub(crate) fn read_at(device: &VfioDevice, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let wanted = bytes.len();
    let read = rustix::io::pread(file(device), bytes, offset)?;
    if read == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes all of `bytes` at an offset of the device's file.
pub(crate) fn write_at(device: &VfioDevice, bytes: &[u8], offset: u64) -> io::Result<()> {
    let written = rustix::io::pwrite(file(device), bytes, offset)?;
    if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
