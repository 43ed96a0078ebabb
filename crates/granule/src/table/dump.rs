//! Walking tables that are only bytes: a dump, or a simulator's memory. Nothing is trusted.
#![forbid(unsafe_code)]

use super::format::{Format, Kind, decode, shift};
use super::geometry::Geometry;
use super::resolve::{Resolved, resolved};
use super::{TableConfig, TableError};
use crate::addr::{Iova, PhysAddr};

/// How a walk of a dumped table ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// A leaf maps the address.
    Mapped(Resolved),
    /// An entry of this level (0 maps granules) is invalid; the hardware faults.
    Fault {
        /// The level.
        level: u32,
        /// The entry found there.
        entry: u64,
    },
    /// The address has more bits than the table indexes.
    OutsideInput,
    /// An entry that the walk needs cannot be read.
    Unreadable {
        /// Where the entry would be.
        at: PhysAddr,
    },
}

/// Walks a table of format `F` whose root tables are at `roots`, reading entries with `read`
/// (`None` where the dump has no memory). Bounded by the number of levels, whatever the entries say.
///
/// # Errors
/// As [`PageTable::new`](super::PageTable::new) if `config` does not fit the format.
pub fn walk<F: Format>(
    config: &TableConfig,
    roots: &[PhysAddr],
    iova: Iova,
    mut read: impl FnMut(PhysAddr) -> Option<u64>,
) -> Result<Walk, TableError> {
    let geometry = Geometry::new::<F>(config)?;
    let address = iova.raw();
    if address >> geometry.input_bits != 0 {
        return Ok(Walk::OutsideInput);
    }
    let mut level = geometry.levels - 1;
    let index = (address >> shift::<F>(level)) as usize & (geometry.root_entries - 1);
    let share = geometry.root_entries / geometry.roots;
    let Some(root) = roots.get(index / share) else { return Ok(Walk::OutsideInput) };
    let (mut table, mut index) = (root.raw(), (index % share) as u64);
    loop {
        let at = PhysAddr::new(table.wrapping_add(index * 8));
        let Some(entry) = read(at) else { return Ok(Walk::Unreadable { at }) };
        match F::kind(entry, level) {
            Kind::Leaf => return Ok(Walk::Mapped(resolved::<F>(entry, level, address))),
            Kind::Table if level > 0 => {
                level -= 1;
                table = decode::<F>(entry);
                index = (address >> shift::<F>(level)) & ((1 << F::INDEX_BITS) - 1);
            }
            _ => return Ok(Walk::Fault { level, entry }),
        }
    }
}
