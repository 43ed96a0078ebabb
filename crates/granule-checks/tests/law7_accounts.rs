//! Whatever a mapping took and counted, its end gives back: a guard keeps little more than an address, and
//! all else must follow from it.

use granule::addr::{Direction, Granule, Iova, IovaRange};
use granule::dma::{BusWindow, Device, DeviceSpec, MapFlags, Mapping};
use granule::domain::{DomainConfig, InvalidationPolicy, Stats, Stream};
use granule::table::Dart1;
use granule_checks::{Board, Buf, SimDomain, phys_range};
use granule_sim::faults::Point;

const GRANULE: u64 = Granule::K16.size();

/// Inside a granule, whole granules, across a granule's end, many, and more than the shortest way maps.
const BUFFERS: [(u64, u64); 7] = [
    (0, 0x4000),
    (0x123, 0x456),
    (0x3f00, 0x200),
    (0x1000, 0x2000),
    (0, 0x1_0000),
    (0x800, 0x1_8000),
    (0x10, 17 * 0x4000),
];

const FLAGS: [MapFlags; 3] =
    [MapFlags::empty(), MapFlags::GUARD, MapFlags::GUARD.union(MapFlags::SKIP_CPU_SYNC)];

fn specs() -> [DeviceSpec; 7] {
    let spec = || DeviceSpec::new("dev");
    [
        spec(),
        spec().mask_bits(31),
        spec().non_snooping(),
        spec().untrusted(),
        spec().untrusted().min_align_mask(0xfff),
        spec().unverified_fences(),
        spec().untrusted().unverified_fences().non_snooping(),
    ]
}

/// What is live, without what happened so far.
fn held(device: &Device) -> Stats {
    Stats { maps: 0, bounces: 0, ..device.stats() }
}

/// Maps every buffer in every way and ends it, three ways in turn; a second round finds the tables made.
fn all(board: &Board, device: &Device, mut mapped: impl FnMut(&Mapping<&Device, Buf>, MapFlags)) {
    for _ in 0..2 {
        for (flags, (offset, len)) in FLAGS.iter().flat_map(|f| BUFFERS.map(|buffer| (*f, buffer)))
        {
            // What is long takes the same ways as what is less long, and a test's time.
            let ends = if len > 0x4_0000 { 1 } else { 3 };
            for end in 0..ends {
                let buffer = Buf::at(&board.machine, offset, len);
                let mapping = Mapping::new(device, buffer, Direction::Bidirectional, flags);
                let mapping = mapping.expect("mapped");
                let stats = device.stats();
                assert_eq!((stats.live_mappings, stats.mapped_bytes), (1, len));
                let bounced = if mapping.is_bounced() { len } else { 0 };
                assert_eq!(stats.bounced_bytes, bounced);
                mapped(&mapping, flags);
                match end {
                    0 => drop(mapping.unmap().expect("unmapped")),
                    1 => drop(mapping.unmap_later().expect("unmapped").finish().expect("flushed")),
                    _ => drop(mapping),
                }
                assert_eq!(held(device), Stats::default(), "{flags:?}, {len:#x} at {offset:#x}");
            }
        }
    }
}

fn translated(domain: &SimDomain, board: &Board, spec: DeviceSpec) {
    let device = domain.attach(spec.clone(), &[Stream::new(0)], Some(board.pool())).expect("legal");
    domain.flush().expect("flushed");
    let before = domain.stats();
    all(board, &device, |mapping, flags| {
        domain.flush().expect("flushed");
        let stats = domain.stats();
        let counted = device.stats();
        assert_eq!(stats.exposed_bytes, counted.exposed_bytes, "{spec:?}");
        let guards = if flags.contains(MapFlags::GUARD) { 2 * GRANULE } else { 0 };
        // What is leased is the buffer's, its padding or exposed, or fenced off.
        let least = mapping.len() + counted.padding_bytes + counted.exposed_bytes + guards;
        let taken = stats.iova_bytes - before.iova_bytes;
        assert!(taken >= least && taken < least + 2 * GRANULE, "{taken:#x}, {least:#x}, {spec:?}");
        assert!(spec.unverified_fences || taken == least, "{taken:#x}, {least:#x}, {spec:?}");
    });
    domain.flush().expect("flushed");
    let after = domain.stats();
    assert_eq!((after.iova_bytes, after.exposed_bytes), (before.iova_bytes, 0), "{spec:?}");
    assert_eq!(after.quarantined_bytes, 0);
}

