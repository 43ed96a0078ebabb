//! What came of it: the table that a person reads, and the object that a program reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use granule::addr::{DmaAddr, DmaRange, PhysRange};
use granule::share::{Shared, Solved};
use granule_board::Board;
use serde::Serialize;

use super::attach::Party;
use super::machine::{Bench, unique_label};
use super::tables::Tables;
use super::verify::Verified;
use crate::args::ShareArgs;
use crate::board::{RangeJson, stream_id};
use crate::error::{CliError, failed};
use crate::output;
use crate::text::{self, serialize_hex};

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
}

impl Report {
    /// Reads everything while the buffer is mapped. Late DMA is yet to be tried.
    pub(super) fn new(
        board: &Board,
        bench: &Bench,
        parties: &[Party],
        solved: &Solved,
        shared: &Shared,
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
        let model = if board.model.is_empty() { "a board without a model" } else { &board.model };
        Ok(Self {
            board: model.into(),
            cpu_page: bench.cpu_page.size(),
            size: shared.len(),
            rows: rows.collect::<Result<_, CliError>>()?,
            memory: shared.blocks().to_vec(),
            ram: bench.ram.clone(),
            verified: Verified::default(),
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

#[derive(Serialize)]
struct ShareJson<'r> {
    board: &'r str,
    cpu_page: u64,
    size: u64,
    devices: Vec<DeviceJson<'r>>,
    memory: Vec<RangeJson>,
    verified_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<&'r str>,
}

#[derive(Serialize)]
struct DeviceJson<'r> {
    name: &'r str,
    path: &'r str,
    route: &'static str,
    iommu: Option<&'r str>,
    stream: Option<u32>,
    /// All of them, where a device has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    streams: Option<Vec<StreamJson<'r>>>,
    granule: Option<u64>,
    #[serde(serialize_with = "serialize_hex")]
    dma_address: u64,
    length: u64,
    ranges: u64,
    page_sizes: BTreeMap<u64, u64>,
    padding_bytes: u64,
    exposed_bytes: Option<u64>,
    late_dma: LateDma,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<TableJson>,
}

#[derive(Serialize)]
struct StreamJson<'r> {
    iommu: &'r str,
    stream: u32,
}

#[derive(Serialize)]
struct TableJson {
    format: &'static str,
    granule: u64,
    input_bits: u32,
    levels: u32,
    roots: Vec<String>,
}

impl Row {
    pub(super) fn padding(&self) -> u64 {
        self.mapped_length - self.length
    }

    fn json(&self) -> DeviceJson<'_> {
        let first = self.streams.first();
        let all = self.streams.iter();
        let all = all.map(|(iommu, stream)| StreamJson { iommu, stream: *stream }).collect();
        DeviceJson {
            name: &self.label,
            path: &self.path,
            route: if self.tables.is_some() { "translated" } else { "direct" },
            iommu: first.map(|(iommu, _)| iommu.as_str()),
            stream: first.map(|(_, stream)| *stream),
            streams: (self.streams.len() > 1).then_some(all),
            granule: self.tables.as_ref().map(|tables| tables.granule),
            dma_address: self.address.raw(),
            length: self.length,
            ranges: self.tables.as_ref().map_or(1, |tables| tables.ranges),
            page_sizes: self.tables.as_ref().map(|tables| tables.pages.clone()).unwrap_or_default(),
            padding_bytes: self.padding(),
            exposed_bytes: self.tables.as_ref().map(|_| self.exposed),
            late_dma: self.late,
            table: self.tables.as_ref().map(|tables| TableJson {
                format: tables.format,
                granule: tables.granule,
                input_bits: tables.input_bits,
                levels: tables.levels,
                roots: tables.roots.iter().map(|root| text::hex(root.raw())).collect(),
            }),
        }
    }

    /// `512 x 16K`, the largest first.
    pub(super) fn pages(&self) -> String {
        let Some(tables) = &self.tables else { return "-".into() };
        let pages = tables.pages.iter().rev();
        let pages = pages.map(|(size, count)| format!("{count} x {}", text::short_size(*size)));
        pages.collect::<Vec<_>>().join(" + ")
    }

