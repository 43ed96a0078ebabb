//! A domain whose owner places everything, beside a map of its pages: what is free is mapped, what is
//! mapped is unmapped unless that cuts a large page, everything else is refused and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use granule::addr::{Access, Attributes, Iova, IovaRange, PhysAddr, PhysRange};
use granule::domain::{
    DomainError, Mirror, Paged, Stream, Translation, TranslationError, UnitError, Unmanaged,
    UnmanagedConfig,
};
use granule::table::{Format, FormatVisitor, Resolved};
use granule_sim::faults::Point;
use granule_sim::hostile::Allowed;
use granule_sim::platform::SimPlatform;

use super::{Step, Tried, arm, close, fired, pasture};
use crate::bench::{Bench, Case, Span, phys};
use crate::check::{allow, confined, translation};

/// Pages of IOVA space that programs use, at both ends of what the IOMMU translates.
const PAGES: u64 = 1024;

/// An unmanaged domain of any format.
trait AnyUnmanaged {
    fn map(&self, at: Iova, memory: PhysRange, access: Access) -> Result<(), DomainError>;
    fn unmap(&self, range: IovaRange) -> Result<(), DomainError>;
    fn resolve(&self, at: Iova) -> Option<Resolved>;
    fn aperture(&self) -> IovaRange;
    fn mapped(&self, range: IovaRange) -> u64;
    fn attach(&self, stream: Stream) -> Result<(), TranslationError>;
    fn detach(&self, stream: Stream) -> Result<(), UnitError>;
    fn recover(&self) -> Result<(), DomainError>;
    fn leaked(&self) -> u64;
}

impl<T: Translation> AnyUnmanaged for Unmanaged<SimPlatform, T> {
    fn map(&self, at: Iova, memory: PhysRange, access: Access) -> Result<(), DomainError> {
        // SAFETY: the memory is reserved for this (see `case`), and nobody lives there.
        unsafe { Unmanaged::map(self, at, memory, Attributes::memory(access)) }
    }
    fn unmap(&self, range: IovaRange) -> Result<(), DomainError> {
        // SAFETY: the model is the only owner.
        unsafe { Unmanaged::unmap(self, range) }
    }
    fn resolve(&self, at: Iova) -> Option<Resolved> {
        Unmanaged::resolve(self, at)
    }
    fn aperture(&self) -> IovaRange {
        self.geometry().aperture
    }
    fn mapped(&self, range: IovaRange) -> u64 {
        let mut sum = 0;
        self.translation().for_each_page(range, &mut |_, size| sum += size);
        sum
    }
    fn attach(&self, stream: Stream) -> Result<(), TranslationError> {
        Unmanaged::attach(self, stream)
    }
    fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        Unmanaged::detach(self, stream)
    }
    fn recover(&self) -> Result<(), DomainError> {
        Unmanaged::recover(self)
    }
    fn leaked(&self) -> u64 {
        self.leaked_bytes()
    }
}

struct Build<'b>(&'b Bench);

impl FormatVisitor for Build<'_> {
    type Output = Arc<dyn AnyUnmanaged>;

    fn visit<F: Format>(self) -> Self::Output {
        let Bench { machine, iommus, case, .. } = self.0;
        let (platform, config) =
            (machine.platform(), UnmanagedConfig { allow_large_granule: true });
        let paged = |units| Paged::<F, _, _>::new(platform, units).expect("a table");
        match case.span {
            Span::One => Unmanaged::new(platform, paged(&iommus[..1]), config).expect("a domain"),
            Span::Paged => Unmanaged::new(platform, paged(iommus), config).expect("a domain"),
            Span::Mirror => {
                let sides = Mirror::new(iommus.chunks(1).map(paged).collect()).expect("sides");
                Unmanaged::new(platform, sides, config).expect("a domain")
            }
        }
    }
}

struct Model<'b> {
    bench: &'b Bench,
    domain: Arc<dyn AnyUnmanaged>,
    granule: u64,
    /// The brute-force map.
    pages: BTreeMap<u64, (u64, Access)>,
    /// What an unmap that failed may have left in caches.
    stale: Vec<Allowed>,
    /// Whether `dev` and `mate` are attached.
    attached: [bool; 2],
    tried: Tried,
}

/// As [`run`](super::run), for an unmanaged domain.
///
/// # Panics
/// If the domain is not what the model says, or something leaks.
pub fn run_unmanaged(of: &Case, steps: &[Step], every: u64, fail: Option<(Point, u64)>) -> Tried {
    let bench = of.blank();
    let domain = of.format.visit(Build(&bench));
    let mut model = Model {
        granule: of.granule().size(),
        pages: BTreeMap::new(),
        stale: Vec::new(),
        attached: [false; 2],
        tried: Tried::default(),
        domain,
        bench: &bench,
    };
    model.attach(0);
    arm(&bench, fail);
    for step in steps {
        model.step(*step);
        if model.tried.steps % every == 0 {
            model.probe();
        }
    }
    model.probe();
    model.whole();
    let mut tried = model.tried;
    tried.faults = fired(&bench);
    bench.machine.faults().clear();
    drop(model);
    close(bench, 0);
    tried
}

