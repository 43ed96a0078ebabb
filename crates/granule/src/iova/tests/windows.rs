//! Windows whose edges lie inside a word, a slot, a larger slot: all that fits is found there, and nothing
//! outside is handed out; and frees of what is only partly taken.

use super::*;

fn request(pages: u64, window: (u64, u64)) -> IovaRequest {
    IovaRequest::new(pages * G4).within(Some(range(window.0 * G4, window.1 * G4)))
}

/// Fills a window with ranges of one size: how many it should take, and takes, by brute force.
fn fill(base: u64, pages: u64, window: (u64, u64)) {
    run_on(0);
    let real = allocator(G4, base * G4, G4 << 20);
    let (first, len) = (base + window.0, window.1);
    let align = pages.next_power_of_two();
    let starts = (first.next_multiple_of(align)..first + len).step_by(align as usize);
    let want: Vec<u64> = starts.filter(|start| start + pages <= first + len).collect();
    let mut found = Vec::new();
    let refused = loop {
        match real.alloc(&request(pages, (first, len))) {
            Ok(at) => found.push(at.raw() / G4),
            Err(error) => break error,
        }
        assert!(found.len() <= want.len(), "{pages} pages in {window:?}: more than fit");
    };
    found.sort_unstable();
    assert_eq!(found, want, "{pages} pages in {window:?} above {base:#x}");
    let told = match refused {
        IovaError::Full { free, .. } | IovaError::Fragmented { free, .. } => free / G4,
        IovaError::WindowTooSmall { .. } if want.is_empty() => len,
        other => panic!("{other}"),
    };
    assert_eq!(told, len - want.len() as u64 * pages, "{pages} pages in {window:?}");
    for start in &found {
        assert_eq!(real.free(range(start * G4, pages * G4)), Ok(()));
    }
    real.flush_caches();
    assert_eq!(real.usage().largest_free, G4 << 20);
}

#[test]
fn a_window_is_filled_to_its_edges() {
    for base in [0, 1 << 30] {
        for pages in [1, 3, 5, 33, 64, 100, 128, 300, 1024, 2048] {
            for window in [(5, 300), (63, 66), (100, 5000), (4090, 4200), (4096 + 70, 9000)] {
                if window.1 >= pages {
                    fill(base, pages, window);
                }
            }
        }
    }
}

/// Ranges at hand that lie outside the window, below it, above it or across its end, stay there.
#[test]
fn what_is_at_hand_outside_a_window_is_not_handed_out() {
    for pages in [1u64, 2, 4, 64] {
        run_on(0);
        let real = allocator(G4, 1 << 30, G4 << 12);
        let first = (1 << 30) / G4;
        let window = (first + 1024, 128);
        // Full, but for what the loops below leave.
        let mut inside = Vec::new();
        while let Ok(at) = real.alloc(&request(pages, window)) {
            inside.push(at.raw());
        }
        let around: Vec<_> = (0..2048 / pages)
            .map_while(|_| real.alloc(&IovaRequest::new(pages * G4)).ok())
            .collect();
        for at in &around {
            assert_eq!(real.free(range(at.raw(), pages * G4)), Ok(()));
        }
        assert!(real.usage().cached > 0);
        let refused = real.alloc(&request(pages, window));
        assert!(matches!(refused, Err(IovaError::Full { .. })), "{pages}: {refused:?}");
        // One comes free: that one is found, among all those that do not fit.
        let one = inside[inside.len() / 2];
        assert_eq!(real.free(range(one, pages * G4)), Ok(()));
        assert_eq!(real.alloc(&request(pages, window)), Ok(Iova::new(one)));
        // A window that ends inside ranges at hand.
        let half = (window.0 + 128, 2 * pages - 1);
        let found = real.alloc(&request(pages, half)).map(|at| at.raw() / G4);
        assert_eq!(found, Ok(half.0), "{pages}");
    }
}

