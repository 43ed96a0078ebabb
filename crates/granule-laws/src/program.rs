//! Random programs of one device: maps, lists, coherent memory, unmaps now and later, flushes. After
//! every step hostile devices show what is reached, and it is compared with what was given.

use std::collections::VecDeque;

use granule::addr::{Access, Direction, DmaAddr, PhysRange};
use granule::dma::{Coherent, Device, ListMapping, MapFlags, Mapping, Pending, ScatterList};
use granule_sim::hostile::Allowed;

use crate::bench::Bench;
use crate::buffer::{SimBuffer, byte, bytes, fresh_id};
use crate::check::{allow, bytes_in_tables, confined, physical, reads, walks_nowhere};

enum Guard {
    Buffer(Mapping<Device, SimBuffer>),
    Host(Mapping<Device, Vec<u8>>, u64),
    List(ListMapping<Device, SimBuffer>),
    Coherent(Coherent<Device>),
}

/// Something that the device has, and what it may reach for it.
struct Item {
    guard: Guard,
    given: Given,
}

struct Given {
    given: Vec<Allowed>,
    /// Bytes mapped that belong to somebody else.
    exposed: u64,
    /// All bytes mapped.
    mapped: u64,
}

/// A random program on a bench.
pub struct Program {
    rng: fastrand::Rng,
    live: Vec<Item>,
    pending: Vec<Pending<Device, SimBuffer>>,
    /// What waits in quarantine, oldest first.
    waiting: VecDeque<Vec<Allowed>>,
    /// How many steps of each kind were taken.
    pub taken: [usize; 8],
}

