//! The world of `devices.rs`: a board, two devices with limits, and all that is mapped for them.

mod live;
mod make;

use std::sync::Arc;

use granule::addr::{Access, DmaAddr, DmaRange, Granule, PhysAddr};
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{BusWindow, Device, DeviceSpec};
use granule::domain::{DomainConfig, InvalidationPolicy, Stream};
use granule::table::{Dart1, Format, Lpae4k, Lpae64k};
use granule_checks::{Board, RAM, RAM_LEN, dma_range, phys_range};
use granule_sim::hostile::Allowed;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec as SimSpec, Machine, Wiring};
use granule_sim::platform::SimPlatform;
use granule_sim::walk::SimFormat;

use live::Live;

/// Where the bus shows the RAM to devices without an IOMMU: its boundaries are not those of the memory.
const BUS: u64 = 0x3000_5000;
const NAMES: [&str; 2] = ["first", "second"];

/// What stands between the devices and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dart,
    Lpae4k,
    Lpae64k,
    Direct,
}

/// What a device can do.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) bits: u32,
    pub(crate) coherent_bits: u32,
    pub(crate) boundary: u64,
    pub(crate) max_segment: u64,
    pub(crate) align_mask: u64,
    pub(crate) window: u8,
    pub(crate) trusted: bool,
    pub(crate) snoops: bool,
}

/// One step of a program; what the numbers mean depends on what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) kind: u8,
    pub(crate) pick: u16,
    pub(crate) shape: u16,
    pub(crate) seed: u32,
}

/// A program and where it runs.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) devices: [Limits; 2],
    pub(crate) deferred: bool,
    pub(crate) program: Vec<Step>,
}

impl Kind {
    fn iommu(self) -> Option<IommuConfig> {
        match self {
            Self::Dart => Some(IommuConfig::new("unit", SimFormat::Dart1, 32)),
            Self::Lpae4k => Some(IommuConfig::new("unit", SimFormat::Lpae4k, 39)),
            Self::Lpae64k => Some(IommuConfig::new("unit", SimFormat::Lpae64k, 42)),
            Self::Direct => None,
        }
    }

    fn granule(self) -> Granule {
        match self {
            Self::Dart => Granule::K16,
            Self::Lpae64k => Granule::K64,
            Self::Lpae4k | Self::Direct => Granule::K4,
        }
    }

    /// How many bits of an address the tables index.
    fn index_bits(self) -> u32 {
        self.iommu().map_or(40, |iommu| iommu.input_bits)
    }

    /// What the tables see of an address.
    fn index(self, at: DmaAddr) -> u64 {
        at.raw() & ((1 << self.index_bits()) - 1)
    }
}

impl Limits {
    /// The window that the bus gives the device, if there is one. Above what a DART indexes, its tables
    /// are as good as below; other IOMMUs fault there.
    fn window(&self, kind: Kind) -> Option<DmaRange> {
        match (self.window, kind) {
            (_, Kind::Direct) | (0, _) => None,
            (1, _) => Some(dma_range(0x1000_0000, 0x400_0000)),
            (2, _) => Some(dma_range(0x20_4000, 0x1800_0000)),
            (_, Kind::Dart) => Some(dma_range(0x7_1000_0000, 0x1000_0000)),
            (_, _) => Some(dma_range(0x0800_0000, 0x7800_0000)),
        }
    }

    /// The bits of streaming addresses.
    fn bits(&self, kind: Kind) -> u32 {
        self.bits.max(self.least_bits(kind))
    }

    /// The bits of coherent memory's addresses.
    fn coherent_bits(&self, kind: Kind) -> u32 {
        self.coherent_bits.max(self.least_bits(kind))
    }

    /// With fewer the device would reach nothing of its window, and be refused.
    fn least_bits(&self, kind: Kind) -> u32 {
        self.window(kind).map_or(0, |window| 64 - window.start().raw().leading_zeros())
    }

