//! `granule board`: its options.

use std::path::PathBuf;

use clap::Args;

const EXAMPLES: &str = "\
Examples:
  granule board
  granule board my.dtb
  granule board my.dtb --report my.html";

/// Show a board: memory, IOMMUs, devices, streams, groups
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BoardArgs {
    /// Device tree blob [default: the built-in board]
    #[arg(value_name = "FILE.dtb")]
    pub(crate) file: Option<PathBuf>,
    /// Write a report with the topology drawn, one HTML page that needs no network
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Print JSON, errors included
    #[arg(long)]
    pub(crate) json: bool,
}
