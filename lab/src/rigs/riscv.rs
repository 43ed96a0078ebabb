//! RISC-V IOMMU, as a PCI device, with Sv39 tables.

use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::domain::{Iommu, Paged, Reserved, Stream};
use granule::table::Sv39;
use granule_hw::riscv::RiscvIommu;
use granule_hw::{FaultEvent, Mmio};

use crate::pci::Bus;
use crate::platform::Lab;
use crate::ram::failure;
use crate::rig::{Failure, Rig};

/// Vendor and device of QEMU's.
const ID: (u16, u16) = (0x1b36, 0x0014);

/// The size of its registers in bytes.
const LEN: usize = 0x1000;

/// A megapage.
const LARGE: u64 = 2 << 20;

/// The unit.
pub(crate) struct RiscvRig(Arc<Iommu<Lab, RiscvIommu<Lab, Mmio>>>);

impl RiscvRig {
    /// Finds and starts it.
    pub(crate) fn new(bus: &Bus) -> Result<Self, Failure> {
        let function = bus.find(ID).next();
        let function = function.ok_or_else(|| failure("there is no RISC-V IOMMU"))?;
        function.enable();
        let start = function.bar(0).ok_or_else(|| failure("the RISC-V IOMMU has no BAR 0"))?;
        let start = core::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: the device's BAR, mapped one to one; nobody else drives it.
        let registers = unsafe { Mmio::new(start, LEN) };
        let iommu = RiscvIommu::new(Lab, registers, "riscv-iommu")?;
        println!("{:?}, {} levels", iommu.capabilities(), iommu.levels());
        Ok(Self(Iommu::new(iommu)))
    }
}

impl Rig for RiscvRig {
    type Translation = Paged<Sv39, Lab, RiscvIommu<Lab, Mmio>>;

    fn translation(&self) -> Result<Self::Translation, Failure> {
        Ok(Paged::new(&Lab, core::slice::from_ref(&self.0))?)
    }

    fn stream(&self, rid: u16) -> Result<Stream, Failure> {
        // A PCI function's device id is its requester id.
        Ok(Stream::new(rid.into()))
    }

    fn reserved(&self, _rid: u16) -> Result<Vec<Reserved>, Failure> {
        Ok(Vec::new())
    }

    fn large_page(&self) -> u64 {
        LARGE
    }

    fn write_only(&self) -> bool {
        false
    }

    fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) {
        while let Some(fault) = self.0.unit().next_fault() {
            each(fault);
        }
    }

    fn records_faults(&self) -> bool {
        true
    }
}
