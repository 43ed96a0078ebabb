//! virtio-iommu, over PCI.

use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::domain::{Reserved, Stream};
use granule_hw::acpi::viot::{ViommuPlace, Viot};
use granule_hw::virtio_iommu::pci::{PciConfig, Structure, VirtioPci};
use granule_hw::virtio_iommu::{VirtioDomain, VirtioIommu};
use granule_hw::{FaultEvent, Mmio};

use crate::arch::Boot;
use crate::pci::{Bus, Function};
use crate::platform::Lab;
use crate::ram::failure;
use crate::rig::{Failure, Rig};

impl PciConfig for Function {
    fn read32(&self, offset: u16) -> u32 {
        self.read(offset)
    }

    fn write32(&self, offset: u16, value: u32) {
        self.write(offset, value);
    }
}

/// The first virtio-iommu that the table VIOT names.
pub(crate) struct VirtioRig {
    device: Arc<VirtioIommu<Lab, VirtioPci<Mmio>>>,
    viot: Viot,
}

impl VirtioRig {
    /// Finds and starts it.
    pub(crate) fn new(boot: &Boot, bus: &Bus) -> Result<Self, Failure> {
        let table = boot.acpi_table(b"VIOT").ok_or_else(|| failure("there is no table VIOT"))?;
        let viot = Viot::parse(table)?;
        let Some(ViommuPlace::Pci { function: rid, .. }) = viot.viommus.first() else {
            return Err(failure("VIOT names no virtio-iommu on PCI"));
        };
        let function = bus.functions().iter().find(|function| function.rid == *rid);
        let function = function.ok_or_else(|| failure("there is no virtio-iommu"))?;
        function.enable();
        let registers = |place: Structure| {
            let start = function.bar(place.bar.into())? + u64::from(place.offset);
            let start = core::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: a part of the device's BAR, mapped one to one; nobody else drives it.
            Some(unsafe { Mmio::new(start, place.len as usize) })
        };
        let transport = VirtioPci::new(function, "virtio-iommu", registers)?;
        let device = VirtioIommu::new(Lab, transport, "virtio-iommu")?;
        Ok(Self { device, viot })
    }
}

impl Rig for VirtioRig {
    type Translation = VirtioDomain<Lab, VirtioPci<Mmio>>;

    fn translation(&self) -> Result<Self::Translation, Failure> {
        Ok(VirtioDomain::new(&self.device)?)
    }

    fn stream(&self, rid: u16) -> Result<Stream, Failure> {
        match self.viot.of_function(0, rid) {
            Some((0, endpoint)) => Ok(Stream::new(endpoint)),
            _ => Err(failure("VIOT does not put the function behind the first virtio-iommu")),
        }
    }

    fn reserved(&self, rid: u16) -> Result<Vec<Reserved>, Failure> {
        let regions = self.device.reserved(self.stream(rid)?.id)?;
        Ok(regions.iter().map(|region| Reserved::hole(region.range)).collect())
    }

    fn large_page(&self) -> u64 {
        0
    }

    fn write_only(&self) -> bool {
        true
    }

    fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) {
        self.device.take_faults(each);
    }

    fn records_faults(&self) -> bool {
        true
    }
}
