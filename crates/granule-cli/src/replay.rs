//! `granule replay`: a recorded DMA trace, performed at several granules.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use granule::addr::Granule;
use granule_replay::results::{Results, Stopped};
use granule_replay::{Input, OnProgress, Options, ReplayError, Untrusted, replay, report};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::ReplayArgs;
use crate::error::CliError;
use crate::figures;
use crate::interrupt;
use crate::output::{self, Staged};

/// What the built-in trace is called.
const SAMPLE: &str = "the built-in sample";

/// Runs the command; what to print comes back.
pub(crate) fn run(args: &ReplayArgs) -> Result<String, CliError> {
    if let Some(path) = &args.report {
        // Found before the work if it can't be written; nothing is left of the attempt.
        drop(Staged::new(path)?);
    }
    let source = source(args.trace.as_deref());
    let input = match &args.trace {
        None => Input::sample()?,
        Some(path) => Input::open(path)?,
    };
    let cancel = interrupt::watch()?;
    let bar = bar(&input);
    let result = replay(input, options(args, &bar, cancel.clone()));
    bar.finish_and_clear();
    let results = result.map_err(|error| interrupted_early(error, &cancel))?;
    check_names(args, &results)?;
    if let Some(path) = &args.report {
        let mut file = Staged::new(path)?;
        file.write(&report::html(&results, &source))?;
        file.commit()?;
    }
    if args.json {
        return Ok(output::json(&results));
    }
    Ok(figures::text(&results, &source, args.report.as_deref()))
}

fn source(trace: Option<&Path>) -> String {
    match trace {
        None => SAMPLE.into(),
        Some(path) if path.as_os_str() == "-" => "standard input".into(),
        Some(path) => path.display().to_string(),
    }
}

fn options(args: &ReplayArgs, bar: &ProgressBar, cancel: Arc<AtomicBool>) -> Options {
    Options {
        granules: granules(args),
        format: args.format,
        cpu_page: Some(args.cpu_page),
        invalidate: args.invalidate,
        untrusted: untrusted(&args.untrusted),
        device: args.device.clone(),
        limit: args.limit,
        progress: progress(bar),
        cancel: Some(cancel),
        ..Options::default()
    }
}

/// Without a word on granules or formats, all are compared.
fn granules(args: &ReplayArgs) -> Vec<Granule> {
    match args.granule {
        Some(granule) => vec![granule],
        None if args.compare.is_empty() && args.format.is_none() => {
            vec![Granule::K4, Granule::K16, Granule::K64]
        }
        None => args.compare.clone(),
    }
}

fn untrusted(names: &[String]) -> Untrusted {
    if names.is_empty() {
        Untrusted::None
    } else if names.iter().any(|name| name == "all") {
        Untrusted::All
    } else {
        Untrusted::Devices(names.iter().cloned().collect())
    }
}

/// A name that no device has would distrust nobody, in silence. A device may still come in a trace
/// that was not read to its end.
fn check_names(args: &ReplayArgs, results: &Results) -> Result<(), CliError> {
    if results.stopped != Stopped::Complete {
        return Ok(());
    }
    let present: BTreeSet<&str> =
        results.trace.devices.iter().map(|device| device.name.as_str()).collect();
    let absent = args.untrusted.iter().find(|name| *name != "all" && !present.contains(&***name));
    match absent {
        None => Ok(()),
        Some(name) => Err(CliError::UntrustedAbsent {
            device: name.clone(),
            present: present.into_iter().collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Nothing was measured before Ctrl-C: that is no fault of the trace.
fn interrupted_early(error: ReplayError, cancel: &AtomicBool) -> CliError {
    match error {
        ReplayError::NoDma { lines, .. } | ReplayError::Read { line: lines, .. }
            if interrupt::happened(cancel) =>
        {
            CliError::Interrupted { lines }
        }
        error => error.into(),
    }
}

/// A bar while the file is being read.
const BAR: &str = "{wide_bar} {percent:>3} %  {msg}  {eta} left";
/// Where there is no end to measure by.
const COUNTER: &str = "{spinner} {msg}  {elapsed}";

/// A bar if the size is known, else a counter; hidden unless standard error is a terminal.
fn bar(input: &Input) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let template = if input.total().is_some() { BAR } else { COUNTER };
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(input.total(), target).with_style(style)
}

fn progress(bar: &ProgressBar) -> Option<OnProgress> {
    if bar.is_hidden() {
        return None;
    }
    let bar = bar.clone();
    Some(Box::new(move |progress| {
        bar.set_message(format!("{} DMA events", progress.dma_events));
        bar.set_position(progress.read);
        bar.tick();
    }))
}
