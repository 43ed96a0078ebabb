//! Small coherent objects (descriptors, queue entries) cut from larger coherent memory
//! (`dma_pool`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use lock_api::Mutex;

use super::{Coherent, Device, DmaError, MapFlags};
use crate::addr::DmaAddr;
use crate::mem::SpinLock;

/// A pool of coherent objects of one size and alignment.
///
/// A handle; clones are of the same pool. Memory is given back when the last handle and the last
/// object are gone.
#[derive(Clone)]
pub struct CoherentPool {
    shared: Arc<Shared>,
}

struct Shared {
    device: Device,
    size: u64,
    stride: u64,
    chunks: Mutex<SpinLock, Vec<Chunk>>,
}

/// One piece of coherent memory and the indices of its free objects.
struct Chunk {
    memory: Arc<Coherent<Device>>,
    free: Vec<u32>,
}

/// An object of a pool; it goes back when dropped.
pub struct PoolObject {
    shared: Arc<Shared>,
    memory: Arc<Coherent<Device>>,
    index: u32,
}

impl CoherentPool {
    /// A pool of objects of `size` bytes, each at a DMA address that is a multiple of `align`, a
    /// power of two up to the device's granule.
    ///
    /// # Errors
    /// [`DmaError::Empty`] for objects of 0 bytes; [`DmaError::OutOfBounds`] for an alignment that is
    /// no power of two or larger than what coherent memory is aligned to.
    pub fn new(device: &Device, size: u64, align: u64) -> Result<Self, DmaError> {
        let name = || device.name().into();
        if size == 0 {
            return Err(DmaError::Empty { device: name() });
        }
        let most = device.merge_boundary().map_or(4096, |granule| granule.size());
        let stride =
            size.checked_add(align.saturating_sub(1)).map(|sum| sum & !(align.saturating_sub(1)));
        let (true, Some(stride)) = (align.is_power_of_two() && align <= most, stride) else {
            return Err(DmaError::OutOfBounds { device: name(), offset: 0, end: align, len: most });
        };
        let chunks = Mutex::new(Vec::new());
        Ok(Self { shared: Arc::new(Shared { device: device.clone(), size, stride, chunks }) })
    }

    /// Takes an object: zeroed when its memory is new, else as its last owner left it.
    ///
    /// # Errors
    /// [`DmaError`] if the pool is empty and no more coherent memory can be had.
    pub fn alloc(&self) -> Result<PoolObject, DmaError> {
        if let Some(object) = self.take() {
            return Ok(object);
        }
        // Allocated outside the lock; if another CPU did the same, the pool is larger for it.
        let chunk = self.grow()?;
        self.shared.chunks.lock().push(chunk);
        self.take().ok_or_else(|| DmaError::Frames {
            device: self.shared.device.name().into(),
            cause: crate::mem::FrameError::OutOfMemory,
        })
    }

    fn take(&self) -> Option<PoolObject> {
        let mut chunks = self.shared.chunks.lock();
        let chunk = chunks.iter_mut().rev().find(|chunk| !chunk.free.is_empty())?;
        let index = chunk.free.pop()?;
        Some(PoolObject { shared: self.shared.clone(), memory: chunk.memory.clone(), index })
    }

    fn grow(&self) -> Result<Chunk, DmaError> {
        let device = &self.shared.device;
        let unit = device.merge_boundary().map_or(4096, |granule| granule.size());
        let len = self.shared.stride.max(unit);
        let memory = Coherent::new(device.clone(), len, MapFlags::empty())?;
        let count = u32::try_from(len / self.shared.stride).unwrap_or(u32::MAX);
        Ok(Chunk { memory: Arc::new(memory), free: (0..count).rev().collect() })
    }

    /// The size of an object in bytes.
    pub fn object_size(&self) -> u64 {
        self.shared.size
    }

    /// How many bytes of coherent memory the pool holds.
    pub fn memory_size(&self) -> u64 {
        self.shared.chunks.lock().iter().map(|chunk| chunk.memory.len()).sum()
    }
}

impl PoolObject {
    fn offset(&self) -> u64 {
        u64::from(self.index) * self.shared.stride
    }

    /// The address that the device is programmed with.
    pub fn address(&self) -> DmaAddr {
        // The object lies inside the memory, whose addresses do not wrap.
        DmaAddr::new(self.memory.address().raw() + self.offset())
    }

    /// The size in bytes.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.shared.size
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if they are not inside the object.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.check(offset, bytes.len())?;
        self.memory.read(self.offset() + offset, bytes)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if they do not fit the object.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DmaError> {
        self.check(offset, bytes.len())?;
        self.memory.write(self.offset() + offset, bytes)
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), DmaError> {
        let end = offset.saturating_add(len as u64);
        if end <= self.len() {
            return Ok(());
        }
        Err(DmaError::OutOfBounds {
            device: self.shared.device.name().into(),
            offset,
            end,
            len: self.len(),
        })
    }
}

impl Drop for PoolObject {
    fn drop(&mut self) {
        let mut chunks = self.shared.chunks.lock();
        if let Some(chunk) =
            chunks.iter_mut().find(|chunk| Arc::ptr_eq(&chunk.memory, &self.memory))
        {
            // Room was made for every index when the chunk was.
            chunk.free.push(self.index);
        }
    }
}
