//! Opening: a host, its address spaces, the devices in them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use granule::bounce::BouncePool;
use granule::dma::{self, DeviceSpec};
use granule::domain::{Domain, DomainConfig, Reserved, Stream};
use parking_lot::Mutex;

use crate::checks::{self, Candidate};
use crate::iommufd::Context;
use crate::open::{self, Opened};
use crate::pci::Pci;
use crate::space::AddressSpace;
use crate::sysfs::Sysfs;
use crate::{Bdf, Error, LockedMemory, UserMemory, doctor};

/// The kernel interface through which an address space is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum Backend {
    /// A VFIO container with the type1 IOMMU (`/dev/vfio/vfio`).
    Vfio,
    /// An IOAS of iommufd with VFIO's character devices (`/dev/iommu`).
    Iommufd,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vfio => "VFIO",
            Self::Iommufd => "iommufd",
        })
    }
}

impl FromStr for Backend {
    type Err = String;

    /// `vfio` or `iommufd`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "vfio" => Ok(Self::Vfio),
            "iommufd" => Ok(Self::Iommufd),
            _ => Err(format!("`{text}` is no backend: vfio or iommufd")),
        }
    }
}

/// This machine. A handle: clones are of the same.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    sysfs: Sysfs,
    memory: UserMemory,
    /// Who is open, by group.
    open: Mutex<BTreeMap<u32, Group>>,
    iommufd: Mutex<Option<Arc<Context>>>,
    spaces: Mutex<u64>,
}

/// A group that is in use.
struct Group {
    space: u64,
    devices: Vec<Bdf>,
}

impl Host {
    /// This machine.
    pub fn new() -> Self {
        Self::at(Path::new("/"))
    }

