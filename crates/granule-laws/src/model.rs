//! One domain against a brute-force model: a map from IOVA page to physical page and rights. Programs
//! are lists of small steps that mean something in any order, so that a failing one can be shrunk.
//!
//! After each step the table is read at the step's edges, by the core and by the simulator's own
//! walker; now and then, and at the end, a hostile device shows all that it reaches, stale entries
//! included, and that is compared with the model too.

use std::collections::BTreeMap;

use granule::addr::{Access, Attributes, Granule, Iova, IovaRange, PhysAddr, PhysRange};
use granule::domain::{Domain, DomainError, Mapped, Placement, Translation, UnitError, UnmapError};
use granule::table::Resolved;
use granule_sim::faults::Point;
use granule_sim::hostile::Allowed;
use granule_sim::platform::SimPlatform;

use crate::bench::{BANK, Bench, Case, RAM, phys};
use crate::check::{allow, confined, physical};

/// The lower half of a domain's public calls: memory by its address, mappings by hand.
pub trait Low {
    /// As [`Domain::map`], [`Domain::map_list`] or [`Domain::map_pieces`], by how many pieces there
    /// are and whether they leave gaps.
    ///
    /// # Errors
    /// As there.
    fn map_low(
        &self,
        place: &Placement,
        pieces: &[(u64, PhysRange)],
        access: Access,
    ) -> Result<Mapped, DomainError>;
    /// As [`Domain::unmap`].
    ///
    /// # Errors
    /// As there.
    fn unmap_low(&self, mapped: &Mapped) -> Result<(), UnmapError>;
    /// As [`Translation::resolve`].
    fn resolve_low(&self, at: Iova) -> Option<Resolved>;
    /// Bytes that [`Translation::for_each_page`] finds mapped.
    fn mapped_low(&self, range: IovaRange) -> u64;
    /// As [`Domain::aperture`].
    fn aperture_low(&self) -> IovaRange;
}

impl<T: Translation> Low for Domain<SimPlatform, T> {
    fn map_low(
        &self,
        place: &Placement,
        pieces: &[(u64, PhysRange)],
        access: Access,
    ) -> Result<Mapped, DomainError> {
        let attrs = Attributes::memory(access);
        let dense: u64 = pieces.iter().map(|(_, piece)| piece.len()).sum();
        // SAFETY: the memory is reserved for this (see `case`), and nobody lives there.
        unsafe {
            match pieces {
                [(0, one)] => self.map(place, *one, attrs, None),
                many if dense == place.size => {
                    self.map_list(place, many.iter().map(|(_, piece)| *piece), attrs)
                }
                many => self.map_pieces(place, many.iter().copied(), attrs),
            }
        }
    }

    fn unmap_low(&self, mapped: &Mapped) -> Result<(), UnmapError> {
        // SAFETY: the model ends each mapping once.
        unsafe { self.unmap(mapped) }
    }

    fn resolve_low(&self, at: Iova) -> Option<Resolved> {
        self.translation().resolve(at)
    }

    fn mapped_low(&self, range: IovaRange) -> u64 {
        let mut sum = 0;
        self.translation().for_each_page(range, &mut |_, size| sum += size);
        sum
    }

    fn aperture_low(&self) -> IovaRange {
        self.aperture()
    }
}

/// Memory that is nobody's: what the programs map.
fn pasture() -> PhysRange {
    phys(RAM + 2 * BANK, BANK)
}

/// The case of a model run: its second bank is kept from the allocator, its IOVA space is small
/// enough to run out.
pub fn case(case: &Case) -> Case {
    let granule = case.granule().size();
    let window = IovaRange::new(Iova::new(0), 4096 * granule).expect("legal");
    Case { firmware: Some(pasture()), window: Some(window), pool: 0, ..case.clone() }
}

/// One step. What it says is reduced to what is possible, so any values make a step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Which operation.
    pub kind: u8,
    /// Where, or which mapping.
    pub place: u16,
    /// How long, and in what shape.
    pub shape: u16,
    /// Which memory.
    pub memory: u16,
}

/// What a run tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Steps.
    pub steps: u64,
    /// Calls that mapped.
    pub maps: u64,
    /// Calls that were refused, as they had to be.
    pub refused: u64,
    /// Calls that unmapped.
    pub unmaps: u64,
    /// Times that the domain was recovered.
    pub recoveries: u64,
    /// Calls that failed because something was made to fail.
    pub faults: u64,
    /// Times that a hostile device's whole reach was compared.
    pub probes: u64,
}

