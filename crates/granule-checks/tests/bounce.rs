//! When a buffer is bounced, what the device finds in the slot, and what the buffer holds afterwards;
//! direct, bypassed and identity routes; and fences, which spare the copy.

use granule::addr::{Direction, DmaAddr, Granule, PhysAddr, PhysRange};
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{
    BounceReason, BusWindow, Device, DeviceSpec, DmaError, MapFlags, Mapping, RouteReport,
    ScatterList,
};
use granule::domain::{DomainConfig, Stream, StreamId, Unmanaged};
use granule::table::{Dart1, Lpae4k};
use granule_checks::{Board, Buf, RAM, RAM_LEN, dma_range, phys_range};
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec as SimSpec, Wiring};
use granule_sim::walk::SimFormat;

const BOTH: Direction = Direction::Bidirectional;

/// An untrusted device on stream 0 of `dart`, with a pool that is full of somebody's old bytes.
fn guest(board: &Board, spec: DeviceSpec) -> Device {
    let pool = board.pool();
    for range in pool.ranges() {
        board.machine.ram().fill(range, 0xbb).expect("RAM");
    }
    board.domain("dart").attach(spec, &[Stream::new(0)], Some(pool)).expect("legal")
}

#[test]
fn an_untrusted_device_finds_its_bytes_and_zeroes() {
    let board = Board::usual();
    let device = guest(&board, DeviceSpec::new("dev").untrusted());
    for flags in [MapFlags::empty(), MapFlags::SKIP_CPU_SYNC] {
        let mut buffer = Buf::at(&board.machine, 0x123, 0x456);
        buffer.fill(&[7; 0x456]);
        let mapping = Mapping::new(&device, buffer, BOTH, flags).expect("bounced");
        assert!(mapping.is_bounced());
        assert_eq!(mapping.address().raw() & 0x3fff, 0, "a slot begins a granule");
        let granule = board.read("dev", mapping.address(), 0x4000).expect("a whole granule");
        assert!(granule[..0x456].iter().all(|byte| *byte == 7), "{flags:?}");
        assert!(granule[0x456..].iter().all(|byte| *byte == 0), "{flags:?}");
        let stats = device.stats();
        assert_eq!((stats.exposed_bytes, stats.bounced_bytes), (0, 0x456));
        assert_eq!(stats.padding_bytes, 0x4000 - 0x456);
    }
    assert_eq!(device.stats().bounces, 2);
}

/// A trusted device of the same domain: its slot is reached by the other one.
#[test]
fn a_domain_is_as_trusted_as_its_least_trusted_device() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let pool = board.pool();
    for range in pool.ranges() {
        board.machine.ram().fill(range, 0xbb).expect("RAM");
    }
    let attach = |spec, stream| domain.attach(spec, &[Stream::new(stream)], Some(pool.clone()));
    let trusted = attach(DeviceSpec::new("dev"), 0).expect("legal");
    let early = Mapping::new(&trusted, vec![7u8; 100], BOTH, MapFlags::SKIP_CPU_SYNC);
    let early = early.expect("bounced: the platform does not know it");
    let _untrusted = attach(DeviceSpec::new("dev1").untrusted(), 1).expect("nothing is exposed");
    let late = Mapping::new(&trusted, vec![7u8; 100], BOTH, MapFlags::SKIP_CPU_SYNC);
    for mapping in [early, late.expect("bounced")] {
        let seen = board.read("dev1", mapping.address(), 0x4000).expect("one domain");
        assert!(!seen.contains(&0xbb), "the slot's last owner's bytes");
    }
    let sub = trusted.map(Buf::new(&board.machine, 0x1000), BOTH).expect("bounced");
    assert!(sub.is_bounced(), "its granule holds bytes of others");
}

#[test]
fn a_short_transfer_leaves_the_buffers_old_bytes() {
    let board = Board::usual();
    let device = guest(&board, DeviceSpec::new("dev").untrusted());
    let mut buffer = Buf::new(&board.machine, 100);
    buffer.fill(&[1; 100]);
    let mapping = device.map(buffer, Direction::FromDevice).expect("bounced");
    assert!(board.write("dev", mapping.address(), &[2; 10]));
    let bytes = mapping.unmap().expect("unmapped").bytes();
    assert!(bytes[..10] == [2; 10] && bytes[10..] == [1; 90]);
}

