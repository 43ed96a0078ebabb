//! What `share` does: ranges, keys, late devices, one address for all, boundaries, and the end.

use granule::addr::{Access, DmaAddr, Granule, Iova, IovaRange, PhysAddr};
use granule::dma::{BusWindow, Device, DeviceSpec};
use granule::domain::{DomainConfig, Reserved, Stream};
use granule::share::{Plan, ShareError, Shared};
use granule::table::{Dart1, Lpae4k};
use granule_checks::{Board, RAM, RAM_LEN, dma_range, phys_range};
use granule_sim::frames::Fragmentation;
use granule_sim::machine::{DeviceSpec as SimSpec, Machine};

const ALL: Access = Access::all();

fn pair(board: &Board) -> (Device, Device) {
    let dev = board.device();
    let far = board.attach(&board.domain("other"), DeviceSpec::new("far"), 0);
    (dev, far)
}

fn arm(board: &Board) -> Device {
    let domain = board.domain_of::<Lpae4k>("smmu", &DomainConfig::default());
    board.attach(&domain, DeviceSpec::new("arm"), 0)
}

fn pci(board: &Board, spec: DeviceSpec) -> Device {
    Device::direct(board.platform(), spec, &[board.identity_window()], None).expect("legal")
}

#[track_caller]
fn allocate(plan: Plan) -> Shared {
    plan.solve().expect("a possible plan").allocate().expect("free memory")
}

/// Every device of the buffer sees what the CPU wrote, byte for byte, and the CPU what they write.
#[track_caller]
fn all_see_all(board: &Board, shared: &Shared) {
    let bytes: Vec<u8> = (0..shared.len()).map(|at| (at * 31 + at / 4096) as u8).collect();
    shared.write(0, &bytes).expect("inside");
    shared.sync_for_device(0, shared.len()).expect("inside");
    for (index, range) in shared.ranges().enumerate() {
        let name = range.device().name();
        assert!(board.read(name, range.address(), bytes.len()).as_ref() == Some(&bytes), "{name}");
        assert_eq!((range.len(), range.exposed()), (shared.len(), 0));
        assert_eq!(range.padding(), shared.size() - shared.len());
        assert_eq!(range.mapped().expect("legal").len(), shared.size());
        let mark = [index as u8 ^ 0x5a];
        let last = range.address().checked_add(range.len() - 1).expect("inside");
        assert_eq!(board.write(name, last, &mark), range.access().contains(Access::WRITE));
        if range.access().contains(Access::WRITE) {
            let mut seen = [0];
            shared.sync_for_cpu(0, shared.len()).expect("inside");
            shared.read(shared.len() - 1, &mut seen).expect("inside");
            assert_eq!(seen, mark);
            shared.write(0, &bytes).expect("inside");
            shared.sync_for_device(0, shared.len()).expect("inside");
        }
    }
}

#[test]
fn each_device_has_one_range_in_fragmented_memory() {
    let parts = Board::parts().fragment(Fragmentation { max_block: 0x4000 }).seed(5);
    let board = Board::build(parts);
    {
        let (dev, far) = pair(&board);
        let arm = arm(&board);
        let plan = Plan::new(100_000).device(&dev, ALL).device(&far, Access::READ);
        let shared = allocate(plan.device(&arm, ALL));
        assert!(shared.blocks().len() > 2, "several blocks");
        assert!(shared.blocks().iter().all(|block| block.is_aligned(Granule::K16)));
        assert_eq!((shared.len(), shared.size()), (100_000, 114_688));
        all_see_all(&board, &shared);
        shared.free().expect("all forget it");
        for name in ["dev", "far", "arm"] {
            board.assert_reaches_live_only(name);
        }
    }
    board.assert_clean();
}

#[test]
fn a_direct_device_gets_one_block() {
    let board = Board::usual();
    {
        let (dev, pci) = (board.device(), pci(&board, DeviceSpec::new("pci")));
        let shared = allocate(Plan::new(0x1_2345).device(&dev, ALL).device(&pci, ALL));
        assert_eq!(shared.blocks().len(), 1);
        let at = shared.range_of(&pci).expect("planned").address().raw();
        assert_eq!(at, shared.blocks()[0].start().raw());
        assert!(shared.as_ptr().is_some());
        all_see_all(&board, &shared);
    }
    board.assert_clean();
}

