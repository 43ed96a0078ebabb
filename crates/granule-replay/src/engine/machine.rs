//! The machine that a trace is replayed on: recorded memory below, frames of ours above it, one
//! IOMMU of the simulator, and a domain for each device.

use std::sync::Arc;

use granule::addr::{Granule, Iova, IovaRange, PhysAddr, PhysRange};
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{Device, DeviceSpec};
use granule::domain::{Domain, DomainConfig, InvalidationPolicy, Iommu, Paged, Stream, UnitError};
use granule::table::{Format, FormatId, FormatVisitor};
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::Machine;
use granule_sim::platform::{CpuConfig, SimPlatform};
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

use super::budget::Share;
use crate::ReplayError;
use crate::options::Invalidate;

/// As many devices as a trace may have.
const STREAMS: u32 = 1024;
/// Memory for page tables, coherent buffers and bounce buffers, at most. It costs nothing until it
/// is used.
const FRAMES: u64 = 64 << 30;
/// The widest recorded physical address, in bits: the simulator reserves address space for it.
const RECORDED_BITS: u32 = 44;

/// What a machine is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) format: FormatId,
    pub(super) cpu_page: Granule,
    pub(super) invalidate: Invalidate,
    pub(super) iova_bits: u32,
    /// The size of the bounce pool, if some device may need one.
    pub(super) bounce_pool: Option<u64>,
}

/// A machine with an IOMMU of one format.
pub(super) struct Board {
    machine: Machine,
    iommu: Arc<Iommu<SimPlatform, SimUnit>>,
    recorded: PhysRange,
    settings: Settings,
    /// What of the machine's memory may be resident.
    share: Share,
    granule: Granule,
    pool: Option<Arc<BouncePool<SimPlatform>>>,
    devices: u32,
    /// How much of the machine's memory was resident when it was last forgotten.
    kept: u64,
}

/// A device, and the timer of its domain.
pub(super) struct Attached {
    pub(super) device: Device,
    pub(super) poll: Poll,
}

/// What the platform's timer calls.
pub(super) type Poll = Box<dyn Fn() -> Result<(), UnitError> + Send>;

fn failed(cause: impl ToString) -> ReplayError {
    ReplayError::Machine { cause: cause.to_string() }
}

impl Board {
    pub(super) fn new(settings: Settings, share: Share) -> Result<Self, ReplayError> {
        let format: SimFormat = settings.format.name().parse().map_err(failed)?;
        let Limits { granule, input_bits, output_bits } = settings.format.visit(LimitsOf);
        let input_bits = settings.iova_bits.clamp(input_bits.0, input_bits.1);
        // The lower half of what the IOMMU puts out is the recorder's, the upper half ours.
        let recorded = 1u64 << (output_bits - 1).min(RECORDED_BITS);
        let range = |start, len| PhysRange::new(PhysAddr::new(start), len).map_err(failed);
        let (recorded, frames) = (range(0, recorded)?, range(recorded, recorded.min(FRAMES))?);
        let mut iommu = IommuConfig::new("iommu", format, input_bits);
        iommu.streams = STREAMS;
        iommu.output_bits = output_bits;
        let machine = Machine::builder()
            .ram(recorded)
            .reserve(recorded)
            .ram(frames)
            .cpu(CpuConfig { page: settings.cpu_page, line: 64, cpus: 1 })
            .iommu(iommu)
            .build()
            .map_err(failed)?;
        let model = machine.iommu("iommu").ok_or_else(|| failed("the IOMMU is missing"))?;
        let unit = SimUnit::new(model).ok_or_else(|| failed("the format is not granule's"))?;
        let iommu = Iommu::new(unit);
        let mut board = Self {
            machine,
            iommu,
            recorded,
            settings,
            share,
            granule,
            pool: None,
            devices: 0,
            kept: 0,
        };
        board.pool = settings.bounce_pool.map(|size| board.pool(size)).transpose()?;
        Ok(board)
    }

