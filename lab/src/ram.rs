//! Memory that the scenario owns, lends to devices, and looks at; and bytes to tell apart.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use granule::addr::{PhysAddr, PhysRange};
use granule::dma::{ForeignMemory, Piece};
use granule::mem::{FrameError, FrameRequest, OwnedFrames, Platform};

use crate::platform::Lab;

/// The next pattern.
static SEED: AtomicU32 = AtomicU32::new(1);

/// Bytes that no other call gives: a xorshift generator with a seed of its own each time.
pub(crate) fn fresh(len: usize) -> Vec<u8> {
    let mut state = SEED.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..len).map(next).collect()
}

/// How two stretches of bytes differ, for people; `None` if they do not.
pub(crate) fn difference(wanted: &[u8], found: &[u8]) -> Option<String> {
    if wanted.len() != found.len() {
        return Some(format!("{} bytes, not {}", found.len(), wanted.len()));
    }
    let differ = || wanted.iter().zip(found).enumerate().filter(|(_, (a, b))| a != b);
    let (at, (wanted, found)) = differ().next()?;
    let count = differ().count();
    Some(format!("{count} bytes differ, the first at {at:#x}: {found:#04x}, not {wanted:#04x}"))
}

/// Reads physical memory. The device may write it at any moment, so there are copies only.
pub(crate) fn peek(range: PhysRange) -> Vec<u8> {
    let start = Lab.ptr(range.start());
    let read = |at: u64| {
        // SAFETY: memory of the machine that is nobody's but the scenario's, mapped one to one.
        unsafe { start.add(at as usize).read_volatile() }
    };
    (0..range.len()).map(read).collect()
}

/// Writes physical memory.
fn poke(start: PhysAddr, bytes: &[u8]) {
    let start = Lab.ptr(start);
    for (at, byte) in bytes.iter().enumerate() {
        // SAFETY: memory of the scenario's, as its only caller sees to.
        unsafe { start.add(at).write_volatile(*byte) };
    }
}

/// A physically contiguous block, filled with bytes of its own.
pub(crate) struct Ram {
    frames: OwnedFrames<Lab>,
    /// What the block is believed to hold.
    holds: Vec<u8>,
}

impl Ram {
    /// `size` bytes at a multiple of `align`, both whole CPU pages.
    pub(crate) fn new(size: u64, align: u64) -> Result<Self, FrameError> {
        let frames = OwnedFrames::new(&Lab, &FrameRequest::new(size, align))?;
        let mut this = Self { frames, holds: vec![0; size as usize] };
        this.refill();
        Ok(this)
    }

    /// Fills all of it with new bytes.
    pub(crate) fn refill(&mut self) {
        self.holds = fresh(self.holds.len());
        poke(self.frames.start(), &self.holds);
    }

    /// What a part holds, as far as the CPU knows.
    pub(crate) fn holds(&self, offset: u64, len: u64) -> &[u8] {
        &self.holds[offset as usize..(offset + len) as usize]
    }

    /// Notes that a part holds these bytes: a device wrote them.
    pub(crate) fn expect(&mut self, offset: u64, bytes: &[u8]) {
        self.holds[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// Where memory and belief differ.
    pub(crate) fn surprise(&self) -> Option<String> {
        difference(&self.holds, &peek(self.frames.range()))
    }

    /// Looks whether these bytes lie in a part; if so, memory has changed.
    pub(crate) fn part_surprise(&self, offset: u64, len: u64) -> Option<String> {
        difference(self.holds(offset, len), &peek(self.part(offset, len)))
    }

    /// Believes what is there now.
    pub(crate) fn accept(&mut self) {
        self.holds = peek(self.frames.range());
    }

    /// The physical range of a part.
    pub(crate) fn part(&self, offset: u64, len: u64) -> PhysRange {
        match self.frames.range().slice(offset, len) {
            Some(part) => part,
            None => panic!("{offset:#x}..+{len:#x} is not inside the block"),
        }
    }

    /// Lends a part to granule, as a buffer of physical pages.
    pub(crate) fn lend(&self, offset: u64, len: u64) -> (ForeignMemory, Returned) {
        let returned = Arc::new(AtomicBool::new(false));
        let flag = returned.clone();
        let done = move || flag.store(true, Ordering::SeqCst);
        let pieces = vec![Piece::Phys(self.part(offset, len))];
        // SAFETY: every check takes its mappings back before the block is dropped, and the CPU
        // writes a lent part only after its return.
        (unsafe { ForeignMemory::new(pieces, done) }, Returned(returned))
    }
}

/// Whether a lent part has come back: nobody reaches it any more.
pub(crate) struct Returned(Arc<AtomicBool>);

impl Returned {
    /// Whether it has.
    pub(crate) fn is_true(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// An error that is a sentence.
pub(crate) fn failure(text: &'static str) -> Box<dyn core::error::Error> {
    Box::from(text)
}