#[test]
fn the_cpu_looks_into_a_bounced_buffer() {
    let board = Board::usual();
    let device = guest(&board, DeviceSpec::new("dev").untrusted());
    let mut mapping = device.map(Buf::at(&board.machine, 5, 100), BOTH).expect("bounced");
    assert!(board.write("dev", mapping.address(), b"abcdef"));
    let mut seen = [0; 4];
    let mut access = mapping.sync_for_cpu(2..50).expect("inside");
    access.read(0, &mut seen).expect("inside");
    access.write(2, b"XY").expect("inside");
    drop(access);
    assert_eq!(&seen, b"cdef");
    assert_eq!(board.read("dev", mapping.address(), 6), Some(b"\x61bcdXY".to_vec()));
    let bytes = mapping.unmap().expect("unmapped").bytes();
    assert_eq!(&bytes[..6], b"abcdXY");
}

#[test]
fn address_bits_are_kept() {
    let board = Board::usual();
    let device = guest(&board, DeviceSpec::new("dev").untrusted().min_align_mask(0xfff));
    for offset in [0, 0x123, 0xfff, 0x1ff0, 0x3001] {
        let mapping = device.map(Buf::at(&board.machine, offset, 0x200), BOTH).expect("bounced");
        assert!(mapping.is_bounced());
        assert_eq!(mapping.address().raw() & 0xfff, offset & 0xfff);
        let outer = mapping.address().align_down(Granule::K16);
        let size = (mapping.address().raw() - outer.raw() + 0x200).next_multiple_of(0x4000);
        let seen = board.read("dev", outer, size as usize).expect("whole granules");
        assert!(!seen.contains(&0xbb), "padding before and behind is zeroed");
    }
}

#[test]
fn a_full_pool_says_so_and_gives_the_buffer_back() {
    let board = Board::usual();
    let config = BounceConfig { align: Granule::K16, ..BounceConfig::new(0x8000) };
    let pool = BouncePool::new(board.platform(), config).expect("free memory").into();
    let spec = DeviceSpec::new("dev").untrusted();
    let device = board.domain("dart").attach(spec, &[Stream::new(0)], Some(pool)).expect("legal");
    let map = || device.map(Buf::new(&board.machine, 100), BOTH);
    let held = [map().expect("bounced"), map().expect("bounced")];
    let refused = map().expect_err("two granules");
    let reason = matches!(refused.error, DmaError::Bounce { reason: BounceReason::Exposure, .. });
    assert!(reason && refused.buffer.is_some(), "{refused}");
    drop(held);
    drop(map().expect("there is room again"));
}

/// Slots of ended mappings that wait for a flush are no reason to refuse.
#[test]
fn a_pool_that_waits_in_quarantine_is_flushed() {
    let board = Board::usual();
    let config = BounceConfig { align: Granule::K16, ..BounceConfig::new(0x8000) };
    let pool = BouncePool::new(board.platform(), config).expect("free memory").into();
    let spec = DeviceSpec::new("dev").untrusted();
    let device = board.deferred("dart").attach(spec, &[Stream::new(0)], Some(pool)).expect("legal");
    for round in 0..8 {
        let mapping = device.map(Buf::new(&board.machine, 100), BOTH);
        drop(mapping.unwrap_or_else(|refused| panic!("round {round}: {refused}")));
    }
    let list = ScatterList::new((0..2).map(|_| Buf::new(&board.machine, 100)));
    drop(device.map_list(list, BOTH).expect("two slots, once flushed"));
}

#[test]
fn a_narrow_device_on_the_bus() {
    let board = Board::build(Board::parts().device(Board::direct_wiring("narrow", 32)));
    let windows = [board.identity_window()];
    let spec = || DeviceSpec::new("narrow").mask_bits(32);
    let with = |pool| Device::direct(board.platform(), spec(), &windows, pool).expect("legal");
    let device = with(Some(board.low_pool()));
    let mut buffer = Buf::within(&board.machine, Board::high(), 9, 0x3000);
    buffer.fill(b"high memory");
    let mapping = device.map(buffer, BOTH).expect("bounced");
    assert!(mapping.is_bounced());
    assert_eq!(board.read("narrow", mapping.address(), 11), Some(b"high memory".to_vec()));
    assert!(board.write("narrow", mapping.address(), b"HIGH"));
    assert_eq!(&mapping.unmap().expect("unmapped").bytes()[..11], b"HIGH memory");
    let low = device.map(Buf::new(&board.machine, 64), BOTH).expect("mapped");
    assert!(!low.is_bounced());
    // One byte past 4 GiB is one too many.
    let edge = PhysRange::new(PhysAddr::new((1 << 32) - 0x1_0000), 0x2_0000).ok();
    let mapping = device.map(Buf::within(&board.machine, edge, 0xfff0, 0x11), BOTH);
    assert!(mapping.expect("bounced").is_bounced());
    let refused = with(None).map(Buf::within(&board.machine, Board::high(), 0, 64), BOTH).err();
    let reason = BounceReason::OutOfReach;
    let wanted = DmaError::NoBounce { device: "narrow".into(), reason };
    assert_eq!(refused.expect("no pool").error, wanted);
    let coherent = device.alloc_coherent(0x1_0000).expect("memory that it reaches");
    assert!(coherent.address().raw() + 0xffff < 1 << 32);
}