impl Tried {
    /// Counts another run in.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.maps += other.maps;
        self.refused += other.refused;
        self.unmaps += other.unmaps;
        self.recoveries += other.recoveries;
        self.faults += other.faults;
        self.probes += other.probes;
    }
}

struct Live {
    mapped: Mapped,
    pieces: Vec<PhysRange>,
    access: Access,
}

/// A domain, and what it ought to be.
pub struct Model<'b> {
    bench: &'b Bench,
    granule: Granule,
    live: Vec<Live>,
    /// The brute-force map: page of IOVA to page of memory and rights.
    pages: BTreeMap<u64, (u64, Access)>,
    /// Leases whose invalidation failed: never handed out again.
    lost: Vec<IovaRange>,
    /// What the device may still reach by what caches remember, until the domain has recovered.
    stale: Vec<Allowed>,
    /// Every how many steps the hostile device shows all that it reaches.
    every: u64,
    /// What was tried.
    pub tried: Tried,
}

impl<'b> Model<'b> {
    /// A model of the bench's domain, in which nothing is mapped. Every `every` steps a hostile
    /// device fills its caches and shows what it reaches.
    pub fn new(bench: &'b Bench, every: u64) -> Self {
        Self {
            bench,
            granule: bench.case.granule(),
            live: Vec::new(),
            pages: BTreeMap::new(),
            lost: Vec::new(),
            stale: Vec::new(),
            every: every.max(1),
            tried: Tried::default(),
        }
    }

    /// Takes a step, and compares.
    ///
    /// # Panics
    /// If the domain is not what the model says.
    pub fn step(&mut self, step: Step) {
        self.tried.steps += 1;
        match step.kind % 16 {
            0..=6 => self.map(step, false),
            7 => self.map(step, true),
            8..=13 => self.unmap(step),
            // Deferred or not, nothing waits here; only an injected fault can make these fail.
            14 => self.confirm(self.bench.domain.flush()),
            _ => self.confirm(self.bench.domain.poll()),
        }
        if self.tried.steps % self.every == 0 {
            self.probe();
        }
    }

    /// Ends everything, and compares what is left: nothing.
    ///
    /// # Panics
    /// If something is.
    pub fn finish(&mut self) {
        self.whole();
        while !self.live.is_empty() {
            self.unmap(Step { kind: 8, place: 0, shape: 0, memory: 0 });
        }
        self.whole();
        self.probe();
        let lost: u64 = self.lost.iter().map(IovaRange::len).sum();
        assert_eq!(self.bench.domain.stats().iova_bytes, lost, "{:?}", self.bench.case);
    }

    fn confirm(&mut self, result: Result<(), UnitError>) {
        if let Err(error) = result {
            let fired = self.bench.machine.faults().fired();
            assert!(fired > 0, "{:?}: {error} by itself", self.bench.case);
            self.tried.faults += 1;
            self.failed(Vec::new());
        }
    }

    /// Pieces of memory for a step: one, several that adjoin in IOVA, or several with gaps.
    fn pieces(&self, step: Step) -> (u64, Vec<(u64, PhysRange)>) {
        let g = self.granule.size();
        let pages = [1, 1, 2, 3, 5, 16, 40, 130][usize::from(step.shape & 7)];
        let cuts = [1, 1, 2, 4][usize::from(step.shape >> 3 & 3)].min(pages);
        let gap = u64::from(cuts > 1 && step.shape & 32 != 0);
        let total = pasture().len() / g;
        let (mut pieces, mut at) = (Vec::new(), 0);
        for cut in 0..cuts {
            let len = pages / cuts + u64::from(cut < pages % cuts);
            // Every other one behind the last, so that some adjoin in memory too.
            let scatter = if step.shape & 64 == 0 { cut * 977 } else { 0 };
            let page = (u64::from(step.memory) * 16 + scatter + at).min(total - len);
            let start = pasture().start().raw() + page * g;
            pieces.push((at * g, phys(start, len * g)));
            at += len + gap;
        }
        ((at - gap) * g, pieces)
    }

