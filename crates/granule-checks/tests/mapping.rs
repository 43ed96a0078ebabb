//! What streaming mappings do: flags, the CPU's turn, ending now and later, lists, and the kinds of
//! buffers.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use granule::addr::{Direction, DmaAddr};
use granule::dma::{
    BounceReason, Device, DeviceSpec, DmaError, ForeignMemory, MapFlags, Mapping, RouteReport,
    ScatterList,
};
use granule::domain::{DomainConfig, InvalidationPolicy, Stream};
use granule::table::Dart1;
use granule_checks::{Board, Buf, phys_range};
use granule_sim::faults::Point;
use granule_sim::machine::DeviceSpec as SimSpec;

const BOTH: Direction = Direction::Bidirectional;

fn map(device: &Device, buffer: Buf, flags: MapFlags) -> Mapping<&Device, Buf> {
    Mapping::new(device, buffer, BOTH, flags).expect("mapped")
}

#[test]
fn a_round_trip() {
    let board = Board::usual();
    let device = board.device();
    let mut buffer = Buf::at(&board.machine, 0x123, 0x5000);
    buffer.fill(b"to the device");
    let range = buffer.range();
    let mapping = device.map(buffer, BOTH).expect("mapped");
    assert_eq!((mapping.len(), mapping.direction(), mapping.is_bounced()), (0x5000, BOTH, false));
    assert_eq!(mapping.address().raw() & 0x3fff, 0x123, "the offset is that of the memory");
    assert_eq!(board.read("dev", mapping.address(), 13), Some(b"to the device".to_vec()));
    let stats = device.stats();
    assert_eq!((stats.live_mappings, stats.mapped_bytes, stats.exposed_bytes), (1, 0x5000, 0x3000));
    assert_eq!(device.domain_stats().expect("translated").exposed_bytes, 0x3000);
    let end = mapping.address().checked_add(0x4fff).expect("inside");
    assert!(board.write("dev", end, b"!"));
    let buffer = mapping.unmap().expect("unmapped");
    assert_eq!((buffer.range(), buffer.bytes()[0x4fff]), (range, b'!'));
    assert!(!board.write("dev", end, b"?"), "the device has lost it");
    let stats = device.stats();
    assert_eq!((stats.live_mappings, stats.mapped_bytes, stats.maps), (0, 0, 1));
}

#[test]
fn a_device_that_only_reads_cannot_write() {
    let board = Board::usual();
    let device = board.device();
    let buffer = Buf::new(&board.machine, 0x4000);
    let mut mapping = device.map_to_device(buffer).expect("mapped");
    assert!(board.read("dev", mapping.address(), 1).is_some());
    assert!(!board.write("dev", mapping.address(), b"x"));
    let mut access = mapping.sync_for_cpu(0..1).expect("inside");
    assert_eq!(access.write(0, b"x"), Err(DmaError::ReadOnly { device: "dev".into() }));
    assert_eq!(access.read(0, &mut [0]), Ok(()));
    drop(access);
    drop(mapping);
    let mapping = device.map(Buf::new(&board.machine, 64), Direction::FromDevice).expect("mapped");
    assert!(board.write("dev", mapping.address(), b"x"));
    assert!(board.read("dev", mapping.address(), 1).is_none(), "it only writes");
}

#[test]
fn the_cpu_sees_its_part_and_no_more() {
    let board = Board::usual();
    let device = board.device();
    let mut mapping = map(&device, Buf::new(&board.machine, 100), MapFlags::empty());
    let outside =
        |offset, end, len| DmaError::OutOfBounds { device: "dev".into(), offset, end, len };
    #[allow(clippy::reversed_empty_ranges)] // It is what must be refused.
    let wrong: [Range<u64>; 3] = [0..101, 5..4, u64::MAX..u64::MAX];
    for part in wrong {
        let (start, end) = (part.start, part.end);
        assert_eq!(mapping.sync_for_cpu(part).err(), Some(outside(start, end, 100)));
    }
    let mut part = mapping.sync_for_cpu(10..20).expect("inside");
    assert_eq!((part.len(), part.is_empty()), (10, false));
    assert_eq!(part.read(9, &mut [0; 2]), Err(outside(9, 11, 10)));
    assert_eq!(part.write(u64::MAX, &[0; 2]), Err(outside(u64::MAX, u64::MAX, 10)));
    part.write(0, b"0123456789").expect("it fits");
    drop(part);
    assert!(mapping.sync_for_cpu(100..100).expect("empty, and inside").is_empty());
    let inside = mapping.address().checked_add(8).expect("inside");
    assert_eq!(board.read("dev", inside, 4), Some(b"\0\x0001".to_vec()));
    assert_eq!(&mapping.unmap().expect("unmapped").bytes()[10..20], b"0123456789");
}

