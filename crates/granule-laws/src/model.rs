//! One domain against a brute-force model: a map from IOVA page to physical page and rights. Programs
//! are lists of small steps that mean something in any order, so that a failing one can be shrunk.
//!
//! After each step the table is read at the step's edges, by the core and by the simulator's own
//! walker; now and then, and at the end, a hostile device shows all that it reaches, stale entries
//! included, and that is compared with the model too.
//!
//! | file | what a program does |
//! | --- | --- |
//! | `managed.rs` | maps and unmaps in a domain that hands out addresses; devices join and leave |
//! | `guards.rs` | the same by the DMA API: buffers, lists, reservations, coherent memory, registers |
//! | `unmanaged.rs` | maps and unmaps where it likes, in a domain without an allocator |

mod guards;
mod managed;
mod unmanaged;

use granule::addr::{Access, Attributes, Iova, IovaRange, PhysRange};
use granule::domain::{Domain, DomainError, Mapped, Placement, Translation, UnmapError};
use granule::table::{Fence, Resolved};
use granule_sim::faults::Point;
use granule_sim::machine::Machine;
use granule_sim::platform::SimPlatform;

use crate::bench::{BANK, Bench, Case, RAM, phys};
pub use managed::Model;
pub use unmanaged::run_unmanaged;

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
    /// As [`Domain::map`] with a fence.
    ///
    /// # Errors
    /// As there.
    fn map_fenced_low(
        &self,
        place: &Placement,
        memory: PhysRange,
        access: Access,
        fence: Fence,
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
    /// The step of fences in bytes, 0 if there are none.
    fn fence_unit_low(&self) -> u64;
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

    fn map_fenced_low(
        &self,
        place: &Placement,
        memory: PhysRange,
        access: Access,
        fence: Fence,
    ) -> Result<Mapped, DomainError> {
        // SAFETY: as in `map_low`.
        unsafe { self.map(place, memory, Attributes::memory(access), Some(fence)) }
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

    fn fence_unit_low(&self) -> u64 {
        self.geometry().fence_unit
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
    /// Of the maps, those by the DMA API.
    pub guards: u64,
    /// Unmaps that waited for a flush.
    pub waited: u64,
    /// Devices that joined.
    pub joined: u64,
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
        self.guards += other.guards;
        self.waited += other.waited;
        self.joined += other.joined;
        self.recoveries += other.recoveries;
        self.faults += other.faults;
        self.probes += other.probes;
    }
}

/// Whether an injected fault has fired.
fn fired(bench: &Bench) -> u64 {
    bench.machine.faults().fired()
}

/// Makes an event of a program fail, and has the device look at everything at that event and beside it:
/// what is written and taken back within one call is cached then.
fn arm(bench: &Bench, fail: Option<(Point, u64)>) {
    let Some((point, nth)) = fail else { return };
    let faults = bench.machine.faults();
    faults.fail_nth(point, nth);
    let (hostile, machine, before) =
        (bench.hostile("dev"), bench.machine.clone(), faults.seen(point));
    let granule = bench.case.granule().size();
    faults.watch(move |now| {
        // More often would make a program's work grow with the square of its length.
        let near = (machine.faults().seen(point) - before).abs_diff(nth) <= 1;
        if now == point && near {
            hostile.clone().touch_all();
            let reach = hostile.reach();
            reach.iter().for_each(|one| belongs_to_somebody(&machine, one.phys, granule));
        }
    });
}

/// Whatever is being torn down: a device reaches memory that is allocated, or that programs map. A table
/// page that was freed too early leads anywhere.
fn belongs_to_somebody(machine: &Machine, reached: PhysRange, granule: u64) {
    for offset in (0..reached.len()).step_by(granule as usize) {
        let page = reached.slice(offset, granule.min(reached.len() - offset)).expect("inside");
        let known = pasture().contains_range(&page) || machine.frames().is_live(&page);
        assert!(known, "the device reaches {page}, which is nobody's");
    }
}

/// Runs a program on a fresh bench, with the `fail`-th event made to fail, and closes the bench.
///
/// # Panics
/// If the domain is not what the model says, or something leaks.
pub fn run(bench_of: &Case, steps: &[Step], every: u64, fail: Option<(Point, u64)>) -> Tried {
    let bench = bench_of.bench();
    arm(&bench, fail);
    let mut model = Model::new(&bench, every);
    steps.iter().for_each(|step| model.step(*step));
    model.finish();
    let (mut tried, kept) = (model.tried, model.kept);
    // Some have been tried again within the call, and show nowhere else.
    tried.faults = fired(&bench);
    drop(model);
    close(bench, kept);
    tried
}

/// Takes a bench down, of which some bytes of memory were lost to a fault.
fn close(bench: Bench, kept: u64) {
    // What failed belongs to the program, not to taking it down.
    bench.machine.faults().clear();
    let (machine, case) = (bench.machine.clone(), bench.case.clone());
    let problems = bench.close();
    if kept == 0 {
        assert_eq!(problems, [""; 0], "{case:?}");
    }
    assert_eq!(machine.frames().errors(), [], "{case:?}");
    assert_eq!(machine.frames().live_bytes(), kept, "{case:?}");
}
