//! A second, contiguous mapping of RAM's pages: the CPU's view of scattered frames.
//!
//! The only file of this folder with unsafe code.

use std::io;
use std::ptr::{self, NonNull};

use granule::addr::PhysRange;
use rustix::mm::{MapFlags, ProtFlags};

use super::{Ram, RamError};

/// A contiguous view of several blocks of RAM, unmapped when dropped.
#[derive(Debug)]
pub struct View {
    base: NonNull<u8>,
    len: usize,
    frames: Vec<PhysRange>,
}

// SAFETY: a view is an address range of this process; reading and writing through it is the unsafe
// act of whoever uses the pointer.
unsafe impl Send for View {}
// SAFETY: as above; the view itself has no interior state.
unsafe impl Sync for View {}

impl View {
    /// Maps `frames` one after the other.
    ///
    /// # Errors
    /// [`RamError::Outside`] if a block is not RAM, [`RamError::Empty`] if there is none, the host's
    /// error if it will not map them (they must be whole pages of the host).
    pub fn new(ram: &Ram, frames: &[PhysRange]) -> Result<Self, RamError> {
        let mut places = Vec::with_capacity(frames.len());
        let mut len = 0u64;
        for frame in frames {
            let outside = RamError::Outside { addr: frame.start(), len: frame.len() };
            places.push(ram.place(frame).ok_or(outside)?);
            len += frame.len();
        }
        if places.is_empty() {
            return Err(RamError::Empty);
        }
        let view = Self::reserve(len as usize, frames)?;
        let mut done = 0;
        for (frame, place) in frames.iter().zip(places) {
            view.fill(ram, done, frame.len() as usize, place)?;
            done += frame.len() as usize;
        }
        Ok(view)
    }

    fn reserve(len: usize, frames: &[PhysRange]) -> Result<Self, RamError> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: no address is asked for, so the kernel picks one that nobody uses.
        let base =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) };
        let base = base.map_err(io::Error::from)?;
        let base = NonNull::new(base.cast()).ok_or(RamError::Empty)?;
        Ok(Self { base, len, frames: frames.to_vec() })
    }

    fn fill(&self, ram: &Ram, at: usize, len: usize, place: u64) -> Result<(), RamError> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        let target = self.base.as_ptr().wrapping_add(at);
        // SAFETY: `at + len` lies inside this view's own reservation (the lengths were summed to
        // it), so the fixed mapping replaces nothing but that.
        unsafe { rustix::mm::mmap(target.cast(), len, prot, flags, &*ram.file, place) }
            .map_err(io::Error::from)?;
        Ok(())
    }

    /// The first byte of the view.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The blocks, in order.
    pub fn frames(&self) -> &[PhysRange] {
        &self.frames
    }

    /// The physical run, at most `len` bytes, behind a pointer into this view.
    pub fn phys_of(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        let mut offset = (ptr as usize).checked_sub(self.base.as_ptr() as usize)? as u64;
        for frame in &self.frames {
            if offset < frame.len() {
                return frame.slice(offset, (len as u64).min(frame.len() - offset));
            }
            offset -= frame.len();
        }
        None
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the range is this view's own mapping; its pointers are not used after the view
        // (the contract of whoever hands them out).
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use granule::addr::PhysAddr;

    use super::*;

    #[test]
    fn scattered_frames_become_contiguous() {
        let range = |start, len| PhysRange::new(PhysAddr::new(start), len).expect("a legal range");
        let ram = Ram::new(&[range(0x10_0000, 0x10_0000)]).expect("RAM");
        let frames = [range(0x11_0000, 0x1_0000), range(0x10_0000, 0x1_0000)];
        ram.write(PhysAddr::new(0x11_fffe), &[1, 2]).expect("inside");
        ram.write(PhysAddr::new(0x10_0000), &[3, 4]).expect("inside");
        let view = View::new(&ram, &frames).expect("a view");
        let seam = view.base().as_ptr().wrapping_add(0xfffe);
        // SAFETY: four bytes inside the view, which lives.
        let bytes = unsafe { seam.cast::<[u8; 4]>().read_volatile() };
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert_eq!(view.phys_of(seam, 4), Some(range(0x11_fffe, 2)));
        assert_eq!(view.phys_of(seam.wrapping_add(2), 4), Some(range(0x10_0000, 4)));
        assert_eq!(view.phys_of(seam.wrapping_add(0x2_0000), 4), None);
    }
}
