//! `granule board`: what a device tree says about DMA.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use granule_board::{Board, BoardDevice, BoardIommu, DEFAULT_BOARD, DmaWindow, MAX_BLOB_BYTES};
use serde::Serialize;

use crate::args::BoardArgs;
use crate::error::CliError;
use crate::output;
use crate::text::{self, serialize_hex};

/// Runs the command; what to print comes back.
pub(crate) fn run(args: &BoardArgs) -> Result<String, CliError> {
    let board = load(args.file.as_deref())?;
    Ok(show(&board, args.json))
}

/// The board as JSON, or as tables.
pub(crate) fn show(board: &Board, as_json: bool) -> String {
    if as_json { json(board) } else { table(board) }
}

/// Reads a board from a blob, or the built-in one.
pub(crate) fn load(file: Option<&Path>) -> Result<Board, CliError> {
    let Some(path) = file else {
        return Board::from_dtb(DEFAULT_BOARD).map_err(CliError::from);
    };
    let wrap = |error| CliError::Read { path: path.into(), error };
    let mut blob = Vec::new();
    // One byte more than is accepted, so that the reader sees that it is too much.
    let limit = MAX_BLOB_BYTES as u64 + 1;
    File::open(path).map_err(wrap)?.take(limit).read_to_end(&mut blob).map_err(wrap)?;
    Board::from_dtb(&blob).map_err(|error| CliError::BoardFile { path: path.into(), error })
}

/// What a person calls an IOMMU: its label if it has one, else its name.
pub(crate) fn iommu_label(iommu: &BoardIommu) -> &str {
    iommu.aliases.first().unwrap_or(&iommu.name)
}

#[derive(Serialize)]
struct BoardJson<'b> {
    model: &'b str,
    memory: Vec<RangeJson>,
    iommus: Vec<IommuJson<'b>>,
    devices: Vec<DeviceJson<'b>>,
    warnings: Vec<String>,
}

/// A range of physical memory.
#[derive(Serialize)]
pub(crate) struct RangeJson {
    #[serde(serialize_with = "serialize_hex")]
    address: u64,
    length: u64,
}

impl From<&granule::addr::PhysRange> for RangeJson {
    fn from(range: &granule::addr::PhysRange) -> Self {
        Self { address: range.start().raw(), length: range.len() }
    }
}

#[derive(Serialize)]
struct IommuJson<'b> {
    path: &'b str,
    compatible: &'b [String],
    page_sizes: Vec<u64>,
    enabled: bool,
}

#[derive(Serialize)]
struct DeviceJson<'b> {
    path: &'b str,
    streams: Vec<StreamJson<'b>>,
    group: usize,
    coherent: bool,
    enabled: bool,
}

#[derive(Serialize)]
struct StreamJson<'b> {
    iommu: &'b str,
    id: u32,
    mask: u32,
}

fn json(board: &Board) -> String {
    let iommus = board.iommus.iter().map(|iommu| IommuJson {
        path: &iommu.path,
        compatible: &iommu.compatible,
        page_sizes: iommu.page_sizes.iter().collect(),
        enabled: iommu.enabled,
    });
    let devices = board.devices.iter().map(|device| DeviceJson {
        path: &device.path,
        streams: streams(board, device)
            .map(|(iommu, stream)| StreamJson {
                iommu: &iommu.path,
                id: stream.id,
                mask: stream.mask,
            })
            .collect(),
        group: device.group,
        coherent: device.coherent,
        enabled: device.enabled,
    });
    output::json(&BoardJson {
        model: &board.model,
        memory: board.memory.iter().map(RangeJson::from).collect(),
        iommus: iommus.collect(),
        devices: devices.collect(),
        warnings: board.warnings.iter().map(ToString::to_string).collect(),
    })
}

fn streams<'b>(
    board: &'b Board,
    device: &'b BoardDevice,
) -> impl Iterator<Item = (&'b BoardIommu, &'b granule_board::Stream)> {
    let all = device.streams.iter();
    all.filter_map(|stream| Some((board.iommus.get(stream.iommu)?, stream)))
}

fn table(board: &Board) -> String {
    let mut out = String::new();
    let model = if board.model.is_empty() { "a board without a model" } else { &board.model };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{model}\n\nmemory: {}", memory(board));
    let kept = board.reserved.iter().flat_map(|region| &region.ranges);
    let kept: u64 = kept.map(|range| range.len()).fold(0, u64::saturating_add);
    if kept != 0 {
        let _ = writeln!(out, "reserved: {} in {}", text::size(kept), regions(board));
    }
    let _ = writeln!(out, "\n{}", text::count(board.iommus.len(), "IOMMU"));
    if !board.iommus.is_empty() {
        out.push_str(&iommus(board));
    }
    let _ = writeln!(out, "\n{}", text::count(board.devices.len(), "device"));
    if !board.devices.is_empty() {
        out.push_str(&devices(board));
    }
    if !board.warnings.is_empty() {
        let _ = writeln!(out, "\n{}", text::count(board.warnings.len(), "warning"));
    }
    for warning in &board.warnings {
        let _ = writeln!(out, "  {warning}");
    }
    out
}

