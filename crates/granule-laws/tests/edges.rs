//! Where laws meet corners: one address for all, undone links, mirrors that fail on their second
//! side, devices that cannot be detached, memory that one of two devices does not snoop.

use granule::addr::{Access, Attributes, Direction, DmaAddr, Granule, Iova, IovaRange};
use granule::dma::{Device, DeviceSpec};
use granule::domain::{
    DomainError, Mirror, Paged, Stream, Translation, Unmanaged, UnmanagedConfig,
};
use granule::share::{Plan, ShareError};
use granule::table::{Dart1, FormatId};
use granule_laws::bench::{Bench, Case, RAM, Span, phys};
use granule_laws::buffer::{SimBuffer, bytes, fresh_id};
use granule_laws::check::{confined, reads, walks_nowhere, writes};
use granule_sim::faults::Point;

fn share(bench: &Bench, direct: &Device) -> Plan {
    Plan::new(bench.case.unit().size())
        .device(bench.dev(), Access::all())
        .device(direct, Access::all())
        .same_address(true)
}

/// A device on the bus fixes the address. If it is taken in another's space there is no other.
#[test]
fn one_address_that_is_taken_is_an_error_not_a_search_for_ever() {
    // Addresses that are those of the lowest memory.
    let window = IovaRange::new(Iova::new(RAM), 64 << 20).expect("legal");
    let case = Case { window: Some(window), ..Case::new(FormatId::Lpae4k, Granule::K4) };
    let bench = case.bench();
    let direct = bench.direct();
    let solved = share(&bench, &direct).solve().expect("a plan");
    let first = solved.allocate().expect("the address is free");
    let address = first.range_of(bench.dev()).expect("as planned").address();
    assert_eq!(address, first.range_of(&direct).expect("as planned").address());
    let data = bytes(fresh_id(), case.unit().size());
    writes(&bench, "dev", address, &data);
    reads(&bench, "direct", address, &data);
    // All addresses are taken in the space of `dev`, so that of the next memory is.
    let mut everything = Vec::new();
    for shift in (12..26).rev() {
        let one = || bench.dev().reserve_iova::<SimBuffer>((1 << shift) - 0xfff).ok();
        everything.extend(std::iter::from_fn(one));
    }
    let error = solved.allocate().err();
    match error {
        Some(ShareError::AddressesTaken { device }) => assert_eq!(device, "dev"),
        None => panic!("reserved addresses were given away"),
        Some(other) => panic!("{other}"),
    }
    drop(everything);
    drop((first, solved, direct));
    assert_eq!(bench.close(), [""; 0]);
}

/// An address that the other device cannot emit is refused, though its IOMMU could translate it.
#[test]
fn one_address_obeys_every_mask() {
    let case = Case::new(FormatId::Lpae4k, Granule::K4);
    let bench = case.bench();
    let direct = bench.direct();
    let mut spec = DeviceSpec::new("mate");
    spec.coherent_mask = RAM + 0x1fff;
    let mate = bench.attach(&bench.domain, spec, &[Stream::new(1)]).expect("attached");
    let plan = Plan::new(0x1000).device(&mate, Access::all()).device(&direct, Access::all());
    // The bounce pool has the lowest memory, so any block lies above what the mask allows.
    let refused = plan.same_address(true).solve().map(|solved| solved.allocate().map(|_| ()));
    assert!(!matches!(refused, Ok(Ok(()))), "the device cannot emit that address");
    drop((mate, direct));
    assert_eq!(bench.close(), [""; 0]);
}

/// A link that could not be taken out keeps its addresses: they may still be cached.
#[test]
fn a_reservation_that_lost_a_link_keeps_its_addresses() {
    for format in FormatId::ALL {
        let case = Case::new(*format, Granule::K4);
        let bench = case.bench();
        let unit = case.unit().size();
        let mut all = bench.dev().reserve_iova::<SimBuffer>(2 * unit).expect("space");
        for _ in 0..2 {
            let buffer = SimBuffer::new(&case, &bench.machine, 0, unit);
            all.link(buffer, Direction::Bidirectional).expect("it joins");
        }
        bench.hostile("dev").touch_all();
        bench.machine.faults().fail_nth(Point::Invalidation, 0);
        let lost = all.unmap().expect_err("the invalidation fails");
        let lost = lost.range;
        assert!(bench.domain.stats().poisoned);
        assert_eq!(bench.domain.stats().leaked_bytes, lost.len());
        let taken = bench.domain.stats().iova_bytes;
        assert!(taken >= 2 * unit, "{format}: {taken:#x} bytes are kept");
        bench.domain.recover().expect("hardware that answers again");
        let mut memory = Vec::new();
        for _ in 0..8 {
            let one = bench.dev().alloc_coherent(unit).expect("it works again");
            let range = IovaRange::new(Iova::new(one.address().raw()), unit).expect("legal");
            assert!(!range.overlaps(&lost), "{format}: {lost} was reused");
            memory.push(one);
        }
    }
}

