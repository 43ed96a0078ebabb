//! What came of it, and the forms that it is given in: text, JSON, a picture, a page.

mod json;
mod page;
mod picture;
pub(crate) mod text;

use std::fmt::Write as _;

use granule::addr::{DmaAddr, DmaRange, PhysRange};
use granule::share::{Shared, Solved};
use granule_board::Board;
use serde::Serialize;

use super::attach::Party;
use super::explain::Explanation;
use super::machine::{Bench, unique_label};
use super::tables::Tables;
use super::verify::Verified;
use crate::board::{self, stream_id};
use crate::error::{CliError, failed};
use crate::text::{count, short_size, size};

/// More streams of one IOMMU than these are counted, not listed.
const STREAMS_SHOWN: usize = 2;

/// What late DMA came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LateDma {
    /// Every granule faulted.
    Blocked,
    /// Nothing stands between a direct device and memory.
    NotEnforced,
}

/// A device's row.
pub(super) struct Row {
    pub(super) label: String,
    pub(super) path: String,
    /// Its streams, as a person reads them; empty for a direct device.
    pub(super) way: String,
    streams: Vec<(String, u32)>,
    pub(super) address: DmaAddr,
    pub(super) length: u64,
    /// The length with its padding.
    pub(super) mapped_length: u64,
    /// The addresses that it can be given.
    pub(super) space: DmaRange,
    pub(super) late: LateDma,
    /// Absent for a direct device.
    pub(super) tables: Option<Tables>,
    exposed: u64,
}

/// The whole report.
pub(super) struct Report {
    pub(super) board: String,
    cpu_page: u64,
    pub(super) size: u64,
    pub(super) rows: Vec<Row>,
    pub(super) memory: Vec<PhysRange>,
    pub(super) ram: Vec<PhysRange>,
    pub(super) verified: Verified,
    explanation: Explanation,
}

impl Report {
    /// Reads everything while the buffer is mapped. Late DMA is yet to be tried.
    pub(super) fn new(
        board: &Board,
        bench: &Bench,
        parties: &[Party],
        solved: &Solved,
        shared: &Shared,
        explanation: Explanation,
    ) -> Result<Self, CliError> {
        let rows = parties.iter().zip(solved.parties());
        let rows = rows.map(|(party, planned)| {
            let range = shared.range_of(&party.device);
            let range = range.ok_or_else(|| failed("a device has no range of the buffer"))?;
            let tables = Tables::read(bench, party, &range, shared.blocks())?;
            Ok(Row {
                label: party.chosen.label.clone(),
                path: party.chosen.device.path.clone(),
                way: way(board, bench, party),
                streams: streams(board, party),
                address: range.address(),
                length: range.len(),
                mapped_length: range.len().saturating_add(range.padding()),
                space: planned.addresses(),
                late: LateDma::NotEnforced,
                tables,
                exposed: range.exposed(),
            })
        });
        Ok(Self {
            board: board::model(board).into(),
            cpu_page: bench.cpu_page.size(),
            size: shared.len(),
            rows: rows.collect::<Result<_, CliError>>()?,
            memory: shared.blocks().to_vec(),
            ram: bench.ram.clone(),
            verified: Verified::default(),
            explanation,
        })
    }

    /// Board, CPU page and buffer in one line.
    fn title(&self) -> String {
        let devices = count(self.rows.len(), "device");
        let page = size(self.cpu_page);
        format!("{}: {} for {devices}, CPU page {page}", self.board, size(self.size))
    }

    /// How many blocks of memory there are: `one block`, `3 blocks`.
    fn shape(&self) -> String {
        match self.memory.len() {
            1 => "one block".into(),
            count => format!("{count} blocks"),
        }
    }

    /// What was tried and held, a sentence each.
    fn proofs(&self) -> Vec<String> {
        let Verified { written, compared, guards } = self.verified;
        let readers =
            if self.rows.len() > 1 { "every other device and the CPU" } else { "the CPU" };
        let mut proofs = vec![format!(
            "each device filled the buffer by DMA ({}), {readers} read it back: {} compared, all equal",
            size(written),
            size(compared)
        )];
        let mut also = Vec::new();
        if guards > 0 {
            also.push(format!("unmapped granules before and after fault ({guards} probes)"));
        }
        if self.rows.iter().any(|row| row.late == LateDma::Blocked) {
            also.push("after the unmap late DMA faults".into());
        }
        if !also.is_empty() {
            proofs.push(also.join("; "));
        }
        proofs
    }

    /// What no IOMMU enforces, a sentence for each device.
    fn not_enforced(&self) -> impl Iterator<Item = String> {
        let open = self.rows.iter().filter(|row| row.late == LateDma::NotEnforced);
        open.map(|row| {
            format!("nothing stands between {} and memory; it can't be stopped", row.label)
        })
    }
}

fn streams(board: &Board, party: &Party) -> Vec<(String, u32)> {
    let streams = party.chosen.streams().iter();
    let named = streams.filter_map(|stream| Some((board.iommus.get(stream.iommu)?, stream.id)));
    named.map(|(iommu, id)| (iommu.path.clone(), id)).collect()
}

fn way(board: &Board, bench: &Bench, party: &Party) -> String {
    let streams = party.chosen.streams();
    if streams.is_empty() {
        return "direct, on the bus".into();
    }
    let mut units: Vec<(usize, Vec<String>)> = Vec::new();
    for stream in streams {
        let locked = bench.locked_roots(stream.iommu, stream.id).is_some();
        let note = if locked { " (locked)" } else { "" };
        let id = format!("{}{note}", stream_id(stream));
        match units.iter_mut().find(|(unit, _)| *unit == stream.iommu) {
            Some((_, ids)) => ids.push(id),
            None => units.push((stream.iommu, vec![id])),
        }
    }
    let parts = units.iter().filter_map(|(unit, ids)| {
        let label = unique_label(board, board.iommus.get(*unit)?);
        let more = ids.len().saturating_sub(STREAMS_SHOWN);
        let shown = ids.iter().take(STREAMS_SHOWN).cloned().collect::<Vec<_>>().join(",");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!("{label}:{shown}{more}"))
    });
    let mut text = parts.collect::<Vec<_>>().join(" + ");
    if !party.chosen.trusted {
        text.push_str(", untrusted");
    }
    if party.chosen.device.streams.len() > streams.len() {
        let all = party.chosen.device.streams.len();
        let _ = write!(text, " (first of {all} functions)");
    }
    text
}

impl LateDma {
    fn words(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::NotEnforced => "not enforced",
        }
    }
}

impl Row {
    fn padding(&self) -> u64 {
        self.mapped_length - self.length
    }

    /// `512 x 16K`, the largest first.
    fn pages(&self) -> String {
        let Some(tables) = &self.tables else { return "-".into() };
        let pages = tables.pages.iter().rev();
        let pages = pages.map(|(size, count)| format!("{count} x {}", short_size(*size)));
        pages.collect::<Vec<_>>().join(" + ")
    }
}
