//! Law 8: what cannot be shared, or mapped for a device, is refused in words: the devices, the
//! constraint and the value.

use std::fmt::Display;

use granule::addr::{Access, Direction, DmaAddr, Granule, Iova, IovaRange, PhysAddr, PhysRange};
use granule::dma::{
    BounceReason, BusWindow, Coherent, Device, DeviceSpec, DmaError, MapFlags, Reservation,
};
use granule::domain::{DomainConfig, Stream};
use granule::mem::FrameError;
use granule::share::{Plan, ShareError, Shared, Windows};
use granule::table::{Dart1, Lpae4k};
use granule_checks::{Board, Buf, RAM, RAM_LEN, dma_range, phys_range};
use granule_sim::frames::Fragmentation;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::DeviceSpec as SimSpec;
use granule_sim::walk::SimFormat;

const GIB4: u64 = 1 << 32;

#[track_caller]
fn says(error: &impl Display, needles: &[&str]) {
    let text = error.to_string();
    for needle in needles {
        assert!(text.contains(needle), "`{needle}` is missing in: {text}");
    }
}

fn direct(board: &Board, spec: DeviceSpec, start: u64, len: u64) -> Device {
    let window = [BusWindow::identity(phys_range(start, len))];
    Device::direct(board.platform(), spec, &window, None).expect("a legal device")
}

fn arm(board: &Board) -> Device {
    let domain = board.domain_of::<Lpae4k>("smmu", &DomainConfig::default());
    board.attach(&domain, DeviceSpec::new("arm"), 0)
}

#[track_caller]
fn unsolved(plan: Plan) -> ShareError {
    plan.solve().expect_err("an impossible plan")
}

#[test]
fn plans_that_ask_for_nothing() {
    let board = Board::usual();
    let device = board.device();
    let (all, none) = (Access::all(), Access::empty());
    assert_eq!(unsolved(Plan::new(1)), ShareError::NoDevice);
    assert_eq!(unsolved(Plan::new(0).device(&device, all)), ShareError::Empty);
    let named = || "dev".to_string();
    let error = unsolved(Plan::new(1).device(&device, none));
    assert_eq!(error, ShareError::NoAccess { device: named() });
    says(&error, &["dev", "grant_address"]);
    let twice = Plan::new(1).device(&device, all).device(&device.clone(), Access::READ);
    assert_eq!(unsolved(twice), ShareError::Twice { device: named() });
    let len = u64::MAX;
    let error = unsolved(Plan::new(len).device(&device, all));
    assert_eq!(error, ShareError::TooLong { len, granule: Granule::K16 });
}

#[test]
fn windows_that_have_nothing_in_common() {
    let board = Board::usual();
    let low = direct(&board, DeviceSpec::new("low"), RAM, GIB4 - RAM);
    let high = direct(&board, DeviceSpec::new("high"), GIB4, 0x1000_0000);
    let all = Access::all();
    let error = unsolved(Plan::new(0x1000).device(&low, all).device(&high, all));
    let first_windows = Windows::new([phys_range(RAM, GIB4 - RAM)]);
    let second_windows = Windows::new([phys_range(GIB4, 0x1000_0000)]);
    let (first, second) = ("low".into(), "high".into());
    assert_eq!(error, ShareError::Windows { first, first_windows, second, second_windows });
    says(&error, &["low", "high", "0x100000000", "0xffffffff"]);
    let edge = direct(&board, DeviceSpec::new("edge"), RAM, GIB4 - RAM + 0x2000);
    let error = unsolved(Plan::new(0x3000).device(&edge, all).device(&high, all));
    let wanted = ShareError::WindowTooSmall {
        first: "edge".into(),
        second: "high".into(),
        available: 0x2000,
        align: Granule::K4,
        len: 0x3000,
    };
    assert_eq!(error, wanted);
    says(&error, &["edge", "high", "0x2000", "0x3000"]);
}

