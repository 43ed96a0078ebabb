//! Runs the fuzzing targets of `fuzz/`, several side by side, and says what they tried and found.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::{Chores, Options, Unavailable};

/// The folder of the targets, from the project's root. It is no member of the workspace.
const FOLDER: &str = "fuzz";

/// Its manifest, from the project's root.
pub(crate) const MANIFEST: &str = "fuzz/Cargo.toml";

/// A target's limit of memory, in megabytes, and of seconds for one input.
const LIMITS: [&str; 2] = ["-rss_limit_mb=2560", "-timeout=60"];

/// Runs the targets that are named, or all.
pub(crate) fn run(chores: &Chores, options: &Options) -> Result<()> {
    let seconds = options.number("seconds", 60)?;
    let cores = thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let jobs = usize::try_from(options.number("jobs", cores as u64)?)?;
    if seconds == 0 || jobs == 0 {
        bail!("--seconds and --jobs begin at 1");
    }
    let targets = targets(chores, &options.words)?;
    let bench = Bench {
        programs: build(chores)?,
        source: chores.root.join(FOLDER),
        work: chores.target.join(FOLDER).join("work"),
        seconds,
    };
    println!("{} targets, {seconds} s each, {jobs} side by side\n", targets.len());
    let reports = side_by_side(&bench, &targets, jobs)?;
    println!("target      seconds      CPU   executions  coverage  features  memory  result");
    for report in &reports {
        println!("{}", report.line());
    }
    let found: Vec<_> = reports.iter().filter(|report| !report.passed).collect();
    for report in &found {
        report.explain(&bench);
    }
    match found.len() {
        0 => Ok(()),
        count => bail!("{count} target(s) found something"),
    }
}

/// Where targets run, and how long.
struct Bench {
    /// The folder with the programs.
    programs: PathBuf,
    /// The folder with corpora and dictionaries.
    source: PathBuf,
    /// Where what a run makes goes: into the build folder, never into the project.
    work: PathBuf,
    seconds: u64,
}

/// The targets, by the files they are written in.
fn targets(chores: &Chores, wanted: &[String]) -> Result<Vec<String>> {
    let files = crate::files::under(&chores.root.join(FOLDER).join("targets"), "rs")?;
    let stems = files.iter().filter_map(|file| file.file_stem());
    let mut known: Vec<_> = stems.map(|stem| stem.to_string_lossy().into_owned()).collect();
    known.sort();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("there is no target `{unknown}`; there are {}", known.join(", "));
    }
    known.retain(|name| wanted.is_empty() || wanted.contains(name));
    Ok(known)
}

/// Builds the targets; the folder with the programs comes back.
///
/// Without a sanitizer: what is read from outside is read by safe code, and two minutes of building are
/// spared. `cargo fuzz run` adds one.
///
/// Instrumentation is not stable yet. `RUSTC_BOOTSTRAP` has any toolchain accept it, so that the one
/// that everything else is built with will do.
fn build(chores: &Chores) -> Result<PathBuf> {
    let sh = &chores.sh;
    if let Err(error) = cmd!(sh, "cargo fuzz --version").quiet().ignore_stderr().read() {
        let advice = "cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`";
        return Err(anyhow::Error::from(error).context(Unavailable).context(advice));
    }
    share_lock_file(chores)?;
    let target_dir = chores.target.join(FOLDER);
    cmd!(sh, "cargo fuzz build --sanitizer none --fuzz-dir {FOLDER} --target-dir {target_dir}")
        .env("RUSTC_BOOTSTRAP", "1")
        .run()?;
    let host = cmd!(sh, "rustc -vV").read()?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(target_dir.join(host.context("rustc does not name its host")?).join("release"))
}

/// The same versions as everywhere else; what is needed here alone, cargo adds.
fn share_lock_file(chores: &Chores) -> Result<()> {
    Ok(chores.sh.copy_file("Cargo.lock", Path::new(FOLDER).join("Cargo.lock"))?)
}

pub(crate) fn clippy(chores: &Chores) -> Result<()> {
    share_lock_file(chores)?;
    let target_dir = &chores.target;
    let command =
        cmd!(chores.sh, "cargo clippy --manifest-path {MANIFEST} --target-dir {target_dir}");
    Ok(command.args(["--", "-D", "warnings"]).run()?)
}

