//! The tables of the report.

use granule_report::table::{Column, Table};
use granule_report::units::Unit;

use super::{granule_name, run_names};
use crate::findings::Finding;
use crate::results::{Counts, DeviceCounts, Measures, Results};

type Figure = fn(&Measures) -> String;
/// A column's name and its number.
type Counted<'t> = (&'t str, fn(&Counts) -> u64);

fn bytes(value: u64) -> String {
    Unit::Bytes.format(value as f64)
}

fn count(value: u64) -> String {
    Unit::Count.format(value as f64)
}

fn nanos(value: u64) -> String {
    Unit::Nanos.format(value as f64)
}

/// What the summary shows, row by row.
const FIGURES: &[(&str, Figure)] = &[
    ("Operations", |m| count(m.operations)),
    ("Refused", |m| count(m.refused)),
    ("Bytes mapped", |m| bytes(m.mapped_bytes)),
    ("Mapped at once, most", |m| bytes(m.peak.mapped)),
    ("Exposed at once, most", |m| bytes(m.peak.exposed)),
    ("Exposed over time", |m| Unit::ByteSeconds.format(m.integral.exposed)),
    ("Exposed per mapped byte", |m| share(m.integral.exposed, m.integral.mapped)),
    ("Padding, most", |m| bytes(m.peak.padding)),
    ("Bounced", |m| bytes(m.bounced_bytes)),
    ("IOVA space, most", |m| bytes(m.peak.iova)),
    ("IOVA span unused", |m| Unit::Share.format(m.fragmentation())),
    ("Table pages, most", |m| count(m.peak.table_pages)),
    ("Pages mapped", |m| pages(m)),
    ("List entries given", |m| count(m.entries)),
    ("DMA segments made", |m| count(m.segments)),
    ("Invalidations", |m| count(m.invalidations)),
    ("In quarantine, most", |m| bytes(m.peak.quarantined)),
    ("In quarantine over time", |m| Unit::ByteSeconds.format(m.integral.quarantined)),
    ("Map, median", |m| time(&m.map_time, 50.0)),
    ("Map, p99", |m| time(&m.map_time, 99.0)),
    ("Unmap, median", |m| time(&m.unmap_time, 50.0)),
    ("Unmap, p99", |m| time(&m.unmap_time, 99.0)),
];

fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.2}", part / whole) } else { "–".into() }
}

fn time(times: &crate::Histogram, percent: f64) -> String {
    if times.count() == 0 { "–".into() } else { nanos(times.percentile(percent)) }
}

fn pages(measures: &Measures) -> String {
    let each = |(size, number): (&u64, &u64)| format!("{} × {}", count(*number), bytes(*size));
    let list: Vec<String> = measures.page_sizes.iter().map(each).collect();
    if list.is_empty() { "–".into() } else { list.join("\n") }
}

/// A first column of names, the rest numbers.
fn numbers<'n>(first: &'n str, rest: impl IntoIterator<Item = &'n str>) -> Table {
    Table::new([Column::text(first)].into_iter().chain(rest.into_iter().map(Column::number)))
}

/// A name, then numbers.
fn row(table: &mut Table, name: &str, cells: impl Iterator<Item = String>) {
    table.row([name.to_owned()].into_iter().chain(cells));
}

/// Figures as rows, granules as columns.
fn figures(names: &[String], columns: &[&Measures]) -> Table {
    let mut table = numbers("Granule", names.iter().map(String::as_str));
    for (name, figure) in FIGURES {
        row(&mut table, name, columns.iter().map(|measures| figure(measures)));
    }
    table
}

/// All devices.
pub(super) fn comparison(results: &Results) -> Table {
    let columns: Vec<&Measures> = results.runs.iter().map(|run| &run.all.total).collect();
    figures(&run_names(results), &columns)
}

/// One device.
pub(super) fn device(results: &Results, name: &str) -> Table {
    let found = results.runs.iter().filter_map(|run| {
        let device = run.devices.iter().find(|device| device.name == name)?;
        Some((granule_name(run), &device.total))
    });
    let (names, columns): (Vec<String>, Vec<&Measures>) = found.unzip();
    figures(&names, &columns)
}

/// Phases as groups of rows, one row a granule.
pub(super) fn phases(results: &Results) -> Table {
    let columns: &[(&str, Figure)] = &[
        ("Operations", |m| count(m.operations)),
        ("Bytes mapped", |m| bytes(m.mapped_bytes)),
        ("Mapped, most", |m| bytes(m.peak.mapped)),
        ("Exposed, most", |m| bytes(m.peak.exposed)),
        ("Exposed over time", |m| Unit::ByteSeconds.format(m.integral.exposed)),
        ("Bounced", |m| bytes(m.bounced_bytes)),
        ("IOVA, most", |m| bytes(m.peak.iova)),
        ("Entries", |m| count(m.entries)),
        ("Segments", |m| count(m.segments)),
        ("Invalidations", |m| count(m.invalidations)),
        ("Quarantine, most", |m| bytes(m.peak.quarantined)),
    ];
    // A column that is nothing everywhere only takes room.
    let all = || results.runs.iter().flat_map(|run| &run.all.phases);
    let columns: Vec<&(&str, Figure)> = columns
        .iter()
        .filter(|(_, figure)| {
            all().any(|measures| !matches!(&*figure(measures), "0" | "0 B" | "0 B·s"))
        })
        .collect();
    let mut table = numbers("Phase", columns.iter().map(|(name, _)| *name));
    for (index, phase) in results.trace.phases.iter().enumerate() {
        let name = if phase.name.is_empty() { "before the first mark" } else { &phase.name };
        table.group(&format!("{}. {name}", index + 1));
        for run in &results.runs {
            let Some(measures) = run.all.phases.get(index) else { continue };
            let cells = columns.iter().map(|(_, figure)| figure(measures));
            row(&mut table, &granule_name(run), cells);
        }
    }
    table
}

/// What the trace says of a device, by phase.
pub(super) fn counts(results: &Results, device: &DeviceCounts) -> Table {
    let columns: &[Counted<'_>] = &[
        ("map", |c| c.map),
        ("unmap", |c| c.unmap),
        ("map_sg", |c| c.map_sg),
        ("unmap_sg", |c| c.unmap_sg),
        ("alloc", |c| c.alloc),
        ("free", |c| c.free),
        ("sync", |c| c.sync),
        ("bytes mapped", |c| c.mapped_bytes),
        ("bytes unmapped", |c| c.unmapped_bytes),
        ("bytes allocated", |c| c.allocated_bytes),
        ("list entries", |c| c.sg_entries),
        ("its segments", |c| c.sg_segments),
    ];
    let mut table = numbers("Phase", columns.iter().map(|(name, _)| *name));
    let named = results.trace.phases.iter().map(|phase| phase.name.as_str()).zip(&device.phases);
    for (name, counts) in named.chain([("in all", &device.total)]) {
        row(&mut table, name, columns.iter().map(|(_, figure)| figure(counts).to_string()));
    }
    table
}

/// Findings, line by line.
pub(super) fn findings(list: &[&Finding]) -> Table {
    let mut table = Table::new([
        Column::number("Line"),
        Column::number("Earlier"),
        Column::text("Device"),
        Column::sentence("What"),
    ]);
    for found in list {
        let earlier = found.earlier.map_or("–".to_owned(), |line| line.to_string());
        let device = found.device.as_deref().unwrap_or("–");
        table.row([&found.line.to_string(), &earlier, device, &found.detail]);
    }
    table
}
