//! The command `granule`: boards, page tables, who can share which memory with whom, and what a
//! recorded workload costs.
//!
//! | module | what it is |
//! | --- | --- |
//! | `args`, `size` | the command line |
//! | `error` | why it refuses, with a kind for programs and a message for people |
//! | `text`, `output` | addresses and sizes as people read them; files that are whole or not there |
//! | `board`, `walk`, `share`, `replay`, `record`, `doctor`, `soak`, `man` | the commands |
//! | `live` | `share` on this machine's devices |
//! | `figures` | what a replay measured, as tables |
//! | `interrupt` | Ctrl-C |
//! | [`offline`] | commands on values instead of files, for the fuzzing targets |
//!
//! It is a library so that `fuzz/` reaches what the command does with what it is given. Programs are
//! better served by the crates below it: no name here is promised to stay.

mod args;
mod board;
#[cfg(target_os = "linux")]
mod doctor;
mod error;
mod figures;
mod interrupt;
#[cfg(target_os = "linux")]
mod live;
mod man;
pub mod offline;
mod output;
mod record;
mod replay;
mod share;
mod size;
mod soak;
mod text;
mod walk;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use clap_complete::Shell;

use crate::args::{Cli, Command};
use crate::error::CliError;

/// What the command does: reads the command line, prints the answer, says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.command.json();
    let result = match &cli.command {
        Command::Share(args) if args.live.is_empty() => share::run(args),
        Command::Share(args) => live_share(args),
        Command::Doctor(args) => examine(args),
        Command::Board(args) => board::run(args),
        Command::Walk(args) => walk::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Record(args) => record::run(args),
        Command::Soak(args) => soak::run(args),
        Command::Completions(args) => Ok(completions(args.shell)),
        Command::Man(args) => man::run(args),
    };
    match result.and_then(|text| output::print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error, json),
    }
}

#[cfg(target_os = "linux")]
fn live_share(args: &args::ShareArgs) -> Result<String, CliError> {
    live::run(args)
}

#[cfg(target_os = "linux")]
fn examine(args: &args::DoctorArgs) -> Result<String, CliError> {
    Ok(doctor::run(args))
}

#[cfg(not(target_os = "linux"))]
fn live_share(_: &args::ShareArgs) -> Result<String, CliError> {
    Err(CliError::NotLinux { what: "sharing between this machine's devices" })
}

#[cfg(not(target_os = "linux"))]
fn examine(_: &args::DoctorArgs) -> Result<String, CliError> {
    Err(CliError::NotLinux { what: "examining this machine" })
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "granule", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Exit status 0 for help and version, else 2.
fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !asked && std::env::args_os().any(|arg| arg == "--json") {
        let rendered = error.render().to_string();
        // What follows the first empty line is advice for people.
        let message = rendered.trim().split("\n\n").next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        return refuse(&CliError::Usage { message: message.into() }, true);
    }
    // Nobody is left to hear that standard error is closed.
    let _ = error.print();
    if asked { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn refuse(error: &CliError, json: bool) -> ExitCode {
    if json {
        let _ = output::print(&error.json());
    } else {
        output::complain(&format!("error: {error}\n"));
    }
    ExitCode::from(error.status())
}
