//! Independent page-table walkers over any memory: the judge of what a table really says.
//!
//! Written from the format tables alone (see [`SimFormat`]) and sharing no code with the core's
//! encoders, so that the two can only agree by being right. They read *arbitrary* memory: loops,
//! tables beyond memory, reserved bits and absurd sizes end in bounded work and a finding, never in
//! a panic.

#![forbid(unsafe_code)]

mod decode;
mod format;
mod mappings;
#[cfg(test)]
mod tests;

use granule::addr::{Access, Iova, PhysAddr};

pub(crate) use decode::{Entry, Rights, decode};
pub(crate) use format::Geometry;
pub use format::{FormatError, SimFormat};
pub(crate) use mappings::collect_below;
pub use mappings::{Finding, FindingKind, Listing, Mapping, WalkLimit, mappings, mappings_up_to};

/// Memory that a walker reads: RAM, what lies behind the cache, or a dump.
pub trait PhysRead {
    /// The little-endian word at `addr`, or `None` if there is no memory or `addr` is not a multiple
    /// of 8.
    fn read_u64(&self, addr: PhysAddr) -> Option<u64>;

    /// Fills `words` from `addr` on; what cannot be read is `None`.
    fn read_words(&self, addr: PhysAddr, words: &mut [Option<u64>]) {
        for (index, word) in words.iter_mut().enumerate() {
            *word = addr.checked_add(index as u64 * 8).and_then(|at| self.read_u64(at));
        }
    }
}

impl<M: PhysRead + ?Sized> PhysRead for &M {
    fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        (**self).read_u64(addr)
    }

    fn read_words(&self, addr: PhysAddr, words: &mut [Option<u64>]) {
        (**self).read_words(addr, words);
    }
}

/// Where a table says that an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Translation {
    /// The physical address of the byte that was asked for.
    pub phys: PhysAddr,
    /// The first IOVA of the page, or of the group of pages that hardware may cache as one.
    pub page_iova: Iova,
    /// The size of that page or group in bytes.
    pub page_size: u64,
    /// The physical address of the page's first byte.
    pub page_phys: PhysAddr,
    /// What the device may do.
    pub access: Access,
    /// Whether it may fetch instructions (DART and VT-d second stage: never).
    pub execute: bool,
    /// First and last byte inside the page that may be reached, if not the whole page.
    pub fence: Option<(u64, u64)>,
}

/// Why a walk ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkFault {
    /// The tables have no such shape.
    #[error(transparent)]
    Shape(#[from] FormatError),
    /// The address has bits that the tables do not index.
    #[error("{iova:#x} lies outside the {input_bits} bits that the table indexes")]
    OutsideInput {
        /// The address.
        iova: Iova,
        /// How many bits are indexed.
        input_bits: u32,
    },
    /// No root table serves the address.
    #[error("no root table number {index} for {iova:#x}")]
    NoRoot {
        /// The address.
        iova: Iova,
        /// The root that would serve it.
        index: usize,
    },
    /// The entry at `at` maps nothing.
    #[error("{iova:#x} is not mapped: the entry at {at:#x} is not valid")]
    NotPresent {
        /// The address.
        iova: Iova,
        /// Where the entry is.
        at: PhysAddr,
    },
    /// The walk led to where there is no memory.
    #[error("the walk of {iova:#x} reads {at:#x}, where there is no memory")]
    Unreadable {
        /// The address.
        iova: Iova,
        /// Where the walk read.
        at: PhysAddr,
    },
    /// The entry breaks a rule of its format.
    #[error("the entry {raw:#018x} at {at:#x} is malformed: {rule}")]
    Malformed {
        /// The address.
        iova: Iova,
        /// Where the entry is.
        at: PhysAddr,
        /// The entry.
        raw: u64,
        /// The rule.
        rule: &'static str,
    },
}

/// A table to go on from: a root, or a pointer that a walk cache remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) table: PhysAddr,
    pub(crate) height: u32,
    pub(crate) limit: Rights,
}

/// Translates `iova` through the tables at `roots`.
///
/// # Errors
/// [`WalkFault`]: the shape is impossible, or the walk ends at an entry that maps nothing, breaks a
/// rule or cannot be read.
pub fn translate<M: PhysRead + ?Sized>(
    memory: &M,
    format: SimFormat,
    roots: &[PhysAddr],
    input_bits: u32,
    iova: Iova,
) -> Result<Translation, WalkFault> {
    let geometry = Geometry::new(format, input_bits, roots.len())?;
    let start = start_at_root(&geometry, roots, iova)?;
    walk_from(memory, &geometry, iova, start, &mut |_| ())
}

/// The root that serves `iova`.
pub(crate) fn start_at_root(
    geometry: &Geometry,
    roots: &[PhysAddr],
    iova: Iova,
) -> Result<Start, WalkFault> {
    let input_bits = geometry.input_bits;
    let low = geometry.indexed(iova.raw()).ok_or(WalkFault::OutsideInput { iova, input_bits })?;
    let index = geometry.root_index(low);
    let table = *roots.get(index).ok_or(WalkFault::NoRoot { iova, index })?;
    Ok(Start { table, height: geometry.top, limit: Rights::ALL })
}

/// Walks from `start` to the leaf; `passed` hears of every table that the walk enters below it.
pub(crate) fn walk_from<M: PhysRead + ?Sized>(
    memory: &M,
    geometry: &Geometry,
    iova: Iova,
    start: Start,
    passed: &mut dyn FnMut(Start),
) -> Result<Translation, WalkFault> {
    let mut now = start;
    loop {
        let index = geometry.index(iova.raw(), now.height);
        let at = PhysAddr::new(now.table.raw().wrapping_add(index * 8));
        let raw = memory.read_u64(at).ok_or(WalkFault::Unreadable { iova, at })?;
        match decode(geometry, now.height, index, raw) {
            Entry::NotPresent => return Err(WalkFault::NotPresent { iova, at }),
            Entry::Malformed(rule) => return Err(WalkFault::Malformed { iova, at, raw, rule }),
            Entry::Page(page) => return Ok(leaf(geometry, now, iova, &page)),
            // Every decoder refuses a pointer at height 0, so this ends.
            Entry::Table { next, limit } => {
                let height = now.height.saturating_sub(1);
                now = Start { table: next, height, limit: now.limit.and(limit) };
                passed(now);
            }
        }
    }
}

fn leaf(geometry: &Geometry, from: Start, iova: Iova, page: &decode::Page) -> Translation {
    let single = geometry.shift(from.height);
    let shift = group_shift(single, page, iova.raw());
    let mask = (1u64 << shift) - 1;
    let place = iova.raw() & !mask;
    // A group's first page lies as far below this page physically as it does in IOVA space.
    let inside = iova.raw() & mask & !((1 << single) - 1);
    let page_phys = page.phys.raw().wrapping_sub(inside);
    let rights = page.rights.and(from.limit);
    Translation {
        phys: PhysAddr::new(page_phys.wrapping_add(iova.raw() & mask)),
        page_iova: Iova::new(place),
        page_size: 1 << shift,
        page_phys: PhysAddr::new(page_phys),
        access: rights.access,
        execute: rights.execute,
        fence: page.fence,
    }
}

/// The size to cache by: the group's, if the page stands where the group would have it.
pub(crate) fn group_shift(single: u32, page: &decode::Page, iova: u64) -> u32 {
    let grouped = single + page.group;
    let differing = (page.phys.raw() ^ iova) & ((1 << grouped) - 1) & !((1 << single) - 1);
    if differing == 0 { grouped } else { single }
}
