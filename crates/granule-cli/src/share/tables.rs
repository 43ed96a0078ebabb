//! The tables as a second reader finds them: a walker that shares no code with the writer.

use std::collections::BTreeMap;

use granule::addr::{DmaAddr, Iova, PhysAddr, PhysRange};
use granule::dma::RouteReport;
use granule::share::Contiguous;
use granule::table::TableLayout;
use granule_sim::walk;

use super::attach::Party;
use super::machine::{Bench, sim_format};
use crate::error::{CliError, failed, failed_at};

/// A translated device's tables.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) format: &'static str,
    pub(super) granule: u64,
    pub(super) input_bits: u32,
    pub(super) levels: u32,
    /// The roots that the hardware walks.
    pub(super) roots: Vec<PhysAddr>,
    /// How many pages of each size map the range.
    pub(super) pages: BTreeMap<u64, u64>,
    /// In how many pieces the device sees the buffer: always 1, or an error.
    pub(super) ranges: u64,
}

impl Tables {
    /// Walks the range of a translated device in all tables that it goes through, and compares it
    /// with the memory. `None` for a direct device.
    pub(super) fn read(
        bench: &Bench,
        party: &Party,
        range: &Contiguous<'_>,
        blocks: &[PhysRange],
    ) -> Result<Option<Self>, CliError> {
        let mapped = range.mapped();
        let report = party.device.report(mapped);
        let RouteReport::Translated { units, page_sizes, .. } = report else {
            return Ok(None);
        };
        let layout = units.iter().find_map(|unit| unit.layout.clone());
        let layout = layout.ok_or_else(|| failed("a domain does not say where its tables are"))?;
        let length = mapped.map_or(range.len(), |mapped| mapped.len());
        let mut first: Option<Self> = None;
        for stream in party.chosen.streams() {
            let locked = bench.locked_roots(stream.iommu, stream.id);
            let roots = locked.unwrap_or_else(|| layout.roots.clone());
            let place = (range.address(), length);
            let tables = walk_all(bench, party, &layout, roots, place, blocks)?;
            let core: BTreeMap<u64, u64> = page_sizes.iter().copied().collect();
            if tables.pages != core {
                return Err(failed(format!(
                    "{}: the core counts pages {core:?}, the walker {:?}",
                    party.chosen.label, tables.pages
                )));
            }
            first = first.or(Some(tables));
        }
        Ok(first)
    }
}

fn walk_all(
    bench: &Bench,
    party: &Party,
    layout: &TableLayout,
    roots: Vec<PhysAddr>,
    (address, length): (DmaAddr, u64),
    blocks: &[PhysRange],
) -> Result<Tables, CliError> {
    let format = sim_format(layout.format)?;
    let mut pages: BTreeMap<u64, u64> = BTreeMap::new();
    let mut offset = 0;
    while offset < length {
        let place = DmaAddr::new(address.raw().wrapping_add(offset));
        // What the device emits above the indexed bits takes no part in the walk.
        let iova = Iova::new(place.raw() & ((1 << layout.input_bits) - 1));
        let found = walk::translate(bench.machine.ram(), format, &roots, layout.input_bits, iova);
        let found = found.map_err(|fault| {
            failed_at(&party.chosen.label, place, &format!("the tables do not map it: {fault}"))
        })?;
        let inside = found.page_size - (iova.raw() & (found.page_size - 1));
        let (wanted, run) = memory_at(blocks, offset)
            .ok_or_else(|| failed("more is mapped than there is memory"))?;
        if found.phys != wanted {
            let what = format!("the tables lead to {:#x}, not to {wanted:#x}", found.phys);
            return Err(failed_at(&party.chosen.label, place, &what));
        }
        *pages.entry(found.page_size).or_default() += 1;
        offset += inside.min(run.max(layout.granule.size()));
    }
    Ok(Tables {
        format: format.name(),
        granule: layout.granule.size(),
        input_bits: layout.input_bits,
        levels: layout.levels,
        roots,
        pages,
        ranges: 1,
    })
}

/// Where the byte at `offset` of the buffer lies, and how many follow it there.
fn memory_at(blocks: &[PhysRange], offset: u64) -> Option<(PhysAddr, u64)> {
    let mut before = 0;
    for block in blocks {
        let inside = offset - before;
        if inside < block.len() {
            return Some((block.start().checked_add(inside)?, block.len() - inside));
        }
        before += block.len();
    }
    None
}
