//! Blocks of 64-bit little-endian words that stay with a unit until the driver knows better: queues,
//! stream tables, contexts.
//!
//! The memory and every access to it are [`Block`]'s. What is added here: words instead of bytes, and
//! that dropping leaks, so that no early return frees what a unit still walks.
#![forbid(unsafe_code)]

use core::mem::ManuallyDrop;

use granule::mem::{FrameError, Platform};

use crate::block::Block;

/// The bytes of a word.
const WORD: usize = size_of::<u64>();

/// Zeroed frames of 64-bit little-endian words that a unit shares.
pub(crate) struct DmaMemory<P: Platform> {
    block: ManuallyDrop<Block<P>>,
}

impl<P: Platform> DmaMemory<P> {
    /// At least `size` bytes of zeroes, aligned to their size (rounded up to a power of two and a CPU
    /// page), below 2 to the power of `address_bits`.
    pub(crate) fn new(
        platform: &P,
        size: u64,
        address_bits: u32,
        coherent: bool,
    ) -> Result<Self, FrameError> {
        let size = size.max(platform.cpu_page().size());
        let size = size.checked_next_power_of_two().ok_or(FrameError::Unsupported)?;
        let block = Block::zeroed(platform, size, size, address_bits, coherent)?;
        Ok(Self { block: ManuallyDrop::new(block) })
    }

    /// Where it lies.
    pub(crate) fn start(&self) -> u64 {
        self.block.phys()
    }

    /// How many words it has.
    pub(crate) fn words(&self) -> usize {
        self.block.len() / WORD
    }

    /// Reads a word that only the CPU writes; zero beyond the end.
    pub(crate) fn get(&self, index: usize) -> u64 {
        u64::from_le(self.block.read64(index.saturating_mul(WORD)))
    }

    /// Reads words that the unit wrote.
    pub(crate) fn read<const N: usize>(&self, index: usize) -> [u64; N] {
        self.block.refresh(index.saturating_mul(WORD), N * WORD);
        core::array::from_fn(|offset| self.get(index.saturating_add(offset)))
    }

    /// Writes words, in order, and makes them visible to the unit. Words outside are dropped.
    pub(crate) fn write(&self, index: usize, values: &[u64]) {
        let inside = values.len().min(self.words().saturating_sub(index));
        let at = index.saturating_mul(WORD);
        for (offset, value) in values.iter().take(inside).enumerate() {
            self.block.write64(at + offset * WORD, value.to_le());
        }
        self.block.publish(at, inside * WORD);
    }

    /// Frees the memory: the unit does not use it any more. Dropping instead leaks it, since only
    /// the driver knows when the unit has let go.
    pub(crate) fn free(self) {
        drop(ManuallyDrop::into_inner(self.block));
    }
}

impl<P: Platform> core::fmt::Debug for DmaMemory<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DmaMemory")
            .field("start", &self.start())
            .field("words", &self.words())
            .finish_non_exhaustive()
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
        let _ = DmaMemory::new(platform, 8, 64, true).expect("memory");
        assert_eq!(platform.frames().live().len(), 1);
        assert!(DmaMemory::new(platform, 8, 20, true).is_err(), "all RAM lies above 1 MiB");
    }
}
