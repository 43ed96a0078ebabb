//! A machine with IOMMUs, domains on them, and devices, for any format, granule and CPU page.

use std::sync::Arc;
use std::time::Duration;

use granule::addr::{Granule, IovaRange, PageSizes, PhysAddr, PhysRange};
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{AttachError, BusWindow, Device, DeviceSpec};
use granule::domain::{
    Domain, DomainConfig, DomainError, DomainStats, InvalidationPolicy, Iommu, Mirror, Paged,
    Stream, Translation, TranslationError, UnitError,
};
use granule::table::{Format, FormatId, FormatVisitor};
use granule_sim::frames::Fragmentation;
use granule_sim::hostile::Hostile;
use granule_sim::iommu::{IommuConfig, LockedStream};
use granule_sim::machine::{DeviceSpec as SimSpec, Machine, Wiring};
use granule_sim::platform::{CpuConfig, SimPlatform};
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

use crate::effort;
use crate::model::Low;

/// Where RAM begins.
pub const RAM: u64 = 0x8_0000_0000;
/// Each of the two banks.
pub const BANK: u64 = 512 << 20;
/// The IOMMUs of every bench.
pub const IOMMUS: [&str; 2] = ["iommu0", "iommu1"];

/// What a bench is like.
#[derive(Clone, Debug)]
pub struct Case {
    /// The table format.
    pub format: FormatId,
    /// The CPU's page.
    pub page: Granule,
    /// When caches are dropped.
    pub policy: InvalidationPolicy,
    /// Whether the walkers snoop.
    pub coherent_walk: bool,
    /// Whether the IOMMUs cache absence.
    pub caching_mode: bool,
    /// Whether the devices snoop.
    pub snoops: bool,
    /// Whether the devices are trusted.
    pub trusted: bool,
    /// The largest free block of memory, if it is broken up.
    pub max_block: Option<u64>,
    /// One domain over both IOMMUs: how.
    pub span: Span,
    /// The window that IOVA is allocated from.
    pub window: Option<IovaRange>,
    /// Size of the bounce pool, 0 for none.
    pub pool: u64,
    /// A stream of `iommu0` that firmware locked, with its root.
    pub locked: Option<LockedStream>,
    /// Memory that is firmware's.
    pub firmware: Option<PhysRange>,
    /// How many CPUs there are.
    pub cpus: usize,
    /// The seed.
    pub seed: u64,
}

/// Which IOMMUs the domain is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The first.
    One,
    /// Both, with one table.
    Paged,
    /// Both, with a table each.
    Mirror,
}

impl Case {
    /// A strict, coherent, trusted, snooping bench with a bounce pool.
    pub fn new(format: FormatId, page: Granule) -> Self {
        Self {
            format,
            page,
            policy: InvalidationPolicy::Strict,
            coherent_walk: true,
            caching_mode: false,
            snoops: true,
            trusted: true,
            max_block: None,
            span: Span::One,
            window: None,
            pool: 2 << 20,
            locked: None,
            firmware: None,
            cpus: 2,
            seed: 1,
        }
    }

