//! Groups: devices whose streams overlap share one domain, and one of them may leave.

use granule::addr::{Direction, PhysAddr, PhysRange};
use granule::dma::{DeviceSpec, ForeignMemory};
use granule::domain::{Domain, DomainConfig, Iommu, Paged, Stream, StreamId};
use granule::mem::{FrameRequest, OwnedFrames};
use granule::table::Lpae4k;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec as SimSpec, Machine};
use granule_sim::platform::SimPlatform;
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

/// Stream 4 with mask 1 stands for 4 and 5; another device of the group has 5 alone.
#[test]
fn a_device_that_leaves_does_not_block_those_its_stream_overlaps() {
    let ram = PhysRange::new(PhysAddr::new(0x8000_0000), 1 << 26).expect("legal");
    let machine = Machine::builder()
        .ram(ram)
        .iommu(IommuConfig::new("smmu", SimFormat::Lpae4k, 40))
        .device(SimSpec::behind("pair", "smmu", 4))
        .device(SimSpec::behind("single", "smmu", 5))
        .build()
        .expect("a machine");
    let unit = SimUnit::new(machine.iommu("smmu").expect("as built")).expect("a known format");
    let iommu = Iommu::<SimPlatform, _>::new(unit);
    let tables = Paged::<Lpae4k, _, _>::new(machine.platform(), std::slice::from_ref(&iommu))
        .expect("tables");
    let domain =
        Domain::new(machine.platform(), tables, &DomainConfig::default()).expect("a domain");
    let masked = Stream { unit: 0, id: StreamId { id: 4, mask: 1 } };
    let pair = domain.attach(DeviceSpec::new("pair"), &[masked], None).expect("attached");
    let single =
        domain.attach(DeviceSpec::new("single"), &[Stream::new(5)], None).expect("the same domain");

    let frames = OwnedFrames::zeroed(machine.platform(), &FrameRequest::new(4096, 4096));
    let frames = frames.expect("a frame");
    let range = frames.range();
    // SAFETY: the frames live in the closure until nobody needs them.
    let memory = unsafe { ForeignMemory::from_pages(&[range], move || drop(frames)) };
    let mapping = single.map(memory, Direction::Bidirectional).expect("a mapping");
    let address = mapping.address();
    drop(pair);
    machine.device("single").expect("as built").write(address, b"still here").expect("not blocked");
    machine.device("pair").expect("as built").write(address, b"gone").expect_err("blocked");
    let mut seen = [0; 10];
    machine.ram().read(range.start(), &mut seen).expect("in RAM");
    assert_eq!(&seen, b"still here");
    drop(mapping);
    drop(single);
    assert_eq!(iommu.streams(), []);
}
