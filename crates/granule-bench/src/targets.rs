//! What the rows are to reach, checked against what they reached in this run.

use crate::report::Report;

/// A limit.
enum Limit {
    /// Nanoseconds, or an amount.
    Plain(f64),
    /// So many times another row of ours.
    Times(f64, &'static str),
    /// So many times a row of Linux.
    Linux(f64, &'static str),
}

use Limit::{Linux, Plain, Times};

const FORMATS: [&str; 9] =
    ["dart1", "dart2", "lpae4k", "lpae16k", "lpae64k", "vtd2", "amdv1", "sv39", "sv48"];

/// Row names with `*` for the format, and their limits.
const TARGETS: &[(&str, Limit)] = &[
    ("iova/pair/4K", Linux(0.8, "iova/pair/4K")),
    ("iova/pair/64K", Linux(0.8, "iova/pair/4K")),
    ("iova/pair/256K/live=0", Linux(0.8, "iova/pair/4K")),
    ("iova/pair/256K/live=100k", Linux(0.8, "iova/pair/4K")),
    ("iova/pair/1M/live=0", Linux(0.8, "iova/pair/4K")),
    ("iova/pair/1M/live=100k", Linux(0.8, "iova/pair/4K")),
    ("iova/mixed", Plain(20.0)),
    ("iova/mixed/threads=2", Plain(25.0)),
    ("iova/replace/256K/live=100k", Plain(12.0)),
    ("iova/ramp/fill", Plain(15.0)),
    ("iova/ramp/drain", Plain(30.0)),
    ("iova/cross-cpu", Plain(35.0)),
    ("iova/pair/4M", Plain(25.0)),
    ("iova/replace/4M/live=1k", Plain(60.0)),
    ("iova/replace/4M/live=100k", Plain(60.0)),
    ("iova/pair/4K/threads=2", Times(1.15, "iova/pair/4K/threads=2/own")),
    ("iova/mixed/threads=2", Times(1.15, "iova/mixed/threads=2/own")),
    ("table/*/map/512", Times(2.2, "floor/store")),
    ("table/*/map/1G", Times(2.2, "floor/store/1G")),
    ("table/*/map/1G-whole", Times(1.2, "floor/store/1G")),
    ("table/*/unmap/512", Times(2.0, "floor/store")),
    ("table/*/unmap/1G", Times(2.0, "floor/store/1G")),
    ("table/*/unmap/1G-whole", Times(0.2, "floor/store/1G")),
    ("table/*/map/1", Plain(5.0)),
    ("table/*/unmap/1", Plain(4.0)),
    ("table/*/unmap/1/hint", Plain(2.0)),
    ("sg/*/map/isolated/64", Plain(4.0)),
    ("sg/*/unmap/isolated/64", Plain(0.6)),
    ("dma/single/map+unmap", Plain(20.0)),
    ("dma/single/map+unmap/deferred", Plain(20.0)),
    ("memory/iova/range/4K/live=1M", Plain(16.0)),
    ("memory/iova/range/4M/live=100k", Plain(16.0)),
    ("memory/allocations/strict/heap", Plain(0.0)),
    ("memory/allocations/strict/frames", Plain(0.0)),
    ("memory/allocations/deferred/heap", Plain(0.0)),
    ("memory/allocations/deferred/frames", Plain(0.0)),
];

/// One line for every target whose rows were measured.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for (pattern, limit) in TARGETS {
        let formats = if pattern.contains('*') { &FORMATS[..] } else { &[""] };
        for format in formats {
            text += &line(report, &pattern.replace('*', format), limit).unwrap_or_default();
        }
    }
    text += &p99(report).unwrap_or_default();
    text + &resolve(report) + &growth(report)
}

fn found(report: &Report, name: &str) -> Option<f64> {
    report.ns("granule", name).or_else(|| report.amount(name))
}

fn line(report: &Report, name: &str, limit: &Limit) -> Option<String> {
    let value = found(report, name)?;
    let (most, how) = match limit {
        Plain(most) => (*most, String::new()),
        Times(times, of) => (times * found(report, of)?, format!("{times} × {of}")),
        Linux(times, of) => (times * report.ns("linux", of)?, format!("{times} × linux {of}")),
    };
    Some(verdict(name, value, most, &how))
}

fn verdict(name: &str, value: f64, most: f64, how: &str) -> String {
    let word = if value <= most { "ok  " } else { "OVER" };
    format!("{word} {name:44} {value:10.3} ≤ {most:8.3}  {how}\n")
}

fn p99(report: &Report) -> Option<String> {
    let row = report.row("granule", "iova/mixed")?;
    let value = row.extra.iter().find(|(name, _)| *name == "p99")?.1;
    Some(verdict("iova/mixed p99", value, 150.0, ""))
}

/// One nanosecond for each level that the benchmark's tables have.
fn resolve(report: &Report) -> String {
    let levels = [3.0, 3.0, 4.0, 3.0, 3.0, 4.0, 4.0, 3.0, 4.0];
    let lines = FORMATS.iter().zip(levels).filter_map(|(format, levels)| {
        let name = format!("table/{format}/resolve");
        Some(verdict(&name, found(report, &name)?, levels, "1 ns a level"))
    });
    lines.collect()
}

/// From a thousand live to a million: our factor against the null allocator's.
fn growth(report: &Report) -> String {
    let factor = |what: &str| {
        let at = |live| found(report, &format!("growth/{what}/live={live}"));
        Some(at("1M")? / at("1k")?)
    };
    let lines = ["iova", "dma"].iter().filter_map(|what| {
        let most = 3.0 * factor(&format!("null/{what}"))?;
        Some(verdict(
            &format!("growth/{what} 1k → 1M"),
            factor(what)?,
            most,
            "3 × the null allocator's",
        ))
    });
    lines.collect()
}
