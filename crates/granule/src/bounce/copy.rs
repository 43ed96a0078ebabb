//! Moving bytes between the CPU's buffers and bounce memory, which a device may write meanwhile.
//!
//! What makes this right against a hostile device:
//!
//! * no reference to bounce memory ever exists, only raw pointers;
//! * bounce memory is *read* by volatile loads alone, each byte once. The compiler can neither
//!   repeat a load nor assume that two of them agree; what arrives is some mixture of old and new
//!   bytes, never an undefined value. Whoever interprets the bytes does so in his own copy;
//! * bounce memory is *written* by plain stores. No value that the CPU uses depends on what becomes
//!   of them, so a device that writes at the same time corrupts its own data and nothing else.

use core::ptr;

use super::{BounceError, BouncePool, BounceSlot};
use crate::mem::Platform;

impl<P: Platform> BouncePool<P> {
    /// Copies `len` bytes from `src` into the slot's data, `offset` bytes in.
    ///
    /// Before the device gets the slot, copy in the whole buffer, even if the device only writes:
    /// after a short transfer [`copy_out`](Self::copy_out) then returns the buffer's own old bytes,
    /// not somebody else's (see the [module](super)).
    ///
    /// # Errors
    /// [`BounceError::OutOfBounds`] or [`BounceError::ForeignSlot`]; nothing was copied.
    ///
    /// # Safety
    /// `src` is valid for reads of `len` bytes, which nobody writes meanwhile. No other CPU accesses
    /// the same bytes of the slot meanwhile (a device may).
    pub unsafe fn copy_in(
        &self,
        slot: &BounceSlot,
        offset: u64,
        src: *const u8,
        len: usize,
    ) -> Result<(), BounceError> {
        if let Some(bounce) = self.data_ptr(slot, offset, len)? {
            // SAFETY: `src` by the caller's promise; `bounce` is valid for `len` bytes, which the
            // slot owns, so the two do not overlap.
            unsafe { ptr::copy_nonoverlapping(src, bounce, len) };
        }
        Ok(())
    }

    /// Copies `len` bytes of the slot's data, from `offset` bytes in, to `dst`.
    ///
    /// The device may write at the same time; see the [module](super) for what then arrives.
    ///
    /// # Errors
    /// [`BounceError::OutOfBounds`] or [`BounceError::ForeignSlot`]; nothing was copied.
    ///
    /// # Safety
    /// `dst` is valid for writes of `len` bytes, which nobody else accesses meanwhile. No other CPU
    /// writes the same bytes of the slot meanwhile (a device may).
    pub unsafe fn copy_out(
        &self,
        slot: &BounceSlot,
        offset: u64,
        dst: *mut u8,
        len: usize,
    ) -> Result<(), BounceError> {
        if let Some(bounce) = self.data_ptr(slot, offset, len)? {
            // SAFETY: `dst` by the caller's promise; `bounce` is valid for `len` bytes, which the
            // slot owns, so the two do not overlap.
            unsafe { read_volatile_bytes(bounce, dst, len) };
        }
        Ok(())
    }

    /// [`copy_in`](Self::copy_in) for whoever has the slot and the bytes to himself.
    ///
    /// # Errors
    /// [`BounceError::OutOfBounds`] or [`BounceError::ForeignSlot`]; nothing was copied.
    pub fn write(
        &self,
        slot: &mut BounceSlot,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BounceError> {
        // SAFETY: `bytes` is borrowed, and the slot is borrowed exclusively.
        unsafe { self.copy_in(slot, offset, bytes.as_ptr(), bytes.len()) }
    }

    /// [`copy_out`](Self::copy_out) for whoever has the bytes to himself.
    ///
    /// # Errors
    /// [`BounceError::OutOfBounds`] or [`BounceError::ForeignSlot`]; nothing was copied.
    pub fn read(
        &self,
        slot: &BounceSlot,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), BounceError> {
        // SAFETY: `bytes` is borrowed exclusively; the slot is borrowed, and those who write one
        // that is not borrowed exclusively promise that no CPU reads meanwhile.
        unsafe { self.copy_out(slot, offset, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Zeroes what the slot owns before and behind its data, so that an untrusted device which is
    /// given the whole outer range finds nothing there. For a device that does not snoop, the
    /// caller then synchronises [`BounceSlot::outer`].
    ///
    /// A slot of another pool is left alone.
    pub fn zero_padding(&self, slot: &mut BounceSlot) {
        if self.owns(slot) {
            slot.padding().into_iter().flatten().for_each(|padding| self.zero(padding));
        }
    }

    /// Zeroes all that the slot owns, data too. A slot of another pool is left alone.
    pub fn scrub(&self, slot: &mut BounceSlot) {
        if self.owns(slot) {
            self.zero(slot.outer());
        }
    }

    /// Zeroes memory that one slot of this pool owns.
    fn zero(&self, range: crate::addr::PhysRange) {
        // SAFETY: a slot of this pool owns the range (the callers check), so it lies in frames of
        // the platform, whose pointer is valid to their end; their length fits `usize`, as they
        // were zeroed when the pool was made.
        unsafe { self.platform().ptr(range.start()).write_bytes(0, range.len() as usize) };
    }

    /// The pointer to `len` bytes of a slot's data; `None` if there are none.
    #[inline]
    fn data_ptr(
        &self,
        slot: &BounceSlot,
        offset: u64,
        len: usize,
    ) -> Result<Option<*mut u8>, BounceError> {
        if !self.owns(slot) {
            return Err(BounceError::ForeignSlot { outer: slot.outer() });
        }
        let (len, size) = (len as u64, slot.data().len());
        match slot.data().slice(offset, len) {
            Some(part) => Ok(Some(self.platform().ptr(part.start()))),
            None if len == 0 && offset <= size => Ok(None),
            None => Err(BounceError::OutOfBounds { offset, len, size }),
        }
    }
}

/// Copies with volatile loads: words of eight bytes where `src` is aligned to them.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `len` bytes, and they do not overlap. Only
/// devices write to `src` meanwhile.
unsafe fn read_volatile_bytes(mut src: *const u8, mut dst: *mut u8, len: usize) {
    let head = src.align_offset(8).min(len);
    let words = (len - head) / 8;
    let tail = (len - head) % 8;
    // SAFETY: head + 8 * words + tail = len, so all accesses lie within the two; the words' loads
    // are aligned, since `head` bytes went before (or `words` is 0), and `dst` needs no alignment.
    unsafe {
        for _ in 0..head {
            dst.write(src.read_volatile());
            (src, dst) = (src.add(1), dst.add(1));
        }
        for _ in 0..words {
            dst.cast::<u64>().write_unaligned(src.cast::<u64>().read_volatile());
            (src, dst) = (src.add(8), dst.add(8));
        }
        for _ in 0..tail {
            dst.write(src.read_volatile());
            (src, dst) = (src.add(1), dst.add(1));
        }
    }
}