/// Entries of a list that the IOMMU cannot name are bounced, those beside them are not.
#[test]
fn memory_that_the_iommu_cannot_name() {
    let iommu = IommuConfig::new("narrow", SimFormat::Lpae4k, 39);
    let parts = Board::parts().iommu(IommuConfig { output_bits: 32, ..iommu });
    let board = Board::build(parts.device(SimSpec::behind("near", "narrow", 0)));
    let domain = board.domain_of::<Lpae4k>("narrow", &DomainConfig::default());
    let with =
        |pool| domain.attach(DeviceSpec::new("near"), &[Stream::new(0)], pool).expect("legal");
    let device = with(Some(board.low_pool()));
    // Known to the CPU, or known by their physical addresses: which is another way through.
    let described =
        |buffer: Buf, phys| if phys { buffer.in_parts(&[(0, 0x1_0000)]) } else { buffer };
    let high = |phys| described(Buf::within(&board.machine, Board::high(), 0, 0x1_0000), phys);
    let low = |phys| described(Buf::new(&board.machine, 0x1_0000), phys);
    for (phys, place) in [false, true].into_iter().flat_map(|phys| (0..4).map(move |at| (phys, at)))
    {
        let mut buffers: Vec<_> = (0..3).map(|_| low(phys)).collect();
        buffers.insert(place, high(phys));
        buffers[place].fill(b"high memory");
        let mapping = device.map_list(ScatterList::new(buffers), BOTH).expect("one is bounced");
        assert_eq!((mapping.bounced(), mapping.segments().len()), (1, 1));
        let at = DmaAddr::new(mapping.segments()[0].address.raw() + place as u64 * 0x1_0000);
        assert_eq!(board.read("near", at, 11), Some(b"high memory".to_vec()));
    }
    drop(device);
    let device = with(None);
    for phys in [false, true] {
        let list = ScatterList::new([low(phys), high(phys)]);
        let refused = device.map_list(list, BOTH).expect_err("no pool");
        let reason = BounceReason::OutOfReach;
        assert_eq!(refused.error, DmaError::NoBounce { device: "near".into(), reason });
    }
}

/// A device on the bus that reaches the first half of RAM, `off` bytes beside a round address.
fn beside(off: u64) -> (Board, Device) {
    let (bus, half) = (0x3000_0000 + off, RAM_LEN / 2);
    let wiring = Wiring::Direct { window: dma_range(bus, half), phys: PhysAddr::new(RAM) };
    let board = Board::build(Board::parts().device(SimSpec::new("bus", wiring)));
    let window = BusWindow::new(DmaAddr::new(bus), PhysAddr::new(RAM), half).expect("legal");
    let spec = DeviceSpec::new("bus").min_align_mask(0xfff).boundary(0x1_0000);
    let device = Device::direct(board.platform(), spec, &[window], Some(board.low_pool()));
    (board, device.expect("legal"))
}

