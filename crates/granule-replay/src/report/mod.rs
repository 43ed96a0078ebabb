//! The report: one HTML page that needs nothing else.

#![forbid(unsafe_code)]

mod plots;
mod tables;

use std::path::Path;

use granule_report::canvas;
use granule_report::page::Page;
use granule_report::units::Unit;

use crate::ReplayError;
use crate::findings::{Finding, Findings};
use crate::options::Invalidate;
use crate::results::{Results, Run, Stopped};

/// The comparison of all granules as a picture that stands alone.
pub fn comparison_svg(results: &Results) -> String {
    canvas::standalone(&plots::comparison(results))
}

/// The page. `source` is what the trace is called, a path or a name.
pub fn html(results: &Results, source: &str) -> String {
    let mut page = Page::new("DMA replay", source);
    head(&mut page, results);
    comparison(&mut page, results);
    over_time(&mut page, results);
    spaces(&mut page, results);
    page.heading("Sizes and latencies");
    page.columns(|page| plots::histograms(results).iter().for_each(|plot| plot.show(page)));
    devices(&mut page, results);
    findings(&mut page, results);
    foot(&mut page, results);
    page.finish()
}

/// Writes the page to a file.
///
/// # Errors
/// [`ReplayError::Write`].
pub fn write(results: &Results, source: &str, path: &Path) -> Result<(), ReplayError> {
    std::fs::write(path, html(results, source))
        .map_err(|cause| ReplayError::Write { path: path.to_owned(), cause })
}

/// `4 KiB`.
fn granule_name(run: &Run) -> String {
    Unit::Bytes.format(run.granule as f64)
}

fn run_names(results: &Results) -> Vec<String> {
    results.runs.iter().map(granule_name).collect()
}

fn head(page: &mut Page, results: &Results) {
    let trace = &results.trace;
    let policy = match results.invalidate {
        Invalidate::Strict => "strict invalidation",
        Invalidate::Deferred => "deferred invalidation",
    };
    let formats: Vec<&str> = results.runs.iter().map(|run| run.format.as_str()).collect();
    page.note(&format!(
        "{} DMA events of {} devices in {} of trace, replayed with {policy}, CPU pages of {}, page \
         tables {}.",
        Unit::Count.format(trace.dma_events as f64),
        trace.devices.len(),
        Unit::Nanos.format(trace.ends.saturating_sub(trace.begins) as f64),
        Unit::Bytes.format(results.cpu_page as f64),
        formats.join(", ")
    ));
    let devices = results.runs.first().map(|run| run.devices.as_slice()).unwrap_or_default();
    let untrusted = devices.iter().filter(|device| !device.trusted);
    let untrusted: Vec<&str> = untrusted.map(|device| device.name.as_str()).collect();
    if !untrusted.is_empty() {
        page.paragraph(&format!("Not trusted: {}.", untrusted.join(", ")));
    }
    match results.stopped {
        Stopped::Complete => {}
        Stopped::Limit => page.warning("Only the first events were replayed, as asked."),
        Stopped::Cancelled => {
            page.warning("The replay was interrupted: this is what was measured until then.")
        }
    }
    let refused: u64 = results.runs.iter().map(|run| run.all.total.refused).sum();
    if refused != 0 {
        page.warning(&format!(
            "{} operations were refused, so the runs below did not do the same work: see the \
             findings.",
            Unit::Count.format(refused as f64)
        ));
    }
    let phases = trace.phases.iter().map(|phase| {
        let name = if phase.name.is_empty() { "(before the first mark)" } else { &phase.name };
        let long = Unit::Nanos.format(phase.ends.saturating_sub(phase.begins) as f64);
        (name.to_owned(), format!("{long}, from line {}", phase.line))
    });
    page.list(true, phases);
}

fn comparison(page: &mut Page, results: &Results) {
    page.heading("In all");
    page.side_by_side(|page| {
        if results.runs.len() > 1 {
            let svg = plots::comparison(results);
            page.figure("Granules compared", "each figure on its own scale", &svg);
        }
        page.table(&tables::comparison(results));
    });
    page.subheading("By phase");
    page.table(&tables::phases(results));
}

fn over_time(page: &mut Page, results: &Results) {
    page.heading("Over time");
    page.note(
        "From left to right event by event, so that idle time takes no room; the marks below are \
         seconds since the trace began. The numbers on top are the phases.",
    );
    page.columns(|page| plots::over_time(results).iter().for_each(|plot| plot.show(page)));
}

fn spaces(page: &mut Page, results: &Results) {
    page.heading("IOVA space");
    page.note(
        "What each device could reach, by address (the highest on top; dashed: addresses left out) \
         and event. The stronger the colour, the fuller the row.",
    );
    page.columns(|page| {
        for run in &results.runs {
            for device in run.devices.iter().filter(|device| !device.iova_map.columns.is_empty()) {
                let caption = format!("{}, {}", device.name, granule_name(run));
                let rows = Unit::Bytes.format(2f64.powi(device.iova_map.row_shift as i32));
                page.figure(&caption, &format!("rows of {rows}"), &plots::space(results, device));
            }
        }
    });
}

fn devices(page: &mut Page, results: &Results) {
    page.heading("Devices");
    for device in &results.trace.devices {
        page.subheading(&device.name);
        page.table(&tables::device(results, &device.name));
        page.folded_table("What the trace says of it", false, &tables::counts(results, device));
    }
}

fn findings(page: &mut Page, results: &Results) {
    page.heading("Findings");
    let of_trace = results.findings.counts().is_empty();
    let of_runs = results.runs.iter().all(|run| run.findings.counts().is_empty());
    if of_trace && of_runs {
        page.paragraph("None: everything that was mapped was unmapped once, as it was mapped.");
        return;
    }
    if !of_trace {
        group(page, "In the trace", &results.findings, true);
    }
    for run in results.runs.iter().filter(|run| !run.findings.counts().is_empty()) {
        group(page, &format!("At {}", granule_name(run)), &run.findings, false);
    }
}

fn group(page: &mut Page, title: &str, findings: &Findings, open: bool) {
    page.subheading(title);
    for (kind, count) in findings.counts() {
        let list: Vec<&Finding> =
            findings.list().iter().filter(|found| found.kind == *kind).collect();
        let kept = list.len() as u64;
        let first = if kept < *count { format!(", the first {kept}") } else { String::new() };
        let count = Unit::Count.format(*count as f64);
        let summary = format!("{count} × {}{first}", kind.title());
        page.folded_table(&summary, open && kept <= 12, &tables::findings(&list));
    }
}

fn foot(page: &mut Page, results: &Results) {
    let trace = &results.trace;
    let skipped: u64 = trace.skipped.values().sum();
    let names: Vec<String> =
        trace.skipped.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    let names = if names.is_empty() { "none".into() } else { names.join(", ") };
    page.foot(&[
        &*format!(
            "{} lines read, {} events, {skipped} of them of other kinds: {names}. Replayed in {:.2} s.",
            trace.lines, trace.events, results.seconds
        ),
        "Exposed: bytes mapped for a device that belong to somebody else, since the IOMMU maps whole \
         granules. Padding: mapped beside a buffer, owned by it and zeroed. Quarantine: unmapped, and \
         not reused before the invalidation. Latencies are of this machine and of the software alone: \
         the simulated IOMMU answers at once.",
    ]);
}
