//! Streaming mappings: the device has the buffer, then it comes back.

use core::mem::ManuallyDrop;
use core::ops::Range;

use super::cpu::CpuAccess;
use super::ops::{Made, Ops, Single};
use super::{Device, DeviceRef, DmaBuffer, DmaBufferMut, DmaError, MapFlags, Words};
use crate::addr::{Direction, DmaAddr};
use crate::bounce::RawBounceSlot;
use crate::domain::{Release, Ticket, UnitError, UnmapError};

/// A buffer that a device has.
///
/// It owns the buffer and gives it back by [`unmap`](Self::unmap). Dropping it takes the memory away
/// from the device first and then drops the buffer (in deferred mode after the flush). Forgetting it
/// leaks the buffer: the device may keep it, nobody else will ever use it.
#[must_use = "a mapping that is dropped at once is unmapped at once"]
pub struct Mapping<D: DeviceRef, B: DmaBuffer> {
    device: ManuallyDrop<D>,
    words: Words,
    single: Single,
    direction: Direction,
    flags: MapFlags,
    _buffer: core::marker::PhantomData<B>,
}

// SAFETY: the words stand for a buffer, which is `Send`; everything that is done through a shared
// reference leaves the mapping as it is.
unsafe impl<D: DeviceRef + Send, B: DmaBuffer> Send for Mapping<D, B> {}
// SAFETY: a shared mapping only tells its address and length.
unsafe impl<D: DeviceRef + Sync, B: DmaBuffer> Sync for Mapping<D, B> {}

impl Device {
    /// Gives a buffer to the device, which may write to it.
    ///
    /// # Errors
    /// The buffer comes back with the [`DmaError`].
    pub fn map<B: DmaBufferMut>(
        &self,
        buffer: B,
        direction: Direction,
    ) -> Result<Mapping<&Self, B>, Refused<B>> {
        Mapping::new(self, buffer, direction, MapFlags::empty())
    }

    /// Gives a buffer to the device, which only reads it.
    ///
    /// # Errors
    /// The buffer comes back with the [`DmaError`].
    pub fn map_to_device<B: DmaBuffer>(&self, buffer: B) -> Result<Mapping<&Self, B>, Refused<B>> {
        Mapping::to_device(self, buffer, MapFlags::empty())
    }
}

/// A buffer that could not be mapped, and why.
pub struct Refused<B> {
    /// The buffer, unchanged. `None` if the device may have seen it and could not be made to forget
    /// it ([`DmaError::is_stale`]): the buffer is then leaked.
    pub buffer: Option<B>,
    /// Why.
    pub error: DmaError,
}

impl<B> core::fmt::Debug for Refused<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Refused({:?})", self.error)
    }
}

impl<B> core::fmt::Display for Refused<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.error.fmt(f)
    }
}

impl<B> core::error::Error for Refused<B> {}

impl<B> From<Refused<B>> for DmaError {
    fn from(refused: Refused<B>) -> Self {
        refused.error
    }
}

impl<D: DeviceRef, B: DmaBufferMut> Mapping<D, B> {
    /// Gives a buffer to a device, with attributes.
    ///
    /// # Errors
    /// The buffer comes back with the [`DmaError`].
    #[inline]
    pub fn new(
        device: D,
        buffer: B,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Self, Refused<B>> {
        Self::make(device, buffer, direction, flags)
    }
}

impl<D: DeviceRef, B: DmaBuffer> Mapping<D, B> {
    /// Gives a buffer to a device that only reads it, with attributes.
    ///
    /// # Errors
    /// The buffer comes back with the [`DmaError`].
    #[inline]
    pub fn to_device(device: D, buffer: B, flags: MapFlags) -> Result<Self, Refused<B>> {
        Self::make(device, buffer, Direction::ToDevice, flags)
    }

