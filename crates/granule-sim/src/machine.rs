//! A machine: memory, CPUs, IOMMUs and devices put together. Same seed, same run.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use granule::addr::{DmaRange, PhysAddr, PhysRange};

use crate::cache::Cache;
use crate::clock::Clock;
use crate::device::{Port, Route, SimDevice};
use crate::faults::FaultPlan;
use crate::frames::{Fragmentation, Frames};
use crate::hostile::Hostile;
use crate::iommu::{IommuConfig, SimIommu, SimIommuError};
use crate::memory::Memory;
use crate::platform::{CpuConfig, SimPlatform};
use crate::ram::{Ram, RamError};

/// What a device is like, and how it is wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name, unique in the machine.
    pub name: String,
    /// How many address bits it can emit.
    pub address_bits: u32,
    /// Whether its accesses snoop the CPU's caches.
    pub snoops: bool,
    /// The addresses that reach its IOMMUs, if not all.
    pub window: Option<DmaRange>,
    /// How it reaches memory.
    pub wiring: Wiring,
}

/// How a device reaches memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// On the bus: see [`Route::Direct`].
    Direct {
        /// The DMA addresses that lead to memory.
        window: DmaRange,
        /// Where the first of them leads.
        phys: PhysAddr,
    },
    /// Through these streams, each of an IOMMU by name.
    Streams(Vec<(String, u32)>),
}

impl DeviceSpec {
    /// A snooping 64-bit device behind one stream.
    pub fn behind(name: &str, iommu: &str, stream: u32) -> Self {
        Self::new(name, Wiring::Streams(vec![(iommu.into(), stream)]))
    }

    /// A snooping 64-bit device.
    pub fn new(name: &str, wiring: Wiring) -> Self {
        Self { name: name.into(), address_bits: 64, snoops: true, window: None, wiring }
    }
}

/// Why there is no such machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The RAM cannot be.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// An IOMMU cannot be.
    #[error(transparent)]
    Iommu(#[from] SimIommuError),
    /// Two parts have one name.
    #[error("two parts of the machine are called `{name}`")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A device names an IOMMU or a stream that is not there.
    #[error("device `{device}` is wired to stream {stream} of `{iommu}`, which the machine lacks")]
    Wiring {
        /// The device.
        device: String,
        /// The IOMMU.
        iommu: String,
        /// The stream.
        stream: u32,
    },
}

/// What a machine will be made of.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    ram: Vec<PhysRange>,
    reserved: Vec<PhysRange>,
    cpu: CpuConfig,
    seed: u64,
    fragmentation: Option<Fragmentation>,
    evict_one_in: u32,
    always_cached: bool,
    real_clock: bool,
    faults: FaultPlan,
    iommus: Vec<IommuConfig>,
    devices: Vec<DeviceSpec>,
}

impl Builder {
    /// Adds a range of RAM.
    #[must_use]
    pub fn ram(mut self, range: PhysRange) -> Self {
        self.ram.push(range);
        self
    }

    /// Keeps a range from being allocated (firmware's).
    #[must_use]
    pub fn reserve(mut self, range: PhysRange) -> Self {
        self.reserved.push(range);
        self
    }

    /// Sets page, cache line and number of the CPUs.
    #[must_use]
    pub fn cpu(mut self, config: CpuConfig) -> Self {
        self.cpu = config;
        self
    }

    /// Sets the seed of everything that is left to chance.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Breaks physical memory up.
    #[must_use]
    pub fn fragment(mut self, fragmentation: Fragmentation) -> Self {
        self.fragmentation = Some(fragmentation);
        self
    }

    /// Evicts a random cache line before one access in so many of a master that does not snoop.
    #[must_use]
    pub fn evict_one_in(mut self, accesses: u32) -> Self {
        self.evict_one_in = accesses;
        self
    }

    /// Models the cache even if every master snoops (it then changes nothing but the cost).
    #[must_use]
    pub fn with_cache(mut self) -> Self {
        self.always_cached = true;
        self
    }

    /// Runs on the host's clock instead of one that is set by hand.
    #[must_use]
    pub fn real_clock(mut self) -> Self {
        self.real_clock = true;
        self
    }

    /// Uses this fault plan.
    #[must_use]
    pub fn faults(mut self, plan: &FaultPlan) -> Self {
        self.faults = plan.clone();
        self
    }

    /// Adds an IOMMU.
    #[must_use]
    pub fn iommu(mut self, config: IommuConfig) -> Self {
        self.iommus.push(config);
        self
    }

    /// Adds a device.
    #[must_use]
    pub fn device(mut self, spec: DeviceSpec) -> Self {
        self.devices.push(spec);
        self
    }

