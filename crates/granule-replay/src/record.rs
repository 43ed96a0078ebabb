//! The steps that record a trace which can be replayed, as data, and a function that performs them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The same recording with perf, in one line.
pub const PERF_COMMAND: &str =
    "perf record -a -e 'dma:*' -e 'iommu:map' sleep 10 && perf script > trace.txt";

/// Where tracefs is mounted.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Where it was mounted before Linux 4.1.
const OLD_TRACEFS: &str = "/sys/kernel/debug/tracing";

/// One write to a file of tracefs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The file, below tracefs.
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

/// What is done before the workload runs.
pub const BEGIN: &[Step] = &[
    step("tracing_on", "0", true, "stop whatever is being traced"),
    step("current_tracer", "nop", true, "events only, no function tracer"),
    step("events/enable", "0", true, "no other events"),
    step("trace", "", true, "empty the buffer"),
    step("trace_clock", "mono", false, "one clock for all CPUs"),
    step("buffer_size_kb", "65536", false, "64 MiB a CPU, so that nothing is lost"),
    step("events/dma/enable", "1", true, "the DMA API's events (Linux 6.12 and later)"),
    step("events/iommu/map/enable", "1", false, "physical runs: gives list entries their lengths"),
    step("tracing_on", "1", true, "begin"),
];

/// What is done after it.
pub const END: &[Step] = &[
    step("tracing_on", "0", true, "stop"),
    step("events/dma/enable", "0", true, "leave the events as they usually are"),
    step("events/iommu/map/enable", "0", false, "the same"),
];

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
    /// A step failed.
    #[error("{}: {cause} ({why}); recording needs root", path.display())]
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
    let wait = note(
        format!("sleep {seconds}"),
        "the workload; echo '== NAME' > trace_marker begins a phase of it",
    );
    let copy = note(format!("cat trace > '{}'", output.display()), "the recording");
    let [stop, rest @ ..] = END else { return String::new() };
    let lines = BEGIN.iter().map(Step::line).chain([wait, stop.line(), copy]);
    let lines = lines.chain(rest.iter().map(Step::line));
    format!("cd {TRACEFS} || exit 1\n{}", lines.collect::<String>())
}

impl Step {
    /// The step in a shell, with its reason.
    fn line(&self) -> String {
        let or = if self.required { "" } else { " || true" };
        let command = match self.value {
            "" => format!("> {}{or}", self.path),
            value => format!("echo {value} > {}{or}", self.path),
        };
        format!("{command:<44} # {}\n", self.why)
    }
}

/// Performs the steps: begins, lets `workload` run, stops, and copies the trace to `output`.
///
/// Recording is stopped whatever happens after it began.
///
/// # Errors
/// [`RecordError`].
pub fn run(output: &Path, workload: impl FnOnce()) -> Result<u64, RecordError> {
    run_in(&find_tracefs()?, output, workload)
}

/// The usual workload of [`run`]: whatever the machine does in this time.
pub fn wait(time: Duration) {
    std::thread::sleep(time);
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
pub fn run_in(tracefs: &Path, output: &Path, workload: impl FnOnce()) -> Result<u64, RecordError> {
    if !tracefs.join("events/dma").exists() {
        return Err(RecordError::NoEvents);
    }
    // The file first: an unwritable one is found before anything is changed.
    let failed = |cause| RecordError::Copy { path: output.to_owned(), cause };
    let mut copy = File::create(output).map_err(failed)?;
    if let Err(error) = perform(tracefs, BEGIN) {
        let _ = perform(tracefs, END);
        return Err(error);
    }
    workload();
    let stopped = perform(tracefs, &END[..1]);
    let copied =
        File::open(tracefs.join("trace")).and_then(|mut trace| io::copy(&mut trace, &mut copy));
    let restored = perform(tracefs, &END[1..]);
    stopped.and(restored)?;
    let bytes = copied.map_err(failed)?;
    copy.flush().map_err(failed)?;
    Ok(bytes)
}

fn perform(tracefs: &Path, steps: &[Step]) -> Result<(), RecordError> {
    for step in steps {
        let path = tracefs.join(step.path);
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
        fs::create_dir_all(root.join("events/iommu/map")).expect("a folder");
        if with_dma {
            fs::create_dir_all(root.join("events/dma")).expect("a folder");
        }
        root
    }

    #[test]
    fn the_steps_are_performed_in_order() {
        let root = tracefs("order", true);
        let output = root.join("copy");
        let read = |path: &str| fs::read_to_string(root.join(path)).expect("written");
        let workload = || {
            assert_eq!((&*read("tracing_on"), &*read("events/dma/enable")), ("1", "1"));
            fs::write(root.join("trace"), "an event").expect("writable");
        };
        assert_eq!(run_in(&root, &output, workload).expect("recorded"), 8);
        assert_eq!((&*read("copy"), &*read("tracing_on")), ("an event", "0"));
        assert_eq!((&*read("events/dma/enable"), &*read("trace_clock")), ("0", "mono"));
        fs::remove_dir_all(root).expect("removable");
    }

    #[test]
    fn a_kernel_without_the_events_is_left_alone() {
        let root = tracefs("old", false);
        let result = run_in(&root, &root.join("copy"), || panic!("nothing to record"));
        assert!(matches!(result, Err(RecordError::NoEvents)));
        assert!(!root.join("tracing_on").exists() && !root.join("copy").exists());
        fs::remove_dir_all(root).expect("removable");
    }

    #[test]
    fn the_script_says_every_step() {
        let text = script(Path::new("/tmp/trace.txt"), 10);
        for step in BEGIN.iter().chain(END) {
            assert!(text.contains(&format!("> {}", step.path)), "{}", step.path);
        }
        let place = |part: &str| text.find(part).expect("in the script");
        assert!(place("sleep 10") < place("cat trace") && place("> trace ") < place("sleep 10"));
    }
}