    /// Every format on every CPU page, with the other properties turned through so that each
    /// appears with each format and each page. Below full effort, some of them ([`effort::some`]).
    pub fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for (row, format) in FormatId::ALL.iter().enumerate() {
            for (column, page) in [Granule::K4, Granule::K16, Granule::K64].into_iter().enumerate()
            {
                for turn in 0..2 {
                    let odd = (row + column + turn) % 2 == 1;
                    let mut case = Self::new(*format, page);
                    if odd {
                        case.policy = InvalidationPolicy::Deferred { capacity: 4, max_age: 1000 };
                    }
                    case.coherent_walk = turn == 0;
                    case.caching_mode = (row + turn) % 2 == 0;
                    case.snoops = (column + turn) % 2 == 0;
                    case.max_block = (turn == 1).then_some((4 * case.unit().size()).max(1 << 17));
                    case.seed = (row * 8 + column * 2 + turn) as u64 + 1;
                    cases.push(case);
                }
            }
        }
        effort::some(cases)
    }

    /// The same with an untrusted device.
    #[must_use]
    pub fn untrusted(mut self) -> Self {
        self.trusted = false;
        self
    }

    /// The same with deferred invalidation.
    #[must_use]
    pub fn deferred(mut self, capacity: usize, max_age: u64) -> Self {
        self.policy = InvalidationPolicy::Deferred { capacity, max_age };
        self
    }

    /// The granule of the format.
    pub fn granule(&self) -> Granule {
        struct OfFormat;
        impl FormatVisitor for OfFormat {
            type Output = Granule;
            fn visit<F: Format>(self) -> Granule {
                F::GRANULE
            }
        }
        self.format.visit(OfFormat)
    }

    /// The unit in which memory is nobody else's: the larger of granule and CPU page.
    pub fn unit(&self) -> Granule {
        self.granule().max(self.page)
    }

    /// The model's name of the format.
    pub fn sim_format(&self) -> SimFormat {
        self.format.name().parse().expect("the model walks every format of the core")
    }

    fn iommu(&self, name: &str) -> IommuConfig {
        let bits = match self.format {
            FormatId::Dart1 => 32,
            FormatId::Dart2 => 36,
            FormatId::Lpae4k => 39,
            FormatId::Lpae16k => 38,
            FormatId::Sv39 => 39,
            _ => 42,
        };
        let mut config = IommuConfig::new(name, self.sim_format(), bits);
        config.coherent_walk = self.coherent_walk;
        config.caching_mode = self.caching_mode;
        config.invalidation_latency = Duration::ZERO;
        config
    }

    /// The machine alone.
    pub fn machine(&self) -> Machine {
        let banks = [RAM, RAM + 2 * BANK].map(|start| phys(start, BANK));
        let mut first = self.iommu(IOMMUS[0]);
        first.locked.extend(self.locked.clone());
        let mut builder = Machine::builder()
            .cpu(CpuConfig { page: self.page, line: 64, cpus: self.cpus })
            .seed(self.seed)
            .iommu(first)
            .iommu(self.iommu(IOMMUS[1]));
        for bank in banks {
            builder = builder.ram(bank);
        }
        if let Some(range) = self.firmware {
            builder = builder.reserve(range);
        }
        if let Some(max_block) = self.max_block {
            builder = builder.fragment(Fragmentation { max_block });
        }
        for (name, wiring) in self.wirings() {
            let spec = SimSpec::new(name, wiring);
            builder = builder.device(SimSpec { snoops: self.snoops || name == "direct", ..spec });
        }
        builder.build().expect("a machine")
    }

    fn wirings(&self) -> Vec<(&'static str, Wiring)> {
        let at = |name: &str, stream| (name.to_string(), stream);
        let both = vec![at(IOMMUS[0], 0), at(IOMMUS[1], 0)];
        let dev = if self.span == Span::One { vec![at(IOMMUS[0], 0)] } else { both };
        let window = granule::addr::DmaRange::new(granule::addr::DmaAddr::new(RAM), 3 * BANK);
        let direct =
            Wiring::Direct { window: window.expect("a legal range"), phys: PhysAddr::new(RAM) };
        vec![
            ("dev", Wiring::Streams(dev)),
            ("mate", Wiring::Streams(vec![at(IOMMUS[0], 1)])),
            ("other", Wiring::Streams(vec![at(IOMMUS[1], 2)])),
            ("direct", direct),
        ]
    }

    /// The bench: `dev` is attached.
    pub fn bench(&self) -> Bench {
        let bench = self.blank();
        let device = bench.attach(&bench.domain, self.spec("dev"), self.streams());
        bench.with(device.expect("a device that can be attached"))
    }

    /// The bench before any device is attached.
    pub fn blank(&self) -> Bench {
        let machine = self.machine();
        let iommus: Vec<_> = IOMMUS
            .iter()
            .map(|name| {
                let sim = machine.iommu(name).expect("as built");
                Iommu::new(SimUnit::new(sim).expect("a format of the core"))
            })
            .collect();
        let domain = self.domain(&machine, &iommus, self.span).expect("a domain");
        let config = BounceConfig { align: self.granule(), ..BounceConfig::new(self.pool.max(1)) };
        let pool = (self.pool > 0)
            .then(|| Arc::new(BouncePool::new(machine.platform(), config).expect("a pool")));
        Bench { devices: Vec::new(), pool, domain, iommus, case: self.clone(), machine }
    }

    /// The streams of `dev`.
    pub fn streams(&self) -> &'static [Stream] {
        const BOTH: [Stream; 2] = [Stream::new(0), Stream::new(0).at_unit(1)];
        if self.span == Span::One { &BOTH[..1] } else { &BOTH }
    }

    /// What the core is told of a device.
    pub fn spec(&self, name: &str) -> DeviceSpec {
        let spec = DeviceSpec::new(name);
        let spec = if self.snoops { spec } else { spec.non_snooping() };
        if self.trusted { spec } else { spec.untrusted() }
    }

    /// A domain as the case says, on these IOMMUs.
    ///
    /// # Errors
    /// What the core says.
    pub fn domain(
        &self,
        machine: &Machine,
        iommus: &[Arc<SimHandle>],
        span: Span,
    ) -> Result<Arc<dyn AnyDomain>, DomainError> {
        let config =
            DomainConfig { policy: self.policy, window: self.window, ..DomainConfig::default() };
        self.format.visit(Build { machine, iommus, config, span })
    }
}

