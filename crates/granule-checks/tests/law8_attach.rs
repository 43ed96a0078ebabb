//! Law 8: what cannot work is refused when a device is attached, with the device, the constraint and
//! the value in the error.

use std::fmt::Display;

use granule::addr::{Access, Attributes, Direction, DmaAddr, Granule, Iova, IovaRange, PhysAddr};
use granule::dma::{
    AttachError, BusWindow, DetachError, Device, DeviceSpec, DmaError, MapFlags, Mapping,
    TrustReason,
};
use granule::domain::{
    Domain, DomainConfig, DomainError, Mirror, Reserved, Stream, StreamError, StreamId,
    TranslationError, UnitError, Unmanaged, UnmanagedConfig,
};
use granule::iova::IovaError;
use granule::table::{Dart1, Dart2, Lpae4k};
use granule_checks::{Board, Buf, SimPaged, dma_range, phys_range};
use granule_sim::iommu::{IommuConfig, LockedStream};
use granule_sim::platform::SimPlatform;
use granule_sim::walk::SimFormat;

/// Asserts that a message names all of these.
#[track_caller]
fn says(error: &impl Display, needles: &[&str]) {
    let text = error.to_string();
    for needle in needles {
        assert!(text.contains(needle), "`{needle}` is missing in: {text}");
    }
}

/// What `spec` is answered at a DART of 32 bits.
#[track_caller]
fn refused(spec: DeviceSpec) -> AttachError {
    let board = Board::usual();
    let domain = board.domain("dart");
    let error = domain.attach(spec, &[Stream::new(0)], None).expect_err("an impossible device");
    assert_eq!(board.iommu("dart").streams(), [], "no stream stays attached");
    error
}

#[track_caller]
fn refused_direct(spec: DeviceSpec, windows: &[BusWindow]) -> AttachError {
    let board = Board::usual();
    Device::direct(board.platform(), spec, windows, None).expect_err("an impossible device")
}

#[test]
fn masks() {
    let window = dma_range(0xf_0000_0000, 0xfc00_0000);
    let error = refused(DeviceSpec::new("dcp").mask_bits(32).window(window));
    let first = 0xf_0000_4000;
    let mask = 0xffff_ffff;
    assert_eq!(error, AttachError::Mask { device: "dcp".into(), kind: "streaming", mask, first });
    says(&error, &["dcp", "streaming", "0xffffffff", "0xf00004000"]);
    let error = refused(DeviceSpec::new("dcp").coherent_mask_bits(32).window(window));
    assert!(matches!(error, AttachError::Mask { kind: "coherent", .. }), "{error}");
    // Granule 0 is never handed out, so a mask that ends in it, or inside the next, leaves nothing.
    for bits in [0, 12, 14] {
        let error = refused(DeviceSpec::new("tiny").mask_bits(bits));
        assert!(matches!(error, AttachError::Mask { first: 0x4000, .. }), "{bits}: {error}");
    }
    let board = Board::usual();
    let spec = DeviceSpec::new("tiny").mask_bits(15);
    board.domain("dart").attach(spec, &[Stream::new(0)], None).expect("one granule is enough");
    let high = BusWindow::identity(phys_range(1 << 32, 0x1000));
    let error = refused_direct(DeviceSpec::new("pci").mask_bits(32), &[high]);
    let (kind, mask, first) = ("streaming", 0xffff_ffff, 1 << 32);
    assert_eq!(error, AttachError::Mask { device: "pci".into(), kind, mask, first });
    let error = refused_direct(DeviceSpec::new("pci").coherent_mask_bits(31), &[high]);
    assert!(matches!(error, AttachError::Mask { kind: "coherent", .. }), "{error}");
}

