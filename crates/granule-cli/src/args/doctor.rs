//! `granule doctor`: its options.

use std::path::PathBuf;

use clap::Args;

const LONG: &str = "\
Examine what this machine offers to drivers in user space.

IOMMUs, groups, devices with driver and page sizes where the kernel shows them, reserved regions, the \
limit of locked memory, which of VFIO and iommufd can be opened; and what to do about each \"no\". Nothing \
is changed, and no device is opened. Linux only.";

const EXAMPLES: &str = "\
Examples:
  granule doctor
  granule doctor --json";

/// Examine what this machine offers to drivers in user space, and say what to do about each "no"
#[derive(Debug, Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Read the sys, proc and dev below this folder: another machine's, collected there
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    pub(crate) root: PathBuf,
}
