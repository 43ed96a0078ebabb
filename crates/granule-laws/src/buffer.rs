//! Buffers in simulated memory: they own their frames, know their bytes, and show it when somebody
//! else has written to them. Freed frames are poisoned by the simulator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::addr::PhysRange;
use granule::dma::{DmaBuffer, DmaBufferMut, Memory, Piece, Words};
use granule::mem::{FrameRequest, OwnedFrames};
use granule_sim::machine::Machine;
use granule_sim::platform::SimPlatform;

use crate::bench::Case;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A buffer of simulated memory.
#[derive(Debug)]
pub struct SimBuffer {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What makes its bytes differ from every other buffer's.
    id: u64,
    machine: Machine,
    pieces: Vec<Piece>,
    ranges: Vec<PhysRange>,
    _frames: Vec<OwnedFrames<SimPlatform>>,
    /// Set when the buffer is dropped.
    dropped: Option<Arc<AtomicBool>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            dropped.store(true, Ordering::Release);
        }
    }
}

/// The byte at `offset` of data number `id`: differs everywhere.
pub fn byte(id: u64, offset: u64) -> u8 {
    let mixed = (offset ^ id.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8 ^ (mixed >> 32) as u8
}

/// The bytes of data number `id`.
pub fn bytes(id: u64, len: u64) -> Vec<u8> {
    (0..len).map(|offset| byte(id, offset)).collect()
}

/// A number for data that nothing else has.
pub fn fresh_id() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl SimBuffer {
    /// `len` bytes that begin `offset` bytes into whole units of their own, filled with their
    /// pattern.
    ///
    /// # Panics
    /// If memory is lacking.
    pub fn new(case: &Case, machine: &Machine, offset: u64, len: u64) -> Self {
        Self::try_new(case, machine, offset, len).expect("free memory")
    }

    /// As [`new`](Self::new); `None` if memory is lacking.
    pub fn try_new(case: &Case, machine: &Machine, offset: u64, len: u64) -> Option<Self> {
        let unit = case.unit();
        let frames = frames(machine, unit.round_up(offset + len)?, unit.size())?;
        let range = frames.range().slice(offset, len)?;
        Some(Self::of(machine, vec![frames], vec![range]))
    }

    /// Scattered pieces: `sizes` bytes long each, the first `offset` bytes into its unit.
    pub fn scattered(case: &Case, machine: &Machine, offset: u64, sizes: &[u64]) -> Option<Self> {
        let unit = case.unit();
        let (mut owned, mut ranges) = (Vec::new(), Vec::new());
        for (index, size) in sizes.iter().enumerate() {
            let offset = if index == 0 { offset } else { 0 };
            // One unit more, so that neighbours never adjoin.
            let frames = frames(machine, unit.round_up(offset + size)? + unit.size(), unit.size())?;
            ranges.push(frames.range().slice(offset, *size)?);
            owned.push(frames);
        }
        Some(Self::of(machine, owned, ranges))
    }

    /// Pieces of these sizes, each wherever memory is free.
    pub fn pages(case: &Case, machine: &Machine, sizes: &[u64]) -> Option<Self> {
        let unit = case.unit();
        let owned = sizes.iter().map(|size| frames(machine, unit.round_up(*size)?, unit.size()));
        let owned: Vec<_> = owned.collect::<Option<_>>()?;
        let ranges = owned.iter().zip(sizes).map(|(frames, size)| frames.range().slice(0, *size));
        let ranges = ranges.collect::<Option<_>>()?;
        Some(Self::of(machine, owned, ranges))
    }

    fn of(
        machine: &Machine,
        frames: Vec<OwnedFrames<SimPlatform>>,
        ranges: Vec<PhysRange>,
    ) -> Self {
        let pieces = ranges.iter().copied().map(Piece::Phys).collect();
        let (id, machine) = (fresh_id(), machine.clone());
        let inner = Inner { id, machine, pieces, ranges, _frames: frames, dropped: None };
        let buffer = Self { inner: Box::new(inner) };
        buffer.write(&bytes(id, buffer.len()));
        buffer
    }

    /// Memory that the caller lends, as it is. When the buffer is dropped, `back` is set.
    pub fn lent(machine: &Machine, ranges: &[PhysRange], back: Arc<AtomicBool>) -> Self {
        let inner = Inner {
            id: 0,
            machine: machine.clone(),
            pieces: ranges.iter().copied().map(Piece::Phys).collect(),
            ranges: ranges.to_vec(),
            _frames: Vec::new(),
            dropped: Some(back),
        };
        Self { inner: Box::new(inner) }
    }

    /// What its bytes are made from.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Where it lies.
    pub fn ranges(&self) -> &[PhysRange] {
        &self.inner.ranges
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.inner.ranges.iter().map(PhysRange::len).sum()
    }

    /// What the CPU sees in it.
    ///
    /// # Panics
    /// If it does not lie in RAM.
    pub fn contents(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for range in &self.inner.ranges {
            let at = all.len();
            all.resize(at + range.len() as usize, 0);
            self.inner.machine.ram().read(range.start(), &mut all[at..]).expect("RAM");
        }
        all
    }

    /// Lets the CPU write all of it.
    ///
    /// # Panics
    /// If it does not lie in RAM.
    pub fn write(&self, data: &[u8]) {
        let mut at = 0;
        for range in &self.inner.ranges {
            let part = &data[at..at + range.len() as usize];
            self.inner.machine.ram().write(range.start(), part).expect("RAM");
            at += part.len();
        }
    }

    /// Whether it holds what it was made with.
    pub fn is_intact(&self) -> bool {
        self.contents() == bytes(self.id(), self.len())
    }
}

/// A block of frames, filled with a byte that is neither zero nor poison.
fn frames(machine: &Machine, size: u64, align: u64) -> Option<OwnedFrames<SimPlatform>> {
    let frames = OwnedFrames::new(machine.platform(), &FrameRequest::new(size, align)).ok()?;
    machine.ram().fill(frames.range(), SECRET).expect("RAM");
    Some(frames)
}

/// What lies beside a buffer in its units: somebody else's bytes.
pub const SECRET: u8 = 0x5e;

// SAFETY: the box is one pointer; the frames are owned and stay where they are.
unsafe impl DmaBuffer for SimBuffer {
    fn into_words(self) -> Words {
        [Box::into_raw(self.inner).expose_provenance(), 0, 0]
    }

    unsafe fn from_words(words: Words) -> Self {
        let ptr = std::ptr::with_exposed_provenance_mut(words[0]);
        // SAFETY: the words came from `into_words`.
        Self { inner: unsafe { Box::from_raw(ptr) } }
    }

    unsafe fn memory(words: &Words) -> Memory<'_> {
        let inner = std::ptr::with_exposed_provenance::<Inner>(words[0]);
        // SAFETY: the words stand for a live box, which nobody changes.
        let pieces = unsafe { &(*inner).pieces };
        match &pieces[..] {
            [one] => Memory::One(*one),
            many => Memory::Many(many),
        }
    }
}
// SAFETY: the frames are owned, and every bit pattern is a byte.
unsafe impl DmaBufferMut for SimBuffer {}
