//! A buffer that several devices have, each as one contiguous range.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::plan::Party;
use super::{AddressGrant, Contiguous, Key, ShareError, Solved, Windows};
use crate::addr::{Access, Direction, DmaAddr, PhysRange};
use crate::dma::{BlockPlacement, Blocks, Device, Live, Side, crosses};

/// Numbers buffers, so that a key of one is no key of another.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// One device's mapping.
pub(super) struct Leg {
    number: u64,
    device: Device,
    pub(super) live: Live,
    access: Access,
    /// Tells address spaces apart; `None` for a direct device.
    pub(super) space: Option<(usize, u64)>,
}

impl Leg {
    /// Whether the two are one mapping, of a domain that both devices are in.
    fn is_one_with(&self, other: &Self) -> bool {
        self.space.is_some() && self.space == other.space && self.live.mapped == other.live.mapped
    }
}

/// A buffer that several devices have.
///
/// Dropping it takes it from all of them, then frees the memory. If one of them cannot be made to
/// forget it, the memory is leaked.
pub struct Shared {
    pub(super) blocks: ManuallyDrop<Arc<Blocks>>,
    len: u64,
    number: u64,
    next_leg: u64,
    pub(super) guard: bool,
    pub(super) legs: Vec<Leg>,
    /// Some leg may still be reached: the memory is never given back.
    lost: bool,
}

impl Solved {
    /// Allocates the memory and maps it for every device, or for none.
    ///
    /// # Errors
    /// [`ShareError`]; nothing is then mapped or kept (but for what an invalidation that failed
    /// leaves in quarantine).
    pub fn allocate(&self) -> Result<Shared, ShareError> {
        let blocks = self.blocks()?;
        let mut shared = Shared {
            blocks: ManuallyDrop::new(Arc::new(blocks)),
            len: self.len,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            next_leg: 0,
            guard: self.guard,
            legs: Vec::with_capacity(self.parties.len()),
            lost: false,
        };
        let now: Vec<_> = self.parties.iter().filter(|party| !party.is_later()).collect();
        if self.same_address {
            shared.map_at_one_address(&now)?;
        } else {
            for party in now {
                shared.add_anywhere(party)?;
            }
        }
        Ok(shared)
    }
}

impl Shared {
    /// Maps the buffer for a device. What an earlier one got stays. `mapped` is what the mapping
    /// allows, `party.access` or more.
    pub(super) fn add(
        &mut self,
        party: &Party,
        mapped: Access,
        at: Option<DmaAddr>,
    ) -> Result<Key, ShareError> {
        let place = BlockPlacement { access: mapped, guard: self.guard, at, len: self.len };
        // SAFETY: the blocks are owned here, and given back only when every device has lost them.
        match unsafe { party.device.ops().map_blocks(self.blocks.blocks(), &place) } {
            Ok(live) => {
                let key = self.push(party, live);
                self.check_boundary(party, &live)?;
                Ok(key)
            }
            Err(error) => {
                self.lost |= error.is_stale();
                Err(error.into())
            }
        }
    }

    pub(super) fn push(&mut self, party: &Party, live: Live) -> Key {
        let leg = Leg {
            number: self.next_leg,
            device: party.device.clone(),
            live,
            access: party.access,
            space: party.space(),
        };
        self.next_leg += 1;
        let key = self.key_of(&leg);
        self.legs.push(leg);
        key
    }

    /// Takes the newest mapping back if it crosses the device's boundary: a direct device's address
    /// is where the memory is.
    fn check_boundary(&mut self, party: &Party, live: &Live) -> Result<(), ShareError> {
        let boundary = party.device.spec().boundary;
        if !crosses(live.dma.raw(), self.len, boundary) {
            return Ok(());
        }
        if let Some(leg) = self.legs.pop() {
            self.end(&leg)?;
        }
        Err(ShareError::Boundary { device: party.device.name().into(), boundary, len: self.len })
    }