#[test]
fn windows() {
    let crossing = dma_range(0xf_f000_0000, 0x2000_0000);
    let error = refused(DeviceSpec::new("dcp").window(crossing));
    assert!(matches!(
        error,
        AttachError::Window { first: 0xf_f000_0000, last: 0x10_0fff_ffff, bits: 32, .. }
    ));
    says(&error, &["dcp", "0xff0000000", "0x100fffffff", "32 bits"]);
    // Others than DARTs do not overlook what stands above the bits that they index.
    let board = Board::usual();
    let domain = board.domain_of::<Lpae4k>("smmu", &DomainConfig::default());
    let attach = |window| {
        let spec = DeviceSpec::new("arm").window(window);
        domain.attach(spec, &[Stream::new(0)], None)
    };
    let error = attach(dma_range(0xf_0000_0000 << 8, 0xfc00_0000)).expect_err("above 39 bits");
    assert!(matches!(error, AttachError::Window { first: 0xf00_0000_0000, bits: 39, .. }));
    // The part below can be used.
    let device = attach(dma_range((1 << 39) - 0x8000, 1 << 39)).expect("8 pages");
    let buffer = Buf::new(&board.machine, 0x1000);
    let mapping = device.map(buffer, Direction::ToDevice).map_err(|refused| refused.error);
    let at = mapping.expect("there are pages").address().raw();
    assert!(((1 << 39) - 0x8000..1 << 39).contains(&at), "{at:#x}");
    let error = refused_direct(DeviceSpec::new("pci"), &[]);
    assert_eq!(error, AttachError::NoWindow { device: "pci".into() });
}

#[test]
fn limits_that_make_no_sense() {
    let error = refused(DeviceSpec::new("dev").boundary(0x3000));
    assert_eq!(error, AttachError::Boundary { device: "dev".into(), boundary: 0x3000 });
    says(&error, &["dev", "0x3000"]);
    let error = refused(DeviceSpec::new("dev").max_segment(0));
    assert_eq!(error, AttachError::NoSegment { device: "dev".into() });
    let error = refused(DeviceSpec::new("dev").min_align_mask(0xff0));
    assert_eq!(error, AttachError::AlignMask { device: "dev".into(), mask: 0xff0 });
    says(&error, &["dev", "0xff0"]);
    let everywhere = [BusWindow::identity(phys_range(0, 1 << 40))];
    let error = refused_direct(DeviceSpec::new("pci").boundary(5), &everywhere);
    assert_eq!(error, AttachError::Boundary { device: "pci".into(), boundary: 5 });
}

#[test]
fn untrusted_devices_need_translation() {
    let board = Board::usual();
    let spec = || DeviceSpec::new("guest").untrusted();
    let windows = [board.identity_window()];
    let error = refused_direct(spec(), &windows);
    let reason = TrustReason::Direct;
    assert_eq!(error, AttachError::Untrusted { device: "guest".into(), reason });
    says(&error, &["guest", "directly on the bus", "IOMMU"]);
    let (platform, dart, stream) = (board.platform(), board.iommu("dart"), StreamId::exact(0));
    // SAFETY: it is refused.
    let error = unsafe { Device::bypassed(platform, spec(), &dart, &[stream], &windows, None) };
    let reason = TrustReason::Bypass;
    let wanted = AttachError::Untrusted { device: "guest".into(), reason };
    assert_eq!(error.expect_err("refused"), wanted);
    let domain = identity(&board);
    let error = Device::identity(platform, spec(), &domain, &[Stream::new(0)], &windows, None);
    let reason = TrustReason::Identity;
    let wanted = AttachError::Untrusted { device: "guest".into(), reason };
    assert_eq!(error.expect_err("refused"), wanted);
}

fn identity(board: &Board) -> std::sync::Arc<Unmanaged<SimPlatform, SimPaged>> {
    let ram = phys_range(0xf000_0000, 0x1000_0000);
    // SAFETY: the simulated devices may reach all of the simulated RAM.
    let domain = unsafe { Unmanaged::identity(board.platform(), board.paged(&["dart"]), &[ram]) };
    domain.expect("aligned memory")
}

fn bypass(board: &Board, iommu: &str, stream: u32) -> Result<Device, AttachError> {
    let (spec, id) = (DeviceSpec::new("dev"), StreamId::exact(stream));
    let windows = [board.identity_window()];
    // SAFETY: the simulated device may reach all of the simulated RAM.
    unsafe { Device::bypassed(board.platform(), spec, &board.iommu(iommu), &[id], &windows, None) }
}

