//! What people who put this under their disks want to have been tried: models, faults, hostile devices,
//! schedules, arithmetic, each at a size of minutes or, `--long` and `--hours N`, of hours.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::{Chores, Options};

/// One row: its name, what it runs, and at what effort (percent of what `cargo test` tries).
struct Row {
    name: &'static str,
    package: &'static str,
    /// The test binary; the package's own tests if empty.
    test: &'static str,
    /// The test, or the beginning of the names of several; all if empty.
    filter: &'static str,
    minutes: u32,
    hours: u32,
}

const ROWS: &[Row] = &[
    // 60 cases of 200 steps are 12,000 at 100 %: this is more than a million.
    Row {
        name: "model",
        package: "granule-laws",
        test: "model",
        filter: "random_programs",
        minutes: 8500,
        hours: 400_000,
    },
    Row {
        name: "faults",
        package: "granule-laws",
        test: "model",
        filter: "every_fault",
        // From 101 on programs have 200 operations.
        minutes: 101,
        hours: 1000,
    },
    Row {
        name: "hostile",
        package: "granule-laws",
        test: "model",
        filter: "between_any_two",
        minutes: 200,
        hours: 10_000,
    },
    Row {
        name: "hostile, deferred too",
        package: "granule-laws",
        test: "law2",
        filter: "a_device_reaches",
        minutes: 600,
        hours: 30_000,
    },
    Row {
        name: "devices",
        package: "granule-checks",
        test: "devices",
        filter: "",
        minutes: 1000,
        hours: 100_000,
    },
    Row {
        name: "threads",
        package: "granule-laws",
        test: "threads",
        filter: "threads_and_a_hostile",
        minutes: 2500,
        hours: 150_000,
    },
    Row {
        name: "schedules of table installs and unmaps",
        package: "granule",
        test: "",
        filter: "table::tests::model",
        minutes: 400,
        hours: 40_000,
    },
    Row {
        name: "schedules of the magazines",
        package: "granule",
        test: "",
        filter: "iova::tests::interleavings",
        minutes: 400,
        hours: 40_000,
    },
    Row {
        name: "schedules of the flush queue",
        package: "granule",
        test: "",
        filter: "domain::quarantine::model",
        minutes: 400,
        hours: 40_000,
    },
];

/// Runs every row, or those whose names are given.
pub(crate) fn run(chores: &Chores, options: &Options) -> Result<()> {
    let hours = options.number("hours", 0)?;
    let end = Instant::now() + Duration::from_secs(hours.saturating_mul(3600).min(1 << 32));
    let long = options.long || hours > 0;
    let wanted = |name: &str| options.words.is_empty() || options.words.iter().any(|w| w == name);
    let known = |word: &&String| {
        ROWS.iter().any(|row| row.name == **word)
            || ["arithmetic", "types"].contains(&word.as_str())
    };
    if let Some(word) = options.words.iter().find(|word| !known(word)) {
        bail!("there is no row `{word}`");
    }
    for round in 1.. {
        if wanted("arithmetic") {
            arithmetic(chores)?;
        }
        if wanted("types") {
            types(chores)?;
        }
        for row in ROWS.iter().filter(|row| wanted(row.name)) {
            println!("--- {} (round {round})", row.name);
            row.run(chores, if long { row.hours } else { row.minutes })?;
        }
        if Instant::now() >= end {
            break;
        }
    }
    Ok(())
}

impl Row {
    fn run(&self, chores: &Chores, effort: u32) -> Result<()> {
        let Self { package, filter, .. } = self;
        let _effort = chores.sh.push_env("GRANULE_EFFORT", effort.to_string());
        let target: &[&str] =
            if self.test.is_empty() { &["--lib"] } else { &["--test", self.test] };
        let run = cmd!(chores.sh, "cargo test --quiet --release -p {package} {target...} {filter}");
        run.args(["--", "--nocapture"]).run().with_context(|| format!("row `{}`", self.name))
    }
}

/// The same answers with and without overflow checks.
fn arithmetic(chores: &Chores) -> Result<()> {
    println!("--- arithmetic");
    let answers = |profile: &[&str]| -> Result<String> {
        let run =
            cmd!(chores.sh, "cargo test --quiet {profile...} -p granule-laws --test arithmetic");
        let text = run.args(["--", "--nocapture"]).read()?;
        let line = text.lines().find_map(|line| Some(&line[line.find("arithmetic: ")?..]));
        Ok(line.context("the test of arithmetic printed no digest")?.to_string())
    };
    let (debug, release) = (answers(&[])?, answers(&["--release"])?);
    println!("debug:   {debug}\nrelease: {release}");
    if debug != release {
        bail!("debug and release builds answer differently");
    }
    Ok(())
}

/// What must not compile does not, for the reason that stands beside it. The compiler compares the
/// codes of errors only where unstable features are allowed, hence `RUSTC_BOOTSTRAP`.
fn types(chores: &Chores) -> Result<()> {
    println!("--- types");
    let _unstable = chores.sh.push_env("RUSTC_BOOTSTRAP", "1");
    let target = chores.target.join("types");
    let run = cmd!(chores.sh, "cargo test --quiet --doc -p granule --target-dir {target} proofs");
    Ok(run.run()?)
}
