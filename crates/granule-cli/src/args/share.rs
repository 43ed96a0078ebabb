//! `granule share`: its options.

use std::path::PathBuf;

use clap::Args;
use granule::addr::{Granule, PhysRange};

use crate::size::{self, Mask};

const LONG: &str = "\
Share one buffer between devices of a simulated board, each seeing one contiguous range.

Boots a machine in memory from the device tree, plans the buffer, allocates and maps it, lets every \
device fill it by DMA through its own page tables and every other one and the CPU read it back, \
probes the unmapped granules around it, unmaps it, and shows that late DMA faults.

With --live the devices are this machine's own (Linux, VFIO or iommufd): the buffer is allocated and \
mapped into each device's address space, the same table is printed, and all is held until Enter is \
pressed, or for --seconds. No DMA is started. `granule doctor` tells which devices can be had.";

const EXAMPLES: &str = "\
Examples:
  granule share
  granule share --between dcp,nvme --size 64K --explain
  granule share --between dcp,piodma --untrusted dcp --json
  granule share --svg share.svg --report share.html
  granule share --dump ram.raw
  granule share --live 0000:01:00.0,0000:02:00.0 --size 8M --seconds 0

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
    /// The devices, by PCI address: this machine's own, in place of a simulated board
    #[arg(long, value_name = "BDF,BDF,...", value_delimiter = ',', conflicts_with_all = SIMULATED)]
    pub(crate) live: Vec<String>,
    /// The kernel's interface for --live: vfio or iommufd
    #[arg(long, value_name = "NAME", default_value = "vfio", value_parser = ["vfio", "iommufd"])]
    pub(crate) backend: String,
    /// How long to hold the buffer with --live, 0 for not at all [default: until Enter]
    #[arg(long, value_name = "N", requires = "live")]
    pub(crate) seconds: Option<u64>,
    /// One address space for all devices of --live: needed if they are in one IOMMU group
    #[arg(long, requires = "live")]
    pub(crate) one_space: bool,
}

/// What is said of a simulated board, and means nothing on this machine.
const SIMULATED: [&str; 8] =
    ["board", "between", "cpu_page", "memory", "mask", "svg", "report", "dump"];
