//! `granule share`: its options.

use std::path::PathBuf;

use clap::Args;
use granule::addr::{Granule, PhysRange};

use crate::size::{self, Mask};

const LONG: &str = "\
Share one buffer between devices of a simulated board, each seeing one contiguous range.

Boots a machine in memory from the device tree, plans the buffer, allocates and maps it, lets every \
device fill it by DMA through its own page tables and every other one and the CPU read it back, \
probes the unmapped granules around it, unmaps it, and shows that late DMA faults.";

const EXAMPLES: &str = "\
Examples:
  granule share
  granule share --between dcp,nvme --size 64K --explain
  granule share --between dcp,piodma --untrusted dcp --json
  granule share --svg share.svg --report share.html
  granule share --dump ram.raw

The dump begins at the board's lowest RAM address; `granule walk` reads it back.";

/// Share one buffer between devices of a simulated board, each seeing one contiguous range
#[derive(Debug, Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(crate) struct ShareArgs {
    /// Device tree blob of the board [default: the built-in one, Apple's t8103 display corner]
    #[arg(long, value_name = "FILE.dtb")]
    pub(crate) board: Option<PathBuf>,
    /// Length of the buffer: 8M, 64K, 100, 0x4000
    #[arg(long, default_value = "8M", value_parser = size::bytes)]
    pub(crate) size: u64,
    /// The devices, by node name, path, alias or label [default: the board's most telling pair]
    #[arg(long, value_name = "DEV,DEV,...")]
    pub(crate) between: Vec<String>,
    /// The CPU's page: 4K, 16K or 64K
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::cpu_page)]
    pub(crate) cpu_page: Granule,
    /// One DMA address for all devices
    #[arg(long)]
    pub(crate) same_iova: bool,
    /// RAM, in place of what the tree names: 0x80000000+4G (may be repeated)
    #[arg(long, value_name = "BASE+SIZE", value_parser = size::memory)]
    pub(crate) memory: Vec<PhysRange>,
    /// How many address bits a device has: nvme=32 (may be repeated)
    #[arg(long, value_name = "DEV=BITS", value_parser = size::mask)]
    pub(crate) mask: Vec<Mask>,
    /// Devices that must see nothing but the buffer
    #[arg(long, value_name = "DEV,...")]
    pub(crate) untrusted: Vec<String>,
    /// Show how the plan was found
    #[arg(long)]
    pub(crate) explain: bool,
    /// Print JSON, errors included
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the address spaces
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write a report with pictures, one HTML page that needs no network
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Write physical memory, as it is while the buffer is mapped, to a sparse raw file
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
}
