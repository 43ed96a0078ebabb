//! `granule record`: the steps that record a trace for `granule replay`, shown or performed.

use std::io;
use std::path::{self, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use granule_replay::record::{self, RecordError, Recorded};

use crate::args::RecordArgs;
use crate::error::CliError;
use crate::interrupt;
use crate::output::{self, Staged};
use crate::text;

/// How soon Ctrl-C is noticed.
const BLINK: Duration = Duration::from_millis(50);

/// Runs the command; what to print comes back.
pub(crate) fn run(args: &RecordArgs) -> Result<String, CliError> {
    let wrap = |error: io::Error| CliError::Write { path: args.output.clone(), error };
    // The steps go to another folder first.
    let output = path::absolute(&args.output).map_err(wrap)?;
    if args.run { perform(args, &output) } else { Ok(script(args, &output)) }
}

fn script(args: &RecordArgs, output: &Path) -> String {
    let steps = record::script(&quoted(output), args.seconds);
    format!(
        "# As root, on Linux 6.12 or later:\n{steps}\n# or, with perf:\n# {}\n",
        record::PERF_COMMAND
    )
}

/// The script puts the name between single quotes, where only these need care.
fn quoted(path: &Path) -> PathBuf {
    path.display().to_string().replace('\'', r"'\''").into()
}

fn perform(args: &RecordArgs, output: &Path) -> Result<String, CliError> {
    let file = Staged::new(output)?;
    let stop = interrupt::watch()?;
    let workload = || {
        output::complain(&format!("recording for {} s; Ctrl-C ends it early\n", args.seconds));
        let ends = Instant::now() + Duration::from_secs(args.seconds);
        while Instant::now() < ends && !interrupt::happened(&stop) {
            thread::sleep(BLINK);
        }
    };
    let recorded = record::run(file.path(), workload).map_err(|error| match error {
        RecordError::Copy { cause, .. } => CliError::Write { path: output.into(), error: cause },
        error => error.into(),
    })?;
    file.commit()?;
    let early = if interrupt::happened(&stop) { " until interrupted" } else { "" };
    Ok(said(recorded, early, output))
}

fn said(recorded: Recorded, early: &str, output: &Path) -> String {
    let Recorded { bytes, dma_events, lost, .. } = recorded;
    let events = text::count(usize::try_from(dma_events).unwrap_or(usize::MAX), "DMA event");
    let mut said =
        format!("recorded {events} ({}){early} to {}\n", text::size(bytes), output.display());
    if lost > 0 {
        said.push_str(&format!("{lost} more did not fit the buffer: record for a shorter time\n"));
    }
    said.push_str(&match dma_events {
        0 => "no device used the DMA API: was there work for one? Devices of a virtual machine \
              often bypass it\n"
            .into(),
        _ => format!("next: granule replay '{}'\n", quoted(output).display()),
    });
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_recording_is_said_to_be_one() {
        let text = said(Recorded::default(), "", Path::new("a"));
        assert!(text.starts_with("recorded 0 DMA events") && text.contains("no device"), "{text}");
        assert!(!text.contains("next:") && !text.contains("did not fit"), "{text}");
    }

    #[test]
    fn a_quote_does_not_end_the_name() {
        let name = quoted(Path::new("/tmp/tom's.txt"));
        let script = record::script(&name, 1);
        assert!(script.contains(r"cat trace > '/tmp/tom'\''s.txt'"), "{script}");
    }
}