#[test]
fn ranges_that_a_device_cannot_take() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let other = board.device_elsewhere();
    let all = Access::all();
    let with = |spec| board.attach(&domain, spec, 0);
    let device = with(DeviceSpec::new("dev").max_segment(0x8000));
    let error = unsolved(Plan::new(0x8001).device(&other, all).device(&device, all));
    let wanted = ShareError::Segment { device: "dev".into(), max: 0x8000, len: 0x8001 };
    assert_eq!(error, wanted);
    let device = with(DeviceSpec::new("dev").boundary(0x8000));
    let error = unsolved(Plan::new(0x8001).device(&other, all).device(&device, all));
    let wanted = ShareError::Boundary { device: "dev".into(), boundary: 0x8000, len: 0x8001 };
    assert_eq!(error, wanted);
    says(&error, &["dev", "0x8000", "0x8001"]);
    let device = with(DeviceSpec::new("dev").mask_bits(17));
    let plan = |len| Plan::new(len).device(&other, all).device(&device, all);
    let error = unsolved(plan(0x1_8000).guard(true));
    assert!(matches!(error, ShareError::AddressSpace { len: 0x2_0000, .. }), "{error}");
    says(&error, &["dev", "0x20000"]);
    drop(plan(0x1_0000).solve().expect("it fits without guards").allocate().expect("allocated"));
}

#[test]
fn one_address_that_cannot_be() {
    let board = Board::usual();
    let window = dma_range(0xf_0000_0000, 0xfc00_0000);
    let dcp = board.attach(&board.domain("dart"), DeviceSpec::new("dcp").window(window), 0);
    let disp = board.attach(&board.domain("other"), DeviceSpec::new("disp"), 0);
    let all = Access::all();
    let plan = Plan::new(0x4000).device(&dcp, all).device(&disp, all);
    plan.clone().solve().expect("each may have an address of its own");
    let error = unsolved(plan.same_address(true));
    assert!(matches!(error, ShareError::NoCommonAddress { .. }), "{error}");
    says(&error, &["dcp", "disp", "0xf00004000", "no address is in both"]);
}

/// A direct device's address is where the memory is, and that may be taken in the other's space.
#[test]
fn one_address_that_is_taken() {
    let board = Board::usual();
    let window = IovaRange::new(Iova::new(RAM), 0x4000).expect("legal");
    let config = DomainConfig { window: Some(window), ..DomainConfig::default() };
    let domain = board.domain_of::<Dart1>("dart", &config);
    let dev = board.attach(&domain, DeviceSpec::new("dev"), 0);
    // One granule of RAM, one granule of IOVA, and it is in use.
    let pci = direct(&board, DeviceSpec::new("pci"), RAM, 0x8000);
    let taken = dev.alloc_coherent(0x4000).expect("the only granule");
    let all = Access::all();
    let plan = || Plan::new(0x4000).device(&pci, all).device(&dev, all).same_address(true);
    let error = plan().solve().expect("possible").allocate().expect_err("taken");
    let refused = matches!(&error, ShareError::AddressesTaken { device } if device == "dev");
    // The coherent memory may have taken the granule of RAM as well.
    assert!(
        refused || matches!(error, ShareError::Memory { .. } | ShareError::Device(_)),
        "{error}"
    );
    drop(taken);
    assert_eq!(dev.stats().live_mappings + pci.stats().live_mappings, 0);
}

#[test]
fn a_fixed_address_beyond_a_mask() {
    let board = Board::usual();
    let pci = direct(&board, DeviceSpec::new("pci"), RAM, RAM_LEN);
    let dev = board.attach(&board.domain("dart"), DeviceSpec::new("dev").mask_bits(28), 0);
    let all = Access::all();
    let plan = Plan::new(0x4000).device(&pci, all).device(&dev, all).same_address(true);
    let error = unsolved(plan);
    assert!(matches!(error, ShareError::NoCommonAddress { .. }), "{error}");
    // Its addresses overlap the other's, but not where the memory will be.
    let low = Device::direct(
        board.platform(),
        DeviceSpec::new("low"),
        &[
            BusWindow::identity(phys_range(RAM, RAM_LEN)),
            BusWindow::identity(phys_range(0x1_0000, 0x1_0000)),
        ],
        None,
    );
    let low = low.expect("a legal device");
    let plan = Plan::new(0x4000).device(&low, all).device(&dev, all).same_address(true);
    let error = plan.solve().expect("possible").allocate().expect_err("beyond the mask");
    says(&error, &["dev", "mask"]);
    drop((low, dev, pci));
    board.assert_clean();
}

