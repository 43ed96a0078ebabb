//! One buffer, two devices, two IOMMUs: the shortest way from a simulated machine to `Shared`.

use std::sync::Arc;

use granule::addr::{Access, DmaAddr, PhysAddr, PhysRange};
use granule::dma::{Device, DeviceSpec};
use granule::domain::{Domain, DomainConfig, Iommu, Paged, Stream};
use granule::share::Plan;
use granule::table::Dart1;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec as SimSpec, Machine};
use granule_sim::platform::SimPlatform;
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let machine = Machine::builder()
        .ram(PhysRange::new(PhysAddr::new(0x8_0000_0000), 1 << 30)?)
        .iommu(IommuConfig::new("dcp_dart", SimFormat::Dart1, 32))
        .iommu(IommuConfig::new("disp0_dart", SimFormat::Dart1, 32))
        .device(SimSpec::behind("dcp", "dcp_dart", 0))
        .device(SimSpec::behind("piodma", "disp0_dart", 4))
        .build()?;
    let dcp = attach(&machine, "dcp", "dcp_dart", 0)?;
    let piodma = attach(&machine, "piodma", "disp0_dart", 4)?;

    let plan = Plan::new(100_000).device(&dcp, Access::all()).device(&piodma, Access::READ);
    let solved = plan.guard(true).solve()?;
    print!("{solved}");
    let shared = solved.allocate()?;
    for range in shared.ranges() {
        println!("{} sees {} bytes at {}", range.device().name(), range.len(), range.address());
    }

    let address = |device: &Device| shared.range_of(device).map(|range| range.address());
    let (to, from) = (address(&dcp).ok_or("no range")?, address(&piodma).ok_or("no range")?);
    machine.device("dcp").ok_or("no device")?.write(to, b"a frame")?;
    let mut seen = [0; 7];
    machine.device("piodma").ok_or("no device")?.read(from, &mut seen)?;
    assert_eq!(&seen, b"a frame");
    shared.free()?;
    let late =
        machine.device("piodma").ok_or("no device")?.read(DmaAddr::new(from.raw()), &mut seen);
    println!("after free: {}", late.expect_err("the device has lost the buffer"));
    Ok(())
}

/// Puts a device behind a domain of its own.
fn attach(machine: &Machine, name: &str, dart: &str, stream: u32) -> Result<Device, Error> {
    let unit = SimUnit::new(machine.iommu(dart).ok_or("no such IOMMU")?).ok_or("no such format")?;
    let iommu = Iommu::<SimPlatform, _>::new(unit);
    let tables = Paged::<Dart1, _, _>::new(machine.platform(), &[iommu])?;
    let domain: Arc<_> = Domain::new(machine.platform(), tables, &DomainConfig::default())?;
    Ok(domain.attach(DeviceSpec::new(name), &[Stream::new(stream)], None)?)
}