#[test]
fn the_cpu_looks_through_several_pieces() {
    let board = Board::usual();
    let device = board.device();
    let pieces = [(0, 0x4000), (0x8000, 0x4000), (0x4000, 0x100)];
    let buffer = Buf::new(&board.machine, 0xc000).in_parts(&pieces);
    let mut mapping = map(&device, buffer, MapFlags::empty());
    assert_eq!((mapping.len(), mapping.is_bounced()), (0x8100, false), "they join at granules");
    let all: Vec<u8> = (0..0x8100u32).map(|at| (at / 7) as u8).collect();
    assert!(board.write("dev", mapping.address(), &all));
    let mut seen = vec![0; 0x200];
    let access = mapping.sync_for_cpu(0x3f00..0x4100).expect("inside");
    access.read(0, &mut seen).expect("inside");
    drop(access);
    assert_eq!(seen, all[0x3f00..0x4100]);
    let bytes = mapping.unmap().expect("unmapped").bytes();
    assert!(bytes[0x8000..0xc000] == all[0x4000..0x8000] && bytes[0x4000..0x4100] == all[0x8000..]);
}

#[test]
fn a_guard_granule_on_either_side() {
    let board = Board::usual();
    let device = board.device();
    let maps: Vec<_> =
        (0..4).map(|_| map(&device, Buf::new(&board.machine, 0x4000), MapFlags::GUARD)).collect();
    for mapping in &maps {
        let at = mapping.address().raw();
        for neighbour in [at - 1, at - 0x4000, at + 0x4000, at + 0x7fff] {
            assert!(board.read("dev", DmaAddr::new(neighbour), 1).is_none());
        }
    }
}

#[test]
fn deferred_buffers_come_back_after_the_flush() {
    let board = Board::usual();
    let domain = board.deferred("dart");
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let mapping = map(&device, Buf::new(&board.machine, 0x4000), MapFlags::empty());
    let at = mapping.address();
    assert!(board.write("dev", at, b"early"));
    let pending = mapping.unmap_later().expect("unmapped");
    assert!(!pending.is_ready());
    assert!(board.write("dev", at, b"late!"), "the hardware may still remember");
    let pending = pending.try_finish().expect_err("not flushed");
    assert_eq!(device.domain_stats().expect("translated").quarantined, 1);
    device.flush().expect("flushed");
    assert!(pending.is_ready() && !board.write("dev", at, b"never"));
    assert_eq!(&pending.try_finish().expect("flushed").bytes()[..5], b"late!");
    let buffer = Buf::new(&board.machine, 0x4000);
    let pending = map(&device, buffer, MapFlags::empty()).unmap_later().expect("unmapped");
    pending.finish().expect("it flushes by itself");
    let frames = board.machine.frames().live_bytes();
    let mapping = map(&device, Buf::new(&board.machine, 0x4000), MapFlags::empty());
    drop(mapping);
    assert!(board.machine.frames().live_bytes() > frames, "dropped memory waits");
    device.flush().expect("flushed");
    assert_eq!(board.machine.frames().live_bytes(), frames);
}

#[test]
fn a_full_quarantine_and_an_old_one_flush_themselves() {
    let board = Board::usual();
    let policy = InvalidationPolicy::Deferred { capacity: 4, max_age: 1000 };
    let config = DomainConfig { policy, ..DomainConfig::default() };
    let domain = board.domain_of::<Dart1>("dart", &config);
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let end = || drop(map(&device, Buf::new(&board.machine, 64), MapFlags::empty()));
    let waiting = || device.domain_stats().expect("translated").quarantined;
    let counts: Vec<_> = (0..6).map(|_| (end(), waiting()).1).collect();
    assert_eq!(counts, [1, 2, 3, 4, 1, 2]);
    domain.poll().expect("nothing is due");
    assert_eq!(waiting(), 2);
    board.machine.clock().set(5000);
    domain.poll().expect("flushed");
    assert_eq!(waiting(), 0);
}

#[test]
fn in_strict_mode_later_is_now() {
    let board = Board::usual();
    let device = board.device();
    let mapping = map(&device, Buf::new(&board.machine, 0x4000), MapFlags::empty());
    let at = mapping.address();
    assert!(board.write("dev", at, b"cached"));
    let pending = mapping.unmap_later().expect("unmapped");
    assert!(pending.is_ready() && !board.write("dev", at, b"gone"));
    drop(pending);
    board.assert_reaches_live_only("dev");
}

