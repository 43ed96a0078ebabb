//! Law 5: forgetting a guard leaks, and never lets a device reach memory that was freed. After every
//! device and domain is gone, nothing is reached at all.

use std::mem::forget;

use granule::addr::{Access, Direction};
use granule::dma::{
    Coherent, CoherentPool, Device, DeviceSpec, ListMapping, MapFlags, Mapping, Reservation,
    ResourceMapping, ScatterList,
};
use granule::domain::Stream;
use granule::share::Plan;
use granule_checks::{Board, Buf, phys_range};

/// Runs `act` on a device of its own, then drops device and domain, and looks at what is reached and
/// what leaked at each step. Returns how many bytes of the guard's memory leaked.
fn after(deferred: bool, act: impl FnOnce(&Board, &Device)) -> u64 {
    let board = Board::usual();
    {
        let domain = if deferred { board.deferred("dart") } else { board.domain("dart") };
        let pool = board.pool();
        let spec = DeviceSpec::new("dev");
        let device = domain.attach(spec, &[Stream::new(0)], Some(pool)).expect("a legal device");
        act(&board, &device);
        board.hostile("dev").touch_all();
        board.assert_reaches_live_only("dev");
        drop(device);
        board.assert_reaches_live_only("dev");
        drop(domain);
        board.assert_reaches_live_only("dev");
    }
    assert_eq!(board.machine.frames().errors(), []);
    board.machine.frames().live_bytes()
}

/// As [`after`], in both modes; the leak must be the same.
fn forgotten(act: impl Fn(&Board, &Device)) -> u64 {
    let strict = after(false, &act);
    assert_eq!(strict, after(true, &act));
    strict
}

#[test]
fn nothing_leaks_if_nothing_is_forgotten() {
    let leaked = forgotten(|board, device| {
        let mapping = device.map(Buf::new(&board.machine, 0x4000), Direction::Bidirectional);
        drop(mapping.expect("mapped"));
        drop(device.alloc_coherent(0x4000).expect("allocated"));
    });
    assert_eq!(leaked, 0);
}

#[test]
fn a_forgotten_mapping_leaks_its_buffer() {
    let leaked = forgotten(|board, device| {
        let mapping = device.map(Buf::new(&board.machine, 0x1_0000), Direction::Bidirectional);
        let mapping = mapping.expect("mapped");
        assert!(board.write("dev", mapping.address(), b"reached"));
        forget(mapping);
    });
    assert_eq!(leaked, 0x1_0000);
}

#[test]
fn a_forgotten_mapping_that_is_bounced_leaks_its_slot_with_the_pool() {
    let board = Board::usual();
    let pool = board.pool();
    let domain = board.domain("dart");
    let spec = DeviceSpec::new("dev").untrusted();
    let device =
        domain.attach(spec, &[Stream::new(0)], Some(pool.clone())).expect("a legal device");
    let mapping = device.map(Buf::new(&board.machine, 100), Direction::Bidirectional);
    let mapping = mapping.expect("bounced");
    assert!(mapping.is_bounced());
    forget(mapping);
    assert_eq!(pool.usage().used, 0x4000);
    board.hostile("dev").touch_all();
    // The device still reaches the slot: dropping the pool must not free it.
    drop(pool);
    board.assert_reaches_live_only("dev");
    drop(device);
    drop(domain);
    board.assert_reaches_live_only("dev");
    assert!(board.machine.frames().live_bytes() >= 4 << 20, "the pool's block is leaked");
}

#[test]
fn a_forgotten_list_leaks_its_buffers() {
    let leaked = forgotten(|board, device| {
        let buffers = (0..3).map(|_| Buf::at(&board.machine, 0x123, 0x1000));
        let list = device.map_list(ScatterList::new(buffers), Direction::FromDevice);
        let list = list.expect("mapped");
        assert!(board.write("dev", list.segments()[2].address, b"reached"));
        forget(list);
    });
    assert_eq!(leaked, 3 * 0x1_0000);
}

#[test]
fn forgotten_coherent_memory_leaks() {
    let leaked = forgotten(|board, device| {
        let coherent = device.alloc_coherent(0x8000).expect("allocated");
        assert!(board.write("dev", coherent.address(), b"reached"));
        forget(coherent);
    });
    assert_eq!(leaked, 0x8000);
}

