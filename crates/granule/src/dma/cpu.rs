//! The CPU's turn at memory that a device has: volatile copies between two syncs.

use core::ops::Range;

use super::ops::Side;
use super::{Device, DmaError, Memory, Piece};
use crate::addr::Direction;
use crate::bounce::RawBounceSlot;

/// The CPU's access to a part of a mapped buffer. Dropping it gives the part back to the device
/// (`dma_sync_single_for_device`).
pub struct CpuAccess<'m> {
    device: &'m Device,
    slot: Option<RawBounceSlot>,
    memory: Memory<'m>,
    part: Range<u64>,
    direction: Direction,
    /// What the CPU wrote: offsets in the buffer.
    written: Option<Range<u64>>,
}

impl<'m> CpuAccess<'m> {
    /// Whether a part lies inside `len` bytes.
    pub(super) fn check(device: &Device, part: &Range<u64>, len: u64) -> Result<(), DmaError> {
        if part.start <= part.end && part.end <= len {
            return Ok(());
        }
        let device = device.name().into();
        Err(DmaError::OutOfBounds { device, offset: part.start, end: part.end, len })
    }

    /// # Safety
    /// `memory` is mapped on `device`, with this slot, for as long as the result lives; the part was
    /// checked.
    pub(super) unsafe fn begin(
        device: &'m Device,
        slot: Option<RawBounceSlot>,
        memory: Memory<'m>,
        part: Range<u64>,
        direction: Direction,
    ) -> Self {
        let span = (part.start, part.end - part.start);
        // SAFETY: the caller's promise.
        unsafe { device.ops().sync(slot, memory, span, direction, Side::Cpu) };
        Self { device, slot, memory, part, direction, written: None }
    }

    /// The part's length in bytes.
    pub fn len(&self) -> u64 {
        self.part.end - self.part.start
    }

    /// Whether the part is empty.
    pub fn is_empty(&self) -> bool {
        self.part.is_empty()
    }

    /// Copies bytes out, from `offset` bytes into the part.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if they are not inside; nothing is then copied.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        let range = self.range(offset, bytes.len())?;
        self.each(range, |at, ptr, len| {
            for (index, byte) in bytes[at..at + len].iter_mut().enumerate() {
                // SAFETY: the pointer is into the mapped buffer, which is valid for reads of `len`
                // bytes; volatile, since the device may write at any moment.
                *byte = unsafe { ptr.add(index).read_volatile() };
            }
        });
        Ok(())
    }

    /// Copies bytes in, at `offset` bytes into the part.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if they do not fit, [`DmaError::ReadOnly`] if the buffer is lent to be
    /// read; nothing is then copied.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DmaError> {
        if !self.direction.device_writes() {
            return Err(DmaError::ReadOnly { device: self.device.name().into() });
        }
        let range = self.range(offset, bytes.len())?;
        self.written = match self.written.take() {
            Some(before) => Some(before.start.min(range.start)..before.end.max(range.end)),
            None => Some(range.clone()),
        };
        self.each(range, |at, ptr, len| {
            for (index, byte) in bytes[at..at + len].iter().enumerate() {
                // SAFETY: a buffer that the device may write is valid for writes of `len` bytes
                // here; volatile, since the device may access it at any moment.
                unsafe { ptr.add(index).write_volatile(*byte) };
            }
        });
        Ok(())
    }

    fn range(&self, offset: u64, len: usize) -> Result<Range<u64>, DmaError> {
        let end = offset.checked_add(len as u64);
        match end {
            Some(end) if end <= self.len() => Ok(self.part.start + offset..self.part.start + end),
            _ => Err(DmaError::OutOfBounds {
                device: self.device.name().into(),
                offset,
                end: end.unwrap_or(u64::MAX),
                len: self.len(),
            }),
        }
    }

    /// Calls `visit` for every stretch of a range of the buffer, with the offset from its start.
    fn each(&self, range: Range<u64>, mut visit: impl FnMut(usize, *mut u8, usize)) {
        let ops = self.device.ops();
        let mut start = 0u64;
        for piece in self.memory.pieces() {
            let end = start.saturating_add(piece.len());
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                let base = match piece {
                    Piece::Cpu { ptr, .. } => *ptr,
                    Piece::Phys(range) => ops.ptr(range.start()),
                };
                // Lengths of memory that the CPU maps fit a pointer's width.
                visit(
                    (from - range.start) as usize,
                    base.wrapping_add((from - start) as usize),
                    (to - from) as usize,
                );
            }
            start = end;
        }
    }
}

impl Drop for CpuAccess<'_> {
    fn drop(&mut self) {
        let span = (self.part.start, self.part.end - self.part.start);
        let ops = self.device.ops();
        // SAFETY: `begin`'s promise: the mapping is live as long as this is.
        unsafe {
            // Where the device only writes, its data goes over the CPU's, but for what the CPU wrote.
            if let (Some(written), false) = (&self.written, self.direction.device_reads()) {
                let span = (written.start, written.end - written.start);
                let both = Direction::Bidirectional;
                ops.sync(self.slot, self.memory, span, both, Side::Device);
            }
            ops.sync(self.slot, self.memory, span, self.direction, Side::Device)
        };
    }
}