    /// Gives the buffer to one more device, if the memory happens to meet its constraints.
    ///
    /// # Errors
    /// [`ShareError::LateAlignment`], [`ShareError::LateReach`], [`ShareError::LateContiguity`] if it
    /// does not; [`ShareError::Attached`] if the device has it already.
    pub fn attach(
        &mut self,
        device: &Device,
        access: Access,
    ) -> Result<Contiguous<'_>, ShareError> {
        if access.is_empty() {
            return Err(ShareError::NoAccess { device: device.name().into() });
        }
        if self.legs.iter().any(|leg| leg.device.is(device)) {
            return Err(ShareError::Attached { device: device.name().into() });
        }
        let party = Party::new(device, access);
        self.check_late(&party)?;
        let key = self.add_anywhere(&party)?;
        self.get(key)
    }

    fn check_late(&self, party: &Party) -> Result<(), ShareError> {
        let device = || -> String { party.device.name().into() };
        if party.device.ops().frames().machine() != self.blocks.machine() {
            let first = self.legs.first().map(|leg| leg.device.name().into()).unwrap_or_default();
            return Err(ShareError::Machines { first, second: device() });
        }
        let (blocks, constraints) = (self.blocks.blocks(), party.constraints());
        if constraints.contiguous && blocks.len() > 1 {
            return Err(ShareError::LateContiguity { device: device(), blocks: blocks.len() });
        }
        if let Some(granule) = party.granule() {
            if let Some(block) = blocks.iter().find(|block| !block.is_aligned(granule)) {
                return Err(ShareError::LateAlignment {
                    device: device(),
                    align: granule,
                    block: *block,
                });
            }
        }
        if let Some(block) = blocks.iter().find(|block| !constraints.windows.contains(block)) {
            let windows: Windows = constraints.windows.clone();
            return Err(ShareError::LateReach { device: device(), windows, block: *block });
        }
        party.check_descriptors(self.len)
    }

    /// Takes the buffer away from one device; the others keep it.
    ///
    /// # Errors
    /// [`ShareError::ForeignKey`]; [`ShareError::Unmap`] if the device could not be made to forget
    /// it: the memory is then never given back.
    pub fn detach(&mut self, key: Key) -> Result<(), ShareError> {
        let index = self
            .legs
            .iter()
            .position(|leg| self.key_of(leg) == key)
            .ok_or(ShareError::ForeignKey)?;
        let leg = self.legs.remove(index);
        self.end(&leg)
    }

    fn end(&mut self, leg: &Leg) -> Result<(), ShareError> {
        if self.legs.iter().any(|other| other.is_one_with(leg)) {
            leg.device.ops().leave(&leg.live);
            return Ok(());
        }
        // SAFETY: the leg was taken out of the list: its mapping ends once.
        let result = unsafe { leg.device.ops().end(&leg.live) };
        self.lost |= result.is_err();
        result.map(|_| ()).map_err(ShareError::from)
    }

    /// Takes the buffer from all devices. All are tried; the first error is returned.
    pub(super) fn drop_legs(&mut self) -> Result<(), ShareError> {
        let mut result = Ok(());
        while let Some(leg) = self.legs.pop() {
            result = result.and(self.end(&leg));
        }
        result
    }

    fn key_of(&self, leg: &Leg) -> Key {
        Key { buffer: self.number, leg: leg.number }
    }

    fn contiguous<'s>(&'s self, leg: &'s Leg) -> Contiguous<'s> {
        Contiguous {
            device: &leg.device,
            key: self.key_of(leg),
            live: &leg.live,
            access: leg.access,
        }
    }

    /// One device's range.
    ///
    /// # Errors
    /// [`ShareError::ForeignKey`] for a key of another buffer, or of a device that was let go.
    pub fn get(&self, key: Key) -> Result<Contiguous<'_>, ShareError> {
        let leg = self.legs.iter().find(|leg| self.key_of(leg) == key);
        leg.map(|leg| self.contiguous(leg)).ok_or(ShareError::ForeignKey)
    }

    /// A device's range, if it has the buffer.
    pub fn range_of(&self, device: &Device) -> Option<Contiguous<'_>> {
        let leg = self.legs.iter().find(|leg| leg.device.is(device));
        leg.map(|leg| self.contiguous(leg))
    }

    /// All devices' ranges, in the order of the plan.
    pub fn ranges(&self) -> impl Iterator<Item = Contiguous<'_>> {
        self.legs.iter().map(|leg| self.contiguous(leg))
    }

    /// Lets a device carry the address that the buffer has in another device's space. Nothing is
    /// mapped: the bearer cannot read the memory through it.
    ///
    /// # Errors
    /// [`ShareError::ForeignKey`].
    pub fn grant_address<'s>(
        &'s self,
        of: Key,
        bearer: &'s Device,
    ) -> Result<AddressGrant<'s>, ShareError> {
        let range = self.get(of)?;
        Ok(AddressGrant {
            bearer: bearer.name(),
            valid_for: range.device.name(),
            address: range.address(),
            len: range.len(),
        })
    }

    /// The length in bytes, as asked for.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The size in bytes of the memory: padding included.
    pub fn size(&self) -> u64 {
        self.blocks.size()
    }

    /// Where it lies.
    pub fn blocks(&self) -> &[PhysRange] {
        self.blocks.blocks()
    }

    /// The CPU's pointer to the first byte, if the platform shows the memory as one range. Devices
    /// may access the memory at any moment: use volatile or atomic accesses.
    pub fn as_ptr(&self) -> Option<NonNull<u8>> {
        self.blocks.ptr()
    }

    /// Copies bytes out; first [`sync_for_cpu`](Self::sync_for_cpu) if a device does not snoop.
    ///
    /// # Errors
    /// [`ShareError::OutOfBounds`].
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ShareError> {
        self.check(offset, bytes.len() as u64)?;
        self.blocks.read(offset, bytes);
        Ok(())
    }

    /// Copies bytes in; then [`sync_for_device`](Self::sync_for_device) if a device does not snoop.
    ///
    /// # Errors
    /// [`ShareError::OutOfBounds`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), ShareError> {
        self.check(offset, bytes.len() as u64)?;
        self.blocks.write(offset, bytes);
        Ok(())
    }

    /// Makes what devices wrote to a part visible to the CPU, where a device does not snoop.
    ///
    /// # Errors
    /// [`ShareError::OutOfBounds`].
    pub fn sync_for_cpu(&self, offset: u64, len: u64) -> Result<(), ShareError> {
        self.sync(offset, len, Side::Cpu)
    }

    /// Makes what the CPU wrote to a part visible to devices that do not snoop.
    ///
    /// # Errors
    /// [`ShareError::OutOfBounds`].
    pub fn sync_for_device(&self, offset: u64, len: u64) -> Result<(), ShareError> {
        self.sync(offset, len, Side::Device)
    }

    fn sync(&self, offset: u64, len: u64, side: Side) -> Result<(), ShareError> {
        self.check(offset, len)?;
        if self.legs.iter().any(|leg| !leg.device.spec().snoops) {
            self.blocks.sync(offset, len, Direction::Bidirectional, side);
        }
        Ok(())
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), ShareError> {
        let end = offset.saturating_add(len);
        if end <= self.len {
            Ok(())
        } else {
            Err(ShareError::OutOfBounds { offset, end, len: self.len })
        }
    }

    /// Takes the buffer from all devices and frees the memory.
    ///
    /// # Errors
    /// [`ShareError::Unmap`] of the first device that could not be made to forget it; the memory is
    /// then leaked.
    pub fn free(mut self) -> Result<(), ShareError> {
        self.drop_legs()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let ended = self.drop_legs();
        if ended.is_ok() && !self.lost {
            // SAFETY: every device has lost the memory; not used again.
            unsafe { ManuallyDrop::drop(&mut self.blocks) };
        }
    }
}

impl core::fmt::Debug for Shared {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let ranges: Vec<_> =
            self.legs.iter().map(|leg| (leg.device.name(), leg.live.dma)).collect();
        f.debug_struct("Shared")
            .field("len", &self.len)
            .field("ranges", &ranges)
            .finish_non_exhaustive()
    }
}