#[test]
fn a_domain_has_all_back() {
    for policy in [InvalidationPolicy::Strict, InvalidationPolicy::DEFERRED] {
        for spec in specs() {
            let board = Board::usual();
            let config = DomainConfig { policy, ..DomainConfig::default() };
            translated(&board.domain_of::<Dart1>("dart", &config), &board, spec);
        }
    }
}

#[test]
fn a_direct_device_s_accounts_are_even() {
    for spec in [DeviceSpec::new("pci"), DeviceSpec::new("pci").non_snooping()] {
        let board = Board::usual();
        let window = BusWindow::identity(phys_range(granule_checks::RAM, granule_checks::RAM_LEN));
        let pool = Some(board.pool());
        let device = Device::direct(board.platform(), spec, &[window], pool).expect("legal");
        all(&board, &device, |_, _| {});
    }
}

/// A range is at hand, but the table that it needs is not there: the shortest way begins, and gives all back.
#[test]
fn a_short_way_that_ends_early_leaves_nothing() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let map = |len| device.map(Buf::new(&board.machine, len), Direction::Bidirectional);
    let buffer = Buf::new(&board.machine, GRANULE);
    board.machine.faults().fail_nth(Point::Frames, 0);
    let refused = device.map(buffer, Direction::Bidirectional).expect_err("no table");
    board.machine.faults().clear();
    assert!(refused.buffer.is_some(), "{refused}");
    let before = domain.stats();
    let live = [map(GRANULE).expect("mapped"), map(0x456).expect("mapped")];
    assert_eq!(domain.stats().iova_bytes - before.iova_bytes, 2 * GRANULE);
    let stats = device.stats();
    assert_eq!((stats.live_mappings, stats.maps), (2, 2));
    assert_eq!((stats.mapped_bytes, stats.exposed_bytes), (GRANULE + 0x456, GRANULE - 0x456));
    assert_eq!(domain.stats().exposed_bytes, GRANULE - 0x456);
    drop(live);
    assert_eq!(held(&device), Stats::default());
    assert_eq!(domain.stats().iova_bytes, before.iova_bytes);
}

/// A mapping that was not made exposes nothing, unless nobody knows whether devices still see it.
#[test]
fn a_failed_mapping_exposes_only_what_may_still_be_seen() {
    for lost in [false, true] {
        let board = Board::usual();
        let domain = board.domain("dart");
        let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
        let buffer = Buf::new(&board.machine, 0x456);
        board.machine.faults().fail_nth(Point::Frames, 0);
        if lost {
            board.machine.faults().fail_from(Point::Invalidation, 0);
        }
        device.map(buffer, Direction::Bidirectional).expect_err("no table");
        board.machine.faults().clear();
        let exposed = if lost { GRANULE - 0x456 } else { 0 };
        assert_eq!(domain.stats().exposed_bytes, exposed);
        assert_eq!(domain.stats().poisoned, lost);
        assert_eq!(held(&device), Stats::default(), "the device has no mapping");
    }
}

/// The first page of a space is nobody's, so that no address that is handed out is zero.
#[test]
fn address_zero_is_never_handed_out() {
    let board = Board::usual();
    let window = IovaRange::new(Iova::new(0), 16 * GRANULE).expect("a legal range");
    let config = DomainConfig { window: Some(window), ..DomainConfig::default() };
    let domain = board.domain_of::<Dart1>("dart", &config);
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let map = || device.map(Buf::new(&board.machine, GRANULE), Direction::ToDevice).ok();
    let live: Vec<_> = std::iter::from_fn(map).collect();
    let mut starts: Vec<_> = live.iter().map(|mapping| mapping.address().raw()).collect();
    starts.sort_unstable();
    assert_eq!(starts, (1..16).map(|page| page * GRANULE).collect::<Vec<_>>());
}