#[test]
fn coherent_memory_forgotten_for_one_of_two_devices_leaks_for_both() {
    let board = Board::usual();
    let first = board.device();
    let second = board.attach(&board.domain("other"), DeviceSpec::new("far"), 0);
    let coherent = first.alloc_coherent(0x4000).expect("allocated");
    let there = coherent.map_for(&second).expect("mapped");
    assert!(board.write("far", there.address(), b"reached"));
    forget(there);
    coherent.free().expect("freed for the first device");
    board.hostile("far").touch_all();
    board.assert_reaches_live_only("far");
    drop((first, second));
    assert_eq!(board.machine.frames().live_bytes(), 0x4000);
}

#[test]
fn a_forgotten_pool_object_keeps_its_pool_and_device() {
    let board = Board::usual();
    let device = board.device();
    let pool = CoherentPool::new(&device, 64, 64).expect("a legal pool");
    let object = pool.alloc().expect("an object");
    assert!(board.write("dev", object.address(), b"reached"));
    forget(object);
    drop(pool);
    drop(device);
    // The device is part of the leak, so it still reaches its object, which is live.
    assert!(!board.hostile("dev").touch_all().is_empty());
    board.assert_reaches_live_only("dev");
}

#[test]
fn a_forgotten_shared_buffer_leaks_with_its_devices() {
    let board = Board::usual();
    let first = board.device();
    let second = board.attach(&board.domain("other"), DeviceSpec::new("far"), 0);
    let plan = Plan::new(0x4000).device(&first, Access::all()).device(&second, Access::READ);
    let shared = plan.solve().expect("solved").allocate().expect("allocated");
    let at = shared.range_of(&first).expect("planned").address();
    forget(shared);
    drop((first, second));
    assert!(board.write("dev", at, b"reached"), "the devices are part of the leak");
    board.assert_reaches_live_only("dev");
    board.assert_reaches_live_only("far");
}

#[test]
fn a_forgotten_reservation_leaks_what_is_linked() {
    let leaked = forgotten(|board, device| {
        let mut reservation = Reservation::new(device, 0x2_0000).expect("reserved");
        for _ in 0..2 {
            let buffer = Buf::new(&board.machine, 0x4000);
            reservation.link(buffer, Direction::Bidirectional).expect("linked");
        }
        let address = reservation.sync().expect("linked");
        assert!(board.write("dev", address, b"reached"));
        forget(reservation);
    });
    assert_eq!(leaked, 2 * 0x1_0000);
}

#[test]
fn a_forgotten_pending_leaks_its_buffer() {
    let leaked = forgotten(|board, device| {
        let mapping = device.map(Buf::new(&board.machine, 0x4000), Direction::Bidirectional);
        let mapping = mapping.expect("mapped");
        let at = mapping.address();
        assert!(board.write("dev", at, b"cached"));
        forget(mapping.unmap_later().expect("unmapped"));
        device.flush().expect("flushed");
        assert!(!board.write("dev", at, b"gone"));
    });
    assert_eq!(leaked, 0x1_0000);
}

#[test]
fn a_forgotten_resource_leaks_nothing_but_addresses() {
    let leaked = forgotten(|_, device| {
        let registers = phys_range(0x2_3000_0000, 0x4000);
        // SAFETY: there is nothing at all at that address.
        let mapped = unsafe { ResourceMapping::new(device, registers, Access::WRITE) };
        forget(mapped.expect("mapped"));
        assert_eq!(device.stats().live_mappings, 1);
    });
    assert_eq!(leaked, 0);
}

#[test]
fn a_forgotten_device_stays_attached_and_keeps_its_tables() {
    let board = Board::usual();
    let domain = board.domain("dart");
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let mapping = Mapping::new(
        device.clone(),
        Buf::new(&board.machine, 0x4000),
        Direction::Bidirectional,
        MapFlags::empty(),
    )
    .expect("mapped");
    let at = mapping.address();
    forget(device);
    drop(domain);
    assert!(board.write("dev", at, b"reached"));
    drop(mapping);
    assert!(!board.write("dev", at, b"gone"));
    board.assert_reaches_live_only("dev");
    assert!(board.machine.frames().live_bytes() > 0, "the tables that the device may walk");
}

#[test]
fn guards_that_own_their_device_keep_it() {
    let board = Board::usual();
    let device = board.device();
    let coherent = Coherent::new(device.clone(), 1, MapFlags::empty()).expect("allocated");
    let list = ScatterList::new([Buf::new(&board.machine, 8)]);
    let list = ListMapping::new(device.clone(), list, Direction::FromDevice, MapFlags::empty());
    let list = list.expect("mapped");
    drop(device);
    assert!(board.write("dev", coherent.address(), b"x"));
    assert!(board.write("dev", list.segments()[0].address, b"x"));
    drop((coherent, list));
    board.assert_reaches_live_only("dev");
    board.assert_clean();
}
