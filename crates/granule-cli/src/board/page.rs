//! A board as a page: its topology drawn, and its tables.

use granule_board::{Board, BoardDevice};
use granule_report::page::Page;
use granule_report::scheme::{Link, Node, Shape, Topology, Way};
use granule_report::table::Table;

use super::text::{self, DEVICE_HEAD, IOMMU_HEAD};
use super::{iommu_label, model, stream_id};
use crate::text::count;

/// The page.
pub(super) fn html(board: &Board) -> String {
    let mut page = Page::new("Board", model(board));
    page.note(&format!(
        "{} and {}, memory {}.",
        count(board.devices.len(), "device"),
        count(board.iommus.len(), "IOMMU"),
        text::memory(board)
    ));
    if board.devices.is_empty() && board.iommus.is_empty() {
        page.warning("The tree names no device that makes DMA, and no IOMMU.");
    } else {
        let topology = topology(board);
        page.shaped_figure(
            "The ways to memory",
            "a line is a device's stream; its number stands where it enters the IOMMU; dashed: \
             disabled, or directly on the bus",
            &topology.svg(Shape::Wide),
            &topology.svg(Shape::Narrow),
        );
    }
    page.heading("IOMMUs");
    page.table(&Table::of(&IOMMU_HEAD, &[4], text::iommus(board)));
    page.heading("Devices");
    page.table(&Table::of(&DEVICE_HEAD, &[2], text::devices(board)));
    reserved(&mut page, board);
    if !board.warnings.is_empty() {
        page.heading("Warnings");
        let warnings = board.warnings.iter().map(|warning| (warning.to_string(), String::new()));
        page.list(false, warnings);
    }
    page.foot(&[
        "Devices of one group are isolated together or not at all. Snoops: the device sees what \
         the CPU's caches hold. A question mark stands for what only the IOMMU's registers say.",
    ]);
    page.finish()
}

fn reserved(page: &mut Page, board: &Board) {
    let Some(summary) = text::reserved(board) else { return };
    page.heading("Reserved memory");
    page.note(&summary);
    let rows = board.reserved.iter().filter(|region| !region.ranges.is_empty()).map(|region| {
        let ranges: Vec<_> = region.ranges.iter().map(ToString::to_string).collect();
        [region.path.clone(), ranges.join("\n")]
    });
    page.table(&Table::of(&["region", "where"], &[], rows));
}

fn topology(board: &Board) -> Topology {
    let iommus = board.iommus.iter().map(|iommu| Node {
        name: iommu_label(iommu).into(),
        note: format!("{}, {}", iommu.kind, text::page_sizes(iommu)),
        enabled: iommu.enabled,
    });
    let devices = board.devices.iter().map(|device| {
        let note = if device.coherent { "snoops" } else { "does not snoop" };
        let (name, enabled) = (text::name(board, device), device.enabled);
        (Node { name, note: note.into(), enabled }, way(device))
    });
    Topology {
        label: format!("The devices of {}, their IOMMUs and memory", model(board)),
        devices: devices.collect(),
        iommus: iommus.collect(),
        memory: if board.memory.is_empty() {
            vec!["none in the tree".into()]
        } else {
            text::memory_ranges(board)
        },
    }
}

fn way(device: &BoardDevice) -> Way {
    if device.unresolved {
        return Way::Unknown;
    }
    if device.streams.is_empty() {
        return Way::Direct;
    }
    let mut links: Vec<Link> = Vec::new();
    for stream in &device.streams {
        match links.iter_mut().find(|link| link.iommu == stream.iommu) {
            Some(link) => link.streams.push(stream_id(stream)),
            None => links.push(Link { iommu: stream.iommu, streams: vec![stream_id(stream)] }),
        }
    }
    Way::Translated(links)
}
