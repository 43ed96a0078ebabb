//! What `share` does at its edges: devices with different rights in one domain, direct devices that
//! agree or do not, devices that come later, spaces where the first address tried is taken.

use granule::addr::{Access, DmaAddr, DmaRange, Granule, Iova, IovaRange};
use granule::dma::{BusWindow, Device, DeviceSpec, RouteReport};
use granule::domain::{DomainConfig, Reserved, Stream};
use granule::share::{Plan, ShareError, Shared};
use granule::table::{Dart1, Lpae4k};
use granule_checks::quiet::Quiet;
use granule_checks::{Board, RAM, phys_range};
use granule_sim::faults::Point;
use granule_sim::frames::Fragmentation;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::DeviceSpec as SimSpec;
use granule_sim::walk::SimFormat;

const ALL: Access = Access::all();

#[track_caller]
fn allocate(plan: Plan) -> Shared {
    plan.solve().expect("a possible plan").allocate().expect("free memory")
}

#[test]
fn devices_of_one_domain_at_one_address_have_the_sum_of_their_rights() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let reader = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let writer = board.attach(&domain, DeviceSpec::new("dev1"), 1);
    let plan = Plan::new(0x4000).device(&reader, Access::READ).device(&writer, Access::WRITE);
    let shared = allocate(plan.same_address(true));
    shared.write(0, b"from the CPU").expect("inside");
    shared.sync_for_device(0, shared.len()).expect("inside");
    let at = shared.range_of(&reader).expect("planned").address();
    assert_eq!(board.read("dev", at, 12).as_deref(), Some(&b"from the CPU"[..]));
    assert!(board.write("dev1", at, b"and back"));
    shared.sync_for_cpu(0, shared.len()).expect("inside");
    let mut seen = [0; 8];
    shared.read(0, &mut seen).expect("inside");
    assert_eq!(&seen, b"and back");
}

/// Each space has room where the other has none, until both agree.
#[test]
fn one_address_is_looked_for_until_it_is_free_in_every_space() {
    let board = Board::usual();
    let with_holes = |name: &str, stream: u32, holes: &[u64]| {
        let hole = |at: &u64| {
            Reserved::hole(IovaRange::new(Iova::new(*at), 0x4000).expect("a legal range"))
        };
        let reserved = holes.iter().map(hole).collect();
        let config = DomainConfig { reserved, ..DomainConfig::default() };
        let domain = board.domain_of::<Dart1>(name, &config);
        let device = if name == "dart" { "dev" } else { "far" };
        domain.attach(DeviceSpec::new(device), &[Stream::new(stream)], None).expect("legal")
    };
    let top = (1u64 << 32) - 0x4000;
    let dev = with_holes("dart", 0, &[top - 0x4000, top - 3 * 0x4000]);
    let far = with_holes("other", 0, &[top, top - 2 * 0x4000]);
    let plan = Plan::new(0x4000).device(&dev, ALL).device(&far, ALL).same_address(true);
    let shared = allocate(plan);
    let at: Vec<_> = shared.ranges().map(|range| range.address().raw()).collect();
    assert_eq!(at, [top - 4 * 0x4000; 2]);
}

fn direct(board: &Board, name: &str, bus: u64) -> Device {
    let memory = phys_range(RAM, 0x1000_0000);
    let window = BusWindow { bus: DmaAddr::new(bus), memory };
    let device = Device::direct(board.platform(), DeviceSpec::new(name), &[window], None);
    device.expect("a legal device")
}

