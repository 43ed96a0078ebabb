//! The lab's second half: Linux under QEMU, with granule's programs for user space in it.
//!
//! | file | subject |
//! | --- | --- |
//! | [`rows`] | which machines there are, and what is done in each |
//! | [`kernel`] | Debian's kernel, unpacked; and one with iommufd, built |
//! | [`initramfs`] | what the kernel starts: the guest of `lab/linux`, and all it needs |

mod initramfs;
mod kernel;
mod rows;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::verdict::Verdict;
use super::{Run, disk, qemu};
use crate::Chores;
pub(super) use rows::Interface;
use rows::Row;

/// How long a row may take. It needs about 20 s on a machine with nothing else to do.
const LIMIT: Duration = Duration::from_secs(600);

/// The machine, before the devices of a row. With `-icount` the guest's time goes by its instructions:
/// a busy host does not make its timers late, which Linux takes for broken ones, and waiting takes no
/// time.
const MACHINE: &[&str] = &[
    "-accel",
    "tcg",
    "-icount",
    "shift=2,sleep=off",
    "-cpu",
    "max",
    "-smp",
    "1",
    "-m",
    "512",
    "-M",
    "q35,kernel-irqchip=split",
    "-nodefaults",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-no-reboot",
];

/// What every row tells its kernel. Messages of the kernel would cut the guest's lines: the guest
/// reads them by `dmesg`.
const APPEND: &str = "console=ttyS0 panic=-1 quiet loglevel=1 intel_iommu=on";

/// What `--broken` breaks in the guest, and the step that has to notice.
const SABOTAGES: &[(&str, &str)] = &[("skip-unmap", "late-dma"), ("flip-bit", "dma")];

/// Runs the rows with these names, or all, over an interface of the kernel's. `broken`: steps with
/// something broken in them, which has to be noticed.
pub(super) fn run(
    chores: &Chores,
    interface: Interface,
    names: &[String],
    broken: bool,
) -> Result<()> {
    let rows = rows::select(interface, names)?;
    qemu::check(Machine::X86)?;
    let folder = chores.target.join("lab/linux");
    fs::create_dir_all(&folder)?;
    let kernel = kernel::get(chores, interface, &folder)?;
    let initramfs = folder.join(format!("{}.cpio", interface.name()));
    fs::write(&initramfs, initramfs::make(chores, &kernel, &folder)?)?;
    println!("kernel: {}", kernel.about);
    let lab = Lab { interface, kernel: kernel.image, initramfs, folder };
    if broken { lab.run_broken(&rows) } else { lab.run_rows(&rows) }
}

/// What is booted.
struct Lab {
    interface: Interface,
    kernel: PathBuf,
    initramfs: PathBuf,
    folder: PathBuf,
}

impl Lab {
    fn run_rows(&self, rows: &[&Row]) -> Result<()> {
        let mut failed = 0;
        let mut sums = (0, 0);
        println!("{:16} {:>7} {:>7}  {:>6}  machine", "row", "passed", "failed", "time");
        for row in rows {
            let run = self.boot(row, &row.steps(self.interface), None)?;
            let of_run = run.verdict.sums.unwrap_or_default();
            println!(
                "{:16} {:7} {:7}  {:4.1} s  {}",
                row.name, of_run.passed, of_run.failed, run.seconds, row.about
            );
            sums = (sums.0 + of_run.passed, sums.1 + of_run.failed);
            if !run.verdict.is_pass() {
                failed += 1;
                run.explain();
            }
        }
        println!("{} passed, {} failed", sums.0, sums.1);
        if failed > 0 {
            bail!("{failed} of {} row(s) failed over {}", rows.len(), self.interface.name());
        }
        Ok(())
    }

    /// The steps that notice what is broken, in the rows that have them.
    fn run_broken(&self, rows: &[&Row]) -> Result<()> {
        let mut missed = 0;
        println!("{:16} {:16} noticed by", "row", "broken");
        let has = |row: &&&Row, step: &str| row.steps(self.interface).contains(&step);
        for (sabotage, step) in SABOTAGES {
            for row in rows.iter().filter(|row| has(row, step)) {
                let run = self.boot(row, &[*step], Some(sabotage))?;
                let failures = &run.verdict.failures;
                let first = failures.first().map_or("", String::as_str);
                println!("{:16} {sabotage:16} {} checks: {first}", row.name, failures.len());
                if !run.verdict.is_caught() {
                    missed += 1;
                    run.explain();
                }
            }
        }
        if missed > 0 {
            bail!("{missed} thing(s) broken on purpose went unnoticed, or ended the run early");
        }
        println!("everything broken on purpose was noticed");
        Ok(())
    }

    fn boot(&self, row: &Row, steps: &[&str], sabotage: Option<&str>) -> Result<Run> {
        let begin = Instant::now();
        let broken = sabotage.map(|sabotage| format!(".{sabotage}")).unwrap_or_default();
        let name = format!("{}-{}{broken}", self.interface.name(), row.name);
        let image = self.folder.join(format!("{name}.img"));
        disk::fill(&image)?;
        let mut line = format!(
            "{APPEND} granule.interface={} granule.steps={}",
            self.interface.name(),
            steps.join(",")
        );
        if let Some(sabotage) = sabotage {
            line.push_str(&format!(" granule.break={sabotage}"));
        }
        let output = qemu::run(self.emulator(row, &image, &line), LIMIT)?;
        let log = self.folder.join(format!("{name}.log"));
        fs::write(&log, &output.text).with_context(|| log.display().to_string())?;
        // The guest turns the machine off.
        let mut verdict = Verdict::of(&output, 0);
        verdict.require(&output, steps);
        Ok(Run { verdict, seconds: begin.elapsed().as_secs_f64(), log })
    }

    fn emulator(&self, row: &Row, image: &Path, line: &str) -> Command {
        let mut emulator = Command::new(Machine::X86.emulator());
        emulator.args(MACHINE).args(row.iommu).args(row.devices);
        if row.devices.iter().any(|word| word.contains("drive=disk")) {
            emulator.args(["-drive", &qemu::drive(image)]);
        }
        let (kernel, initramfs) = (&self.kernel, &self.initramfs);
        emulator.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs).args(["-append", line]);
        emulator
    }
}
