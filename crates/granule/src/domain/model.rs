//! Trust and counts under a scheduler that tries many interleavings: while a device that is not trusted
//! is attached nothing is exposed, whoever comes first, and no count is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::thread;

use super::counters::Account;
use super::quarantine::model::{CPU, Cpus};
use super::{
    Attached, Counters, Domain, DomainConfig, DomainError, Footprint, Geometry, Invalidation,
    InvalidationPolicy, Placement, Stream, Translation, TranslationError, UnitError, UnitReport,
};
use crate::addr::{Access, Attributes, Iova, IovaRange, PageSizes, PhysAddr, PhysRange};
use crate::effort::effort;
use crate::table::{Hint, Resolved, Unmapped};

/// Translates nothing: no device exists.
struct Nothing(Geometry);

// SAFETY: no device exists, so none reaches anything.
unsafe impl Translation for Nothing {
    fn geometry(&self) -> &Geometry {
        &self.0
    }

    unsafe fn map(&self, _: Iova, _: PhysRange, _: Attributes) -> Result<Hint, TranslationError> {
        thread::yield_now();
        Ok(Hint::NONE)
    }

    unsafe fn map_list<I>(&self, _: Iova, _: I, _: Attributes) -> Result<(), TranslationError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        Ok(())
    }

    unsafe fn unmap(&self, _: IovaRange, _: Hint) -> Result<Unmapped, TranslationError> {
        Ok(Unmapped::default())
    }

    fn invalidate(&self, _: &Invalidation) -> Result<(), UnitError> {
        thread::yield_now();
        Ok(())
    }

    fn resolve(&self, _: Iova) -> Option<Resolved> {
        None
    }

    fn for_each_page(&self, _: IovaRange, _: &mut dyn FnMut(Iova, u64)) {}

    fn units(&self) -> std::vec::Vec<UnitReport> {
        std::vec::Vec::new()
    }

    unsafe fn attach(&self, _: Stream) -> Result<Attached, TranslationError> {
        Ok(Attached::default())
    }

    fn detach(&self, _: Stream) -> Result<(), UnitError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), TranslationError> {
        Ok(())
    }
}

const LEN: u64 = 1500;

struct World {
    domain: Arc<Domain<Cpus, Nothing>>,
    counters: Counters,
    /// Mappings that expose something now.
    exposing: AtomicUsize,
    /// Devices that are not trusted and are attached.
    strangers: AtomicUsize,
}

impl World {
    fn new(policy: InvalidationPolicy) -> Arc<Self> {
        let range = |len| IovaRange::new(Iova::new(0), len).expect("a legal range");
        let geometry = Geometry {
            page_sizes: PageSizes::from_bits(0x1000),
            aperture: range(1 << 32),
            output: PhysRange::new(PhysAddr::new(0), 1 << 40).expect("a legal range"),
            fence_unit: 0,
            upper_bits_ignored: false,
        };
        let config = DomainConfig { policy, ..DomainConfig::default() };
        Arc::new(Self {
            domain: Domain::new(&Cpus, Nothing(geometry), &config).expect("a domain"),
            counters: Counters::new(&Cpus),
            exposing: AtomicUsize::new(0),
            strangers: AtomicUsize::new(0),
        })
    }

    /// Maps on one CPU and unmaps on the other; whether it was allowed to.
    fn map_and_unmap(&self, cpu: usize) -> bool {
        let print = Footprint { bytes: LEN, exposed: 4096 - LEN, ..Footprint::default() };
        let account = Account { counters: &self.counters, print };
        let phys = PhysRange::new(PhysAddr::new(0x10_0000), 4096).expect("a legal range");
        let window = self.domain.aperture();
        let place = Placement { size: 4096, align: 4096, window, guard: false, at: None };
        let attrs = Attributes::memory(Access::all());
        CPU.set(cpu);
        // SAFETY: no device exists.
        let mapped = unsafe { self.domain.map_within(&place, phys, attrs, None, Some(&account)) };
        let mapped = match mapped {
            Ok(mapped) => mapped,
            Err(DomainError::Exposes { bytes }) => {
                assert_eq!(bytes, print.exposed);
                return false;
            }
            Err(error) => panic!("{error}"),
        };
        self.exposing.fetch_add(1, Ordering::Relaxed);
        assert_eq!(self.strangers.load(Ordering::Relaxed), 0, "exposed to a stranger");
        thread::yield_now();
        self.exposing.fetch_sub(1, Ordering::Relaxed);
        CPU.set(1 - cpu);
        // SAFETY: mapped above, and ended once.
        unsafe { self.domain.unmap_later(&mapped, &mut None, &account) }.expect("unmapped");
        true
    }

