//! A board as tables: for a terminal, and for the report's page.

use std::fmt::Write as _;

use granule_board::{Board, BoardDevice, BoardIommu, DmaWindow};

use super::{iommu_label, model, stream_id, streams};
use crate::text;

/// All of it, for a terminal.
pub(super) fn text(board: &Board) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{}\n\nmemory: {}", model(board), memory(board));
    if let Some(reserved) = reserved(board) {
        let _ = writeln!(out, "reserved: {reserved}");
    }
    let _ = writeln!(out, "\n{}", text::count(board.iommus.len(), "IOMMU"));
    if !board.iommus.is_empty() {
        out.push_str(&text::table(&IOMMU_HEAD, &[4], iommus(board)));
    }
    let _ = writeln!(out, "\n{}", text::count(board.devices.len(), "device"));
    if !board.devices.is_empty() {
        out.push_str(&text::table(&DEVICE_HEAD, &[2], devices(board)));
    }
    if !board.warnings.is_empty() {
        let _ = writeln!(out, "\n{}", text::count(board.warnings.len(), "warning"));
    }
    for warning in &board.warnings {
        let _ = writeln!(out, "  {warning}");
    }
    out
}

/// What is kept of memory, if anything is.
pub(super) fn reserved(board: &Board) -> Option<String> {
    let placed = board.reserved.iter().filter(|region| !region.ranges.is_empty());
    let kept = placed.clone().flat_map(|region| &region.ranges);
    let kept = kept.map(|range| range.len()).fold(0, u64::saturating_add);
    (kept != 0)
        .then(|| format!("{} in {}", text::size(kept), text::count(placed.count(), "region")))
}

/// Where memory is.
pub(super) fn memory(board: &Board) -> String {
    memory_ranges(board).join(", ")
}

/// Where memory is, range by range.
pub(super) fn memory_ranges(board: &Board) -> Vec<String> {
    if board.memory.is_empty() {
        return vec!["none in the tree (the boot loader fills it in)".into()];
    }
    let ranges = board.memory.iter();
    ranges.map(|range| format!("{} at {:#x}", text::size(range.len()), range.start())).collect()
}

/// The columns of [`iommus`].
pub(super) const IOMMU_HEAD: [&str; 7] =
    ["IOMMU", "kind", "page sizes", "format", "bits", "addresses", ""];

/// A row for each IOMMU.
pub(super) fn iommus(board: &Board) -> Vec<Vec<String>> {
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
    rows.collect()
}

/// The page sizes of an IOMMU.
pub(super) fn page_sizes(iommu: &BoardIommu) -> String {
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

/// The columns of [`devices`].
pub(super) const DEVICE_HEAD: [&str; 5] = ["device", "way to memory", "group", "snoops", ""];

/// A row for each device.
pub(super) fn devices(board: &Board) -> Vec<Vec<String>> {
    let rows = board.devices.iter().map(|device| {
        vec![
            name(board, device),
            way(board, device),
            group(board, device),
            if device.coherent { "yes" } else { "no" }.into(),
            device_notes(device),
        ]
    });
    rows.collect()
}

/// The node's name, or its path where another device has the same name.
pub(super) fn name(board: &Board, device: &BoardDevice) -> String {
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

/// A window of more bits than these is no limit worth a word.
const WIDE: u32 = 48;

/// What is worth saying of a window: nothing if it shows all memory at its own address.
fn window_note(window: &DmaWindow) -> Option<String> {
    match window.offset() {
        0 if window.bus.last().raw() >> WIDE != 0 => None,
        0 => Some(format!("reaches {}", window.bus)),
        _ => Some(format!("bus {} is memory from {:#x}", window.bus, window.phys.start())),
    }
}
