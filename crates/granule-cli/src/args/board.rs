//! `granule board`: its options.

use std::path::PathBuf;

use clap::Args;

const EXAMPLES: &str = "\
Examples:
  granule board
  granule board my.dtb
  granule board my.dtb --json";

/// Show a board: memory, IOMMUs, devices, streams, groups
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BoardArgs {
    /// Device tree blob [default: the built-in board]
    #[arg(value_name = "FILE.dtb")]
    pub(crate) file: Option<PathBuf>,
    /// Print JSON, errors included
    #[arg(long)]
    pub(crate) json: bool,
}
