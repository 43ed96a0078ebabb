//! The lab: builds the bare-metal images, boots each under QEMU once a row, and judges what they print.
//!
//! | file | subject |
//! | --- | --- |
//! | [`rows`] | which IOMMUs there are, and what QEMU is told |
//! | [`machine`] | the emulated machines: emulator, image, exit code |
//! | [`image`] | building an image |
//! | [`qemu`] | finding QEMU, running it with a time-out |
//! | [`disk`] | the disk of the rows that have one |
//! | [`verdict`] | what a guest's output means |
//! | [`linux`] | the second half: Linux instead of the image |

mod disk;
mod image;
mod linux;
mod machine;
mod qemu;
mod rows;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::Chores;
use machine::Machine;
use rows::{Row, Sabotage};
use verdict::Verdict;

/// The image's manifest, from the project's root. It is no member of the workspace.
pub(crate) const MANIFEST: &str = "lab/Cargo.toml";

pub(crate) use image::clippy;

/// Runs the rows with these names, or all. `broken`: each with a broken driver, which has to be
/// noticed. `linux` or `iommufd` as the first name: the second half.
pub(crate) fn run(chores: &Chores, names: &[String], broken: bool) -> Result<()> {
    if let Some((interface, names)) = linux::Interface::chosen(names) {
        return linux::run(chores, interface, names, broken);
    }
    let rows = rows::select(names)?;
    let lab = Lab::new(chores, &rows)?;
    if broken { lab.run_broken(&rows) } else { lab.run_rows(&rows) }
}

struct Lab {
    images: BTreeMap<Machine, PathBuf>,
    logs: PathBuf,
}

impl Lab {
    fn new(chores: &Chores, rows: &[&Row]) -> Result<Self> {
        let folder = chores.target.join("lab");
        fs::create_dir_all(&folder)?;
        let mut images = BTreeMap::new();
        let machines: BTreeSet<Machine> = rows.iter().map(|row| row.machine).collect();
        for machine in machines {
            qemu::check(machine)?;
            images.insert(machine, image::build(chores, machine, &folder)?);
        }
        Ok(Self { images, logs: folder })
    }

    fn boot(&self, row: &Row, sabotage: Option<Sabotage>) -> Result<Run> {
        let image = self.images.get(&row.machine).context("a row without an image")?;
        let name = match sabotage {
            Some(sabotage) => format!("{}.{}", row.name, sabotage.name()),
            None => row.name.to_string(),
        };
        let begin = Instant::now();
        let disk = row.has_disk().then(|| self.logs.join(format!("{}.img", row.name)));
        disk.as_deref().map(disk::fill).transpose()?;
        let output = qemu::boot(row, image, disk.as_deref(), sabotage)?;
        let log = self.logs.join(format!("{name}.log"));
        fs::write(&log, &output.text).with_context(|| log.display().to_string())?;
        let seconds = begin.elapsed().as_secs_f64();
        let mut verdict = Verdict::of(&output, row.machine.passed());
        let difference = disk.as_deref().map(disk::compare).transpose()?.flatten();
        verdict.wrong = verdict.wrong.or(difference);
        Ok(Run { verdict, seconds, log })
    }

    fn run_rows(&self, rows: &[&Row]) -> Result<()> {
        let mut failed = 0;
        let begin = Instant::now();
        println!("{:16} {:>7} {:>7}  {:>6}  IOMMU", "row", "passed", "failed", "time");
        for row in rows {
            let run = self.boot(row, None)?;
            let sums = run.verdict.sums.unwrap_or_default();
            println!(
                "{:16} {:7} {:7}  {:4.1} s  {}",
                row.name, sums.passed, sums.failed, run.seconds, row.about
            );
            if !run.verdict.is_pass() {
                failed += 1;
                run.explain();
            }
        }
        let passed = rows.len() - failed;
        println!("{passed} passed, {failed} failed ({:.1} s)", begin.elapsed().as_secs_f64());
        if failed > 0 {
            bail!("{failed} row(s) of the lab failed");
        }
        Ok(())
    }

    /// Each row with each broken driver: the checks have to fail, and the run has to reach its end.
    fn run_broken(&self, rows: &[&Row]) -> Result<()> {
        let mut missed = 0;
        println!("{:16} {:16} noticed by", "row", "driver");
        for row in rows.iter().filter(|row| !row.has_disk()) {
            for sabotage in Sabotage::ALL {
                let run = self.boot(row, Some(sabotage))?;
                let wanted = row.notices(sabotage);
                let caught = run.verdict.is_caught();
                let right = if wanted { caught } else { run.verdict.is_pass() };
                let what = match (wanted, run.verdict.failures.as_slice()) {
                    (false, []) => "does not apply: its UNMAP is its invalidation".to_string(),
                    (_, []) => "nothing".to_string(),
                    (_, [first, rest @ ..]) => {
                        format!("{} checks, the first: {}", rest.len() + 1, check(first))
                    }
                };
                println!("{:16} {:16} {what}", row.name, sabotage.name());
                if !right {
                    missed += 1;
                    run.explain();
                }
            }
        }
        if missed > 0 {
            bail!("{missed} broken driver(s) went unnoticed, or ended the run early");
        }
        println!("every broken driver was noticed");
        Ok(())
    }
}

/// One boot of an image.
struct Run {
    verdict: Verdict,
    seconds: f64,
    log: PathBuf,
}

impl Run {
    fn explain(&self) {
        for line in &self.verdict.failures {
            println!("    {line}");
        }
        if let Some(wrong) = &self.verdict.wrong {
            println!("    {wrong}");
        }
        println!("    all it printed: {}", show(&self.log));
    }
}

/// The check that a failure's line is about: its group and what it says, without the values.
fn check(failure: &str) -> String {
    failure.split(": ").take(2).collect::<Vec<_>>().join(": ")
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
