//! Why a trace cannot be replayed.

use std::io;
use std::path::PathBuf;

use granule::addr::Granule;
use granule::table::FormatId;

/// Why there is no result. What is wrong *inside* a trace is a [`Finding`](crate::Finding), not an
/// error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The file could not be opened.
    #[error("{}: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Reading or unpacking failed.
    #[error("the trace cannot be read past line {line}: {cause}")]
    Read {
        /// How many lines were read before.
        line: u64,
        /// What went wrong.
        cause: io::Error,
    },
    /// The recorder's own binary file, not text.
    #[error("this is a binary file of {tool}, not text: run `{command}` and replay what it prints")]
    Binary {
        /// What wrote it.
        tool: &'static str,
        /// What turns it into text.
        command: &'static str,
    },
    /// No DMA event in the whole trace.
    #[error("{}", no_dma_message(*.lines, *.skipped, *.damaged))]
    NoDma {
        /// How many lines were read.
        lines: u64,
        /// How many events of other kinds were skipped.
        skipped: u64,
        /// How many lines are no events.
        damaged: u64,
    },
    /// DMA events, but none of the device asked for.
    #[error("the trace has no DMA of {wanted}; it has {}", .present.join(", "))]
    NoSuchDevice {
        /// The device asked for.
        wanted: String,
        /// Those in the trace.
        present: Vec<String>,
    },
    /// No page-table format has this granule.
    #[error("no page-table format has a granule of {granule}: 4 KiB, 16 KiB and 64 KiB exist")]
    NoFormat {
        /// The granule asked for.
        granule: Granule,
    },
    /// The format asked for has another granule.
    #[error("{format} has a granule of {has}, not {granule}: leave one of the two out")]
    FormatGranule {
        /// The format asked for.
        format: FormatId,
        /// Its granule.
        has: Granule,
        /// The granule asked for.
        granule: Granule,
    },
    /// The simulated machine could not be built.
    #[error("the simulated machine cannot be built: {cause}")]
    Machine {
        /// What went wrong.
        cause: String,
    },
    /// The report could not be written.
    #[error("{}: {cause}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

fn no_dma_message(lines: u64, skipped: u64, damaged: u64) -> String {
    format!(
        "no DMA events in {lines} lines ({skipped} events of other kinds, {damaged} lines that are \
         no events). Enable the events dma:* and iommu:*, for example with\n    \
         trace-cmd record -e dma -e iommu sleep 10 && trace-cmd report > trace.txt\n\
         or with\n    {}\n(the dma events exist since Linux 6.12)",
        crate::record::PERF_COMMAND
    )
}