/// A slot is chosen where the device sees what it asked for: its low bits, and no boundary inside. Many
/// slots are taken, so that there are few places that would do by chance.
#[test]
fn bits_are_kept_and_boundaries_respected_together() {
    for off in [0, 0x1000, 0x5800, 0xf040] {
        let (board, device) = beside(off);
        let mut held = Vec::new();
        let lens = [0x4000, 0x886e, 0xb8, 0x59ad, 1, 0xf78f, 0x7790, 0x7791, 0x1001];
        for (round, len) in lens.into_iter().cycle().take(40).enumerate() {
            let mut buffer = Buf::within(&board.machine, Board::high(), 0x870, len);
            buffer.fill(&[round as u8]);
            let mapping = device.map_list(ScatterList::new([buffer]), BOTH);
            let mapping = mapping.unwrap_or_else(|refused| panic!("{off:#x}, {len:#x}: {refused}"));
            let segment = mapping.segments()[0];
            let (first, last) = (segment.address.raw(), segment.address.raw() + len - 1);
            assert_eq!((mapping.bounced(), first & 0xfff), (1, 0x870), "{off:#x}, {len:#x}");
            assert_eq!(first >> 16, last >> 16, "{off:#x}, {len:#x}: {first:#x} to {last:#x}");
            assert_eq!(board.read("bus", segment.address, 1), Some(vec![round as u8]));
            held.push(mapping);
        }
        // From 0x870 on there is no room for one byte more.
        let buffer = Buf::within(&board.machine, Board::high(), 0x870, 0xf791);
        let refused = device.map_list(ScatterList::new([buffer]), BOTH).expect_err("no place");
        let DmaError::Boundary { index, len, boundary, .. } = refused.error else {
            panic!("{}", refused.error)
        };
        assert_eq!((index, len, boundary), (0, 0xf791, 0x1_0000));
    }
}

/// The bus shows the same memory twice, and only one of the two puts the pool at a boundary.
#[test]
fn a_slot_is_seen_through_the_window_that_it_was_chosen_for() {
    let board = Board::usual();
    let half = RAM_LEN / 2;
    let window = |bus| BusWindow::new(DmaAddr::new(bus), PhysAddr::new(RAM), half).expect("legal");
    let config = BounceConfig {
        align: Granule::K64,
        window: Some(phys_range(RAM, half)),
        ..BounceConfig::new(0x1_0000)
    };
    let pool = BouncePool::new(board.platform(), config).expect("free memory").into();
    let spec = DeviceSpec::new("bus").boundary(0x1_0000);
    let windows = [window(0x1000_0800), window(0x3000_0000)];
    let device = Device::direct(board.platform(), spec, &windows, Some(pool)).expect("legal");
    let high = Buf::within(&board.machine, Board::high(), 0, 0x1_0000);
    let mapping = device.map_list(ScatterList::new([high]), BOTH).expect("bounced");
    let address = mapping.segments()[0].address.raw();
    assert!(address >= 0x3000_0000 && address & 0xffff == 0, "{address:#x}");
}

#[test]
fn several_windows_with_offsets() {
    // The bus shows the second half of RAM at 0x1000_0000 and the first at 0x8000_0000.
    let half = RAM_LEN / 2;
    let wiring = Wiring::Direct { window: dma_range(0x8000_0000, half), phys: PhysAddr::new(RAM) };
    let board = Board::build(Board::parts().device(SimSpec::new("bus", wiring)));
    let window = |bus, phys| BusWindow::new(DmaAddr::new(bus), PhysAddr::new(phys), half);
    let windows = [
        window(0x1000_0000, RAM + half).expect("a legal window"),
        window(0x8000_0000, RAM).expect("a legal window"),
    ];
    let spec = DeviceSpec::new("bus").mask_bits(32);
    let pool = Some(board.low_pool());
    let device = Device::direct(board.platform(), spec, &windows, pool).expect("legal");
    let mapping = device.map(Buf::at(&board.machine, 0x10, 64), BOTH).expect("mapped");
    let memory = mapping.address().raw() - 0x8000_0000 + RAM;
    assert!(board.write("bus", mapping.address(), b"by its own address"));
    let buffer = mapping.unmap().expect("unmapped");
    assert_eq!((buffer.start().raw(), &buffer.bytes()[..18]), (memory, &b"by its own address"[..]));
    let high = Buf::within(&board.machine, Board::high(), 0, 64);
    let (start, mapping) = (high.start().raw(), device.map(high, BOTH).expect("mapped"));
    assert_eq!(mapping.address().raw(), start - (RAM + half) + 0x1000_0000);
    drop(mapping);
    // What lies over the seam of the two halves is one buffer, and no one window's.
    let seam = PhysRange::new(PhysAddr::new(RAM + half - 0x1_0000), 0x2_0000).ok();
    let over = Buf::within(&board.machine, seam, 0xff00, 0x200);
    assert!(device.map(over, BOTH).expect("bounced").is_bounced());
}