#[test]
fn memory_is_zeroed_padding_too() {
    let board = Board::usual();
    let dev = board.device();
    for _ in 0..2 {
        let shared = allocate(Plan::new(100).device(&dev, ALL));
        let at = shared.range_of(&dev).expect("planned").address();
        assert_eq!(board.read("dev", at, 0x4000), Some(vec![0; 0x4000]));
        assert!(board.write("dev", at, &[0xee; 0x4000]), "for the next owner to find");
    }
}

#[test]
fn keys_name_one_device_of_one_buffer() {
    let board = Board::usual();
    let (dev, far) = pair(&board);
    let mut shared = allocate(Plan::new(1).device(&dev, ALL));
    let first = shared.ranges().next().expect("one").key();
    let second = shared.attach(&far, Access::READ).expect("16 KiB granules as well").key();
    assert_ne!(first, second);
    assert_eq!(shared.get(second).expect("its key").device().name(), "far");
    all_see_all(&board, &shared);
    let at = shared.get(second).expect("its key").address();
    shared.detach(second).expect("it forgets");
    assert_eq!(shared.get(second).expect_err("let go"), ShareError::ForeignKey);
    assert!(board.read("far", at, 1).is_none() && shared.range_of(&far).is_none());
    all_see_all(&board, &shared);
    let third = shared.attach(&far, ALL).expect("once more").key();
    assert_ne!(second, third, "a key is never used again");
    assert_eq!(shared.get(second).expect_err("let go"), ShareError::ForeignKey);
    let other = allocate(Plan::new(1).device(&dev, ALL));
    assert_eq!(other.get(first).expect_err("of another buffer"), ShareError::ForeignKey);
}

#[test]
fn an_address_is_carried_without_a_mapping() {
    let board = Board::usual();
    let (dev, far) = pair(&board);
    let shared = allocate(Plan::new(0x4000).device(&dev, ALL));
    let key = shared.ranges().next().expect("one").key();
    let grant = shared.grant_address(key, &far).expect("its key");
    assert_eq!((grant.bearer(), grant.valid_for(), grant.len()), ("far", "dev", 0x4000));
    assert_eq!(grant.address(), shared.get(key).expect("its key").address());
    assert!(board.read("far", grant.address(), 1).is_none(), "the bearer cannot read there");
    assert_eq!(far.stats().live_mappings, 0);
    let other = allocate(Plan::new(1).device(&far, ALL));
    assert_eq!(other.grant_address(key, &far).expect_err("foreign"), ShareError::ForeignKey);
}

#[test]
fn guards_stay_unmapped() {
    let board = Board::usual();
    let (dev, far) = pair(&board);
    let plan = || Plan::new(0x8000).device(&dev, ALL).device(&far, ALL).guard(true);
    let (a, b) = (allocate(plan()), allocate(plan()));
    for shared in [&a, &b] {
        for range in shared.ranges() {
            let mapped = range.mapped().expect("legal");
            let around = [mapped.start().raw() - 1, mapped.last().raw() + 1];
            for at in around {
                assert!(board.read(range.device().name(), DmaAddr::new(at), 1).is_none());
            }
        }
    }
}

#[test]
fn one_address_for_several_domains() {
    let board = Board::usual();
    {
        let (dev, far) = pair(&board);
        // The tops of the two spaces are in use in turn: the highest common place is below both.
        let tops: Vec<_> =
            (0..3).map(|_| (dev.alloc_coherent(0x8000), far.alloc_coherent(0x4000))).collect();
        let plan = || Plan::new(0x6000).device(&dev, ALL).device(&far, Access::READ);
        let shared = allocate(plan().same_address(true));
        let guarded = allocate(plan().same_address(true).guard(true));
        for shared in [&shared, &guarded] {
            let addresses: Vec<_> = shared.ranges().map(|range| range.address()).collect();
            assert_eq!(addresses[0], addresses[1]);
            all_see_all(&board, shared);
        }
        drop(tops);
    }
    board.assert_clean();
}

