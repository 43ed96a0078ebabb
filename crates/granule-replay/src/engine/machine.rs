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
    pub(super) bounce_pool: u64,
}

/// A machine with an IOMMU of one format.
pub(super) struct Board {
    machine: Machine,
    iommu: Arc<Iommu<SimPlatform, SimUnit>>,
    recorded: PhysRange,
    settings: Settings,
    granule: Granule,
    pool: Option<Arc<BouncePool<SimPlatform>>>,
    devices: u32,
}

/// A device, and the timer of its domain.
pub(super) struct Attached {
    pub(super) device: Device,
    pub(super) poll: Poll,
}

/// What the platform's timer calls.
pub(super) type Poll = Box<dyn Fn() -> Result<(), UnitError>>;

fn failed(cause: impl ToString) -> ReplayError {
    ReplayError::Machine { cause: cause.to_string() }
}

impl Board {
    pub(super) fn new(settings: Settings) -> Result<Self, ReplayError> {
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
        Ok(Self { machine, iommu, recorded, settings, granule, pool: None, devices: 0 })
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
        let pool = if trusted { None } else { Some(self.pool()?) };
        let attach = Attach { board: self, spec, stream, pool };
        let attached = self.settings.format.visit(attach)?;
        self.devices += 1;
        Ok(attached)
    }

    /// The bounce pool of all untrusted devices, made when the first of them appears.
    fn pool(&mut self) -> Result<Arc<BouncePool<SimPlatform>>, ReplayError> {
        if let Some(pool) = &self.pool {
            return Ok(pool.clone());
        }
        let mut config = BounceConfig::new(self.settings.bounce_pool);
        config.align = self.granule;
        let pool = BouncePool::new(self.machine.platform(), config).map_err(failed)?;
        // The pool zeroed its memory. It stays zeroed, but costs the host nothing until it is used.
        for range in pool.ranges() {
            self.machine.ram().discard(range).map_err(failed)?;
        }
        let pool = Arc::new(pool);
        self.pool = Some(pool.clone());
        Ok(pool)
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
