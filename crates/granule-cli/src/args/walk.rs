//! `granule walk`: its options.

use std::path::PathBuf;

use clap::Args;
use granule::addr::PhysAddr;
use granule_sim::walk::{FormatError, SimFormat};

use crate::size;

const LONG: &str = "\
Decode the page tables in a dump of physical memory.

The dump is a raw image of memory, as `granule share --dump` and QEMU's pmemsave write it; of a large \
file only the tables are read. Whatever is odd in the tables is listed as a finding.

Input bits, if not given: 32 for dart1 and dart2; 48 for lpae*, vtd* and amdv1; what their names say \
for sv39, sv48 and sv57.";

const EXAMPLES: &str = "\
Examples:
  granule walk --format dart1 --root 0x800000000 --memory ram.raw@0x800000000
  granule walk --format lpae4k --root 0x40210000 --input-bits 39 --memory ram.raw --iova 0x1000";

/// Decode the page tables in a dump of physical memory
#[derive(Debug, Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(crate) struct WalkArgs {
    /// dart1, dart2, lpae4k, lpae16k, lpae64k, vtd2, vtd1, amdv1, sv39, sv48 or sv57
    #[arg(long, value_parser = format)]
    pub(crate) format: SimFormat,
    /// Physical address of the root table; with DART up to four, in order
    #[arg(long, value_name = "ADDR", required = true, value_parser = size::address)]
    pub(crate) root: Vec<u64>,
    /// How many bits of an address the tables index
    #[arg(long, value_name = "N")]
    pub(crate) input_bits: Option<u32>,
    /// The dump, and the physical address of its first byte [default base: 0]
    #[arg(long, value_name = "FILE[@BASE]", value_parser = size::image)]
    pub(crate) memory: (PathBuf, PhysAddr),
    /// Translate this one address; for DART, bits above the input bits are ignored, as it does
    #[arg(long, value_name = "ADDR", value_parser = size::address)]
    pub(crate) iova: Option<u64>,
    /// Print JSON, errors included
    #[arg(long)]
    pub(crate) json: bool,
}

fn format(name: &str) -> Result<SimFormat, String> {
    name.parse().map_err(|error: FormatError| error.to_string())
}
