//! The IOVA allocator of a domain: which addresses are free, in units of the domain's granule.
//!
//! Three stages, from the fast to the thorough:
//!
//! 1. **Magazines.** Each CPU holds a few free ranges of every common size, under a lock that is its
//!    own. Nearly every call ends here, after a push or a pop.
//! 2. **The tree.** One lazy tree of bitmaps holds everything else, under one lock. Ranges move
//!    between it and the magazines in batches.
//! 3. **The sweep.** Before space is declared full, all CPUs' magazines go back to the tree, the
//!    tree is searched for a place that only a walk over the free extents finds, and the error says
//!    whether the space is full, fragmented, or never was large enough.
//!
//! What it keeps: ranges never overlap and are whole granules; natural alignment; windows; reserved
//! regions. Freeing never allocates, and nothing is allocated per call in the steady state. The
//! memory for bookkeeping is below 10 KiB for each CPU that allocates, plus the tree, which has no
//! record for a range, only for the space it lies in. Where memory for the tree runs out,
//! [`IovaError::OutOfMemory`] says so; nothing aborts.
//!
//! ```text
//! allocator   the public type and the path through a magazine
//! slow        refilling, overflowing, emptying, and the errors
//! magazine    size classes and their stacks     space   the tree with bounds and reservations
//!                                               tree    words, nodes, search
//! ```

#![cfg_attr(not(test), forbid(unsafe_code))] // The tests implement `Platform`, an unsafe trait.

mod allocator;
mod error;
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
pub use error::IovaError;
pub use request::{IovaRequest, IovaUsage};
