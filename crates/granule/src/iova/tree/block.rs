//! The sixty-four children of a node, and what a search needs to know of them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Change, Child, NoMemory};

/// The children of one node, and for each order the split children that hold such a free block.
pub(super) struct Block<C, const M: usize> {
    /// Bit *i* of `masks[k]`: child *i* is split and has a free aligned block of 2^*k* granules.
    pub(super) masks: [u64; M],
    pub(super) children: [C; 64],
}

impl<C: Child, const M: usize> Block<C, M> {
    /// A block of its own, or an error where the ordinary `Box::new` would abort. Not inlined, so
    /// that the two kilobytes it may need on the stack are needed once, not at every tier.
    #[cold]
    #[inline(never)]
    pub(super) fn allocate() -> Result<Box<[Self; 1]>, NoMemory> {
        let mut one = Vec::new();
        one.try_reserve_exact(1).map_err(|_| NoMemory)?;
        one.push(Self { masks: [0; M], children: [const { C::FREE }; 64] });
        Box::try_from(one).map_err(|_| NoMemory)
    }

    /// Records that the rank of the child at `slot` changed.
    #[inline]
    pub(super) fn rerank(&mut self, slot: u64, change: Change) {
        let bit = 1 << slot;
        let (from, to) = (change.old.min(change.new), change.old.max(change.new));
        for mask in self.masks.iter_mut().take(usize::from(to)).skip(usize::from(from)) {
            *mask ^= bit;
        }
    }

    /// The highest rank among the split children.
    pub(super) fn best(&self) -> u8 {
        self.masks.iter().rposition(|mask| *mask != 0).map_or(0, |order| order as u8 + 1)
    }
}
