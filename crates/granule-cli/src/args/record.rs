//! `granule record`: its options.

use std::path::PathBuf;

use clap::Args;

const LONG: &str = "\
Show the steps that record such a trace, or perform them.

The steps are a shell script for root on Linux 6.12 or later. With --run they are performed: the \
machine's own work is recorded, in a tracing instance that is removed again whatever happens: other \
tracing goes on.";

const EXAMPLES: &str = "\
Examples:
  granule record
  granule record --seconds 60 --output disk.txt
  sudo granule record --run --seconds 5 --output trace.txt";

/// Show the steps that record such a trace, or perform them
#[derive(Debug, Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(crate) struct RecordArgs {
    /// How long to record
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) seconds: u64,
    /// Perform the steps, which needs root
    #[arg(long)]
    pub(crate) run: bool,
    /// Where the trace goes
    #[arg(long, value_name = "FILE", default_value = "trace.txt")]
    pub(crate) output: PathBuf,
}
