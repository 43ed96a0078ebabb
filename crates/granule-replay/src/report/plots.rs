//! The plots of the report.

use std::collections::BTreeMap;

use granule_report::chart::{Band, BarChart, Cell, Group, HeatMap, Line, LineChart, Panel, Panels};
use granule_report::page::Page;
use granule_report::units::Unit;

use super::run_names;
use crate::hist::Histogram;
use crate::results::{Live, Results, Scope};

/// A picture and what stands above it.
pub(super) struct Plot {
    caption: &'static str,
    note: &'static str,
    svg: String,
}

impl Plot {
    /// Puts it on the page.
    pub(super) fn show(&self, page: &mut Page) {
        page.figure(self.caption, self.note, &self.svg);
    }
}

/// A title, a unit, and how the figure is read.
type Compared<'t> = (&'t str, Unit, fn(&Scope) -> f64);
/// A name, a note, and how the figure is read.
type OverTime = (&'static str, &'static str, fn(&Live) -> u64);
/// A name, and where the times are.
type Times = (&'static str, fn(&Scope) -> &Histogram);

/// The figures that tell granules apart, side by side.
pub(super) fn comparison(results: &Results) -> String {
    let figures: &[Compared<'_>] = &[
        ("Bytes of others exposed at once, most", Unit::Bytes, |s| s.total.peak.exposed as f64),
        ("Bytes of others exposed, over time", Unit::ByteSeconds, |s| s.total.integral.exposed),
        ("Bytes copied through bounce buffers", Unit::Bytes, |s| s.total.bounced_bytes as f64),
        ("DMA segments for scatter lists", Unit::Count, |s| s.total.segments as f64),
        ("Pages mapped", Unit::Count, |s| s.total.page_sizes.values().sum::<u64>() as f64),
        ("IOVA space taken at once, most", Unit::Bytes, |s| s.total.peak.iova as f64),
        ("Waiting for invalidation at once, most", Unit::Bytes, |s| {
            s.total.peak.quarantined as f64
        }),
    ];
    let panels = figures.iter().map(|(title, unit, figure)| Panel {
        title: (*title).to_owned(),
        unit: *unit,
        values: results.runs.iter().map(|run| figure(&run.all)).collect(),
    });
    // A figure that is nothing everywhere tells nothing.
    let panels = panels.filter(|panel| panel.values.iter().any(|value| *value > 0.0)).collect();
    let label = "The granules compared by what they expose, copy, map and take".into();
    Panels { label, names: run_names(results), panels }.svg()
}

/// Live bytes of all devices, and mapped bytes of each.
pub(super) fn over_time(results: &Results) -> Vec<Plot> {
    let mut plots = Vec::new();
    if let Some(run) = results.runs.first() {
        let lines = run.devices.iter().map(|device| line(&device.name, device, |live| live.mapped));
        let svg = time_chart(results, "Mapped bytes over time", lines.collect());
        plots.push(Plot { caption: "Mapped", note: "streaming bytes live, by device", svg });
    }
    let figures: &[OverTime] = &[
        ("Exposed", "bytes of others that devices could reach", |live| live.exposed),
        ("Quarantined", "unmapped, waiting for the invalidation", |live| live.quarantined),
        ("Bounced", "live bytes in bounce buffers", |live| live.bounced),
        ("IOVA space", "taken, quarantine included", |live| live.iova),
    ];
    for (name, note, figure) in figures {
        let named = run_names(results).into_iter().zip(&results.runs);
        let lines: Vec<Line> = named.map(|(name, run)| line(&name, &run.all, figure)).collect();
        if lines.iter().flat_map(|line| &line.points).any(|(_, value)| *value > 0.0) {
            let svg = time_chart(results, &format!("{name} bytes over time"), lines);
            plots.push(Plot { caption: name, note, svg });
        }
    }
    plots
}

fn line(name: &str, scope: &Scope, figure: impl Fn(&Live) -> u64) -> Line {
    let width = scope.series.events_per_column as f64;
    let points = scope.series.columns.iter().enumerate();
    let points = points.map(|(index, column)| (index as f64 * width, figure(&column.most) as f64));
    Line { name: name.to_owned(), points: points.collect() }
}

fn time_chart(results: &Results, label: &str, lines: Vec<Line>) -> String {
    let trace = &results.trace;
    let end = trace.dma_events as f64;
    let ends = trace.phases.iter().skip(1).map(|phase| phase.first_event as f64).chain([end]);
    let bands = trace.phases.iter().zip(ends).enumerate().map(|(index, (phase, to))| Band {
        from: phase.first_event as f64,
        to,
        name: (index + 1).to_string(),
    });
    LineChart {
        label: label.to_owned(),
        unit: Unit::Bytes,
        end,
        marks: marks(results),
        axis: "event by event, at seconds since the trace began".into(),
        bands: bands.collect(),
        lines,
    }
    .svg()
}

/// The clock at even distances of events.
fn marks(results: &Results) -> Vec<(f64, String)> {
    let Some(run) = results.runs.first() else { return Vec::new() };
    let series = &run.all.series;
    let step = (series.columns.len() / 6).max(1);
    let columns = series.columns.iter().enumerate().step_by(step);
    let seconds = |time: u64| time.saturating_sub(results.trace.begins) as f64 / 1e9;
    columns
        .map(|(index, column)| {
            let at = index as f64 * series.events_per_column as f64;
            (at, format!("{:.2}", seconds(column.time)))
        })
        .collect()
}

/// A device's IOVA space over time.
pub(super) fn space(results: &Results, device: &Scope) -> String {
    let map = &device.iova_map;
    let full = 2f64.powi(map.row_shift as i32);
    let cells = map.columns.iter().enumerate().flat_map(|(column, rows)| {
        rows.iter().map(move |(row, bytes)| Cell { column, row: *row, share: *bytes as f64 / full })
    });
    let width = map.events_per_column.max(1);
    let marks = results.trace.phases.iter().enumerate();
    let marks = marks
        .map(|(index, phase)| (phase.first_event as f64 / width as f64, (index + 1).to_string()));
    HeatMap {
        label: format!("The IOVA space of {} over time", device.name),
        columns: map.columns.len(),
        cells: cells.collect(),
        row_name: |row, shift| format!("{:#x}", row << shift),
        row_shift: map.row_shift,
        marks: marks.collect(),
        axis: "event by event".into(),
    }
    .svg()
}

/// Sizes by device, latencies by granule.
pub(super) fn histograms(results: &Results) -> Vec<Plot> {
    let mut plots = Vec::new();
    if let Some(run) = results.runs.first() {
        let series = run.devices.iter().map(|device| (device.name.clone(), &device.total.sizes));
        let svg = powers("Sizes of mappings", Unit::Bytes, "bytes, from", series.collect());
        plots.push(Plot { caption: "Sizes", note: "of mappings and allocations, by device", svg });
    }
    let figures: &[Times] = &[
        ("Time to map", |scope| &scope.total.map_time),
        ("Time to unmap", |scope| &scope.total.unmap_time),
    ];
    for (name, figure) in figures {
        let named = run_names(results).into_iter().zip(&results.runs);
        let series: Vec<_> = named.map(|(name, run)| (name, figure(&run.all))).collect();
        if series.iter().all(|(_, times)| times.count() == 0) {
            continue;
        }
        let svg = powers(name, Unit::Nanos, "time of the software alone, from", series);
        plots.push(Plot { caption: name, note: "calls of the layer on this machine", svg });
    }
    plots
}

/// Histograms side by side, a bar for each power of two.
fn powers(label: &str, unit: Unit, axis: &str, series: Vec<(String, &Histogram)>) -> String {
    let mut groups: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (index, (_, histogram)) in series.iter().enumerate() {
        for (from, _, count) in histogram.powers() {
            let values = groups.entry(from).or_insert_with(|| vec![0.0; series.len()]);
            if let Some(value) = values.get_mut(index) {
                *value = count as f64;
            }
        }
    }
    let groups =
        groups.into_iter().map(|(from, values)| Group { name: unit.format(from as f64), values });
    BarChart {
        label: label.to_owned(),
        unit: Unit::Count,
        series: series.iter().map(|(name, _)| name.clone()).collect(),
        groups: groups.collect(),
        axis: axis.to_owned(),
    }
    .svg()
}
