//! The steps that record a trace which can be replayed, as data, and a function that performs them.
//!
//! The recording has a tracing instance of its own (a folder below `instances`, with a buffer and
//! switches of its own): whatever else is being traced goes on, and nothing is left when it is removed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The same recording with perf, in one line.
pub const PERF_COMMAND: &str =
    "perf record -a -e 'dma:*' -e 'iommu:map' sleep 10 && perf script > trace.txt";

/// Where tracefs is mounted.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Where it was mounted before Linux 4.1.
const OLD_TRACEFS: &str = "/sys/kernel/debug/tracing";

/// One write to a file of a tracing instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The file, below the instance.
    pub path: &'static str,
    /// What is written to it.
    pub value: &'static str,
    /// Whether the recording is worth nothing without it.
    pub required: bool,
    /// What it is for.
    pub why: &'static str,
}

const fn step(path: &'static str, value: &'static str, required: bool, why: &'static str) -> Step {
    Step { path, value, required, why }
}

/// What is done in a new instance before the workload runs.
pub const BEGIN: &[Step] = &[
    step("tracing_on", "0", true, "not yet"),
    step("trace_clock", "mono", false, "one clock for all CPUs"),
    step("buffer_size_kb", "65536", false, "64 MiB a CPU, so that nothing is lost"),
    step("events/dma/enable", "1", true, "the DMA API's events (Linux 6.12 and later)"),
    step("events/iommu/map/enable", "1", false, "physical runs: gives list entries their lengths"),
    step("tracing_on", "1", true, "begin"),
];

/// What is done after it, before the trace is copied.
pub const END: &[Step] = &[step("tracing_on", "0", true, "stop")];

