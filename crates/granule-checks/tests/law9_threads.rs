//! Law 9: CPUs map and unmap disjoint buffers at the same time; a mapping is visible to its device
//! when the call returns; devices come and go meanwhile; and every counter is right at the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use granule::addr::{Access, Direction};
use granule::dma::{CoherentPool, Device, DeviceSpec, Reservation, ScatterList};
use granule::domain::Stream;
use granule::share::Plan;
use granule_checks::{Board, Buf, SimDomain};
use granule_sim::platform::SimPlatform;

const THREADS: usize = 4;
const ROUNDS: usize = 60;

/// One CPU's work: what it mapped, its device must see at once, with the bytes it put there.
fn work(board: &Board, device: &Device, cpu: usize) {
    SimPlatform::set_cpu(cpu);
    for round in 0..ROUNDS {
        let tag = [cpu as u8, round as u8, 0xa5];
        let offset = (round as u64 * 0x123) % 0x4000;
        let mut buffer = Buf::at(&board.machine, offset, 0x1000 + round as u64 * 67);
        buffer.fill(&tag);
        let mapping = device.map(buffer, Direction::Bidirectional).expect("mapped");
        let at = mapping.address();
        assert_eq!(board.read("dev", at, 3).as_deref(), Some(&tag[..]), "visible at once");
        assert!(board.write("dev", at, &[!tag[0], !tag[1]]));
        let buffer = match round % 3 {
            0 => mapping.unmap().expect("unmapped"),
            1 => mapping.unmap_later().expect("unmapped").finish().expect("flushed"),
            _ => {
                drop(mapping);
                continue;
            }
        };
        assert_eq!(buffer.bytes()[..3], [!tag[0], !tag[1], 0xa5]);
        if round % 10 == 0 {
            other_guards(board, device, cpu);
        }
    }
}

fn other_guards(board: &Board, device: &Device, cpu: usize) {
    let buffers = (1..4).map(|n| Buf::at(&board.machine, n * 100, 0x2000));
    let list = device.map_list(ScatterList::new(buffers), Direction::FromDevice).expect("mapped");
    for segment in list.segments() {
        assert!(board.write("dev", segment.address, &[cpu as u8; 16]));
    }
    drop(list);
    let coherent = device.alloc_coherent(0x5000).expect("allocated");
    assert_eq!(board.read("dev", coherent.address(), 1), Some(vec![0]));
    drop(coherent);
    let mut reservation = Reservation::new(device, 0x8000).expect("reserved");
    reservation.link(Buf::new(&board.machine, 0x4000), Direction::ToDevice).expect("linked");
    let at = reservation.sync().expect("linked");
    assert_eq!(board.read("dev", at, 1), Some(vec![0]));
    let plan = Plan::new(0x4000).device(device, Access::all()).solve().expect("solved");
    drop(plan.allocate().expect("allocated"));
}

/// Devices of another stream come and go in the same domain.
fn come_and_go(board: &Board, domain: &SimDomain, stop: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds == 0 {
        let device = domain.attach(DeviceSpec::new("dev1"), &[Stream::new(1)], None);
        let device = device.expect("the stream is free");
        let mapping = device.map(Buf::new(&board.machine, 64), Direction::FromDevice);
        let mapping = mapping.expect("mapped");
        assert!(board.write("dev1", mapping.address(), b"hello"));
        drop(mapping);
        device.detach().expect("idle");
        rounds += 1;
        thread::yield_now();
    }
    rounds
}

fn run(deferred: bool) {
    let board = Board::usual();
    let domain = if deferred { board.deferred("dart") } else { board.domain("dart") };
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| come_and_go(&board, &domain, &stop));
        let flusher = deferred.then(|| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    domain.flush().expect("the hardware answers");
                    thread::yield_now();
                }
            })
        });
        let (board, device) = (&board, &device);
        let workers: Vec<_> =
            (0..THREADS).map(|cpu| scope.spawn(move || work(board, device, cpu))).collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(guest.join().expect("no panic") > 0);
        flusher.into_iter().for_each(|flusher| flusher.join().expect("no panic"));
        results.into_iter().for_each(|result| result.expect("no panic"));
    });
    device.flush().expect("the hardware answers");
    let stats = device.stats();
    assert_eq!((stats.live_mappings, stats.mapped_bytes, stats.exposed_bytes), (0, 0, 0));
    assert_eq!((stats.padding_bytes, stats.bounced_bytes, stats.bounces), (0, 0, 0));
    assert!(stats.maps >= (THREADS * ROUNDS) as u64);
    let held = device.domain_stats().expect("translated");
    assert_eq!((held.iova_bytes, held.quarantined, held.quarantined_bytes), (0, 0, 0));
    assert_eq!((held.exposed_bytes, held.leaked_bytes, held.poisoned), (0, 0, false));
    board.hostile("dev").touch_all();
    board.assert_reaches_live_only("dev");
    device.detach().expect("idle");
    drop(domain);
    board.assert_clean();
}

#[test]
fn strict() {
    run(false);
}

#[test]
fn deferred() {
    run(true);
}

/// The CPU's number is a hint: threads that all claim the same one lose no count, whichever lock
/// they count under.
fn one_number(deferred: bool) {
    const MAPS: usize = 3000;
    let board = Board::usual();
    let domain = if deferred { board.deferred("dart") } else { board.domain("dart") };
    let device = board.attach(&domain, DeviceSpec::new("dev"), 0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (board, device) = (&board, &device);
            scope.spawn(move || {
                SimPlatform::set_cpu(0);
                let mut buffer = Buf::at(&board.machine, 100, 300);
                for round in 0..MAPS {
                    let mapping = device.map(buffer, Direction::ToDevice).expect("mapped");
                    buffer = match round % 100 {
                        0 => mapping.unmap().expect("unmapped"),
                        _ => mapping.unmap_later().expect("unmapped").finish().expect("flushed"),
                    };
                }
            });
        }
    });
    device.flush().expect("the hardware answers");
    let stats = device.stats();
    assert_eq!(stats.maps, (THREADS * MAPS) as u64);
    assert_eq!((stats.live_mappings, stats.mapped_bytes, stats.exposed_bytes), (0, 0, 0));
    let held = device.domain_stats().expect("translated");
    assert_eq!((held.iova_bytes, held.exposed_bytes, held.quarantined_bytes), (0, 0, 0));
    assert!(held.invalidations >= 1);
}

#[test]
fn one_number_strict() {
    one_number(false);
}

#[test]
fn one_number_deferred() {
    one_number(true);
}

#[test]
fn a_pool_serves_every_cpu() {
    let board = Board::usual();
    let device = board.device();
    let pool = CoherentPool::new(&device, 48, 64).expect("a legal pool");
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            let (pool, board) = (pool.clone(), &board);
            scope.spawn(move || {
                SimPlatform::set_cpu(cpu);
                for round in 0..100u8 {
                    let mut objects: Vec<_> =
                        (0..8).map(|_| pool.alloc().expect("an object")).collect();
                    for (index, object) in objects.iter_mut().enumerate() {
                        object.write(0, &[cpu as u8, round, index as u8]).expect("inside");
                    }
                    for (index, object) in objects.iter().enumerate() {
                        let seen = board.read("dev", object.address(), 3);
                        assert_eq!(seen, Some(vec![cpu as u8, round, index as u8]));
                    }
                }
            });
        }
    });
    assert!(pool.memory_size() <= 8 * THREADS as u64 * 0x4000);
    drop(pool);
    device.detach().expect("idle");
    board.assert_clean();
}
