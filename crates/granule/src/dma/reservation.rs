//! Reserve a range of IOVA, link pieces into it one by one, take them out again: mapping without a
//! scatter list (`dma_iova_try_alloc`, `dma_iova_link`, `dma_iova_sync`, `dma_iova_unlink`).
//!
//! A piece starts where the one before ended. Only the first may start, and only the last may end,
//! inside a granule.

use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use super::ops::{LinkPlace, Live, Side};
use super::{Device, DeviceRef, DmaBuffer, DmaBufferMut, DmaError, Memory, Piece, Refused, Words};
use crate::addr::{Direction, DmaAddr, Granule, PhysRange};
use crate::domain::UnmapError;

/// A reserved range and the buffers linked into it.
pub struct Reservation<D: DeviceRef, B: DmaBuffer> {
    device: ManuallyDrop<D>,
    live: Live,
    granule: Granule,
    links: Vec<Link>,
    /// Offset of the first byte in its granule; known with the first link.
    front: u64,
    /// Bytes linked so far.
    len: u64,
    /// Some link could not be ended: it may still be cached, so the range is never given back.
    lost: bool,
    _buffers: core::marker::PhantomData<B>,
}

struct Link {
    words: Words,
    place: LinkPlace,
    direction: Direction,
}

// SAFETY: the words stand for buffers, which are `Send`.
unsafe impl<D: DeviceRef + Send, B: DmaBuffer> Send for Reservation<D, B> {}

impl Device {
    /// Reserves IOVA for at least `len` bytes that start anywhere in a granule.
    ///
    /// # Errors
    /// [`DmaError::NotTranslated`] for a direct device; [`DmaError::Domain`] without space.
    pub fn reserve_iova<B: DmaBuffer>(&self, len: u64) -> Result<Reservation<&Self, B>, DmaError> {
        Reservation::new(self, len)
    }
}

impl<D: DeviceRef, B: DmaBuffer> Reservation<D, B> {
    /// Reserves IOVA for at least `len` bytes that start anywhere in a granule.
    ///
    /// # Errors
    /// As [`Device::reserve_iova`].
    pub fn new(device: D, len: u64) -> Result<Self, DmaError> {
        let ops = device.device().ops();
        let name = || ops.spec().name.clone();
        let granule = device.device().merge_boundary();
        let granule = granule.ok_or_else(|| DmaError::NotTranslated { device: name() })?;
        let room =
            len.checked_add(granule.mask()).ok_or_else(|| DmaError::TooLong { device: name() })?;
        let live = ops.reserve(room)?;
        Ok(Self {
            device: ManuallyDrop::new(device),
            live,
            granule,
            links: Vec::new(),
            front: 0,
            len: 0,
            lost: false,
            _buffers: core::marker::PhantomData,
        })
    }

    /// The address of the first byte that is linked. Known once something is linked.
    pub fn address(&self) -> Option<DmaAddr> {
        self.links.first()?;
        self.live.dma.checked_add(self.front)
    }

    /// Bytes linked so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is linked.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Appends a buffer that the device only reads.
    ///
    /// # Errors
    /// The buffer comes back with [`DmaError::Link`] if it does not join here: the device is not
    /// trusted and the granule is not full, or the reservation is too short.
    pub fn link_to_device(&mut self, buffer: B) -> Result<(), Refused<B>> {
        self.append(buffer, Direction::ToDevice)
    }

    fn append(&mut self, buffer: B, direction: Direction) -> Result<(), Refused<B>> {
        let words = buffer.into_words();
        // SAFETY: the words are of a `B` that was given up.
        let result = unsafe { self.try_append(&words, direction) };
        match result {
            Ok(()) => Ok(()),
            Err(error) if error.is_stale() => Err(Refused { buffer: None, error }),
            // SAFETY: the words are turned back once; the device has not got the memory.
            Err(error) => Err(Refused { buffer: Some(unsafe { B::from_words(words) }), error }),
        }
    }

    /// # Safety
    /// The words are of a `B`, which is kept until it is unlinked if this succeeds.
    unsafe fn try_append(&mut self, words: &Words, direction: Direction) -> Result<(), DmaError> {
        // SAFETY: the caller's promise.
        let memory = unsafe { B::memory(words) };
        let Memory::One(piece) = memory else {
            return Err(self.refuse(memory.len().unwrap_or(0), "is not one stretch of memory"));
        };
        let phys = self.phys(&piece)?;
        let place = self.fit(phys)?;
        if self.device.device().ops().shares_line(phys, direction) {
            let reason = "shares a cache line with other data, and the device does not snoop";
            return Err(self.refuse(phys.len(), reason));
        }
        self.links.try_reserve(1).map_err(|_| DmaError::Frames {
            device: self.device.device().name().into(),
            cause: crate::mem::FrameError::OutOfMemory,
        })?;
        let ops = self.device.device().ops();
        // SAFETY: the part is reserved and nothing is linked there; the memory is the buffer's.
        unsafe {
            ops.sync(None, memory, (0, phys.len()), direction, Side::Device);
            ops.link(&self.live, &place, direction.access())?;
        }
        if self.links.is_empty() {
            self.front = phys.start().offset_in(self.granule);
        }
        self.len += phys.len();
        self.links.push(Link { words: *words, place, direction });
        Ok(())
    }

