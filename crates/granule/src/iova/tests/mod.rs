//! The laws of the allocator: properties against a brute-force model, and the cases at the edges.

use alloc::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use proptest::prelude::*;

mod counts;
mod depot;
mod interleavings;
mod locks;
mod model;
mod pair;
mod steps;
mod usage;
mod windows;

use model::Model;
use pair::Pair;
use steps::{Step, aperture, step};

use super::testing::{Cpus, run_on};
use super::{IovaAllocator, IovaError, IovaRequest};
use crate::addr::{Granule, Iova, IovaRange};

const G4: u64 = 4096;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), len).expect("a legal range")
}

fn allocator(granule: u64, start: u64, len: u64) -> IovaAllocator<Cpus> {
    let granule = Granule::new(granule).expect("a granule");
    IovaAllocator::new(&Cpus(2), granule, range(start, len)).expect("an allocator")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::effort::effort(200)))]

    #[test]
    fn agrees_with_brute_force((granule, low, len) in aperture(), steps in prop::collection::vec(step(), 1..120)) {
        // A little more than the aperture's granules on both sides, where there is more.
        let (before, after) = (u64::from(low != 0), 5.min(u64::MAX - (low * granule + (len * granule - 1))));
        let real = allocator(granule, low * granule - before, len * granule + before + after);
        prop_assert_eq!(real.aperture(), range(low * granule, len * granule));
        let model = Model { low, end: low + len, ..Model::default() };
        let mut pair = Pair { real, model, granule };
        run_on(0);
        for step in steps {
            pair.run(step);
            pair.check_usage();
        }
        pair.check_coverage();
    }

    /// Large and odd sizes in a huge space: no overlap, and all comes back as one extent.
    #[test]
    fn a_huge_space_stays_whole(shift in 12u32..22, top: bool, lens in prop::collection::vec((0u32..36, any::<u64>()), 1..60)) {
        let len = 1u64 << 50;
        let start = if top { 0u64.wrapping_sub(len) } else { 0xf_0000_0000 };
        let real = allocator(1 << shift, start, len);
        let granule = 1u64 << shift;
        let mut live = BTreeMap::new();
        for (order, noise) in lens {
            let size = ((noise % (1 << order)) | (1 << order) >> 1).max(1) * granule;
            let size = size.min(1 << 42);
            let iova = real.alloc(&IovaRequest::new(size)).expect("room").raw();
            let below: Option<(&u64, &u64)> = live.range(..=iova).next_back();
            prop_assert!(below.is_none_or(|(start, len)| start + (len - 1) < iova));
            let above = live.range(iova..).next();
            prop_assert!(above.is_none_or(|(start, _)| iova + (size - 1) < *start));
            prop_assert_eq!(iova % size.next_power_of_two().min(1 << 30), 0);
            live.insert(iova, size);
        }
        prop_assert_eq!(real.usage().live, live.values().sum::<u64>());
        for (start, len) in live {
            prop_assert_eq!(real.free(range(start, len)), Ok(()));
        }
        real.flush_caches();
        prop_assert_eq!(real.usage().largest_free, real.aperture().len());
    }
}

#[test]
fn an_aperture_without_a_granule_is_refused() {
    let new =
        |start, len| IovaAllocator::new(&Cpus(1), Granule::K16, range(start, len)).map(|_| ());
    assert!(matches!(new(1, 32766), Err(IovaError::EmptyAperture { .. })));
    assert_eq!(new(1, 32767), Ok(()));
}

#[test]
fn a_single_granule_at_the_very_top() {
    let top = 0u64.wrapping_sub(G4);
    let real = allocator(G4, top, G4);
    for _ in 0..3 {
        assert_eq!(real.alloc(&IovaRequest::new(1)), Ok(Iova::new(top)));
        assert!(matches!(real.alloc(&IovaRequest::new(1)), Err(IovaError::Full { free: 0, .. })));
        assert_eq!(real.free(range(top, G4)), Ok(()));
    }
    assert_eq!(
        real.alloc(&IovaRequest::new(G4 + 1)),
        Err(IovaError::TooLarge { size: G4 + 1, limit: G4 })
    );
}

#[test]
fn the_whole_64_bit_space() {
    let real = allocator(G4, 0, u64::MAX);
    assert_eq!(real.aperture().len(), 0u64.wrapping_sub(G4));
    let half = real.alloc(&IovaRequest::new(1 << 62)).expect("room");
    assert_eq!(half.raw() % (1 << 30), 0);
    let aligned = real.alloc(&IovaRequest::new(5).aligned(1 << 63)).expect("room");
    assert!(aligned.raw() == 0 || aligned.raw() == 1 << 63);
    assert_eq!(real.usage().live, (1 << 62) + G4);
}

