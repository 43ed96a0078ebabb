//! The recorded memory, given to the layer at its recorded physical addresses.
//!
//! The only unsafe code of this crate: the promise that the simulated machine's memory outlives
//! every mapping, and that nobody uses what the trace says was mapped.

#![allow(unsafe_code)]

use granule::addr::{Direction, PhysRange};
use granule::dma::{Device, DmaError, ForeignMemory, ResourceMapping};

/// Memory of the simulated machine, in the part that no frame is allocated from.
pub(super) fn recorded(pages: &[PhysRange]) -> ForeignMemory {
    // SAFETY: RAM of the simulated machine stays mapped as long as its platform, of which the
    // mapping's device holds a handle. This part of it is reserved: the frame allocator never hands
    // it out, and nothing else in this crate touches it. Bounce buffers copy its bytes, which have
    // no meaning; two recorded mappings of one page do so one after the other, in one thread.
    unsafe { ForeignMemory::from_pages(pages, || ()) }
}

/// Registers at their recorded address.
pub(super) fn registers(
    device: Device,
    range: PhysRange,
    dir: Direction,
) -> Result<ResourceMapping<Device>, DmaError> {
    // SAFETY: no simulated device is ever made to access anything in a replay, so what lies there
    // is not reached.
    unsafe { ResourceMapping::new(device, range, dir.access()) }
}