    /// The smallest page.
    pub(super) fn granule(&self) -> Granule {
        self.granule
    }

    /// Where recorded memory lies.
    pub(super) fn recorded(&self) -> PhysRange {
        self.recorded
    }

    /// Sets the machine's clock.
    pub(super) fn set_time(&self, time: u64) {
        self.machine.clock().set(time);
    }

    /// A device in a domain of its own.
    pub(super) fn attach(&mut self, name: &str, trusted: bool) -> Result<Attached, ReplayError> {
        let stream = Stream::new(self.devices);
        let spec = DeviceSpec { trusted, ..DeviceSpec::new(name) };
        let pool = self.pool.clone().filter(|_| !trusted);
        let attach = Attach { board: self, spec, stream, pool };
        let attached = self.settings.format.visit(attach)?;
        self.devices += 1;
        Ok(attached)
    }

    /// The bounce pool of all untrusted devices.
    fn pool(&self, size: u64) -> Result<Arc<BouncePool<SimPlatform>>, ReplayError> {
        let mut config = BounceConfig::new(size);
        config.align = self.granule;
        BouncePool::new(self.machine.platform(), config).map(Arc::new).map_err(failed)
    }

    /// Gives memory back to the host, if copies have made much of it resident: recorded memory and
    /// bounce buffers. They read as zero afterwards. A trace holds no data, so what was copied had no
    /// meaning; that it was copied is what costs, and stays done.
    pub(super) fn forget(&mut self) -> Result<(), ReplayError> {
        let resident = || self.machine.ram().resident().map_err(failed);
        if !self.share.is_over(resident()?.saturating_sub(self.kept)) {
            return Ok(());
        }
        self.discard([self.recorded])?;
        self.pool.iter().try_for_each(|pool| self.discard(pool.ranges()))?;
        // Page tables stay, and what is small of coherent buffers: large ones were never written.
        self.kept = resident()?;
        self.share.is_over(0);
        Ok(())
    }

    fn discard(&self, ranges: impl IntoIterator<Item = PhysRange>) -> Result<(), ReplayError> {
        let ram = self.machine.ram();
        ranges.into_iter().try_for_each(|range| ram.discard(range).map_err(failed))
    }
}

struct Limits {
    granule: Granule,
    input_bits: (u32, u32),
    output_bits: u32,
}

struct LimitsOf;

impl FormatVisitor for LimitsOf {
    type Output = Limits;

    fn visit<F: Format>(self) -> Limits {
        Limits {
            granule: F::GRANULE,
            input_bits: (F::MIN_INPUT_BITS, F::MAX_INPUT_BITS),
            output_bits: F::MAX_OUTPUT_BITS,
        }
    }
}

struct Attach<'b> {
    board: &'b Board,
    spec: DeviceSpec,
    stream: Stream,
    pool: Option<Arc<BouncePool<SimPlatform>>>,
}

impl FormatVisitor for Attach<'_> {
    type Output = Result<Attached, ReplayError>;

    fn visit<F: Format>(self) -> Self::Output {
        let (platform, settings) = (self.board.machine.platform(), &self.board.settings);
        let tables = Paged::<F, _, _>::new(platform, core::slice::from_ref(&self.board.iommu))
            .map_err(failed)?;
        let policy = match settings.invalidate {
            Invalidate::Strict => InvalidationPolicy::Strict,
            Invalidate::Deferred => InvalidationPolicy::DEFERRED,
        };
        // A format may index more bits than are to be handed out.
        let window = 1u64
            .checked_shl(settings.iova_bits)
            .and_then(|len| IovaRange::new(Iova::new(0), len).ok());
        let config = DomainConfig { policy, window, ..DomainConfig::default() };
        let domain = Domain::new(platform, tables, &config).map_err(failed)?;
        let device = domain.attach(self.spec, &[self.stream], self.pool).map_err(failed)?;
        Ok(Attached { device, poll: Box::new(move || domain.poll()) })
    }
}
