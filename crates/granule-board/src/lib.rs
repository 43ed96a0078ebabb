//! A device tree becomes a DMA topology: devices, streams, IOMMUs, windows, reserved regions.
//!
//! ```
//! use granule_board::{Board, DEFAULT_BOARD};
//!
//! let board = Board::from_dtb(DEFAULT_BOARD)?;
//! let dcp = board.device("dcp").expect("the built-in board has one");
//! let iommu = &board.iommus[dcp.streams[0].iommu];
//! assert_eq!(iommu.page_sizes.granule().map(|granule| granule.size()), Some(16384));
//! # Ok::<(), granule_board::BoardError>(())
//! ```
//!
//! # What it promises
//! * No input makes it panic, loop, recurse or use unbounded memory: a blob is refused by
//!   [`BoardError`], or read, with a [`Warning`] for every part that makes no sense.
//! * No guess: an IOMMU that is not in the table has no page sizes, a board without memory nodes has
//!   no memory, and a device whose streams can't be read is [`unresolved`](BoardDevice::unresolved)
//!   and never passes for a direct one.
//! * What is disabled is kept and marked, since a person who brings up a board asks about just that.
//!
//! # What it does not do
//! It follows no power, clock or interrupt wiring, applies no overlays, and reads no registers:
//! where those decide (see [`BoardIommu::probed`]), it says what the hardware may have.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bus;
mod cells;
mod devices;
mod error;
mod group;
mod iommus;
mod kind;
mod limits;
mod load;
mod model;
mod names;
mod reserved;
mod streams;
mod tree;
mod warning;

pub use error::{BoardError, LookupError};
pub use kind::{IommuFacts, IommuKind, TableFormat};
pub use limits::{MAX_BLOB_BYTES, MAX_DEPTH, MAX_NODES, MAX_PATH_BYTES, MAX_STREAMS, MAX_WARNINGS};
pub use model::{
    Board, BoardDevice, BoardIommu, DmaWindow, IovaRegion, IovaRegionKind, Master, MsiController,
    PciMap, PciMapEntry, ReservedRegion, Stream,
};
pub use warning::Warning;
pub(crate) use warning::Warnings;

/// The built-in board: the display corner of Apple's t8103 (M1), written for this project. Its
/// source, `boards/t8103-display.dts`, says what is real and what is not.
pub const DEFAULT_BOARD: &[u8] = include_bytes!("../boards/t8103-display.dtb");

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
