//! Building an image for a machine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use xshell::cmd;

use super::MANIFEST;
use super::machine::Machine;
use crate::Chores;
use crate::cross::toolchain_for;
use crate::no_std::has_core_library;

/// The target of the ordinary toolchain that the PC's image is built for: no other is needed.
const X86: &str = "x86_64-unknown-linux-gnu";

/// Where the image is linked is where it runs; there is no operating system that keeps a red zone.
const X86_FLAGS: &str = "-Crelocation-model=static -Cno-redzone=yes";
const X86_FLAGS_NAME: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";

/// Builds the image under `folder`, and answers where it is.
pub(super) fn build(chores: &Chores, machine: Machine, folder: &Path) -> Result<PathBuf> {
    cargo(chores, &["build", "--quiet"], machine, folder, &[])
}

/// Lints the image of every machine that there is a compiler of the ordinary toolchain for.
pub(crate) fn clippy(chores: &Chores) -> Result<()> {
    for machine in [Machine::X86, Machine::AArch64, Machine::RiscV64] {
        if machine.cross().is_none_or(|cross| has_core_library(chores, cross.bare)) {
            let folder = chores.target.join("lab");
            cargo(chores, &["clippy"], machine, &folder, &["--", "-D", "warnings"])?;
        }
    }
    Ok(())
}

/// Runs cargo for a machine, and answers where it puts the image.
fn cargo(
    chores: &Chores,
    chore: &[&str],
    machine: Machine,
    folder: &Path,
    rest: &[&str],
) -> Result<PathBuf> {
    share_lock_file(chores)?;
    let sh = &chores.sh;
    let (target, _environment) = match machine.cross() {
        None => (X86, vec![sh.push_env(X86_FLAGS_NAME, X86_FLAGS)]),
        Some(cross) => {
            let toolchain = toolchain_for(chores, cross)?;
            println!("{}: by {}", machine.emulator(), toolchain.describe());
            (toolchain.target(), toolchain.environment(sh))
        }
    };
    cmd!(
        sh,
        "cargo {chore...} --release --manifest-path {MANIFEST} --target {target}
         --target-dir {folder} {rest...}"
    )
    .run()?;
    Ok(folder.join(target).join("release/lab"))
}

/// Gives the image the workspace's versions; cargo drops those that it does not use.
fn share_lock_file(chores: &Chores) -> Result<()> {
    Ok(chores.sh.copy_file("Cargo.lock", Path::new(MANIFEST).with_file_name("Cargo.lock"))?)
}
