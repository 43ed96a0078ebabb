//! A stream whose table base firmware has locked: its live root is adopted. Firmware's entries
//! survive, ours appear beside them and go with the device, and nobody allocates where they are.

use granule::addr::{Direction, DmaAddr, Granule, IovaRange, PhysAddr, PhysRange};
use granule::dma::AttachError;
use granule::domain::StreamError;
use granule::table::FormatId;
use granule_laws::bench::{Bench, Case, RAM, phys};
use granule_laws::buffer::{SimBuffer, bytes, fresh_id};
use granule_laws::check::{allow, confined, iova, reads, walks_to, writes};
use granule_sim::iommu::LockedStream;
use granule_sim::unit::FIRMWARE_CONTEXTS;

/// Firmware's memory: root, a leaf table, and a framebuffer of 16 pages.
const ROOT: u64 = RAM;
const LEAVES: u64 = RAM + 0x4000;
const SCREEN: u64 = RAM + 0x10_0000;
const PAGE: u64 = 0x4000;
/// What a root entry spans, and which one firmware uses.
const SPAN: u64 = 32 << 20;
const SLOT: u64 = 2;

fn case(page: Granule) -> Case {
    let locked = LockedStream {
        stream: 0,
        context: FIRMWARE_CONTEXTS,
        roots: vec![PhysAddr::new(ROOT)],
        input_bits: 32,
    };
    let window = IovaRange::new(granule::addr::Iova::new(0), 4 * SPAN).expect("legal");
    Case {
        locked: Some(locked),
        firmware: Some(phys(RAM, 4 << 20)),
        window: Some(window),
        ..Case::new(FormatId::Dart1, page)
    }
}

fn put(bench: &Bench, at: u64, value: u64) {
    bench.machine.ram().write_u64(PhysAddr::new(at), value).expect("RAM");
}

fn root_entry(bench: &Bench, index: u64) -> u64 {
    let mut word = [0; 8];
    bench.machine.ram().read(PhysAddr::new(ROOT + index * 8), &mut word).expect("RAM");
    u64::from_le_bytes(word)
}

/// A bench on which firmware shows its picture.
fn running(case: &Case) -> (Bench, Vec<u8>) {
    let bench = case.blank();
    put(&bench, ROOT + SLOT * 8, LEAVES | 1);
    for page in 0..16 {
        put(&bench, LEAVES + page * 8, (SCREEN + page * PAGE) | 0x000f_ff00_0000_0001);
    }
    let picture = bytes(fresh_id(), 16 * PAGE);
    bench.machine.ram().write(PhysAddr::new(SCREEN), &picture).expect("RAM");
    reads(&bench, "dev", DmaAddr::new(SLOT * SPAN), &picture);
    (bench, picture)
}

fn screen() -> PhysRange {
    phys(SCREEN, 16 * PAGE)
}

