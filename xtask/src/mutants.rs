//! Changes the core in small ways, one at a time, and sees whether a test notices: mutation testing.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::{Chores, Options, Unavailable};

/// The layers of the core whose mistakes would cost somebody's data.
const LAYERS: [&str; 5] = ["iova", "table", "domain", "bounce", "share"];

/// Who judges a mutant: first the core's own tests, which are quick; then, of those that live, the laws.
const JUDGES: [(&str, &[&str]); 2] =
    [("granule", &["--lib"]), ("granule-laws,granule-checks", &["--tests"])];

/// Tests every mutant of the layers that are named, or of all, except those that an earlier run caught.
pub(crate) fn run(chores: &Chores, options: &Options) -> Result<()> {
    let sh = &chores.sh;
    if cmd!(sh, "cargo mutants --version").quiet().ignore_stderr().ignore_stdout().run().is_err() {
        let error = anyhow::anyhow!("cargo-mutants is not installed");
        return Err(error.context(Unavailable).context("cargo install --locked cargo-mutants"));
    }
    if let Some(word) = options.words.iter().find(|word| !LAYERS.contains(&word.as_str())) {
        bail!("there is no layer `{word}`; there are {}", LAYERS.join(", "));
    }
    let _effort = sh.push_env("GRANULE_EFFORT", "10");
    // What fails need not be made small first.
    let _shrinking = sh.push_env("PROPTEST_MAX_SHRINK_ITERS", "0");
    let _files = sh.push_env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
    let wanted =
        |layer: &&str| options.words.is_empty() || options.words.iter().any(|w| w == layer);
    let mut survivors = Vec::new();
    for layer in LAYERS.into_iter().filter(wanted) {
        survivors.extend(judge(chores, options, layer)?);
    }
    survivors.iter().for_each(|name| println!("{name}"));
    match survivors.len() {
        0 => Ok(()),
        count => bail!("{count} mutants live: write a test, or say why in .cargo/mutants.toml"),
    }
}

/// Runs one layer's mutants past each judge. Those that live come back.
fn judge(chores: &Chores, options: &Options, layer: &str) -> Result<Vec<String>> {
    let sh = &chores.sh;
    let output = chores.target.join("mutants").join(layer);
    fs::create_dir_all(&output)?;
    let files = format!("crates/granule/src/{layer}/**");
    let shard = options.values.get("shard").map(|shard| format!("--shard={shard}"));
    for (packages, tests) in JUDGES {
        println!("--- {layer}, judged by {packages}");
        let shard = &shard;
        let run = cmd!(
            sh,
            "cargo mutants --iterate --package granule --file {files} --output {output}
             --test-package {packages} --timeout 120 {shard...} -- {tests...}"
        );
        // 0: all were caught; 2: some live; 3: some ran into the limit of time.
        let status = Command::from(run).status()?;
        if !matches!(status.code(), Some(0 | 2 | 3)) {
            bail!("cargo-mutants: {status}: does the tree build, do its tests pass?");
        }
    }
    let missed = output.join("mutants.out").join("missed.txt");
    let missed = fs::read_to_string(&missed).with_context(|| missed.display().to_string())?;
    Ok(missed.lines().map(str::to_string).collect())
}
