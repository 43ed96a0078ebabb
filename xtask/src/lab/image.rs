//! Building an image for a machine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use xshell::cmd;

use super::MANIFEST;
use super::machine::Machine;
use crate::Chores;

/// The target of the ordinary toolchain that the PC's image is built for: no other is needed.
const X86: &str = "x86_64-unknown-linux-gnu";

/// Where the image is linked is where it runs; there is no operating system that keeps a red zone.
const X86_FLAGS: &str = "-Crelocation-model=static -Cno-redzone=yes";
const X86_FLAGS_NAME: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";

/// Builds the image under `folder`, and answers where it is.
pub(super) fn build(chores: &Chores, machine: Machine, folder: &Path) -> Result<PathBuf> {
    share_lock_file(chores)?;
    match machine {
        Machine::X86 => {
            let _flags = chores.sh.push_env(X86_FLAGS_NAME, X86_FLAGS);
            cmd!(
                chores.sh,
                "cargo build --quiet --release --manifest-path {MANIFEST} --target {X86}
                 --target-dir {folder}"
            )
            .run()?;
            Ok(folder.join(X86).join("release/lab"))
        }
    }
}

/// Lints the image.
pub(crate) fn clippy(chores: &Chores) -> Result<()> {
    share_lock_file(chores)?;
    let folder = chores.target.join("lab");
    let _flags = chores.sh.push_env(X86_FLAGS_NAME, X86_FLAGS);
    cmd!(
        chores.sh,
        "cargo clippy --release --manifest-path {MANIFEST} --target {X86} --target-dir {folder}
         -- -D warnings"
    )
    .run()?;
    Ok(())
}

/// Gives the image the workspace's versions; cargo drops those that it does not use.
fn share_lock_file(chores: &Chores) -> Result<()> {
    Ok(chores.sh.copy_file("Cargo.lock", Path::new(MANIFEST).with_file_name("Cargo.lock"))?)
}
