//! `granule share`: one buffer, several devices, one contiguous range each.
//!
//! ```text
//!   select ── who ──► machine ── RAM, IOMMUs, devices ──► attach ── domains ──► Plan ──► Shared
//!                        ▲                                                                 │
//!                     firmware (what it left in locked streams)         verify ◄───────────┘
//!                                                                         │
//!                                                     report, svg, dump ◄─┘
//! ```

mod attach;
mod explain;
mod firmware;
mod machine;
mod report;
mod select;
mod svg;
mod tables;
mod verify;

use granule::addr::Access;
use granule::share::{Plan, Solved, Windows};
use granule_board::Board;

use crate::args::ShareArgs;
use crate::error::CliError;
use crate::output::Staged;
use crate::{board, output};
use attach::Party;
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
    let mut report = Report::new(board, &bench, &parties, &solved, &shared)?;
    report.verified = verify::mapped(&bench, &parties, &shared)?;
    if let Some(file) = &files.dump {
        bench.machine.ram().write_image(file.path())?;
    }
    shared.free()?;
    verify::unmapped(&parties, &mut report)?;
    let explanation = if args.explain {
        explain::explain(&solved, args.cpu_page, args.same_iova)
    } else {
        String::new()
    };
    drop((solved, parties));
    verify::nothing_left(&bench)?;

    if let Some(file) = &mut files.svg {
        file.write(&svg::draw(&report))?;
    }
    files.commit()?;
    Ok(if args.json { report.json(&explanation) } else { report.text(args, &explanation) })
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

fn check_outputs(args: &ShareArgs) -> Result<(), CliError> {
    match (&args.svg, &args.dump) {
        (Some(svg), Some(dump)) if svg == dump => {
            Err(CliError::Usage { message: "--svg and --dump name the same file".into() })
        }
        _ => Ok(()),
    }
}

/// The output files, not yet in place.
struct Files {
    svg: Option<Staged>,
    dump: Option<Staged>,
}

impl Files {
    fn stage(args: &ShareArgs) -> Result<Self, CliError> {
        let stage =
            |path: &Option<std::path::PathBuf>| path.as_deref().map(Staged::new).transpose();
        Ok(Self { svg: stage(&args.svg)?, dump: stage(&args.dump)? })
    }

    fn commit(self) -> Result<(), CliError> {
        [self.svg, self.dump].into_iter().flatten().try_for_each(output::Staged::commit)
    }
}
