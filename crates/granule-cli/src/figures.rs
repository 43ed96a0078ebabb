//! What a replay measured, as tables for a terminal.

use std::fmt::Write as _;
use std::path::Path;

use granule_replay::results::{Measures, Results, Scope, Stopped};
use granule_replay::{Findings, Histogram, Invalidate};
use granule_report::units::Unit;

use crate::text;

type Figure = fn(&Measures) -> String;

/// What a row shows if there was nothing to measure.
const NONE: &str = "-";

/// The rows of every table.
const FIGURES: &[(&str, Figure)] = &[
    ("operations", |m| count(m.operations)),
    ("refused", |m| count(m.refused)),
    ("bytes mapped", |m| bytes(m.mapped_bytes)),
    ("mapped at once, most", |m| bytes(m.peak.mapped)),
    // That nothing is exposed is worth a row.
    ("exposed at once, most", |m| match m.peak.exposed {
        0 => "0".into(),
        exposed => bytes(exposed),
    }),
    ("exposed over time", |m| byte_seconds(m.integral.exposed)),
    ("bounced", |m| bytes(m.bounced_bytes)),
    ("IOVA space, most", |m| bytes(m.peak.iova)),
    ("IOVA span unused", |m| Unit::Share.format(m.fragmentation())),
    ("table pages, most", |m| count(m.peak.table_pages)),
    ("pages mapped", pages),
    ("list entries given", |m| count(m.entries)),
    ("DMA segments made", |m| count(m.segments)),
    ("invalidations", |m| count(m.invalidations)),
    ("in quarantine, most", |m| bytes(m.peak.quarantined)),
    ("in quarantine over time", |m| byte_seconds(m.integral.quarantined)),
    ("map, median / p99", |m| times(&m.map_time)),
    ("unmap, median / p99", |m| times(&m.unmap_time)),
];

fn count(number: u64) -> String {
    if number == 0 { NONE.into() } else { number.to_string() }
}

fn bytes(number: u64) -> String {
    if number == 0 { NONE.into() } else { Unit::Bytes.format(number as f64) }
}

fn byte_seconds(number: f64) -> String {
    if number <= 0.0 { NONE.into() } else { Unit::ByteSeconds.format(number) }
}

fn pages(measures: &Measures) -> String {
    let sizes = measures.page_sizes.iter();
    let list: Vec<_> =
        sizes.map(|(size, number)| format!("{number} x {}", text::short_size(*size))).collect();
    if list.is_empty() { NONE.into() } else { list.join(", ") }
}

fn times(times: &Histogram) -> String {
    if times.count() == 0 {
        return NONE.into();
    }
    let at = |percent| Unit::Nanos.format(times.percentile(percent) as f64);
    format!("{} / {}", at(50.0), at(99.0))
}

/// All of it. `report` is the file that was written.
pub(crate) fn text(results: &Results, source: &str, report: Option<&Path>) -> String {
    let mut out = String::new();
    head(&mut out, results, source);
    let all: Vec<&Scope> = results.runs.iter().map(|run| &run.all).collect();
    section(&mut out, "all devices", results, &all);
    for device in &results.trace.devices {
        let scopes: Vec<&Scope> = results
            .runs
            .iter()
            .filter_map(|run| run.devices.iter().find(|scope| scope.name == device.name))
            .collect();
        let trusted = scopes.iter().all(|scope| scope.trusted);
        let title = if trusted { "" } else { ", not trusted" };
        section(&mut out, &format!("{}{title}", device.name), results, &scopes);
    }
    findings(&mut out, results);
    if let Some(path) = report {
        let _ = writeln!(out, "report: {}", path.display());
    }
    out
}

fn head(out: &mut String, results: &Results, source: &str) {
    let trace = &results.trace;
    let policy = match results.invalidate {
        Invalidate::Strict => "strict",
        Invalidate::Deferred => "deferred",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{source}: {} of {} in {} of trace",
        text::count(usize::try_from(trace.dma_events).unwrap_or(usize::MAX), "DMA event"),
        text::count(trace.devices.len(), "device"),
        Unit::Nanos.format(trace.ends.saturating_sub(trace.begins) as f64),
    );
    let _ = writeln!(
        out,
        "{policy} invalidation, CPU page {}, replayed in {:.2} s",
        text::size(results.cpu_page),
        results.seconds
    );
    match results.stopped {
        Stopped::Complete => {}
        Stopped::Limit => {
            out.push_str("ended at the limit: the rest of the trace is not in this\n")
        }
        Stopped::Cancelled => {
            out.push_str(
                "interrupted: this is what was measured until then, not the whole trace\n",
            );
        }
        _ => out.push_str("ended early: this is not the whole trace\n"),
    }
}

/// One table: a figure a row, a granule a column. Rows that say nothing are left out.
fn section(out: &mut String, title: &str, results: &Results, scopes: &[&Scope]) {
    let names: Vec<String> = results
        .runs
        .iter()
        .map(|run| format!("{} ({})", text::size(run.granule), run.format))
        .collect();
    let head: Vec<&str> = [title].into_iter().chain(names.iter().map(String::as_str)).collect();
    let rows = FIGURES.iter().filter_map(|(name, figure)| {
        let cells: Vec<String> = scopes.iter().map(|scope| figure(&scope.total)).collect();
        let says = cells.iter().any(|cell| cell != NONE);
        says.then(|| [(*name).to_owned()].into_iter().chain(cells).collect())
    });
    let right: Vec<usize> = (1..=names.len()).collect();
    let _ = writeln!(out, "\n{}", text::table(&head, &right, rows.collect()).trim_end());
}

fn findings(out: &mut String, results: &Results) {
    out.push('\n');
    let of_runs = results.runs.iter().any(|run| !run.findings.counts().is_empty());
    if results.findings.counts().is_empty() && !of_runs {
        out.push_str("findings: none\n");
        return;
    }
    out.push_str("findings\n");
    kinds(out, &results.findings, "");
    for run in &results.runs {
        kinds(out, &run.findings, &format!(" at {}", text::size(run.granule)));
    }
}

/// How many of each kind, and the first as an example.
fn kinds(out: &mut String, findings: &Findings, place: &str) {
    for (kind, count) in findings.counts() {
        let _ = writeln!(out, "  {count} {}{place}", kind.title());
        if let Some(first) = findings.list().iter().find(|found| found.kind == *kind) {
            let device = first.device.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
            let _ = writeln!(out, "    first at line {}: {device}{}", first.line, first.detail);
        }
    }
}
