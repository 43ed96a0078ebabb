//! The slot: what a device has from us now.

use alloc::vec::Vec;
use core::ptr::NonNull;

use granule::addr::Direction;
use granule::dma::{Coherent, Device, DmaError, ForeignMemory, MapFlags, Mapping, Piece};
use granule::mem::SpinLock;
use lock_api::{Mutex, RawMutex};
use virtio_drivers::{BufferDirection, PAGE_SIZE};

use crate::reserve::Reserve;

/// An address that leads nowhere: no IOMMU has an input range, and no machine memory, up there. A
/// length of up to 2^63 bytes behind it does not wrap.
pub const NOWHERE: usize = 1 << (usize::BITS - 1);

/// Why a device could not be bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The slot has a device: make a slot, and a binding, for each.
    #[error("the slot has the device {device} already: make one for each device")]
    Bound {
        /// The device that has it.
        device: alloc::string::String,
    },
    /// The reserve could not be allocated and mapped.
    #[error("the reserve of {bytes} bytes: {cause}")]
    Reserve {
        /// Its size.
        bytes: u64,
        /// Why not.
        cause: DmaError,
    },
}

/// What happened in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotStats {
    /// Buffers that the device has now.
    pub shared: usize,
    /// Blocks of queue memory that the device has now.
    pub blocks: usize,
    /// Buffers that went through the reserve, so far.
    pub reserved: u64,
    /// Buffers that led nowhere, so far.
    pub refused: u64,
    /// Buffers and blocks that the device may have kept, since the IOMMU did not answer. If this is
    /// not 0, nothing more is shared.
    pub lost: u64,
}

/// The device behind a [`GranuleHal`](crate::GranuleHal), and everything that it has from us. Lives in
/// a `static`.
pub struct Slot<L: RawMutex = SpinLock> {
    state: Mutex<L, State>,
}

struct State {
    bound: Option<Bound>,
    stats: SlotStats,
}

struct Bound {
    device: Device,
    reserve: Option<Reserve>,
    blocks: Vec<Coherent<Device>>,
    buffers: Vec<Mapping<Device, ForeignMemory>>,
}

impl<L: RawMutex> Slot<L> {
    /// A slot without a device: whatever is asked of it then fails, or leads nowhere.
    pub const fn new() -> Self {
        let stats = SlotStats { shared: 0, blocks: 0, reserved: 0, refused: 0, lost: 0 };
        Self { state: Mutex::new(State { bound: None, stats }) }
    }

    /// Gives the slot its device, and sets `reserve` bytes aside for buffers that cannot be mapped; 0
    /// for no reserve.
    ///
    /// # Errors
    /// [`BindError`]; the slot is then as it was.
    pub fn bind(&self, device: Device, reserve: u64) -> Result<(), BindError> {
        let mut state = self.state.lock();
        if let Some(bound) = &state.bound {
            return Err(BindError::Bound { device: bound.device.name().into() });
        }
        let made = (reserve != 0).then(|| Reserve::new(&device, reserve)).transpose();
        let reserve = made.map_err(|cause| BindError::Reserve { bytes: reserve, cause })?;
        state.bound = Some(Bound { device, reserve, blocks: Vec::new(), buffers: Vec::new() });
        Ok(())
    }

    /// Takes the device back, if it has nothing from us any more: its driver is gone.
    pub fn unbind(&self) -> Option<Device> {
        let mut state = self.state.lock();
        match &state.bound {
            Some(bound) if bound.blocks.is_empty() && bound.buffers.is_empty() => {}
            _ => return None,
        }
        state.bound.take().map(|bound| bound.device)
    }

    /// What happened so far.
    pub fn stats(&self) -> SlotStats {
        self.state.lock().stats
    }

    /// Queue memory: whole pages, zeroed, coherent.
    pub(crate) fn alloc(&self, pages: usize) -> Option<(usize, NonNull<u8>)> {
        let mut state = self.state.lock();
        let State { bound, stats } = &mut *state;
        let bound = bound.as_mut().filter(|_| stats.lost == 0)?;
        bound.blocks.try_reserve(1).ok()?;
        let len = u64::try_from(pages.checked_mul(PAGE_SIZE)?).ok()?;
        let block = Coherent::new(bound.device.clone(), len, MapFlags::empty()).ok()?;
        let address = usize::try_from(block.address().raw()).ok()?;
        let aligned = |ptr: &NonNull<u8>| ptr.addr().get() % PAGE_SIZE == 0;
        // Without one view of all of it the crate cannot use it.
        let ptr = block.as_ptr().filter(aligned)?;
        bound.blocks.push(block);
        stats.blocks += 1;
        Some((address, ptr))
    }

