//! AMD-Vi: host page tables of ours, with the format's smallest page or with a larger one as granule.

use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::addr::{PageSizes, PhysAddr};
use granule::domain::{
    Invalidation, Iommu, Paged, Reserved, Stream, StreamId, Unit, UnitError, UnitInfo,
};
use granule::table::{Amdv1, TableLayout};
use granule_hw::acpi::ivrs::Ivrs;
use granule_hw::amdvi::{AmdConfig, AmdContext, AmdUnit};
use granule_hw::{FaultEvent, Mmio};

use crate::arch::Boot;
use crate::platform::Lab;
use crate::ram::failure;
use crate::rig::{Failure, Rig};

/// The size of the register block in bytes (48882, 3.4).
const REGISTERS: usize = 0x4000;

/// The machine's first unit.
pub(crate) struct AmdRig {
    iommu: Arc<Iommu<Lab, Limited>>,
    ivrs: Ivrs,
    granule: u64,
    large_page: u64,
}

impl AmdRig {
    /// Finds and starts it, for tables of 4 KiB pages and one larger size. Domains use no page below
    /// `granule`.
    pub(crate) fn new(boot: &Boot, granule: u64, large_page: u64) -> Result<Self, Failure> {
        let table = boot.acpi_table(b"IVRS").ok_or_else(|| failure("there is no table IVRS"))?;
        let ivrs = Ivrs::parse(table)?;
        let [ivhd] = ivrs.units.as_slice() else {
            return Err(failure("the machine does not have exactly one AMD-Vi unit"));
        };
        let start = core::ptr::with_exposed_provenance_mut(ivhd.registers.raw() as usize);
        // SAFETY: the unit's registers, as the firmware of the machine says, mapped one to one;
        // nobody else drives it.
        let registers = unsafe { Mmio::new(start, REGISTERS) };
        let config = AmdConfig {
            name: "amdvi".into(),
            physical_bits: ivrs.physical_bits,
            virtual_bits: ivrs.virtual_bits,
            flags: ivhd.flags,
            // QEMU's caches nothing that is absent.
            caches_absent: false,
        };
        let unit = AmdUnit::new(Lab, registers, config)?;
        let sizes = PageSizes::from_bits(0x1000 | large_page);
        let mut info = unit.info().clone();
        info.page_sizes = info.page_sizes.intersection(sizes);
        Ok(Self { iommu: Iommu::new(Limited { unit, info }), ivrs, granule, large_page })
    }
}

impl Rig for AmdRig {
    type Translation = Paged<Amdv1, Lab, Limited>;

    fn translation(&self) -> Result<Self::Translation, Failure> {
        Ok(Paged::new(&Lab, core::slice::from_ref(&self.iommu))?)
    }

    fn stream(&self, rid: u16) -> Result<Stream, Failure> {
        let stream = self.ivrs.units.first().and_then(|unit| unit.stream_of(rid));
        let stream = stream.ok_or_else(|| failure("IVRS puts the function behind no unit"))?;
        Ok(Stream::new(stream.into()))
    }

    fn reserved(&self, rid: u16) -> Result<Vec<Reserved>, Failure> {
        let mut reserved = self.iommu.unit().unit.reserved();
        for memory in self.ivrs.reserved_for(rid) {
            // SAFETY: the firmware of the machine tells the truth about its memory.
            reserved.extend(unsafe { memory.mapped() });
        }
        Ok(reserved)
    }

    fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) {
        self.iommu.unit().unit.take_faults(each);
    }

    /// QEMU's model blocks, and logs nothing.
    fn records_faults(&self) -> bool {
        false
    }

    fn smallest_page(&self) -> u64 {
        self.granule
    }

    fn large_page(&self) -> u64 {
        self.large_page
    }

    fn write_only(&self) -> bool {
        true
    }
}

/// The unit, with fewer page sizes than it has.
pub(crate) struct Limited {
    unit: AmdUnit<Lab, Mmio>,
    info: UnitInfo,
}

// SAFETY: every call goes to the driver; to use fewer page sizes than it knows breaks no promise.
unsafe impl Unit for Limited {
    type Context = AmdContext;

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, stream: StreamId) -> Vec<PhysAddr> {
        self.unit.locked_roots(stream)
    }

    fn open(&self, tables: &TableLayout) -> Result<AmdContext, UnitError> {
        self.unit.open(tables)
    }

    fn close(&self, context: &AmdContext) {
        self.unit.close(context);
    }

    unsafe fn attach(&self, context: &AmdContext, stream: StreamId) -> Result<(), UnitError> {
        // SAFETY: the caller's promise.
        unsafe { self.unit.attach(context, stream) }
    }

    fn detach(&self, context: &AmdContext, stream: StreamId) -> Result<(), UnitError> {
        self.unit.detach(context, stream)
    }

    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError> {
        // SAFETY: the caller's promise.
        unsafe { self.unit.bypass(stream, on) }
    }

    fn invalidate(&self, context: &AmdContext, request: &Invalidation) -> Result<(), UnitError> {
        self.unit.invalidate(context, request)
    }
}
