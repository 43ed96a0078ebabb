//! virtio-iommu, over PCI.

use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::domain::{Reserved, Stream, StreamId};
use granule_hw::acpi::viot::Viot;
use granule_hw::virtio_iommu::pci::{PciConfig, Structure, VENDOR, VirtioPci};
use granule_hw::virtio_iommu::{VirtioDomain, VirtioIommu};
use granule_hw::{FaultEvent, Mmio};

use crate::arch::Boot;
use crate::pci::{Bus, Function};
use crate::platform::Lab;
use crate::ram::failure;
use crate::rig::{Failure, Rig};

/// The PCI device id of a virtio-iommu.
const DEVICE: u16 = 0x1057;

impl PciConfig for Function {
    fn read32(&self, offset: u16) -> u32 {
        self.read(offset)
    }

    fn write32(&self, offset: u16, value: u32) {
        self.write(offset, value);
    }
}

/// The device.
pub(crate) struct VirtioRig(Arc<VirtioIommu<Lab, VirtioPci<Mmio>>>);

impl VirtioRig {
    /// Finds and starts it.
    pub(crate) fn new(bus: &Bus) -> Result<Self, Failure> {
        let function = bus.find((VENDOR, DEVICE)).next();
        let function = function.ok_or_else(|| failure("there is no virtio-iommu"))?;
        function.enable();
        let registers = |place: Structure| {
            let start = function.bar(place.bar.into())? + u64::from(place.offset);
            let start = core::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: a part of the device's BAR, mapped one to one; nobody else drives it.
            Some(unsafe { Mmio::new(start, place.len as usize) })
        };
        let transport = VirtioPci::new(function, "virtio-iommu", registers)?;
        Ok(Self(VirtioIommu::new(Lab, transport, "virtio-iommu")?))
    }
}

impl Rig for VirtioRig {
    type Translation = VirtioDomain<Lab, VirtioPci<Mmio>>;

    fn translation(&self) -> Result<Self::Translation, Failure> {
        Ok(VirtioDomain::new(&self.0)?)
    }

    fn stream(&self, rid: u16) -> Stream {
        Stream::new(rid.into())
    }

    fn reserved(&self, rid: u16) -> Result<Vec<Reserved>, Failure> {
        let regions = self.0.reserved(StreamId::exact(rid.into()))?;
        Ok(regions.iter().map(|region| Reserved::hole(region.range)).collect())
    }

    fn large_page(&self) -> u64 {
        0
    }

    fn write_only(&self) -> bool {
        true
    }

    fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) {
        self.0.take_faults(each);
    }

    fn records_faults(&self) -> bool {
        true
    }
}
