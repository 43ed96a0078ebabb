//! A simulated board: RAM, IOMMUs, devices, and the handles that the core needs for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use granule::addr::{DmaAddr, DmaRange, Granule, PhysAddr, PhysRange};
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{BusWindow, Device, DeviceSpec};
use granule::domain::{Domain, DomainConfig, InvalidationPolicy, Iommu, Stream};
use granule::table::{Dart1, Format};
use granule_sim::hostile::{Allowed, Hostile};
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{Builder, DeviceSpec as SimSpec, Machine, Wiring};
use granule_sim::platform::SimPlatform;
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

use crate::{SimDomain, SimIommuHandle, SimPaged};

/// Where the board's RAM starts: 256 MiB below 4 GiB, so that a 32-bit device reaches half of it.
pub const RAM: u64 = 0xf000_0000;
/// How much RAM the board has, in bytes.
pub const RAM_LEN: u64 = 0x2000_0000;

/// A legal range of physical memory.
pub fn phys_range(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
}

/// A legal range of DMA addresses.
pub fn dma_range(start: u64, len: u64) -> DmaRange {
    DmaRange::new(DmaAddr::new(start), len).expect("a legal range")
}

/// A machine and its IOMMUs' handles.
pub struct Board {
    /// The machine.
    pub machine: Machine,
    iommus: BTreeMap<String, SimIommuHandle>,
}

impl Board {
    /// Builds a machine from `builder`.
    pub fn build(builder: Builder) -> Self {
        let machine = builder.build().expect("a machine that can be");
        let handle = |iommu: &Arc<granule_sim::iommu::SimIommu>| {
            let unit = SimUnit::new(iommu).expect("a format that the core has");
            (iommu.config().name.clone(), Iommu::new(unit))
        };
        let iommus = machine.iommus().map(handle).collect();
        Self { machine, iommus }
    }

    /// One RAM range, two DARTs (`dart`, `other`) of which the device `dev` is on stream 0 of the
    /// first, `dev1` on stream 1 of it, `far` on stream 0 of the second, and `pci` directly on the
    /// bus.
    pub fn usual() -> Self {
        Self::build(Self::parts())
    }

    /// The parts of [`usual`](Self::usual), to add to.
    pub fn parts() -> Builder {
        Machine::builder()
            .ram(phys_range(RAM, RAM_LEN))
            .iommu(IommuConfig::new("dart", SimFormat::Dart1, 32))
            .iommu(IommuConfig::new("other", SimFormat::Dart1, 32))
            .iommu(IommuConfig::new("smmu", SimFormat::Lpae4k, 39))
            .device(SimSpec::behind("dev", "dart", 0))
            .device(SimSpec::behind("dev1", "dart", 1))
            .device(SimSpec::behind("far", "other", 0))
            .device(SimSpec::behind("arm", "smmu", 0))
            .device(Self::direct_wiring("pci", 64))
    }

    /// A device that sees RAM at its physical addresses.
    pub fn direct_wiring(name: &str, address_bits: u32) -> SimSpec {
        let window = dma_range(1, (1 << 40) - 1);
        let wiring = Wiring::Direct { window, phys: PhysAddr::new(1) };
        SimSpec { address_bits, ..SimSpec::new(name, wiring) }
    }

    /// The platform.
    pub fn platform(&self) -> &SimPlatform {
        self.machine.platform()
    }

    /// An IOMMU's handle.
    pub fn iommu(&self, name: &str) -> SimIommuHandle {
        self.iommus[name].clone()
    }

    /// Page tables of format `F` for these IOMMUs.
    pub fn paged<F: Format>(&self, names: &[&str]) -> SimPaged<F> {
        let iommus: Vec<_> = names.iter().map(|name| self.iommu(name)).collect();
        SimPaged::new(self.platform(), &iommus).expect("units that walk the format")
    }

    /// A strict DART domain.
    pub fn domain(&self, name: &str) -> SimDomain {
        self.domain_of::<Dart1>(name, &DomainConfig::default())
    }

    /// A deferred DART domain.
    pub fn deferred(&self, name: &str) -> SimDomain {
        let policy = InvalidationPolicy::DEFERRED;
        self.domain_of::<Dart1>(name, &DomainConfig { policy, ..DomainConfig::default() })
    }

    /// A domain of format `F`.
    pub fn domain_of<F: Format>(&self, name: &str, config: &DomainConfig) -> SimDomain<F> {
        Domain::new(self.platform(), self.paged::<F>(&[name]), config).expect("a domain")
    }

    /// A device with a domain of its own at stream 0 of `dart`, named as the simulated one is.
    pub fn device(&self) -> Device {
        self.attach(&self.domain("dart"), DeviceSpec::new("dev"), 0)
    }

    /// A device at this stream of a domain, without a bounce pool.
    pub fn attach<F: Format>(
        &self,
        domain: &SimDomain<F>,
        spec: DeviceSpec,
        stream: u32,
    ) -> Device {
        domain.attach(spec, &[Stream::new(stream)], None).expect("a legal device")
    }

    /// A bounce pool of 4 MiB that serves 16 KiB granules.
    pub fn pool(&self) -> Arc<BouncePool<SimPlatform>> {
        let config = BounceConfig { align: Granule::K16, ..BounceConfig::new(4 << 20) };
        Arc::new(BouncePool::new(self.platform(), config).expect("free memory"))
    }

    /// A bounce pool of 4 MiB that a 32-bit device reaches.
    pub fn low_pool(&self) -> Arc<BouncePool<SimPlatform>> {
        let window = Some(phys_range(RAM, (1 << 32) - RAM));
        let config = BounceConfig { window, ..BounceConfig::new(4 << 20) };
        Arc::new(BouncePool::new(self.platform(), config).expect("free memory"))
    }

    /// All of RAM, each address meaning itself.
    pub fn identity_window(&self) -> BusWindow {
        BusWindow::identity(phys_range(RAM, RAM_LEN))
    }

    /// RAM above 4 GiB.
    pub fn high() -> Option<PhysRange> {
        Some(phys_range(1 << 32, RAM + RAM_LEN - (1 << 32)))
    }

    /// Lets a simulated device read.
    pub fn read(&self, device: &str, at: DmaAddr, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let device = self.machine.device(device).expect("a device of the board");
        device.read(at, &mut bytes).ok().map(|()| bytes)
    }

    /// Lets a simulated device write; whether it could.
    pub fn write(&self, device: &str, at: DmaAddr, bytes: &[u8]) -> bool {
        self.machine.device(device).expect("a device of the board").write(at, bytes).is_ok()
    }

    /// A device of the board in hostile hands.
    pub fn hostile(&self, device: &str) -> Hostile {
        self.machine.hostile(device).expect("a device of the board")
    }

    /// Asserts that a device reaches nothing but live frames, stale cache entries included.
    #[track_caller]
    pub fn assert_reaches_live_only(&self, device: &str) {
        let access = granule::addr::Access::all();
        let live = self.machine.frames().live();
        let allowed: Vec<_> = live.iter().map(|range| Allowed { range: *range, access }).collect();
        // What lies outside of RAM are registers, which are never freed.
        let ram = phys_range(RAM, RAM_LEN);
        let mut bad = self.hostile(device).violations(&allowed);
        bad.retain(|violation| violation.phys.overlaps(&ram));
        assert!(bad.is_empty(), "freed memory is reached: {bad:?}");
    }

    /// Asserts that nothing leaked and nothing was freed wrongly.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.machine.problems(), Vec::<String>::new());
    }
}