impl Program {
    /// Same seed, same program.
    pub fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let (live, pending, waiting) = Default::default();
        Self { rng, live, pending, waiting, taken: [0; 8] }
    }

    /// One step, and the checks of law 2 and 3 after it.
    ///
    /// # Panics
    /// If a law is broken.
    pub fn step(&mut self, bench: &Bench) {
        let kind = if self.live.len() > 8 { self.rng.usize(4..8) } else { self.rng.usize(0..8) };
        match kind {
            0 => self.map(bench),
            1 => self.host(bench),
            2 => self.list(bench),
            3 => self.coherent(bench),
            4 => self.end(bench, false),
            5 => self.end(bench, true),
            6 => self.later(bench),
            _ => self.finish(bench),
        }
        self.taken[kind] += 1;
        self.check(bench);
        // Caches hold as much as they can when the next step ends something.
        let touched = bench.hostile("dev").touch_all();
        assert!(touched.is_empty() == (self.live.is_empty() && self.waiting.is_empty()));
    }

    /// Ends everything.
    pub fn finish_all(&mut self, bench: &Bench) {
        while !self.live.is_empty() {
            self.end(bench, true);
        }
        self.pending.clear();
        bench.domain.flush().expect("hardware that answers");
        self.check(bench);
    }

    fn shape(&mut self, bench: &Bench) -> (u64, u64) {
        let unit = bench.case.unit().size();
        let offset = if self.rng.bool() { 0 } else { self.rng.u64(0..unit) };
        let len = if self.rng.bool() { unit } else { self.rng.u64(1..2 * unit) };
        (offset, len)
    }

    fn direction(&mut self) -> Direction {
        [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional][self.rng.usize(0..3)]
    }

    fn flags(&mut self) -> MapFlags {
        if self.rng.u8(0..4) == 0 { MapFlags::GUARD } else { MapFlags::empty() }
    }

    fn map(&mut self, bench: &Bench) {
        let (offset, len) = self.shape(bench);
        let buffer = SimBuffer::new(&bench.case, &bench.machine, offset, len);
        let (direction, flags) = (self.direction(), self.flags());
        let range = buffer.ranges()[0];
        let mapping = Mapping::new(bench.dev().clone(), buffer, direction, flags);
        let mapping = mapping.expect("room for a mapping");
        let run = self.run(bench, mapping.address(), len);
        assert_eq!(run == range, !mapping.is_bounced(), "{:?}: where is it?", bench.case);
        let given = self.given(bench, &[(run, run == range)], direction.access());
        guarded(bench, mapping.address(), len, flags);
        self.live.push(Item { guard: Guard::Buffer(mapping), given });
    }

    fn host(&mut self, bench: &Bench) {
        let len = self.rng.u64(1..2 * bench.case.unit().size());
        let (id, direction, flags) = (fresh_id(), self.direction(), self.flags());
        let mapping = Mapping::new(bench.dev().clone(), bytes(id, len), direction, flags);
        let mapping = mapping.expect("room for a mapping");
        assert!(mapping.is_bounced());
        let run = self.run(bench, mapping.address(), len);
        padding_is_zero(bench, mapping.address(), len, direction);
        guarded(bench, mapping.address(), len, flags);
        let given = self.given(bench, &[(run, false)], direction.access());
        self.live.push(Item { guard: Guard::Host(mapping, id), given });
    }

    fn list(&mut self, bench: &Bench) {
        let count = self.rng.usize(1..5);
        let buffers: Vec<SimBuffer> = (0..count)
            .map(|_| {
                let (offset, len) = self.shape(bench);
                SimBuffer::new(&bench.case, &bench.machine, offset, len)
            })
            .collect();
        let ranges: Vec<PhysRange> = buffers.iter().map(|buffer| buffer.ranges()[0]).collect();
        let (direction, flags) = (self.direction(), self.flags());
        let list = ScatterList::new(buffers);
        let mapping = ListMapping::new(bench.dev().clone(), list, direction, flags);
        let mapping = mapping.expect("room for a mapping");
        let mut segments = mapping.segments().iter();
        let (mut at, mut left) = (0, 0);
        let mut runs = Vec::new();
        for range in &ranges {
            if left == 0 {
                let segment = segments.next().expect("a segment for every entry");
                (at, left) = (segment.address.raw(), segment.len);
            }
            assert!(left >= range.len(), "an entry is never cut");
            let run = self.run(bench, DmaAddr::new(at), range.len());
            runs.push((run, run == *range));
            (at, left) = (at + range.len(), left - range.len());
        }
        let bounced = runs.iter().filter(|(_, in_place)| !in_place).count();
        assert_eq!(bounced, mapping.bounced());
        let given = self.given(bench, &runs, direction.access());
        self.live.push(Item { guard: Guard::List(mapping), given });
    }

    fn coherent(&mut self, bench: &Bench) {
        let len = self.rng.u64(1..3 * bench.case.granule().size());
        let flags = self.flags();
        let memory = Coherent::new(bench.dev().clone(), len, flags).expect("coherent memory");
        let size: u64 = memory.scatter_list().iter().map(PhysRange::len).sum();
        // The buffer and its padding are zeroes for the device.
        reads(bench, "dev", memory.address(), &vec![0; size as usize]);
        guarded(bench, memory.address(), size, flags);
        let runs: Vec<_> = memory.scatter_list().iter().map(|block| (*block, true)).collect();
        let given = self.given(bench, &runs, Access::all());
        self.live.push(Item { guard: Guard::Coherent(memory), given });
    }

    /// Takes one item back, or drops it.
    fn end(&mut self, bench: &Bench, drops: bool) {
        if self.live.is_empty() {
            return;
        }
        let Item { guard, given } = self.live.swap_remove(self.rng.usize(0..self.live.len()));
        let waits = drops && !matches!(guard, Guard::Coherent(_));
        if waits {
            self.wait(bench, given.given);
        }
        match guard {
            Guard::Buffer(mapping) if !drops => {
                let buffer = mapping.unmap().expect("hardware that answers");
                assert!(buffer.is_intact(), "the device wrote nothing");
            }
            Guard::Host(mapping, id) if !drops => {
                let buffer = mapping.unmap().expect("hardware that answers");
                assert!(buffer.iter().zip(0..).all(|(found, at)| *found == byte(id, at)));
            }
            Guard::List(mapping) if !drops => {
                let list = mapping.unmap().expect("hardware that answers");
                assert!(list.into_buffers().all(|buffer| buffer.is_intact()));
            }
            Guard::Coherent(memory) if !drops => memory.free().expect("hardware that answers"),
            guard => drop(guard),
        }
    }

    /// Ends a mapping so that it waits for the flush.
    fn later(&mut self, bench: &Bench) {
        let is_buffer = |item: &Item| matches!(item.guard, Guard::Buffer(_));
        let Some(index) = self.live.iter().position(is_buffer) else { return };
        let Item { guard, given } = self.live.swap_remove(index);
        let Guard::Buffer(mapping) = guard else { return };
        self.wait(bench, given.given);
        self.pending.push(mapping.unmap_later().expect("hardware that answers"));
    }

    fn wait(&mut self, bench: &Bench, given: Vec<Allowed>) {
        if bench.domain.is_deferred() {
            self.waiting.push_back(given);
        }
    }

    fn finish(&mut self, bench: &Bench) {
        if self.rng.bool() {
            bench.domain.flush().expect("hardware that answers");
        }
        if let Some(pending) = self.pending.pop() {
            let buffer = pending.finish().expect("hardware that answers");
            assert!(buffer.is_intact(), "nobody but its owner wrote to it");
        }
    }

    /// The memory that the device sees at an address: one run.
    fn run(&self, bench: &Bench, address: DmaAddr, len: u64) -> PhysRange {
        let at = |offset| physical(bench, 0, 0, address.raw() + offset).expect("mapped");
        let run = PhysRange::new(at(0), len).expect("legal");
        let granule = bench.case.granule();
        let mut offset = granule.size() - address.raw() % granule.size();
        while offset < len {
            assert_eq!(at(offset).raw(), run.start().raw() + offset);
            offset += granule.size();
        }
        run
    }

    /// What the device may reach for these runs: those in place are in units of their own, so that
    /// all else in their granules is exposed; those in the pool have padding.
    fn given(&self, bench: &Bench, runs: &[(PhysRange, bool)], access: Access) -> Given {
        let (mut outer, mut exposed) = (Vec::new(), 0);
        for (run, in_place) in runs {
            let whole = run.align_outward(bench.case.granule()).expect("legal");
            if *in_place {
                exposed += whole.len() - run.len();
            } else {
                let pool = bench.pool.as_ref().expect("a bounced buffer has a pool");
                assert!(pool.ranges().any(|range| range.contains_range(&whole)));
                let others = self.live.iter().flat_map(|item| &item.given.given);
                let others = others.chain(self.waiting.iter().flatten());
                let mut others = others.map(|one| one.range);
                assert!(!others.any(|other| other.overlaps(&whole)), "two slots in one granule");
            }
            outer.push(whole);
        }
        assert!(bench.case.trusted || exposed == 0);
        let mapped = outer.iter().map(PhysRange::len).sum();
        Given { given: allow(&outer, access), exposed, mapped }
    }

    fn check(&mut self, bench: &Bench) {
        let stats = bench.domain.stats();
        while self.waiting.len() as u64 > stats.quarantined {
            self.waiting.pop_front();
        }
        assert_eq!(self.waiting.len() as u64, stats.quarantined, "{:?}", bench.case);
        let given = self.live.iter().flat_map(|item| item.given.given.iter().copied());
        let allowed: Vec<Allowed> = given.chain(self.waiting.iter().flatten().copied()).collect();
        confined(bench, "dev", &allowed, "after a step");
        let exposed: u64 = self.live.iter().map(|item| item.given.exposed).sum();
        assert_eq!(stats.exposed_bytes, exposed, "{:?}", bench.case);
        assert_eq!(bench.dev().stats().exposed_bytes, exposed);
        assert_eq!(bench.dev().stats().live_mappings, self.live.len() as u64);
        let mapped: u64 = self.live.iter().map(|item| item.given.mapped).sum();
        assert_eq!(bytes_in_tables(bench, "dev"), mapped, "{:?}: the walker finds", bench.case);
    }
}