#[test]
fn a_buffer_whose_device_was_not_made_to_forget_it_is_leaked() {
    for deferred in [false, true] {
        let board = Board::usual();
        let domain = if deferred { board.deferred("dart") } else { board.domain("dart") };
        let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
        let mapping = map(&device, Buf::new(&board.machine, 0x4000), MapFlags::empty());
        assert!(board.write("dev", mapping.address(), b"cached"));
        board.machine.faults().fail_from(Point::Invalidation, 0);
        if deferred {
            mapping.unmap_later().expect("it waits").finish().expect_err("no answer");
        } else {
            mapping.unmap().expect_err("no answer");
        }
        board.assert_reaches_live_only("dev");
        let refused = device.map(Buf::new(&board.machine, 64), BOTH).expect_err("poisoned");
        assert!(refused.to_string().contains("poisoned"), "{refused}");
        assert!(refused.buffer.is_some());
        board.machine.faults().clear();
        domain.recover().expect("the hardware answers again");
        drop(device.map(Buf::new(&board.machine, 64), BOTH).expect("mapped"));
    }
}

#[test]
fn lists_are_seen_by_the_cpu_and_come_back_unchanged() {
    let board = Board::usual();
    let device = board.device();
    let buffers = (0..3u64).map(|n| Buf::at(&board.machine, n * 0x777, 0x1000 + n));
    let list = ScatterList::new(buffers);
    let entries = list.entries().to_vec();
    assert_eq!((list.len(), list.is_empty(), list.memory().len()), (3, false, Some(0x3003)));
    let mut mapping = device.map_list(list, Direction::FromDevice).expect("mapped");
    assert_eq!((mapping.len(), mapping.bounced()), (0x3003, 0));
    assert!(board.write("dev", mapping.segments()[2].address, b"third"));
    let mut seen = [0; 5];
    let refused = mapping.sync_for_cpu(|access| {
        access.read(2, 0, &mut seen).expect("inside");
        [access.read(2, 0x1002, &mut [0]), access.read(3, 0, &mut [0])]
    });
    assert_eq!(&seen, b"third");
    assert!(refused.iter().all(|error| matches!(error, Err(DmaError::OutOfBounds { .. }))));
    let list = mapping.unmap().expect("unmapped");
    assert_eq!(list.entries(), entries);
    let mapping = device.map_list_to_device(list).expect("mapped again");
    assert!(!board.write("dev", mapping.segments()[0].address, b"x"));
    assert_eq!(mapping.unmap().expect("unmapped").into_buffers().count(), 3);
    let empty = device.map_list(ScatterList::<Buf>::new([]), BOTH).expect_err("empty");
    assert_eq!(empty.error, DmaError::Empty { device: "dev".into() });
    drop(device);
    board.assert_clean();
}

/// Buffers that the simulated machine does not know physically go through the bounce pool.
#[test]
fn every_kind_of_buffer_comes_back_as_it_was() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let device = domain.attach(DeviceSpec::new("dev"), &[Stream::new(0)], Some(board.pool()));
    let device = device.expect("a legal device");
    let write = |at: DmaAddr| assert!(board.write("dev", at, &[1, 2, 3, 4]));
    let mut vec = Vec::with_capacity(77);
    vec.extend([0u32; 10]);
    let mapping = device.map(vec, BOTH).expect("bounced");
    write(mapping.address());
    let vec = mapping.unmap().expect("unmapped");
    assert_eq!((vec.capacity(), vec.len(), vec[0]), (77, 10, u32::from_ne_bytes([1, 2, 3, 4])));
    let boxed: Box<[[u8; 2]]> = vec![[9; 2]; 5].into();
    let mapping = device.map(boxed, BOTH).expect("bounced");
    write(mapping.address());
    assert_eq!(&mapping.unmap().expect("unmapped")[..3], [[1, 2], [3, 4], [9, 9]]);
    let leaked: &'static mut [u8] = vec![0; 8].leak();
    let mapping = device.map(leaked, BOTH).expect("bounced");
    write(mapping.address());
    assert_eq!(mapping.unmap().expect("unmapped"), [1, 2, 3, 4, 0, 0, 0, 0]);
    let shared: Arc<[u8]> = Arc::from(*b"shared");
    let mapping = device.map_to_device(shared.clone()).expect("bounced");
    assert_eq!(board.read("dev", mapping.address(), 6), Some(b"shared".to_vec()));
    drop(mapping);
    assert_eq!(Arc::strong_count(&shared), 1);
    let constant: &'static [u8] = b"constant";
    let mapping = device.map_to_device(constant).expect("bounced");
    assert_eq!(board.read("dev", mapping.address(), 8), Some(b"constant".to_vec()));
    assert_eq!(mapping.unmap().expect("unmapped"), constant);
    let poor = board.attach(&domain, DeviceSpec::new("poor"), 1);
    let refused = poor.map(vec![0u8; 9], BOTH).expect_err("no pool");
    let reason = BounceReason::NoPhysical;
    assert_eq!(refused.error, DmaError::NoBounce { device: "poor".into(), reason });
    assert_eq!(refused.buffer, Some(vec![0; 9]));
    let empty = device.map(Vec::<u8>::new(), BOTH).expect_err("empty");
    assert_eq!(empty.error, DmaError::Empty { device: "dev".into() });
}

