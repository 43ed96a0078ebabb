//! The report: one HTML page that needs nothing else. No script, no network, light and dark,
//! readable on a phone.

#![forbid(unsafe_code)]

mod plots;
mod tables;

use std::fmt::Write as _;
use std::path::Path;

use crate::ReplayError;
use crate::chart::{self, Unit, escape};
use crate::findings::Finding;
use crate::options::Invalidate;
use crate::results::{Results, Run, Stopped};

/// The look of the page; the charts bring their own.
const STYLE: &str = include_str!("page.css");

/// The comparison of all granules as a picture that stands alone.
pub fn comparison_svg(results: &Results) -> String {
    chart::standalone(&plots::comparison(results))
}

/// The page. `source` is what the trace is called, a path or a name.
pub fn html(results: &Results, source: &str) -> String {
    let mut page = String::with_capacity(1 << 18);
    let title = escape(source);
    let _ = writeln!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>DMA replay: {title}</title>\n<style>{}{STYLE}</style></head>\n<body><main>",
        chart::STYLE
    );
    head(&mut page, results, &title);
    comparison(&mut page, results);
    over_time(&mut page, results);
    spaces(&mut page, results);
    histograms(&mut page, results);
    devices(&mut page, results);
    findings(&mut page, results);
    foot(&mut page, results);
    page.push_str("</main></body></html>\n");
    page
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
pub(crate) fn granule_name(run: &Run) -> String {
    Unit::Bytes.format(run.granule as f64)
}

/// A granule alone, or with the format where that tells two runs apart.
fn run_names(results: &Results) -> Vec<String> {
    results.runs.iter().map(granule_name).collect()
}

fn head(page: &mut String, results: &Results, title: &str) {
    let trace = &results.trace;
    let policy = match results.invalidate {
        Invalidate::Strict => "strict invalidation",
        Invalidate::Deferred => "deferred invalidation",
    };
    let formats: Vec<&str> = results.runs.iter().map(|run| run.format.as_str()).collect();
    let _ = writeln!(
        page,
        "<h1>DMA replay: {title}</h1>\n<p class=\"soft\">{} DMA events of {} devices in {} of \
         trace, replayed with {policy}, CPU pages of {}, page tables {}.</p>",
        Unit::Count.format(trace.dma_events as f64),
        trace.devices.len(),
        Unit::Nanos.format(trace.ends.saturating_sub(trace.begins) as f64),
        Unit::Bytes.format(results.cpu_page as f64),
        escape(&formats.join(", "))
    );
    let untrusted: Vec<&str> = results
        .runs
        .iter()
        .take(1)
        .flat_map(|run| &run.devices)
        .filter(|device| !device.trusted)
        .map(|device| device.name.as_str())
        .collect();
    if !untrusted.is_empty() {
        let _ = writeln!(page, "<p>Not trusted: {}.</p>", escape(&untrusted.join(", ")));
    }
    let cut = match results.stopped {
        Stopped::Complete => None,
        Stopped::Limit => Some("Only the first events were replayed, as asked."),
        Stopped::Cancelled => {
            Some("The replay was interrupted: this is what was measured until then.")
        }
    };
    if let Some(text) = cut {
        let _ = writeln!(page, "<p class=\"warn\">{text}</p>");
    }
    let refused: u64 = results.runs.iter().map(|run| run.all.total.refused).sum();
    if refused != 0 {
        let _ = writeln!(
            page,
            "<p class=\"warn\">{} operations were refused, so the runs below did not do the same \
             work: see the findings.</p>",
            Unit::Count.format(refused as f64)
        );
    }
    let _ = write!(page, "<ol class=\"phases\">");
    for phase in &trace.phases {
        let name = if phase.name.is_empty() { "(before the first mark)" } else { &phase.name };
        let long = Unit::Nanos.format(phase.ends.saturating_sub(phase.begins) as f64);
        let _ = write!(
            page,
            "<li>{} <span class=\"soft\">{long}, from line {}</span></li>",
            escape(name),
            phase.line
        );
    }
    page.push_str("</ol>\n");
}

fn figure(page: &mut String, caption: &str, note: &str, svg: &str) {
    let (caption, note) = (escape(caption), escape(note));
    let _ = writeln!(
        page,
        "<figure><figcaption>{caption} <span>{note}</span></figcaption>{svg}</figure>"
    );
}

fn comparison(page: &mut String, results: &Results) {
    page.push_str("<h2>In all</h2>\n<div class=\"side\">\n");
    if results.runs.len() > 1 {
        figure(
            page,
            "Granules compared",
            "each figure on its own scale",
            &plots::comparison(results),
        );
    }
    let _ = writeln!(page, "<div class=\"scroll\">{}</div></div>", tables::comparison(results));
    let _ = writeln!(
        page,
        "<h3>By phase</h3>\n<div class=\"scroll\">{}</div>",
        tables::phases(results)
    );
}