    fn cells(&self) -> Vec<String> {
        let tables = self.tables.as_ref();
        vec![
            self.label.clone(),
            self.way.clone(),
            tables.map_or("-".into(), |tables| text::size(tables.granule)),
            text::hex(self.address.raw()),
            text::size(self.length),
            self.pages(),
            text::size(self.padding()),
            tables.map_or("all it reaches".into(), |_| text::size(self.exposed)),
            match self.late {
                LateDma::Blocked => "blocked",
                LateDma::NotEnforced => "not enforced",
            }
            .into(),
        ]
    }
}

const HEAD: [&str; 9] = [
    "device",
    "way to memory",
    "granule",
    "DMA address",
    "length",
    "pages",
    "padding",
    "exposed",
    "late DMA",
];
/// More streams of one IOMMU than these are counted, not listed.
const STREAMS_SHOWN: usize = 2;
/// More blocks of memory than these are counted, not listed.
const BLOCKS_SHOWN: usize = 4;

impl Report {
    pub(super) fn json(&self, explanation: &str) -> String {
        output::json(&ShareJson {
            board: &self.board,
            cpu_page: self.cpu_page,
            size: self.size,
            devices: self.rows.iter().map(Row::json).collect(),
            memory: self.memory.iter().map(RangeJson::from).collect(),
            verified_bytes: self.verified.compared,
            explanation: (!explanation.is_empty()).then_some(explanation),
        })
    }

    pub(super) fn text(&self, args: &ShareArgs, explanation: &str) -> String {
        let mut out = self.title();
        out.push_str("\n\n");
        let cells = self.rows.iter().map(Row::cells).collect();
        out.push_str(&text::table(&HEAD, &[2, 3, 4, 6, 7], cells));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "\nmemory: {}", self.memory_line());
        out.push_str(&self.verified_lines());
        if !explanation.is_empty() {
            let _ = write!(out, "\n{explanation}");
        }
        if let Some(path) = &args.svg {
            let _ = writeln!(out, "picture: {}", path.display());
        }
        if let Some(path) = &args.dump {
            let _ = writeln!(out, "dump: {}{}", path.display(), self.walk_hint(&path.display()));
        }
        out
    }

    /// Board, CPU page and buffer in one line.
    pub(super) fn title(&self) -> String {
        let devices = text::count(self.rows.len(), "device");
        let page = text::size(self.cpu_page);
        format!("{}: {} for {devices}, CPU page {page}", self.board, text::size(self.size))
    }

    fn memory_line(&self) -> String {
        let shown = self.memory.iter().take(BLOCKS_SHOWN);
        let shown =
            shown.map(|block| format!("{} at {:#x}", text::size(block.len()), block.start()));
        let mut line = shown.collect::<Vec<_>>().join(", ");
        match self.memory.len() {
            1 => line.push_str(", one block"),
            count if count > BLOCKS_SHOWN => {
                let _ = write!(line, ", … {count} blocks in all");
            }
            count => {
                let _ = write!(line, ", {count} blocks");
            }
        }
        line
    }

    fn verified_lines(&self) -> String {
        let Verified { written, compared, guards } = self.verified;
        let readers =
            if self.rows.len() > 1 { "every other device and the CPU" } else { "the CPU" };
        let mut out = format!(
            "verified: each device filled the buffer by DMA ({}), {readers} read it back: \
             {} compared, all equal\n",
            text::size(written),
            text::size(compared)
        );
        let mut also = Vec::new();
        if guards > 0 {
            also.push(format!("unmapped granules before and after fault ({guards} probes)"));
        }
        if self.rows.iter().any(|row| row.late == LateDma::Blocked) {
            also.push("after the unmap late DMA faults".into());
        }
        if !also.is_empty() {
            let _ = writeln!(out, "          {}", also.join("; "));
        }
        for row in self.rows.iter().filter(|row| row.late == LateDma::NotEnforced) {
            let _ = writeln!(
                out,
                "not enforced: nothing stands between {} and memory; it can't be stopped",
                row.label
            );
        }
        out
    }

    /// How to read the dump back.
    fn walk_hint(&self, path: &dyn std::fmt::Display) -> String {
        let base = self.ram.first().map_or(0, |range| range.start().raw());
        let tables = self.rows.iter().find_map(|row| row.tables.as_ref());
        let Some(tables) = tables else { return String::new() };
        let roots =
            tables.roots.iter().map(|root| format!(" --root {root:#x}")).collect::<String>();
        let (format, bits) = (tables.format, tables.input_bits);
        format!(
            "\n  granule walk --format {format}{roots} --input-bits {bits} --memory {path}@{base:#x}"
        )
    }
}
