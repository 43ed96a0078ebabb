//! `granule replay`: its options.

use std::path::PathBuf;

use clap::Args;
use granule::addr::Granule;
use granule::table::FormatId;
use granule_replay::Invalidate;

use crate::size;

const LONG: &str = "\
Replay a recorded DMA trace: what it costs and exposes at each granule.

Every DMA event is performed on a simulated machine, through the real layers, once for each granule. \
The trace is ftrace text, as `trace-cmd report`, tracefs and `perf script` print it, plain or packed by \
zstd or gzip. What is odd in it is listed as a finding. Times are of this machine.

Without --granule, --compare and --format, 4K, 16K and 64K are compared. Ctrl-C ends the replay with \
what was measured so far.";

const EXAMPLES: &str = "\
Examples:
  granule replay
  granule replay trace.txt.zst --compare 4K,16K --invalidate deferred
  granule replay trace.txt --granule 16K --untrusted 0000:00:03.0 --json
  trace-cmd report trace.dat | granule replay - --report trace.html

`granule record` shows how to record a trace.";

/// Replay a recorded DMA trace: what it costs and exposes at each granule
#[derive(Debug, Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(crate) struct ReplayArgs {
    /// The trace, or - for standard input [default: a built-in sample, an NVMe disk and a network card]
    #[arg(value_name = "TRACE")]
    pub(crate) trace: Option<PathBuf>,
    /// The smallest page of the IOMMU: 4K, 16K or 64K
    #[arg(long, value_name = "SIZE", value_parser = size::granule, conflicts_with = "compare")]
    pub(crate) granule: Option<Granule>,
    /// The CPU's page: 4K, 16K or 64K
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::cpu_page)]
    pub(crate) cpu_page: Granule,
    /// Page tables: dart1, dart2, lpae4k, lpae16k, lpae64k, vtd2, ... [default: lpae of the granule]
    #[arg(long, value_parser = table_format)]
    pub(crate) format: Option<FormatId>,
    /// When caches are dropped: strict, at each unmap; deferred, for many unmaps together
    #[arg(long, value_name = "WHEN", default_value = "strict")]
    pub(crate) invalidate: Invalidate,
    /// Devices that must see nothing but what they were given, or all
    #[arg(long, value_name = "DEV,...", value_delimiter = ',')]
    pub(crate) untrusted: Vec<String>,
    /// Only this device
    #[arg(long, value_name = "DEV")]
    pub(crate) device: Option<String>,
    /// Granules to compare
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = size::granule)]
    pub(crate) compare: Vec<Granule>,
    /// Write a report with pictures, one HTML page that needs no network
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Print JSON, errors included
    #[arg(long)]
    pub(crate) json: bool,
    /// End after so many DMA events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
}

fn table_format(name: &str) -> Result<FormatId, String> {
    name.parse().map_err(|_| {
        let names: Vec<_> = FormatId::ALL.iter().map(|format| format.name()).collect();
        format!("no such format; there are {}", names.join(", "))
    })
}