#[test]
fn bypass_where_the_hardware_has_none() {
    let mut strict = IommuConfig::new("strict", SimFormat::Dart1, 32);
    strict.can_bypass = false;
    let mut locked = IommuConfig::new("locked", SimFormat::Dart1, 32);
    let roots = vec![PhysAddr::new(0xf000_4000)];
    locked.locked = vec![LockedStream { stream: 3, context: 0x8000_0003, roots, input_bits: 32 }];
    let firmware = phys_range(0xf000_0000, 0x1_0000);
    let board = Board::build(Board::parts().iommu(strict).iommu(locked).reserve(firmware));
    let unit = || "strict".to_string();
    let cause = UnitError::NoBypass { unit: unit(), stream: StreamId::exact(0) }.into();
    let error = bypass(&board, "strict", 0).expect_err("no bypass");
    assert_eq!(error, AttachError::Bypass { device: "dev".into(), cause });
    says(&error, &["dev", "strict", "0x0"]);
    let error = bypass(&board, "locked", 3).expect_err("locked");
    let cause = UnitError::Locked { unit: "locked".into(), stream: StreamId::exact(3) }.into();
    assert_eq!(error, AttachError::Bypass { device: "dev".into(), cause });
    bypass(&board, "locked", 2).expect("its neighbour is not locked");
    let error = bypass(&board, "dart", 99).expect_err("no such stream");
    says(&error, &["dev", "dart", "0x63", "16"]);
    let device = board.device();
    let error = bypass(&board, "dart", 0).expect_err("translated");
    let (stream, other) = (StreamId::exact(0), StreamId::exact(0));
    let cause = TranslationError::Group { unit: "dart".into(), stream, other };
    assert_eq!(error, AttachError::Bypass { device: "dev".into(), cause });
    drop(device);
    bypass(&board, "dart", 0).expect("free again");
}

#[test]
fn streams() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let attach = |streams: &[Stream]| domain.attach(DeviceSpec::new("dev"), streams, None);
    let error = attach(&[]).expect_err("no stream");
    assert_eq!(error, AttachError::NoStream { device: "dev".into() });
    let error = attach(&[Stream::new(0), Stream::new(16)]).expect_err("16 streams");
    says(&error, &["dev", "dart", "0x10", "16 of them"]);
    let error = attach(&[Stream::new(0), Stream::new(0).at_unit(1)]).expect_err("one IOMMU");
    let cause = TranslationError::NoSuchUnit { unit: 1, count: 1 };
    let cause = StreamError::Translation(cause);
    assert_eq!(error, AttachError::Stream { device: "dev".into(), cause });
    assert_eq!(board.iommu("dart").streams(), [], "all streams or none");
    let first = attach(&[Stream { unit: 0, id: StreamId { id: 0, mask: 1 } }]).expect("a pair");
    let error = board.domain("dart").attach(DeviceSpec::new("two"), &[Stream::new(1)], None);
    let error = error.expect_err("it overlaps");
    let (stream, other) = (StreamId::exact(1), StreamId { id: 0, mask: 1 });
    let cause = TranslationError::Group { unit: "dart".into(), stream, other };
    let cause = StreamError::Translation(cause);
    assert_eq!(error, AttachError::Stream { device: "two".into(), cause });
    says(&error, &["two", "dart", "0x1", "mask 0x1", "group"]);
    drop(first);
    attach(&[Stream::new(1)]).expect("free again");
}

#[test]
fn formats_and_units() {
    let board = Board::usual();
    let error = SimPaged::<Dart2>::new(board.platform(), &[board.iommu("dart")]);
    let error = error.err().expect("a DART 1");
    assert!(matches!(error, TranslationError::Format { .. }));
    says(&error, &["dart", "dart2"]);
    let none = SimPaged::<Dart1>::new(board.platform(), &[]).err();
    assert_eq!(none, Some(TranslationError::NoUnit));
    assert_eq!(Mirror::<SimPaged>::new(Vec::new()).err(), Some(TranslationError::NoUnit));
}

#[test]
fn unmanaged_domains_and_large_granules() {
    let board = Board::usual();
    let config = UnmanagedConfig::default();
    let error = Unmanaged::new(board.platform(), board.paged::<Dart1>(&["dart"]), config).err();
    let error = error.expect("16 KiB granules on 4 KiB pages");
    let (granule, cpu_page) = (Granule::K16, Granule::K4);
    assert_eq!(error, DomainError::LargeGranule { granule, cpu_page });
    says(&error, &["16 KiB", "4 KiB", "allow_large_granule"]);
    let config = UnmanagedConfig { allow_large_granule: true };
    assert!(Unmanaged::new(board.platform(), board.paged::<Dart1>(&["dart"]), config).is_ok());
    let config = UnmanagedConfig::default();
    assert!(Unmanaged::new(board.platform(), board.paged::<Lpae4k>(&["smmu"]), config).is_ok());
}

