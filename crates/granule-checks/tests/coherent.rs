//! What coherent memory, its pools, reservations and registers do.

use granule::addr::{Access, Direction, Granule, PhysAddr};
use granule::dma::{
    BusWindow, Coherent, CoherentPool, Device, DeviceSpec, DmaError, MapFlags, Reservation,
    ResourceMapping,
};
use granule::domain::{DomainConfig, Stream};
use granule::mem::FrameError;
use granule::table::Lpae4k;
use granule_checks::{Board, Buf, phys_range};
use granule_sim::faults::Point;
use granule_sim::frames::Fragmentation;
use granule_sim::machine::DeviceSpec as SimSpec;

fn fragmented() -> Board {
    Board::build(Board::parts().fragment(Fragmentation { max_block: 0x4000 }).seed(9))
}

#[track_caller]
fn both_see(board: &Board, memory: &Coherent<&Device>) {
    let name = memory.device().name();
    let bytes: Vec<u8> = (0..memory.len()).map(|at| (at / 3) as u8).collect();
    memory.write(0, &bytes).expect("inside");
    let seen = board.read(name, memory.address(), bytes.len());
    assert!(seen.as_ref() == Some(&bytes), "the device sees the CPU's bytes");
    let last = memory.address().checked_add(memory.len() - 1).expect("inside");
    assert!(board.write(name, last, &[0xee]));
    let mut byte = [0];
    memory.read(memory.len() - 1, &mut byte).expect("inside");
    assert_eq!(byte, [0xee]);
}

#[test]
fn contiguous_for_the_device_and_the_cpu_in_any_memory() {
    for board in [Board::usual(), fragmented()] {
        let device = board.device();
        let memory = device.alloc_coherent(100_000).expect("allocated");
        assert_eq!((memory.len(), device.stats().padding_bytes), (100_000, 14_688));
        assert_eq!(device.stats().exposed_bytes, 0);
        assert!(memory.as_ptr().is_some(), "the platform shows it as one");
        both_see(&board, &memory);
        board.assert_reaches_live_only("dev");
        memory.free().expect("freed");
        drop(device);
        board.assert_clean();
    }
}

#[test]
fn one_block_if_asked_for() {
    let board = Board::usual();
    let device = board.device();
    let memory = Coherent::new(&device, 0xc000, MapFlags::CONTIGUOUS).expect("allocated");
    assert_eq!(memory.scatter_list().len(), 1);
    both_see(&board, &memory);
    let board = fragmented();
    let device = board.device();
    let error = Coherent::new(&device, 0xc000, MapFlags::CONTIGUOUS).expect_err("fragmented");
    let cause = FrameError::OutOfMemory;
    assert_eq!(error, DmaError::Frames { device: "dev".into(), cause });
}

#[test]
fn no_padding_and_guards() {
    let board = Board::usual();
    let device = board.device();
    let whole = Coherent::new(&device, 0x8000, MapFlags::NO_PADDING | MapFlags::GUARD);
    let whole = whole.expect("whole granules");
    assert_eq!(device.stats().padding_bytes, 0);
    let _others: Vec<_> = (0..4).map(|_| device.alloc_coherent(0x8000)).collect();
    for at in [whole.address().raw() - 1, whole.address().raw() + 0x8000] {
        assert!(board.read("dev", granule::addr::DmaAddr::new(at), 1).is_none());
    }
}

#[test]
fn more_than_the_address_space_takes_no_memory() {
    let board = Board::usual();
    let device = board.attach(&board.domain("dart"), DeviceSpec::new("dev").mask_bits(20), 0);
    let before = board.machine.frames().allocations();
    let error = device.alloc_coherent(1 << 20).expect_err("granule 0 is never handed out");
    assert!(error.to_string().contains("0x100000"), "{error}");
    assert_eq!(board.machine.frames().allocations(), before);
}

#[test]
fn a_second_device_sees_the_same_memory() {
    let board = Board::usual();
    {
        let device = board.device();
        let domain = board.domain_of::<Lpae4k>("smmu", &DomainConfig::default());
        let arm = board.attach(&domain, DeviceSpec::new("arm"), 0);
        let memory = device.alloc_coherent(0x5000).expect("allocated");
        let there = memory.map_for(&arm).expect("16 KiB blocks are 4 KiB blocks");
        both_see(&board, &there);
        both_see(&board, &memory);
        assert_eq!(there.scatter_list(), memory.scatter_list());
        memory.free().expect("freed");
        both_see(&board, &there);
        board.assert_reaches_live_only("arm");
    }
    board.assert_clean();
}

#[test]
fn devices_that_do_not_snoop_get_an_uncached_view() {
    let deaf = SimSpec { snoops: false, ..SimSpec::behind("deaf", "dart", 3) };
    let board = Board::build(Board::parts().device(deaf).with_cache());
    {
        let spec = DeviceSpec::new("deaf").non_snooping();
        let device = board.attach(&board.domain("dart"), spec, 3);
        let memory = device.alloc_coherent(0x9000).expect("allocated");
        both_see(&board, &memory);
        let hearing = board.attach(&board.domain("other"), DeviceSpec::new("far"), 0);
        both_see(&board, &memory.map_for(&hearing).expect("a device that snoops may have it"));
    }
    board.assert_clean();
}

