//! iommufd: an IOAS is an IOVA space; pages that one IOAS has pinned are copied into the next.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use granule::addr::{Access, PageSizes};
use iommufd_bindings::iommufd::{
    iommu_ioas_alloc, iommu_ioas_copy, iommu_ioas_map, iommu_ioas_unmap,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use iommufd_ioctls::{IommuFd, IommufdError};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::ioctl;
use crate::kernel::{Kernel, Limits};
use crate::vfio::range;

/// One opened `/dev/iommu`, and what its address spaces have pinned.
pub(crate) struct Context {
    pub(crate) fd: Arc<IommuFd>,
    pinned: Mutex<Pinned>,
}

impl Context {
    pub(crate) fn new(fd: IommuFd) -> Arc<Self> {
        Arc::new(Self { fd: Arc::new(fd), pinned: Mutex::new(Pinned::default()) })
    }
}

/// Where memory of this process is mapped, by its address and length.
#[derive(Debug, Default)]
struct Pinned {
    by_memory: BTreeMap<(u64, u64), Vec<Place>>,
    /// The same memory by IOAS and IOVA.
    by_place: BTreeMap<(u32, u64), (u64, u64)>,
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    ioas: u32,
    iova: u64,
    /// Whether the pages were pinned for writing, so that a copy may write.
    writable: bool,
}

impl Pinned {
    /// A mapping of exactly this memory that a copy with such rights can be made of.
    fn source(&self, memory: (u64, u64), access: Access) -> Option<Place> {
        let writes = access.contains(Access::WRITE);
        self.by_memory.get(&memory)?.iter().find(|place| place.writable || !writes).copied()
    }

    fn note(&mut self, memory: (u64, u64), place: Place) {
        self.by_memory.entry(memory).or_default().push(place);
        self.by_place.insert((place.ioas, place.iova), memory);
    }

    /// Forgets a mapping. Never allocates.
    fn forget(&mut self, ioas: u32, iova: u64) {
        let Some(memory) = self.by_place.remove(&(ioas, iova)) else { return };
        let Some(places) = self.by_memory.get_mut(&memory) else { return };
        places.retain(|place| (place.ioas, place.iova) != (ioas, iova));
        if places.is_empty() {
            self.by_memory.remove(&memory);
        }
    }
}

/// An IOAS; destroyed when its last device is gone.
pub(crate) struct Ioas {
    pub(crate) context: Arc<Context>,
    pub(crate) id: u32,
}

impl Ioas {
    pub(crate) fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        let size = size_of::<iommu_ioas_alloc>() as u32;
        let mut request = iommu_ioas_alloc { size, flags: 0, out_ioas_id: 0 };
        context.fd.alloc_iommu_ioas(&mut request).map_err(os_error)?;
        Ok(Arc::new(Self { context: context.clone(), id: request.out_ioas_id }))
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        // If a device still has it, closing /dev/iommu ends both.
        let _ = self.context.fd.destroy_iommu_object(self.id);
    }
}

/// An IOAS as an IOVA space.
pub(crate) struct IoasSpace {
    ioas: Arc<Ioas>,
    page_sizes: PageSizes,
}

impl IoasSpace {
    /// `page_sizes` are what is known of the IOMMU from elsewhere: iommufd does not tell.
    pub(crate) fn new(ioas: Arc<Ioas>, page_sizes: PageSizes) -> Self {
        Self { ioas, page_sizes }
    }

    /// Maps by copying what another space has pinned.
    ///
    /// # Safety
    /// As [`Kernel::map`].
    unsafe fn copy(&self, source: Place, iova: u64, len: u64, flags: u32) -> io::Result<()> {
        let mut request = iommu_ioas_copy {
            size: 0,
            flags,
            dst_ioas_id: self.ioas.id,
            src_ioas_id: source.ioas,
            length: len,
            dst_iova: iova,
            src_iova: source.iova,
        };
        // SAFETY: the caller's promise; the source maps the same memory.
        unsafe { ioctl::ioas_copy(&*self.ioas.context.fd, &mut request) }
    }

    fn map_anew(&self, iova: u64, address: u64, len: u64, flags: u32) -> io::Result<()> {
        let request = iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags,
            ioas_id: self.ioas.id,
            __reserved: 0,
            user_va: address,
            length: len,
            iova,
        };
        self.ioas.context.fd.map_iommu_ioas(&request).map_err(os_error)
    }
}

impl Kernel for IoasSpace {
    fn limits(&self) -> io::Result<Limits> {
        let (ranges, alignment) = ioctl::ioas_ranges(&*self.ioas.context.fd, self.ioas.id)?;
        let ranges = ranges.into_iter().filter_map(range).collect();
        Ok(Limits { ranges, page_sizes: self.page_sizes, alignment, mappings_left: None })
    }

    unsafe fn map(&self, iova: u64, address: u64, len: u64, access: Access) -> io::Result<()> {
        let mut flags = FIXED;
        if access.contains(Access::READ) {
            flags |= READABLE;
        }
        let writable = access.contains(Access::WRITE);
        if writable {
            flags |= WRITEABLE;
        }
        // Held until the copy is made: its source stays mapped, of the same memory.
        let mut pinned = self.ioas.context.pinned.lock();
        let copied = pinned.source((address, len), access).is_some_and(|source| {
            // SAFETY: the caller's promise.
            unsafe { self.copy(source, iova, len, flags) }.is_ok()
        });
        if !copied {
            self.map_anew(iova, address, len, flags)?;
        }
        pinned.note((address, len), Place { ioas: self.ioas.id, iova, writable });
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let mut pinned = self.ioas.context.pinned.lock();
        let mut request = iommu_ioas_unmap {
            size: size_of::<iommu_ioas_unmap>() as u32,
            ioas_id: self.ioas.id,
            iova,
            length: len,
        };
        self.ioas.context.fd.unmap_iommu_ioas(&mut request).map_err(os_error)?;
        pinned.forget(self.ioas.id, iova);
        if request.length == len { Ok(()) } else { Err(Errno::INVAL.into()) }
    }
}

/// The kernel's answer inside an error of `iommufd-ioctls`.
pub(crate) fn os_error(error: IommufdError) -> io::Error {
    match error {
        IommufdError::OpenIommufd(error) => error,
        IommufdError::IommuDestroy(error)
        | IommufdError::IommuIoasAlloc(error)
        | IommufdError::IommuIoasMap(error)
        | IommufdError::IommuIoasUnmap(error) => io::Error::from_raw_os_error(error.errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_needs_the_same_memory_and_no_more_rights() {
        let mut pinned = Pinned::default();
        let memory = (0x7000_0000, 0x2000);
        let place = |ioas, iova, writable| Place { ioas, iova, writable };
        pinned.note(memory, place(1, 0x1000, false));
        assert_eq!(pinned.source(memory, Access::READ), Some(place(1, 0x1000, false)));
        assert_eq!(pinned.source(memory, Access::WRITE), None);
        assert_eq!(pinned.source((0x7000_0000, 0x1000), Access::READ), None);
        pinned.note(memory, place(2, 0x1000, true));
        assert_eq!(pinned.source(memory, Access::all()), Some(place(2, 0x1000, true)));
        pinned.forget(2, 0x2000);
        assert!(pinned.source(memory, Access::all()).is_some());
        pinned.forget(2, 0x1000);
        assert_eq!(pinned.source(memory, Access::all()), None);
        pinned.forget(1, 0x1000);
        assert!(pinned.by_memory.is_empty() && pinned.by_place.is_empty());
    }
}
