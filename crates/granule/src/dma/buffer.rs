//! What can be given to a device: buffers that a mapping owns and gives back.
//!
//! While a buffer is mapped it exists as raw words only. No reference or box to memory that a
//! device may write is alive meanwhile, so nothing the device does can break an aliasing promise.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::PhysRange;

/// A stretch of memory, as the CPU or as the memory controller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Memory at a CPU pointer.
    Cpu {
        /// The first byte.
        ptr: *mut u8,
        /// The length in bytes.
        len: usize,
    },
    /// Physical memory, with or without a CPU mapping beyond the platform's own.
    Phys(PhysRange),
}

// SAFETY: a piece is an address; what may be done with it is said by whoever holds it.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Piece {
    /// The length in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Self::Cpu { len, .. } => *len as u64,
            Self::Phys(range) => range.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The memory that a buffer spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory<'a> {
    /// One stretch.
    One(Piece),
    /// Several, in order.
    Many(&'a [Piece]),
}

impl Memory<'_> {
    /// The stretches, in order.
    #[inline]
    pub fn pieces(&self) -> &[Piece] {
        match self {
            Self::One(piece) => core::slice::from_ref(piece),
            Self::Many(pieces) => pieces,
        }
    }

    /// The length in bytes, or `None` past 2^64.
    #[inline]
    pub fn len(&self) -> Option<u64> {
        if let Self::One(piece) = self {
            return Some(piece.len());
        }
        self.pieces().iter().try_fold(0u64, |sum, piece| sum.checked_add(piece.len()))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.pieces().iter().all(Piece::is_empty)
    }
}

/// A buffer's identity while it is mapped.
pub type Words = [usize; 3];

/// A buffer that a mapping can own.
///
/// # Safety
///
/// * `from_words(into_words(b))` is `b`; the words may move between threads meanwhile.
/// * [`memory`](Self::memory) of these words is memory that the buffer owns or borrows uniquely
///   (or, for a buffer that is not [`DmaBufferMut`], that nobody writes), that stays where it is as
///   long as the words are not turned back, and that is valid for reads; for writes too if the
///   buffer is `DmaBufferMut`.
pub unsafe trait DmaBuffer: Send + Sized + 'static {
    /// Gives the buffer up.
    fn into_words(self) -> Words;

    /// Takes it back.
    ///
    /// # Safety
    /// `words` came from [`into_words`](Self::into_words) of this type and are used once.
    unsafe fn from_words(words: Words) -> Self;

    /// The memory that the buffer spans.
    ///
    /// # Safety
    /// `words` came from [`into_words`](Self::into_words) of this type and were not turned back.
    unsafe fn memory(words: &Words) -> Memory<'_>;
}

/// A buffer that a device may write to: its memory is owned or uniquely borrowed, and every bit
/// pattern is a legal value. Never an `Arc` or a shared reference.
///
/// # Safety
/// As said.
pub unsafe trait DmaBufferMut: DmaBuffer {}

/// Types of which every bit pattern is a value, without padding.
///
/// # Safety
/// As said.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($type:ty),*) => {
        $(
            // SAFETY: every bit pattern of an integer is a value, and it has no padding.
            unsafe impl Plain for $type {}
        )*
    };
}
plain!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

// SAFETY: an array has no padding beyond its elements'.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

fn cpu_memory<T>(words: &Words) -> Memory<'static> {
    Memory::One(Piece::Cpu {
        ptr: core::ptr::with_exposed_provenance_mut(words[0]),
        len: words[1].saturating_mul(size_of::<T>()),
    })
}

// SAFETY: pointer, length and capacity are what a vector consists of, and its memory does not move
// while it is in pieces.
unsafe impl<T: Plain> DmaBuffer for Vec<T> {
    fn into_words(self) -> Words {
        let mut vec = core::mem::ManuallyDrop::new(self);
        [vec.as_mut_ptr().expose_provenance(), vec.len(), vec.capacity()]
    }

    unsafe fn from_words(words: Words) -> Self {
        // SAFETY: the words came from `into_words`.
        unsafe {
            Self::from_raw_parts(
                core::ptr::with_exposed_provenance_mut(words[0]),
                words[1],
                words[2],
            )
        }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        cpu_memory::<T>(words)
    }
}
// SAFETY: a vector owns its memory, and `Plain` allows every bit pattern.
unsafe impl<T: Plain> DmaBufferMut for Vec<T> {}

// SAFETY: pointer and length are what a boxed slice consists of.
unsafe impl<T: Plain> DmaBuffer for Box<[T]> {
    fn into_words(self) -> Words {
        let len = self.len();
        [Box::into_raw(self).cast::<T>().expose_provenance(), len, 0]
    }

