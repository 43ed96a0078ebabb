//! A domain that hands out addresses, beside a map of its pages.

use std::collections::BTreeMap;

use granule::addr::{Access, Granule, Iova, IovaRange, PhysAddr, PhysRange};
use granule::dma::Device;
use granule::domain::{Mapped, Placement, Stream, UnitError};
use granule::table::Fence;
use granule_sim::hostile::Allowed;

use super::guards::{Ended, Hold, Waiting};
use super::{Step, Tried, fired, pasture};
use crate::bench::{Bench, phys};
use crate::check::{allow, confined, physical, translation};

/// Something that is mapped.
pub(super) struct Live {
    pub(super) hold: Hold,
    pub(super) range: IovaRange,
    pub(super) lease: IovaRange,
    pub(super) pieces: Vec<PhysRange>,
    pub(super) access: Access,
}

impl Live {
    /// How many mappings of the device it counts as: a reservation and each of its links are one.
    fn counted(&self) -> usize {
        match self.hold {
            Hold::Low(_) => 0,
            Hold::Linked(_) => 1 + self.pieces.len(),
            _ => 1,
        }
    }
}

/// What a page of IOVA means.
#[derive(Clone, Copy, Debug)]
struct Page {
    memory: u64,
    access: Access,
    fence: Fence,
}

