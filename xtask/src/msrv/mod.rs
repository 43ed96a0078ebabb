//! The oldest Rust that is supported: `rust-version` in the workspace's manifest.
//!
//! The toolchain comes from rustup if it is installed there. Otherwise it comes from the Debian
//! release that has it, unpacked under the build folder: nothing is installed.

pub(crate) mod debian;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{Chores, Unavailable};

/// Checks the default members, with the versions of `Cargo.lock` and every feature.
///
/// [`Unavailable`] if there is no such toolchain to check with.
pub(crate) fn check(chores: &Chores) -> Result<()> {
    let version = &version(chores)?;
    let target_dir = chores.target.join("msrv/check");
    let check = ["check", "--locked", "--all-features", "--target-dir"];
    let sh = chores.sh.clone();

    if let Some(toolchain) = rustup_toolchain(&sh, version) {
        println!("Rust {version} from rustup: {toolchain}");
        return Ok(cmd!(sh, "rustup run {toolchain} cargo {check...} {target_dir}").run()?);
    }
    let toolchain =
        debian::rustc(&sh, version, &chores.target.join("msrv")).context(Unavailable)?;
    println!("Rust {version} from Debian: {}", toolchain.version);
    // The wrapper of whoever runs this chore may not suit another compiler.
    sh.set_var("RUSTC_WRAPPER", "");
    sh.set_var("RUSTC_WORKSPACE_WRAPPER", "");
    sh.set_var("RUSTC", &toolchain.rustc);
    Ok(cmd!(sh, "cargo {check...} {target_dir}").run()?)
}

/// The oldest version that is supported.
pub(crate) fn version(chores: &Chores) -> Result<String> {
    let manifest = chores.sh.read_file("Cargo.toml")?;
    let version = rust_version(&manifest);
    Ok(version.context("Cargo.toml has no line `rust-version = \"…\"`")?.to_string())
}

/// The value of the first `rust-version` in a manifest.
fn rust_version(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| {
        let value = line.trim().strip_prefix("rust-version")?.trim_start().strip_prefix('=')?;
        value.trim().strip_prefix('"')?.split('"').next()
    })
}

/// The installed toolchain of that version. Asking for one by name would make rustup fetch it.
fn rustup_toolchain(sh: &Shell, version: &str) -> Option<String> {
    let list = cmd!(sh, "rustup toolchain list").quiet().ignore_stderr().read().ok()?;
    toolchain_of(&list, version).map(str::to_string)
}

/// `1.85` is met by `1.85-x86_64-…` and by `1.85.1-x86_64-…`, not by `1.850`.
fn toolchain_of<'a>(list: &'a str, version: &str) -> Option<&'a str> {
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let mut names = names
        .filter(|name| name.strip_prefix(version).is_some_and(|rest| rest.starts_with(['-', '.'])));
    names.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found() {
        let manifest = "[workspace.package]\nedition = \"2024\"\nrust-version = \"1.85\" # text\n";
        assert_eq!(rust_version(manifest), Some("1.85"));
        assert_eq!(rust_version("rust-version.workspace = true\n"), None);
    }

    #[test]
    fn a_toolchain_of_another_version_does_not_do() {
        let list =
            "stable-x86_64-unknown-linux-gnu (active, default)\n1.850.0-a\n1.85.1-b\n1.95.0-c\n";
        assert_eq!(toolchain_of(list, "1.85"), Some("1.85.1-b"));
        assert_eq!(toolchain_of(list, "1.86"), None);
        assert_eq!(toolchain_of("1.85-a (active)\n", "1.85"), Some("1.85-a"));
    }
}