/// A free of more than was taken, over the borders of words and slots, changes nothing.
#[test]
fn a_free_that_reaches_too_far_changes_nothing() {
    let real = allocator(G4, 0, G4 << 20);
    for (taken, freed) in [
        ((60, 8), (60, 10)),
        ((60, 8), (58, 10)),
        ((100, 70), (100, 100)),
        ((4090, 10), (4090, 20)),
        ((4090, 10), (4000, 100)),
        ((4000, 4300), (4000, 4400)),
        ((4096 - 64, 200), (4096 - 128, 264)),
        (((1 << 18) - 5, 70), ((1 << 18) - 5, 5000)),
    ] {
        let [taken, freed] = [taken, freed].map(|(start, len)| range(start * G4, len * G4));
        assert_eq!(real.alloc_at(taken), Ok(()));
        let before = real.usage();
        let refused = real.free(freed);
        // What has a class goes to a magazine unseen, and is noticed when that is emptied.
        assert!(matches!(refused, Err(IovaError::NotAllocated { .. })), "{freed:?}: {refused:?}");
        assert_eq!(real.usage().free, before.free, "{freed:?}");
        let held = real.alloc_at(taken);
        assert!(matches!(held, Err(IovaError::InUse { .. })), "{freed:?}: {held:?}");
        assert_eq!(real.free(taken), Ok(()), "{freed:?}");
        real.flush_caches();
        assert_eq!((real.usage().live, real.usage().largest_free), (0, G4 << 20), "{freed:?}");
    }
}

/// A word that is free as a whole goes and comes like any other size.
#[test]
fn a_whole_word_is_given_back() {
    let real = allocator(G4, 0, G4 << 20);
    for start in [0, 64, 640] {
        let word = range(start * G4, 64 * G4);
        assert_eq!(real.alloc_at(word), Ok(()));
        assert_eq!(real.free(word), Ok(()));
        // Taken page by page, the word's slot is split when the whole comes back.
        let pages: Vec<_> = (0..64).map(|n| range((start + n) * G4, G4)).collect();
        for page in &pages {
            assert_eq!(real.alloc_at(*page), Ok(()));
        }
        for page in &pages {
            assert_eq!(real.free(*page), Ok(()));
        }
        real.flush_caches();
        assert_eq!(real.usage().largest_free, G4 << 20);
    }
}

/// Regions that touch are one, and the whole of it is named.
#[test]
fn the_region_in_the_way_is_named_whole() {
    for (first, second) in [((16, 4), (20, 4)), ((20, 4), (16, 4)), ((16, 6), (18, 6))] {
        let real = allocator(G4, 0, G4 << 20);
        for (start, len) in [first, second] {
            real.reserve(range(start * G4, len * G4)).expect("free");
        }
        let reserved = range(16 * G4, 8 * G4);
        for (start, len) in [(16, 1), (23, 1), (10, 100)] {
            let range = range(start * G4, len * G4);
            assert_eq!(real.alloc_at(range), Err(IovaError::Reserved { range, reserved }));
        }
    }
}

/// Ranges longer than their alignment (more than 1 GiB, or asked for without one): with an obstacle near
/// the window's start there is no place below it.
#[test]
fn an_obstacle_near_the_start_leaves_no_place_below() {
    let real = allocator(G4, 0, 1 << 50);
    let len = 4u64 << 30;
    let window = (1u64 << 19, len / G4 + 5);
    let taken = range(window.0 * G4 + (2 << 30), G4);
    assert_eq!(real.alloc_at(taken), Ok(()));
    let all = request(len / G4, window);
    assert!(matches!(real.alloc(&all), Err(IovaError::Fragmented { .. })));
    assert_eq!(real.highest_free(&all), None);
    assert_eq!(
        real.highest_free(&request(40, (window.0, 60)).aligned(1)),
        Some(Iova::new((window.0 + 20) * G4))
    );
    assert_eq!(real.alloc_at(range((window.0 + 30) * G4, G4)), Ok(()));
    assert_eq!(real.highest_free(&request(40, (window.0, 60)).aligned(1)), None);
    assert_eq!(real.free(taken), Ok(()));
    assert_eq!(
        real.alloc(&all).map(|at| at.raw() >= window.0 * G4),
        Err(IovaError::Fragmented {
            size: len,
            align: 1 << 30,
            free: len + 4 * G4,
            largest: len - 26 * G4
        })
    );
}