/// The maintainers' pattern (b): devices of one domain have one mapping, which lives as long as one
/// of them has the buffer.
#[test]
fn one_address_for_devices_of_one_domain() {
    let board = Board::usual();
    {
        let domain = board.domain("dart");
        let dev = board.attach(&domain, DeviceSpec::new("dev"), 0);
        let dev1 = board.attach(&domain, DeviceSpec::new("dev1"), 1);
        let far = board.attach(&board.domain("other"), DeviceSpec::new("far"), 0);
        let plan = Plan::new(0x4000).device(&dev, ALL).device(&far, ALL).device(&dev1, ALL);
        let mut shared = allocate(plan.same_address(true));
        all_see_all(&board, &shared);
        let at = shared.range_of(&dev).expect("planned").address();
        assert!(shared.ranges().all(|range| range.address() == at));
        assert_eq!((dev.stats().live_mappings, dev1.stats().live_mappings), (1, 1));
        let key = shared.range_of(&dev).expect("planned").key();
        shared.detach(key).expect("let go");
        assert_eq!((dev.stats().live_mappings, dev1.stats().live_mappings), (0, 1));
        assert!(board.write("dev1", at, b"still there"));
        shared.free().expect("all forget it");
        assert!(!board.write("dev1", at, b"gone"));
        assert_eq!(dev1.stats().live_mappings, 0);
        board.assert_reaches_live_only("dev1");
    }
    board.assert_clean();
}

/// Without the wish for one address each device has a mapping of its own, in one domain too.
#[test]
fn devices_of_one_domain_come_and_go_alone() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let dev = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let dev1 = board.attach(&domain, DeviceSpec::new("dev1"), 1);
    let mut shared = allocate(Plan::new(0x4000).device(&dev, ALL).device(&dev1, ALL));
    all_see_all(&board, &shared);
    let (key, at) = {
        let range = shared.range_of(&dev).expect("planned");
        (range.key(), range.address())
    };
    shared.detach(key).expect("let go");
    assert!(!board.write("dev", at, b"gone"));
    all_see_all(&board, &shared);
}

#[test]
fn one_address_with_a_direct_device_is_the_memorys() {
    let board = Board::usual();
    let (dev, pci) = (board.device(), pci(&board, DeviceSpec::new("pci").mask_bits(32)));
    let shared = allocate(Plan::new(0x4000).device(&dev, ALL).device(&pci, ALL).same_address(true));
    let at = shared.blocks()[0].start().raw();
    assert!(shared.ranges().all(|range| range.address().raw() == at));
    all_see_all(&board, &shared);
}

/// A direct device's address that is taken in the other's space is refused, and not tried for ever.
#[test]
fn one_address_that_is_taken_by_something_else() {
    let board = Board::usual();
    let window = granule::addr::IovaRange::new(granule::addr::Iova::new(RAM), 0x8000);
    let config = DomainConfig { window: window.ok(), ..DomainConfig::default() };
    let domain = board.domain_of::<Dart1>("dart", &config);
    let dev = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let low = BusWindow::identity(phys_range(RAM + 0x10_0000, 0x1_0000));
    let shifted = BusWindow { bus: DmaAddr::new(RAM), memory: low.memory };
    let pci = Device::direct(board.platform(), DeviceSpec::new("pci"), &[shifted], None);
    let pci = pci.expect("a legal device");
    let taken: Vec<_> = (0..2).map(|_| dev.alloc_coherent(0x4000).expect("free")).collect();
    let plan = Plan::new(0x4000).device(&pci, ALL).device(&dev, ALL).same_address(true);
    let error = plan.solve().expect("possible").allocate().expect_err("all of it is taken");
    assert_eq!(error, ShareError::AddressesTaken { device: "dev".into() });
    assert_eq!(pci.stats().live_mappings, 0);
    drop(taken);
}

