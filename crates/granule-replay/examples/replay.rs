//! Replays a trace at three granules and prints the comparison:
//! `cargo run --release --example replay -- TRACE|sample [strict|deferred] [trusted|untrusted] [REPORT.html|PICTURE.svg]`.

use granule::addr::Granule;
use granule_replay::{Input, Options, Results, Untrusted, replay, report};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        return Err(
            "usage: replay TRACE|sample [strict|deferred] [trusted|untrusted] [REPORT.html|PICTURE.svg]".into()
        );
    };
    let invalidate = args.next().map_or(Ok(Default::default()), |text| text.parse())?;
    let untrusted = if args.next().is_some_and(|word| word == "untrusted") {
        Untrusted::All
    } else {
        Untrusted::None
    };
    let granules = vec![Granule::K4, Granule::K16, Granule::K64];
    let options = Options { granules, invalidate, untrusted, ..Options::default() };
    let input = if path == "sample" { Input::sample()? } else { Input::open(path.as_ref())? };
    let results = replay(input, options)?;
    print(&results);
    if let Some(output) = args.next() {
        if output.ends_with(".svg") {
            std::fs::write(&output, report::comparison_svg(&results))?;
        } else {
            report::write(&results, &path, output.as_ref())?;
        }
        println!("{output} written");
    }
    Ok(())
}

fn print(results: &Results) {
    let trace = &results.trace;
    println!("{} DMA events in {:.2} s", trace.dma_events, results.seconds);
    for (kind, count) in results.findings.counts() {
        println!("  {count} {}", kind.title());
    }
    for run in &results.runs {
        println!("== {} ({} bytes)", run.format, run.granule);
        for scope in run.devices.iter().chain([&run.all]) {
            let (total, peak) = (&scope.total, &scope.total.peak);
            println!(
                "{:<14} ops {} mapped {} (peak {}) exposed peak {} integral {:.0} B*s",
                scope.name,
                total.operations,
                total.mapped_bytes,
                peak.mapped,
                peak.exposed,
                total.integral.exposed
            );
            println!(
                "   bounced {} iova peak {} fragmentation {:.2} tables {} invalidations {} quarantine peak {}",
                total.bounced_bytes,
                peak.iova,
                total.fragmentation(),
                peak.table_pages,
                total.invalidations,
                peak.quarantined
            );
            println!(
                "   entries {} segments {} pages {:?} refused {}",
                total.entries, total.segments, total.page_sizes, total.refused
            );
            println!(
                "   map p50 {} p99 {} ns, unmap p50 {} p99 {} ns",
                total.map_time.percentile(50.0),
                total.map_time.percentile(99.0),
                total.unmap_time.percentile(50.0),
                total.unmap_time.percentile(99.0)
            );
        }
        for (kind, count) in run.findings.counts() {
            println!(
                "  {count} {}: {:?}",
                kind.title(),
                run.findings.list().first().map(|f| &f.detail)
            );
        }
    }
}
