//! The map of what is free: a lazy tree of 64-bit words, 64 slots a node.
//!
//! | tier | a slot is | a node covers | bytes |
//! | --- | --- | --- | --- |
//! | 0, [`Leaf`] | one granule | 64 granules | 8 |
//! | 1, [`Node`] | a leaf | 2^12 granules | 24 |
//! | *n* | a node of tier *n* - 1 | 2^(6*n* + 6) granules | 24 |
//!
//! A slot is free as a whole, taken as a whole, or split: then its child tells. The children of a
//! node are one block, which exists only while a slot is split (a few idle ones are kept, so that
//! a steady state allocates nothing). So a 4 MiB range in 4 KiB granules is sixteen bits in a
//! 24-byte node, and an empty space of 2^52 granules is one word.
//!
//! **Freeing never allocates**, because a slot that was taken piece by piece stays split even when
//! it is full; only what was taken as a whole slot is recorded as one, and the same range comes
//! back the same way.
//!
//! Each block of children has, for every order *k*, a mask of the split children which hold a free
//! aligned block of 2^*k* granules. A search therefore goes straight down; only the window's two
//! edges and an alignment beyond the block's own make it try more than one child.
//!
//! Positions are counted from the node's own start, in granules; ranges include both ends. Tiers
//! are types, so all shifts are constants; the root alone is called through a table.

mod bits;
mod block;
mod leaf;
mod node;
mod refill;

use alloc::boxed::Box;

pub(super) use leaf::Leaf;
use node::Node;

type Tier1 = Node<Leaf, 6>;
type Tier2 = Node<Tier1, 12>;
type Tier3 = Node<Tier2, 18>;
type Tier4 = Node<Tier3, 24>;
type Tier5 = Node<Tier4, 30>;
type Tier6 = Node<Tier5, 36>;
type Tier7 = Node<Tier6, 42>;
type Tier8 = Node<Tier7, 48>;

/// The smallest tree that covers 2^`order` granules, all free, and the order it does cover.
pub(super) fn tree_of_order(order: u32) -> (Box<dyn Tier>, u32) {
    match order {
        0..=18 => (Box::new(Tier2::FREE), 18),
        19..=24 => (Box::new(Tier3::FREE), 24),
        25..=30 => (Box::new(Tier4::FREE), 30),
        31..=36 => (Box::new(Tier5::FREE), 36),
        37..=42 => (Box::new(Tier6::FREE), 42),
        43..=48 => (Box::new(Tier7::FREE), 48),
        _ => (Box::new(Tier8::FREE), 54),
    }
}

/// No memory for another block of children.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoMemory;

/// The range is not what was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct NotTaken;

/// How a tier's rank changed: a rank is one more than the order of the largest free aligned block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    old: u8,
    new: u8,
}

impl Change {
    const NONE: Self = Self { old: 0, new: 0 };

    #[inline]
    fn is_none(self) -> bool {
        self.old == self.new
    }
}

/// What is searched for: a free block of 2^`order` granules at a multiple of 2^`align`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query {
    pub(super) order: u32,
    /// Not below `order` unless the blocks that follow are looked at too.
    pub(super) align: u32,
    /// Prefer what is already split, to keep large blocks whole. Otherwise the answer is the
    /// highest such block.
    pub(super) pack: bool,
}

/// Blocks of one size, to be taken as many as there is room for.
pub(super) struct Batch<'a> {
    /// Each block is aligned to 2^`order`; all of that is free when it is taken.
    pub(super) order: u32,
    /// The granules taken of each: at most 2^`order`, and less only for orders up to 6.
    pub(super) len: u64,
    /// Where their numbers go.
    pub(super) room: &'a mut [u64],
    /// How many there are now.
    pub(super) filled: usize,
    /// Whether memory for the tree ran out.
    pub(super) no_memory: bool,
}

impl Batch<'_> {
    #[inline]
    fn push(&mut self, start: u64) {
        if let Some(slot) = self.room.get_mut(self.filled) {
            *slot = start;
            self.filled += 1;
        }
    }

    #[inline]
    fn is_done(&self) -> bool {
        self.no_memory || self.filled >= self.room.len()
    }
}

/// What the tree's own memory amounts to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ledger {
    /// Bytes in blocks of children.
    pub(super) bytes: usize,
    /// Blocks without a split slot, kept for the next one.
    pub(super) idle: usize,
}

/// The free extents of a walk, merged: their sum and the longest, in granules.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extents {
    pub(super) sum: u64,
    pub(super) longest: u64,
    start: u64,
    end: u64,
}

impl Extents {
    /// Adds an extent behind all others.
    fn add(&mut self, start: u64, len: u64) {
        if start != self.end || self.end == 0 {
            self.start = start;
        }
        self.end = start + len;
        self.sum += len;
        self.longest = self.longest.max(self.end - self.start);
    }
}

/// One tier of the tree, or all of it: what the allocator asks.
pub(super) trait Tier: Send {
    /// A block that meets the query and lies in `low..=high`.
    fn find(&self, query: &Query, low: u64, high: u64) -> Option<u64>;

    /// Takes `low..=high`, which is free. On failure nothing has changed.
    fn take(&mut self, low: u64, high: u64, ledger: &mut Ledger) -> Result<Change, NoMemory>;

    /// Takes blocks in `low..=high` until the batch is full; `base` is added to their positions.
    fn take_many(
        &mut self,
        batch: &mut Batch<'_>,
        base: u64,
        low: u64,
        high: u64,
        ledger: &mut Ledger,
    ) -> Change;

    /// Frees `low..=high`, which was taken as one. On failure nothing has changed.
    fn give(&mut self, low: u64, high: u64, ledger: &mut Ledger) -> Result<Change, NotTaken>;

    /// The same for a part of one leaf: `bits`, of which the lowest is `at`.
    fn give_small(&mut self, at: u64, bits: u64, ledger: &mut Ledger) -> Result<Change, NotTaken>;

    /// Whether `low..=high` can be given: all of it taken, and no part of a larger whole.
    fn holds(&self, low: u64, high: u64) -> bool;

    /// The lowest granule in `low..=high` that is not free.
    fn first_taken(&self, low: u64, high: u64) -> Option<u64>;

    /// Adds the free extents in `low..=high`, in order; `base` is added to their positions.
    fn extents(&self, base: u64, low: u64, high: u64, into: &mut Extents);

    /// Frees idle blocks of children.
    fn trim(&mut self, ledger: &mut Ledger);
}

/// What a node must know of its children at compile time.
pub(super) trait Child: Tier + Sized + 'static {
    /// The order of the granules it covers.
    const ORDER: u32;
    /// One that is wholly free and has no memory of its own.
    const FREE: Self;

    /// Whether all of it is free.
    fn is_free(&self) -> bool;

    /// The memory that hangs below, of which nothing is split.
    fn idle_below(&self) -> Ledger;
}