#[test]
fn domains_that_cannot_be() {
    let board = Board::usual();
    let new = |config: &DomainConfig| {
        Domain::new(board.platform(), board.paged::<Dart1>(&["dart"]), config).err()
    };
    let range = |start, len| IovaRange::new(Iova::new(start), len).expect("a legal range");
    let with = |window| DomainConfig { window: Some(window), ..DomainConfig::default() };
    let error = new(&with(range(1 << 33, 0x10_0000))).expect("beyond 32 bits");
    assert!(matches!(error, DomainError::Range { .. }), "{error}");
    says(&error, &["0x200000000"]);
    let error = new(&with(range(0x1_0001, 0x4000))).expect("no whole granule");
    assert!(matches!(error, DomainError::Iova(IovaError::EmptyAperture { .. })), "{error}");
    let attrs = Attributes::memory(Access::READ);
    let mapped = |start, phys| {
        // SAFETY: the domain is never made.
        let reserved =
            unsafe { Reserved::mapped(range(start, 0x4000), PhysAddr::new(phys), attrs) };
        DomainConfig { reserved: vec![reserved], ..DomainConfig::default() }
    };
    let error = new(&mapped(0x8000, 0xf000_1000)).expect("another offset in the granule");
    assert_eq!(error, DomainError::Misaligned { value: 0xf000_1000, granule: Granule::K16 });
    let error = new(&mapped(0x8000, 1 << 40)).expect("a DART 1 puts out 36 bits");
    assert!(matches!(error, DomainError::OutOfReach { .. }), "{error}");
    says(&error, &["0x10000000000"]);
}

#[test]
fn an_untrusted_device_does_not_join_a_domain_that_exposes() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let first = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let mapping = first.map(Buf::new(&board.machine, 0x1000), Direction::ToDevice);
    let mapping = mapping.expect("mapped");
    let join = || domain.attach(DeviceSpec::new("guest").untrusted(), &[Stream::new(1)], None);
    let cause = StreamError::Exposing { exposed: 0x3000 };
    let error = join().expect_err("bytes are exposed");
    assert_eq!(error, AttachError::Stream { device: "guest".into(), cause });
    drop(mapping);
    join().expect("nothing is exposed any more");
}

#[test]
fn detaching_what_is_in_use() {
    let board = Board::usual();
    let device = board.device();
    let buffer = Buf::new(&board.machine, 64);
    let flags = MapFlags::empty();
    let mapping = Mapping::new(device.clone(), buffer, Direction::ToDevice, flags).expect("mapped");
    let at = mapping.address();
    let (device, error) = device.detach().expect_err("a mapping is live");
    assert_eq!(error, DetachError::Live { device: "dev".into(), live: 1 });
    says(&error, &["dev", "1 live"]);
    assert!(board.read("dev", at, 64).is_some(), "it is as it was");
    drop(mapping);
    let other = device.clone();
    let (device, error) = device.detach().expect_err("another handle");
    assert_eq!(error, DetachError::Shared { device: "dev".into(), handles: 1 });
    drop(other);
    device.detach().expect("alone and idle");
    assert_eq!(board.iommu("dart").streams(), []);
    board.assert_clean();
}

#[test]
fn registers_of_another_device() {
    let board = Board::usual();
    let device = board.attach(&board.domain("dart"), DeviceSpec::new("guest").untrusted(), 0);
    let range = phys_range(0x2_3000_1000, 0x1000);
    // SAFETY: it is refused.
    let error = unsafe { device.map_resource(range, Access::WRITE) }.expect_err("not aligned");
    assert_eq!(error, DmaError::Resource { device: "guest".into(), range, granule: Granule::K16 });
    says(&error, &["guest", "0x230001000", "16 KiB"]);
    let whole = phys_range(0x2_3000_0000, 0x4000);
    // SAFETY: there is nothing at that address.
    unsafe { device.map_resource(whole, Access::WRITE) }.expect("whole granules");
    let low = BusWindow::new(DmaAddr::new(0x1000), PhysAddr::new(0xf000_0000), 0x1000);
    let low = [low.expect("a legal window")];
    let pci = Device::direct(board.platform(), DeviceSpec::new("pci"), &low, None).expect("legal");
    // SAFETY: it is refused.
    let error = unsafe { pci.map_resource(range, Access::WRITE) }.expect_err("out of reach");
    assert_eq!(error, DmaError::Unreachable { device: "pci".into(), range });
}