/// An IOMMU of the machine as the core knows it.
pub type SimHandle = Iommu<SimPlatform, SimUnit>;

struct Build<'a> {
    machine: &'a Machine,
    iommus: &'a [Arc<SimHandle>],
    config: DomainConfig,
    span: Span,
}

impl FormatVisitor for Build<'_> {
    type Output = Result<Arc<dyn AnyDomain>, DomainError>;

    fn visit<F: Format>(self) -> Self::Output {
        let platform = self.machine.platform();
        let paged = |iommus: &[Arc<SimHandle>]| Paged::<F, _, _>::new(platform, iommus);
        match self.span {
            Span::One => Ok(Domain::new(platform, paged(&self.iommus[..1])?, &self.config)?),
            Span::Paged => Ok(Domain::new(platform, paged(self.iommus)?, &self.config)?),
            Span::Mirror => {
                let sides = self.iommus.chunks(1).map(paged).collect::<Result<_, _>>()?;
                Ok(Domain::new(platform, Mirror::new(sides)?, &self.config)?)
            }
        }
    }
}

/// A domain of any format.
pub trait AnyDomain: Low + Send + Sync {
    /// As [`Domain::attach`].
    ///
    /// # Errors
    /// As there.
    fn attach(
        self: Arc<Self>,
        spec: DeviceSpec,
        streams: &[Stream],
        pool: Option<Arc<BouncePool<SimPlatform>>>,
    ) -> Result<Device, AttachError>;
    /// As [`Domain::stats`].
    fn stats(&self) -> DomainStats;
    /// As [`Domain::poll`].
    ///
    /// # Errors
    /// As there.
    fn poll(&self) -> Result<(), UnitError>;
    /// As [`Domain::flush`].
    ///
    /// # Errors
    /// As there.
    fn flush(&self) -> Result<(), UnitError>;
    /// As [`Domain::recover`].
    ///
    /// # Errors
    /// As there.
    fn recover(&self) -> Result<(), TranslationError>;
    /// As [`Domain::page_sizes_used`].
    fn page_sizes_used(&self, range: IovaRange) -> Vec<(u64, u64)>;
    /// The page sizes of the translation.
    fn page_sizes(&self) -> PageSizes;
    /// As [`Domain::is_deferred`].
    fn is_deferred(&self) -> bool;
    /// As [`Domain::is_untrusted`].
    fn is_untrusted(&self) -> bool;
}