    fn spec(&self, name: &str, kind: Kind) -> DeviceSpec {
        let mut spec = DeviceSpec::new(name)
            .mask_bits(self.bits(kind))
            .coherent_mask_bits(self.coherent_bits(kind))
            .boundary(self.boundary)
            .max_segment(self.max_segment)
            .min_align_mask(self.align_mask);
        spec.window = self.window(kind);
        // On the bus everybody is trusted.
        spec.trusted = self.trusted || kind == Kind::Direct;
        spec.snoops = self.snoops;
        spec
    }

    fn wired(&self, index: usize, kind: Kind) -> SimSpec {
        let wiring = match kind {
            Kind::Direct => {
                Wiring::Direct { window: dma_range(BUS, RAM_LEN), phys: PhysAddr::new(RAM) }
            }
            _ => Wiring::Streams(vec![("unit".into(), index as u32)]),
        };
        let address_bits = self.bits(kind).max(self.coherent_bits(kind));
        let window = self.window(kind);
        let snoops = self.snoops;
        SimSpec { address_bits, snoops, window, ..SimSpec::new(NAMES[index], wiring) }
    }
}

/// A board with two devices, and what is mapped.
pub(crate) struct World<'a> {
    case: &'a Case,
    board: &'a Board,
    devices: [Device; 2],
    pool: Arc<BouncePool<SimPlatform>>,
    live: Vec<Live>,
}

impl<'a> World<'a> {
    /// Runs a program, and looks at what is left in the end.
    pub(crate) fn run(case: &'a Case) {
        let board = board(case);
        let pool = pool(&board, case);
        let devices = match case.kind {
            Kind::Dart => translated::<Dart1>(&board, case, &pool),
            Kind::Lpae4k => translated::<Lpae4k>(&board, case, &pool),
            Kind::Lpae64k => translated::<Lpae64k>(&board, case, &pool),
            Kind::Direct => direct(&board, case, &pool),
        };
        let mut world = World { case, board: &board, devices, pool, live: Vec::new() };
        for step in &case.program {
            world.step(*step);
        }
        world.end();
        assert_eq!(board.machine.problems(), Vec::<String>::new());
    }

    fn step(&mut self, step: Step) {
        match step.kind % 16 {
            0..=3 => self.map_one(step),
            4..=6 => self.map_list(step),
            7 if step.shape & 0x100 == 0 => self.allocate(step),
            7 => self.share(step),
            8 => self.reserve(step),
            9 | 10 => self.device_moves(step),
            11 | 12 => self.cpu_looks(step),
            13 | 14 => self.unmap(step),
            _ => {
                self.devices[0].flush().expect("hardware that answers");
                self.check_reach();
            }
        }
        // What is mapped at once is bounded: the windows and the pool are never short.
        if self.live.len() > 12 {
            self.unmap(step);
        }
    }

    fn device(&self, index: usize) -> &Device {
        &self.devices[index]
    }

    fn translated(&self) -> bool {
        self.case.kind != Kind::Direct
    }

    /// Whether every device behind the domain may see what lies beside a buffer.
    fn all_trusted(&self) -> bool {
        !self.translated() || self.case.devices.iter().all(|limits| limits.trusted)
    }

    fn unmap(&mut self, step: Step) {
        if !self.live.is_empty() {
            let index = usize::from(step.pick) % self.live.len();
            self.live.swap_remove(index).end(step);
        }
    }

    fn device_moves(&mut self, step: Step) {
        if !self.live.is_empty() {
            let index = usize::from(step.pick) % self.live.len();
            let translated = self.translated();
            self.live[index].device_moves(self.board, translated, step);
        }
    }

    fn cpu_looks(&mut self, step: Step) {
        if !self.live.is_empty() {
            let index = usize::from(step.pick) % self.live.len();
            self.live[index].cpu_looks(step);
        }
    }