    #[inline]
    fn make(
        device: D,
        buffer: B,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Self, Refused<B>> {
        let words = buffer.into_words();
        // SAFETY: the words are of a `B` that was just given up; its memory is owned (and for a
        // direction in which the device writes it is a `DmaBufferMut`'s) until the words are turned
        // back, which happens after the mapping has ended or never.
        if let [piece] = unsafe { B::memory(&words) }.pieces() {
            // SAFETY: as above.
            let brief = unsafe { device.device().ops().map_brief(piece, direction, flags) };
            if let Some(brief) = brief {
                let single = Single { brief, slot: None, made: Made::Briefly };
                return Ok(Self::hold(device, words, single, direction, flags));
            }
        }
        // SAFETY: as above.
        match unsafe { Self::map_full(device.device().ops(), words, direction, flags) } {
            Ok(single) => Ok(Self::hold(device, words, single, direction, flags)),
            Err(refused) => Err(refused),
        }
    }

    #[inline(always)]
    fn hold(
        device: D,
        words: Words,
        single: Single,
        direction: Direction,
        flags: MapFlags,
    ) -> Self {
        let (device, _buffer) = (ManuallyDrop::new(device), core::marker::PhantomData);
        Self { device, words, single, direction, flags, _buffer }
    }

    /// Maps whatever is not the common case.
    ///
    /// # Safety
    /// The words are of a `B` that was given up for this.
    #[inline(never)]
    unsafe fn map_full(
        ops: &dyn Ops,
        words: Words,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Single, Refused<B>> {
        // SAFETY: as said in `make`.
        match unsafe { ops.map(B::memory(&words), direction, flags) } {
            Ok(single) => Ok(single),
            Err(error) if error.is_stale() => Err(Refused { buffer: None, error }),
            Err(error) => {
                // SAFETY: the words are turned back once; the device has not got the memory.
                let buffer = unsafe { B::from_words(words) };
                Err(Refused { buffer: Some(buffer), error })
            }
        }
    }

    /// The address that the device is programmed with.
    #[inline]
    pub fn address(&self) -> DmaAddr {
        DmaAddr::new(self.single.brief.address.get())
    }

    /// The length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // A mapping is never empty.
    pub fn len(&self) -> u64 {
        // SAFETY: the words are of a `B` and are only turned back when the mapping ends.
        let memory = unsafe { B::memory(&self.words) };
        // It was mapped, so its length has been summed up before.
        memory.len().unwrap_or(0)
    }

    /// Which way data goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether the data goes through a bounce buffer.
    pub fn is_bounced(&self) -> bool {
        self.single.slot.is_some()
    }

    /// The device that has the buffer.
    pub fn device(&self) -> &Device {
        self.device.device()
    }

    /// Lets the CPU at a part of the buffer, in bytes, until the result is dropped
    /// (`dma_sync_single_for_cpu` and back). The device still has the memory: what is read may change
    /// at any moment if it misbehaves, so there are copies and no slices.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if the part is not inside.
    pub fn sync_for_cpu(&mut self, part: Range<u64>) -> Result<CpuAccess<'_>, DmaError> {
        CpuAccess::check(self.device.device(), &part, self.len())?;
        // SAFETY: the words are of a `B` and are only turned back when the mapping ends.
        let memory = unsafe { B::memory(&self.words) };
        // SAFETY: the mapping is live, and the part was checked.
        Ok(unsafe {
            CpuAccess::begin(self.device(), self.single.slot, memory, part, self.direction)
        })
    }

    /// Takes the buffer back. In deferred mode this flushes; [`unmap_later`](Self::unmap_later) does
    /// not.
    ///
    /// # Errors
    /// [`UnmapError`] if the hardware did not confirm that the device lost the memory: the buffer
    /// is leaked.
    #[inline]
    pub fn unmap(self) -> Result<B, UnmapError> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used as a mapping again, so its parts end once, here.
        unsafe {
            let device = ManuallyDrop::take(&mut this.device);
            let ops = device.device().ops();
            if this.single.made == Made::Briefly {
                ops.unmap_brief(this.single.brief, this.len())?;
            } else {
                Self::unmap_full(ops, this.single, this.words, this.direction, this.flags)?;
            }
            Ok(B::from_words(this.words))
        }
    }

    /// Takes the buffer away from the device at the next flush: the result yields it then. In strict
    /// mode that is at once.
    ///
    /// # Errors
    /// [`UnmapError`] if the hardware did not confirm that the device lost the memory: the buffer
    /// is leaked.
    pub fn unmap_later(self) -> Result<Pending<D, B>, UnmapError> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the mapping ends once; its other parts move into the `Pending`, or, where the buffer is
        // leaked, its device ends here.
        unsafe {
            match this.end_later(&mut None) {
                Ok(ticket) => {
                    Ok(Pending { mapping: ManuallyDrop::new(core::ptr::read(&*this)), ticket })
                }
                Err(error) => {
                    ManuallyDrop::drop(&mut this.device);
                    Err(error)
                }
            }
        }
    }