fn over_time(page: &mut String, results: &Results) {
    page.push_str(
        "<h2>Over time</h2>\n<p class=\"soft\">From left to right event by event, so that idle time \
         takes no room; the marks below are seconds since the trace began. The numbers on top are \
         the phases.</p>\n<div class=\"grid2\">\n",
    );
    for (caption, note, svg) in plots::over_time(results) {
        figure(page, &caption, &note, &svg);
    }
    page.push_str("</div>\n");
}

fn spaces(page: &mut String, results: &Results) {
    page.push_str(
        "<h2>IOVA space</h2>\n<p class=\"soft\">What each device could reach, by address (the \
         highest on top; dashed: addresses left out) and event. The stronger the colour, the \
         fuller the row.</p>\n\
         <div class=\"grid2\">\n",
    );
    for run in &results.runs {
        for device in run.devices.iter().filter(|device| !device.iova_map.columns.is_empty()) {
            let caption = format!("{}, {}", device.name, granule_name(run));
            let note = format!(
                "rows of {}",
                Unit::Bytes.format(2f64.powi(device.iova_map.row_shift as i32))
            );
            figure(page, &caption, &note, &plots::space(results, device));
        }
    }
    page.push_str("</div>\n");
}

fn histograms(page: &mut String, results: &Results) {
    page.push_str("<h2>Sizes and latencies</h2>\n<div class=\"grid2\">\n");
    for (caption, note, svg) in plots::histograms(results) {
        figure(page, &caption, &note, &svg);
    }
    page.push_str("</div>\n");
}

fn devices(page: &mut String, results: &Results) {
    page.push_str("<h2>Devices</h2>\n");
    for device in &results.trace.devices {
        let _ = writeln!(
            page,
            "<h3>{}</h3>\n<div class=\"scroll\">{}</div>\n<details><summary>What the trace says of \
             it</summary><div class=\"scroll\">{}</div></details>",
            escape(&device.name),
            tables::device(results, &device.name),
            tables::counts(results, device)
        );
    }
}

fn findings(page: &mut String, results: &Results) {
    page.push_str("<h2>Findings</h2>\n");
    let of_trace = results.findings.counts().is_empty();
    let of_runs = results.runs.iter().all(|run| run.findings.counts().is_empty());
    if of_trace && of_runs {
        page.push_str(
            "<p>None: everything that was mapped was unmapped once, as it was mapped.</p>\n",
        );
        return;
    }
    if !of_trace {
        group(page, "In the trace", &results.findings, true);
    }
    for run in results.runs.iter().filter(|run| !run.findings.counts().is_empty()) {
        group(page, &format!("At {}", granule_name(run)), &run.findings, false);
    }
}

fn group(page: &mut String, title: &str, findings: &crate::Findings, open: bool) {
    let _ = writeln!(page, "<h3>{}</h3>", escape(title));
    for (kind, count) in findings.counts() {
        let list: Vec<&Finding> =
            findings.list().iter().filter(|found| found.kind == *kind).collect();
        let kept = list.len() as u64;
        let first = if kept < *count { format!(", the first {kept}") } else { String::new() };
        let open = if open && kept <= 12 { " open" } else { "" };
        let count = Unit::Count.format(*count as f64);
        let _ = writeln!(
            page,
            "<details{open}><summary>{count} × {}{first}</summary><div class=\"scroll\">{}</div></details>",
            kind.title(),
            tables::findings(&list)
        );
    }
}

fn foot(page: &mut String, results: &Results) {
    let trace = &results.trace;
    let skipped: u64 = trace.skipped.values().sum();
    let names: Vec<String> =
        trace.skipped.iter().map(|(name, count)| format!("{} ({count})", escape(name))).collect();
    let _ = writeln!(
        page,
        "<footer><p>{} lines read, {} events, {skipped} of them of other kinds: {}. Replayed in {:.2} s.</p>\n\
         <p><b>Exposed</b>: bytes mapped for a device that belong to somebody else, since the IOMMU maps \
         whole granules. <b>Padding</b>: mapped beside a buffer, owned by it and zeroed. \
         <b>Quarantine</b>: unmapped, and not reused before the invalidation. Latencies are of this \
         machine and of the software alone: the simulated IOMMU answers at once.</p></footer>",
        trace.lines,
        trace.events,
        if names.is_empty() { "none".into() } else { names.join(", ") },
        results.seconds
    );
}
