//! The display driver of the thread, done again.
//!
//! A display coprocessor (DCP) behind one DART asks its driver for buffers; later it asks for some of
//! them to be mapped for the display's PIODMA engine behind another DART, contiguously there too. The
//! driver that the thread discusses needed forty lines for the two requests, an `sg_table` that it
//! kept by hand, and luck: nothing made the buffer's blocks whole granules of the second DART.
//!
//! [`Dcp`] is the driver: `allocate` and `map_piodma` take 14 lines together, and what the luck was
//! about is a constraint of the plan. The rest of the file is the machine it runs on.

use std::collections::BTreeMap;

use granule::addr::{Access, DmaAddr, PhysAddr, PhysRange};
use granule::dma::{Device, DeviceSpec};
use granule::domain::{Domain, DomainConfig, Iommu, Paged, Stream};
use granule::share::{Plan, ShareError, Shared};
use granule::table::Dart1;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec as SimSpec, Machine};
use granule_sim::platform::SimPlatform;
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

/// What the coprocessor is told if it names a buffer that it does not have.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the coprocessor has no buffer {0}")]
    UnknownBuffer(u32),
    #[error(transparent)]
    Share(#[from] ShareError),
}

/// The driver's end of the coprocessor's memory requests.
struct Dcp {
    dcp: Device,
    piodma: Device,
    buffers: BTreeMap<u32, Shared>,
    next: u32,
}

impl Dcp {
    /// "Allocate": answers with the buffer's number and its address for the coprocessor.
    fn allocate(&mut self, len: u64) -> Result<(u32, DmaAddr), Refusal> {
        let plan = Plan::new(len).device(&self.dcp, Access::all()).later(&self.piodma);
        let shared = plan.solve()?.allocate()?;
        let address = shared.range_of(&self.dcp).map(|range| range.address());
        self.next += 1;
        self.buffers.insert(self.next, shared);
        Ok((self.next, address.ok_or(Refusal::UnknownBuffer(self.next))?))
    }

    /// "Map for PIODMA": answers with the address of the same buffer behind the other DART.
    fn map_piodma(&mut self, number: u32) -> Result<DmaAddr, Refusal> {
        let shared = self.buffers.get_mut(&number).ok_or(Refusal::UnknownBuffer(number))?;
        Ok(shared.attach(&self.piodma, Access::all())?.address())
    }

    /// "Free".
    fn free(&mut self, number: u32) -> Result<(), Refusal> {
        let shared = self.buffers.remove(&number).ok_or(Refusal::UnknownBuffer(number))?;
        Ok(shared.free()?)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::builder()
        .ram(PhysRange::new(PhysAddr::new(0x8_0000_0000), 1 << 30)?)
        .iommu(IommuConfig::new("dcp_dart", SimFormat::Dart1, 32))
        .iommu(IommuConfig::new("disp0_dart", SimFormat::Dart1, 32))
        .device(SimSpec::behind("dcp", "dcp_dart", 0))
        .device(SimSpec::behind("piodma", "disp0_dart", 4))
        .build()?;
    let (dcp, piodma) =
        (attach(&machine, "dcp", "dcp_dart", 0)?, attach(&machine, "piodma", "disp0_dart", 4)?);
    let mut driver = Dcp { dcp, piodma, buffers: BTreeMap::new(), next: 0 };

    let (number, for_dcp) = driver.allocate(3 * 4096)?;
    let for_piodma = driver.map_piodma(number)?;
    println!("buffer {number}: {for_dcp} for the coprocessor, {for_piodma} for PIODMA");

    // Both see the same bytes.
    machine.device("dcp").ok_or("no device")?.write(for_dcp, b"surface descriptor")?;
    let mut seen = [0; 18];
    machine.device("piodma").ok_or("no device")?.read(for_piodma, &mut seen)?;
    assert_eq!(&seen, b"surface descriptor");

    let refusal = driver.map_piodma(77).expect_err("there is no such buffer");
    println!("buffer 77: {refusal}");
    driver.free(number)?;
    let late = machine.device("piodma").ok_or("no device")?.read(for_piodma, &mut seen);
    println!("after free: {}", late.expect_err("the device has lost the buffer"));
    Ok(())
}

/// Puts a device behind a domain of its own.
fn attach(
    machine: &Machine,
    name: &str,
    dart: &str,
    stream: u32,
) -> Result<Device, Box<dyn std::error::Error>> {
    let unit = SimUnit::new(machine.iommu(dart).ok_or("no such IOMMU")?).ok_or("no such format")?;
    let tables = Paged::<Dart1, SimPlatform, _>::new(machine.platform(), &[Iommu::new(unit)])?;
    let domain = Domain::new(machine.platform(), tables, &DomainConfig::default())?;
    Ok(domain.attach(DeviceSpec::new(name), &[Stream::new(stream)], None)?)
}