#[test]
fn pools_align_grow_and_reuse() {
    let board = Board::usual();
    let device = board.device();
    for (size, align) in [(1, 1), (24, 64), (100, 16), (4096, 4096), (0x4001, 8), (16, 0x4000)] {
        let pool = CoherentPool::new(&device, size, align).expect("a legal pool");
        let mut objects: Vec<_> = (0..40).map(|_| pool.alloc().expect("an object")).collect();
        let mut ranges: Vec<_> = objects.iter().map(|object| object.address().raw()).collect();
        assert!(ranges.iter().all(|at| at % align == 0), "{size} {align}");
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0] + size <= pair[1]), "objects overlap");
        let grown = pool.memory_size();
        assert!(grown >= 40 * size && pool.object_size() == size);
        objects[7].write(size - 1, &[0x77]).expect("inside");
        let last = objects[7].address().checked_add(size - 1).expect("inside");
        assert_eq!(board.read("dev", last, 1), Some(vec![0x77]));
        assert!(
            objects[7].write(size, &[0]).is_err() && objects[7].read(u64::MAX, &mut [0]).is_err()
        );
        drop(objects);
        let again: Vec<_> = (0..40).map(|_| pool.alloc().expect("an object")).collect();
        assert_eq!(pool.memory_size(), grown, "what was given back is used again");
        drop(pool);
        assert!(again[0].read(0, &mut [0]).is_ok(), "objects outlive the handle");
    }
    let refused = |size, align| CoherentPool::new(&device, size, align).expect_err("impossible");
    assert_eq!(refused(0, 1), DmaError::Empty { device: "dev".into() });
    assert!(matches!(refused(8, 24), DmaError::OutOfBounds { .. }));
    assert!(matches!(refused(8, 0x8000), DmaError::OutOfBounds { len: 0x4000, .. }));
    device.detach().expect("idle");
    board.assert_clean();
}

#[test]
fn pieces_are_linked_one_by_one() {
    let board = Board::usual();
    let device = board.device();
    let mut reservation = Reservation::new(&device, 0x2_0000).expect("reserved");
    assert_eq!((reservation.address(), reservation.is_empty()), (None, true));
    assert_eq!(reservation.sync(), Err(DmaError::Empty { device: "dev".into() }));
    let filled = |offset, len, byte: u8| {
        let mut buffer = Buf::at(&board.machine, offset, len);
        buffer.fill(&vec![byte; len as usize]);
        buffer
    };
    // The first may begin, and the last may end, inside a granule.
    reservation.link(filled(0x3000, 0x1000, 1), Direction::Bidirectional).expect("linked");
    reservation.link_to_device(filled(0, 0x8000, 2)).expect("linked");
    reservation.link(filled(0, 0x100, 3), Direction::Bidirectional).expect("linked");
    let at = reservation.sync().expect("linked");
    assert_eq!((at.raw() & 0x3fff, reservation.len()), (0x3000, 0x9100));
    let seen = board.read("dev", at, 0x9100).expect("one range");
    let runs: Vec<_> = [(0, 1), (0xfff, 1), (0x1000, 2), (0x8fff, 2), (0x9000, 3)].to_vec();
    assert!(runs.iter().all(|(at, byte)| seen[*at] == *byte));
    assert!(!board.write("dev", at.checked_add(0x1000).expect("inside"), b"x"), "only read");
    assert_eq!(device.stats().exposed_bytes, 0x3000 + 0x3f00);
    let joins = |offset, len| {
        let buffer = Buf::at(&board.machine, offset, len);
        (buffer.range().len(), buffer)
    };
    let refused = |reservation: &mut Reservation<_, Buf>, (len, buffer): (u64, Buf), why: &str| {
        let refused = reservation.link_to_device(buffer).expect_err("it does not join");
        assert!(refused.buffer.is_some_and(|buffer| buffer.range().len() == len));
        assert!(refused.error.to_string().contains(why), "{}", refused.error);
    };
    refused(&mut reservation, joins(0, 0x4000), "granule");
    let last = reservation.unlink().expect("unlinked").expect("the last one");
    assert_eq!((last.range().len(), reservation.len()), (0x100, 0x9000));
    assert!(board.read("dev", at.checked_add(0x9000).expect("inside"), 1).is_none());
    refused(&mut reservation, joins(0x1000, 0x1000), "granule");
    refused(&mut reservation, joins(0, 0x2_0000), "does not fit");
    let split = Buf::new(&board.machine, 0x8000).in_parts(&[(0, 0x1000), (0x4000, 0x1000)]);
    refused(&mut reservation, (0x8000, split), "one stretch");
    reservation.link(filled(0, 0x4000, 4), Direction::Bidirectional).expect("linked");
    let sizes: Vec<_> =
        reservation.unmap().expect("unmapped").iter().map(|b| b.range().len()).collect();
    assert_eq!(sizes, [0x1000, 0x8000, 0x4000]);
    assert_eq!(device.stats().live_mappings + device.stats().exposed_bytes, 0);
    drop((device, last));
    board.assert_clean();
}