/// An unmapped granule stands before and behind a range that was made with guards.
fn guarded(bench: &Bench, address: DmaAddr, len: u64, flags: MapFlags) {
    if !flags.contains(MapFlags::GUARD) {
        return;
    }
    let granule = bench.case.granule();
    let before = (address.raw() & !granule.mask()) - 1;
    let behind = (address.raw() + len).next_multiple_of(granule.size());
    for at in [before, before - granule.mask(), behind, behind + granule.mask()] {
        assert!(walks_nowhere(bench, 0, 0, at), "{:?}: no guard at {at:#x}", bench.case);
    }
}

/// What is mapped around a bounced buffer reads as zeroes.
fn padding_is_zero(bench: &Bench, address: DmaAddr, len: u64, direction: Direction) {
    let granule = bench.case.granule();
    let first = address.raw() & !granule.mask();
    let end = (address.raw() + len).next_multiple_of(granule.size());
    if !direction.device_reads() {
        return; // Some formats let it read all the same; their padding is judged elsewhere.
    }
    let front = vec![0; (address.raw() - first) as usize];
    let back = vec![0; (end - address.raw() - len) as usize];
    reads(bench, "dev", DmaAddr::new(first), &front);
    reads(bench, "dev", DmaAddr::new(address.raw() + len), &back);
}
