//! The front and the whole allocator under a scheduler that tries many interleavings: no range has
//! two owners at any time, and none is lost.

use std::sync::{Arc, Mutex};
use std::vec::Vec;

use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use super::super::front::{Front, Word};
use super::super::testing::Scheduled;
use super::*;
use crate::effort::effort;

/// A word whose every step the scheduler sees.
#[derive(Default)]
struct Seen(AtomicU64);

impl Word for Seen {
    fn peek(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn empty(&self) -> u64 {
        self.0.swap(0, Ordering::AcqRel)
    }

    fn replace(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Who holds each granule; a lock that is never held over a step which the scheduler sees.
#[derive(Default)]
pub(super) struct Owners(Mutex<BTreeMap<u64, usize>>);

impl Owners {
    pub(super) fn takes(&self, who: usize, start: u64, len: u64) {
        let mut owners = self.0.lock().expect("no panic");
        for granule in start..start + len {
            let before = owners.insert(granule, who);
            assert_eq!(before, None, "granule {granule} has two owners");
        }
    }

    pub(super) fn gives(&self, who: usize, start: u64, len: u64) {
        let mut owners = self.0.lock().expect("no panic");
        for granule in start..start + len {
            assert_eq!(owners.remove(&granule), Some(who));
        }
    }
}

pub(super) fn run(threads: usize, body: impl Fn(usize) + Send + Sync + 'static) {
    let body = Arc::new(body);
    let spawn = |who| {
        let body = Arc::clone(&body);
        thread::spawn(move || body(who))
    };
    let threads: Vec<_> = (0..threads).map(spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

/// Three threads in one front. Each begins with ranges of its own, takes what it finds, and puts back.
fn front() {
    let (front, owners) = (Arc::new(Front::<Seen>::default()), Arc::new(Owners::default()));
    let kept = Arc::new(Mutex::new(0));
    let (shared, rest) = (Arc::clone(&front), Arc::clone(&kept));
    let all = Arc::clone(&owners);
    run(3, move |who| {
        let mut mine: Vec<u64> = (0..2).map(|n| 4 * (2 * who as u64 + n)).collect();
        mine.iter().for_each(|start| owners.takes(who, *start, 4));
        for _ in 0..4 {
            match mine.pop() {
                Some(start) => {
                    owners.gives(who, start, 4);
                    if !shared.put(4, start) {
                        owners.takes(who, start, 4);
                        mine.insert(0, start);
                    }
                }
                None => assert!(who < 3),
            }
            let taken = match who {
                0 => shared.take_fitting(4, |start| start % 4 == 0),
                _ => shared.take(4),
            };
            if let Some(start) = taken {
                owners.takes(who, start, 4);
                mine.push(start);
            }
            assert_eq!(shared.take_fitting(4, |_| false), None);
        }
        *rest.lock().expect("no panic") += mine.len();
    });
    let mut found = 0;
    front.drain(|start, len| {
        all.takes(9, start, len);
        found += 1;
    });
    assert_eq!(*kept.lock().expect("no panic") + found, 6, "a range was lost");
    assert_eq!(front.granules(), 0);
}

/// Three threads that move between two CPUs, in 16 granules: some allocations are refused, so what the
/// CPUs hold is swept while others use it.
fn whole() {
    let real: Arc<IovaAllocator<Scheduled, i64>> = Arc::new(
        IovaAllocator::with_shares(&Scheduled, Granule::K4, range(0, 16 * G4), |_| 0)
            .expect("an allocator"),
    );
    let (shared, owners) = (Arc::clone(&real), Owners::default());
    run(3, move |who| {
        let mut mine: Vec<(u64, u64)> = Vec::new();
        for turn in 0..5 {
            let len = [1, 1, 2, 4, 8][shuttle::rand::thread_rng().gen_range(0..5)];
            let request = IovaRequest::new(len * G4);
            let got = match turn % 2 == 0 {
                true => shared.alloc(&request),
                false => shared.alloc_counted(&request, |count| *count += 1),
            };
            if let Ok(iova) = got {
                let start = iova.raw() / G4;
                owners.takes(who, start, len);
                mine.push((start, len));
                if turn % 2 == 0 {
                    shared.count(|count| *count += 1);
                }
            }
            if mine.len() > 1 || turn == 4 {
                for (start, len) in mine.drain(..) {
                    owners.gives(who, start, len);
                    let freed = range(start * G4, len * G4);
                    match who == 0 {
                        true => shared.free_counted(freed, |count| *count -= 1),
                        false => {
                            shared.count(|count| *count -= 1);
                            shared.free(freed)
                        }
                    }
                    .expect("allocated");
                }
            }
        }
    });
    let mut sum = 0;
    real.counts(|count| sum += count);
    assert_eq!(sum, 0);
    let usage = real.usage();
    assert_eq!((usage.live, usage.free), (0, 16 * G4), "space was lost");
    assert!(real.alloc(&IovaRequest::new(16 * G4)).is_ok(), "all of it is one range again");
}

#[test]
fn the_front_gives_every_range_one_owner() {
    shuttle::check_random(front, effort(1000) as usize);
    shuttle::check_pct(front, effort(500) as usize, 3);
}

#[test]
fn the_allocator_gives_every_range_one_owner() {
    shuttle::check_random(whole, effort(400) as usize);
    shuttle::check_pct(whole, effort(200) as usize, 3);
}
