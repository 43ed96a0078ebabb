//! Coherent memory: both sides see it at all times (`dma_alloc_coherent`, and
//! `dma_alloc_noncontiguous` where it is made of several blocks).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use super::blocks::{BlockRequest, Blocks};
use super::ops::{BlockPlacement, Live};
use super::{Device, DeviceRef, DmaError, MapFlags};
use crate::addr::{Access, DmaAddr, Granule, PhysRange};
use crate::domain::UnmapError;
use crate::iova::IovaError;

/// Coherent memory of a device: zeroed, contiguous for the device, in whole granules.
///
/// Dropping it takes the memory away from the device and frees it; forgetting it leaks it.
pub struct Coherent<D: DeviceRef> {
    device: ManuallyDrop<D>,
    blocks: ManuallyDrop<Arc<Blocks>>,
    live: Live,
}

impl Device {
    /// Allocates coherent memory.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is then kept.
    pub fn alloc_coherent(&self, len: u64) -> Result<Coherent<&Self>, DmaError> {
        Coherent::new(self, len, MapFlags::empty())
    }
}

impl<D: DeviceRef> Coherent<D> {
    /// Allocates `len` bytes of coherent memory, with attributes.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is then kept.
    pub fn new(device: D, len: u64, flags: MapFlags) -> Result<Self, DmaError> {
        let blocks = Arc::new(allocate(device.device(), len, flags)?);
        Self::of(device, blocks, len, flags)
    }

    /// Maps blocks that exist.
    fn of(device: D, blocks: Arc<Blocks>, len: u64, flags: MapFlags) -> Result<Self, DmaError> {
        let place = BlockPlacement {
            access: Access::all(),
            guard: flags.contains(MapFlags::GUARD),
            at: None,
            len,
        };
        // The blocks are given up before the device can reach them and taken back only when it
        // cannot: if something goes wrong in between, they are leaked.
        let blocks = ManuallyDrop::new(blocks);
        // SAFETY: the blocks are owned here until the mapping has ended.
        let live = unsafe { device.device().ops().map_blocks(blocks.blocks(), &place) };
        match live {
            Ok(live) => Ok(Self { device: ManuallyDrop::new(device), blocks, live }),
            Err(error) => {
                if !error.is_stale() {
                    drop(ManuallyDrop::into_inner(blocks));
                }
                Err(error)
            }
        }
    }

    /// The address that the device is programmed with.
    pub fn address(&self) -> DmaAddr {
        self.live.dma
    }

    /// The length in bytes, as asked for.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.live.len
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.device.device()
    }

    /// The CPU's pointer to the first byte, if the platform shows the memory as one range. The
    /// device may access the memory at any moment: use volatile or atomic accesses.
    pub fn as_ptr(&self) -> Option<NonNull<u8>> {
        self.blocks.ptr()
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if they are not inside.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.check(offset, bytes.len())?;
        self.blocks.read(offset, bytes);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if they do not fit.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DmaError> {
        self.check(offset, bytes.len())?;
        self.blocks.write(offset, bytes);
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), DmaError> {
        let end = offset.saturating_add(len as u64);
        if end <= self.len() {
            return Ok(());
        }
        Err(DmaError::OutOfBounds {
            device: self.device().name().into(),
            offset,
            end,
            len: self.len(),
        })
    }

    /// The physical blocks, as a scatter list for another device (`dma_get_sgtable`). Only memory
    /// that came from here has this: its blocks are whole granules, known, and stay where they are.
    ///
    /// To give the memory to a second device use [`map_for`](Self::map_for), or better
    /// [`Plan`](crate::share::Plan), which allocates for all of them from the start.
    pub fn scatter_list(&self) -> &[PhysRange] {
        self.blocks.blocks()
    }

    /// Maps the same memory for another device, as one contiguous range there too.
    ///
    /// # Errors
    /// [`DmaError`]: blocks that are not whole granules of the other device's domain, several blocks
    /// for a direct device, out of its reach, another machine, or a device that does not snoop where
    /// the CPU's view is cached.
    pub fn map_for<E: DeviceRef>(&self, other: E) -> Result<Coherent<E>, DmaError> {
        let frames = other.device().ops().frames();
        if frames.machine() != self.blocks.machine() {
            return Err(DmaError::OtherMachine { device: other.device().name().into() });
        }
        if !other.device().spec().snoops && !self.blocks.is_uncached() {
            return Err(DmaError::NotCoherent { device: other.device().name().into() });
        }
        Coherent::of(other, Arc::clone(&self.blocks), self.len(), MapFlags::empty())
    }

    /// Takes the memory away from the device and frees it (once no other device has it).
    ///
    /// # Errors
    /// [`UnmapError`] if the hardware did not confirm: the memory is leaked.
    pub fn free(self) -> Result<(), UnmapError> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again; its parts end once, here.
        unsafe {
            let device = ManuallyDrop::take(&mut this.device);
            device.device().ops().end(&this.live)?;
            drop(ManuallyDrop::take(&mut this.blocks));
        }
        Ok(())
    }
}

impl<D: DeviceRef> Drop for Coherent<D> {
    fn drop(&mut self) {
        // SAFETY: the mapping ends once. The blocks are only given back if that is certain.
        unsafe {
            if self.device.device().ops().end(&self.live).is_ok() {
                ManuallyDrop::drop(&mut self.blocks);
            }
            ManuallyDrop::drop(&mut self.device);
        }
    }
}

/// Blocks that suit one device.
fn allocate(device: &Device, len: u64, flags: MapFlags) -> Result<Blocks, DmaError> {
    let name = || device.name().into();
    if len == 0 {
        return Err(DmaError::Empty { device: name() });
    }
    let demands = device.ops().demands();
    let limit = demands.addresses.len();
    if len > limit {
        // Said before all memory is gathered for it.
        let cause = IovaError::TooLarge { size: len, limit }.into();
        return Err(DmaError::Domain { device: name(), cause });
    }
    let source = device.ops().frames();
    let windows: Vec<PhysRange> = demands.windows.iter().map(|(window, _)| *window).collect();
    let request = match demands.translated {
        Some(translated) => BlockRequest {
            len,
            align: translated.granule.max(source.cpu_page()),
            sizes: translated.page_sizes,
            contiguous: flags.contains(MapFlags::CONTIGUOUS),
            boundary: 0,
            windows,
        },
        None => BlockRequest {
            len,
            align: source.cpu_page(),
            sizes: crate::addr::PageSizes::from_bits(u64::MAX),
            contiguous: true,
            boundary: 0,
            windows,
        },
    };
    padding_allowed(device, len, request.align, flags)?;
    let uncached = !device.spec().snoops;
    Blocks::new(source, &request, uncached)
        .map_err(|cause| DmaError::Frames { device: name(), cause })
}

fn padding_allowed(
    device: &Device,
    len: u64,
    granule: Granule,
    flags: MapFlags,
) -> Result<(), DmaError> {
    if flags.contains(MapFlags::NO_PADDING) && !granule.divides(len) {
        return Err(DmaError::Padding { device: device.name().into(), len, granule });
    }
    Ok(())
}
