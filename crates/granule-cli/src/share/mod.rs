//! `granule share`: one buffer, several devices, one contiguous range each.
//!
//! ```text
//!   select ── who ──► machine ── RAM, IOMMUs, devices ──► attach ── domains ──► Plan ──► Shared
//!                        ▲                                                                 │
//!                     firmware (what it left in locked streams)         verify ◄───────────┘
//!                                                                         │
//!                               report (text, JSON, picture, page), dump ◄─┘
//! ```

mod attach;
mod explain;
mod firmware;
mod machine;
pub(crate) mod report;
mod select;
mod tables;
mod verify;

use std::path::PathBuf;

use granule::addr::Access;
use granule::share::{Plan, Solved, Windows};
use granule_board::Board;

use crate::args::ShareArgs;
use crate::board;
use crate::error::CliError;
use crate::output::Staged;
use attach::Party;
use explain::Explanation;
use machine::Bench;
use report::Report;

/// Runs the command; what to print comes back. Output files are put in place last, when everything
/// else has succeeded.
pub(crate) fn run(args: &ShareArgs) -> Result<String, CliError> {
    check_outputs(args)?;
    let board = board::load(args.board.as_deref())?;
    on_board(&board, args)
}

/// The same on a board that is there already.
pub(crate) fn on_board(board: &Board, args: &ShareArgs) -> Result<String, CliError> {
    let ram = machine::ram(board, &args.memory)?;
    let chosen = select::choose(board, args)?;
    let bench = machine::build(board, &chosen, &ram, args.cpu_page)?;
    let parties = attach::attach(board, &bench, &chosen)?;
    let solved = plan(args, &bench, &parties)?;
    let mut files = Files::stage(args)?;

    let shared = solved.allocate()?;
    let explanation = Explanation::new(&solved, args.cpu_page, args.same_iova);
    let mut report = Report::new(board, &bench, &parties, &solved, &shared, explanation)?;
    report.verified = verify::mapped(&bench, &parties, &shared)?;
    if let Some(file) = &files.dump {
        bench.machine.ram().write_image(file.path())?;
    }
    shared.free()?;
    verify::unmapped(&parties, &mut report)?;
    drop((solved, parties));
    verify::nothing_left(&bench)?;

    files.fill(&report)?;
    files.commit()?;
    Ok(if args.json { report.json(args.explain) } else { report.text(args) })
}

fn plan(args: &ShareArgs, bench: &Bench, parties: &[Party]) -> Result<Solved, CliError> {
    let plan = Plan::new(args.size).guard(true).same_address(args.same_iova);
    let plan = parties.iter().fold(plan, |plan, party| plan.device(&party.device, Access::all()));
    let solved = plan.solve()?;
    let (windows, ram) = (&solved.constraints().windows, Windows::new(bench.ram.iter().copied()));
    if windows.intersection(&ram).is_empty() {
        let devices = solved.parties().iter();
        let limiting = |party: &&granule::share::Party| {
            party.constraints().windows.intersection(&ram).is_empty()
        };
        let names: Vec<_> = devices.filter(limiting).map(|party| party.device().name()).collect();
        let devices =
            if names.is_empty() { "all devices together".into() } else { names.join(", ") };
        return Err(CliError::NoRamInReach { devices, windows: windows.clone(), ram });
    }
    Ok(solved)
}

/// No two outputs may be one file.
fn check_outputs(args: &ShareArgs) -> Result<(), CliError> {
    let named = [("--svg", &args.svg), ("--report", &args.report), ("--dump", &args.dump)];
    for (index, (option, path)) in named.iter().enumerate() {
        let mut others = named.iter().skip(index + 1);
        let same = others.find(|(_, other)| path.is_some() && other == path);
        if let Some((other, _)) = same {
            let message = format!("{option} and {other} name the same file");
            return Err(CliError::Usage { message });
        }
    }
    Ok(())
}

/// The output files, not yet in place.
struct Files {
    svg: Option<Staged>,
    report: Option<Staged>,
    dump: Option<Staged>,
}

impl Files {
    fn stage(args: &ShareArgs) -> Result<Self, CliError> {
        let stage = |path: &Option<PathBuf>| path.as_deref().map(Staged::new).transpose();
        Ok(Self { svg: stage(&args.svg)?, report: stage(&args.report)?, dump: stage(&args.dump)? })
    }

    fn fill(&mut self, report: &Report) -> Result<(), CliError> {
        if let Some(file) = &mut self.svg {
            file.write(&report.svg())?;
        }
        if let Some(file) = &mut self.report {
            file.write(&report.html())?;
        }
        Ok(())
    }

    fn commit(self) -> Result<(), CliError> {
        let files = [self.svg, self.report, self.dump].into_iter().flatten();
        files.into_iter().try_for_each(Staged::commit)
    }
}
