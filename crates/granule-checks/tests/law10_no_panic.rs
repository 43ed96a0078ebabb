//! Law 10: no request panics or overflows, and DMA address 0 is never handed out. Debug assertions are
//! on: an overflow is a panic.

use granule::addr::{
    Access, Attributes, Direction, DmaAddr, DmaRange, Iova, IovaRange, PhysAddr, PhysRange,
};
use granule::dma::{
    BusWindow, Coherent, CoherentPool, Device, DeviceSpec, ForeignMemory, ListMapping, MapFlags,
    Mapping, Piece, Reservation, ScatterList,
};
use granule::domain::{
    Domain, DomainConfig, InvalidationPolicy, Mirror, Reserved, Stream, StreamId, Unmanaged,
    UnmanagedConfig,
};
use granule::iova::IovaRequest;
use granule::share::{Constraints, Plan, Windows};
use granule::table::Dart1;
use granule_checks::{Board, Buf};
use proptest::prelude::*;

mod noted;

use noted::Noted;

/// Numbers that sums and shifts fall over: small ones, powers of two, and their neighbours, up to
/// the very top.
fn number() -> impl Strategy<Value = u64> {
    let edge = (0u32..64, -2i64..3).prop_map(|(bit, by)| (1u64 << bit).wrapping_add_signed(by));
    let top = (0u64..0x2_0000).prop_map(|below| u64::MAX - below);
    prop_oneof![3 => edge, 1 => top, 1 => 0u64..0x2_0000, 1 => any::<u64>()]
}

fn phys() -> impl Strategy<Value = PhysRange> {
    (number(), number()).prop_map(|(start, len)| {
        let start = PhysAddr::new(start);
        PhysRange::new(start, len).or_else(|_| PhysRange::new(start, 1)).expect("a legal range")
    })
}

fn spec() -> impl Strategy<Value = DeviceSpec> {
    let limits = (number(), number(), number(), number(), number());
    let window = prop::option::weighted(0.3, (number(), number()));
    (limits, window, any::<[bool; 4]>()).prop_map(|(limits, window, flags)| {
        let mut spec = DeviceSpec::new("dev");
        let usual = flags[3];
        if !usual {
            (spec.mask, spec.coherent_mask) = (limits.0, limits.1);
            (spec.max_segment, spec.min_align_mask) = (limits.2, limits.4);
        }
        spec.boundary = if usual { 0 } else { limits.3 };
        spec.window = window.and_then(|(at, len)| DmaRange::new(DmaAddr::new(at), len).ok());
        (spec.snoops, spec.unverified_fences) = (flags[0], flags[1]);
        spec.trusted = flags[2];
        spec
    })
}

/// The length, unless it would take much of the board's memory: then one near 2^64.
fn affordable(len: u64) -> u64 {
    if len > 0x4_0000 { u64::MAX - (len >> 24) } else { len }
}

fn flags() -> impl Strategy<Value = MapFlags> {
    any::<u8>().prop_map(MapFlags::from_bits_truncate)
}

fn direction() -> impl Strategy<Value = Direction> {
    let all = [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional];
    prop::sample::select(all.to_vec())
}

/// Everything that can be asked of a device, with these numbers. Physical memory is never touched:
/// the device has no bounce pool, and nobody programs it.
fn ask(
    device: &Device,
    pieces: &[PhysRange],
    direction: Direction,
    flags: MapFlags,
    at: u64,
    len: u64,
) -> Result<(), TestCaseError> {
    let memory = || {
        // SAFETY: nothing reads or writes what the test names.
        unsafe { ForeignMemory::from_pages(pieces, || ()) }
    };
    if let Ok(mut mapping) = Mapping::new(device, memory(), direction, flags) {
        prop_assert_ne!(mapping.address().raw(), 0);
        let _ = mapping.sync_for_cpu(at..len).map(|access| access.len());
        let _ = device.report(DmaRange::new(mapping.address(), mapping.len().min(1 << 20)).ok());
        prop_assert!(mapping.unmap().is_ok());
    }
    if let Ok(mapping) = ListMapping::new(device, ScatterList::new([memory()]), direction, flags) {
        prop_assert!(mapping.segments().iter().all(|segment| segment.address.raw() != 0));
        prop_assert!(mapping.segments().len() <= pieces.len());
        prop_assert!(mapping.unmap().is_ok());
    }
    if let Ok(mut reservation) = Reservation::new(device, len) {
        for piece in pieces {
            // SAFETY: nothing reads or writes what the test names.
            let one = unsafe { ForeignMemory::new(vec![Piece::Phys(*piece)], || ()) };
            let _ = reservation.link(one, direction);
        }
        prop_assert!(reservation.sync().map_or(1, DmaAddr::raw) != 0);
        prop_assert!(reservation.unmap().is_ok());
    }
    if let Some(first) = pieces.first() {
        // SAFETY: nobody programs the device.
        if let Ok(mapping) = unsafe { device.map_resource(*first, Access::all()) } {
            prop_assert_ne!(mapping.address().raw(), 0);
        }
    }
    let _ = (device.max_mapping_size(), device.merge_boundary(), device.report(None));
    let _ = device.report(DmaRange::new(DmaAddr::new(at), 1).ok());
    prop_assert_eq!(device.stats().live_mappings, 0);
    Ok(())
}

