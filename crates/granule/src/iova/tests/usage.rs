//! What the allocator says of itself: memory by CPU and by range, room, and whose region is in the way.

use super::*;

fn on_cpus(cpus: usize) -> IovaAllocator<Cpus> {
    run_on(0);
    let granule = Granule::new(G4).expect("a granule");
    IovaAllocator::new(&Cpus(cpus), granule, range(0, 1 << 40)).expect("an allocator")
}

#[test]
fn each_cpu_costs_the_same_and_less_than_a_few_kilobytes() {
    let [two, four, six] = [2, 4, 6].map(|cpus| on_cpus(cpus).usage().bookkeeping);
    assert_eq!(four - two, six - four);
    assert!((1..=2 * 10_240).contains(&(four - two)), "{two} {four} {six}");
    // What all CPUs share is there, too.
    let own = size_of::<IovaAllocator<Cpus>>() as u64;
    assert!(two > (four - two) + own, "{two} {four} {own}");
}

#[test]
fn a_cpu_that_is_used_costs_its_magazines_once() {
    let real = on_cpus(2);
    let idle = real.usage().bookkeeping;
    let request = IovaRequest::new(3 * G4);
    let start = real.alloc(&request).expect("room");
    real.free(range(start.raw(), 3 * G4)).expect("allocated");
    let one = real.usage().bookkeeping;
    run_on(1);
    let start = real.alloc(&request).expect("room");
    real.free(range(start.raw(), 3 * G4)).expect("allocated");
    let two = real.usage().bookkeeping;
    run_on(0);
    assert!(one > idle && two > one && two - one <= 10_240, "{idle} {one} {two}");
}

#[test]
fn memory_grows_with_what_is_live_and_is_told() {
    let real = on_cpus(1);
    let before = real.usage().bookkeeping;
    let count = 1u64 << 17;
    let starts: Vec<_> =
        (0..count).map(|_| real.alloc(&IovaRequest::new(G4)).expect("room").raw()).collect();
    let grown = real.usage().bookkeeping - before;
    // A bit a range at the very least, sixteen bytes at the most.
    assert!((count / 8..count * 16).contains(&grown), "{grown}");
    assert_eq!(real.usage().live, count * G4);
    for start in starts {
        real.free(range(start, G4)).expect("allocated");
    }
    real.flush_caches();
    assert!(real.usage().bookkeeping < before + grown, "it is given back");
    assert_eq!((real.usage().live, real.usage().free), (0, 1 << 40));
}

#[test]
fn a_region_that_begins_where_the_range_ends_is_not_in_the_way() {
    let real = on_cpus(1);
    real.reserve(range(0x10_0000, 0x4000)).expect("free");
    assert_eq!(real.alloc_at(range(0xf_c000, 0x4000)), Ok(()));
    assert_eq!(real.alloc_at(range(0x10_4000, 0x4000)), Ok(()));
    let refused = real.alloc_at(range(0x10_3000, 0x1000));
    assert!(matches!(refused, Err(IovaError::Reserved { .. })), "{refused:?}");
}

/// What goes to the tree at once is looked at there: sizes of one word, of several, of whole slots.
#[test]
fn a_second_free_of_what_no_magazine_keeps_is_noticed() {
    let real = on_cpus(1);
    let untouched = real.usage().free;
    for pages in [65, 100, 192, 1000, 4160, 5000, 70_000, 300_000] {
        let start = real.alloc(&IovaRequest::new(pages * G4)).expect("room").raw();
        let other = real.alloc(&IovaRequest::new(pages * G4)).expect("room").raw();
        let all = range(start, pages * G4);
        assert_eq!(real.free(all), Ok(()));
        let refused = real.free(all);
        assert!(matches!(refused, Err(IovaError::NotAllocated { .. })), "{pages}: {refused:?}");
        assert_eq!(real.usage().live, pages * G4);
        assert_eq!(real.free(range(other, pages * G4)), Ok(()));
        assert_eq!(real.usage().free, untouched, "{pages}");
    }
}

#[test]
fn a_reservation_that_fails_gives_back_what_it_had_claimed() {
    let real = on_cpus(1);
    real.reserve(range(0x10_0000, 0x4000)).expect("free");
    real.alloc_at(range(0x10_8000, 0x1000)).expect("free");
    let before = real.usage().free;
    // Free, reserved, free, and then in use.
    let refused = real.reserve(range(0xf_0000, 0x2_0000));
    assert!(matches!(refused, Err(IovaError::InUse { .. })), "{refused:?}");
    assert_eq!(real.usage().free, before);
    real.alloc_at(range(0xf_0000, 0x1_0000)).expect("still free");
    real.alloc_at(range(0x10_4000, 0x4000)).expect("still free");
    // Regions that touch or overlap become one, and those that do not stay two.
    for (start, len, reserved) in [
        (0x20_0000, 0x2000, 0x6000),
        (0x20_2000, 0x1000, 0x7000),
        (0x20_4000, 0x1000, 0x8000),
        (0x20_1000, 0x4000, 0x9000),
    ] {
        real.reserve(range(start, len)).expect("free");
        assert_eq!(real.usage().reserved, reserved, "{start:#x}");
    }
}