    fn placement(&self, step: Step, size: u64, fixed: bool) -> Placement {
        let (g, window) = (self.granule.size(), self.bench.domain.aperture_low());
        let at = window.start().raw() + u64::from(step.place) % (window.len() / g) * g;
        let align = [1, g, 4 * g, 64 * g][usize::from(step.place >> 14)];
        let guard = step.shape & 128 != 0;
        Placement { size, align, window, guard, at: fixed.then_some(Iova::new(at)) }
    }

    fn map(&mut self, step: Step, fixed: bool) {
        let (size, pieces) = self.pieces(step);
        let place = self.placement(step, size, fixed);
        let access = [Access::READ, Access::WRITE, Access::all()][usize::from(step.memory % 3)];
        let before = self.bench.machine.faults().fired();
        let result = self.bench.domain.map_low(&place, &pieces, access);
        let fault = self.bench.machine.faults().fired() > before;
        match result {
            Ok(mapped) => self.mapped(&place, mapped, &pieces, access),
            Err(error) => self.refused(&place, &error, fault, &pieces),
        }
    }

    fn mapped(
        &mut self,
        place: &Placement,
        mapped: Mapped,
        pieces: &[(u64, PhysRange)],
        access: Access,
    ) {
        let (g, case) = (self.granule.size(), &self.bench.case);
        let range = mapped.range;
        assert_eq!(range.len(), place.size, "{case:?}");
        assert!(range.start().raw() != 0 && place.window.contains_range(&mapped.lease));
        assert!(mapped.lease.contains_range(&range));
        assert!(place.at.is_none_or(|at| at == range.start()), "{case:?}: {range} for {place:?}");
        let align = if place.at.is_some() { g } else { place.align.max(g) };
        assert_eq!(range.start().raw() % align, 0, "{case:?}: {range} for {place:?}");
        let guard = (mapped.lease.len() - range.len()) / 2;
        assert_eq!(guard > 0, place.guard, "{case:?}: guards of {range} in {}", mapped.lease);
        let free = self.taken().all(|other| !other.overlaps(&mapped.lease));
        assert!(free, "{case:?}: {} was handed out twice", mapped.lease);
        for (offset, piece) in pieces {
            for page in 0..piece.len() / g {
                let at = range.start().raw() + offset + page * g;
                self.pages.insert(at, (piece.start().raw() + page * g, access));
            }
        }
        let pieces = pieces.iter().map(|(_, piece)| *piece).collect();
        self.live.push(Live { mapped, pieces, access });
        self.tried.maps += 1;
        self.edges(range);
    }