    /// After a flush the devices reach what is mapped, and what lies beside it in its granules if all of
    /// them are trusted.
    fn check_reach(&self) {
        if !self.translated() {
            return;
        }
        let around = if self.all_trusted() { self.case.kind.granule().size() } else { 1 };
        let mut allowed: Vec<Allowed> =
            self.live.iter().flat_map(|live| live.allowed(around)).collect();
        let access = Access::all();
        let pool = self.pool.ranges().map(|range| Allowed { range, access });
        allowed.extend(pool);
        for name in NAMES {
            let bad = self.board.hostile(name).violations(&allowed);
            assert!(bad.is_empty(), "{name}: {bad:?}");
        }
    }

    /// What is new overlaps nothing that is there, in whole granules.
    fn enter(&mut self, live: Live) {
        if self.translated() {
            let size = self.case.kind.granule().size();
            let granules = |live: &Live| {
                let index = |at: DmaAddr| self.case.kind.index(at) / size;
                let spans = live.spans().into_iter();
                spans.map(|(first, last)| (index(first), index(last))).collect::<Vec<_>>()
            };
            let new = granules(&live);
            for other in self.live.iter().flat_map(granules) {
                let meets = new.iter().any(|one| one.0 <= other.1 && other.0 <= one.1);
                assert!(!meets, "{new:?} and {other:?} share an address");
            }
        }
        self.live.push(live);
    }

    fn end(mut self) {
        for (index, live) in std::mem::take(&mut self.live).into_iter().enumerate() {
            live.end(Step { kind: 0, pick: 0, shape: index as u16, seed: 0 });
        }
        self.devices[0].flush().expect("hardware that answers");
        self.check_reach();
        let (board, translated, pool) = (self.board, self.translated(), self.pool);
        for device in self.devices {
            assert_eq!(device.stats().live_mappings, 0);
            assert!(device.detach().is_ok());
        }
        assert_eq!(pool.usage().used, 0);
        for name in NAMES.into_iter().filter(|_| translated) {
            assert!(board.hostile(name).reach().is_empty());
        }
    }
}

fn board(case: &Case) -> Board {
    let mut parts = Machine::builder().ram(phys_range(RAM, RAM_LEN)).evict_one_in(20);
    if let Some(iommu) = case.kind.iommu() {
        parts = parts.iommu(iommu);
    }
    for (index, limits) in case.devices.iter().enumerate() {
        parts = parts.device(limits.wired(index, case.kind));
    }
    Board::build(parts)
}

/// A pool whose slots begin granules, full of somebody's old bytes, in reach of every device.
fn pool(board: &Board, case: &Case) -> Arc<BouncePool<SimPlatform>> {
    let window = (case.kind == Kind::Direct).then(|| phys_range(RAM, (1 << 30) - BUS));
    let config = BounceConfig { align: case.kind.granule(), window, ..BounceConfig::new(16 << 20) };
    let pool = BouncePool::new(board.platform(), config).expect("free memory");
    for range in pool.ranges() {
        board.machine.ram().fill(range, 0xbb).expect("RAM");
    }
    Arc::new(pool)
}

fn translated<F: Format>(
    board: &Board,
    case: &Case,
    pool: &Arc<BouncePool<SimPlatform>>,
) -> [Device; 2] {
    let policy =
        if case.deferred { InvalidationPolicy::DEFERRED } else { InvalidationPolicy::Strict };
    let config = DomainConfig { policy, ..DomainConfig::default() };
    let domain = board.domain_of::<F>("unit", &config);
    [0, 1].map(|index: usize| {
        let spec = case.devices[index].spec(NAMES[index], case.kind);
        let streams = [Stream::new(index as u32)];
        domain.attach(spec, &streams, Some(pool.clone())).expect("limits that can be")
    })
}

fn direct(board: &Board, case: &Case, pool: &Arc<BouncePool<SimPlatform>>) -> [Device; 2] {
    let window = BusWindow { bus: DmaAddr::new(BUS), memory: phys_range(RAM, RAM_LEN) };
    [0, 1].map(|index: usize| {
        let spec = case.devices[index].spec(NAMES[index], case.kind);
        Device::direct(board.platform(), spec, &[window], Some(pool.clone())).expect("reach")
    })
}
