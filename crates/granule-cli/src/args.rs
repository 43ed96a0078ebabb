//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use granule::addr::{Granule, PhysAddr, PhysRange};
use granule::table::FormatId;
use granule_replay::Invalidate;
use granule_sim::walk::SimFormat;

use crate::size::{self, Mask};

/// DMA mapping and IOMMUs: who can share which memory with whom, and why not
#[derive(Debug, Parser)]
#[command(name = "granule", version, term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  granule share                                        the main job on the built-in board
  granule share --between dcp,piodma,isp --explain     three devices, and how the plan was found
  granule share --board my.dtb --memory 0x80000000+4G  a board whose tree carries no RAM
  granule board my.dtb                                 who makes DMA through which IOMMU
  granule replay trace.txt --report trace.html         what a recorded workload costs and exposes

Exit status: 0 done, 1 refused or failed, 2 bad usage.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(long_about = SHARE_LONG, after_help = SHARE_EXAMPLES)]
    /// Share one buffer between devices of a simulated board, each seeing one contiguous range
    Share(ShareArgs),
    /// Show a board: memory, IOMMUs, devices, streams, groups
    Board(BoardArgs),
    #[command(long_about = WALK_LONG, after_help = WALK_EXAMPLES)]
    /// Decode the page tables in a dump of physical memory
    Walk(WalkArgs),
    #[command(long_about = REPLAY_LONG, after_help = REPLAY_EXAMPLES)]
    /// Replay a recorded DMA trace: what it costs and exposes at each granule
    Replay(ReplayArgs),
    #[command(long_about = RECORD_LONG, after_help = RECORD_EXAMPLES)]
    /// Show the steps that record such a trace, or perform them
    Record(RecordArgs),
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

impl Command {
    /// Whether the answer, an error included, is to be JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Share(args) => args.json,
            Self::Board(args) => args.json,
            Self::Walk(args) => args.json,
            Self::Replay(args) => args.json,
            Self::Record(_) | Self::Completions(_) => false,
        }
    }
}

const SHARE_LONG: &str = "\
Share one buffer between devices of a simulated board, each seeing one contiguous range.

Boots a machine in memory from the device tree, plans the buffer, allocates and maps it, lets every \
device fill it by DMA through its own page tables and every other one and the CPU read it back, \
probes the unmapped granules around it, unmaps it, and shows that late DMA faults.";

const SHARE_EXAMPLES: &str = "\
Examples:
  granule share
  granule share --between dcp,nvme --size 64K --explain
  granule share --between dcp,piodma --untrusted dcp --json
  granule share --svg share.svg --dump ram.raw

The dump begins at the board's lowest RAM address; `granule walk` reads it back.";

#[derive(Debug, Args)]
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
    /// Write physical memory, as it is while the buffer is mapped, to a sparse raw file
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BoardArgs {
    /// Device tree blob [default: the built-in board]
    #[arg(value_name = "FILE.dtb")]
    pub(crate) file: Option<PathBuf>,
    /// Print JSON, errors included
    #[arg(long)]
    pub(crate) json: bool,
}

const WALK_LONG: &str = "\
Decode the page tables in a dump of physical memory.

The dump is a raw image of memory, as `granule share --dump` and QEMU's pmemsave write it; of a large \
file only the tables are read. Whatever is odd in the tables is listed as a finding.

Input bits, if not given: 32 for dart1 and dart2; 48 for lpae*, vtd* and amdv1; what their names say \
for sv39, sv48 and sv57.";

const WALK_EXAMPLES: &str = "\
Examples:
  granule walk --format dart1 --root 0x800000000 --memory ram.raw@0x800000000
  granule walk --format lpae4k --root 0x40210000 --input-bits 39 --memory ram.raw --iova 0x1000";

#[derive(Debug, Args)]
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

const REPLAY_LONG: &str = "\
Replay a recorded DMA trace: what it costs and exposes at each granule.

Every DMA event is performed on a simulated machine, through the real layers, once for each granule. \
The trace is ftrace text, as `trace-cmd report`, tracefs and `perf script` print it, plain or packed by \
zstd or gzip. What is odd in it is listed as a finding. Times are of this machine.

Without --granule, --compare and --format, 4K, 16K and 64K are compared. Ctrl-C ends the replay with \
what was measured so far.";

const REPLAY_EXAMPLES: &str = "\
Examples:
  granule replay
  granule replay trace.txt.zst --compare 4K,16K --invalidate deferred
  granule replay trace.txt --granule 16K --untrusted 0000:00:03.0 --json
  trace-cmd report trace.dat | granule replay - --report trace.html

`granule record` shows how to record a trace.";

#[derive(Debug, Args)]
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

const RECORD_LONG: &str = "\
Show the steps that record such a trace, or perform them.

The steps are a shell script for root on Linux 6.12 or later. With --run they are performed: the \
machine's own work is recorded, and recording is stopped again whatever happens.";

const RECORD_EXAMPLES: &str = "\
Examples:
  granule record
  granule record --seconds 60 --output disk.txt
  sudo granule record --run --seconds 5 --output trace.txt";

#[derive(Debug, Args)]
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

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  granule completions bash > ~/.local/share/bash-completion/completions/granule
  granule completions fish > ~/.config/fish/completions/granule.fish";

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

fn table_format(name: &str) -> Result<FormatId, String> {
    name.parse().map_err(|_| {
        let names: Vec<_> = FormatId::ALL.iter().map(|format| format.name()).collect();
        format!("no such format; there are {}", names.join(", "))
    })
}

fn format(name: &str) -> Result<SimFormat, String> {
    name.parse().map_err(|error: granule_sim::walk::FormatError| error.to_string())
}
