//! Links the `no_std` crates into a program that has no std, and runs it: see `checks/no-std`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::{Chores, files};

/// The program's manifest, from the project's root. It is no member of the workspace.
pub(crate) const MANIFEST: &str = "checks/no-std/Cargo.toml";

/// The program, from the project's root.
const PROGRAM: &str = "checks/no-std/src/main.rs";

/// Where the program runs as it is.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Targets without an operating system. Each is built for if its core library is installed.
const BARE_METAL: &[&str] =
    &["aarch64-unknown-none", "riscv64gc-unknown-none-elf", "x86_64-unknown-none"];

pub(crate) fn check(chores: &Chores) -> Result<()> {
    all_crates_take_part(chores)?;
    let targets = installed_targets(chores);
    if targets.is_empty() {
        bail!("no target to build for is installed: `rustup target add {}`", BARE_METAL[0]);
    }
    share_lock_file(chores)?;
    let target_dir = chores.target.join("no-std");
    for &target in &targets {
        cmd!(
            chores.sh,
            "cargo build --manifest-path {MANIFEST} --target {target} --target-dir {target_dir}"
        )
        .run()?;
    }
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) && targets.contains(&HOST) {
        run(chores, &target_dir.join(HOST).join("debug/no-std"))?;
    }
    println!("linked without std for {}", targets.join(", "));
    Ok(())
}

pub(crate) fn clippy(chores: &Chores) -> Result<()> {
    share_lock_file(chores)?;
    let target_dir = chores.target.join("no-std");
    for target in installed_targets(chores) {
        cmd!(
            chores.sh,
            "cargo clippy --manifest-path {MANIFEST} --target {target} --target-dir {target_dir}
             -- -D warnings"
        )
        .run()?;
    }
    Ok(())
}

/// Every crate that says `no_std` has to be in the program, else nothing checks it.
fn all_crates_take_part(chores: &Chores) -> Result<()> {
    let manifest = chores.sh.read_file(MANIFEST)?;
    let program = chores.sh.read_file(PROGRAM)?;
    for folder in files::crates(&chores.root)? {
        let lib = folder.join("src/lib.rs");
        let Ok(source) = fs::read_to_string(&lib) else { continue };
        if !says_no_std(&source) {
            continue;
        }
        let name = folder.file_name().context("a crate without a name")?.to_string_lossy();
        let path = format!("path = \"../../crates/{name}\"");
        if !manifest.contains(&path) {
            bail!(
                "{name} is no_std, but nothing links it without std: \
                 add `{name} = {{ {path}, default-features = false }}` to {MANIFEST}"
            );
        }
        let ident = name.replace('-', "_");
        if !program.contains(&format!("extern crate {ident} as _;")) {
            bail!("{PROGRAM} does not link {name}: add `extern crate {ident} as _;`");
        }
    }
    Ok(())
}

/// Whether the source of a library has `#![no_std]`, or has it under a condition.
fn says_no_std(source: &str) -> bool {
    source.lines().map(str::trim).any(|line| {
        line.starts_with("#![no_std]")
            || (line.starts_with("#![cfg_attr(") && line.contains("no_std)"))
    })
}

fn installed_targets(chores: &Chores) -> Vec<&'static str> {
    let mut targets = vec![HOST];
    targets.extend(BARE_METAL);
    targets.retain(|target| has_core_library(chores, target));
    targets
}

/// Whether a target is installed.
pub(crate) fn has_core_library(chores: &Chores, target: &str) -> bool {
    let folder = cmd!(chores.sh, "rustc --print target-libdir --target {target}").quiet().read();
    let Ok(Ok(mut entries)) = folder.map(fs::read_dir) else { return false };
    entries.any(|entry| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// Gives the program the workspace's versions; cargo drops those that it does not use.
fn share_lock_file(chores: &Chores) -> Result<()> {
    let copy = Path::new(MANIFEST).with_file_name("Cargo.lock");
    Ok(chores.sh.copy_file("Cargo.lock", copy)?)
}

/// The program's exit code is the number of the first check that failed.
fn run(chores: &Chores, program: &Path) -> Result<()> {
    if let Err(error) = cmd!(chores.sh, "{program}").run() {
        bail!("a check fails without std; checks/no-std/src/calls.rs numbers them: {error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::says_no_std;

    #[test]
    fn conditional_no_std_counts() {
        assert!(says_no_std("//! Text.\n#![no_std]\n"));
        assert!(says_no_std("#![cfg_attr(not(feature = \"std\"), no_std)]"));
        assert!(!says_no_std("//! Not `#![no_std]`.\n#![forbid(unsafe_code)]"));
    }
}