/// A domain, and what it ought to be.
pub struct Model<'b> {
    pub(super) bench: &'b Bench,
    pub(super) granule: Granule,
    pub(super) live: Vec<Live>,
    /// What was unmapped and may wait for a flush.
    pub(super) waiting: Vec<Waiting>,
    /// The brute-force map.
    pages: BTreeMap<u64, Page>,
    /// Leases whose invalidation failed: never handed out again.
    pub(super) lost: Vec<IovaRange>,
    /// Bytes of coherent memory that were lost with them.
    pub kept: u64,
    /// What the device may still reach by what caches remember, until the domain has recovered.
    stale: Vec<Allowed>,
    /// Another device of the domain, while it is there.
    mate: Option<Device>,
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
            waiting: Vec::new(),
            pages: BTreeMap::new(),
            lost: Vec::new(),
            kept: 0,
            stale: Vec::new(),
            mate: None,
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
        match step.kind % 32 {
            0..=9 => self.map(step, false),
            10 => self.map(step, true),
            11 => self.map_fenced(step),
            12..=16 => self.guard(step),
            17..=24 => self.unmap(step),
            25 => self.flush(),
            26 => self.confirm(self.bench.domain.poll()),
            27 => self.recover(),
            28 => self.mate(),
            29 => self.take_back(step),
            _ => self.look(step),
        }
        self.waiting.retain(|waiting| !waiting.is_over());
        let (stats, case) = (self.bench.domain.stats(), &self.bench.case);
        assert_eq!(stats.quarantined, self.waiting.len() as u64, "{case:?}: quarantine");
        assert!(!stats.poisoned, "{case:?}: poisoned without a failure that showed, by {step:?}");
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
        let end = |kind| Step { kind, place: 0, shape: 0, memory: 0 };
        while !self.live.is_empty() {
            self.unmap(end(0));
        }
        while self.waiting.iter().any(Waiting::is_pending) {
            self.take_back(end(0));
        }
        // The fault may hit one flush.
        self.flush();
        self.flush();
        self.whole();
        self.probe();
        if self.mate.is_some() {
            self.mate();
        }
        let lost: u64 = self.lost.iter().map(IovaRange::len).sum();
        let stats = self.bench.domain.stats();
        assert_eq!((stats.iova_bytes, stats.quarantined), (lost, 0), "{:?}", self.bench.case);
        assert_eq!(self.bench.dev().stats().live_mappings, 0, "{:?}", self.bench.case);
    }

    /// A call that only a fault can make fail.
    fn confirm(&mut self, result: Result<(), UnitError>) {
        if let Err(error) = result {
            assert!(fired(self.bench) > 0, "{:?}: {error} by itself", self.bench.case);
            self.tried.faults += 1;
            self.failed(Vec::new());
        }
    }

    fn flush(&mut self) {
        let result = self.bench.domain.flush();
        let all = result.is_err() || self.waiting.iter().all(Waiting::is_over);
        assert!(all, "{:?}: something waits after a flush", self.bench.case);
        self.confirm(result);
    }

    /// Recovering a domain that is well changes nothing, but flushes.
    fn recover(&mut self) {
        match self.bench.domain.recover() {
            Ok(()) => self.recovered(),
            Err(error) => {
                assert!(fired(self.bench) > 0, "{:?}: {error} by itself", self.bench.case);
                self.tried.faults += 1;
                self.failed(Vec::new());
            }
        }
    }

    fn recovered(&mut self) {
        self.tried.recoveries += 1;
        self.stale.clear();
        assert!(!self.bench.domain.stats().poisoned);
        let over = self.waiting.iter().all(Waiting::is_over);
        assert!(over, "{:?}: something waits after a recovery", self.bench.case);
    }

    /// The other device joins, or leaves.
    fn mate(&mut self) {
        let (bench, before) = (self.bench, fired(self.bench));
        match self.mate.take() {
            Some(mate) => {
                mate.detach().map_err(|(_, error)| error).expect("nothing is mapped for it");
            }
            None => {
                let spec = bench.case.spec("mate");
                match bench.attach(&bench.domain, spec, &[Stream::new(1)]) {
                    Ok(mate) => self.mate = Some(mate),
                    Err(error) => assert!(fired(bench) > before, "{:?}: {error}", bench.case),
                }
                self.tried.joined += 1;
            }
        }
        if fired(bench) > before {
            self.tried.faults += 1;
            self.failed(Vec::new());
        }
        if self.mate.is_none() {
            confined(bench, "mate", &[], "after it has left");
        }
    }

    /// Pieces of memory for a step: one, several that adjoin in IOVA, or several with gaps. Some are as
    /// long as a table has entries.
    pub(super) fn pieces(&self, step: Step) -> (u64, Vec<(u64, PhysRange)>) {
        let g = self.granule.size();
        let table = if step.shape & 0x100 == 0 { 130 } else { (g / 8).min(2048) };
        let pages = [1, 1, 2, 3, 5, 16, 40, table][usize::from(step.shape & 7)];
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
        let before = fired(self.bench);
        match self.bench.domain.map_low(&place, &pieces, access) {
            Ok(mapped) => self.mapped(&place, mapped, &pieces, access, Fence::default()),
            Err(error) => {
                let memory = pieces.iter().map(|(_, piece)| *piece).collect();
                self.refused(&place, &error, before, memory);
            }
        }
    }

    /// One piece, with parts of its first and last granule closed, where the format can say that.
    fn map_fenced(&mut self, step: Step) {
        let unit = self.bench.domain.fence_unit_low();
        if unit == 0 {
            return self.map(step, false);
        }
        let (_, pieces) = self.pieces(Step { shape: step.shape & !0x18, ..step });
        let (_, memory) = pieces[0];
        let place = self.placement(step, memory.len(), false);
        let parts = self.granule.size() / unit / 2;
        let part = |bits: u16| u64::from(bits) % parts * unit;
        let fence = Fence { front: part(step.memory), back: part(step.place) };
        let before = fired(self.bench);
        match self.bench.domain.map_fenced_low(&place, memory, Access::all(), fence) {
            Ok(mapped) => self.mapped(&place, mapped, &[(0, memory)], Access::all(), fence),
            Err(error) => self.refused(&place, &error, before, vec![memory]),
        }
    }

    fn mapped(
        &mut self,
        place: &Placement,
        mapped: Mapped,
        pieces: &[(u64, PhysRange)],
        access: Access,
        fence: Fence,
    ) {
        let (g, case) = (self.granule.size(), &self.bench.case);
        let range = mapped.range;
        assert_eq!(range.len(), place.size, "{case:?}");
        assert!(place.window.contains_range(&mapped.lease));
        assert!(mapped.lease.contains_range(&range));
        assert!(place.at.is_none_or(|at| at == range.start()), "{case:?}: {range} for {place:?}");
        let align = if place.at.is_some() { g } else { place.align.max(g) };
        assert_eq!(range.start().raw() % align, 0, "{case:?}: {range} for {place:?}");
        let guard = (mapped.lease.len() - range.len()) / 2;
        assert_eq!(guard > 0, place.guard, "{case:?}: guards of {range} in {}", mapped.lease);
        let memory = pieces.iter().map(|(_, piece)| *piece).collect();
        let hold = Hold::Low(mapped);
        self.spread(range, pieces, access, fence);
        self.enter(Live { hold, range, lease: mapped.lease, pieces: memory, access });
    }

    /// Writes what was mapped into the map.
    pub(super) fn spread(
        &mut self,
        range: IovaRange,
        pieces: &[(u64, PhysRange)],
        access: Access,
        fence: Fence,
    ) {
        let g = self.granule.size();
        let (first, last) = (range.start().raw(), range.last().raw() + 1 - g);
        for (offset, piece) in pieces {
            for page in 0..piece.len() / g {
                let at = first + offset + page * g;
                let front = if at == first { fence.front } else { 0 };
                let back = if at == last { fence.back } else { 0 };
                let memory = piece.start().raw() + page * g;
                self.pages.insert(at, Page { memory, access, fence: Fence { front, back } });
            }
        }
    }

    /// Notes what was mapped: nobody else has any of it.
    pub(super) fn enter(&mut self, live: Live) {
        // Where space was short, what waited was flushed.
        self.waiting.retain(|waiting| !waiting.is_over());
        assert!(live.range.start().raw() != 0);
        let (lease, range) = (live.lease, live.range);
        let free = self.taken().all(|other| !other.overlaps(&lease));
        assert!(free, "{:?}: {lease} was handed out twice", self.bench.case);
        self.live.push(live);
        self.tried.maps += 1;
        self.edges(range);
    }

    /// What is leased, waits or is lost.
    fn taken(&self) -> impl Iterator<Item = IovaRange> + '_ {
        let live = self.live.iter().map(|live| live.lease);
        let waiting = self.waiting.iter().map(|waiting| waiting.lease);
        live.chain(waiting).chain(self.lost.iter().copied())
    }

    /// A map was refused: because of a fault since `before`, or because there is no place.
    pub(super) fn refused(
        &mut self,
        place: &Placement,
        error: &dyn std::fmt::Display,
        before: u64,
        memory: Vec<PhysRange>,
    ) {
        if fired(self.bench) > before {
            self.tried.faults += 1;
            self.failed(memory);
            return self.probe();
        }
        self.waiting.retain(|waiting| !waiting.is_over());
        self.tried.refused += 1;
        let why = self.reason(place);
        assert!(why.is_some(), "{:?}: {place:?} is free, but: {error}", self.bench.case);
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

    /// After an injected fault: what the domain says it has lost is lost, and what the caches may hold
    /// is allowed until it has recovered.
    pub(super) fn failed(&mut self, memory: Vec<PhysRange>) {
        if self.bench.domain.stats().poisoned {
            // For as long as the invalidation is outstanding, not a moment longer.
            self.stale.extend(allow(&memory, Access::all()));
            self.probe();
            self.bench.domain.recover().expect("hardware that answers again");
            self.recovered();
        }
    }

    fn unmap(&mut self, step: Step) {
        if self.live.is_empty() {
            return;
        }
        let live = self.live.swap_remove(usize::from(step.place) % self.live.len());
        let Live { hold, range, lease, pieces, access } = live;
        let (first, last) = (range.start().raw(), range.last().raw());
        let behind = self.pages.split_off(&first);
        self.pages.extend(behind.into_iter().filter(|(at, _)| *at > last));
        self.tried.unmaps += 1;
        let before = self.bench.domain.stats();
        let coherent = hold.own_memory();
        match self.end(hold, step) {
            Ended::Failed => {
                assert!(fired(self.bench) > 0, "{:?}: failed by itself", self.bench.case);
                self.tried.faults += 1;
                self.lost.push(lease);
                self.kept += coherent;
            }
            Ended::Waits(parts) => {
                self.tried.waited += 1;
                let waiting = Waiting { lease, pieces: pieces.clone(), access, parts };
                self.waiting.push(waiting);
            }
            Ended::Done => {
                let leaked = self.bench.domain.stats().leaked_bytes;
                assert_eq!(leaked, before.leaked_bytes, "{:?}", self.bench.case);
            }
        }
        self.waiting.retain(|waiting| !waiting.is_over());
        self.failed(pieces);
        self.edges(range);
    }

    /// Reads what can be read, and compares.
    fn look(&mut self, step: Step) {
        drop(self.bench.dev().report(None));
        let count: usize = self.live.iter().map(Live::counted).sum();
        assert_eq!(self.bench.dev().stats().live_mappings, count as u64);
        if self.live.is_empty() {
            return;
        }
        let index = usize::from(step.place) % self.live.len();
        let live = &mut self.live[index];
        let range = live.range;
        let sizes = self.bench.domain.page_sizes_used(range);
        let bytes: u64 = sizes.iter().map(|(size, count)| size * count).sum();
        let mapped: u64 = live.pieces.iter().map(PhysRange::len).sum();
        assert!(bytes >= mapped, "{:?}: {sizes:?} for {range}", self.bench.case);
        live.hold.sync(self.bench, &live.pieces);
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
        let memory = want.map(|page| page.memory + inside);
        assert_eq!(found.map(|found| found.phys.raw()), memory, "{case:?}: at {at:#x}");
        let walked = physical(self.bench, 0, 0, at + inside);
        assert_eq!(walked.map(PhysAddr::raw), memory, "{case:?}: the walker at {at:#x}");
        let (Some(found), Some(page)) = (found, want) else { return };
        assert!(found.attributes.access.contains(page.access), "{case:?}: rights at {at:#x}");
        if self.bench.domain.fence_unit_low() != 0 {
            let open = (page.fence.front, inside - page.fence.back);
            let walked = translation(self.bench, 0, 0, at).and_then(|found| found.fence);
            let whole = (0, inside);
            assert_eq!(walked.unwrap_or(whole), open, "{case:?}: the fence at {at:#x}");
        }
    }

    /// Every page is what the model says, and there are no others.
    fn whole(&self) {
        self.pages.keys().for_each(|at| self.page(*at));
        let all = self.bench.domain.aperture_low();
        let mapped = self.bench.domain.mapped_low(all);
        let known = self.pages.len() as u64 * self.granule.size();
        assert_eq!(mapped, known, "{:?}: bytes mapped", self.bench.case);
    }

    /// The hostile devices fill their caches and show what they reach.
    fn probe(&mut self) {
        self.tried.probes += 1;
        let live = self.live.iter().flat_map(|live| allow(&live.pieces, live.access));
        let waiting = self.waiting.iter().filter(|waiting| !waiting.is_over());
        let waiting = waiting.flat_map(|waiting| allow(&waiting.pieces, waiting.access));
        let stale = self.stale.iter().copied();
        let allowed: Vec<Allowed> = live.chain(waiting).chain(stale).collect();
        // A device that could not be taken off is there until the domain has recovered.
        let joined = self.mate.is_some() || self.bench.domain.stats().poisoned;
        for (name, there) in [("dev", true), ("mate", joined)] {
            let mut hostile = self.bench.hostile(name);
            hostile.touch_all();
            hostile.probe(8);
            let allowed = if there { &allowed[..] } else { &[] };
            confined(self.bench, name, allowed, "after a step");
        }
    }
}
