//! virtio-iommu: an IOMMU that keeps its tables to itself and takes requests on a virtqueue.
//!
//! | file | subject |
//! | --- | --- |
//! | [`spec`] | requests, configuration, fault records |
//! | [`VirtioTransport`] | what is needed of a transport |
//! | [`pci`] | virtio over PCI, version 1 |
//! | [`VirtioIommu`] | the device: queues, endpoints, faults, reset |
//! | [`VirtioDomain`] | a domain of it: [`granule::domain::Translation`] |
//!
//! UNMAP is the device's invalidation: when the request has been answered no endpoint reaches what was
//! mapped, so `invalidate` only tells whether that is certain.
//!
//! The device may accept what it should not (QEMU takes a misaligned range, one outside its input
//! range, one inside a reserved region), so everything is checked here.

mod device;
mod domain;
mod endpoints;
pub mod pci;
mod queue;
mod requests;
pub mod spec;
#[cfg(test)]
mod tests;
mod transport;

pub use device::VirtioIommu;
pub use domain::VirtioDomain;
pub use transport::{QueueAddresses, VirtioTransport, status};
