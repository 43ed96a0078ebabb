//! The engine against a brute-force model, an independent reader, faults, threads and a scheduler.

mod addresses;
mod adopt;
mod decode;
mod faults;
mod formats;
mod memory;
mod model;
mod platform;
mod properties;
mod reader;
mod runs;
mod short;
mod single;
mod sizes;
mod threads;
mod tiny;
mod unmaps;
mod unsynced;

use std::vec::Vec;

use super::*;
use crate::addr::{Access, Attributes, Iova, IovaRange, PhysAddr, PhysRange};
use memory::TestMemory;

pub(crate) const RW: Attributes = Attributes::memory(Access::READ.union(Access::WRITE));

pub(crate) fn iova(start: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), len).expect("a range")
}

pub(crate) fn phys(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).expect("a range")
}

/// A fresh table with the widest bits that the format has, but for `input` bits.
pub(crate) fn table<F: Format>(memory: &TestMemory, input: u32) -> PageTable<F, TestMemory> {
    let config = TableConfig::new(input, F::MAX_OUTPUT_BITS);
    PageTable::new(memory.clone(), config).expect("a table")
}

/// Maps; the tests own every range.
pub(crate) fn map<F: Format>(
    table: &PageTable<F, TestMemory>,
    at: u64,
    to: u64,
    len: u64,
) -> Result<Hint, TableError> {
    // SAFETY: tests own all ranges, and there is no device.
    unsafe { table.map(Iova::new(at), phys(to, len), RW) }
}

/// Maps pieces one behind the other.
pub(crate) fn map_list<F: Format>(
    table: &PageTable<F, TestMemory>,
    at: u64,
    list: Vec<PhysRange>,
) -> Result<(), TableError> {
    // SAFETY: tests own all ranges, and there is no device.
    unsafe { table.map_list(Iova::new(at), list.into_iter(), RW) }
}

/// The short way alone.
pub(crate) fn try_map<F: Format>(
    table: &PageTable<F, TestMemory>,
    at: u64,
    to: u64,
    len: u64,
) -> Option<Hint> {
    try_map_as(table, at, to, len, RW)
}

pub(crate) fn try_map_as<F: Format>(
    table: &PageTable<F, TestMemory>,
    at: u64,
    to: u64,
    len: u64,
    attributes: Attributes,
) -> Option<Hint> {
    // SAFETY: tests own all ranges, and there is no device.
    unsafe { table.try_map(Iova::new(at), phys(to, len), attributes) }
}

pub(crate) fn unmap<F: Format>(
    table: &PageTable<F, TestMemory>,
    at: u64,
    len: u64,
    hint: Hint,
) -> Result<Unmapped, TableError> {
    // SAFETY: tests own all ranges, and there is no device.
    unsafe { table.unmap(iova(at, len), hint) }
}

pub(crate) fn reap<F: Format>(table: &PageTable<F, TestMemory>, at: u64, len: u64) {
    // SAFETY: there is no hardware that could hold anything.
    unsafe { table.reap(iova(at, len)) };
}

/// All leaves, as (start, size, physical address).
pub(crate) fn leaves<F: Format>(table: &PageTable<F, TestMemory>) -> Vec<(u64, u64, u64)> {
    let mut found = Vec::new();
    let all = iova(0, 1 << table.layout().input_bits);
    table.for_each_leaf(all, |leaf| {
        found.push((leaf.iova.raw(), leaf.to.page_size, leaf.to.phys.raw()));
    });
    found
}

/// Runs `$body` for every format in the crate and the tiny one.
macro_rules! every_format {
    ($name:ident, $function:ident) => {
        #[test]
        fn $name() {
            struct Each;
            impl FormatVisitor for Each {
                type Output = ();
                fn visit<F: Format>(self) {
                    $function::<F>();
                }
            }
            for id in FormatId::ALL {
                id.visit(Each);
            }
            $function::<$crate::table::tests::tiny::Tiny>();
        }
    };
}
pub(crate) use every_format;