#[test]
fn two_machines() {
    let (one, two) = (Board::usual(), Board::usual());
    let (here, there) = (one.device(), two.device());
    let all = Access::all();
    let error = unsolved(Plan::new(1).device(&here, all).device(&there, all));
    assert_eq!(error, ShareError::Machines { first: "dev".into(), second: "dev".into() });
    let mut shared = allocate(Plan::new(1).device(&here, all));
    let error = shared.attach(&there, all).expect_err("another machine");
    assert!(matches!(error, ShareError::Machines { .. }), "{error}");
    let coherent = here.alloc_coherent(1).expect("allocated");
    let error = coherent.map_for(&there).expect_err("another machine");
    assert_eq!(error, DmaError::OtherMachine { device: "dev".into() });
}

#[track_caller]
fn allocate(plan: Plan) -> Shared {
    plan.solve().expect("a possible plan").allocate().expect("free memory")
}

#[test]
fn late_devices() {
    let parts = Board::parts().fragment(Fragmentation { max_block: 0x4000 }).seed(3);
    let board = Board::build(parts);
    let (arm, all) = (arm(&board), Access::all());
    let mut shared = allocate(Plan::new(0x9000).device(&arm, all));
    assert!(shared.blocks().len() > 1, "memory is fragmented");
    let dev = board.device();
    let error = shared.attach(&dev, all).expect_err("16 KiB granules");
    let device = || "dev".to_string();
    let (align, block) = (Granule::K16, odd(shared.blocks()));
    assert_eq!(error, ShareError::LateAlignment { device: device(), align, block });
    let pci = direct(&board, DeviceSpec::new("pci"), RAM, RAM_LEN);
    let blocks = shared.blocks().len();
    let error = shared.attach(&pci, all).expect_err("several blocks");
    assert_eq!(error, ShareError::LateContiguity { device: "pci".into(), blocks });
    let error = shared.attach(&arm, all).expect_err("it has it");
    assert_eq!(error, ShareError::Attached { device: "arm".into() });
    let error = shared.attach(&dev, Access::empty()).expect_err("no access");
    assert_eq!(error, ShareError::NoAccess { device: device() });
    let mut small = allocate(Plan::new(0x1000).device(&arm, all));
    let far = direct(&board, DeviceSpec::new("far"), 0x1000, 0x1000);
    let error = small.attach(&far, all).expect_err("out of reach");
    let windows = Windows::new([phys_range(0x1000, 0x1000)]);
    let block = small.blocks()[0];
    assert_eq!(error, ShareError::LateReach { device: "far".into(), windows, block });
    let short = direct(&board, DeviceSpec::new("short").max_segment(16), RAM, RAM_LEN);
    let error = small.attach(&short, all).expect_err("segments too short");
    assert!(matches!(error, ShareError::Segment { max: 16, .. }), "{error}");
    let key = small.ranges().next().expect("one device").key();
    assert_eq!(shared.get(key).expect_err("a key of another buffer"), ShareError::ForeignKey);
    assert_eq!(shared.detach(key).expect_err("a key of another buffer"), ShareError::ForeignKey);
    assert_eq!(shared.ranges().count(), 1, "all refusals left it as it was");
}

#[test]
fn memory_that_is_not_there() {
    let parts = Board::parts().fragment(Fragmentation { max_block: 0x4000 });
    let board = Board::build(parts);
    let pci = direct(&board, DeviceSpec::new("pci"), RAM, RAM_LEN);
    let plan = Plan::new(0x8000).device(&pci, Access::all());
    let error = plan.solve().expect("possible").allocate().expect_err("no 32 KiB anywhere");
    let (align, shape) = (Granule::K4, "one block");
    let cause = FrameError::OutOfMemory;
    assert_eq!(error, ShareError::Memory { len: 0x8000, align, shape, cause });
    says(&error, &["0x8000", "4 KiB", "one block"]);
    board.assert_clean();
}

