//! What the DMA API maps, in memory that the model chose: the model knows when each buffer comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use granule::addr::{Access, Direction, DmaAddr, Iova, IovaRange, PhysRange};
use granule::dma::{
    Coherent, Device, DmaError, ListMapping, MapFlags, Mapping, Pending, Reservation,
    ResourceMapping, ScatterList,
};
use granule::domain::{Mapped, Placement};
use granule::table::Fence;

use super::managed::{Live, Model};
use super::{Step, fired};
use crate::bench::Bench;
use crate::buffer::SimBuffer;

/// Whether a buffer is its owner's again.
pub(super) type Back = Arc<AtomicBool>;

/// What holds a mapping.
pub(super) enum Hold {
    Low(Mapped),
    Map(Mapping<Device, SimBuffer>, Back),
    List(ListMapping<Device, SimBuffer>, Vec<Back>),
    Linked(Reservation<Device, SimBuffer>),
    Coherent(Coherent<Device>),
    Resource(ResourceMapping<Device>),
}

/// How a mapping ended.
pub(super) enum Ended {
    Done,
    /// The invalidation failed.
    Failed,
    Waits(Parts),
}

/// What waits for a flush.
pub(super) enum Parts {
    /// Buffers that come back by themselves.
    Dropped(Vec<Back>),
    Pending(Pending<Device, SimBuffer>),
}

/// An unmap that waits for a flush: until then the device may reach the memory, and nobody else has
/// the addresses.
pub(super) struct Waiting {
    pub(super) lease: IovaRange,
    pub(super) pieces: Vec<PhysRange>,
    pub(super) access: Access,
    pub(super) parts: Parts,
}

impl Waiting {
    pub(super) fn is_over(&self) -> bool {
        match &self.parts {
            Parts::Dropped(backs) => backs.iter().all(|back| back.load(Ordering::Acquire)),
            Parts::Pending(pending) => pending.is_ready(),
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(self.parts, Parts::Pending(_))
    }
}

impl Hold {
    /// Bytes of memory that it allocated.
    pub(super) fn own_memory(&self) -> u64 {
        match self {
            Self::Coherent(memory) => memory.scatter_list().iter().map(PhysRange::len).sum(),
            _ => 0,
        }
    }

    /// The CPU sees what lies in the memory.
    pub(super) fn sync(&mut self, bench: &Bench, pieces: &[PhysRange]) {
        let mut seen = [0];
        match self {
            Self::Map(mapping, _) => {
                let turn = mapping.sync_for_cpu(0..1).expect("inside");
                turn.read(0, &mut seen).expect("inside");
            }
            Self::List(mapping, _) => {
                mapping.sync_for_cpu(|turn| turn.read(0, 0, &mut seen)).expect("inside");
            }
            Self::Coherent(memory) => memory.read(0, &mut seen).expect("inside"),
            _ => return,
        }
        let mut expected = [1];
        bench.machine.ram().read(pieces[0].start(), &mut expected).expect("RAM");
        assert_eq!(seen, expected);
    }
}

impl Model<'_> {
    /// Maps something by the DMA API.
    pub(super) fn guard(&mut self, step: Step) {
        let before = self.tried.maps;
        match step.kind % 8 {
            4 | 5 => self.guard_buffers(step),
            6 => self.guard_reservation(step),
            7 => self.guard_coherent(step),
            _ => self.guard_registers(step),
        }
        self.tried.guards += self.tried.maps - before;
    }

    /// Runs of memory without gaps, at most 40 pages.
    fn runs(&self, step: Step) -> Vec<PhysRange> {
        let shape = if step.shape & 7 == 7 { step.shape ^ 1 } else { step.shape };
        let (_, pieces) = self.pieces(Step { shape: shape & !32, ..step });
        pieces.into_iter().map(|(_, piece)| piece).collect()
    }

    fn lend(&self, ranges: &[PhysRange]) -> (SimBuffer, Back) {
        let back = Back::default();
        (SimBuffer::lent(&self.bench.machine, ranges, back.clone()), back)
    }

    fn anywhere(&self, size: u64) -> Placement {
        let window = self.bench.domain.aperture_low();
        Placement { size, align: 1, window, guard: false, at: None }
    }

