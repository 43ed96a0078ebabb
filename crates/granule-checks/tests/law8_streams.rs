//! Law 8: a stream has one kind of holder at a time, and what a device lost it does not reach.

use granule::addr::{Direction, DmaAddr, Iova, PhysAddr};
use granule::dma::{AttachError, Device, DeviceSpec, DmaError};
use granule::domain::{
    Domain, DomainConfig, DomainError, Mirror, Stream, StreamError, StreamId, Translation,
    TranslationError, UnitError,
};
use granule_checks::{Board, Buf, RAM, SimPaged, phys_range};
use granule_sim::faults::Point;
use granule_sim::iommu::{IommuConfig, LockedStream};
use granule_sim::walk::SimFormat;

fn group(stream: u32) -> TranslationError {
    let stream = StreamId::exact(stream);
    TranslationError::Group { unit: "dart".into(), stream, other: stream }
}

fn bypassed(board: &Board) -> Result<Device, AttachError> {
    let (spec, stream) = (DeviceSpec::new("dev"), StreamId::exact(0));
    let windows = [board.identity_window()];
    // SAFETY: the simulated device may reach all of the simulated RAM.
    unsafe {
        Device::bypassed(board.platform(), spec, &board.iommu("dart"), &[stream], &windows, None)
    }
}

/// Whether the device on stream 0 reaches RAM at its physical address.
fn reaches_ram(board: &Board) -> bool {
    board.write("dev", DmaAddr::new(RAM + 0x10_0000), &[1])
}

#[test]
fn a_blocked_stream_is_nobody_elses_until_it_is_let_go() {
    let board = Board::usual();
    let dart = board.iommu("dart");
    let blocked = dart.block(StreamId::exact(0)).expect("free");
    assert_eq!((blocked.stream(), dart.streams()), (StreamId::exact(0), vec![StreamId::exact(0)]));
    assert!(!reaches_ram(&board));
    let attach = || board.domain("dart").attach(DeviceSpec::new("dev"), &[Stream::new(0)], None);
    let cause = StreamError::Translation(group(0));
    let refused = AttachError::Stream { device: "dev".into(), cause };
    assert_eq!(attach().expect_err("blocked"), refused);
    let refused = AttachError::Bypass { device: "dev".into(), cause: group(0) };
    assert_eq!(bypassed(&board).expect_err("blocked"), refused);
    drop(blocked);
    assert_eq!(dart.streams(), []);
    assert!(!reaches_ram(&board), "it stays blocked");
    let device = attach().expect("free again");
    assert_eq!(dart.block(StreamId::exact(0)).err(), Some(group(0)));
    drop(device);
    assert!(dart.block(StreamId::exact(0)).is_ok());
}

#[test]
fn what_firmware_locked_is_not_blocked() {
    let mut locked = IommuConfig::new("locked", SimFormat::Dart1, 32);
    let roots = vec![PhysAddr::new(0xf000_4000)];
    locked.locked = vec![LockedStream { stream: 3, context: 0x8000_0003, roots, input_bits: 32 }];
    let firmware = phys_range(0xf000_0000, 0x1_0000);
    let board = Board::build(Board::parts().iommu(locked).reserve(firmware));
    let stream = StreamId::exact(3);
    let refused = UnitError::Locked { unit: "locked".into(), stream };
    assert_eq!(board.iommu("locked").block(stream).err(), Some(refused.into()));
    assert_eq!(board.iommu("locked").streams(), []);
}

#[test]
fn a_stream_let_through_for_two_is_blocked_with_the_second() {
    let board = Board::usual();
    let (first, second) = (bypassed(&board).expect("free"), bypassed(&board).expect("shared"));
    assert!(reaches_ram(&board));
    drop(first);
    assert!(reaches_ram(&board), "the second still needs it");
    assert_eq!(board.iommu("dart").streams(), [StreamId::exact(0)]);
    drop(second);
    assert!(!reaches_ram(&board));
    assert_eq!(board.iommu("dart").streams(), []);
}