    /// Takes the buffer away from the device at the next flush.
    ///
    /// # Safety
    /// The mapping ends once.
    #[inline(always)]
    unsafe fn end_later(
        &self,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError> {
        let (ops, len) = (self.device.device().ops(), self.len());
        // SAFETY: the caller's promise.
        unsafe {
            if self.single.made == Made::Briefly {
                ops.end_brief_later(self.single.brief, len, release)
            } else {
                ops.end_single_later(&{ self.single }, len, self.flags, release)
            }
        }
    }

    /// Unmaps what was mapped in any but the shortest way. All of the mapping comes by value, so that
    /// the shortest way can keep it in registers.
    ///
    /// # Safety
    /// The mapping ends once.
    #[inline(never)]
    unsafe fn unmap_full(
        ops: &dyn Ops,
        single: Single,
        words: Words,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<(), UnmapError> {
        // SAFETY: the caller's promise; the words are of a `B` and are not turned back yet.
        unsafe {
            let memory = B::memory(&words);
            ops.end_single(&single, memory.len().unwrap_or(0), flags)?;
            ops.settle(single.slot, memory, direction, flags);
        }
        Ok(())
    }

    /// Brings the CPU's view up to date and turns the words back into the buffer.
    ///
    /// # Safety
    /// The device has lost the memory; called once, and the mapping is not used again.
    unsafe fn settle(&self, device: &Device) -> B {
        if self.single.made != Made::Briefly {
            // SAFETY: the mapping's words and slot; not settled before.
            unsafe {
                let memory = B::memory(&self.words);
                device.ops().settle(self.single.slot, memory, self.direction, self.flags);
            }
        }
        // SAFETY: the words are turned back once.
        unsafe { B::from_words(self.words) }
    }
}

impl<D: DeviceRef, B: DmaBuffer> Drop for Mapping<D, B> {
    fn drop(&mut self) {
        let ops = self.device.device().ops();
        let mut release = deferred_drop::<B>(self.words, self.single.slot, ops);
        // SAFETY: the mapping ends once. If the invalidation fails the buffer is leaked, which is
        // all that can be done.
        let _ = unsafe { self.end_later(&mut release) };
        // SAFETY: not used again.
        unsafe { ManuallyDrop::drop(&mut self.device) };
    }
}

/// What is left to do once no device reaches a dropped mapping's memory, if anything is.
#[inline]
fn deferred_drop<B: DmaBuffer>(
    words: Words,
    slot: Option<RawBounceSlot>,
    ops: &dyn Ops,
) -> Option<Release> {
    if let Some(slot) = slot {
        return Some(deferred_drop_of_slot::<B>(words, slot, ops));
    }
    // A borrowed buffer has nobody who waits for it.
    // SAFETY: this runs once, when no device reaches the buffer any more.
    let release = || Release::new(move || unsafe { drop(B::from_words(words)) });
    core::mem::needs_drop::<B>().then(release)
}

#[cold]
fn deferred_drop_of_slot<B: DmaBuffer>(
    words: Words,
    slot: RawBounceSlot,
    ops: &dyn Ops,
) -> Release {
    let pool = ops.slot_releaser();
    Release::new(move || {
        // SAFETY: this runs once, when no device reaches the slot and the buffer any more.
        unsafe {
            if let Some(pool) = pool {
                pool.release_slot(slot);
            }
            drop(B::from_words(words));
        }
    })
}

/// A buffer on its way back: the device may reach it until the next flush.
#[must_use = "the buffer comes back through `finish` or `try_finish`"]
pub struct Pending<D: DeviceRef, B: DmaBuffer> {
    /// Ended already: only its words, slot and device are left.
    mapping: ManuallyDrop<Mapping<D, B>>,
    ticket: Option<Ticket>,
}

impl<D: DeviceRef, B: DmaBuffer> Pending<D, B> {
    /// Whether the flush has happened.
    pub fn is_ready(&self) -> bool {
        self.ticket.is_none_or(|ticket| self.mapping.device().ops().is_flushed(ticket))
    }

    /// The buffer, if the flush has happened.
    ///
    /// # Errors
    /// The handle comes back if it has not.
    #[allow(clippy::result_large_err)] // It is the handle that comes back.
    pub fn try_finish(self) -> Result<B, Self> {
        if !self.is_ready() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the flush has happened, so the device has lost the memory; `this` is not used
        // again, so its parts end once, here.
        unsafe {
            let device = ManuallyDrop::take(&mut this.mapping.device);
            Ok(this.mapping.settle(device.device()))
        }
    }

    /// The buffer, after a flush if there was none yet.
    ///
    /// # Errors
    /// [`UnitError`] if the hardware did not answer: the buffer is leaked.
    pub fn finish(self) -> Result<B, UnitError> {
        if !self.is_ready() {
            if let Err(error) = self.mapping.device().ops().flush() {
                self.leak();
                return Err(error);
            }
        }
        self.try_finish().map_err(|this| {
            // A flush that succeeded covers every ticket given before it; if not, play safe.
            let unit = this.mapping.device().name().into();
            this.leak();
            UnitError::Timeout { unit }
        })
    }

    /// Gives the buffer up for good: the device may still reach it.
    fn leak(self) {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again; the words are never turned back.
        unsafe { ManuallyDrop::drop(&mut this.mapping.device) };
    }
}

impl<D: DeviceRef, B: DmaBuffer> Drop for Pending<D, B> {
    fn drop(&mut self) {
        // Where that fails the device may still reach the buffer: it is leaked.
        let lost = self.is_ready() || self.mapping.device().ops().flush().is_ok();
        // SAFETY: the parts end once, here; the buffer only if the device has lost the memory.
        unsafe {
            let device = ManuallyDrop::take(&mut self.mapping.device);
            if lost {
                drop(self.mapping.settle(device.device()));
            }
        }
    }
}