#[test]
fn no_range_crosses_a_boundary() {
    let board = Board::usual();
    let (domain, other) = (board.domain("dart"), board.domain("other"));
    let boundary = 0x1_0000;
    let spec = |name: &str| DeviceSpec::new(name).boundary(boundary);
    let dev = board.attach(&domain, spec("dev"), 0);
    let far = board.attach(&other, spec("far"), 0);
    let pci = pci(&board, spec("pci"));
    let inside = |shared: &Shared| {
        for range in shared.ranges() {
            let (first, last) = (range.address().raw(), range.address().raw() + range.len() - 1);
            assert_eq!(first / boundary, last / boundary, "{}", range.device().name());
        }
    };
    let mut kept = Vec::new();
    for (len, guard, same) in [
        (0x1_0000, true, false),
        (0xc000, true, true),
        (0x4000, false, true),
        (0x1_0000, false, true),
    ] {
        let plan = Plan::new(len).device(&dev, ALL).device(&far, ALL);
        kept.push(allocate(plan.guard(guard).same_address(same)));
        let crooked =
            board.machine.frames().alloc(&granule::mem::FrameRequest::new(0x1000, 0x1000));
        crooked.expect("free memory");
        kept.push(allocate(Plan::new(len - 0x1000).device(&pci, ALL)));
    }
    kept.iter().for_each(inside);
}

#[test]
fn blocks_come_from_every_bank_of_memory() {
    let parts = Machine::builder()
        .ram(phys_range(RAM, 24 << 20))
        .ram(phys_range(1 << 32, 24 << 20))
        .iommu(granule_sim::iommu::IommuConfig::new(
            "smmu",
            granule_sim::walk::SimFormat::Lpae4k,
            39,
        ))
        .device(SimSpec::behind("arm", "smmu", 0));
    let board = Board::build(parts);
    let arm = arm(&board);
    // 32 MiB pages exist in the tables and not in either bank.
    let shared = allocate(Plan::new(40 << 20).device(&arm, ALL));
    assert!(shared.blocks().len() >= 2);
    let range = shared.range_of(&arm).expect("planned");
    let last = range.address().checked_add(range.len() - 1).expect("inside");
    assert!(board.write("arm", last, b"x") && board.write("arm", range.address(), b"y"));
}

#[test]
fn address_zero_is_not_the_whole_machine() {
    let board = Board::usual();
    let window = BusWindow::new(DmaAddr::new(0), PhysAddr::new(RAM), RAM_LEN).expect("legal");
    let zero = Device::direct(board.platform(), DeviceSpec::new("zero"), &[window], None);
    let zero = zero.expect("a legal device");
    let shared = allocate(Plan::new(0x1000).device(&zero, ALL));
    assert_ne!(shared.range_of(&zero).expect("planned").address().raw(), 0);
    assert_ne!(zero.alloc_coherent(0x1000).expect("allocated").address().raw(), 0);
}

#[test]
fn devices_that_do_not_snoop_share_too() {
    let deaf = SimSpec { snoops: false, ..SimSpec::behind("deaf", "other", 1) };
    let board = Board::build(Board::parts().device(deaf).with_cache());
    {
        let dev = board.device();
        let domain = board.domain("other");
        let deaf = domain.attach(DeviceSpec::new("deaf").non_snooping(), &[Stream::new(1)], None);
        let deaf = deaf.expect("a legal device");
        all_see_all(&board, &allocate(Plan::new(0x5000).device(&dev, ALL).device(&deaf, ALL)));
        let mut late = allocate(Plan::new(0x5000).device(&dev, ALL));
        late.attach(&deaf, ALL).expect("kept in step by syncs");
        all_see_all(&board, &late);
    }
    board.assert_clean();
}

#[test]
fn a_solved_plan_explains_itself() {
    let board = Board::usual();
    let window = dma_range(0xf_0000_0000, 0xfc00_0000);
    let dcp = board.attach(&board.domain("dart"), DeviceSpec::new("dcp").window(window), 0);
    let arm = arm(&board);
    let solved = Plan::new(5000).device(&dcp, ALL).device(&arm, Access::READ).solve();
    let solved = solved.expect("a possible plan");
    assert_eq!((solved.len(), solved.size()), (5000, 0x4000));
    assert_eq!(solved.constraints().align, Granule::K16);
    assert_eq!(solved.parties()[1].granule(), Some(Granule::K4));
    let text = solved.to_string();
    for needle in ["dcp", "arm", "16 KiB", "4 KiB", "0x1388", "0xf00004000", "0x4000", "0x2000"] {
        assert!(text.contains(needle), "`{needle}` is missing in: {text}");
    }
}