#[test]
fn what_is_no_request_is_refused() {
    let real = allocator(G4, 0, 1 << 20);
    assert_eq!(real.alloc(&IovaRequest::new(0)), Err(IovaError::ZeroSize));
    for align in [0, 3, 12288, u64::MAX] {
        let request = IovaRequest::new(1).aligned(align);
        assert_eq!(real.alloc(&request), Err(IovaError::BadAlignment { align }));
    }
    assert!(matches!(real.alloc(&IovaRequest::new(u64::MAX)), Err(IovaError::TooLarge { .. })));
    let window = range(1 << 30, 1 << 20);
    let outside = real.alloc(&IovaRequest::new(1).within(Some(window)));
    assert_eq!(outside, Err(IovaError::WindowOutside { window, aperture: real.aperture() }));
    let slit = real.alloc(&IovaRequest::new(1).within(Some(range(100, G4))));
    assert_eq!(slit, Err(IovaError::TooLarge { size: 1, limit: 0 }));
    let high = real.alloc(&IovaRequest::new(1).aligned(1 << 40).within(Some(range(G4, G4))));
    assert!(matches!(high, Err(IovaError::WindowTooSmall { align, .. }) if align == 1 << 40));
}

#[test]
fn misuse_of_free_and_alloc_at_is_told() {
    let real = allocator(G4, 0x10000, 0x10000);
    let (granule, aperture) = (real.granule(), real.aperture());
    for bad in [range(0x10001, G4), range(0x10000, 100)] {
        assert_eq!(real.free(bad), Err(IovaError::Misaligned { range: bad, granule }));
        assert_eq!(real.alloc_at(bad), Err(IovaError::Misaligned { range: bad, granule }));
    }
    for bad in [range(0xf000, 2 * G4), range(0x1f000, 2 * G4), range(0, G4)] {
        assert_eq!(real.free(bad), Err(IovaError::OutsideAperture { range: bad, aperture }));
        assert_eq!(real.alloc_at(bad), Err(IovaError::OutsideAperture { range: bad, aperture }));
    }
    // Nothing was ever allocated, and this CPU has no magazine that could hide it.
    let never = range(0x14000, 3 * G4);
    assert_eq!(real.free(never), Err(IovaError::NotAllocated { range: never }));
    // The front hides a power of two, but the tree does not take it as free a second time.
    let _ = real.free(range(0x12000, G4));
    real.flush_caches();
    assert_eq!((real.usage().free, real.usage().live), (0x10000, 0));
}

#[test]
fn a_part_of_an_allocation_is_not_one() {
    let real = allocator(G4, 0, 1 << 30);
    let whole = range(0x40_0000, 0x40_0000);
    assert_eq!(real.alloc_at(whole), Ok(()));
    let odd = range(0x40_1000, 3 * G4);
    assert_eq!(real.free(odd), Err(IovaError::NotAllocated { range: odd }));
    assert_eq!(real.free(whole), Ok(()));
    assert_eq!(real.usage().live, 0);
}

#[test]
fn a_second_free_never_hands_a_range_to_two() {
    let real = allocator(G4, 0, 64 * G4);
    let iova = real.alloc(&IovaRequest::new(G4)).expect("room").raw();
    real.flush_caches();
    assert_eq!(real.free(range(iova, G4)), Ok(()));
    real.flush_caches();
    // Unnoticed, since the magazine takes it; the tree does not take it a second time.
    let _ = real.free(range(iova, G4));
    real.flush_caches();
    assert_eq!(real.usage().free, 64 * G4);
}

#[test]
fn reserved_regions_unite_and_are_never_handed_out() {
    let real = allocator(G4, 0, 64 * G4);
    for region in [
        range(0, 1),
        range(0x8000, 0x4000),
        range(0xa123, 0x4000),
        range(0x7000, 0x1000),
        range(1 << 40, 5),
    ] {
        assert_eq!(real.reserve(region), Ok(()));
    }
    assert_eq!(real.usage().reserved, (1 + 8) * G4);
    let middle = range(0x9000, G4);
    assert_eq!(
        real.alloc_at(middle),
        Err(IovaError::Reserved { range: middle, reserved: range(0x7000, 0x8000) })
    );
    for _ in 0..55 {
        let at = real.alloc(&IovaRequest::new(G4)).expect("room").raw();
        assert!(at != 0 && !(0x7000..0xf000).contains(&at), "{at:#x}");
    }
    assert!(matches!(real.alloc(&IovaRequest::new(G4)), Err(IovaError::Full { .. })));
    // What is live keeps its place, and nothing of a refused region sticks.
    let across = range(0x6000, 0xa000);
    assert_eq!(
        real.reserve(across),
        Err(IovaError::InUse { range: across, at: Iova::new(0x6000) })
    );
    assert_eq!(real.usage().reserved, 9 * G4);
}

#[test]
fn a_window_passes_over_what_the_magazine_holds() {
    let real = allocator(G4, 0, 1 << 40);
    let high = real.alloc(&IovaRequest::new(G4)).expect("room").raw();
    assert!(high > u64::from(u32::MAX));
    let low = range(0, 1 << 32);
    let narrow = IovaRequest::new(G4).within(Some(low));
    let first = real.alloc(&narrow).expect("room").raw();
    assert!(first < 1 << 32);
    assert_eq!(real.free(range(first, G4)), Ok(()));
    assert_eq!(real.free(range(high, G4)), Ok(()));
    assert!(real.alloc(&narrow).expect("room").raw() < 1 << 32);
}

