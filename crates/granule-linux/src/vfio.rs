//! VFIO type1: a container is an IOVA space, groups of devices are put into it.

use std::io;
use std::sync::Arc;

use granule::addr::{Access, Iova, IovaRange, PageSizes};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE};
use vfio_ioctls::{VfioContainer, VfioError};

use crate::ioctl;
use crate::kernel::{Kernel, Limits};
use crate::sysfs::Sysfs;

/// Where the limit of mappings of a container is told and set.
pub(crate) const ENTRY_LIMIT: &str = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

/// A container that has a group, so that it has an IOMMU.
pub(crate) struct Container {
    container: Arc<VfioContainer>,
    sysfs: Sysfs,
}

impl Container {
    pub(crate) fn new(container: Arc<VfioContainer>, sysfs: Sysfs) -> Self {
        Self { container, sysfs }
    }
}

impl Kernel for Container {
    fn limits(&self) -> io::Result<Limits> {
        let info = ioctl::container_info(&*self.container)?;
        // A kernel before 5.4 does not say: what it refuses is then found out by trying.
        let ranges = info.ranges.unwrap_or_else(|| vec![(0, u64::MAX >> 1)]);
        let page_sizes = PageSizes::from_bits(info.page_sizes.unwrap_or(0));
        Ok(Limits {
            ranges: ranges.into_iter().filter_map(range).collect(),
            page_sizes,
            alignment: page_sizes.granule().map_or(1, |granule| granule.size()),
            mappings_left: info.mappings_left.map(u64::from),
        })
    }

    unsafe fn map(&self, iova: u64, address: u64, len: u64, access: Access) -> io::Result<()> {
        let mut flags = 0;
        if access.contains(Access::READ) {
            flags |= VFIO_DMA_MAP_FLAG_READ;
        }
        if access.contains(Access::WRITE) {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        // SAFETY: the caller's promise.
        unsafe { ioctl::container_map(&*self.container, flags, address, iova, len) }
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let size = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        self.container.vfio_dma_unmap(iova, size).map_err(|error| match error {
            VfioError::IommuDmaUnmap(error) => io::Error::from_raw_os_error(error.errno()),
            other => io::Error::other(other.to_string()),
        })
    }

    fn mapping_limit(&self) -> Option<u64> {
        self.sysfs.text(ENTRY_LIMIT)?.parse().ok()
    }
}

/// First and last address, as a range.
pub(crate) fn range((first, last): (u64, u64)) -> Option<IovaRange> {
    IovaRange::from_inclusive(Iova::new(first), Iova::new(last)).ok()
}
