//! A bus master: it is programmed with DMA addresses and reads and writes memory through whatever
//! stands between.

#![forbid(unsafe_code)]

use std::sync::Arc;

use granule::addr::{Access, DmaAddr, DmaRange, Iova, PhysAddr, PhysRange};

use crate::iommu::{FaultReason, Reach, SimIommu, StreamState, Target, Via};
use crate::memory::Memory;

/// A stream of an IOMMU, as a device is wired to it.
#[derive(Clone, Debug)]
pub struct Port {
    /// The IOMMU.
    pub iommu: Arc<SimIommu>,
    /// The stream.
    pub stream: u32,
}

/// The way from a device to memory.
#[derive(Clone, Debug)]
pub enum Route {
    /// On the bus with no IOMMU: DMA address `window.start()` is physical address `phys`, and so on
    /// to the window's end.
    Direct {
        /// The DMA addresses that lead to memory.
        window: DmaRange,
        /// Where the first of them leads.
        phys: PhysAddr,
    },
    /// Through one or more streams. A transfer goes through all of them, and all must agree.
    Streams(Vec<Port>),
}

/// Why a transfer stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaCause {
    /// The device cannot emit the address.
    #[error("the address is beyond the device's mask of {bits} bits")]
    BeyondMask {
        /// How many address bits it has.
        bits: u32,
    },
    /// The address lies outside the window that the bus gives the device.
    #[error("the address is outside the device's window {window}")]
    OutsideWindow {
        /// The window.
        window: DmaRange,
    },
    /// An IOMMU refused it.
    #[error("{iommu}, stream {stream}: {reason}")]
    Iommu {
        /// The IOMMU.
        iommu: String,
        /// The stream.
        stream: u32,
        /// Why.
        reason: FaultReason,
    },
    /// Two IOMMUs lead to different places.
    #[error("{first} leads to {first_phys:#x}, {second} to {second_phys:#x}")]
    Mismatch {
        /// One IOMMU.
        first: String,
        /// Where it leads.
        first_phys: PhysAddr,
        /// The other.
        second: String,
        /// Where that leads.
        second_phys: PhysAddr,
    },
    /// The address is fine, but there is no memory.
    #[error("there is no memory at {phys:#x}")]
    NoMemory {
        /// The physical address.
        phys: PhysAddr,
    },
    /// The device is wired to nothing.
    #[error("the device has no route to memory")]
    NoRoute,
}

/// A transfer that stopped. What lies before `at` was transferred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {access} at {at:#x} failed after {done:#x} bytes: {cause}")]
pub struct DmaFault {
    /// The device.
    pub device: String,
    /// Where it stopped.
    pub at: DmaAddr,
    /// What it wanted.
    pub access: Access,
    /// How many bytes were transferred before.
    pub done: u64,
    /// Why.
    pub cause: Box<DmaCause>,
}

/// A bus master.
#[derive(Clone, Debug)]
pub struct SimDevice {
    name: String,
    route: Route,
    address_bits: u32,
    window: Option<DmaRange>,
    snoops: bool,
    memory: Memory,
}

impl SimDevice {
    /// A device that emits 64-bit addresses and snoops.
    pub fn new(name: &str, route: Route, memory: Memory) -> Self {
        Self { name: name.into(), route, address_bits: 64, window: None, snoops: true, memory }
    }

    /// Limits the addresses that it can emit to `bits`.
    #[must_use]
    pub fn with_address_bits(mut self, bits: u32) -> Self {
        self.address_bits = bits.min(64);
        self
    }

    /// Limits the addresses that reach its IOMMUs (`apple,dma-range`).
    #[must_use]
    pub fn with_window(mut self, window: Option<DmaRange>) -> Self {
        self.window = window;
        self
    }

