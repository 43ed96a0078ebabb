//! The depot: what one CPU frees another gets, nothing of it is lost or has two owners, and where space
//! is tight it is given up.

use super::super::depot::Depot;
use super::super::magazine::Class;
use super::super::testing::Scheduled;
use super::interleavings::{Owners, run};
use super::*;
use crate::effort::effort;

/// A size with a magazine of eleven.
const ODD: u64 = 33;

fn class(len: u64) -> Class {
    Class::of(len).expect("a class")
}

fn take(real: &IovaAllocator<Cpus>, len: u64, count: usize) -> Vec<u64> {
    let request = IovaRequest::new(len * G4);
    (0..count).map(|_| real.alloc(&request).expect("room").raw()).collect()
}

fn give(real: &IovaAllocator<Cpus>, len: u64, starts: &[u64]) {
    for start in starts {
        assert_eq!(real.free(range(*start, len * G4)), Ok(()));
    }
}

fn held(real: &IovaAllocator<Cpus>) -> u64 {
    real.space.lock().in_depot()
}

/// A depot for so many ranges that are out.
fn with_out(len: u64, out: usize) -> Depot {
    let mut depot = Depot::new().expect("memory");
    depot.count_taken(class(len), out);
    depot
}

#[test]
fn a_stack_has_room_for_what_is_out_beyond_a_magazine() {
    let depth = class(ODD).depth();
    for (out, room) in [(depth + 7, 0), (depth + 8, 8), (depth + 100, 100), (depth + 5000, 256)] {
        let mut depot = with_out(ODD, out);
        let starts: Vec<u64> = (0..1000).map(|n| n * 64).collect();
        assert_eq!(depot.put(class(ODD), &starts, u64::MAX), room);
        assert_eq!(depot.granules(), room as u64 * ODD);
        assert_eq!(depot.put(class(ODD), &starts, u64::MAX), 0);
        assert_eq!(depot.put(class(ODD + 2), &starts, u64::MAX), 0);
    }
    // Two by two, as they are taken, it comes to the same.
    let mut depot = with_out(ODD, 0);
    (0..2000).for_each(|_| depot.count_taken(class(ODD), 2));
    assert_eq!(depot.put(class(ODD), &[64; 1000], u64::MAX), 256);
}

#[test]
fn the_latest_come_out_first_and_each_once() {
    let mut depot = with_out(ODD, 100);
    assert_eq!(depot.put(class(ODD), &[64, 128, 192, 256], 3 * ODD + 32), 3);
    let mut room = [0; 2];
    assert_eq!(depot.take(class(ODD), &mut room), 2);
    assert_eq!((room, depot.granules()), ([128, 192], ODD));
    assert_eq!(depot.take(class(1), &mut room), 0);
    assert_eq!(depot.take(class(ODD), &mut room), 1);
    assert_eq!((room[0], depot.take(class(ODD), &mut room), depot.granules()), (64, 0, 0));
    assert_eq!(depot.put(class(ODD), &[64], u64::MAX), 1);
    assert_eq!(
        (depot.pop(class(ODD)), depot.pop(class(ODD)), depot.granules()),
        (Some(64), None, 0)
    );
}

#[test]
fn memory_goes_with_what_it_was_for() {
    let mut depot = with_out(ODD, 200);
    let empty = Depot::new().expect("memory").bytes();
    assert!(depot.bytes() > empty);
    assert_eq!(depot.put(class(ODD), &[64], u64::MAX), 1);
    depot.trim();
    assert!(depot.bytes() > empty, "something lies there");
    assert_eq!(depot.pop(class(ODD)), Some(64));
    depot.trim();
    assert_eq!(depot.bytes(), empty);
    // More may be given than was taken, by who frees twice.
    depot.count_given(class(ODD), 1000);
    depot.count_taken(class(ODD), class(ODD).depth() + 8);
    assert_eq!(depot.put(class(ODD), &[64; 20], u64::MAX), 8);
}

