//! `granule soak`: its options.

use clap::Args;

const LONG: &str = "\
Load a simulated board for long, with faults, and check every byte.

Devices behind one IOMMU map host buffers, which are bounced, and coherent memory, write and read it \
by DMA, and unmap it, at once or later, one thread each. Allocations and invalidations are made to \
fail now and then. Work goes in rounds; after each the machine is taken down and must have lost \
nothing. Ctrl-C ends it after the round under way. Round n of seed S is round 0 of seed S + n: the \
summary names the seed to go on with. With one thread a seed gives the same run again.";

const EXAMPLES: &str = "\
Examples:
  granule soak
  granule soak --seconds 3600 --threads 8 --fault-rate 0.05
  granule soak --seed 42 --threads 1";

/// Load a simulated board for long, with faults, and check every byte
#[derive(Debug, Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(crate) struct SoakArgs {
    /// How long; the round under way is ended
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub(crate) seconds: u64,
    /// How many devices, with a thread each
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) threads: u32,
    /// The share of operations before which a fault is armed, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.02, value_parser = rate)]
    pub(crate) fault_rate: f64,
    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("a share from 0 to 1, as in 0.02".into()),
    }
}
