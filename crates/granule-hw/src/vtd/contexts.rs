//! The root table, and a context table for each bus that has an attached device.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

use granule::domain::UnitInfo;
use granule::mem::Platform;

use super::spec::{self, ContextEntry};
use crate::HwError;
use crate::block::{Block, BlockRequest};

const ENTRY: usize = 16;

/// The tables; entries are written so that the unit never sees half of one as present.
pub(super) struct Contexts<P: Platform> {
    platform: P,
    unit: String,
    address_bits: u32,
    snooped: bool,
    root: Option<Block<P>>,
    tables: Vec<Option<Block<P>>>,
}

impl<P: Platform> Contexts<P> {
    pub(super) fn new(platform: &P, info: &UnitInfo) -> Result<Self, HwError> {
        let mut contexts = Self {
            platform: platform.clone(),
            unit: info.name.clone(),
            address_bits: info.output_bits,
            snooped: info.coherent_walk,
            root: None,
            tables: (0..256).map(|_| None).collect(),
        };
        contexts.root = Some(contexts.page("the root table")?);
        Ok(contexts)
    }

    fn page(&self, what: &'static str) -> Result<Block<P>, HwError> {
        let request = BlockRequest {
            unit: &self.unit,
            what,
            size: 4096,
            align: 4096,
            address_bits: self.address_bits,
            snooped: self.snooped,
        };
        Block::new(&self.platform, &request)
    }

    /// The physical address of the root table.
    pub(super) fn root(&self) -> u64 {
        self.root.as_ref().map_or(0, Block::phys)
    }

    fn place(&self, source: u16) -> (Option<&Block<P>>, usize) {
        let table = self.tables.get(usize::from(source >> 8)).and_then(Option::as_ref);
        (table, usize::from(source & 0xff) * ENTRY)
    }

    /// The domain id of a present entry.
    pub(super) fn domain(&self, source: u16) -> Option<u16> {
        let (table, at) = self.place(source);
        let table = table?;
        spec::is_present(table.read64(at)).then(|| spec::domain_of(table.read64(at + 8)))
    }

    /// Sees to it that there is a table for the function's bus.
    pub(super) fn make_room(&mut self, source: u16) -> Result<(), HwError> {
        let bus = usize::from(source >> 8);
        let Some(None) = self.tables.get(bus) else { return Ok(()) };
        let table = self.page("a context table")?;
        if let Some(root) = &self.root {
            root.write64(bus * ENTRY, spec::root_entry(table.phys()));
            root.publish(bus * ENTRY, ENTRY);
        }
        self.tables[bus] = Some(table);
        Ok(())
    }

    /// Writes an entry that is not present now, into a table that is there.
    pub(super) fn set(&self, source: u16, entry: &ContextEntry) {
        let (Some(table), at) = self.place(source) else { return };
        table.write64(at + 8, entry.high());
        table.publish(at + 8, 8);
        table.write64(at, entry.low());
        table.publish(at, 8);
    }

    /// Makes an entry absent. Its upper half stays: the unit may hold its domain id.
    pub(super) fn clear(&self, source: u16) {
        let (Some(table), at) = self.place(source) else { return };
        table.write64(at, 0);
        table.publish(at, 8);
    }

    /// Leaves all tables to the unit.
    pub(super) fn abandon(&mut self) {
        self.root.take().into_iter().for_each(Block::leak);
        self.tables.drain(..).flatten().for_each(Block::leak);
    }
}