    /// Sets whether its accesses snoop the CPU's caches.
    #[must_use]
    pub fn with_snooping(mut self, snoops: bool) -> Self {
        self.snoops = snoops;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its way to memory.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Whether its accesses snoop.
    pub fn snoops(&self) -> bool {
        self.snoops
    }

    /// Reads from `address` on, page by page.
    ///
    /// # Errors
    /// [`DmaFault`] at the first page that cannot be read; what came before was read.
    pub fn read(&self, address: DmaAddr, out: &mut [u8]) -> Result<(), DmaFault> {
        let len = out.len();
        self.transfer(address, len, Access::READ, &mut |target, from, to| {
            self.memory.master(self.snoops).read(target.phys, &mut out[from..to])
        })
    }

    /// Writes from `address` on, page by page.
    ///
    /// # Errors
    /// [`DmaFault`] at the first page that cannot be written; what came before was written.
    pub fn write(&self, address: DmaAddr, data: &[u8]) -> Result<(), DmaFault> {
        self.transfer(address, data.len(), Access::WRITE, &mut |target, from, to| {
            self.memory.master(self.snoops).write(target.phys, &data[from..to])
        })
    }

    fn transfer(
        &self,
        address: DmaAddr,
        len: usize,
        access: Access,
        act: &mut dyn FnMut(Target, usize, usize) -> bool,
    ) -> Result<(), DmaFault> {
        let mut done = 0;
        while done < len {
            let at = DmaAddr::new(address.raw().wrapping_add(done as u64));
            let fault = |cause| {
                let device = self.name.clone();
                DmaFault { device, at, access, done: done as u64, cause: Box::new(cause) }
            };
            let wraps = address.checked_add(done as u64).is_none();
            let beyond = DmaCause::BeyondMask { bits: self.address_bits };
            let ports = match &self.route {
                Route::Streams(ports) => &ports[..],
                Route::Direct { .. } => &[],
            };
            let _on_its_way: Vec<_> = ports.iter().map(|port| port.iommu.transfer()).collect();
            let target = if wraps { Err(beyond) } else { self.resolve(at, access) };
            let target = target.map_err(fault)?;
            let rest = (len - done) as u64;
            // At most a page of memory at a time: where RAM ends inside a run, the part before it
            // is transferred.
            let to_page_end = 4096 - (target.phys.raw() & 4095);
            let step = rest.min(target.len).min(to_page_end) as usize;
            if !act(target, done, done + step) {
                return Err(fault(DmaCause::NoMemory { phys: target.phys }));
            }
            done += step;
        }
        Ok(())
    }

    /// Where the device's access to `address` leads, without transferring anything: fills and uses
    /// the IOMMUs' caches as an access does.
    ///
    /// # Errors
    /// [`DmaCause`].
    pub fn resolve(&self, address: DmaAddr, access: Access) -> Result<Target, DmaCause> {
        let bits = self.address_bits;
        if bits < 64 && address.raw() >> bits != 0 {
            return Err(DmaCause::BeyondMask { bits });
        }
        let mask_end = if bits < 64 { (1u64 << bits) - address.raw() } else { u64::MAX };
        let limit = match self.window {
            Some(window) if !window.contains(address) => {
                return Err(DmaCause::OutsideWindow { window });
            }
            Some(window) => mask_end.min(window.last().raw() - address.raw() + 1),
            None => mask_end,
        };
        let target = match &self.route {
            Route::Direct { window, phys } => direct(*window, *phys, address)?,
            Route::Streams(ports) => through(ports, address, access)?,
        };
        Ok(Target { len: target.len.min(limit), ..target })
    }

    /// Everything that the device reaches now (see [`SimIommu::reachable`]); of a device with
    /// several streams, what any of them reaches.
    pub fn reachable(&self) -> Vec<Reach> {
        match &self.route {
            Route::Direct { window, phys } => self.direct_reach(*window, *phys),
            Route::Streams(ports) => ports
                .iter()
                .flat_map(|port| port.iommu.reachable(port.stream).unwrap_or_default())
                .collect(),
        }
    }

    fn direct_reach(&self, window: DmaRange, phys: PhysAddr) -> Vec<Reach> {
        let Ok(seen) = PhysRange::new(phys, window.len()) else { return Vec::new() };
        let ram = self.memory.ram();
        let reach = ram.ranges().filter_map(|range| {
            let phys = range.intersection(&seen)?;
            let iova = window.start().raw() + (phys.start().raw() - seen.start().raw());
            Some(Reach::untranslated(phys, Iova::new(iova), Via::Direct))
        });
        reach.collect()
    }

    /// Whether every stream translates: only then is anything enforced.
    pub fn is_translated(&self) -> bool {
        let Route::Streams(ports) = &self.route else { return false };
        ports.iter().all(|port| {
            let bypass = Ok(StreamState::Bypass);
            port.iommu.stream(port.stream) != bypass
        })
    }

    /// The address that the device emits so that its IOMMU sees `iova`. Where the IOMMU indexes the
    /// low bits only, the window supplies the upper ones. `None` if the window has no such address.
    pub fn address_of(&self, iova: Iova) -> Option<DmaAddr> {
        let same = DmaAddr::new(iova.raw());
        let (Some(window), Route::Streams(ports)) = (self.window, &self.route) else {
            return Some(same);
        };
        let config = ports.first()?.iommu.config();
        let above = window.start().raw() & !((1 << config.input_bits) - 1);
        let indexed = iova.raw() >> config.input_bits == 0;
        let lifted = DmaAddr::new(above | iova.raw());
        let address = if config.index_low_bits && indexed { lifted } else { same };
        window.contains(address).then_some(address)
    }
}

fn direct(window: DmaRange, phys: PhysAddr, address: DmaAddr) -> Result<Target, DmaCause> {
    let outside = DmaCause::OutsideWindow { window };
    if !window.contains(address) {
        return Err(outside);
    }
    let offset = address.raw() - window.start().raw();
    let phys = phys.checked_add(offset).ok_or(outside)?;
    Ok(Target { phys, len: window.len() - offset })
}

fn through(ports: &[Port], address: DmaAddr, access: Access) -> Result<Target, DmaCause> {
    let mut agreed: Option<(Target, &Port)> = None;
    for port in ports {
        let name = || port.iommu.config().name.clone();
        let target = port
            .iommu
            .access(port.stream, address, access)
            .map_err(|reason| DmaCause::Iommu { iommu: name(), stream: port.stream, reason })?;
        agreed = match agreed {
            None => Some((target, port)),
            Some((other, _)) if other.phys == target.phys => {
                let len = other.len.min(target.len);
                Some((Target { len, ..target }, port))
            }
            Some((other, first)) => {
                return Err(DmaCause::Mismatch {
                    first: first.iommu.config().name.clone(),
                    first_phys: other.phys,
                    second: name(),
                    second_phys: target.phys,
                });
            }
        };
    }
    agreed.map(|(target, _)| target).ok_or(DmaCause::NoRoute)
}
