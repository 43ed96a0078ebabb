//! The rings under a scheduler that tries many interleavings: nothing is given back before an
//! invalidation that began after it was unmapped has completed, nothing twice, and nothing is lost.

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use super::{Entry, Pushed, Quarantine, Release, Ring, Ticket, Waiting};
use crate::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use crate::effort::effort;
use crate::mem::{FrameError, FrameRequest, Platform};

/// A spin lock whose every step the scheduler sees.
pub(in crate::domain) struct Lock(AtomicBool);

// SAFETY: one holder at a time, by compare-and-swap.
unsafe impl lock_api::RawMutex for Lock {
    #[allow(clippy::declare_interior_mutable_const)] // What the trait asks for.
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            thread::yield_now();
        }
    }

    fn try_lock(&self) -> bool {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

std::thread_local! {
    /// Shuttle runs all its threads on one: whoever pushes says first on which CPU.
    pub(in crate::domain) static CPU: Cell<usize> = const { Cell::new(0) };
}

#[derive(Clone)]
pub(in crate::domain) struct Cpus;

// SAFETY: no frames are ever allocated, and `cpu` is reduced below `cpus`.
unsafe impl Platform for Cpus {
    type Lock = Lock;

    fn alloc_frames(&self, _: &FrameRequest) -> Result<PhysRange, FrameError> {
        Err(FrameError::Unsupported)
    }

    unsafe fn free_frames(&self, _: PhysRange) {}

    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        core::ptr::null_mut()
    }

    fn phys(&self, _: *const u8, _: usize) -> Option<PhysRange> {
        None
    }

    fn cpu(&self) -> usize {
        CPU.get() % 2
    }

    fn cpus(&self) -> usize {
        2
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    unmapped: bool,
    forgotten: bool,
    leases: u32,
    releases: u32,
}

/// What the hardware remembers, and what was given back.
#[derive(Default)]
struct World {
    entries: Mutex<Vec<State>>,
    failures: Mutex<u32>,
}

impl World {
    fn with<R>(&self, act: impl FnOnce(&mut Vec<State>) -> R) -> R {
        // Never held over a step that the scheduler sees.
        act(&mut self.entries.lock().expect("no panic"))
    }

    /// An invalidation: it covers what was unmapped when it began, once it has completed.
    fn invalidate(&self) -> Result<(), ()> {
        let covered: Vec<bool> = self.with(|all| all.iter().map(|state| state.unmapped).collect());
        thread::yield_now();
        let mut failures = self.failures.lock().expect("no panic");
        if *failures > 0 {
            *failures -= 1;
            return Err(());
        }
        drop(failures);
        self.with(|all| {
            for (state, covered) in all.iter_mut().zip(covered) {
                state.forgotten |= covered;
            }
        });
        Ok(())
    }

    fn lease(&self, entry: Entry) {
        let id = (entry.lease.start().raw() >> 12) as usize;
        self.with(|all| {
            assert!(all[id].forgotten, "address space is reused while the device remembers it");
            all[id].leases += 1;
        });
    }

    fn release(&self, id: usize) {
        self.with(|all| {
            assert!(all[id].forgotten, "memory is reused while the device remembers it");
            assert_eq!(all[id].leases, 1, "the lease goes first");
            all[id].releases += 1;
        });
    }
}

fn flush(world: &World, rings: &Quarantine<Cpus>) -> Result<(), ()> {
    rings.flush(
        || world.invalidate(),
        |batch| batch.iter().flatten().map(Waiting::entry).for_each(|entry| world.lease(entry)),
    )
}

fn unmap(world: &Arc<World>, rings: &Quarantine<Cpus>, cpu: usize, id: usize) -> Ticket {
    world.with(|all| all[id].unmapped = true);
    let owner = world.clone();
    let lease = IovaRange::new(Iova::new((id as u64) << 12), 4096).expect("a legal range");
    // Small and large destructors take different ways.
    let weight = [id; 6];
    let mut release = Some(if id % 2 == 0 {
        Release::new(move || owner.release(id))
    } else {
        Release::new(move || owner.release(weight[5]))
    });
    let entry = Entry { lease, tables: false };
    loop {
        CPU.set(cpu);
        match rings.push(&Cpus, entry, &mut release, None) {
            Pushed::Waiting(ticket) | Pushed::Due(ticket) => return ticket,
            Pushed::Full => {
                let _ = flush(world, rings);
            }
        }
    }
}

/// Two CPUs unmap more than their rings hold, and two more flush.
fn scenario(failures: u32) {
    const EACH: usize = 4;
    let world = Arc::new(World {
        entries: Mutex::new(std::vec![State::default(); 2 * EACH]),
        failures: Mutex::new(failures),
    });
    let rings = Arc::new(Quarantine::new(&Cpus, 2, u64::MAX));
    let mut threads = Vec::new();
    for cpu in 0..2 {
        let (world, rings) = (world.clone(), rings.clone());
        threads.push(thread::spawn(move || {
            for id in cpu * EACH..(cpu + 1) * EACH {
                let ticket = unmap(&world, &rings, cpu, id);
                if rings.is_flushed(ticket) {
                    assert!(world.with(|all| all[id].forgotten), "called flushed, and is not");
                }
            }
        }));
    }
    for _ in 0..2 {
        let (world, rings) = (world.clone(), rings.clone());
        threads.push(thread::spawn(move || {
            let _ = flush(&world, &rings);
        }));
    }
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    while flush(&world, &rings).is_err() {}
    assert_eq!((rings.waiting(), rings.bytes()), (0, 0));
    let all = State { unmapped: true, forgotten: true, leases: 1, releases: 1 };
    world.with(|entries| assert!(entries.iter().all(|state| *state == all), "{entries:?}"));
}

#[test]
fn nothing_early_nothing_twice_nothing_lost() {
    shuttle::check_random(|| scenario(0), effort(2000) as usize);
    shuttle::check_pct(|| scenario(0), effort(1000) as usize, 3);
}

#[test]
fn invalidations_that_fail_give_nothing_back() {
    shuttle::check_random(|| scenario(3), effort(2000) as usize);
}

/// What is never flushed is never released: a drop of the rings leaks it.
#[test]
fn a_drop_gives_nothing_back() {
    shuttle::check_random(
        || {
            let entries = Mutex::new(std::vec![State::default(); 1]);
            let world = Arc::new(World { entries, failures: Mutex::new(0) });
            let rings = Quarantine::new(&Cpus, 2, u64::MAX);
            unmap(&world, &rings, 0, 0);
            drop(rings);
            assert_eq!(world.with(|all| (all[0].leases, all[0].releases)), (0, 0));
        },
        1,
    );
}

/// The oldest entry is due at its age and no sooner; a clock that stands still makes nothing due.
#[test]
fn an_entry_is_due_when_it_has_waited_its_age() {
    let lease = IovaRange::new(Iova::new(0), 4096).expect("a legal range");
    let mut ring = Ring::new(4);
    assert!(!ring.oldest_is_older(u64::MAX, 0), "there is none");
    for since in [1000, 1200] {
        ring.put(Entry { lease, tables: false }, since, None);
    }
    let due = [(1000, 0), (1001, 0), (1001, 1), (1299, 300), (1300, 300), (900, 0), (900, 50)]
        .map(|(now, age)| ring.oldest_is_older(now, age));
    assert_eq!(due, [false, true, true, false, true, false, false]);
}

/// More large destructors than one batch has room for, mixed with small ones.
#[test]
fn every_destructor_runs_once_whatever_its_size() {
    const ALL: usize = 40;
    shuttle::check_random(
        || {
            let entries = Mutex::new(std::vec![State::default(); ALL]);
            let world = Arc::new(World { entries, failures: Mutex::new(0) });
            let rings = Quarantine::new(&Cpus, ALL, u64::MAX);
            // The odd ones are large: eight in a row first.
            let order = (0..8).map(|n| 2 * n + 1).chain((0..8).map(|n| 2 * n)).chain(16..ALL);
            for id in order {
                unmap(&world, &rings, 0, id);
            }
            assert_eq!(flush(&world, &rings), Ok(()));
            assert_eq!((rings.waiting(), rings.bytes()), (0, 0));
            let all = State { unmapped: true, forgotten: true, leases: 1, releases: 1 };
            world.with(|entries| assert!(entries.iter().all(|state| *state == all), "{entries:?}"));
        },
        1,
    );
}