/// A map that fails on the second side leaves nothing on the first, and the range usable.
#[test]
fn a_mirror_maps_on_both_sides_or_on_none() {
    let case = Case { pool: 0, span: Span::Mirror, ..Case::new(FormatId::Dart1, Granule::K4) };
    let bench = case.bench();
    let sides: Vec<_> = bench
        .iommus
        .chunks(1)
        .map(|one| Paged::<Dart1, _, _>::new(bench.machine.platform(), one).expect("a table"))
        .collect();
    let mirror = Mirror::new(sides).expect("the same format");
    let config = UnmanagedConfig { allow_large_granule: true };
    let domain = Unmanaged::new(bench.machine.platform(), mirror, config).expect("a domain");
    domain.attach(Stream::new(5)).expect("a free stream");
    domain.attach(Stream::new(5).at_unit(1)).expect("a free stream");
    // All that a leaf table spans, so that undoing it detaches the table.
    let memory = phys(RAM, 32 << 20);
    let attrs = Attributes::memory(Access::all());
    let at = Iova::new(32 << 20);
    let mut fired = 0;
    for k in 0.. {
        bench.machine.faults().clear();
        bench.machine.faults().fail_nth(Point::Frames, k);
        // SAFETY: a simulated device may do to simulated memory what it likes.
        let mapped = unsafe { domain.map(at, memory, attrs) };
        if bench.machine.faults().fired() == 0 {
            mapped.unwrap_or_else(|error| panic!("after {k} faults: {error}"));
            break;
        }
        fired += 1;
        mapped.expect_err("memory for a table is lacking");
        for side in 0..2 {
            assert!(walks_nowhere(&bench, side, 5, at.raw()), "side {side}, k = {k}");
        }
        // SAFETY: as above.
        unsafe { domain.map(at, memory, attrs) }.expect("the range is as good as new");
        let all = IovaRange::new(at, memory.len()).expect("legal");
        // SAFETY: the range was just mapped here.
        unsafe { domain.unmap(all) }.expect("hardware that answers");
    }
    assert!(fired > 0);
    drop(domain);
    assert_eq!(bench.close(), [""; 0]);
}

/// A domain over two IOMMUs: if one forgets and the other does not, nothing is reused.
#[test]
fn both_sides_must_forget() {
    for (span, k) in [(Span::Mirror, 0), (Span::Mirror, 1), (Span::Paged, 0), (Span::Paged, 1)] {
        let case = Case { span, ..Case::new(FormatId::Lpae16k, Granule::K4) };
        let bench = case.bench();
        let buffer = SimBuffer::new(&case, &bench.machine, 0, case.unit().size());
        let range = buffer.ranges()[0];
        let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
        let at = mapping.address();
        bench.hostile("dev").touch_all();
        bench.machine.faults().fail_nth(Point::Invalidation, k);
        mapping.unmap().expect_err("one side did not answer");
        let live = bench.machine.frames().live();
        assert!(live.iter().any(|block| block.overlaps(&range)), "{span:?}, {k}: freed");
        assert!(bench.domain.stats().poisoned);
        bench.domain.recover().expect("hardware that answers again");
        let next = bench.dev().alloc_coherent(case.unit().size()).expect("it works again");
        assert_ne!(next.address(), at);
    }
}

