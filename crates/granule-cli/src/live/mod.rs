//! `granule share --live`: the main job on this machine's own devices.

mod report;

use std::io::{self, BufRead};
use std::thread;
use std::time::Duration;

use granule::addr::Access;
use granule::dma::DeviceSpec;
use granule::share::{Plan, Solved};
use granule_linux::{Backend, Bdf, Device, Host, Space};

use crate::args::ShareArgs;
use crate::error::CliError;
use crate::output;
use report::Report;

/// Runs the command: the table is printed while the buffer is held; what to print at the end comes
/// back.
pub(crate) fn run(args: &ShareArgs) -> Result<String, CliError> {
    let usage = |message: String| CliError::Usage { message };
    let backend: Backend = args.backend.parse().map_err(usage)?;
    let addresses = addresses(args)?;
    let host = Host::new();
    let devices = open(&host, args, backend, &addresses)?;
    let solved = plan(args, &devices)?;
    // Each container counts what it maps; the address spaces of iommufd share the pages.
    let separate = backend == Backend::Vfio && !args.one_space;
    let times = if separate { devices.len() as u64 } else { 1 };
    host.locked_memory().check(solved.size().saturating_mul(times))?;
    let shared = solved.allocate()?;
    let report = Report::new(args, backend, &devices, &solved, &shared)?;
    output::print(&if args.json { report.json() } else { report.text() })?;
    hold(args)?;
    shared.free()?;
    Ok(if args.json { String::new() } else { report.farewell() })
}

fn addresses(args: &ShareArgs) -> Result<Vec<Bdf>, CliError> {
    let parsed = args.live.iter().map(|text| Ok(text.parse::<Bdf>()?));
    let addresses = parsed.collect::<Result<Vec<_>, CliError>>()?;
    for untrusted in &args.untrusted {
        let named: Bdf = untrusted.parse().map_err(CliError::from)?;
        if !addresses.contains(&named) {
            let shared = args.live.join(", ");
            return Err(CliError::NotShared {
                option: "--untrusted",
                device: untrusted.clone(),
                shared,
            });
        }
    }
    Ok(addresses)
}

fn open(
    host: &Host,
    args: &ShareArgs,
    backend: Backend,
    addresses: &[Bdf],
) -> Result<Vec<Device>, CliError> {
    let untrusted: Vec<Bdf> = args.untrusted.iter().filter_map(|text| text.parse().ok()).collect();
    let mut one: Option<Space> = None;
    let mut devices = Vec::new();
    for address in addresses {
        let space = match &one {
            Some(space) => space.clone(),
            None => host.space(backend),
        };
        if args.one_space {
            one = Some(space.clone());
        }
        let trusted = !untrusted.contains(address);
        let spec = DeviceSpec { trusted, ..DeviceSpec::new(address.to_string()) };
        devices.push(space.device(*address, spec).open()?);
    }
    Ok(devices)
}

fn plan(args: &ShareArgs, devices: &[Device]) -> Result<Solved, CliError> {
    let plan = Plan::new(args.size).guard(true).same_address(args.same_iova);
    let add = |plan: Plan, device: &Device| plan.device(device.dma(), Access::all());
    Ok(devices.iter().fold(plan, add).solve()?)
}

/// Waits for as long as was asked, or for a line, or for the end of the input.
fn hold(args: &ShareArgs) -> Result<(), CliError> {
    match args.seconds {
        Some(seconds) => thread::sleep(Duration::from_secs(seconds)),
        None => {
            if !args.json {
                output::print("held until Enter is pressed\n")?;
            }
            // Input that cannot be read is at its end.
            let _ = io::stdin().lock().read_line(&mut String::new());
        }
    }
    Ok(())
}
