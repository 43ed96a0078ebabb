//! `granule man`: its options.

use std::path::PathBuf;

use clap::Args;

const EXAMPLES: &str = "\
Examples:
  granule man replay | man -l -
  granule man --all ~/.local/share/man/man1";

/// Print the manual page of a command, or write all of them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ManArgs {
    /// The command, as in `share` [default: granule itself]
    #[arg(value_name = "COMMAND", conflicts_with = "all")]
    pub(crate) page: Option<String>,
    /// Write the pages of all commands to this folder: granule.1, granule-share.1, ...
    #[arg(long, value_name = "DIR")]
    pub(crate) all: Option<PathBuf>,
}