    fn direction(step: Step) -> Direction {
        let all = [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional];
        all[usize::from(step.memory % 3)]
    }

    /// Enters runs of memory that were mapped one behind the other, in a lease of their own.
    fn entered(&mut self, hold: Hold, at: DmaAddr, lease: u64, runs: &[PhysRange], access: Access) {
        let len = runs.iter().map(PhysRange::len).sum();
        let start = Iova::new(at.raw());
        let range = IovaRange::new(start, len).expect("legal");
        let lease = IovaRange::new(start, lease.max(len)).expect("legal");
        let offsets = runs.iter().scan(0, |at, run| {
            *at += run.len();
            Some((*at - run.len(), *run))
        });
        let pieces: Vec<_> = offsets.collect();
        self.spread(range, &pieces, access, Fence::default());
        self.enter(Live { hold, range, lease, pieces: runs.to_vec(), access });
    }

    /// A buffer of several runs, or a list of buffers of one.
    fn guard_buffers(&mut self, step: Step) {
        let (runs, direction, before) = (self.runs(step), Self::direction(step), self.fired());
        let total = runs.iter().map(PhysRange::len).sum();
        let (device, flags) = (self.bench.dev().clone(), MapFlags::empty());
        let error = if step.kind % 8 == 4 {
            let (buffer, back) = self.lend(&runs);
            match Mapping::new(device, buffer, direction, flags) {
                Ok(mapping) => {
                    assert!(!mapping.is_bounced());
                    let at = mapping.address();
                    let hold = Hold::Map(mapping, back);
                    return self.entered(hold, at, total, &runs, direction.access());
                }
                Err(refused) => (refused.buffer.is_some(), refused.error),
            }
        } else {
            let lent = runs.iter().map(|run| self.lend(&[*run]));
            let (buffers, backs): (Vec<_>, Vec<_>) = lent.unzip();
            match ListMapping::new(device, ScatterList::new(buffers), direction, flags) {
                Ok(mapping) => {
                    let sum: u64 = mapping.segments().iter().map(|segment| segment.len).sum();
                    assert_eq!((sum, mapping.bounced()), (total, 0));
                    let at = mapping.segments()[0].address;
                    let hold = Hold::List(mapping, backs);
                    return self.entered(hold, at, total, &runs, direction.access());
                }
                Err(refused) => (refused.buffer.is_some(), refused.error),
            }
        };
        self.guard_refused(total, error, before, runs);
    }

    fn guard_refused(
        &mut self,
        size: u64,
        (came_back, error): (bool, DmaError),
        before: u64,
        memory: Vec<PhysRange>,
    ) {
        // One fault at a time: the map could be undone.
        assert!(came_back && !error.is_stale(), "{:?}: {error}", self.bench.case);
        self.refused(&self.anywhere(size), &error, before, memory);
    }

    fn fired(&self) -> u64 {
        fired(self.bench)
    }

    /// Space for all runs, into which they are linked one by one.
    fn guard_reservation(&mut self, step: Step) {
        let (runs, direction) = (self.runs(step), Self::direction(step));
        let total: u64 = runs.iter().map(PhysRange::len).sum();
        // It may begin anywhere in a granule.
        let lease = total + self.granule.size();
        let before = self.fired();
        let mut reserved = match Reservation::new(self.bench.dev().clone(), total) {
            Ok(reserved) => reserved,
            Err(error) => return self.guard_refused(lease, (true, error), before, runs),
        };
        let mut linked = Vec::new();
        for run in &runs {
            let (buffer, _) = self.lend(&[*run]);
            match reserved.link(buffer, direction) {
                Ok(()) => linked.push(*run),
                Err(refused) => {
                    assert!(self.fired() > before, "{:?}: {}", self.bench.case, refused.error);
                    assert!(refused.buffer.is_some());
                    self.tried.faults += 1;
                    self.failed(vec![*run]);
                    break;
                }
            }
        }
        match reserved.address() {
            Some(at) => {
                assert_eq!(reserved.sync().ok(), Some(at));
                let hold = Hold::Linked(reserved);
                self.entered(hold, at, lease, &linked, direction.access());
            }
            None => drop(reserved),
        }
    }