#[test]
fn mappings_that_cannot_be() {
    let mut narrow = IommuConfig::new("narrow", SimFormat::Dart1, 32);
    narrow.output_bits = 32;
    let parts = Board::parts().iommu(narrow).device(SimSpec::behind("small", "narrow", 0));
    let board = Board::build(parts);
    let small = board.attach(&board.domain("narrow"), DeviceSpec::new("small"), 0);
    let high = Buf::within(&board.machine, Board::high(), 0, 0x4000);
    let refused = small.map(high, Direction::ToDevice).expect_err("beyond 32 bits");
    let reason = BounceReason::OutOfReach;
    assert_eq!(refused.error, DmaError::NoBounce { device: "small".into(), reason });
    says(&refused, &["small", "bounce pool"]);
    assert!(refused.buffer.is_some(), "the buffer comes back");
    let coherent = small.alloc_coherent(0x4000).expect("memory below 4 GiB");
    assert!(coherent.scatter_list()[0].last().raw() < GIB4);
    let pci = direct(&board, DeviceSpec::new("pci"), RAM, RAM_LEN);
    let error = Reservation::<_, Buf>::new(&pci, 0x1000).expect_err("not translated");
    assert_eq!(error, DmaError::NotTranslated { device: "pci".into() });
    let error = Coherent::new(&small, 0x4001, MapFlags::NO_PADDING).expect_err("odd length");
    let granule = Granule::K16;
    assert_eq!(error, DmaError::Padding { device: "small".into(), len: 0x4001, granule });
    let error = small.alloc_coherent(0).expect_err("empty");
    assert_eq!(error, DmaError::Empty { device: "small".into() });
}

#[test]
fn coherent_memory_that_another_device_cannot_have() {
    let parts = Board::parts().fragment(Fragmentation { max_block: 0x4000 }).with_cache();
    let board = Board::build(parts);
    let arm = arm(&board);
    let coherent = arm.alloc_coherent(0x9000).expect("allocated");
    let blocks = coherent.scatter_list().len();
    let pci = direct(&board, DeviceSpec::new("pci"), RAM, RAM_LEN);
    let error = coherent.map_for(&pci).expect_err("several blocks");
    assert_eq!(error, DmaError::NotContiguous { device: "pci".into(), blocks });
    let dev = board.device();
    let error = coherent.map_for(&dev).expect_err("16 KiB granules");
    let block = odd(coherent.scatter_list());
    let granule = Granule::K16;
    assert_eq!(error, DmaError::BlockAlignment { device: "dev".into(), block, granule });
    let one = arm.alloc_coherent(0x1000).expect("allocated");
    let low = BusWindow::new(DmaAddr::new(0x1000), PhysAddr::new(0x1000), 0x1000).expect("legal");
    let away = Device::direct(board.platform(), DeviceSpec::new("away"), &[low], None);
    let error = one.map_for(&away.expect("legal")).expect_err("out of reach");
    let range = one.scatter_list()[0];
    assert_eq!(error, DmaError::Unreachable { device: "away".into(), range });
    let spec = DeviceSpec::new("deaf").non_snooping();
    let error = one.map_for(&direct(&board, spec, RAM, RAM_LEN)).expect_err("cached");
    assert_eq!(error, DmaError::NotCoherent { device: "deaf".into() });
}

/// The first block that is not whole granules of 16 KiB.
fn odd(blocks: &[PhysRange]) -> PhysRange {
    *blocks.iter().find(|block| !block.is_aligned(Granule::K16)).expect("a small block")
}

/// A second device for plans.
trait Elsewhere {
    fn device_elsewhere(&self) -> Device;
}

impl Elsewhere for Board {
    fn device_elsewhere(&self) -> Device {
        let domain = self.domain("other");
        domain.attach(DeviceSpec::new("far"), &[Stream::new(0)], None).expect("a legal device")
    }
}
