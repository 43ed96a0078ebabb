//! Law 5 where hardware does not answer: a guard whose end fails gives up its memory, and nothing else.
//! The handle of the device that it owns ends, so that tables go when the domain goes.

use granule::addr::{Access, Direction};
use granule::dma::{
    Coherent, Device, DeviceSpec, ListMapping, MapFlags, Mapping, Reservation, ResourceMapping,
    ScatterList,
};
use granule::domain::Stream;
use granule_checks::{Board, Buf, phys_range};
use granule_sim::faults::Point;

const BOTH: Direction = Direction::Bidirectional;

/// Runs `begin` on a device, and `fail` on what that made while invalidations fail; then the domain
/// recovers, and everything goes. Returns how many bytes are still allocated.
fn after<G>(deferred: bool, begin: impl Fn(&Board, Device) -> G, fail: impl Fn(G)) -> u64 {
    let board = Board::usual();
    let domain = if deferred { board.deferred("dart") } else { board.domain("dart") };
    let device = domain.attach(DeviceSpec::new("dev"), &[Stream::new(0)], None).expect("legal");
    let guard = begin(&board, device.clone());
    board.hostile("dev").touch_all();
    board.machine.faults().fail_from(Point::Invalidation, 0);
    fail(guard);
    board.assert_reaches_live_only("dev");
    board.machine.faults().clear();
    domain.recover().expect("the hardware answers again");
    drop(device);
    drop(domain);
    board.assert_reaches_live_only("dev");
    assert_eq!(board.machine.frames().errors(), []);
    board.machine.frames().live_bytes()
}

fn buffer(board: &Board, device: Device) -> Mapping<Device, Buf> {
    let buffer = Buf::new(&board.machine, 0x1_0000);
    Mapping::new(device, buffer, BOTH, MapFlags::empty()).expect("mapped")
}

fn coherent(_: &Board, device: Device) -> Coherent<Device> {
    Coherent::new(device, 0x1_0000, MapFlags::empty()).expect("allocated")
}

fn list(board: &Board, device: Device) -> ListMapping<Device, Buf> {
    let list = ScatterList::new([Buf::new(&board.machine, 0x1_0000)]);
    ListMapping::new(device, list, BOTH, MapFlags::empty()).expect("mapped")
}

fn linked(board: &Board, device: Device) -> Reservation<Device, Buf> {
    let mut reservation = Reservation::new(device, 0x1_0000).expect("space");
    let buffer = Buf::new(&board.machine, 0x1_0000);
    reservation.link(buffer, BOTH).expect("linked");
    reservation
}

fn registers(_: &Board, device: Device) -> ResourceMapping<Device> {
    let range = phys_range(0x2_3000_0000, 0x4000);
    // SAFETY: there is nothing at all at that address.
    unsafe { ResourceMapping::new(device, range, Access::WRITE) }.expect("mapped")
}

#[test]
fn a_mapping_that_cannot_be_ended_leaks_its_buffer_alone() {
    let unmap = |mapping: Mapping<_, _>| {
        mapping.unmap().expect_err("no answer");
    };
    for deferred in [false, true] {
        assert_eq!(after(deferred, buffer, unmap), 0x1_0000, "unmap, {deferred}");
    }
    assert_eq!(after(false, buffer, drop), 0x1_0000, "drop");
    let later = |mapping: Mapping<_, _>| {
        mapping.unmap_later().expect_err("no answer, at once");
    };
    assert_eq!(after(false, buffer, later), 0x1_0000, "unmap_later");
}

#[test]
fn a_buffer_on_its_way_back_that_cannot_be_flushed_leaks_alone() {
    let finish = |mapping: Mapping<_, _>| {
        mapping.unmap_later().expect("it waits").finish().expect_err("no answer");
    };
    assert_eq!(after(true, buffer, finish), 0x1_0000, "finish");
    let dropped = |mapping: Mapping<_, _>| drop(mapping.unmap_later().expect("it waits"));
    assert_eq!(after(true, buffer, dropped), 0x1_0000, "drop");
}

#[test]
fn a_mapping_that_is_dropped_and_waits_comes_back_with_the_recovery() {
    assert_eq!(after(true, buffer, drop), 0);
}

#[test]
fn coherent_memory_that_cannot_be_ended_leaks_alone() {
    let free = |memory: Coherent<_>| {
        memory.free().expect_err("no answer");
    };
    for deferred in [false, true] {
        assert_eq!(after(deferred, coherent, free), 0x1_0000, "free, {deferred}");
        assert_eq!(after(deferred, coherent, drop), 0x1_0000, "drop, {deferred}");
    }
}

#[test]
fn lists_and_links_that_cannot_be_ended_leak_their_buffers_alone() {
    let unmap = |mapping: ListMapping<_, _>| {
        mapping.unmap().expect_err("no answer");
    };
    let unlink = |reservation: Reservation<_, _>| {
        reservation.unmap().expect_err("no answer");
    };
    for deferred in [false, true] {
        assert_eq!(after(deferred, list, unmap), 0x1_0000, "list, {deferred}");
        assert_eq!(after(deferred, linked, unlink), 0x1_0000, "links, {deferred}");
        assert_eq!(after(deferred, linked, drop), 0x1_0000, "links dropped, {deferred}");
    }
    assert_eq!(after(false, list, drop), 0x1_0000, "list dropped");
}

#[test]
fn registers_that_cannot_be_taken_away_leak_no_memory() {
    let unmap = |mapping: ResourceMapping<_>| {
        mapping.unmap().expect_err("no answer");
    };
    for deferred in [false, true] {
        assert_eq!(after(deferred, registers, unmap), 0, "unmap, {deferred}");
        assert_eq!(after(deferred, registers, drop), 0, "drop, {deferred}");
    }
}