#[test]
fn another_cpus_magazine_is_emptied_before_refusal() {
    let real = allocator(G4, 0, 8 * G4);
    run_on(0);
    let live: Vec<u64> =
        (0..8).map(|_| real.alloc(&IovaRequest::new(G4)).expect("room").raw()).collect();
    for start in live {
        assert_eq!(real.free(range(start, G4)), Ok(()));
    }
    assert_eq!(real.usage().cached, 8 * G4);
    run_on(1);
    assert_eq!(real.alloc(&IovaRequest::new(8 * G4)), Ok(Iova::new(0)));
    assert_eq!(real.free(range(0, 8 * G4)), Ok(()));
    assert_eq!(real.alloc_at(range(G4, G4)), Ok(()));
    run_on(0);
}

#[test]
fn three_granules_fit_where_four_do_not() {
    let real = allocator(G4, 0, 3 * G4);
    assert_eq!(real.alloc(&IovaRequest::new(3 * G4)), Ok(Iova::new(0)));
    assert_eq!(real.free(range(0, 3 * G4)), Ok(()));
    // And what follows an odd size is left to others.
    let real = allocator(G4, 0, 4 * G4);
    assert_eq!(real.alloc(&IovaRequest::new(3 * G4)), Ok(Iova::new(0)));
    assert_eq!(real.alloc(&IovaRequest::new(G4)), Ok(Iova::new(3 * G4)));
}

#[test]
fn fragmentation_is_told_from_fullness() {
    let real = allocator(G4, 0, 64 * G4);
    for index in (0..64).step_by(2) {
        assert_eq!(real.alloc_at(range(index * G4, G4)), Ok(()));
    }
    assert_eq!(
        real.alloc(&IovaRequest::new(2 * G4)),
        Err(IovaError::Fragmented { size: 2 * G4, align: 2 * G4, free: 32 * G4, largest: G4 })
    );
    assert_eq!(
        real.alloc(&IovaRequest::new(33 * G4)),
        Err(IovaError::Full { size: 33 * G4, free: 32 * G4 })
    );
}

#[test]
fn bookkeeping_stays_small_and_returns() {
    let real = allocator(G4, 0, 1 << 48);
    let empty = real.usage().bookkeeping;
    let count = 20_000u64;
    for size in [G4, 64 * G4, 1024 * G4] {
        let live: Vec<u64> =
            (0..count).map(|_| real.alloc(&IovaRequest::new(size)).expect("room").raw()).collect();
        let used = real.usage().bookkeeping - empty;
        assert!(used - 10 * 1024 < 16 * count, "{used} bytes for {count} ranges of {size:#x}");
        for start in live {
            assert_eq!(real.free(range(start, size)), Ok(()));
        }
        real.flush_caches();
        assert_eq!(real.usage().largest_free, 1 << 48);
    }
    assert!(real.usage().bookkeeping - empty <= 10 * 1024);
}

#[test]
fn threads_never_share_a_range() {
    let real = Arc::new(allocator(G4, 0x10_0000, 4096 * G4));
    let owned = Arc::new(Mutex::new(BTreeMap::<u64, u64>::new()));
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (real, owned) = (Arc::clone(&real), Arc::clone(&owned));
            scope.spawn(move || churn(thread, &real, &owned));
        }
    });
    for (start, len) in owned.lock().expect("no panic").iter() {
        assert_eq!(real.free(range(*start, *len)), Ok(()));
    }
    real.flush_caches();
    assert_eq!((real.usage().live, real.usage().largest_free), (0, 4096 * G4));
}

/// Allocates and frees at random; whatever is in the common map may be freed by any thread, and
/// threads share CPU numbers.
fn churn(thread: usize, real: &IovaAllocator<Cpus>, owned: &Mutex<BTreeMap<u64, u64>>) {
    let mut random = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(thread as u64 + 1);
    for turn in 0..4000usize {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        run_on(thread + turn / 1000);
        let size = (random % 80 + 1) * G4;
        if let Ok(iova) = real.alloc(&IovaRequest::new(size)) {
            let mut owned = owned.lock().expect("no panic");
            let below = owned.range(..iova.raw() + size).next_back();
            assert!(below.is_none_or(|(start, len)| start + len <= iova.raw()), "two own {iova}");
            owned.insert(iova.raw(), size);
        }
        let taken = {
            let mut owned = owned.lock().expect("no panic");
            let start = owned.range(random % (4096 * G4)..).next().map(|(start, _)| *start);
            if owned.len() > 40 { start.and_then(|start| owned.remove_entry(&start)) } else { None }
        };
        if let Some((start, len)) = taken {
            assert_eq!(real.free(range(start, len)), Ok(()));
        }
    }
}

#[test]
fn the_allocator_is_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<IovaAllocator<Cpus>>();
}