    unsafe fn from_words(words: Words) -> Self {
        let ptr = core::ptr::with_exposed_provenance_mut::<T>(words[0]);
        // SAFETY: the words came from `into_words`.
        unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(ptr, words[1])) }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        cpu_memory::<T>(words)
    }
}
// SAFETY: a box owns its memory, and `Plain` allows every bit pattern.
unsafe impl<T: Plain> DmaBufferMut for Box<[T]> {}

// SAFETY: a pointer to a unique borrow that lasts for ever.
unsafe impl<T: Plain> DmaBuffer for &'static mut [T] {
    fn into_words(self) -> Words {
        [self.as_mut_ptr().expose_provenance(), self.len(), 0]
    }

    unsafe fn from_words(words: Words) -> Self {
        let ptr = core::ptr::with_exposed_provenance_mut::<T>(words[0]);
        // SAFETY: the words came from `into_words`.
        unsafe { core::slice::from_raw_parts_mut(ptr, words[1]) }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        cpu_memory::<T>(words)
    }
}
// SAFETY: the borrow is unique, and `Plain` allows every bit pattern.
unsafe impl<T: Plain> DmaBufferMut for &'static mut [T] {}

// SAFETY: a pointer to memory that nobody writes, for ever; no `DmaBufferMut`.
unsafe impl<T: Plain> DmaBuffer for &'static [T] {
    fn into_words(self) -> Words {
        [self.as_ptr().expose_provenance(), self.len(), 0]
    }

    unsafe fn from_words(words: Words) -> Self {
        let ptr = core::ptr::with_exposed_provenance::<T>(words[0]);
        // SAFETY: the words came from `into_words`.
        unsafe { core::slice::from_raw_parts(ptr, words[1]) }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        cpu_memory::<T>(words)
    }
}

// SAFETY: the pointer is what an `Arc` consists of; nobody writes its memory while it may be
// shared, so no `DmaBufferMut`.
unsafe impl<T: Plain> DmaBuffer for alloc::sync::Arc<[T]> {
    fn into_words(self) -> Words {
        let len = self.len();
        [Self::into_raw(self).cast::<T>().expose_provenance(), len, 0]
    }

    unsafe fn from_words(words: Words) -> Self {
        let ptr = core::ptr::with_exposed_provenance::<T>(words[0]);
        // SAFETY: the words came from `into_words`.
        unsafe { Self::from_raw(core::ptr::slice_from_raw_parts(ptr, words[1])) }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        cpu_memory::<T>(words)
    }
}

/// Memory that granule cannot own: pages of a kernel's own, described by their physical addresses
/// or by a pointer, with a function that is called when no device reaches them any more.
pub struct ForeignMemory {
    inner: Box<Foreign>,
}

struct Foreign {
    pieces: Box<[Piece]>,
    done: Option<Box<dyn FnOnce() + Send>>,
}

impl ForeignMemory {
    /// Describes memory that somebody else owns.
    ///
    /// # Safety
    /// The memory stays valid, and is written by nobody but the device while it is mapped, until
    /// `done` has been called. If the value, or a mapping that owns it, is forgotten, or an
    /// invalidation fails, that never happens.
    pub unsafe fn new(pieces: Vec<Piece>, done: impl FnOnce() + Send + 'static) -> Self {
        let foreign = Foreign { pieces: pieces.into_boxed_slice(), done: Some(Box::new(done)) };
        Self { inner: Box::new(foreign) }
    }

    /// The same for physical pages.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    pub unsafe fn from_pages(pages: &[PhysRange], done: impl FnOnce() + Send + 'static) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::new(pages.iter().copied().map(Piece::Phys).collect(), done) }
    }
}

impl ForeignMemory {
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.inner.pieces
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done();
        }
    }
}

// SAFETY: the box is one pointer, and what it describes is the creator's promise.
unsafe impl DmaBuffer for ForeignMemory {
    fn into_words(self) -> Words {
        [Box::into_raw(self.inner).expose_provenance(), 0, 0]
    }

    unsafe fn from_words(words: Words) -> Self {
        let ptr = core::ptr::with_exposed_provenance_mut(words[0]);
        // SAFETY: the words came from `into_words`.
        Self { inner: unsafe { Box::from_raw(ptr) } }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        let foreign = core::ptr::with_exposed_provenance::<Foreign>(words[0]);
        // SAFETY: the words stand for a live box, which nobody changes.
        Memory::Many(unsafe { &(*foreign).pieces })
    }
}
// SAFETY: the creator promised that nobody but the device writes the memory.
unsafe impl DmaBufferMut for ForeignMemory {}