    pub(crate) fn free(&self, address: usize) {
        let mut state = self.state.lock();
        let State { bound, stats } = &mut *state;
        let Some(bound) = bound else { return };
        let is_it = |block: &Coherent<Device>| block.address().raw() == address as u64;
        let Some(index) = bound.blocks.iter().position(is_it) else { return };
        stats.blocks -= 1;
        if bound.blocks.swap_remove(index).free().is_err() {
            stats.lost += 1;
        }
    }

    /// # Safety
    /// As [`Hal::share`](virtio_drivers::Hal::share), and the buffer stays valid until `unshare`.
    pub(crate) unsafe fn share(&self, buffer: NonNull<[u8]>, direction: BufferDirection) -> usize {
        let mut state = self.state.lock();
        let State { bound, stats } = &mut *state;
        // SAFETY: the caller's promise.
        let shared = unsafe {
            bound.as_mut().filter(|_| stats.lost == 0).and_then(|bound| {
                bound.map(buffer, direction).or_else(|| {
                    let address = bound.copy_in(buffer)?;
                    stats.reserved += 1;
                    Some(address)
                })
            })
        };
        match shared {
            Some(_) => stats.shared += 1,
            None => stats.refused += 1,
        }
        shared.unwrap_or(NOWHERE)
    }

    /// # Safety
    /// As [`Hal::unshare`](virtio_drivers::Hal::unshare).
    pub(crate) unsafe fn unshare(
        &self,
        address: usize,
        buffer: NonNull<[u8]>,
        direction: BufferDirection,
    ) {
        let mut state = self.state.lock();
        let State { bound, stats } = &mut *state;
        let Some(bound) = bound else { return };
        let is_it =
            |mapping: &Mapping<Device, ForeignMemory>| mapping.address().raw() == address as u64;
        if let Some(index) = bound.buffers.iter().position(is_it) {
            stats.shared -= 1;
            if bound.buffers.swap_remove(index).unmap().is_err() {
                stats.lost += 1;
            }
            return;
        }
        // SAFETY: the caller's promise.
        if unsafe { bound.copy_out(address, buffer, direction) } {
            stats.shared -= 1;
        }
    }
}

impl<L: RawMutex> Default for Slot<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl Bound {
    /// Maps a buffer where it lies.
    ///
    /// # Safety
    /// The buffer is valid, and left alone until it is unmapped.
    unsafe fn map(&mut self, buffer: NonNull<[u8]>, direction: BufferDirection) -> Option<usize> {
        self.buffers.try_reserve(1).ok()?;
        let piece = Piece::Cpu { ptr: buffer.as_ptr().cast(), len: buffer.len() };
        // SAFETY: the caller's promise.
        let memory = unsafe { ForeignMemory::new(alloc::vec![piece], || {}) };
        let device = self.device.clone();
        let flags = MapFlags::empty();
        let mapping = match direction {
            BufferDirection::DriverToDevice => Mapping::to_device(device, memory, flags),
            BufferDirection::DeviceToDriver => {
                Mapping::new(device, memory, Direction::FromDevice, flags)
            }
            BufferDirection::Both => Mapping::new(device, memory, Direction::Bidirectional, flags),
        };
        let mapping = mapping.ok()?;
        let address = usize::try_from(mapping.address().raw()).ok()?;
        self.buffers.push(mapping);
        Some(address)
    }

    /// Copies a buffer into the reserve, for a device that only writes too: it may write less.
    ///
    /// # Safety
    /// The buffer is valid for reads.
    unsafe fn copy_in(&mut self, buffer: NonNull<[u8]>) -> Option<usize> {
        let reserve = self.reserve.as_mut()?;
        let address = reserve.lend(buffer.len() as u64)?;
        // SAFETY: the caller's promise.
        reserve.write(address, unsafe { buffer.as_ref() }).ok()?;
        Some(address)
    }

    /// Takes a part of the reserve back, and copies what the device wrote. Answers whether there was
    /// one at this address.
    ///
    /// # Safety
    /// The buffer is valid for writes if the device was to write it.
    unsafe fn copy_out(
        &mut self,
        address: usize,
        mut buffer: NonNull<[u8]>,
        direction: BufferDirection,
    ) -> bool {
        let Some(reserve) = &mut self.reserve else { return false };
        let Some(offset) = reserve.offset(address) else { return false };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: the caller's promise. The part is as long as the buffer was.
            let _ = reserve.read(offset, unsafe { buffer.as_mut() });
        }
        reserve.take_back(offset);
        true
    }
}