fn side_by_side(bench: &Bench, targets: &[String], jobs: usize) -> Result<Vec<Report>> {
    let waiting: Mutex<VecDeque<&String>> = Mutex::new(targets.iter().collect());
    let work = || -> Result<Vec<Report>> {
        let mut reports = Vec::new();
        loop {
            let next = waiting.lock().ok().and_then(|mut waiting| waiting.pop_front());
            let Some(target) = next else { return Ok(reports) };
            let report = one(bench, target)?;
            println!("{target}: {}", if report.passed { "done" } else { "FOUND SOMETHING" });
            reports.push(report);
        }
    };
    let mut all = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let reports = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
            all.extend(reports?);
        }
        Ok(())
    })?;
    all.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(all)
}

/// What one target did.
#[derive(Debug)]
struct Report {
    target: String,
    passed: bool,
    wall: Duration,
    log: PathBuf,
    said: Said,
}

fn one(bench: &Bench, target: &str) -> Result<Report> {
    let Bench { programs, source, work, seconds } = bench;
    let (corpus, artifacts) = (work.join("corpus").join(target), work.join("artifacts"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let log = work.join(format!("{target}.log"));
    let file = File::create(&log)?;
    let dictionary = source.join("dictionaries").join(format!("{target}.dict"));
    // The shell says how much CPU time its child took.
    let mut command = Command::new("sh");
    command.args(["-c", r#""$@"; status=$?; times >&2; exit $status"#, "sh"]);
    command.arg(programs.join(target)).args(LIMITS);
    command.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(&corpus);
    let kept = source.join("corpus").join(target);
    if kept.exists() {
        command.arg(kept);
    }
    let begun = Instant::now();
    let status = command.stdout(file.try_clone()?).stderr(file).status()?;
    let wall = begun.elapsed();
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let said = Said::read(&text);
    Ok(Report { target: target.into(), passed: status.success(), wall, log, said })
}

/// The figures that a target prints.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    executions: u64,
    coverage: u64,
    features: u64,
    memory: u64,
    cpu: String,
}

impl Said {
    fn read(log: &str) -> Self {
        let mut said = Self { cpu: "?".into(), ..Self::default() };
        let number = |text: &str| text.trim().parse().unwrap_or(0);
        for line in log.lines() {
            if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                said.executions = number(count);
            } else if let Some(size) = line.strip_prefix("stat::peak_rss_mb:") {
                said.memory = number(size);
            }
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            for pair in words.windows(2) {
                match pair[0] {
                    "cov:" => said.coverage = number(pair[1]),
                    "ft:" => said.features = number(pair[1]),
                    _ => {}
                }
            }
        }
        // `times` prints the shell's own times, and then its children's: user and system.
        if let Some(last) = log.lines().last().filter(|line| line.contains('m')) {
            said.cpu = last.split_ascii_whitespace().next().unwrap_or("?").into();
        }
        said
    }
}

impl Report {
    fn line(&self) -> String {
        let Said { executions, coverage, features, memory, cpu } = &self.said;
        let result = if self.passed { "ok" } else { "FOUND SOMETHING" };
        format!(
            "{:10} {:8.0} {cpu:>8} {executions:12} {coverage:9} {features:9} {memory:4} MB  {result}",
            self.target,
            self.wall.as_secs_f64(),
        )
    }

    /// The end of what the target said, and how to have it again.
    fn explain(&self, bench: &Bench) {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        println!("\n{}: the end of {}:", self.target, self.log.display());
        lines.iter().skip(lines.len().saturating_sub(60)).for_each(|line| println!("  {line}"));
        println!("again: {} FILE", bench.programs.join(&self.target).display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_last_line_that_has_them() {
        let log = "#2\tINITED cov: 12 ft: 13 corp: 1/1b\n#9\tNEW    cov: 14 ft: 15 corp: 2/3b\n\
                   stat::number_of_executed_units: 99\nstat::peak_rss_mb:              77\n\
                   0m0.001s 0m0.002s\n1m5.120s 0m0.400s\n";
        let said =
            Said { executions: 99, coverage: 14, features: 15, memory: 77, cpu: "1m5.120s".into() };
        assert_eq!(Said::read(log), said);
        assert_eq!(Said::read("").executions, 0);
    }
}