    /// Attaches a device that is not trusted, for a while; whether that was allowed.
    fn join(&self) -> bool {
        if self.domain.distrust().is_err() {
            return false;
        }
        self.strangers.fetch_add(1, Ordering::Relaxed);
        assert_eq!(self.exposing.load(Ordering::Relaxed), 0, "joined while bytes are exposed");
        thread::yield_now();
        self.strangers.fetch_sub(1, Ordering::Relaxed);
        self.domain.trust_again();
        true
    }
}

/// How often each was allowed, and refused, over all interleavings.
#[derive(Default)]
struct Seen {
    mapped: AtomicUsize,
    not_mapped: AtomicUsize,
    joined: AtomicUsize,
    not_joined: AtomicUsize,
}

fn note(done: bool, yes: &AtomicUsize, no: &AtomicUsize) {
    let count = if done { yes } else { no };
    count.fetch_add(1, Ordering::Relaxed);
}

fn scenario(policy: InvalidationPolicy, seen: &Arc<Seen>) {
    const EACH: usize = 3;
    let world = World::new(policy);
    let maps = Arc::new(AtomicUsize::new(0));
    let mappers = (0..3).map(|n| {
        let (world, seen, maps) = (world.clone(), seen.clone(), maps.clone());
        thread::spawn(move || {
            for _ in 0..EACH {
                let done = world.map_and_unmap(n % 2);
                maps.fetch_add(usize::from(done), Ordering::Relaxed);
                note(done, &seen.mapped, &seen.not_mapped);
            }
        })
    });
    let mut threads: std::vec::Vec<_> = mappers.collect();
    let stranger = (world.clone(), seen.clone());
    threads.push(thread::spawn(move || {
        for _ in 0..EACH {
            note(stranger.0.join(), &stranger.1.joined, &stranger.1.not_joined);
            thread::yield_now();
        }
    }));
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    world.domain.flush().expect("nothing fails");
    let (stats, domain) = (world.counters.stats(), world.domain.stats());
    assert_eq!(stats.maps, maps.load(Ordering::Relaxed) as u64, "each map is counted once");
    assert_eq!((stats.live_mappings, stats.mapped_bytes, stats.exposed_bytes), (0, 0, 0));
    assert_eq!((domain.exposed_bytes, domain.quarantined_bytes), (0, 0));
    assert_eq!(domain.iova_bytes, 0, "what was refused went back too");
    assert_eq!(world.domain.distrust(), Ok(()), "nothing is exposed at the end");
}

fn check(policy: InvalidationPolicy) {
    let seen = Arc::new(Seen::default());
    let world = seen.clone();
    shuttle::check_random(move || scenario(policy, &world), effort(2000) as usize);
    let world = seen.clone();
    shuttle::check_pct(move || scenario(policy, &world), effort(1000) as usize, 3);
    for count in [&seen.mapped, &seen.not_mapped, &seen.joined, &seen.not_joined] {
        assert!(count.load(Ordering::Relaxed) > 0, "the model must get into every case");
    }
}

#[test]
fn strict_exposes_nothing_to_a_stranger() {
    check(InvalidationPolicy::Strict);
}

#[test]
fn deferred_exposes_nothing_to_a_stranger() {
    check(InvalidationPolicy::Deferred { capacity: 2, max_age: u64::MAX });
}
