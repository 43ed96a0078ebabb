//! Chores that are a cargo command or two: format, lint, document, check dependencies.

use anyhow::{Result, anyhow, bail};
use xshell::cmd;

use crate::{Chores, Unavailable, fuzz, lab, no_std};

/// Runs the same script as continuous integration, so that there is one list of steps.
pub(crate) fn ci(chores: &Chores) -> Result<()> {
    Ok(cmd!(chores.sh, "bash .ci/run").run()?)
}

pub(crate) fn fmt(chores: &Chores, check: bool) -> Result<()> {
    let check: &[&str] = if check { &["--check"] } else { &[] };
    cmd!(chores.sh, "cargo fmt --all -- {check...}").run()?;
    for apart in [no_std::MANIFEST, lab::MANIFEST, fuzz::MANIFEST] {
        cmd!(chores.sh, "cargo fmt --manifest-path {apart} -- {check...}").run()?;
    }
    Ok(())
}

pub(crate) fn clippy(chores: &Chores) -> Result<()> {
    cmd!(chores.sh, "cargo clippy --workspace --all-targets --all-features -- -D warnings")
        .run()?;
    no_std::clippy(chores)?;
    fuzz::clippy(chores)?;
    lab::clippy(chores)
}

/// The tests that judge the core, at a tenth of their effort. Mutation testing runs the same:
/// `GRANULE_EFFORT=10 cargo mutants -p granule -- --lib --tests`.
pub(crate) fn quick(chores: &Chores, packages: &[String]) -> Result<()> {
    let core = ["granule", "granule-laws", "granule-checks"].map(String::from);
    let packages = if packages.is_empty() { &core[..] } else { packages };
    let packages = packages.iter().flat_map(|name| ["-p", name]);
    let _effort = chores.sh.push_env("GRANULE_EFFORT", "10");
    Ok(cmd!(chores.sh, "cargo test --quiet --lib --tests {packages...}").run()?)
}

pub(crate) fn doc(chores: &Chores) -> Result<()> {
    let _flags = chores.sh.push_env("RUSTDOCFLAGS", "-D warnings");
    Ok(cmd!(chores.sh, "cargo doc --workspace --no-deps").run()?)
}

/// Checks dependencies against `deny.toml`. Advisories too, where their database can be fetched: the
/// check of everything else does not depend on a network.
pub(crate) fn deny(chores: &Chores) -> Result<()> {
    let version = cmd!(chores.sh, "cargo deny --version").quiet().ignore_stdout().ignore_stderr();
    if version.run().is_err() {
        let error = anyhow!("cargo-deny is not installed: `cargo install --locked cargo-deny`");
        return Err(error.context(Unavailable));
    }
    cmd!(chores.sh, "cargo deny check bans licenses sources").run()?;
    let known = cmd!(chores.sh, "cargo deny check advisories").ignore_status().output()?;
    let said = String::from_utf8_lossy(&known.stderr);
    let fetched = !said.contains("failed to fetch advisory database");
    match (known.status.success(), fetched) {
        (true, _) => println!("advisories: none for these versions"),
        (false, false) => {
            println!("advisories: NOT CHECKED, their database cannot be fetched here")
        }
        (false, true) => bail!("advisories:\n{said}"),
    }
    Ok(())
}
