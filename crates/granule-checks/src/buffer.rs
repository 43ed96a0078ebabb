//! A buffer in the simulated machine's RAM that frees its frames when it is dropped, so that a leak
//! and an early free both show in the machine's accounts.

use granule::addr::{PhysAddr, PhysRange};
use granule::dma::{DmaBuffer, DmaBufferMut, Memory, Piece, Words};
use granule::mem::{FrameRequest, OwnedFrames};
use granule_sim::machine::Machine;
use granule_sim::platform::SimPlatform;

/// Some bytes inside frames of a simulated machine.
#[derive(Debug)]
pub struct Buf {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    frames: OwnedFrames<SimPlatform>,
    pieces: Vec<Piece>,
    range: PhysRange,
}

impl Buf {
    /// `len` bytes that start a block aligned to 64 KiB.
    pub fn new(machine: &Machine, len: u64) -> Self {
        Self::at(machine, 0, len)
    }

    /// `len` bytes that start `offset` bytes into a block aligned to 64 KiB. The block is zeroed.
    pub fn at(machine: &Machine, offset: u64, len: u64) -> Self {
        Self::within(machine, None, offset, len)
    }

    /// The same, with the block inside `window`.
    pub fn within(machine: &Machine, window: Option<PhysRange>, offset: u64, len: u64) -> Self {
        let size = (offset + len).next_multiple_of(0x1_0000);
        let request = FrameRequest::new(size, 0x1_0000).within(window);
        let frames = OwnedFrames::zeroed(machine.platform(), &request).expect("free memory");
        let range = frames.range().slice(offset, len).expect("not empty, and inside");
        let ptr = frames.ptr().wrapping_add(offset as usize);
        let pieces = vec![Piece::Cpu { ptr, len: len as usize }];
        Self { inner: Box::new(Inner { frames, pieces, range }) }
    }

    /// The same memory, described by these parts of it: (offset in bytes, length in bytes).
    pub fn in_parts(mut self, parts: &[(u64, u64)]) -> Self {
        let base = self.inner.range;
        let piece = |(offset, len): &(u64, u64)| base.slice(*offset, *len).expect("inside");
        self.inner.pieces = parts.iter().map(|part| Piece::Phys(piece(part))).collect();
        self
    }

    /// Where it lies.
    pub fn range(&self) -> PhysRange {
        self.inner.range
    }

    /// All of its frames.
    pub fn frames(&self) -> PhysRange {
        self.inner.frames.range()
    }

    /// Its first byte.
    pub fn start(&self) -> PhysAddr {
        self.range().start()
    }

    /// What the CPU sees in it.
    pub fn bytes(&self) -> Vec<u8> {
        let offset = self.start().raw() - self.inner.frames.start().raw();
        let base = self.inner.frames.ptr().wrapping_add(offset as usize);
        let byte = |at: usize| {
            // SAFETY: inside the frames that the buffer owns; no device has it while it is a `Buf`.
            unsafe { base.add(at).read_volatile() }
        };
        (0..self.range().len() as usize).map(byte).collect()
    }

    /// Writes from the start on.
    pub fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() as u64 <= self.range().len(), "no longer than the buffer");
        let offset = self.start().raw() - self.inner.frames.start().raw();
        let base = self.inner.frames.ptr().wrapping_add(offset as usize);
        // SAFETY: inside the frames that the buffer owns uniquely.
        unsafe { base.copy_from(bytes.as_ptr(), bytes.len()) };
    }
}

// SAFETY: the box is one pointer; the frames stay where they are until it is dropped.
unsafe impl DmaBuffer for Buf {
    fn into_words(self) -> Words {
        [Box::into_raw(self.inner).expose_provenance(), 0, 0]
    }

    unsafe fn from_words(words: Words) -> Self {
        let inner = std::ptr::with_exposed_provenance_mut(words[0]);
        // SAFETY: the words came from `into_words`.
        Self { inner: unsafe { Box::from_raw(inner) } }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        let inner = std::ptr::with_exposed_provenance::<Inner>(words[0]);
        // SAFETY: the words stand for a live box, which nobody changes.
        let inner = unsafe { &*inner };
        match &inner.pieces[..] {
            [one] => Memory::One(*one),
            many => Memory::Many(many),
        }
    }
}
// SAFETY: bytes in frames that the buffer owns.
unsafe impl DmaBufferMut for Buf {}
// SAFETY: the frames and the pointers into them are owned by the buffer.
unsafe impl Send for Buf {}