    fn phys(&self, piece: &Piece) -> Result<PhysRange, DmaError> {
        let run = self.device.device().ops().whole(piece);
        run.ok_or_else(|| {
            self.refuse(piece.len(), "has no single physical address: link its parts one by one")
        })
    }

    /// The granules that a piece needs, and where they go.
    fn fit(&self, phys: PhysRange) -> Result<LinkPlace, DmaError> {
        let refuse = |reason| self.refuse(phys.len(), reason);
        let outer = phys.align_outward(self.granule).ok_or_else(|| refuse("passes 2^64"))?;
        let offset = match self.links.last() {
            None => 0,
            Some(last) => {
                let end = self.front + self.len;
                if !self.granule.divides(end) || !phys.start().is_aligned(self.granule) {
                    return Err(refuse("does not join the one before at a granule"));
                }
                last.place.offset + last.place.outer.len()
            }
        };
        if offset.checked_add(outer.len()).is_none_or(|end| end > self.live.len) {
            return Err(refuse("does not fit the reservation"));
        }
        Ok(LinkPlace { offset, outer, len: phys.len() })
    }

    fn refuse(&self, len: u64, reason: &'static str) -> DmaError {
        DmaError::Link { device: self.device.device().name().into(), offset: self.len, len, reason }
    }

    /// Makes what was linked visible to the device. Linking does so already on every translation
    /// granule has; this is the point at which a driver may ring its doorbell.
    ///
    /// # Errors
    /// [`DmaError::Empty`] if nothing is linked.
    pub fn sync(&self) -> Result<DmaAddr, DmaError> {
        self.address().ok_or_else(|| DmaError::Empty { device: self.device.device().name().into() })
    }

    /// Takes the last buffer out again.
    ///
    /// # Errors
    /// [`UnmapError`] if the hardware did not confirm: the buffer is leaked.
    pub fn unlink(&mut self) -> Result<Option<B>, UnmapError> {
        let Some(link) = self.links.pop() else {
            return Ok(None);
        };
        self.len -= link.place.len;
        // SAFETY: the link is ended once, being popped.
        let taken = unsafe { self.take_out(&link) };
        self.lost |= taken.is_err();
        taken.map(Some)
    }

    /// # Safety
    /// The link is ended once.
    unsafe fn take_out(&self, link: &Link) -> Result<B, UnmapError> {
        let ops = self.device.device().ops();
        // SAFETY: the caller's promise; the buffer comes back only if the device has lost it.
        unsafe {
            ops.unlink(&self.live, &link.place)?;
            ops.sync(None, B::memory(&link.words), (0, link.place.len), link.direction, Side::Cpu);
            Ok(B::from_words(link.words))
        }
    }

    /// Takes everything out and gives the range back.
    ///
    /// # Errors
    /// [`UnmapError`] if the hardware did not confirm: what was not yet taken out is leaked.
    pub fn unmap(mut self) -> Result<Vec<B>, UnmapError> {
        let mut buffers = Vec::with_capacity(self.links.len());
        while let Some(buffer) = self.unlink()? {
            buffers.push(buffer);
        }
        buffers.reverse();
        Ok(buffers)
    }
}

impl<D: DeviceRef, B: DmaBufferMut> Reservation<D, B> {
    /// Appends a buffer.
    ///
    /// # Errors
    /// As [`link_to_device`](Self::link_to_device).
    pub fn link(&mut self, buffer: B, direction: Direction) -> Result<(), Refused<B>> {
        self.append(buffer, direction)
    }
}

impl<D: DeviceRef, B: DmaBuffer> Drop for Reservation<D, B> {
    fn drop(&mut self) {
        while let Some(link) = self.links.pop() {
            // SAFETY: the link is ended once, being popped.
            self.lost |= unsafe { self.take_out(&link) }.is_err();
        }
        // SAFETY: the reservation ends once. Where a link could not be ended its IOVA stays taken,
        // and only the count of live mappings goes down.
        unsafe {
            let ops = self.device.device().ops();
            if self.lost {
                ops.leave(&self.live);
            } else {
                let _ = ops.end(&self.live);
            }
            ManuallyDrop::drop(&mut self.device);
        }
    }
}
