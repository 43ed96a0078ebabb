//! Arm SMMUv3, with tables of any of its granules.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;

use granule::domain::{Iommu, Paged, Reserved, Stream};
use granule::table::Format;
use granule_hw::smmuv3::SmmuV3;
use granule_hw::{FaultEvent, Mmio};

use crate::arch::tree::{Node, Tree};
use crate::arch::{Boot, Tables};
use crate::platform::Lab;
use crate::ram::failure;
use crate::rig::{Failure, Rig};

/// The next larger page of every granule: a block, or a group with the contiguous hint.
const LARGE: u64 = 2 << 20;

/// The unit, for domains with tables of format `F`.
pub(crate) struct SmmuRig<F> {
    iommu: Arc<Iommu<Lab, SmmuV3<Lab, Mmio>>>,
    format: PhantomData<F>,
}

impl<F: Format> SmmuRig<F> {
    /// Finds and starts it.
    pub(crate) fn new(boot: &Boot) -> Result<Self, Failure> {
        let Tables::DeviceTree(address) = boot.tables else {
            return Err(failure("the machine has no device tree"));
        };
        let tree = Tree::at(address).ok_or_else(|| failure("the device tree is unreadable"))?;
        let registers = tree.reg(Node::Compatible("arm,smmu-v3"));
        let (start, len) = registers.ok_or_else(|| failure("there is no SMMUv3"))?;
        let start = core::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: the device tree says that its registers are there; they are mapped one to one, as
        // device memory, and nobody else drives them.
        let registers = unsafe { Mmio::new(start, len as usize) };
        let smmu = SmmuV3::new(Lab, registers, "smmuv3")?;
        println!("{:?}", smmu.features());
        Ok(Self { iommu: Iommu::new(smmu), format: PhantomData })
    }
}

impl<F: Format> Rig for SmmuRig<F> {
    type Translation = Paged<F, Lab, SmmuV3<Lab, Mmio>>;

    fn translation(&self) -> Result<Self::Translation, Failure> {
        Ok(Paged::new(&Lab, core::slice::from_ref(&self.iommu))?)
    }

    fn stream(&self, rid: u16) -> Result<Stream, Failure> {
        // The machine's `iommu-map` is one to one.
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
        while let Some(fault) = self.iommu.unit().next_fault() {
            each(fault);
        }
    }

    fn records_faults(&self) -> bool {
        true
    }
}