#[test]
fn dma_address_zero_is_bounced_away() {
    let wiring = Wiring::Direct { window: dma_range(0, RAM_LEN), phys: PhysAddr::new(RAM) };
    let board = Board::build(Board::parts().device(SimSpec::new("zero", wiring)));
    // The pool takes the frames at address 0, and lends those behind them.
    let pool = board.low_pool();
    assert_eq!(pool.ranges().next().map(|range| range.start().raw()), Some(RAM));
    let window = BusWindow::new(DmaAddr::new(0), PhysAddr::new(RAM), RAM_LEN).expect("legal");
    let spec = DeviceSpec::new("zero");
    let device = Device::direct(board.platform(), spec, &[window], Some(pool)).expect("legal");
    for _ in 0..3 {
        let mapping = device.map(vec![3u8; 64], BOTH).expect("bounced: a buffer of the heap");
        assert_ne!(mapping.address().raw(), 0);
        assert_eq!(board.read("zero", mapping.address(), 64), Some(vec![3; 64]));
        std::mem::forget(mapping);
    }
}

#[test]
fn bypassed_and_identity_devices_reach_everything_and_say_so() {
    let board = Board::usual();
    let windows = [board.identity_window()];
    let (platform, dart) = (board.platform(), board.iommu("dart"));
    let (spec, streams) = (|| DeviceSpec::new("dev"), [StreamId::exact(0)]);
    // SAFETY: the simulated device may reach all of the simulated RAM.
    let device = unsafe { Device::bypassed(platform, spec(), &dart, &streams, &windows, None) };
    let device = device.expect("the DART can");
    let mapping = device.map(Buf::new(&board.machine, 64), BOTH).expect("mapped");
    assert!(board.write("dev", mapping.address(), b"direct"));
    assert_eq!(&mapping.unmap().expect("unmapped").bytes()[..6], b"direct");
    assert_eq!(device.report(None), RouteReport::Direct { how: "bypassed".into() });
    drop(device);
    assert!(!board.write("dev", DmaAddr::new(RAM), b"x"), "the stream is blocked again");
    let ram = phys_range(RAM, (1 << 32) - RAM);
    // SAFETY: as above.
    let domain = unsafe { Unmanaged::identity(platform, board.paged::<Dart1>(&["dart"]), &[ram]) };
    let domain = domain.expect("whole granules");
    let device = Device::identity(platform, spec(), &domain, &[Stream::new(0)], &windows, None);
    let device = device.expect("a legal device");
    let mapping = device.map(Buf::new(&board.machine, 64), BOTH).expect("mapped");
    assert!(board.write("dev", mapping.address(), b"identity"));
    assert_eq!(device.report(None), RouteReport::Direct { how: "identity domain".into() });
    assert_eq!(mapping.address().raw(), mapping.unmap().expect("unmapped").start().raw());
    device.detach().expect("idle");
    assert!(!board.write("dev", DmaAddr::new(RAM), b"x"), "the stream is blocked again");
    drop(domain);
    board.assert_clean();
}

/// DART's entries can close parts of a granule; the simulator takes them by the same inferred rule.
#[test]
fn unverified_fences_expose_nothing_and_copy_nothing() {
    let board = Board::usual();
    let spec = DeviceSpec::new("dev").untrusted().unverified_fences();
    let device = board.attach(&board.domain("dart"), spec, 0);
    let mut buffer = Buf::at(&board.machine, 0x5000, 0x6000);
    buffer.fill(&[4; 0x6000]);
    let mapping = device.map(buffer, BOTH).expect("fenced");
    assert_eq!((mapping.is_bounced(), device.stats().exposed_bytes), (false, 0));
    let at = mapping.address().raw();
    assert_eq!(board.read("dev", DmaAddr::new(at), 0x6000), Some(vec![4; 0x6000]));
    for outside in [at - 1, at - 0x1000, at + 0x6000, at + 0x6fff] {
        assert!(board.read("dev", DmaAddr::new(outside), 1).is_none(), "{outside:#x}");
    }
    // What the unit of fences cannot express is still bounced.
    let odd = device.map(Buf::at(&board.machine, 0x5001, 0x100), BOTH).expect_err("no pool");
    let reason = BounceReason::Exposure;
    assert_eq!(odd.error, DmaError::NoBounce { device: "dev".into(), reason });
    let plain = board.attach(&board.domain("other"), DeviceSpec::new("far").untrusted(), 0);
    plain.map(Buf::at(&board.machine, 0x5000, 0x6000), BOTH).expect_err("no fences, no pool");
}