fn memory_of(device: &Device, flags: MapFlags, len: u64, at: u64) -> Result<(), TestCaseError> {
    if let Ok(coherent) = Coherent::new(device, len, flags) {
        prop_assert_ne!(coherent.address().raw(), 0);
        let _ = coherent.read(at, &mut [0; 3]);
        let _ = coherent.write(at, &[0; 3]);
    }
    if let Ok(pool) = CoherentPool::new(device, len, at) {
        if let Ok(object) = pool.alloc() {
            prop_assert_ne!(object.address().raw(), 0);
            prop_assert_eq!(object.address().raw() % at, 0);
            let _ = object.read(at, &mut [0; 3]);
        }
    }
    for same in [false, true] {
        let plan = Plan::new(len).device(device, Access::all()).same_address(same);
        if let Ok(solved) = plan.guard(flags.contains(MapFlags::GUARD)).solve() {
            let _ = solved.to_string();
            if let Ok(mut shared) = solved.allocate() {
                prop_assert!(shared.ranges().all(|range| range.address().raw() != 0));
                let _ = (shared.read(at, &mut [0; 3]), shared.sync_for_cpu(at, len));
                let _ = shared.attach(device, Access::READ);
            }
        }
    }
    Ok(())
}

/// Maps at addresses of the owner's choice: at the pieces' own, at `at`, and unmaps what is there.
fn place(
    board: &Board,
    translation: &Noted,
    pieces: &[PhysRange],
    at: u64,
    len: u64,
) -> Result<(), TestCaseError> {
    let config = UnmanagedConfig { allow_large_granule: true };
    let Ok(domain) = Unmanaged::new(board.platform(), translation.clone(), config) else {
        return Ok(());
    };
    let attrs = Attributes::memory(Access::READ);
    let mut mapped = Vec::new();
    // Each also half a page further on in memory alone.
    let moved = |piece: &PhysRange| {
        let start = piece.start().checked_add(0x800)?;
        PhysRange::new(start, piece.len()).ok()
    };
    let places = pieces.iter().flat_map(|piece| {
        let here = piece.start().raw();
        [Some((here, *piece)), moved(piece).map(|moved| (here, moved)), Some((at, *piece))]
    });
    for (iova, phys) in places.flatten() {
        let iova = Iova::new(iova);
        // SAFETY: no device exists.
        if unsafe { domain.map(iova, phys, attrs) }.is_ok() {
            prop_assert_eq!(domain.resolve(iova).map(|found| found.phys), Some(phys.start()));
            mapped.push(IovaRange::new(iova, phys.len()).expect("it was mapped"));
        }
    }
    if let Ok(range) = IovaRange::new(Iova::new(at), len) {
        // SAFETY: no device exists.
        if unsafe { domain.unmap(range) }.is_ok() {
            mapped.retain(|one| !range.contains_range(one));
        }
    }
    for range in mapped {
        // SAFETY: no device exists.
        let unmapped = unsafe { domain.unmap(range) };
        prop_assert!(unmapped.is_ok(), "{:?}", unmapped);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(granule_laws::effort::effort(128)))]

    #[test]
    fn translated_devices(
        spec in spec(),
        (stream, mask) in (prop_oneof![0u32..4, any::<u32>()], prop_oneof![Just(0u32), any::<u32>()]),
        pieces in prop::collection::vec(phys(), 0..4),
        (direction, flags) in (direction(), flags()),
        (at, len) in (number(), number()),
    ) {
        let board = Board::usual();
        let domain = board.domain("dart");
        let stream = Stream { unit: 0, id: StreamId { id: stream, mask } };
        // What lies inside the DART's 36 bits is mapped page by page, which takes its time.
        let quick = |piece: &PhysRange| piece.len() <= 1 << 24 || piece.last().raw() >> 36 != 0;
        let pieces: Vec<_> = pieces.into_iter().filter(quick).collect();
        if let Ok(device) = domain.attach(spec, &[stream], None) {
            ask(&device, &pieces, direction, flags, at, len)?;
            memory_of(&device, flags, affordable(len), at)?;
        }
        drop(domain);
        board.assert_clean();
    }

    #[test]
    fn direct_devices(
        spec in spec(),
        windows in prop::collection::vec((number(), phys()), 0..4),
        pieces in prop::collection::vec(phys(), 0..4),
        (direction, flags) in (direction(), flags()),
        (at, len) in (number(), number()),
    ) {
        let board = Board::usual();
        let window = |(bus, memory): &(u64, PhysRange)| {
            BusWindow { bus: DmaAddr::new(*bus), memory: *memory }
        };
        let mut windows: Vec<_> = windows.iter().map(window).collect();
        windows.push(board.identity_window());
        let spec = DeviceSpec { trusted: true, ..spec };
        if let Ok(device) = Device::direct(board.platform(), spec, &windows, None) {
            ask(&device, &pieces, direction, flags, at, len)?;
            let _ = Coherent::new(&device, affordable(len), flags).map(|coherent| coherent.address());
            let plan = Plan::new(len).device(&device, Access::all());
            let _ = plan.solve().map(|solved| solved.to_string());
        }
        board.assert_clean();
    }

    /// Backends decide what they can map: a hypervisor's IOMMU may have granules of 2^60 bytes.
    #[test]
    fn any_translation(
        (geometry, other, mirrored) in (noted::geometry(), noted::geometry(), prop::bool::weighted(0.3)),
        spec in prop_oneof![2 => Just(DeviceSpec::new("dev")), 1 => spec()],
        (pieces, whole) in (prop::collection::vec(phys(), 0..4), prop::bool::weighted(0.7)),
        (direction, flags) in (direction(), flags()),
        (at, len) in (number(), number()),
    ) {
        let board = Board::usual();
        let granule = geometry.page_sizes.granule().filter(|_| whole);
        let grown = |piece: PhysRange| granule.map_or(Some(piece), |size| piece.align_outward(size));
        let pieces: Vec<_> = pieces.into_iter().filter_map(grown).collect();
        let noted = [Noted::new(geometry), Noted::new(other)];
        let count = 1 + usize::from(mirrored);
        if let Ok(mirror) = Mirror::new(noted[..count].to_vec()) {
            let config = DomainConfig::default();
            if let Ok(domain) = Domain::new(board.platform(), mirror, &config) {
                if let Ok(device) = domain.attach(spec, &[Stream::new(0)], None) {
                    ask(&device, &pieces, direction, flags, at, len)?;
                    memory_of(&device, flags, affordable(len), at)?;
                }
                prop_assert_eq!(domain.stats().leaked_bytes, 0);
            }
        }
        prop_assert!(noted.iter().all(Noted::is_empty), "something stays mapped");
        place(&board, &noted[0], &pieces, at, len)?;
        prop_assert!(noted[0].is_empty(), "something stays mapped");
        board.assert_clean();
    }

    #[test]
    fn domains(
        (window, hole) in ((number(), number()), (number(), number())),
        (capacity, max_age) in (0usize..70, number()),
        (size, align, top) in (number(), number(), number()),
    ) {
        let board = Board::usual();
        let range = |(at, len): (u64, u64)| IovaRange::new(Iova::new(at), len).ok();
        let config = DomainConfig {
            policy: InvalidationPolicy::Deferred { capacity, max_age },
            reserved: range(hole).map(Reserved::hole).into_iter().collect(),
            window: range(window),
        };
        let tables = board.paged::<Dart1>(&["dart"]);
        if let Ok(domain) = Domain::new(board.platform(), tables, &config) {
            let device = domain.attach(DeviceSpec::new("dev"), &[Stream::new(0)], None);
            if let Ok(device) = device {
                let mapping = device.map(Buf::new(&board.machine, 100), Direction::ToDevice);
                prop_assert!(mapping.map_or(1, |mapping| mapping.address().raw()) != 0);
                memory_of(&device, MapFlags::GUARD, 0x4000, align)?;
            }
            prop_assert!(domain.poll().is_ok() && domain.flush().is_ok());
        }
        let _ = IovaRequest::new(size).aligned(align).within(range((top, size)));
        board.assert_clean();
    }

    #[test]
    fn windows_and_constraints(ranges in prop::collection::vec(phys(), 0..6), align in 12u32..40) {
        let align = granule::addr::Granule::new(1 << align).expect("a power of two");
        let windows = Windows::new(ranges.clone());
        prop_assert!(ranges.iter().all(|range| windows.contains(range)) || !windows.is_empty());
        let _ = (windows.longest(align), windows.intersection(&Windows::everywhere()));
        let none = Constraints::none(align);
        let _ = Constraints { windows, ..none.clone() }.union(&none).to_string();
    }
}

#[test]
fn more_than_all_memory_is_refused_and_given_back() {
    let board = Board::usual();
    let device = board.device();
    let before = board.machine.frames().live_bytes();
    assert!(device.alloc_coherent(1 << 30).is_err());
    assert_eq!(board.machine.frames().live_bytes(), before);
}