#[test]
fn what_one_cpu_frees_another_gets_and_the_tree_does_not_change() {
    for len in [1, 3, ODD, 64] {
        let real = allocator(G4, 0, 1 << 40);
        run_on(1);
        let other = take(&real, 5, 1); // It has magazines now.
        run_on(0);
        let mut mine = take(&real, len, 800);
        let (memory, free) = (real.usage().bookkeeping, real.space.lock().free());
        let depth = class(len).depth();
        for _ in 0..2 {
            run_on(1);
            give(&real, len, &mine.split_off(mine.len() - (depth + 100)));
            let full = held(&real);
            assert!(full > 0);
            // More than CPU 0 has left, less than CPU 1 has handed on.
            run_on(0);
            mine.extend(take(&real, len, depth / 2 + 20));
            assert!(held(&real) < full);
            run_on(1);
            mine.extend(take(&real, len, 20));
            run_on(0);
            assert_eq!(real.space.lock().free(), free, "{len} granules");
            assert_eq!(real.usage().bookkeeping, memory, "neither way takes memory");
        }
        give(&real, 5, &other);
        run_on(0);
    }
}

#[test]
fn where_space_is_tight_the_depot_is_small_and_given_up() {
    let granules = 4096;
    let real = allocator(G4, 0, granules * G4);
    run_on(0);
    let starts = take(&real, ODD, 60);
    let (early, late) = starts.split_at(50);
    give(&real, ODD, early);
    let (held, free) = (held(&real), real.space.lock().free());
    assert!(held > 0 && held <= free / 8, "{held} of {free}");
    let usage = real.usage();
    assert_eq!((usage.live, usage.free), (10 * ODD * G4, (granules - 10 * ODD) * G4));
    assert!(usage.cached >= held * G4 && usage.cached > 0);
    // Every granule that nobody has can be had.
    let ones = take(&real, 1, (granules - 10 * ODD) as usize);
    assert!(matches!(real.alloc(&IovaRequest::new(1)), Err(IovaError::Full { free: 0, .. })));
    give(&real, 1, &ones);
    give(&real, ODD, late);
    assert_eq!(real.alloc(&IovaRequest::new(granules * G4)), Ok(Iova::new(0)));
}

/// Three threads that move between two CPUs free and allocate sizes of which many are out.
fn handing_on() {
    let real = Arc::new(
        IovaAllocator::new(&Scheduled, Granule::K4, range(0, 4096 * G4)).expect("an allocator"),
    );
    let request = IovaRequest::new(ODD * G4);
    let take = move |real: &IovaAllocator<Scheduled>| real.alloc(&request).map(|at| at.raw() / G4);
    let give = |real: &IovaAllocator<Scheduled>, start: u64| {
        real.free(range(start * G4, ODD * G4)).expect("allocated");
    };
    let (shared, owners) = (Arc::clone(&real), Owners::default());
    let mut begin: Vec<Vec<u64>> = Vec::new();
    for who in 0..3 {
        begin.push((0..14).map(|_| take(&real).expect("room")).collect());
        begin[who].iter().for_each(|start| owners.takes(who, *start, ODD));
    }
    run(3, move |who| {
        let mut mine = begin[who].clone();
        for _ in 0..2 {
            for start in mine.drain(2..) {
                owners.gives(who, start, ODD);
                give(&shared, start);
            }
            for _ in 0..12 {
                let start = take(&shared).expect("room");
                owners.takes(who, start, ODD);
                mine.push(start);
            }
        }
        for start in mine {
            owners.gives(who, start, ODD);
            give(&shared, start);
        }
    });
    let usage = real.usage();
    assert_eq!((usage.live, usage.free), (0, 4096 * G4), "space was lost");
    assert!(real.alloc(&IovaRequest::new(4096 * G4)).is_ok(), "all of it is one range again");
}

#[test]
fn what_is_handed_on_has_one_owner() {
    shuttle::check_random(handing_on, effort(200) as usize);
    shuttle::check_pct(handing_on, effort(100) as usize, 3);
}
