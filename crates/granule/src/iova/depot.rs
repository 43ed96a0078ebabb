//! The depot: free ranges of every class that magazines hand on to each other, so that they need not
//! be entered into the tree by the one CPU and searched for by the next. It belongs to the tree's lock.
//!
//! How many ranges of a size are live goes up and down by about the root of their number, so a stack
//! in proportion to that number takes nearly all of it up. A class's stack has room for one range for
//! each that is out (taken from the tree and not given back), beyond what one magazine holds, and
//! never for more than 256: at most eight bytes a live range, far less where many are live. It doubles
//! when ranges are taken, and never grows when they come back.

use alloc::vec::Vec;
use core::mem::size_of;

use super::magazine::{CLASSES, Class};
use super::tree::NoMemory;

/// The most ranges of one class.
const MOST: usize = 256;
/// The least room that memory is taken for.
const LEAST: usize = 8;

/// The ranges of one class, each named by its first granule.
#[derive(Default)]
struct Stack {
    ranges: Vec<u64>,
    /// How many ranges are out: live, in a magazine, or here.
    out: usize,
}

impl Stack {
    /// Takes memory for as many ranges as are due, or does without.
    #[cold]
    fn grow(&mut self, due: usize) {
        let _ = self.ranges.try_reserve_exact(due - self.ranges.len());
    }
}

/// The stacks of all classes.
pub(super) struct Depot {
    /// One for each class.
    stacks: Vec<Stack>,
    /// The granules in all of them.
    held: u64,
}

impl Depot {
    /// Empty stacks.
    pub(super) fn new() -> Result<Self, NoMemory> {
        let mut stacks = Vec::new();
        stacks.try_reserve_exact(CLASSES).map_err(|_| NoMemory)?;
        stacks.resize_with(CLASSES, Stack::default);
        Ok(Self { stacks, held: 0 })
    }

    /// Counts ranges that were taken from the tree.
    #[inline]
    pub(super) fn count_taken(&mut self, class: Class, count: usize) {
        let Some(stack) = self.stacks.get_mut(class.index()) else { return };
        stack.out += count;
        let due = stack.out.saturating_sub(class.depth()).min(MOST);
        let room = stack.ranges.capacity();
        if due >= (2 * room).clamp(LEAST, MOST) && due > room {
            stack.grow(due);
        }
    }

    /// Counts ranges that were given to the tree.
    #[inline]
    pub(super) fn count_given(&mut self, class: Class, count: usize) {
        if let Some(stack) = self.stacks.get_mut(class.index()) {
            // Below zero it would go for ranges that were freed twice.
            stack.out = stack.out.saturating_sub(count);
        }
    }

    /// Takes the latest ranges of a class, as many as `room` has places for; how many that were.
    #[inline]
    pub(super) fn take(&mut self, class: Class, room: &mut [u64]) -> usize {
        let Some(stack) = self.stacks.get_mut(class.index()) else { return 0 };
        let from = stack.ranges.len().saturating_sub(room.len());
        let mut taken = 0;
        for (place, start) in room.iter_mut().zip(stack.ranges.iter().skip(from)) {
            *place = *start;
            taken += 1;
        }
        stack.ranges.truncate(from);
        self.held -= taken as u64 * class.size();
        taken
    }

    /// Puts ranges of a class in as long as there is room and all stacks hold `most` granules at most;
    /// how many that were. Never allocates.
    #[inline]
    pub(super) fn put(&mut self, class: Class, starts: &[u64], most: u64) -> usize {
        let Some(stack) = self.stacks.get_mut(class.index()) else { return 0 };
        let room = stack.ranges.capacity() - stack.ranges.len();
        let allowed = most.saturating_sub(self.held) / class.size();
        let count = room.min(starts.len()).min(usize::try_from(allowed).unwrap_or(usize::MAX));
        stack.ranges.extend(starts.iter().take(count));
        self.held += count as u64 * class.size();
        count
    }

    /// Removes a range of a class.
    pub(super) fn pop(&mut self, class: Class) -> Option<u64> {
        let start = self.stacks.get_mut(class.index())?.ranges.pop()?;
        self.held -= class.size();
        Some(start)
    }

    /// Frees memory that nothing lies in.
    pub(super) fn trim(&mut self) {
        let idle = self.stacks.iter_mut().filter(|stack| stack.ranges.is_empty());
        idle.for_each(|stack| stack.ranges = Vec::new());
    }

    /// The granules held.
    pub(super) fn granules(&self) -> u64 {
        self.held
    }

    /// The bytes of memory behind this value.
    pub(super) fn bytes(&self) -> usize {
        let ranges: usize = self.stacks.iter().map(|stack| stack.ranges.capacity()).sum();
        self.stacks.capacity() * size_of::<Stack>() + ranges * size_of::<u64>()
    }
}