#[test]
fn a_map_that_failed_counts_nothing_and_flushes_nothing() {
    let board = Board::usual();
    let pool = board.pool();
    let domain = board.domain("dart");
    let spec = DeviceSpec::new("dev").untrusted();
    let device = domain.attach(spec, &[Stream::new(0)], Some(pool.clone())).expect("a device");
    let buffer = || Buf::new(&board.machine, 0x1000);
    let before = device.stats();
    // No table page to be had: the first map of a fresh table fails.
    let one = buffer();
    board.machine.faults().fail_from(Point::Frames, 0);
    let refused = device.map(one, Direction::ToDevice).expect_err("no table page");
    board.machine.faults().clear();
    assert!(matches!(refused.error, DmaError::Domain { .. }), "{:?}", refused.error);
    assert_eq!(device.stats(), before);
    assert_eq!(pool.usage().used, 0);
    // The same, and the invalidation fails too: what was leased and lent is never used again.
    let one = buffer();
    board.machine.faults().fail_from(Point::Frames, 0);
    board.machine.faults().fail_nth(Point::Invalidation, 0);
    let refused = device.map(one, Direction::ToDevice).expect_err("no table page");
    board.machine.faults().clear();
    assert!(domain.stats().poisoned, "{:?}", refused.error);
    assert!(domain.stats().leaked_bytes >= 0x4000 && pool.usage().used >= 0x4000);
    drop(refused);
    let refused = device.map(buffer(), Direction::ToDevice).expect_err("poisoned");
    let cause = DomainError::Poisoned;
    assert!(matches!(refused.error, DmaError::Domain { cause: c, .. } if c == cause));
    domain.recover().expect("hardware that answers again");
    drop(device.map(buffer(), Direction::ToDevice).expect("mapped"));
}

#[test]
fn no_space_with_nothing_waiting_is_told_without_a_flush() {
    let board = Board::usual();
    let domain = board.deferred("dart");
    let device = board.attach(&domain, DeviceSpec::new("dev").mask_bits(16), 0);
    // Three granules lie below 64 KiB, granule 0 left out.
    let one = || device.map(Buf::new(&board.machine, 0x4000), Direction::ToDevice);
    let taken: Vec<_> = (0..3).map(|_| one().expect("space")).collect();
    let invalidations = board.machine.faults().seen(Point::Invalidation);
    assert!(one().is_err());
    assert_eq!(board.machine.faults().seen(Point::Invalidation), invalidations);
    drop(taken);
    drop(one().expect("what waited was flushed"));
    assert!(board.machine.faults().seen(Point::Invalidation) > invalidations);
}

#[test]
fn streams_that_a_mask_covered_are_routed_again_and_others_left_alone() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let pair = Stream { unit: 0, id: StreamId { id: 0, mask: 1 } };
    let wide = domain.attach(DeviceSpec::new("wide"), &[pair], None).expect("free");
    let own = board.attach(&domain, DeviceSpec::new("dev1"), 1);
    let mapped = own.map(Buf::new(&board.machine, 0x4000), Direction::FromDevice).expect("mapped");
    assert!(board.write("dev1", mapped.address(), &[7]));
    assert!(board.write("dev", mapped.address(), &[7]), "one domain");
    // The mask's end blocks both streams; the one that is still attached comes back.
    drop(wide);
    assert!(board.write("dev1", mapped.address(), &[8]));
    assert!(!board.write("dev", mapped.address(), &[8]));
    drop(mapped);
    drop((own, domain));
    board.assert_clean();
}

#[test]
fn a_mirror_answers_for_its_sides() {
    let board = Board::usual();
    let sides = vec![board.paged(&["dart"]), board.paged(&["other"])];
    let mirror = Mirror::<SimPaged>::new(sides).expect("alike");
    assert_eq!(mirror.sides().len(), 2);
    let empty: Vec<usize> = mirror.sides().iter().map(Translation::table_pages).collect();
    assert_eq!(mirror.table_pages(), empty.iter().sum::<usize>());
    let (at, len) = (Iova::new(0x40_0000), 0x4000);
    let phys = phys_range(RAM + 0x10_0000, len);
    let attrs = granule::addr::Attributes::memory(granule::addr::Access::READ);
    // SAFETY: no stream is attached: nobody walks the tables.
    unsafe { mirror.map(at, phys, attrs) }.expect("free");
    assert_eq!(mirror.resolve(at).map(|found| found.phys), Some(phys.start()));
    for (side, before) in mirror.sides().iter().zip(&empty) {
        assert_eq!(side.resolve(at).map(|found| found.phys), Some(phys.start()));
        assert_eq!(side.table_pages(), before + 1);
    }
    assert_eq!(mirror.table_pages(), empty.iter().sum::<usize>() + 2);
    assert!(empty.iter().all(|pages| *pages >= 1), "{empty:?}: a root is a page");
}

