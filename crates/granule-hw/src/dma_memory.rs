//! Memory that a unit reads or writes beside the CPU: queues, stream tables, contexts.
//!
//! The unsafe code here is the access to frames that a device shares: single volatile or atomic words,
//! never references.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU64, Ordering};

use granule::addr::{Direction, PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, OwnedFrames, Platform};

/// Zeroed frames of 64-bit little-endian words that a unit shares.
#[derive(Debug)]
pub(crate) struct DmaMemory<P: Platform> {
    platform: P,
    frames: ManuallyDrop<OwnedFrames<P>>,
    /// The unit snoops the CPU's caches.
    coherent: bool,
}

impl<P: Platform> DmaMemory<P> {
    /// At least `size` bytes of zeroes, aligned to their size (rounded up to a power of two and a CPU
    /// page), below `limit` if the unit reaches less than all memory.
    pub(crate) fn new(
        platform: &P,
        size: u64,
        address_bits: u32,
        coherent: bool,
    ) -> Result<Self, FrameError> {
        let size = size.max(platform.cpu_page().size());
        let size = size.checked_next_power_of_two().ok_or(FrameError::Unsupported)?;
        let reach = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX);
        let window = PhysRange::new(PhysAddr::new(0), reach).ok();
        let request = FrameRequest::new(size, size).within(window);
        let frames = ManuallyDrop::new(OwnedFrames::zeroed(platform, &request)?);
        let memory = Self { platform: platform.clone(), frames, coherent };
        memory.clean(memory.frames.range());
        Ok(memory)
    }

    /// Where it lies.
    pub(crate) fn start(&self) -> u64 {
        self.frames.start().raw()
    }

    /// How many words it has.
    pub(crate) fn words(&self) -> usize {
        usize::try_from(self.frames.range().len() / 8).unwrap_or(usize::MAX)
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words() {
            return None;
        }
        // SAFETY: inside the frames, which are ours and page-aligned, for as long as `self` lives;
        // every access to them is atomic or made before the unit knew of them.
        Some(unsafe { AtomicU64::from_ptr(self.frames.ptr().cast::<u64>().add(index)) })
    }

    fn range(&self, index: usize, words: usize) -> Option<PhysRange> {
        let start = self.frames.start().checked_add(index as u64 * 8)?;
        PhysRange::new(start, words as u64 * 8).ok()
    }

    fn clean(&self, range: PhysRange) {
        if !self.coherent {
            self.platform.sync_for_device(range, Direction::ToDevice);
        }
    }

    /// Reads a word that only the CPU writes.
    pub(crate) fn get(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    /// Reads words that the unit wrote.
    pub(crate) fn read<const N: usize>(&self, index: usize) -> [u64; N] {
        if let (false, Some(range)) = (self.coherent, self.range(index, N)) {
            self.platform.sync_for_cpu(range, Direction::FromDevice);
        }
        core::array::from_fn(|offset| self.get(index.saturating_add(offset)))
    }

    /// Writes words, in order, and makes them visible to the unit. Words outside are dropped.
    pub(crate) fn write(&self, index: usize, values: &[u64]) {
        for (offset, value) in values.iter().enumerate() {
            if let Some(word) = self.word(index.saturating_add(offset)) {
                word.store(value.to_le(), Ordering::Release);
            }
        }
        if let Some(range) = self.range(index, values.len()) {
            self.clean(range);
        }
    }

    /// Frees the memory: the unit does not use it any more. Dropping instead leaks it, since only
    /// the driver knows when the unit has let go.
    pub(crate) fn free(self) {
        drop(ManuallyDrop::into_inner(self.frames));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn words_stay_inside_and_are_freed_on_request_only() {
        let machine = machine();
        let platform = machine.platform();
        let memory = DmaMemory::new(platform, 0x1800, 32, true).expect("memory");
        assert_eq!((memory.words(), memory.start() & 0x1fff), (0x400, 0));
        memory.write(0x3ff, &[7, 8]);
        assert_eq!(memory.read::<2>(0x3ff), [7, 0]);
        assert_eq!(memory.get(usize::MAX), 0);
        memory.free();
        assert!(platform.frames().live().is_empty());
        drop(DmaMemory::new(platform, 8, 64, true).expect("memory"));
        assert_eq!(platform.frames().live().len(), 1);
        assert!(DmaMemory::new(platform, 8, 20, true).is_err(), "all RAM lies above 1 MiB");
    }
}