impl Model<'_> {
    fn step(&mut self, step: Step) {
        self.tried.steps += 1;
        match step.kind % 16 {
            0..=6 => self.map(step),
            7..=10 => self.unmap_mapped(step),
            11 => self.unmap(self.range(step)),
            12 => self.misaligned(step),
            13 => self.attach(usize::from(step.place % 2)),
            14 => self.detach(usize::from(step.place % 2)),
            _ => self.recover(),
        }
    }

    fn streams(&self, device: usize) -> Vec<Stream> {
        match device {
            0 => self.bench.case.streams().to_vec(),
            _ => vec![Stream::new(1)],
        }
    }

    fn range(&self, step: Step) -> IovaRange {
        let pages = [1, 1, 2, 4, 7, 16, 32, 64][usize::from(step.shape & 7)];
        let page = u64::from(step.place) % PAGES;
        let aperture = self.domain.aperture();
        // The last ones may pass the end, which is refused.
        let first = match page < PAGES / 2 {
            true => aperture.start().raw() + page * self.granule,
            false => aperture.last().raw() + 1 - (PAGES - page) * self.granule,
        };
        IovaRange::new(Iova::new(first), pages * self.granule).expect("legal")
    }

    fn every(&self, range: IovaRange) -> impl Iterator<Item = u64> + use<> {
        (range.start().raw()..=range.last().raw()).step_by(self.granule as usize)
    }

    fn map(&mut self, step: Step) {
        let range = self.range(step);
        // Some as far from a large page's start in memory as in IOVA space.
        let page = match step.shape & 8 == 0 {
            true => u64::from(step.memory) * 16,
            false => u64::from(step.place) % PAGES + 1024 * u64::from(step.memory % 4),
        };
        let total = pasture().len() / self.granule;
        let page = page.min(total - range.len() / self.granule);
        let memory = phys(pasture().start().raw() + page * self.granule, range.len());
        let access = [Access::READ, Access::WRITE, Access::all()][usize::from(step.memory % 3)];
        let before = fired(self.bench);
        let result = self.domain.map(range.start(), memory, access);
        let inside = self.domain.aperture().contains_range(&range);
        let possible = inside && self.every(range).all(|at| !self.pages.contains_key(&at));
        match result {
            Ok(()) => {
                assert!(possible, "{:?}: {range} was mapped over something", self.bench.case);
                for (at, offset) in self.every(range).zip((0..).step_by(self.granule as usize)) {
                    self.pages.insert(at, (memory.start().raw() + offset, access));
                }
                self.tried.maps += 1;
            }
            Err(_) if fired(self.bench) > before => self.failed(&[memory]),
            Err(error) => {
                self.tried.refused += 1;
                assert!(!possible, "{:?}: {range} is free, but: {error}", self.bench.case);
            }
        }
        self.edges(range);
    }

    /// Unmaps a part of what is mapped, without holes.
    fn unmap_mapped(&mut self, step: Step) {
        let from = self.range(Step { shape: 0, ..step }).start().raw();
        let first = self.pages.range(from..).next().or_else(|| self.pages.iter().next());
        let Some((first, _)) = first else { return };
        let most = [1, 2, 4, 7, 16, 32, 64, 64][usize::from(step.shape & 7)];
        let mut end = *first;
        while self.pages.contains_key(&end) && (end - first) / self.granule < most {
            end += self.granule;
        }
        self.unmap(IovaRange::new(Iova::new(*first), end - first).expect("legal"));
    }

    /// Whether an end of the range lies inside a page.
    fn cuts(&self, range: IovaRange) -> bool {
        let page = |at| {
            let size = self.domain.resolve(Iova::new(at)).map_or(1, |found| found.page_size);
            (at & !(size - 1), size)
        };
        let (first, size) = (range.start().raw(), range.last().raw() + 1 - self.granule);
        let (last, last_size) = page(size);
        page(first).0 != first || last + last_size != range.last().raw() + 1
    }

    fn unmap(&mut self, range: IovaRange) {
        let (before, cuts) = (fired(self.bench), self.cuts(range));
        let result = self.domain.unmap(range);
        let whole = self.every(range).all(|at| self.pages.contains_key(&at));
        let faulty = fired(self.bench) > before;
        if result.is_ok() || (faulty && whole) {
            assert!(whole, "{:?}: {range} was not mapped as a whole", self.bench.case);
            let gone = self.every(range).filter_map(|at| self.pages.remove(&at));
            let gone: Vec<_> = gone.map(|(memory, _)| phys(memory, self.granule)).collect();
            self.tried.unmaps += 1;
            if faulty {
                self.failed(&gone);
            }
        } else {
            self.tried.refused += 1;
            assert!(!whole || cuts, "{:?}: {range}: {:?}", self.bench.case, result);
        }
        self.edges(range);
    }

    /// Half a granule is refused, wherever it is asked for.
    fn misaligned(&mut self, step: Step) {
        let range = self.range(step);
        let half = self.granule / 2;
        let (at, memory) = (range.start().raw(), pasture().start().raw());
        for (at, memory, len) in [
            (at + half, memory, self.granule),
            (at, memory + half, self.granule),
            (at, memory, self.granule + half),
        ] {
            let refused = self.domain.map(Iova::new(at), phys(memory, len), Access::all());
            let refused = refused.expect_err("half a granule");
            assert!(matches!(refused, DomainError::Misaligned { .. }), "{refused}");
        }
        let range = IovaRange::new(Iova::new(at), half).expect("legal");
        let refused = self.domain.unmap(range).expect_err("half a granule");
        assert!(matches!(refused, DomainError::Misaligned { .. }), "{refused}");
        self.tried.refused += 4;
    }

    fn attach(&mut self, device: usize) {
        if self.attached[device] {
            return;
        }
        let before = fired(self.bench);
        self.attached[device] = true;
        for stream in self.streams(device) {
            if let Err(error) = self.domain.attach(stream) {
                assert!(fired(self.bench) > before, "{:?}: {error}", self.bench.case);
                self.tried.faults += 1;
                self.attached[device] = false;
            }
        }
        if !self.attached[device] {
            // What was attached before the fault is taken off again.
            for stream in self.streams(device) {
                self.domain.detach(stream).expect("hardware that answers again");
            }
            self.recover();
        }
        self.tried.joined += 1;
        self.probe();
    }

    fn detach(&mut self, device: usize) {
        if !std::mem::take(&mut self.attached[device]) {
            return;
        }
        for stream in self.streams(device) {
            if self.domain.detach(stream).is_err() {
                assert!(fired(self.bench) > 0);
                self.tried.faults += 1;
                self.domain.detach(stream).expect("hardware that answers again");
                // Until then the domain keeps its tables, for a device that may still walk them.
                self.recover();
            }
        }
        self.probe();
    }

    fn recover(&mut self) {
        if let Err(error) = self.domain.recover() {
            assert!(fired(self.bench) > 0, "{:?}: {error} by itself", self.bench.case);
            self.tried.faults += 1;
            self.domain.recover().expect("hardware that answers again");
        }
        self.tried.recoveries += 1;
        self.stale.clear();
        assert_eq!(self.domain.leaked(), 0);
    }

    /// After a fault: until it has recovered, a domain that lost an invalidation maps nothing.
    fn failed(&mut self, memory: &[PhysRange]) {
        self.tried.faults += 1;
        if self.domain.leaked() > 0 {
            self.stale = allow(memory, Access::all());
            self.probe();
            let (at, memory) = (self.domain.aperture().start(), pasture().start().raw());
            let refused = self.domain.map(at, phys(memory, self.granule), Access::all());
            let refused = refused.expect_err("it is poisoned");
            assert!(matches!(refused, DomainError::Poisoned), "{refused}");
            self.recover();
        }
        self.probe();
    }

    fn edges(&self, range: IovaRange) {
        let (first, last) = (range.start().raw(), range.last().raw() + 1 - self.granule);
        let beside = [first.saturating_sub(self.granule), last.saturating_add(self.granule)];
        [first, last].into_iter().chain(beside).for_each(|at| self.page(at));
    }

    fn page(&self, at: u64) {
        let (case, inside) = (&self.bench.case, self.granule - 1);
        let want = self.pages.get(&at).map(|(memory, _)| memory + inside);
        let found = self.domain.resolve(Iova::new(at + inside));
        assert_eq!(found.map(|found| found.phys.raw()), want, "{case:?}: at {at:#x}");
        if let (Some(found), Some((_, access))) = (found, self.pages.get(&at)) {
            assert!(found.attributes.access.contains(*access), "{case:?}: rights at {at:#x}");
        }
        if self.attached[0] {
            let walked = translation(self.bench, 0, 0, at + inside);
            let phys = walked.map(|walked| walked.phys);
            assert_eq!(phys.map(PhysAddr::raw), want, "{case:?}: the walker at {at:#x}");
        }
    }

    /// Every page is what the model says, and there are no others.
    fn whole(&self) {
        self.pages.keys().for_each(|at| self.page(*at));
        let mapped = self.domain.mapped(self.domain.aperture());
        assert_eq!(mapped, self.pages.len() as u64 * self.granule, "{:?}", self.bench.case);
    }

    fn probe(&mut self) {
        self.tried.probes += 1;
        let live = self.pages.values();
        let live = live.flat_map(|(memory, access)| allow(&[phys(*memory, self.granule)], *access));
        let allowed: Vec<Allowed> = live.chain(self.stale.iter().copied()).collect();
        for (name, there) in ["dev", "mate"].into_iter().zip(self.attached) {
            let mut hostile = self.bench.hostile(name);
            hostile.touch_all();
            hostile.probe(8);
            let allowed = if there { &allowed[..] } else { &[] };
            confined(self.bench, name, allowed, "after a step");
        }
    }
}