#[test]
fn untrusted_and_deaf_devices_link_only_what_is_theirs() {
    let board = Board::build(Board::parts().with_cache());
    let domain = board.domain("dart");
    let guest = board.attach(&domain, DeviceSpec::new("guest").untrusted(), 0);
    let mut reservation = Reservation::new(&guest, 0x1_0000).expect("reserved");
    let refused = reservation.link(Buf::new(&board.machine, 0x1000), Direction::FromDevice);
    let error = refused.expect_err("three CPU pages of somebody else").error;
    assert!(error.to_string().contains("not trusted"), "{error}");
    let whole = reservation.link(Buf::new(&board.machine, 0x4000), Direction::FromDevice);
    whole.expect("a whole granule");
    assert_eq!(guest.stats().exposed_bytes, 0);
    let spec = DeviceSpec::new("deaf").non_snooping();
    let deaf = board.attach(&board.domain("other"), spec, 0);
    let mut reservation = Reservation::new(&deaf, 0x1_0000).expect("reserved");
    let refused = reservation.link(Buf::at(&board.machine, 0, 100), Direction::FromDevice);
    let error = refused.expect_err("its last line is somebody else's").error;
    assert!(error.to_string().contains("cache line"), "{error}");
    let read = reservation.link_to_device(Buf::at(&board.machine, 0, 100));
    read.expect("a device that reads spoils no line");
}

#[test]
fn an_unlink_that_fails_leaks_the_buffer_and_no_more() {
    let board = Board::usual();
    {
        let device = board.device();
        let mut reservation = Reservation::new(&device, 0x1_0000).expect("reserved");
        for _ in 0..2 {
            let buffer = Buf::new(&board.machine, 0x4000);
            reservation.link(buffer, Direction::Bidirectional).expect("linked");
        }
        board.hostile("dev").touch_all();
        board.machine.faults().fail_nth(Point::Invalidation, 0);
        reservation.unlink().expect_err("no answer");
        board.assert_reaches_live_only("dev");
        drop(reservation);
        board.assert_reaches_live_only("dev");
        assert_eq!(device.stats().live_mappings, 0);
    }
    assert_eq!(board.machine.frames().live_bytes(), 0x1_0000);
    assert_eq!(board.machine.frames().errors(), []);
}

#[test]
fn registers_of_another_device() {
    let board = Board::usual();
    let device = board.device();
    let doorbell = phys_range(0x2_3000_1008, 8);
    // SAFETY: there is nothing at that address.
    let mapped = unsafe { ResourceMapping::new(&device, doorbell, Access::WRITE) };
    let mapped = mapped.expect("a trusted device");
    assert_eq!((mapped.len(), mapped.address().raw() & 0x3fff), (8, 0x1008));
    assert_eq!(device.stats().exposed_bytes, 0x4000 - 8);
    let resolve = |access| {
        let device = board.machine.device("dev").expect("a device of the board");
        device.resolve(mapped.address(), access).map(|target| target.phys)
    };
    assert_eq!(resolve(Access::WRITE), Ok(PhysAddr::new(0x2_3000_1008)));
    assert!(resolve(Access::READ).is_err());
    let at = mapped.address();
    mapped.unmap().expect("unmapped");
    assert!(!board.write("dev", at, b"x"));
    let window = BusWindow::identity(phys_range(0x2_3000_0000, 0x10_0000));
    let pci = Device::direct(board.platform(), DeviceSpec::new("pci"), &[window], None);
    let pci = pci.expect("a legal device");
    // SAFETY: there is nothing at that address.
    let mapped = unsafe { pci.map_resource(doorbell, Access::WRITE) }.expect("in the window");
    assert_eq!(mapped.address().raw(), 0x2_3000_1008);
}

#[test]
fn the_granule_is_the_merge_boundary() {
    let board = Board::usual();
    assert_eq!(board.device().merge_boundary(), Some(Granule::K16));
    let spec = || DeviceSpec::new("pci").mask_bits(32);
    let pci = Device::direct(board.platform(), spec(), &[board.identity_window()], None);
    let pci = pci.expect("a legal device");
    assert_eq!((pci.merge_boundary(), pci.max_mapping_size()), (None, 0x1000_0000));
    let domain = board.domain("dart");
    let trusted = board.attach(&domain, DeviceSpec::new("dev").mask_bits(20), 0);
    assert!(trusted.max_mapping_size() > 0xf_0000 && trusted.max_mapping_size() <= 1 << 20);
    let spec = DeviceSpec::new("guest").untrusted();
    let guest = domain.attach(spec, &[Stream::new(1)], Some(board.pool())).expect("legal");
    let longest = guest.max_mapping_size();
    assert!(longest > 0 && longest <= 4 << 20);
    let buffer = |len| Buf::at(&board.machine, 0x1000, len);
    drop(guest.map(buffer(longest), Direction::ToDevice).expect("as promised"));
    assert!(guest.map(buffer(longest + 1), Direction::ToDevice).is_err());
}
