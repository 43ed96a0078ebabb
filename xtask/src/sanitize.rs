//! Tests under AddressSanitizer and ThreadSanitizer: memory errors and data races that a test would not
//! see.
//!
//! Both are unstable options of rustc. `RUSTC_BOOTSTRAP` has any toolchain accept them, so that the one
//! that everything else is built with will do. ThreadSanitizer needs a standard library that is
//! instrumented too, or every lock of it looks like a race: it is built here, from the component
//! `rust-src`.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use xshell::cmd;

use crate::{Chores, Options, Unavailable};

/// A sanitizer: its name, that of its library, and whether the standard library must be built with it.
struct Sanitizer {
    name: &'static str,
    library: &'static str,
    build_std: bool,
    /// The variable with its options, and the name of the option for a file of what is known.
    variable: &'static str,
    /// What is known and wanted: a file of this folder.
    known: &'static str,
    /// Percent of what the tests usually try.
    effort: [u32; 2],
}

/// The folder of the lists of what is known, from the project's root.
const KNOWN: &str = "checks/sanitize";

/// Unoptimised, the simulator would take most of the time; optimised, everything else would take most of
/// it to build.
const FAST_SIMULATOR: &str = "profile.dev.package.granule-sim.opt-level=2";

const SANITIZERS: &[Sanitizer] = &[
    Sanitizer {
        name: "address",
        library: "asan",
        build_std: false,
        variable: "LSAN_OPTIONS",
        known: "leaks.txt",
        effort: [20, 150],
    },
    Sanitizer {
        name: "thread",
        library: "tsan",
        build_std: true,
        variable: "TSAN_OPTIONS",
        known: "races.txt",
        effort: [5, 50],
    },
];

/// Runs the sanitizers that are named, or both.
pub(crate) fn run(chores: &Chores, options: &Options) -> Result<()> {
    let known = |word: &&String| SANITIZERS.iter().any(|one| one.name == **word);
    if let Some(word) = options.words.iter().find(|word| !known(word)) {
        bail!("there is no sanitizer `{word}`; there are `address` and `thread`");
    }
    let wanted = |name: &str| options.words.is_empty() || options.words.iter().any(|w| w == name);
    let mut missing = None;
    for sanitizer in SANITIZERS.iter().filter(|one| wanted(one.name)) {
        println!("--- {} sanitizer", sanitizer.name);
        match sanitizer.run(chores) {
            // The other one may be there.
            Err(error) if error.is::<Unavailable>() => {
                println!("not run: {error:#}");
                missing = Some(error);
            }
            result => result.with_context(|| format!("{} sanitizer", sanitizer.name))?,
        }
    }
    missing.map_or(Ok(()), Err)
}

impl Sanitizer {
    fn run(&self, chores: &Chores) -> Result<()> {
        let sh = &chores.sh;
        let host = cmd!(sh, "rustc -vV").read()?;
        let host = host.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc does not name its host")?;
        self.check(chores, host)?;
        let _unstable = sh.push_env("RUSTC_BOOTSTRAP", "1");
        let _flags = sh.push_env("RUSTFLAGS", format!("-Zsanitizer={}", self.name));
        let known = chores.root.join(KNOWN).join(self.known);
        let _known = sh.push_env(self.variable, format!("suppressions={}", known.display()));
        let target_dir = chores.target.join("sanitize").join(self.name);
        let test = |effort: u32, what: &[&str]| -> Result<()> {
            let _effort = sh.push_env("GRANULE_EFFORT", effort.to_string());
            let std: &[&str] = if self.build_std { &["-Zbuild-std"] } else { &[] };
            let place = cmd!(sh, "cargo test --quiet --target {host} --target-dir {target_dir}");
            Ok(place.args(["--config", FAST_SIMULATOR]).args(std).args(what).run()?)
        };
        let [usual, threads] = self.effort;
        test(usual, &["-p", "granule", "--lib"])?;
        // A buffer whose invalidation failed is never freed, and the tests of the laws see to hundreds of
        // these. What leaks there against the laws, the simulator tells.
        let _leaks = sh.push_env("ASAN_OPTIONS", "detect_leaks=0");
        test(usual, &["-p", "granule-laws", "--lib", "--tests"])?;
        let stress = ["-p", "granule-laws", "--test", "threads", "--", "--nocapture"];
        test(threads, &stress)
    }

    /// Whether the toolchain has what this sanitizer takes.
    fn check(&self, chores: &Chores, host: &str) -> Result<()> {
        let sh = &chores.sh;
        let libraries = PathBuf::from(cmd!(sh, "rustc --print target-libdir").read()?);
        let end = format!("_rt.{}.a", self.library);
        let files = sh.read_dir(&libraries)?;
        let has = files.iter().any(|file| file.to_string_lossy().ends_with(&end));
        if !has {
            let missing = anyhow!("this toolchain has no {} sanitizer for {host}", self.name);
            return Err(missing.context(Unavailable));
        }
        let sysroot = PathBuf::from(cmd!(sh, "rustc --print sysroot").read()?);
        let source = sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml");
        if self.build_std && !source.is_file() {
            let advice = "the source of the standard library is not installed: \
                          `rustup component add rust-src`";
            return Err(anyhow!(advice).context(Unavailable));
        }
        Ok(())
    }
}