#[test]
fn bytes_outside_are_refused() {
    let board = Board::usual();
    let shared = allocate(Plan::new(100).device(&board.device(), ALL));
    let outside = |offset, end| ShareError::OutOfBounds { offset, end, len: 100 };
    assert_eq!(shared.read(99, &mut [0; 2]), Err(outside(99, 101)));
    assert_eq!(shared.write(u64::MAX, &[0; 2]), Err(outside(u64::MAX, u64::MAX)));
    assert_eq!(shared.sync_for_cpu(0, 101), Err(outside(0, 101)));
    assert_eq!(shared.sync_for_device(u64::MAX, u64::MAX), Err(outside(u64::MAX, u64::MAX)));
    assert_eq!(shared.read(100, &mut []), Ok(()));
}

/// A device is told of the length that was asked for: padding does not count against its limits.
#[test]
fn limits_are_on_the_range_and_not_on_its_padding() {
    let board = Board::usual();
    {
        let domain = board.domain("dart");
        for spec in [
            DeviceSpec::new("dev").max_segment(0x1800),
            DeviceSpec::new("dev").boundary(0x2000),
            DeviceSpec::new("dev").max_segment(0x1800).boundary(0x2000),
        ] {
            let dev = board.attach(&domain, spec, 0);
            let mut shared = allocate(Plan::new(0x1800).device(&dev, ALL));
            assert_eq!((shared.len(), shared.size()), (0x1800, 0x4000));
            all_see_all(&board, &shared);
            let key = shared.range_of(&dev).expect("planned").key();
            shared.detach(key).expect("it forgets the range");
            shared.attach(&dev, ALL).expect("late, it has the same limits");
            all_see_all(&board, &shared);
        }
    }
    board.assert_clean();
}

/// 5 granules are naturally aligned to 8, and the space has 7: they fit all the same.
#[test]
fn a_tight_space_is_used_without_natural_alignment() {
    let board = Board::usual();
    {
        let domain = board.domain("dart");
        let dev = board.attach(&domain, DeviceSpec::new("dev").mask_bits(17), 0);
        let plan = Plan::new(5 * 0x4000).device(&dev, ALL);
        let shared = allocate(plan.clone().guard(true));
        let range = shared.ranges().next().expect("planned").mapped().expect("legal");
        assert!(range.start().raw() >= 0x8000 && range.last().raw() < 0x1_c000, "{range}");
        all_see_all(&board, &shared);
        let error =
            plan.clone().solve().expect("possible").allocate().expect_err("no room is left");
        assert!(matches!(error, ShareError::Device(_)), "{error}");
        drop(shared);
        all_see_all(&board, &allocate(plan));
        // A boundary is kept even so: with the two granules at the top taken, the place below them
        // crosses it.
        let top = Reserved::hole(IovaRange::new(Iova::new(0x1_8000), 0x8000).expect("legal"));
        let config = DomainConfig { reserved: vec![top], ..DomainConfig::default() };
        let spec = DeviceSpec::new("far").mask_bits(17);
        let domain = board.domain_of::<Dart1>("other", &config);
        let far = board.attach(&domain, spec.clone().boundary(0x1_0000), 0);
        let plan = Plan::new(3 * 0x4000).device(&far, ALL).solve().expect("possible");
        let error = plan.allocate().expect_err("no place lies between two multiples of 64 KiB");
        assert!(matches!(error, ShareError::Device(_)), "{error}");
        let free = board.attach(&domain, spec, 0);
        let at = allocate(Plan::new(3 * 0x4000).device(&free, ALL));
        assert_eq!(at.ranges().next().expect("planned").address().raw(), 0xc000);
    }
    board.assert_clean();
}