#[test]
fn foreign_memory_is_told_when_it_is_free() {
    let board = Board::usual();
    let domain = board.deferred("dart");
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let pages = Buf::new(&board.machine, 0x8000);
    let told = Arc::new(AtomicU64::new(0));
    let foreign = || {
        let told = told.clone();
        let done = move || {
            told.fetch_add(1, Ordering::Relaxed);
        };
        // SAFETY: the pages live longer than every mapping here.
        unsafe { ForeignMemory::from_pages(&[pages.range()], done) }
    };
    drop(device.map(foreign(), BOTH).expect("mapped"));
    assert_eq!(told.load(Ordering::Relaxed), 0, "not before the flush");
    device.flush().expect("flushed");
    assert_eq!(told.load(Ordering::Relaxed), 1);
    let back = device.map(foreign(), BOTH).expect("mapped").unmap().expect("unmapped");
    assert_eq!(told.load(Ordering::Relaxed), 1, "the owner has it again");
    drop(back);
    assert_eq!(told.load(Ordering::Relaxed), 2);
}

#[test]
fn devices_that_do_not_snoop_are_kept_in_step() {
    let deaf = SimSpec { snoops: false, ..SimSpec::behind("deaf", "dart", 3) };
    let board = Board::build(Board::parts().device(deaf).with_cache());
    let domain = board.domain("dart");
    let spec = DeviceSpec::new("deaf").non_snooping();
    let device = domain.attach(spec, &[Stream::new(3)], Some(board.pool())).expect("legal");
    let mut buffer = Buf::new(&board.machine, 0x4000);
    buffer.fill(b"from the CPU");
    let mut mapping = device.map(buffer, BOTH).expect("mapped");
    assert!(!mapping.is_bounced());
    assert_eq!(board.read("deaf", mapping.address(), 12), Some(b"from the CPU".to_vec()));
    assert!(board.write("deaf", mapping.address(), b"from the device"));
    let mut seen = [0; 15];
    mapping.sync_for_cpu(0..64).expect("inside").read(0, &mut seen).expect("inside");
    assert_eq!(&seen, b"from the device");
    mapping.sync_for_cpu(0..64).expect("inside").write(0, b"CPU again").expect("inside");
    assert_eq!(board.read("deaf", mapping.address(), 9), Some(b"CPU again".to_vec()));
    assert!(board.write("deaf", mapping.address(), b"last"));
    assert_eq!(&mapping.unmap().expect("unmapped").bytes()[..9], b"lastagain");
    // Without the syncs, which the caller wanted to do himself, nothing is in step.
    let mut buffer = Buf::new(&board.machine, 0x4000);
    buffer.fill(b"unseen");
    let mapping = Mapping::new(&device, buffer, BOTH, MapFlags::SKIP_CPU_SYNC).expect("mapped");
    assert_ne!(board.read("deaf", mapping.address(), 6), Some(b"unseen".to_vec()));
    drop(mapping);
    // A neighbour in the same cache line would lose what it wrote.
    let shares = |offset, len| {
        let buffer = Buf::at(&board.machine, offset, len);
        device.map(buffer, Direction::FromDevice).expect("mapped").is_bounced()
    };
    assert_eq!(
        [shares(0, 64), shares(32, 64), shares(0, 100), shares(64, 128)],
        [false, true, true, false]
    );
}

#[test]
fn reports_tell_the_way_and_the_pages() {
    let board = Board::usual();
    let device = board.device();
    let mapping = map(&device, Buf::new(&board.machine, 0xc000), MapFlags::empty());
    let range = granule::addr::DmaRange::new(mapping.address(), mapping.len()).ok();
    let RouteReport::Translated { units, streams, page_sizes, .. } = device.report(range) else {
        panic!("it is translated");
    };
    assert_eq!((units[0].name.as_str(), streams), ("dart", vec![Stream::new(0)]));
    assert_eq!(page_sizes, [(0x4000, 3)]);
    let windows = [granule::dma::BusWindow::identity(phys_range(0xf000_0000, 0x1000))];
    let pci = Device::direct(board.platform(), DeviceSpec::new("pci"), &windows, None);
    let report = pci.expect("legal").report(None);
    assert_eq!(report, RouteReport::Direct { how: "on the bus".into() });
}