#[test]
fn a_locked_root_is_shared_with_firmware_and_given_back() {
    for page in [Granule::K4, Granule::K16, Granule::K64] {
        let case = case(page);
        let (bench, picture) = running(&case);
        for _ in 0..2 {
            let dev = bench.attach(&bench.domain, case.spec("dev"), case.streams());
            let dev = dev.expect("a trusted device may have firmware's root");
            reads(&bench, "dev", DmaAddr::new(SLOT * SPAN), &picture);
            let buffer = SimBuffer::new(&case, &bench.machine, 0, 3 * case.unit().size());
            let (id, ranges, len) = (buffer.id(), buffer.ranges().to_vec(), buffer.len());
            let mapping = dev.map(buffer, Direction::Bidirectional).expect("a mapping");
            // The walker sees it by the root that firmware left: the register is locked.
            walks_to(&bench, 0, 0, mapping.address(), &ranges);
            reads(&bench, "dev", mapping.address(), &bytes(id, len));
            assert_ne!(root_entry(&bench, iova(mapping.address()).raw() / SPAN), 0);
            let mut given = allow(&ranges, granule::addr::Access::all());
            given.extend(allow(&[screen()], granule::addr::Access::all()));
            bench.hostile("dev").touch_all();
            confined(&bench, "dev", &given, "with a mapping");
            // All of the window but firmware's slot can be had, whatever the order.
            let held: Vec<_> = std::iter::from_fn(|| dev.alloc_coherent(SPAN / 4).ok()).collect();
            assert!(held.len() >= 8, "{} of 12 quarters", held.len());
            for memory in &held {
                let slots =
                    memory.address().raw() / SPAN..=(memory.address().raw() + SPAN / 4 - 1) / SPAN;
                assert!(!slots.contains(&SLOT), "firmware's addresses were given away");
            }
            drop(held);
            bench.hostile("dev").touch_all();
            drop(mapping);
            drop(dev);
            let ours = (0..128).filter(|slot| *slot != SLOT);
            assert!(ours.clone().all(|slot| root_entry(&bench, slot) == 0), "entries were left");
            assert_eq!(root_entry(&bench, SLOT), LEAVES | 1);
            reads(&bench, "dev", DmaAddr::new(SLOT * SPAN), &picture);
            let screen = allow(&[screen()], granule::addr::Access::all());
            confined(&bench, "dev", &screen, "after the device has left");
        }
        assert_eq!(bench.close(), [""; 0], "{case:?}");
    }
}

#[test]
fn an_untrusted_device_does_not_get_firmwares_root() {
    let case = case(Granule::K4).untrusted();
    let (bench, picture) = running(&case);
    // Something of ours is mapped, and must not show in the live root afterwards.
    let mate = bench.attach(&bench.domain, case.spec("mate"), &[granule::domain::Stream::new(1)]);
    let mate = mate.expect("attached");
    let memory = mate.alloc_coherent(PAGE).expect("memory");
    let refused = bench.attach(&bench.domain, case.spec("dev"), case.streams());
    match refused.expect_err("firmware's picture is not the device's") {
        AttachError::Stream { cause: StreamError::FirmwareMapping { range }, .. } => {
            assert_eq!(range.start().raw(), SLOT * SPAN);
        }
        other => panic!("{other}"),
    }
    let ours = (0..128).filter(|slot| *slot != SLOT);
    assert!(ours.clone().all(|slot| root_entry(&bench, slot) == 0), "entries were left");
    let screen = allow(&[screen()], granule::addr::Access::all());
    confined(&bench, "dev", &screen, "after a refusal");
    reads(&bench, "dev", DmaAddr::new(SLOT * SPAN), &picture);
    drop(memory);
    drop(mate);
    assert_eq!(bench.close(), [""; 0]);
}

/// Where our own mappings are in firmware's way, the device is refused and nothing is changed.
#[test]
fn mappings_in_firmwares_way_are_named() {
    let window = IovaRange::new(granule::addr::Iova::new(SLOT * SPAN), SPAN).expect("legal");
    let case = Case { window: Some(window), ..case(Granule::K4) };
    let (bench, picture) = running(&case);
    let mate = bench.attach(&bench.domain, case.spec("mate"), &[granule::domain::Stream::new(1)]);
    let mate = mate.expect("attached");
    let memory = mate.alloc_coherent(PAGE).expect("memory");
    writes(&bench, "mate", memory.address(), b"ours");
    let refused = bench.attach(&bench.domain, case.spec("dev"), case.streams());
    assert!(refused.is_err());
    assert_eq!(root_entry(&bench, SLOT), LEAVES | 1);
    reads(&bench, "dev", DmaAddr::new(SLOT * SPAN), &picture);
    reads(&bench, "mate", memory.address(), b"ours");
    assert_eq!(bench.iommus[0].streams().len(), 1);
    drop(memory);
    drop(mate);
    assert_eq!(bench.close(), [""; 0]);
}