    /// Memory of the domain's own.
    fn guard_coherent(&mut self, step: Step) {
        let g = self.granule.size();
        let (len, before) = (1 + u64::from(step.shape) % (3 * g), self.fired());
        match Coherent::new(self.bench.dev().clone(), len, MapFlags::empty()) {
            Ok(memory) => {
                let runs = memory.scatter_list().to_vec();
                let at = memory.address();
                self.entered(Hold::Coherent(memory), at, 0, &runs, Access::all());
            }
            Err(error) => {
                let unit = self.bench.case.unit();
                let size = unit.round_up(len).expect("small");
                self.guard_refused(size, (true, error), before, Vec::new());
            }
        }
    }

    /// Registers of another device. The model keeps them where memory would be, which is as good.
    fn guard_registers(&mut self, step: Step) {
        let (run, before) = (self.runs(step)[0], self.fired());
        let device = self.bench.dev().clone();
        // SAFETY: nobody lives there (see `case`).
        match unsafe { ResourceMapping::new(device, run, Access::all()) } {
            Ok(mapping) => {
                let at = mapping.address();
                self.entered(Hold::Resource(mapping), at, 0, &[run], Access::all());
            }
            Err(error) => self.guard_refused(run.len(), (true, error), before, vec![run]),
        }
    }

    /// Ends a mapping in one of the ways that it has.
    pub(super) fn end(&mut self, hold: Hold, step: Step) -> Ended {
        let leaked = || self.bench.domain.stats().leaked_bytes;
        let before = leaked();
        let drops = step.shape & 1 != 0;
        let waits = |parts| if leaked() > before { Ended::Failed } else { Ended::Waits(parts) };
        let confirmed = match hold {
            Hold::Low(mapped) => self.bench.domain.unmap_low(&mapped).is_ok(),
            Hold::Map(mapping, _) if step.shape & 3 == 3 => match mapping.unmap_later() {
                Ok(pending) => return waits(Parts::Pending(pending)),
                Err(_) => false,
            },
            Hold::Map(mapping, back) if drops => {
                drop(mapping);
                return waits(Parts::Dropped(vec![back]));
            }
            Hold::List(mapping, backs) if drops => {
                drop(mapping);
                return waits(Parts::Dropped(backs));
            }
            Hold::Map(mapping, _) => mapping.unmap().is_ok(),
            Hold::List(mapping, _) => mapping.unmap().is_ok(),
            Hold::Linked(reserved) if drops => {
                drop(reserved);
                leaked() == before
            }
            // Where only the space itself could not be given back, the buffers are there.
            Hold::Linked(reserved) => reserved.unmap().is_ok() && leaked() == before,
            Hold::Coherent(memory) if drops => {
                drop(memory);
                leaked() == before
            }
            Hold::Coherent(memory) => memory.free().is_ok(),
            Hold::Resource(mapping) if drops => {
                drop(mapping);
                leaked() == before
            }
            Hold::Resource(mapping) => mapping.unmap().is_ok(),
        };
        if confirmed { Ended::Done } else { Ended::Failed }
    }

    /// Takes a buffer back that waits, after a flush if there was none.
    pub(super) fn take_back(&mut self, step: Step) {
        let pending: Vec<usize> =
            (0..self.waiting.len()).filter(|index| self.waiting[*index].is_pending()).collect();
        let Some(index) = pending.get(usize::from(step.place) % pending.len().max(1)) else {
            return;
        };
        let Waiting { lease, pieces, access, parts } = self.waiting.swap_remove(*index);
        let Parts::Pending(pending) = parts else { return };
        if pending.finish().is_err() {
            assert!(self.fired() > 0, "{:?}: failed by itself", self.bench.case);
            // The buffer is lost; the space comes back with the next flush that succeeds.
            let parts = Parts::Dropped(vec![Back::default()]);
            self.waiting.push(Waiting { lease, pieces, access, parts });
            self.tried.faults += 1;
            self.bench.domain.recover().expect("hardware that answers again");
            self.waiting.pop();
        }
    }
}
