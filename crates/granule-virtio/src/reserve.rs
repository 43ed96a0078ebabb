//! The reserve: memory that is mapped for good, for buffers that cannot be mapped.

use alloc::vec::Vec;

use granule::dma::{Coherent, Device, DmaError, MapFlags};

/// Parts begin at multiples of this, in bytes.
const ALIGN: u64 = 64;

/// Coherent memory, and which parts of it are lent.
pub(crate) struct Reserve {
    memory: Coherent<Device>,
    /// Offset and length of each part that is lent, in order.
    lent: Vec<(u64, u64)>,
}

impl Reserve {
    pub(crate) fn new(device: &Device, len: u64) -> Result<Self, DmaError> {
        let memory = Coherent::new(device.clone(), len, MapFlags::empty())?;
        Ok(Self { memory, lent: Vec::new() })
    }

    /// Lends the first part that is free and long enough; answers with its device address.
    pub(crate) fn lend(&mut self, len: u64) -> Option<usize> {
        let len = len.checked_next_multiple_of(ALIGN)?;
        let mut start = 0;
        let mut index = 0;
        for (at, lent) in &self.lent {
            if at - start >= len {
                break;
            }
            start = at + lent;
            index += 1;
        }
        let fits = start.checked_add(len)? <= self.memory.len();
        if !fits || self.lent.try_reserve(1).is_err() {
            return None;
        }
        self.lent.insert(index, (start, len));
        usize::try_from(self.memory.address().checked_add(start)?.raw()).ok()
    }

    /// The offset of the part that is lent at this device address.
    pub(crate) fn offset(&self, address: usize) -> Option<u64> {
        let offset = (address as u64).checked_sub(self.memory.address().raw())?;
        self.lent.iter().any(|(at, _)| *at == offset).then_some(offset)
    }

    /// Takes a part back.
    pub(crate) fn take_back(&mut self, offset: u64) {
        self.lent.retain(|(at, _)| *at != offset);
    }

    /// Copies bytes into a part.
    pub(crate) fn write(&self, address: usize, bytes: &[u8]) -> Result<(), DmaError> {
        let offset = (address as u64).wrapping_sub(self.memory.address().raw());
        self.memory.write(offset, bytes)
    }

    /// Copies bytes out of a part.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.memory.read(offset, bytes)
    }
}
