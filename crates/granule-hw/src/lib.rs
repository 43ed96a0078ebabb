//! IOMMU drivers for bare metal, on real registers and queues.
//!
//! Each driver is a folder: `spec` holds what the specification says (registers, commands, entries:
//! plain types without unsafe code), the rest is behaviour. A driver whose hardware walks tables of
//! ours implements [`granule::domain::Unit`]; one that keeps its tables to itself implements
//! [`granule::domain::Translation`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod amdvi;
mod block;
pub mod dart;
mod dma_memory;
pub mod error;
pub mod fault;
mod ids;
mod matching;
pub mod mmio;
mod queue;
pub mod riscv;
pub mod smmuv3;
#[cfg(test)]
mod testing;
pub mod virtio_iommu;
pub mod vtd;
pub mod wait;

pub use error::HwError;
pub use fault::{FaultEvent, FaultReason};
pub use mmio::{Mmio, Registers};

/// The first and last address of the window in which a PC's interrupts are written.
const X86_INTERRUPTS: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// A range of IOVA space that nothing is mapped in.
fn hole((first, last): (u64, u64)) -> Option<granule::domain::Reserved> {
    use granule::addr::{Iova, IovaRange};
    let range = IovaRange::from_inclusive(Iova::new(first), Iova::new(last));
    range.ok().map(granule::domain::Reserved::hole)
}