    /// Builds the machine. The cache is modelled if some master or walker does not snoop.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn build(self) -> Result<Machine, MachineError> {
        let ram = Arc::new(Ram::new(&self.ram)?);
        let cached = self.always_cached
            || self.devices.iter().any(|device| !device.snoops)
            || self.iommus.iter().any(|iommu| !iommu.coherent_walk);
        // Every part has its own stream of numbers, so that one does not disturb another.
        let mut seeds = fastrand::Rng::with_seed(self.seed);
        let cache_seed = seeds.u64(..);
        let cache =
            cached.then(|| Arc::new(Cache::new(self.cpu.line, self.evict_one_in, cache_seed)));
        let frames = Arc::new(Frames::new(
            ram.clone(),
            self.cpu.page,
            &self.reserved,
            self.fragmentation,
            self.faults.clone(),
            seeds.u64(..),
        ));
        let memory = Memory::new(ram, cache);
        let clock = if self.real_clock { Clock::real() } else { Clock::manual() };
        let mut iommus = BTreeMap::new();
        for config in self.iommus {
            let name = config.name.clone();
            let (memory, clock, faults) = (memory.clone(), clock.clone(), self.faults.clone());
            let iommu = SimIommu::new(config, memory, clock, faults, seeds.u64(..))?;
            if iommus.insert(name.clone(), Arc::new(iommu)).is_some() {
                return Err(MachineError::Duplicate { name });
            }
        }
        let mut devices = BTreeMap::new();
        for spec in self.devices {
            let device = wire(&spec, &iommus, &memory)?;
            if devices.insert(spec.name.clone(), device).is_some() {
                return Err(MachineError::Duplicate { name: spec.name });
            }
        }
        let platform = SimPlatform::new(memory, frames, clock, self.cpu);
        Ok(Machine { platform, faults: self.faults, iommus, devices, seed: self.seed })
    }
}

fn wire(
    spec: &DeviceSpec,
    iommus: &BTreeMap<String, Arc<SimIommu>>,
    memory: &Memory,
) -> Result<SimDevice, MachineError> {
    let route = match &spec.wiring {
        Wiring::Direct { window, phys } => Route::Direct { window: *window, phys: *phys },
        Wiring::Streams(ports) => {
            let ports = ports.iter().map(|(name, stream)| {
                let found = iommus.get(name).filter(|iommu| *stream < iommu.config().streams);
                let iommu = found.cloned().ok_or_else(|| MachineError::Wiring {
                    device: spec.name.clone(),
                    iommu: name.clone(),
                    stream: *stream,
                })?;
                Ok(Port { iommu, stream: *stream })
            });
            Route::Streams(ports.collect::<Result<_, MachineError>>()?)
        }
    };
    Ok(SimDevice::new(&spec.name, route, memory.clone())
        .with_address_bits(spec.address_bits)
        .with_window(spec.window)
        .with_snooping(spec.snoops))
}

/// A machine in memory.
#[derive(Clone, Debug)]
pub struct Machine {
    platform: SimPlatform,
    faults: FaultPlan,
    iommus: BTreeMap<String, Arc<SimIommu>>,
    devices: BTreeMap<String, SimDevice>,
    seed: u64,
}

impl Machine {
    /// Begins a machine: no RAM, four CPUs with 4 KiB pages, all coherent, seed 0.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The machine as the core sees it.
    pub fn platform(&self) -> &SimPlatform {
        &self.platform
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        self.platform.memory()
    }

    /// The RAM: the CPU's view.
    pub fn ram(&self) -> &Ram {
        self.memory().ram()
    }

    /// The frame allocator.
    pub fn frames(&self) -> &Frames {
        self.platform.frames()
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        self.platform.clock()
    }

    /// The fault plan.
    pub fn faults(&self) -> &FaultPlan {
        &self.faults
    }

    /// An IOMMU by name.
    pub fn iommu(&self, name: &str) -> Option<&Arc<SimIommu>> {
        self.iommus.get(name)
    }

    /// All IOMMUs, by name.
    pub fn iommus(&self) -> impl Iterator<Item = &Arc<SimIommu>> {
        self.iommus.values()
    }

    /// A device by name.
    pub fn device(&self, name: &str) -> Option<&SimDevice> {
        self.devices.get(name)
    }

    /// All devices, by name.
    pub fn devices(&self) -> impl Iterator<Item = &SimDevice> {
        self.devices.values()
    }

    /// A device by name, in hostile hands.
    pub fn hostile(&self, name: &str) -> Option<Hostile> {
        self.devices.get(name).map(|device| Hostile::new(device.clone(), self.seed))
    }

    /// What is wrong when all is said to be over: leaked frames and views, wrong frees, and entries
    /// of two page sizes that an IOMMU held for one address. Empty is well.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = self.frames().errors().iter().map(ToString::to_string).collect();
        problems.extend(self.frames().live().iter().map(|range| format!("{range} leaked")));
        if self.platform.views() > 0 {
            problems.push(format!("{} CPU views are still mapped", self.platform.views()));
        }
        for iommu in self.iommus.values().filter(|iommu| iommu.counters().conflicts > 0) {
            let (name, count) = (&iommu.config().name, iommu.counters().conflicts);
            problems.push(format!("{name}: {count} accesses met two page sizes for one address"));
        }
        problems
    }
}
