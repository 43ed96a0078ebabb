//! The command line: what all commands have in common. Each command's own options are a file.
//!
//! What stands below the options in a command's help (`EXAMPLES`) is part of its manual page too:
//! headings end with a colon, lines that one types are indented by two.

mod board;
mod completions;
mod doctor;
mod man;
mod record;
mod replay;
mod share;
mod soak;
mod walk;

use clap::{Parser, Subcommand};

pub(crate) use board::BoardArgs;
pub(crate) use completions::CompletionsArgs;
pub(crate) use doctor::DoctorArgs;
pub(crate) use man::ManArgs;
pub(crate) use record::RecordArgs;
pub(crate) use replay::ReplayArgs;
pub(crate) use share::ShareArgs;
pub(crate) use soak::SoakArgs;
pub(crate) use walk::WalkArgs;

const EXAMPLES: &str = "\
Examples:
  granule share                                        the main job on the built-in board
  granule share --between dcp,piodma,isp --explain     three devices, and how the plan was found
  granule share --board my.dtb --memory 0x80000000+4G  a board whose tree carries no RAM
  granule board my.dtb                                 who makes DMA through which IOMMU
  granule replay trace.txt --report trace.html         what a recorded workload costs and exposes
  granule doctor                                       what this machine offers a user-space driver

Exit status: 0 done, 1 refused or failed, 2 bad usage.";

/// DMA mapping and IOMMUs: who can share which memory with whom, and why not
#[derive(Debug, Parser)]
#[command(name = "granule", version, term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

// What a command is about, its examples included, stands at its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Share(ShareArgs),
    Board(BoardArgs),
    Walk(WalkArgs),
    Replay(ReplayArgs),
    Record(RecordArgs),
    Doctor(DoctorArgs),
    Soak(SoakArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

impl Command {
    /// Whether the answer, an error included, is to be JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Share(args) => args.json,
            Self::Board(args) => args.json,
            Self::Walk(args) => args.json,
            Self::Replay(args) => args.json,
            Self::Doctor(args) => args.json,
            Self::Record(_) | Self::Soak(_) | Self::Completions(_) | Self::Man(_) => false,
        }
    }
}