#[test]
fn direct_devices_agree_on_an_address_or_the_plan_fails() {
    let board = Board::usual();
    let (one, two) = (direct(&board, "one", 0x1000_0000), direct(&board, "two", 0x1000_0000));
    let odd = direct(&board, "odd", 0x1000_4000);
    let plan = |other: &Device| Plan::new(0x4000).device(&one, ALL).device(other, ALL);
    let shared = allocate(plan(&two).same_address(true));
    let wanted = shared.blocks()[0].start().raw() - RAM + 0x1000_0000;
    assert!(shared.ranges().all(|range| range.address().raw() == wanted));
    let refused = plan(&odd).same_address(true).solve().expect("the windows overlap");
    let refused = refused.allocate().expect_err("two addresses");
    let ShareError::NoCommonAddress { first, second, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!((first.as_str(), second.as_str()), ("one", "odd"));
    allocate(plan(&odd));
}

#[test]
fn a_device_that_comes_later_is_counted_on_and_not_mapped_for() {
    let board = Board::build(Board::parts().fragment(Fragmentation { max_block: 0x4000 }).seed(3));
    let domain = board.domain_of::<Lpae4k>("smmu", &DomainConfig::default());
    let arm = board.attach(&domain, DeviceSpec::new("arm"), 0);
    let dev = board.device();
    let solved = Plan::new(0x9000).device(&arm, ALL).later(&dev).solve().expect("possible");
    let later: Vec<_> = solved.parties().iter().map(|party| party.is_later()).collect();
    assert_eq!(later, [false, true]);
    assert_eq!((solved.constraints().align, solved.size()), (Granule::K16, 0xc000));
    let mut shared = solved.allocate().expect("free memory");
    assert_eq!((shared.ranges().count(), dev.stats().live_mappings), (1, 0));
    shared.attach(&dev, ALL).expect("the blocks suit it");
    // Named among the others too, it is one of them.
    let both = Plan::new(0x4000).device(&dev, ALL).later(&dev).solve().expect("possible");
    assert_eq!((both.parties().len(), both.parties()[0].is_later()), (1, false));
    // Without it, blocks are of the smaller granule.
    let alone = Plan::new(0x9000).device(&arm, ALL).solve().expect("possible");
    assert_eq!((alone.constraints().align, alone.size()), (Granule::K4, 0x9000));
}

/// A tight space is tried again only if the place was lost to somebody else.
#[test]
fn a_tight_space_without_a_table_page_is_refused_and_not_tried_for_ever() {
    let board = Board::usual();
    let dev = board.attach(&board.domain("dart"), DeviceSpec::new("dev").mask_bits(17), 0);
    let solved = Plan::new(5 * 0x4000).device(&dev, ALL).solve().expect("possible");
    // The buffer's own blocks are had, the table's page is not, for some of these.
    let refused_for_tables = (0..8).any(|frames| {
        board.machine.faults().fail_from(Point::Frames, frames);
        let allocated = solved.allocate();
        board.machine.faults().clear();
        matches!(allocated, Err(ShareError::Device(_)))
    });
    assert!(refused_for_tables);
    assert_eq!(dev.stats().live_mappings, 0);
    solved.allocate().expect("it fits");
}

#[test]
fn memory_that_is_whole_comes_in_blocks_for_large_pages() {
    let board = Board::usual();
    let domain = board.domain_of::<Lpae4k>("smmu", &DomainConfig::default());
    let arm = board.attach(&domain, DeviceSpec::new("arm"), 0);
    let shared = allocate(Plan::new(4 << 20).device(&arm, ALL));
    let lens: Vec<_> = shared.blocks().iter().map(|block| block.len()).collect();
    assert_eq!(lens.iter().sum::<u64>(), 4 << 20);
    assert!(lens.iter().all(|len| *len >= 2 << 20), "{lens:x?}");
}

/// What a device may still reach is never freed, whichever call it was that failed.
#[test]
fn memory_that_a_device_may_still_reach_is_kept() {
    for way in ["detach", "free", "drop", "allocate"] {
        let board = Board::usual();
        let dev = board.device();
        let solved = Plan::new(0x4000).device(&dev, ALL).solve().expect("possible");
        let fail = |point, nth| board.machine.faults().fail_from(point, nth);
        if way == "allocate" {
            // The table's page is not had, and the half-made mapping cannot be forgotten.
            fail(Point::Frames, 1);
            fail(Point::Invalidation, 0);
            let refused = solved.allocate().expect_err("no table page");
            assert!(matches!(refused, ShareError::Device(_)), "{refused}");
        } else {
            let mut shared = solved.allocate().expect("free memory");
            let (key, at) = shared.ranges().next().map(|r| (r.key(), r.address())).expect("one");
            assert!(board.write("dev", at, &[1]), "the IOTLB has it now");
            fail(Point::Invalidation, 0);
            match way {
                "detach" => {
                    let refused = shared.detach(key).expect_err("it is not forgotten");
                    assert!(matches!(refused, ShareError::Unmap(_)), "{refused}");
                    board.machine.faults().clear();
                    drop(shared);
                }
                "free" => {
                    let refused = shared.free().expect_err("it is not forgotten");
                    assert!(matches!(refused, ShareError::Unmap(_)), "{refused}");
                }
                _ => drop(shared),
            }
        }
        board.machine.faults().clear();
        board.assert_reaches_live_only("dev");
        let live = board.machine.frames().live();
        let kept: u64 = live.iter().map(|range| range.len()).filter(|len| *len == 0x4000).sum();
        assert!(kept >= 0x4000, "{way}: {live:?}");
    }
}

#[test]
fn a_direct_device_whose_bus_crosses_a_boundary_is_refused() {
    let board = Board::usual();
    let memory = phys_range(RAM, 0x1000_0000);
    let window = BusWindow { bus: DmaAddr::new(0x1000_4000), memory };
    let spec = DeviceSpec::new("pci").boundary(0x8000);
    let device = Device::direct(board.platform(), spec, &[window], None).expect("legal");
    let refused = Plan::new(0x8000).device(&device, ALL).solve().expect("possible").allocate();
    let wanted = ShareError::Boundary { device: "pci".into(), boundary: 0x8000, len: 0x8000 };
    assert_eq!(refused.expect_err("it crosses 0x10008000 or 0x10010000"), wanted);
    assert_eq!(device.stats().live_mappings, 0);
    allocate(Plan::new(0x4000).device(&device, ALL));
}

#[test]
fn a_device_that_does_not_snoop_is_kept_in_step_alone_too() {
    let deaf = SimSpec { snoops: false, ..SimSpec::behind("deaf", "other", 1) };
    let board = Board::build(Board::parts().device(deaf).with_cache());
    let dev = board.device();
    let spec = DeviceSpec::new("deaf").non_snooping();
    let deaf = board.domain("other").attach(spec, &[Stream::new(1)], None).expect("legal");
    let mut late = allocate(Plan::new(0x5000).device(&dev, ALL));
    let key = late.attach(&deaf, ALL).expect("kept in step by syncs").key();
    let first = late.range_of(&dev).expect("planned").key();
    late.detach(first).expect("let go");
    let at = late.get(key).expect("attached").address();
    for round in 1..4u8 {
        late.write(0, &[round; 16]).expect("inside");
        late.sync_for_device(0, 16).expect("inside");
        assert_eq!(board.read("deaf", at, 16), Some(vec![round; 16]));
        assert!(board.write("deaf", at, &[round + 100; 16]));
        late.sync_for_cpu(0, 16).expect("inside");
        let mut seen = [0; 16];
        late.read(0, &mut seen).expect("inside");
        assert_eq!(seen, [round + 100; 16]);
    }
}

#[test]
fn what_was_found_is_told_line_by_line() {
    let board = Board::usual();
    let dev = board.device();
    let pci = direct(&board, "pci", RAM);
    let solved = Plan::new(5000).device(&dev, ALL).device(&pci, ALL).same_address(true);
    let solved = solved.solve().expect("possible");
    let text = solved.to_string();
    for line in [
        "the same address for all",
        "so 0x4000 bytes are allocated in one block aligned to 16 KiB",
        "0x4000 bytes in blocks of at least 16 KiB",
        "0x2000 bytes in one block aligned to 4 KiB",
    ] {
        assert!(text.contains(line), "`{line}` is missing in: {text}");
    }
    assert!(format!("{solved:?}").contains("len: 5000"));
    let shared = allocate(Plan::new(5000).device(&dev, ALL));
    assert!(format!("{shared:?}").contains("dev"));
}

/// The buffer of a device that was not made to forget it is kept, though nobody ever had it.
#[test]
fn memory_that_a_refused_device_may_reach_is_kept() {
    let picky = IommuConfig::new("picky", SimFormat::Dart1, 32);
    let parts = Board::parts().iommu(IommuConfig { caching_mode: true, ..picky });
    let board = Board::build(parts.device(SimSpec::behind("near", "picky", 0)));
    let domain = board.domain("picky");
    let near = board.attach(&domain, DeviceSpec::new("near"), 0);
    let solved = Plan::new(0x1_0000).device(&near, ALL).solve().expect("a possible plan");
    board.machine.faults().fail_from(Point::Invalidation, 0);
    drop(solved.allocate().expect_err("neither made known nor forgotten"));
    board.assert_reaches_live_only("near");
    board.machine.faults().clear();
    domain.recover().expect("the hardware answers again");
    drop((near, solved, domain));
    assert_eq!(board.machine.frames().live_bytes(), 0x1_0000);
    assert_eq!(board.machine.frames().errors(), []);
}

/// A platform may have no view that passes the cache by: then the memory is synced.
#[test]
fn a_platform_without_uncached_views_serves_devices_that_do_not_snoop() {
    let platform = Quiet::default();
    let window = BusWindow::identity(phys_range(0x1000, 1 << 47));
    let spec = DeviceSpec::new("deaf").non_snooping();
    let deaf = Device::direct(&platform, spec, &[window], None).expect("legal");
    let shared = allocate(Plan::new(0x4000).device(&deaf, ALL));
    shared.write(0x3ffc, b"last").expect("inside");
    shared.sync_for_device(0, 0x4000).expect("inside");
    let mut seen = [0; 4];
    shared.read(0x3ffc, &mut seen).expect("inside");
    assert_eq!(&seen, b"last");
}

/// One block for a device on the bus is placed so that tables can have their largest pages, though the
/// next free memory begins elsewhere.
#[test]
fn one_block_is_placed_for_the_largest_pages() {
    let board = Board::usual();
    let domain = board.domain_of::<Lpae4k>("smmu", &DomainConfig::default());
    let arm = board.attach(&domain, DeviceSpec::new("arm"), 0);
    let pci = direct(&board, "pci", RAM);
    let m2 = 2u64 << 20;
    for odd in [0x1000, 0x3000, 0x1_0000] {
        let _in_the_way = arm.alloc_coherent(odd).expect("free memory");
        let plan = Plan::new(2 * m2).device(&arm, ALL).device(&pci, ALL);
        let shared = allocate(plan);
        let range = shared.range_of(&arm).expect("planned");
        let range = DmaRange::new(range.address(), 2 * m2).ok();
        let RouteReport::Translated { page_sizes, .. } = arm.report(range) else {
            panic!("it is translated");
        };
        assert_eq!(page_sizes, [(m2, 2)], "{odd:#x}");
    }
}

/// Where the platform has views that pass the cache by, a device that does not snoop needs no syncs.
#[test]
fn a_device_that_does_not_snoop_sees_through_an_uncached_view() {
    let deaf = SimSpec { snoops: false, ..SimSpec::behind("deaf", "other", 1) };
    let board = Board::build(Board::parts().device(deaf).with_cache());
    let spec = DeviceSpec::new("deaf").non_snooping();
    let deaf = board.domain("other").attach(spec, &[Stream::new(1)], None).expect("legal");
    let shared = allocate(Plan::new(0x4000).device(&deaf, ALL));
    let at = shared.range_of(&deaf).expect("planned").address();
    for round in 1..4u8 {
        shared.write(0, &[round; 16]).expect("inside");
        assert_eq!(board.read("deaf", at, 16), Some(vec![round; 16]));
        assert!(board.write("deaf", at, &[round + 100; 16]));
        let mut seen = [0; 16];
        shared.read(0, &mut seen).expect("inside");
        assert_eq!(seen, [round + 100; 16]);
    }
}
