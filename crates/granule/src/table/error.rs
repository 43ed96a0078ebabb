//! Why a page table refuses.

use super::FormatId;
use crate::addr::{Granule, Iova, IovaRange, PhysAddr, PhysRange};
use crate::mem::FrameError;

/// Why a page table refused, and what was left behind: nothing that a device can reach.
///
/// After a failed map the walker may hold what the call had written and taken back, so the range is
/// invalidated before its memory or IOVA is used again; empty table pages may remain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// An address or a length is not a whole number of granules.
    #[error("{value:#x} is not a multiple of the granule, {granule}: align it, or bounce")]
    Misaligned {
        /// The address or length, or the bits of several joined by OR.
        value: u64,
        /// The table's granule.
        granule: Granule,
    },
    /// The range lies outside what the table indexes.
    #[error("{len:#x} bytes at IOVA {iova} do not fit the table's {input_bits} input bits")]
    OutsideInput {
        /// Where the range starts.
        iova: Iova,
        /// Its length in bytes.
        len: u64,
        /// The input bits that the table was made with.
        input_bits: u32,
    },
    /// Memory that the table's entries cannot name.
    #[error(
        "physical memory {range} lies above the {output_bits} output bits of this table: allocate lower, or bounce"
    )]
    OutsideOutput {
        /// The memory.
        range: PhysRange,
        /// The output bits that the table was made with.
        output_bits: u32,
    },
    /// Something is mapped there already.
    #[error("IOVA {iova} is mapped already: unmap it first")]
    AlreadyMapped {
        /// The first address that is taken.
        iova: Iova,
    },
    /// The range ends inside a page or a contiguous group, which cannot be split while it is live.
    #[error("the range cuts the page {page} at {at}: unmap whole pages")]
    CutsPage {
        /// The page, or the contiguous group.
        page: IovaRange,
        /// The end of the range that lies inside it.
        at: Iova,
    },
    /// An unmap detached a table there, and [`reap`](super::PageTable::reap) has not been called.
    #[error("a table detached at IOVA {iova} has not been reaped: invalidate, reap, then reuse")]
    NotReaped {
        /// The address whose table is detached.
        iova: Iova,
    },
    /// No memory for a table page.
    #[error("no memory for a page of the page table")]
    Frames(#[from] FrameError),
    /// The allocator returned a table page that the entries cannot name.
    #[error(
        "a table page at {phys} lies above the {bits} bits that an entry can name: give the table memory a window"
    )]
    TableAddress {
        /// Where the page is.
        phys: PhysAddr,
        /// The bits that a table entry can name.
        bits: u32,
    },
    /// The format has no such input width.
    #[error("{format} has no tables of {bits} input bits: from {min} to {max}")]
    InputBits {
        /// The format.
        format: FormatId,
        /// What was asked for.
        bits: u32,
        /// The least that the format takes.
        min: u32,
        /// The most that the format takes.
        max: u32,
    },
    /// The format has no such output width.
    #[error("{format} has no entries of {bits} output bits: from {min} to {max}")]
    OutputBits {
        /// The format.
        format: FormatId,
        /// What was asked for.
        bits: u32,
        /// The least that makes sense: one granule.
        min: u32,
        /// The most that the format takes.
        max: u32,
    },
    /// The page sizes were limited so far that the granule itself is missing.
    #[error("the page sizes allowed for {format} lack its granule, {granule}")]
    NoGranule {
        /// The format.
        format: FormatId,
        /// The page that every table needs.
        granule: Granule,
    },
    /// A mapping that would allow the device nothing.
    #[error("a mapping must allow reading or writing")]
    NoAccess,
    /// The format cannot fence a device inside a page.
    #[error("{format} cannot fence a device inside a page")]
    Unsupported {
        /// The format.
        format: FormatId,
    },
    /// A fence that the fields cannot express.
    #[error(
        "a fence of {front:#x} and {back:#x} bytes must be in steps of {unit} bytes and leave something of the granule open"
    )]
    BadFence {
        /// Bytes closed at the front.
        front: u64,
        /// Bytes closed at the back.
        back: u64,
        /// The step of both, in bytes.
        unit: u64,
    },
    /// Firmware's live root and ours hold an entry for the same slot.
    #[error(
        "firmware's live root already maps {slot}, which this table uses: reserve it before mapping"
    )]
    FirmwareEntry {
        /// What the slot spans.
        slot: IovaRange,
    },
    /// A live root with another number of tables than this one.
    #[error("the live root has {given} tables, this page table {expected}")]
    LiveRoots {
        /// How many root tables this page table has.
        expected: usize,
        /// How many were given.
        given: usize,
    },
}
