//! An `edu` device behind a domain, with memory of its own to look at what it has.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use granule::addr::{DmaAddr, Iova};
use granule::bounce::BouncePool;
use granule::dma::{Coherent, Device, DeviceSpec, MapFlags};
use granule::domain::InvalidationPolicy;

use crate::edu::{CAPACITY, Edu};
use crate::platform::Lab;
use crate::rig::{Failure, Rig, RigDomain, Sabotage, domain};

/// What the device's memory is filled with before it reads: neither data nor the zeroes of a fault.
const BEFORE_READ: u8 = 0xd7;

/// What the memory that it is to show its contents in is filled with before.
const BEFORE_SHOW: u8 = 0xe9;

/// A device with a domain of its own.
pub(crate) struct Player<'e, R: Rig> {
    edu: &'e Edu,
    /// granule's handle of it.
    pub device: Device,
    /// Its domain.
    pub domain: Arc<RigDomain<R>>,
    /// Always mapped: the way into and out of the device's own memory.
    mirror: Coherent<Device>,
}

impl<'e, R: Rig> Player<'e, R> {
    /// Puts the device behind a new domain.
    pub(crate) fn new(
        rig: &R,
        sabotage: Option<Sabotage>,
        edu: &'e Edu,
        policy: InvalidationPolicy,
        spec: DeviceSpec,
        pool: Option<Arc<BouncePool<Lab>>>,
    ) -> Result<Self, Failure> {
        let domain = domain(rig, sabotage, edu.rid, policy)?;
        let device = domain.attach(spec, &[rig.stream(edu.rid)?], pool)?;
        let mirror = Coherent::new(device.clone(), CAPACITY as u64, MapFlags::GUARD)?;
        Ok(Self { edu, device, domain, mirror })
    }

    /// The granule of its domain, in bytes.
    pub(crate) fn granule(&self) -> u64 {
        self.domain.granule().size()
    }

    /// Puts bytes into the device's own memory.
    fn load(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.mirror.write(0, bytes)?;
        self.edu.read(self.mirror.address(), 0, bytes.len());
        Ok(())
    }

    /// The first bytes of the device's own memory.
    fn show(&self, len: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![BEFORE_SHOW; len];
        self.mirror.write(0, &bytes)?;
        self.edu.write(self.mirror.address(), 0, len);
        self.mirror.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Lets the device write these bytes.
    pub(crate) fn put(&self, to: DmaAddr, bytes: &[u8]) -> Result<(), Failure> {
        for (index, chunk) in bytes.chunks(CAPACITY).enumerate() {
            self.load(chunk)?;
            self.edu.write(at(to, index * CAPACITY), 0, chunk.len());
        }
        Ok(())
    }

    /// Lets the device read, and tells what it got.
    pub(crate) fn get(&self, from: DmaAddr, len: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while bytes.len() < len as usize {
            let count = CAPACITY.min(len as usize - bytes.len());
            self.load(&vec![BEFORE_READ; count])?;
            self.edu.read(at(from, bytes.len()), 0, count);
            bytes.extend(self.show(count)?);
        }
        Ok(bytes)
    }

    /// Whether the domain's entry for an address lets the device read.
    pub(crate) fn may_read(&self, address: DmaAddr) -> bool {
        use granule::addr::Access;
        use granule::domain::Translation;
        let resolved = self.domain.translation().resolve(Iova::new(address.raw()));
        resolved.is_some_and(|to| to.attributes.access.contains(Access::READ))
    }
}

/// The address `offset` bytes on.
pub(crate) fn at(address: DmaAddr, offset: usize) -> DmaAddr {
    DmaAddr::new(address.raw() + offset as u64)
}
