//! How many locks each way takes: what a CPU has at hand costs none, or its own; the lock that all
//! share is for refills, and one serves many.

use super::super::testing::{Counted, locks_taken};
use super::*;

type Real = IovaAllocator<Counted>;

fn real() -> Real {
    run_on(0);
    let granule = Granule::new(G4).expect("a granule");
    IovaAllocator::new(&Counted(Cpus(1)), granule, range(0, 1 << 40)).expect("an allocator")
}

/// The locks that `work` takes.
fn locks(work: impl FnOnce()) -> u64 {
    let before = locks_taken();
    work();
    locks_taken() - before
}

fn pair(real: &Real, request: &IovaRequest) {
    let start = real.alloc(request).expect("room");
    let len = request.size.next_multiple_of(G4);
    real.free(range(start.raw(), len)).expect("allocated");
}

#[test]
fn a_pair_of_a_power_of_two_takes_no_lock() {
    let real = real();
    for order in 0..=10 {
        let request = IovaRequest::new(G4 << order);
        pair(&real, &request);
        assert_eq!(locks(|| pair(&real, &request)), 0, "order {order}");
        // Aligned to no more than itself, or in a window that holds it, it is had at hand, too.
        let aligned = request.aligned(G4 << order);
        assert_eq!(locks(|| pair(&real, &aligned)), 0, "order {order}, aligned");
        let inside = request.within(Some(range(1 << 20, (1 << 40) - (1 << 20))));
        assert_eq!(locks(|| pair(&real, &inside)), 0, "order {order}, in a window");
    }
}

#[test]
fn a_pair_of_an_odd_size_takes_the_cpus_own_lock_twice() {
    let real = real();
    for pages in [3, 5, 12, 33, 63] {
        let request = IovaRequest::new(G4 * pages);
        pair(&real, &request);
        assert_eq!(locks(|| pair(&real, &request)), 2, "{pages} pages");
        let natural = request.aligned((G4 * pages).next_power_of_two());
        assert_eq!(locks(|| pair(&real, &natural)), 2, "{pages} pages, aligned");
    }
}

/// What the front has no room for goes to the magazine: one lock more, not that of all CPUs.
#[test]
fn what_comes_and_goes_in_numbers_stays_with_the_cpu() {
    for (pages, live) in [(1u64, 64), (4, 32), (3, 8), (64, 8)] {
        let real = real();
        let request = IovaRequest::new(G4 * pages);
        let round = || {
            let all: Vec<_> = (0..live).map(|_| real.alloc(&request).expect("room")).collect();
            for start in all {
                real.free(range(start.raw(), G4 * pages)).expect("allocated");
            }
        };
        (0..8).for_each(|_| round());
        let taken = locks(round);
        assert!(taken <= 2 * live, "{pages} pages, {live} live: {taken} locks");
    }
}

#[test]
fn one_refill_serves_many() {
    let real = real();
    let request = IovaRequest::new(G4);
    let taken = locks(|| (0..4096).for_each(|_| assert!(real.alloc(&request).is_ok())));
    // One of the CPU's own for each, one of all CPUs' for every few.
    assert!((4096..4096 + 4096 / 8).contains(&taken), "{taken} locks");
}