/// After a recovery both sides of a mirror have forgotten what was unmapped, and serve again.
#[test]
fn a_mirror_recovers_on_both_sides() {
    let board = Board::usual();
    let sides = vec![board.paged(&["dart"]), board.paged(&["other"])];
    let mirror = Mirror::<SimPaged>::new(sides).expect("alike");
    let domain = Domain::new(board.platform(), mirror, &DomainConfig::default()).expect("a domain");
    let streams = [Stream::new(0), Stream::new(0).at_unit(1)];
    let device = domain.attach(DeviceSpec::new("both"), &streams, None).expect("legal");
    let map = || device.map(Buf::new(&board.machine, 0x4000), Direction::FromDevice);
    for failing in [0, 1] {
        let mapped = map().expect("mapped");
        let at = mapped.address();
        // Both IOTLBs have it now.
        assert!(board.write("dev", at, &[1]) && board.write("far", at, &[2]));
        board.machine.faults().fail_nth(Point::Invalidation, failing);
        assert!(mapped.unmap().is_err());
        board.machine.faults().clear();
        assert!(domain.stats().poisoned);
        domain.recover().expect("hardware that answers again");
        assert!(!board.write("dev", at, &[3]) && !board.write("far", at, &[4]), "{failing}");
        let again = map().expect("it works again");
        assert!(
            board.write("dev", again.address(), &[5]) && board.write("far", again.address(), &[6])
        );
        again.unmap().map(drop).expect("forgotten");
    }
    // Both lose their power: each must be programmed again.
    let mapped = map().expect("mapped");
    let reached = || ["dev", "far"].map(|name| board.write(name, mapped.address(), &[7]));
    for name in ["dart", "other"] {
        board.machine.iommu(name).expect("as built").reset();
    }
    assert_eq!(reached(), [false; 2]);
    domain.recover().expect("hardware that answers again");
    assert_eq!(reached(), [true; 2]);
    mapped.unmap().map(drop).expect("forgotten");
}

/// Whichever invalidation fails at a domain's end, its tables are kept then, and freed else.
#[test]
fn tables_are_kept_unless_every_invalidation_of_the_end_completed() {
    let board = Board::usual();
    let mut kept = 0;
    for failing in 0.. {
        let before = board.machine.frames().live_bytes();
        let domain = board.domain("dart");
        let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
        drop(device.map(Buf::new(&board.machine, 0x4000), Direction::ToDevice).expect("mapped"));
        board.machine.faults().clear();
        board.machine.faults().fail_nth(Point::Invalidation, failing);
        drop((device, domain));
        let failed = board.machine.faults().fired() != 0;
        assert_eq!(board.machine.frames().live_bytes() != before, failed, "{failing}");
        if !failed {
            break;
        }
        kept += 1;
    }
    assert!(kept >= 2, "the stream's and the domain's");
    board.machine.faults().clear();
    drop(board.device().map(Buf::new(&board.machine, 0x4000), Direction::ToDevice));
}

/// A stream whose base firmware locked and that its unit then refuses: our entries were in the live
/// root for a moment, and what a walker may have cached of them is dropped, or the tables stay.
#[test]
fn a_refused_stream_with_a_locked_root_is_forgotten_or_the_tables_stay() {
    for forgotten in [true, false] {
        let mut odd = IommuConfig::new("odd", SimFormat::Dart1, 32);
        // More bits than the unit has: it has the root, and cannot be programmed with it.
        let roots = vec![PhysAddr::new(0xf000_4000)];
        odd.locked = vec![LockedStream { stream: 3, context: 0x8000_0003, roots, input_bits: 36 }];
        let firmware = phys_range(0xf000_0000, 0x1_0000);
        let board = Board::build(Board::parts().iommu(odd).reserve(firmware));
        let before = board.machine.frames().live_bytes();
        let domain = board.domain("odd");
        let seen = board.machine.faults().seen(Point::Invalidation);
        if !forgotten {
            board.machine.faults().fail_from(Point::Invalidation, 0);
        }
        let refused = domain.attach(DeviceSpec::new("late"), &[Stream::new(3)], None);
        assert!(refused.is_err());
        assert!(board.machine.faults().seen(Point::Invalidation) > seen);
        board.machine.faults().clear();
        assert_eq!(board.iommu("odd").streams(), []);
        drop(domain);
        assert_eq!(board.machine.frames().live_bytes() == before, forgotten);
    }
}
