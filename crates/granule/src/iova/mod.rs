//! The IOVA allocator of a domain: which addresses are free, in units of the domain's granule.
//!
//! Five stages, from the fast to the thorough:
//!
//! 1. **The front.** Each CPU holds one free range for every power of two in an atomic word: what was
//!    just freed is handed out again without a lock.
//! 2. **Magazines.** Each CPU holds a few free ranges of every common size, under a lock that is its
//!    own. Nearly every other call ends here, after a push or a pop.
//! 3. **The depot.** Under one lock, a stack of free ranges for every common size: what one CPU's
//!    magazine has too many of, the next takes from here, half a magazine at a time. It has room in
//!    proportion to the ranges that are live.
//! 4. **The tree.** One lazy tree of bitmaps holds everything else, under the same lock.
//! 5. **The sweep.** Before space is declared full, all that is held above goes back to the tree, the
//!    tree is searched for a place that only a walk over the free extents finds, and the error says
//!    whether the space is full, fragmented, or never was large enough.
//!
//! What it keeps: ranges never overlap and are whole granules; natural alignment; windows; reserved
//! regions. Freeing never allocates, and nothing is allocated per call in the steady state. The
//! memory for bookkeeping is below 10 KiB for each CPU that allocates, eight bytes a live range at most
//! for the depot, and the tree, which has no record for a range, only for the space it lies in. Where memory for the tree runs out,
//! [`IovaError::OutOfMemory`] says so; nothing aborts.
//!
//! ```text
//! allocator   the public type and the path through front and magazine
//! counted     the same path with the user's counts under the lock of the magazine
//! front       one range a size in an atomic word
//! slow        refilling, overflowing, emptying, and the errors
//! magazine    size classes and their stacks     space   depot and tree, bounds and reservations
//! depot       stacks that all CPUs share        tree    words, nodes, search
//! ```

#![cfg_attr(not(test), forbid(unsafe_code))] // The tests implement `Platform`, an unsafe trait.

mod allocator;
mod counted;
mod depot;
mod error;
mod front;
mod magazine;
mod request;
mod slow;
mod space;
mod tree;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use allocator::IovaAllocator;
pub use counted::Terms;
pub use error::IovaError;
pub use request::{IovaRequest, IovaUsage};
