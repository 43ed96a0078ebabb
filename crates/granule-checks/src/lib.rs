//! A small kit for the tests of this crate: a simulated board in a few lines, and buffers that lie
//! in its RAM.

mod board;
mod buffer;
pub mod quiet;

pub use board::{Board, RAM, RAM_LEN, dma_range, phys_range};
pub use buffer::Buf;

use std::sync::Arc;

use granule::domain::{Domain, Iommu, Paged};
use granule::table::Dart1;
use granule_sim::platform::SimPlatform;
use granule_sim::unit::SimUnit;

/// A page table of format `F` on simulated hardware.
pub type SimPaged<F = Dart1> = Paged<F, SimPlatform, SimUnit>;
/// A domain of format `F` on simulated hardware.
pub type SimDomain<F = Dart1> = Arc<Domain<SimPlatform, SimPaged<F>>>;
/// An IOMMU of a simulated machine, as the core knows it.
pub type SimIommuHandle = Arc<Iommu<SimPlatform, SimUnit>>;