impl<T: Translation> AnyDomain for Domain<SimPlatform, T> {
    fn attach(
        self: Arc<Self>,
        spec: DeviceSpec,
        streams: &[Stream],
        pool: Option<Arc<BouncePool<SimPlatform>>>,
    ) -> Result<Device, AttachError> {
        Domain::attach(&self, spec, streams, pool)
    }
    fn stats(&self) -> DomainStats {
        Domain::stats(self)
    }
    fn poll(&self) -> Result<(), UnitError> {
        Domain::poll(self)
    }
    fn flush(&self) -> Result<(), UnitError> {
        Domain::flush(self)
    }
    fn recover(&self) -> Result<(), TranslationError> {
        Domain::recover(self)
    }
    fn page_sizes_used(&self, range: IovaRange) -> Vec<(u64, u64)> {
        Domain::page_sizes_used(self, range)
    }
    fn page_sizes(&self) -> PageSizes {
        self.geometry().page_sizes
    }
    fn is_deferred(&self) -> bool {
        Domain::is_deferred(self)
    }
    fn is_untrusted(&self) -> bool {
        Domain::is_untrusted(self)
    }
}

/// A machine with domains and devices. Fields are dropped in this order.
pub struct Bench {
    /// The devices; the first is `dev`.
    pub devices: Vec<Device>,
    /// The bounce pool of all devices.
    pub pool: Option<Arc<BouncePool<SimPlatform>>>,
    /// The domain of `dev`.
    pub domain: Arc<dyn AnyDomain>,
    /// The IOMMUs, by number.
    pub iommus: Vec<Arc<SimHandle>>,
    /// What it is like.
    pub case: Case,
    /// The machine.
    pub machine: Machine,
}

impl Bench {
    fn with(mut self, device: Device) -> Self {
        self.devices.push(device);
        self
    }

    /// Attaches a device of this name to a domain.
    ///
    /// # Errors
    /// What the core says.
    pub fn attach(
        &self,
        domain: &Arc<dyn AnyDomain>,
        spec: DeviceSpec,
        streams: &[Stream],
    ) -> Result<Device, AttachError> {
        domain.clone().attach(spec, streams, self.pool.clone())
    }

    /// A device `other` behind the second IOMMU, in a domain of its own format.
    pub fn other(&self) -> (Device, Arc<dyn AnyDomain>) {
        let domain = self.case.domain(&self.machine, &self.iommus[1..], Span::One);
        let domain = domain.expect("a domain");
        let device = self.attach(&domain, self.case.spec("other"), &[Stream::new(2)]);
        (device.expect("a device that can be attached"), domain)
    }

    /// A trusted device `direct` on the bus, which sees RAM where it is.
    pub fn direct(&self) -> Device {
        let window = BusWindow::identity(phys(RAM, 3 * BANK));
        let spec = DeviceSpec::new("direct");
        Device::direct(self.machine.platform(), spec, &[window], None).expect("a direct device")
    }

    /// The device `dev`.
    pub fn dev(&self) -> &Device {
        &self.devices[0]
    }

    /// A device in hostile hands.
    pub fn hostile(&self, name: &str) -> Hostile {
        self.machine.hostile(name).expect("as built")
    }

    /// Takes everything down and says what is wrong then: leaks, wrong frees, conflicts.
    pub fn close(self) -> Vec<String> {
        let Self { devices, pool, domain, iommus, machine, .. } = self;
        drop((devices, pool, domain, iommus));
        machine.problems()
    }
}

/// A physical range.
///
/// # Panics
/// If it is empty or passes 2^64.
pub fn phys(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
}
