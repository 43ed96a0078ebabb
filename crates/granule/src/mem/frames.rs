//! Frames: what is asked for, why it may fail, and a block that frees itself.

use super::Platform;
use crate::addr::{PhysAddr, PhysRange};

/// A request for physically contiguous frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRequest {
    /// The size in bytes, a whole number of CPU pages, not zero.
    pub size: u64,
    /// The alignment of the physical address in bytes: a power of two, at least the CPU page.
    pub align: u64,
    /// The block must lie inside this range of physical addresses, if one is given.
    pub window: Option<PhysRange>,
    /// The memory node to prefer, if the machine has several.
    pub node: Option<u32>,
}

impl FrameRequest {
    /// Frames of this size and alignment, anywhere.
    pub const fn new(size: u64, align: u64) -> Self {
        Self { size, align, window: None, node: None }
    }

    /// The same, inside `window`.
    #[must_use]
    pub const fn within(mut self, window: Option<PhysRange>) -> Self {
        self.window = window;
        self
    }
}

/// Why frames could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// No free block meets the request now.
    #[error("no free block of physical memory meets the request: free memory, or ask for less")]
    OutOfMemory,
    /// The machine can never do this.
    #[error("this machine cannot provide memory of that kind")]
    Unsupported,
}

/// A block of frames that goes back to its platform when dropped.
///
/// For memory that no device was ever given, or no longer reaches: whoever maps it must keep it
/// from being dropped until the invalidation has completed.
#[derive(Debug)]
pub struct OwnedFrames<P: Platform> {
    platform: P,
    range: PhysRange,
}

impl<P: Platform> OwnedFrames<P> {
    /// Allocates a block. Its contents are undefined.
    ///
    /// # Errors
    /// As [`Platform::alloc_frames`].
    pub fn new(platform: &P, request: &FrameRequest) -> Result<Self, FrameError> {
        let range = platform.alloc_frames(request)?;
        Ok(Self { platform: platform.clone(), range })
    }

    /// Allocates a block of zeroes.
    ///
    /// # Errors
    /// As [`Platform::alloc_frames`].
    pub fn zeroed(platform: &P, request: &FrameRequest) -> Result<Self, FrameError> {
        let frames = Self::new(platform, request)?;
        // SAFETY: the frames are ours, and nobody knows of them yet.
        unsafe { platform.zero_frames(frames.range) };
        Ok(frames)
    }

    /// Takes over a block that was allocated elsewhere.
    ///
    /// # Safety
    /// `range` was allocated from `platform`, and the caller gives it up.
    pub unsafe fn from_raw(platform: P, range: PhysRange) -> Self {
        Self { platform, range }
    }

    /// Gives the block up: nobody frees it unless the caller does.
    pub fn into_raw(self) -> PhysRange {
        let range = self.range;
        core::mem::forget(self);
        range
    }

    /// Where the block lies.
    #[inline]
    pub fn range(&self) -> PhysRange {
        self.range
    }

    /// The block's physical address.
    #[inline]
    pub fn start(&self) -> PhysAddr {
        self.range.start()
    }

    /// The CPU's pointer to the first byte, valid for reads and writes of the whole block.
    #[inline]
    pub fn ptr(&self) -> *mut u8 {
        self.platform.ptr(self.range.start())
    }
}

impl<P: Platform> Drop for OwnedFrames<P> {
    fn drop(&mut self) {
        // SAFETY: the block came from `alloc_frames` and is owned; whoever mapped it for a device
        // keeps it from being dropped before the device has lost it (the type's contract).
        unsafe { self.platform.free_frames(self.range) };
    }
}