    /// What is leased or lost.
    fn taken(&self) -> impl Iterator<Item = IovaRange> + '_ {
        self.live.iter().map(|live| live.mapped.lease).chain(self.lost.iter().copied())
    }

    fn refused(
        &mut self,
        place: &Placement,
        error: &DomainError,
        fault: bool,
        pieces: &[(u64, PhysRange)],
    ) {
        if fault {
            self.tried.faults += 1;
            self.failed(pieces.iter().map(|(_, piece)| *piece).collect());
        } else {
            self.tried.refused += 1;
            let why = self.reason(place);
            assert!(why.is_some(), "{:?}: {place:?} is free, but: {error}", self.bench.case);
        }
        self.probe_if(fault);
    }

    /// Why a placement cannot be had; brute force over every place.
    fn reason(&self, place: &Placement) -> Option<&'static str> {
        let g = self.granule.size();
        if let Some(at) = place.at {
            let guard = if place.guard { g } else { 0 };
            let free = at
                .raw()
                .checked_sub(guard)
                .is_some_and(|start| self.is_free(place, start, place.size + 2 * guard));
            return (!free).then_some("it is taken");
        }
        let align = place.align.max(g);
        let len = place.size + if place.guard { 2 * align } else { 0 };
        // Leases are naturally aligned, up to 1 GiB.
        let align = len.next_power_of_two().min(1 << 30).max(align) as usize;
        let mut starts = (0..=place.window.last().raw()).step_by(align);
        let free = starts.any(|start| self.is_free(place, start, len));
        (!free).then_some("no place is free")
    }

    /// Whether a lease of these addresses is legal and nobody has any of it.
    fn is_free(&self, place: &Placement, start: u64, len: u64) -> bool {
        let Ok(lease) = IovaRange::new(Iova::new(start), len) else { return false };
        let legal = start >= self.granule.size() && place.window.contains_range(&lease);
        legal && self.taken().all(|taken| !taken.overlaps(&lease))
    }

    /// An injected fault: what the domain says it has lost is lost, and what the caches may hold is
    /// allowed until it has recovered.
    fn failed(&mut self, memory: Vec<PhysRange>) {
        let stats = self.bench.domain.stats();
        if stats.poisoned {
            // For as long as the invalidation is outstanding, not a moment longer.
            self.stale.extend(allow(&memory, Access::all()));
            self.probe();
            self.bench.domain.recover().expect("hardware that answers again");
            self.tried.recoveries += 1;
            self.stale.clear();
            assert!(!self.bench.domain.stats().poisoned);
        }
    }

    fn unmap(&mut self, step: Step) {
        if self.live.is_empty() {
            return;
        }
        let live = self.live.swap_remove(usize::from(step.place) % self.live.len());
        let range = live.mapped.range;
        let (first, last) = (range.start().raw(), range.last().raw());
        let gone: Vec<u64> = self.pages.range(first..=last).map(|(at, _)| *at).collect();
        for at in gone {
            self.pages.remove(&at);
        }
        self.tried.unmaps += 1;
        if self.bench.domain.unmap_low(&live.mapped).is_err() {
            let fired = self.bench.machine.faults().fired();
            assert!(fired > 0, "{:?}: an unmap failed by itself", self.bench.case);
            self.tried.faults += 1;
            self.lost.push(live.mapped.lease);
            self.failed(live.pieces);
        }
        self.edges(range);
    }

    /// The pages at both ends of a range and beside it are what the model says.
    fn edges(&self, range: IovaRange) {
        let g = self.granule.size();
        let (first, end) = (range.start().raw(), range.last().raw() + 1);
        let middle = first + range.len() / g / 2 * g;
        for at in [first.saturating_sub(g), first, middle, end - g, end] {
            self.page(at);
        }
    }

    fn page(&self, at: u64) {
        let (case, inside) = (&self.bench.case, self.granule.size() - 1);
        let want = self.pages.get(&at).copied();
        let found = self.bench.domain.resolve_low(Iova::new(at + inside));
        let memory = want.map(|(memory, _)| memory + inside);
        assert_eq!(found.map(|found| found.phys.raw()), memory, "{case:?}: at {at:#x}");
        if let (Some(found), Some((_, access))) = (found, want) {
            assert!(found.attributes.access.contains(access), "{case:?}: rights at {at:#x}");
        }
        let walked = physical(self.bench, 0, 0, at + inside);
        assert_eq!(walked.map(PhysAddr::raw), memory, "{case:?}: the walker at {at:#x}");
    }

    /// Every page is what the model says, and there are no others.
    fn whole(&self) {
        self.pages.keys().for_each(|at| self.page(*at));
        let all = self.bench.domain.aperture_low();
        let mapped = self.bench.domain.mapped_low(all);
        let known = self.pages.len() as u64 * self.granule.size();
        assert_eq!(mapped, known, "{:?}: bytes mapped", self.bench.case);
    }

    fn probe_if(&mut self, now: bool) {
        if now {
            self.probe();
        }
    }

    /// The hostile device fills its caches and shows what it reaches.
    fn probe(&mut self) {
        self.tried.probes += 1;
        let live = self.live.iter().flat_map(|live| allow(&live.pieces, live.access));
        let allowed: Vec<Allowed> = live.chain(self.stale.iter().copied()).collect();
        let mut hostile = self.bench.hostile("dev");
        hostile.touch_all();
        hostile.probe(8);
        confined(self.bench, "dev", &allowed, "after a step");
    }
}

/// Runs a program on a fresh bench, with the `fail`-th event made to fail, and closes the bench.
///
/// # Panics
/// If the domain is not what the model says, or something leaks.
pub fn run(bench_of: &Case, steps: &[Step], every: u64, fail: Option<(Point, u64)>) -> Tried {
    let bench = bench_of.bench();
    if let Some((point, nth)) = fail {
        bench.machine.faults().fail_nth(point, nth);
    }
    let mut model = Model::new(&bench, every);
    steps.iter().for_each(|step| model.step(*step));
    model.finish();
    let tried = model.tried;
    bench.machine.faults().clear(); // What failed belongs to the program, not to taking it down.
    assert_eq!(bench.close(), [""; 0], "{bench_of:?}");
    tried
}