/// What was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// The size of the trace in bytes.
    pub bytes: u64,
    /// How many events of the DMA API are in it.
    pub dma_events: u64,
    /// How many events did not fit the buffer.
    pub lost: u64,
}

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// There is no tracefs.
    #[error("no tracefs at {TRACEFS}: as root, `mount -t tracefs nodev {TRACEFS}`")]
    NoTracefs,
    /// The running kernel has no DMA events.
    #[error(
        "this kernel has no events/dma: it is older than Linux 6.12, or was built without CONFIG_TRACING"
    )]
    NoEvents,
    /// There can be no instance for the recording.
    #[error("{}: no tracing instance can be made: {cause}; recording needs root", path.display())]
    Instance {
        /// Its folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The instance of the recording is still there.
    #[error("{}: the tracing instance is still there: {cause}; remove it with rmdir", path.display())]
    Left {
        /// Its folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A step failed.
    #[error("{}: {cause} ({why})", path.display())]
    Step {
        /// The file.
        path: PathBuf,
        /// What the step was for.
        why: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// The trace could not be copied.
    #[error("{}: {cause}", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// The steps as a shell script that a person can read and run.
pub fn script(output: &Path, seconds: u64) -> String {
    let note = |command: String, why: &str| format!("{command:<44} # {why}\n");
    let instance = note(
        "mkdir instances/granule && cd instances/granule || exit 1".into(),
        "a buffer of its own: other tracing goes on",
    );
    let wait = note(
        format!("sleep {seconds}"),
        "the workload; echo '== NAME' > trace_marker begins a phase of it",
    );
    let copy = note(format!("cat trace > '{}'", output.display()), "the recording");
    let remove = note("cd ../.. && rmdir instances/granule".into(), "nothing is left");
    let begin: String = BEGIN.iter().map(Step::line).collect();
    let end: String = END.iter().map(Step::line).collect();
    format!("cd {TRACEFS} || exit 1\n{instance}{begin}{wait}{end}{copy}{remove}")
}

impl Step {
    /// The step in a shell, with its reason.
    fn line(&self) -> String {
        let or = if self.required { "" } else { " || true" };
        let command = format!("echo {} > {}{or}", self.value, self.path);
        format!("{command:<44} # {}\n", self.why)
    }
}

/// Performs the steps: begins, lets `workload` run, stops, and copies the trace to `output`.
///
/// Recording is stopped and its instance removed whatever happens after it began.
///
/// # Errors
/// [`RecordError`].
pub fn run(output: &Path, workload: impl FnOnce()) -> Result<Recorded, RecordError> {
    run_in(&find_tracefs()?, output, workload)
}

fn find_tracefs() -> Result<PathBuf, RecordError> {
    let candidates = [TRACEFS, OLD_TRACEFS].map(PathBuf::from);
    let found = candidates.into_iter().find(|path| path.join("tracing_on").exists());
    found.ok_or(RecordError::NoTracefs)
}

/// The same on a tracefs that is mounted elsewhere.
///
/// # Errors
/// [`RecordError`].
pub fn run_in(
    tracefs: &Path,
    output: &Path,
    workload: impl FnOnce(),
) -> Result<Recorded, RecordError> {
    record(tracefs, output, workload, &KERNEL)
}

/// How an instance comes and goes. The kernel fills the folder, and empties it.
struct Instances {
    make: fn(&Path) -> io::Result<()>,
    remove: fn(&Path) -> io::Result<()>,
}

const KERNEL: Instances =
    Instances { make: |path| fs::create_dir(path), remove: |path| fs::remove_dir(path) };

fn record(
    tracefs: &Path,
    output: &Path,
    workload: impl FnOnce(),
    instances: &Instances,
) -> Result<Recorded, RecordError> {
    if !tracefs.join("events/dma").exists() {
        return Err(RecordError::NoEvents);
    }
    // The file first: an unwritable one is found before anything is changed.
    let failed = |cause| RecordError::Copy { path: output.to_owned(), cause };
    let mut copy = File::create(output).map_err(failed)?;
    let instance = tracefs.join(format!("instances/granule-{}", std::process::id()));
    (instances.make)(&instance)
        .map_err(|cause| RecordError::Instance { path: instance.clone(), cause })?;
    let recorded = perform(&instance, BEGIN).and_then(|()| {
        workload();
        perform(&instance, END)?;
        take(&instance.join("trace"), &mut copy).map_err(failed)
    });
    let removed = (instances.remove)(&instance);
    let recorded = recorded?;
    removed.map_err(|cause| RecordError::Left { path: instance, cause })?;
    Ok(recorded)
}

/// Copies the trace, and counts what is in it.
fn take(trace: &Path, copy: &mut File) -> io::Result<Recorded> {
    let mut lines = BufReader::with_capacity(1 << 20, File::open(trace)?);
    let (mut recorded, mut line) = (Recorded::default(), Vec::new());
    let mut copy = io::BufWriter::with_capacity(1 << 20, copy);
    while lines.read_until(b'\n', &mut line)? != 0 {
        recorded.bytes += line.len() as u64;
        recorded.dma_events += u64::from(line.windows(6).any(|part| part == b": dma_"));
        recorded.lost += lost(&line);
        copy.write_all(&line)?;
        line.clear();
    }
    copy.flush()?;
    Ok(recorded)
}

/// What the trace's head says: `# entries-in-buffer/entries-written: 12/15   #P:2`.
fn lost(line: &[u8]) -> u64 {
    let text = core::str::from_utf8(line).ok();
    let rest = text.and_then(|text| text.strip_prefix("# entries-in-buffer/entries-written: "));
    let numbers = rest.and_then(|rest| rest.split_whitespace().next()?.split_once('/'));
    let Some((kept, written)) = numbers else { return 0 };
    match (kept.parse::<u64>(), written.parse::<u64>()) {
        (Ok(kept), Ok(written)) => written.saturating_sub(kept),
        _ => 0,
    }
}

fn perform(instance: &Path, steps: &[Step]) -> Result<(), RecordError> {
    for step in steps {
        let path = instance.join(step.path);
        match fs::write(&path, step.value) {
            Err(cause) if step.required => {
                return Err(RecordError::Step { path, why: step.why, cause });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like tracefs.
    fn tracefs(name: &str, with_dma: bool) -> PathBuf {
        let root =
            std::env::temp_dir().join(format!("granule-record-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("instances")).expect("a folder");
        if with_dma {
            fs::create_dir_all(root.join("events/dma")).expect("a folder");
        }
        root
    }

    /// What the kernel does, as far as a recording sees it.
    const FAKE: Instances = Instances {
        make: |path| {
            fs::create_dir_all(path.join("events/dma"))?;
            fs::create_dir_all(path.join("events/iommu/map"))
        },
        remove: |path| fs::remove_dir_all(path),
    };

    fn instance(root: &Path) -> PathBuf {
        root.join(format!("instances/granule-{}", std::process::id()))
    }

    #[test]
    fn the_steps_are_performed_in_order_and_nothing_is_left() {
        let root = tracefs("order", true);
        let (output, instance) = (root.join("copy"), instance(&root));
        let text = "# entries-in-buffer/entries-written: 2/7   #P:2\n\
                    \x20t-1 [000] ..... 1.0: dma_alloc: d\n t-1 [000] ..... 1.1: map: x\n";
        let workload = || {
            let read = |path: &str| fs::read_to_string(instance.join(path)).expect("written");
            assert_eq!((&*read("tracing_on"), &*read("events/dma/enable")), ("1", "1"));
            assert_eq!((&*read("events/iommu/map/enable"), &*read("trace_clock")), ("1", "mono"));
            fs::write(instance.join("trace"), text).expect("writable");
        };
        let recorded = record(&root, &output, workload, &FAKE).expect("recorded");
        let expected = Recorded { bytes: text.len() as u64, dma_events: 1, lost: 5 };
        assert_eq!(recorded, expected);
        assert_eq!(fs::read_to_string(&output).expect("written"), text);
        assert!(!instance.exists());
        fs::remove_dir_all(root).expect("removable");
    }

    #[test]
    fn an_error_is_in_words_and_leaves_nothing() {
        let root = tracefs("errors", true);
        let output = root.join("copy");
        let never = || panic!("nothing to record");
        let bare = Instances { make: |path| fs::create_dir(path), ..FAKE };
        let error = record(&root, &output, never, &bare).expect_err("no events");
        assert!(matches!(error, RecordError::Step { .. }) && error.to_string().contains("events"));
        assert!(!instance(&root).exists());
        let denied = Instances { make: |_| Err(io::ErrorKind::PermissionDenied.into()), ..FAKE };
        let error = record(&root, &output, never, &denied).expect_err("denied").to_string();
        assert!(error.contains("permission denied; recording needs root"), "{error}");
        let stuck = Instances { remove: |_| Err(io::ErrorKind::ResourceBusy.into()), ..FAKE };
        let trace = instance(&root).join("trace");
        let workload = || fs::write(&trace, "").expect("writable");
        let error = record(&root, &output, workload, &stuck).expect_err("stuck").to_string();
        assert!(error.contains("is still there") && error.contains("rmdir"), "{error}");
        fs::remove_dir_all(root).expect("removable");
    }

    #[test]
    fn a_kernel_without_the_events_is_left_alone() {
        let root = tracefs("old", false);
        let result = run_in(&root, &root.join("copy"), || panic!("nothing to record"));
        assert!(matches!(result, Err(RecordError::NoEvents)));
        assert!(!instance(&root).exists() && !root.join("copy").exists());
        fs::remove_dir_all(root).expect("removable");
    }

    #[test]
    fn the_script_says_every_step() {
        let text = script(Path::new("/tmp/trace.txt"), 10);
        for step in BEGIN.iter().chain(END) {
            assert!(text.contains(&format!("echo {} > {}", step.value, step.path)), "{text}");
        }
        let place = |part: &str| text.find(part).expect("in the script");
        assert!(
            place("mkdir ") < place("echo 1 > tracing_on")
                && place("sleep 10") < place("cat trace")
        );
        assert!(place("cat trace") < place("rmdir "));
    }
}
