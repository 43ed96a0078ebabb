//! `granule soak`: a simulated board under load and faults for as long as asked for.

mod load;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::SoakArgs;
use crate::error::CliError;
use crate::interrupt;
use load::{Counts, Settings};

/// Runs the command; the summary comes back.
pub(crate) fn run(args: &SoakArgs) -> Result<String, CliError> {
    let cancel = interrupt::watch()?;
    let (begin, length) = (Instant::now(), Duration::from_secs(args.seconds));
    let bar = bar(args.seconds);
    let mut sum = Counts::default();
    let (mut rounds, mut early, mut late) = (0u64, 0, 0);
    while rounds == 0 || (begin.elapsed() < length && !interrupt::happened(&cancel)) {
        let seed = args.seed.wrapping_add(rounds);
        // Every other round the hardware always answers: nothing at all may then be lost.
        let answers = seed % 2 == 0;
        let settings =
            Settings { seed, threads: args.threads, fault_rate: args.fault_rate, answers };
        let counts = load::round(&settings)?;
        if rounds < 8 {
            early = early.max(counts.peak);
        } else {
            late = late.max(counts.peak);
        }
        sum.add(&counts);
        rounds += 1;
        bar.set_position(begin.elapsed().as_secs().min(args.seconds));
        bar.set_message(format!("{} operations, {} faults", sum.operations, sum.injected));
    }
    bar.finish_and_clear();
    let stopped = interrupt::happened(&cancel);
    Ok(summary(args, &sum, rounds, begin.elapsed(), (early, late.max(early)), stopped))
}

fn bar(seconds: u64) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(seconds), target).with_style(style)
}

fn summary(
    args: &SoakArgs,
    sum: &Counts,
    rounds: u64,
    took: Duration,
    (early, late): (u64, u64),
    stopped: bool,
) -> String {
    let end = if stopped { "stopped by Ctrl-C" } else { "as long as asked for" };
    let next = args.seed.wrapping_add(rounds);
    format!(
        "soak: {rounds} rounds in {:.1} s on {} threads, seeds {} to {}; {end}\n\
         operations       {}\n\
         faults injected  {} ({} calls failed, all survived)\n\
         recoveries       {}\n\
         bytes verified   {}: the first wrong one ends a run with an error\n\
         late DMA         {} attempts, all blocked\n\
         leaks            {} B where the hardware answered; {} B kept out of use where it did not\n\
         peak memory      {early} B in the first 8 rounds, {late} B in all\n\
         go on with       granule soak --seed {next} --threads {} --fault-rate {}\n",
        took.as_secs_f64(),
        args.threads,
        args.seed,
        next.wrapping_sub(1),
        sum.operations,
        sum.injected,
        sum.failed,
        sum.recoveries,
        sum.verified,
        sum.late,
        sum.leaked,
        sum.kept,
        args.threads,
        args.fault_rate,
    )
}
