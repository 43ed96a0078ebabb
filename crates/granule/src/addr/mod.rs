//! Addresses, granules, ranges and scatter lists: the words that every other layer speaks.
//!
//! Three kinds of address never mix, because each is a type of its own:
//!
//! | type | who uses it |
//! | --- | --- |
//! | [`PhysAddr`] | what the memory controller sees |
//! | [`Iova`] | what an IOMMU's table is indexed with, inside one domain |
//! | [`DmaAddr`] | what a device is programmed with |
//!
//! A DMA address and an IOVA differ where a device emits more address bits than its IOMMU's table
//! indexes (Apple's display coprocessor starts at `0xf_0000_0000`, its table indexes 32 bits).
//!
//! All arithmetic is checked: nothing here wraps or panics.

mod access;
mod granule;
mod newtypes;
mod pagesizes;
mod range;
mod segment;

pub use access::{Access, Attributes, Direction, MemoryKind};
pub use granule::{Granule, GranuleError};
pub use newtypes::{DmaAddr, Iova, PhysAddr};
pub use pagesizes::PageSizes;
pub use range::{AddrRange, Address, DmaRange, IovaRange, PhysRange, RangeError};
pub use segment::{DmaSegment, total_len};