    /// A machine whose `sys`, `proc` and `dev` are in `root`: for [`doctor`](Self::doctor) on what was
    /// collected elsewhere, and for tests. Devices can be opened only where `root` is `/`.
    pub fn at(root: &Path) -> Self {
        let inner = Inner {
            sysfs: Sysfs::new(root),
            memory: UserMemory::new(),
            open: Mutex::default(),
            iommufd: Mutex::default(),
            spaces: Mutex::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The process's memory, as what the DMA API allocates from.
    pub fn memory(&self) -> UserMemory {
        self.inner.memory
    }

    /// The limit of memory that devices may reach.
    pub fn locked_memory(&self) -> LockedMemory {
        LockedMemory::of(&self.inner.sysfs)
    }

    /// What this machine offers, and what to do about what it does not.
    pub fn doctor(&self) -> doctor::Report {
        doctor::examine(&self.inner.sysfs)
    }

    /// The IOMMU group of a device.
    ///
    /// # Errors
    /// [`Error::NoDevice`], and what says why it has no group.
    pub fn group(&self, device: Bdf) -> Result<u32, Error> {
        let sysfs = &self.inner.sysfs;
        if !sysfs.device(device).exists() {
            return Err(Error::NoDevice { device });
        }
        sysfs.group(device).ok_or_else(|| checks::no_group(sysfs, device))
    }

    /// A new address space, in which there is nothing yet.
    pub fn space(&self, backend: Backend) -> Space {
        let mut spaces = self.inner.spaces.lock();
        *spaces += 1;
        let inner =
            SpaceInner { host: self.clone(), backend, number: *spaces, state: Mutex::default() };
        Space { inner: Arc::new(inner) }
    }

    /// Notes that a device is open, if its group allows that.
    fn take(&self, candidate: Candidate, space: u64) -> Result<(), Error> {
        let Candidate { device, group } = candidate;
        let mut open = self.inner.open.lock();
        let entry = open.entry(group).or_insert_with(|| Group { space, devices: Vec::new() });
        if entry.devices.contains(&device) {
            return Err(Error::Open { device });
        }
        if entry.space != space {
            return Err(Error::Group { device, group, others: entry.devices.clone() });
        }
        entry.devices.push(device);
        Ok(())
    }

    fn give_back(&self, candidate: Candidate) {
        let mut open = self.inner.open.lock();
        let Some(entry) = open.get_mut(&candidate.group) else { return };
        entry.devices.retain(|device| *device != candidate.device);
        if entry.devices.is_empty() {
            open.remove(&candidate.group);
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// An address space: the devices in it see the same memory at the same addresses. A handle.
#[derive(Clone)]
pub struct Space {
    inner: Arc<SpaceInner>,
}

struct SpaceInner {
    host: Host,
    backend: Backend,
    number: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opened: Option<Opened>,
    domain: Option<Arc<Domain<UserMemory, AddressSpace>>>,
    next_stream: u32,
}

impl Space {
    /// A device to be opened in this space, with what its driver says of it. A space is as the first
    /// device's IOMMU has it; a later one that can use less is refused.
    ///
    /// Linux trusts no device here, and granule need not: leave `spec.trusted` false for a device that
    /// may see nothing beside what it is given.
    pub fn device(&self, device: Bdf, spec: DeviceSpec) -> DeviceBuilder {
        DeviceBuilder { space: self.clone(), device, spec, pool: None }
    }

    /// The kernel interface.
    pub fn backend(&self) -> Backend {
        self.inner.backend
    }

    /// The granule domain; there is none before the first device is open.
    pub fn domain(&self) -> Option<Arc<Domain<UserMemory, AddressSpace>>> {
        self.inner.state.lock().domain.clone()
    }
}

/// A device that is about to be opened.
#[must_use = "open() opens it"]
pub struct DeviceBuilder {
    space: Space,
    device: Bdf,
    spec: DeviceSpec,
    pool: Option<Arc<BouncePool<UserMemory>>>,
}

impl DeviceBuilder {
    /// Where buffers are bounced that the device must not reach as they lie.
    pub fn bounce(mut self, pool: Arc<BouncePool<UserMemory>>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Opens the device: it is taken from whoever has it, reset where it can be, and makes no DMA
    /// before [`Pci::enable_bus_mastering`].
    ///
    /// # Errors
    /// [`Error`]: what stands in the way, and what to do about it. Nothing is then open.
    pub fn open(self) -> Result<Device, Error> {
        let Self { space, device, spec, pool } = self;
        if !spec.snoops {
            return Err(Error::NotSnooping { device });
        }
        let host = &space.inner.host;
        let candidate = checks::check(&host.inner.sysfs, device, space.inner.backend)?;
        host.take(candidate, space.inner.number)?;
        let claim = Arc::new(Claim { host: host.clone(), candidate });
        let mut state = space.inner.state.lock();
        let (pci, domain) = space.enter(&mut state, candidate, claim)?;
        let stream = state.next_stream;
        state.next_stream += 1;
        drop(state);
        domain.translation().admit(stream, pci.clone());
        let dma = domain.attach(spec, &[Stream::new(stream)], pool)?;
        Ok(Device { dma, pci, space })
    }
}

type Entered = (Arc<Pci>, Arc<Domain<UserMemory, AddressSpace>>);

impl Space {
    /// Puts a device into the kernel's address space, and makes the domain of the first one.
    fn enter(
        &self,
        state: &mut State,
        candidate: Candidate,
        claim: Arc<Claim>,
    ) -> Result<Entered, Error> {
        let host = &self.inner.host.inner;
        let opened = match &state.opened {
            Some(opened) => opened.clone(),
            None => {
                open::space(self.inner.backend, &host.sysfs, &mut host.iommufd.lock(), candidate)?
            }
        };
        let pci = Arc::new(open::device(&opened, &host.sysfs, candidate, claim)?);
        if let Some(domain) = &state.domain {
            self.still_fits(domain, candidate.device)?;
            return Ok((pci, domain.clone()));
        }
        let domain = self.domain_of(&opened, candidate)?;
        state.domain = Some(domain.clone());
        state.opened = Some(opened);
        Ok((pci, domain))
    }

    fn domain_of(
        &self,
        opened: &Opened,
        candidate: Candidate,
    ) -> Result<Arc<Domain<UserMemory, AddressSpace>>, Error> {
        let (device, backend) = (candidate.device, self.inner.backend);
        let host = &self.inner.host.inner;
        let kernel = opened.kernel(&host.sysfs, device);
        let limits = kernel.limits().map_err(|error| {
            let what = "what its address space can map".into();
            Error::Kernel { device, what, error }
        })?;
        open::check_granule(device, &limits, host.memory)?;
        let name = format!("{backend} group {}", candidate.group);
        let space = AddressSpace::new(kernel, name, &limits, host.memory, host.sysfs.clone());
        let space = space.ok_or(Error::NoAddresses { device, backend })?;
        let reserved = space.holes().into_iter().map(Reserved::hole).collect();
        let config = DomainConfig { reserved, ..DomainConfig::default() };
        Ok(Domain::new(&host.memory, space, &config)?)
    }

    /// Whether a space that is in use can still map what it could, with one more device in it.
    fn still_fits(
        &self,
        domain: &Domain<UserMemory, AddressSpace>,
        device: Bdf,
    ) -> Result<(), Error> {
        let limits = domain.translation().limits().map_err(|error| {
            let what = "what its address space can map".into();
            Error::Kernel { device, what, error }
        })?;
        open::check_granule(device, &limits, self.inner.host.inner.memory)?;
        match domain.translation().lost(&limits) {
            Some(lost) => Err(Error::Narrower { device, lost }),
            None => Ok(()),
        }
    }
}

/// A device is noted as open for as long as this lives: until its last handle is closed.
struct Claim {
    host: Host,
    candidate: Candidate,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.host.give_back(self.candidate);
    }
}

/// An open device: its DMA, and its registers.
///
/// A handle: clones are of the same device. When the last one is gone, and the last handle of its
/// [`dma::Device`], its bus mastering is off and it is closed.
#[derive(Clone)]
pub struct Device {
    // Dropped in this order: the device ends its DMA, then it is closed.
    dma: dma::Device,
    pci: Arc<Pci>,
    space: Space,
}

impl Device {
    /// The DMA API, for this device.
    pub fn dma(&self) -> &dma::Device {
        &self.dma
    }

    /// Configuration space, registers, bus mastering.
    pub fn pci(&self) -> &Arc<Pci> {
        &self.pci
    }

    /// Where it is.
    pub fn address(&self) -> Bdf {
        self.pci.address()
    }

    /// Its IOMMU group.
    pub fn group(&self) -> u32 {
        self.pci.group()
    }

    /// Its address space.
    pub fn space(&self) -> &Space {
        &self.space
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("address", &self.address()).finish_non_exhaustive()
    }
}
