//! Finding QEMU, and running it with a time-out.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::machine::{EVERY, Machine};
use super::rows::{Row, Sabotage};
use crate::Unavailable;

/// The oldest version that emulates all that the lab uses.
const OLDEST: u32 = 10;

/// How long a row may take. It needs about a second.
const LIMIT: Duration = Duration::from_secs(30);

/// Two devices that copy; addresses of less than 64 bits would be cut off silently.
const EDUS: &[&str] =
    &["-device", "edu,dma_mask=0xffffffffffffffff", "-device", "edu,dma_mask=0xffffffffffffffff"];

/// What a run left.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// What the guest printed, and what the emulator did.
    pub(super) text: String,
    /// The emulator's exit code; `None` if it was ended.
    pub(super) code: Option<i32>,
    /// Whether it was ended because it took too long.
    pub(super) timed_out: bool,
}

/// Whether the machine's emulator is there and new enough.
pub(super) fn check(machine: Machine) -> Result<()> {
    let emulator = machine.emulator();
    let missing = |found: &str| {
        let package = machine.package();
        anyhow!(
            "the lab needs {emulator} {OLDEST} or newer, {found}: \
             install {package} (Debian 12 has it in bookworm-backports, later ones as it is)"
        )
        .context(Unavailable)
    };
    let Ok(output) = Command::new(emulator).arg("--version").output() else {
        return Err(missing("which is not installed"));
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match major(&text) {
        Some(version) if version >= OLDEST => Ok(()),
        Some(version) => Err(missing(&format!("and version {version} is installed"))),
        None => bail!("`{emulator} --version` says {text:?}, which names no version"),
    }
}

/// The first number behind the word `version`.
fn major(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("version ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Runs a row's image until it ends or its time is over.
pub(super) fn boot(
    row: &Row,
    image: &Path,
    disk: Option<&Path>,
    sabotage: Option<Sabotage>,
) -> Result<Output> {
    let machine = row.machine;
    let mut line = format!("row={}", row.name);
    if let Some(sabotage) = sabotage {
        line.push_str(&format!(" break={}", sabotage.name()));
    }
    let mut emulator = Command::new(machine.emulator());
    emulator
        .args(EVERY)
        .args(machine.arguments())
        .args(row.iommu)
        .args(devices(disk))
        .arg("-kernel")
        .arg(image)
        .args(["-append", &line]);
    run(emulator, LIMIT)
}

/// Runs an emulator until it ends or its time is over.
pub(super) fn run(mut emulator: Command, limit: Duration) -> Result<Output> {
    let name = emulator.get_program().to_string_lossy().into_owned();
    let mut child = emulator
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let printed = collect(child.stdout.take());
    let complaints = collect(child.stderr.take());
    let (code, timed_out) = wait(&mut child, limit)?;
    let mut text = printed.join().unwrap_or_default();
    let complaints = complaints.join().unwrap_or_default();
    if !complaints.is_empty() {
        text.push_str(&format!("--- {name}: {complaints}"));
    }
    Ok(Output { text, code, timed_out })
}

/// The devices that do DMA: a disk, or else two that copy.
fn devices(disk: Option<&Path>) -> Vec<String> {
    let Some(disk) = disk else {
        return EDUS.iter().map(ToString::to_string).collect();
    };
    let device = "virtio-blk-pci,drive=disk,iommu_platform=on,disable-legacy=on".to_string();
    vec!["-drive".to_string(), drive(disk), "-device".to_string(), device]
}

/// What makes a file the content of a device with `drive=disk`.
pub(super) fn drive(file: &Path) -> String {
    // A comma in a path is doubled.
    let file = file.display().to_string().replace(',', ",,");
    format!("if=none,id=disk,format=raw,file={file}")
}

/// Reads a stream to its end in a thread of its own.
fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is kept.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The exit code, and whether the time was over.
fn wait(child: &mut Child, limit: Duration) -> Result<(Option<i32>, bool)> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status.code(), false));
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok((None, true));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(major("QEMU emulator version 7.2.22"), Some(7));
        assert_eq!(major("no emulator"), None);
    }
}