fn regions(board: &Board) -> String {
    let placed = board.reserved.iter().filter(|region| !region.ranges.is_empty());
    text::count(placed.count(), "region")
}

fn memory(board: &Board) -> String {
    if board.memory.is_empty() {
        return "none in the tree (the boot loader fills it in)".into();
    }
    let parts = board.memory.iter();
    let parts: Vec<_> =
        parts.map(|range| format!("{} at {:#x}", text::size(range.len()), range.start())).collect();
    parts.join(", ")
}

fn iommus(board: &Board) -> String {
    let rows = board.iommus.iter().map(|iommu| {
        vec![
            iommu_label(iommu).into(),
            iommu.kind.to_string(),
            page_sizes(iommu),
            formats(iommu),
            iommu.input_bits.map_or("?".into(), |bits| bits.to_string()),
            iommu.window.map_or(String::new(), |window| window.to_string()),
            iommu_notes(iommu),
        ]
    });
    text::table(
        &["IOMMU", "kind", "page sizes", "format", "bits", "addresses", ""],
        &[4],
        rows.collect(),
    )
}

fn page_sizes(iommu: &BoardIommu) -> String {
    let sizes: Vec<_> = iommu.page_sizes.iter().map(text::short_size).collect();
    if sizes.is_empty() { "?".into() } else { sizes.join(" ") }
}

fn formats(iommu: &BoardIommu) -> String {
    let names: Vec<_> = iommu.formats.iter().map(|format| format.name()).collect();
    if names.is_empty() { "-".into() } else { names.join(" ") }
}

fn iommu_notes(iommu: &BoardIommu) -> String {
    let mut notes = Vec::new();
    if !iommu.enabled {
        notes.push("disabled".into());
    }
    if iommu.probed {
        notes.push("registers decide".into());
    }
    if !iommu.locked_streams.is_empty() {
        let ids: Vec<_> = iommu.locked_streams.iter().map(ToString::to_string).collect();
        notes.push(format!("streams {} locked", ids.join(", ")));
    }
    notes.join(", ")
}

fn devices(board: &Board) -> String {
    let rows = board.devices.iter().map(|device| {
        vec![
            name(board, device),
            way(board, device),
            group(board, device),
            if device.coherent { "yes" } else { "no" }.into(),
            device_notes(device),
        ]
    });
    text::table(&["device", "way to memory", "group", "snoops", ""], &[2], rows.collect())
}

/// A window of more bits than these is no limit worth a word.
const WIDE: u32 = 48;
/// The node's name, or its path where another device has the same name.
fn name(board: &Board, device: &BoardDevice) -> String {
    let same = board.devices.iter().filter(|other| other.name == device.name).count();
    if same > 1 { device.path.clone() } else { device.name.clone() }
}

/// More streams than these are counted, not listed.
const STREAMS_SHOWN: usize = 4;

fn way(board: &Board, device: &BoardDevice) -> String {
    if device.unresolved {
        return "unknown".into();
    }
    if device.streams.is_empty() {
        return "direct".into();
    }
    let shown = streams(board, device).take(STREAMS_SHOWN);
    let mut parts: Vec<_> = shown
        .map(|(iommu, stream)| format!("{}:{}", iommu_label(iommu), stream_id(stream)))
        .collect();
    if device.streams.len() > STREAMS_SHOWN {
        parts.push(format!("and {} more", device.streams.len() - STREAMS_SHOWN));
    }
    parts.join(" ")
}

/// `4`, or `0x2100&~0x402` for an id of which the hardware ignores bits.
pub(crate) fn stream_id(stream: &granule_board::Stream) -> String {
    match stream.mask {
        0 if stream.id < 256 => stream.id.to_string(),
        0 => format!("{:#x}", stream.id),
        mask => format!("{:#x}&~{mask:#x}", stream.id),
    }
}

/// A group is only worth a word if it has several members.
fn group(board: &Board, device: &BoardDevice) -> String {
    let members = board.devices.iter().filter(|other| other.group == device.group).count();
    if members > 1 { format!("{} ({members})", device.group) } else { device.group.to_string() }
}

fn device_notes(device: &BoardDevice) -> String {
    let mut notes = Vec::new();
    if !device.enabled {
        notes.push("disabled".into());
    }
    notes.extend(device.windows.first().and_then(window_note));
    if device.windows.len() > 1 {
        notes.push(format!("{} windows in all", device.windows.len()));
    }
    notes.join(", ")
}

/// What is worth saying of a window: nothing if it shows all memory at its own address.
fn window_note(window: &DmaWindow) -> Option<String> {
    match window.offset() {
        0 if window.bus.last().raw() >> WIDE != 0 => None,
        0 => Some(format!("reaches {}", window.bus)),
        _ => Some(format!("bus {} is memory from {:#x}", window.bus, window.phys.start())),
    }
}
