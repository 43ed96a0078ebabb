//! What both kernel interfaces do: an IOVA space into which memory of this process is mapped.

use std::io;

use granule::addr::{Access, IovaRange, PageSizes};

/// What an IOVA space can do, as the kernel reports it now. Each device that joins may narrow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The addresses that can be mapped, in order.
    pub(crate) ranges: Vec<IovaRange>,
    /// The sizes of the IOMMU's pages, as far as they are known.
    pub(crate) page_sizes: PageSizes,
    /// Starts and ends of mappings must be multiples of this, in bytes.
    pub(crate) alignment: u64,
    /// How many more mappings the kernel takes, if it counts them.
    pub(crate) mappings_left: Option<u64>,
}

/// One IOVA space of the kernel's.
pub(crate) trait Kernel: Send + Sync {
    /// What can be mapped where, now.
    fn limits(&self) -> io::Result<Limits>;

    /// Maps `len` bytes at `address` of this process to `iova`. On error nothing is mapped.
    ///
    /// # Safety
    /// The memory stays what it is until it was unmapped, and what the device does with it meanwhile
    /// breaks nothing.
    unsafe fn map(&self, iova: u64, address: u64, len: u64, access: Access) -> io::Result<()>;

    /// Ends a mapping, of exactly the range that one `map` made. When this returns `Ok`, no device
    /// reaches the memory through it.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()>;

    /// The number of mappings that the kernel takes in all, for messages.
    fn mapping_limit(&self) -> Option<u64> {
        None
    }
}
