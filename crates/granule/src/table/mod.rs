//! Page tables: one radix engine, many formats.
//!
//! [`PageTable`] is the engine; a [`Format`] is a short file of constants and pure functions, headed
//! by a table from its specification's names to the levels used here. Geometry is known at compile
//! time but for the number of levels, which follows from the input bits.
//!
//! | format | granule | larger pages | output |
//! | --- | --- | --- | --- |
//! | [`Dart1`] `dart1` | 16 KiB | none | 36 bits |
//! | [`Dart2`] `dart2` | 16 KiB | none | 42 bits |
//! | [`Lpae4k`] `lpae4k` | 4 KiB | 64 KiB\*, 2 MiB, 32 MiB\*, 1 GiB, 16 GiB\* | 48 bits |
//! | [`Lpae16k`] `lpae16k` | 16 KiB | 2 MiB\*, 32 MiB, 1 GiB\* | 48 bits |
//! | [`Lpae64k`] `lpae64k` | 64 KiB | 2 MiB\*, 512 MiB, 16 GiB\* | 48 bits |
//! | [`Vtd2`] `vtd2` | 4 KiB | 2 MiB, 1 GiB | 52 bits |
//! | [`Amdv1`] `amdv1` | 4 KiB | every power of two: to 1 MiB\*, 2 MiB, to 512 MiB\*, 1 GiB, to 256 GiB\* | 52 bits |
//! | [`Sv39`], [`Sv48`], [`Sv57`] `sv39` … | 4 KiB | 64 KiB\*, 2 MiB, 1 GiB, 512 GiB, 256 TiB | 56 bits |
//!
//! \* a contiguous group: neighbouring entries that the hardware may cache as one.
//!
//! # The life of an entry
//!
//! An entry goes from invalid to valid (map), and from valid to invalid (unmap), never from one
//! valid form to another: no format here lets hardware see that safely everywhere. So an unmap that
//! cuts a page, or a contiguous group, is refused before anything changes.
//!
//! Where an unmapped range covers all that a table spans, the entry that names the table is made
//! invalid but keeps the address: the table is *detached*. Its pages stay untouched, since walkers
//! and their caches may still use them, until the caller has invalidated the range and calls
//! [`PageTable::reap`]. Nothing is allocated for it, and a map that meets a detached entry is refused.
//!
//! # Concurrency
//!
//! CPUs map and unmap disjoint ranges at the same time. Tables are installed by compare-and-swap;
//! the loser frees its page, which nobody saw. A mapping's leaves pin their tables: a table is
//! detached only by an unmap of all it spans, whose caller owns every leaf in it. That is also why a
//! [`Hint`] may name an entry without walking. Only root entries are written under a lock, so that
//! live roots left by firmware can mirror them ([`PageTable::adopt_root`]).

mod access;
mod adopt;
mod amdv1;
mod cursor;
mod dart;
mod dump;
mod engine;
mod error;
mod format;
mod geometry;
mod hint;
mod lpae;
mod map;
mod memory;
mod platform;
mod resolve;
mod riscv;
mod run;
#[cfg(test)]
mod tests;
mod unmap;
mod vtd;

pub use adopt::Adopted;
pub use amdv1::Amdv1;
pub use dart::{Dart1, Dart2};
pub use dump::{Walk, walk};
pub use engine::PageTable;
pub use error::TableError;
pub use format::{Fence, Format, FormatId, FormatVisitor, Kind, Root, UnknownFormat};
pub use geometry::{TableConfig, TableLayout};
pub use hint::Hint;
pub use lpae::{Lpae4k, Lpae16k, Lpae64k, MAIR};
pub use memory::{Contents, Entry, TableMemory};
pub use platform::PlatformTables;
pub use resolve::{Leaf, Resolved};
pub use riscv::{Sv39, Sv48, Sv57};
pub use unmap::Unmapped;
pub use vtd::Vtd2;

use crate::addr::Attributes;