/// What a device writes into a bounce buffer while the CPU looks is not lost when the CPU is done.
#[test]
fn the_cpus_turn_does_not_undo_the_devices_writes() {
    for case in Case::all() {
        let bench = case.bench();
        let mut mapping =
            bench.dev().map(vec![0u8; 256], Direction::FromDevice).expect("a mapping");
        assert!(mapping.is_bounced());
        let at = mapping.address();
        writes(&bench, "dev", at, b"first");
        let turn = mapping.sync_for_cpu(0..256).expect("inside");
        writes(&bench, "dev", DmaAddr::new(at.raw() + 128), b"second");
        let mut seen = [0; 5];
        turn.read(0, &mut seen).expect("inside");
        assert_eq!(&seen, b"first");
        drop(turn);
        let buffer = mapping.unmap().expect("hardware that answers");
        assert_eq!((&buffer[..5], &buffer[128..134]), (&b"first"[..], &b"second"[..]));
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Cached coherent memory is not coherent for a device that does not snoop.
#[test]
fn coherent_memory_is_not_lent_to_a_device_that_does_not_snoop() {
    let case = Case::new(FormatId::Dart1, Granule::K4);
    let bench = case.bench();
    let spec = DeviceSpec::new("mate").non_snooping();
    let mate = bench.attach(&bench.domain, spec, &[Stream::new(1)]).expect("attached");
    let memory = bench.dev().alloc_coherent(100).expect("memory");
    assert!(memory.map_for(&mate).is_err(), "the device would read what the CPU has not written");
    // The other way round is fine.
    let uncached = mate.alloc_coherent(100).expect("memory");
    assert!(uncached.map_for(bench.dev()).is_ok());
    drop((memory, uncached));
    drop(mate);
    assert_eq!(bench.close(), [""; 0]);
}

/// A device whose detachment failed is not brought back by recovery.
#[test]
fn recovery_does_not_bring_back_a_device_that_left() {
    for format in FormatId::ALL {
        let case = Case::new(*format, Granule::K4);
        let bench = case.bench();
        let mate = bench.attach(&bench.domain, case.spec("mate"), &[Stream::new(1)]);
        let memory = bench.dev().alloc_coherent(100).expect("memory");
        bench.machine.faults().fail_nth(Point::Invalidation, 0);
        drop(mate.expect("attached"));
        assert!(bench.domain.stats().poisoned);
        bench.domain.recover().expect("hardware that answers again");
        confined(&bench, "mate", &[], "after recovery");
        reads(&bench, "dev", memory.address(), &[0; 100]);
        drop(memory);
        // The stream is free for somebody else.
        let other = case.domain(&bench.machine, &bench.iommus, Span::One).expect("a domain");
        let mate = bench.attach(&other, case.spec("mate"), &[Stream::new(1)]);
        drop(mate.expect("the stream is free"));
        drop(other);
        assert_eq!(bench.close(), [""; 0], "{format}");
    }
}

/// An unmap whose invalidation failed is complete after `recover`: the device has lost the memory,
/// the tables are freed, and the range is as good as new.
#[test]
fn an_unmanaged_domain_recovers() {
    let case = Case { pool: 0, ..Case::new(FormatId::Dart1, Granule::K4) };
    let bench = case.blank();
    let paged = Paged::<Dart1, _, _>::new(bench.machine.platform(), &bench.iommus[..1]);
    let config = UnmanagedConfig { allow_large_granule: true };
    let domain = Unmanaged::new(bench.machine.platform(), paged.expect("a table"), config);
    let domain = domain.expect("a domain");
    domain.attach(Stream::new(0)).expect("a free stream");
    // All that a leaf table spans, so that the unmap detaches the table.
    let (at, memory) = (Iova::new(32 << 20), phys(RAM, 32 << 20));
    let all = IovaRange::new(at, memory.len()).expect("legal");
    let attrs = Attributes::memory(Access::all());
    let empty = domain.translation().table_pages();
    // SAFETY: a simulated device may do to simulated memory what it likes.
    let map = || unsafe { domain.map(at, memory, attrs) };
    // SAFETY: the range is mapped here and nowhere else.
    let unmap = || unsafe { domain.unmap(all) };
    map().expect("free");
    let address = DmaAddr::new(at.raw());
    writes(&bench, "dev", address, &[7]);
    bench.machine.faults().fail_nth(Point::Invalidation, 0);
    unmap().expect_err("the invalidation fails");
    writes(&bench, "dev", address, &[8]);
    assert_eq!(domain.leaked_bytes(), all.len());
    assert_eq!(map(), Err(DomainError::Poisoned));
    domain.recover().expect("hardware that answers again");
    let device = bench.machine.device("dev").expect("as built");
    device.write(address, &[9]).expect_err("the device has lost the memory");
    assert_eq!((domain.leaked_bytes(), domain.translation().table_pages()), (0, empty));
    map().expect("the range is as good as new");
    writes(&bench, "dev", address, &[10]);
    unmap().expect("hardware that answers");
    domain.detach(Stream::new(0)).expect("hardware that answers");
}
