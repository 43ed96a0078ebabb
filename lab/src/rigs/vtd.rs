//! Intel VT-d: second-stage tables of ours, walked without snooping.

use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::domain::{Iommu, Paged, Reserved, Stream};
use granule::table::Vtd2;
use granule_hw::acpi::dmar::Dmar;
use granule_hw::vtd::{VtdConfig, VtdUnit};
use granule_hw::{FaultEvent, Mmio};

use crate::arch::Boot;
use crate::platform::Lab;
use crate::ram::failure;
use crate::rig::{Failure, Rig};

type Unit = VtdUnit<Lab, Mmio>;

/// The unit that serves all devices.
pub(crate) struct VtdRig {
    iommu: Arc<Iommu<Lab, Unit>>,
    dmar: Dmar,
}

impl VtdRig {
    /// Finds and starts it.
    pub(crate) fn new(boot: &Boot) -> Result<Self, Failure> {
        let table = boot.acpi_table(b"DMAR").ok_or_else(|| failure("there is no table DMAR"))?;
        let dmar = Dmar::parse(table)?;
        let [drhd] = dmar.units.as_slice() else {
            return Err(failure("the machine does not have exactly one VT-d unit"));
        };
        let start = core::ptr::with_exposed_provenance_mut(drhd.registers.raw() as usize);
        // SAFETY: the unit's registers, as the firmware of the machine says, mapped one to one;
        // nobody else drives it.
        let registers = unsafe { Mmio::new(start, drhd.size as usize) };
        let name = "vtd".into();
        let config = VtdConfig { name, host_address_bits: dmar.host_address_bits };
        let unit = VtdUnit::new(Lab, registers, config)?;
        Ok(Self { iommu: Iommu::new(unit), dmar })
    }
}

impl Rig for VtdRig {
    type Translation = Paged<Vtd2, Lab, Unit>;

    fn translation(&self) -> Result<Self::Translation, Failure> {
        Ok(Paged::new(&Lab, core::slice::from_ref(&self.iommu))?)
    }

    fn stream(&self, rid: u16) -> Result<Stream, Failure> {
        Ok(Stream::new(rid.into()))
    }

    fn reserved(&self, rid: u16) -> Result<Vec<Reserved>, Failure> {
        let mut reserved = self.iommu.unit().reserved();
        // No bridge stands between.
        for memory in self.dmar.reserved_for(0, rid, |_| None) {
            // SAFETY: the firmware of the machine tells the truth about its memory.
            reserved.extend(unsafe { memory.mapped() });
        }
        Ok(reserved)
    }

    fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) {
        self.iommu.unit().take_faults(each);
    }

    fn records_faults(&self) -> bool {
        true
    }

    fn large_page(&self) -> u64 {
        2 << 20
    }

    fn write_only(&self) -> bool {
        true
    }
}
