//! The guest of `cargo xtask lab linux`: on a Linux that QEMU runs, it uses the command `granule`, the
//! crate granule-linux and its examples as a user would, and judges each step. See `../README.md`.
#![forbid(unsafe_code)]

mod driver;
mod edu;
mod machine;
mod report;
mod shell;
mod steps;

use std::process::ExitCode;
use std::{env, fs};

use granule_linux::Backend;
use machine::{Machine, Pci};
use report::Report;

/// What ends a step early.
type Failure = Box<dyn std::error::Error>;

/// What a step works with.
struct Guest {
    /// `vfio` or `iommufd`: what commands are told as `--backend`.
    interface: String,
    /// What is broken on purpose.
    sabotage: Option<String>,
    machine: Machine,
    report: Report,
}

impl Guest {
    fn backend(&self) -> Result<Backend, Failure> {
        Ok(self.interface.parse()?)
    }

    /// Whether this is broken on purpose.
    fn breaks(&self, what: &str) -> bool {
        self.sabotage.as_deref() == Some(what)
    }

    /// What runs the small driver: a buffer of so many KiB for these devices.
    fn share_line(&self, devices: &[&Pci], kib: u32) -> String {
        let devices: Vec<_> = devices.iter().map(|pci| pci.address.as_str()).collect();
        format!("granule-lab-linux {} {} {}", devices.join(","), self.interface, kib << 10)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.is_empty() {
        judge();
        return ExitCode::SUCCESS;
    }
    match driver::share(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the steps that the kernel's command line names, and judges each.
fn judge() {
    let mut report = Report::new();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let option = |name: &str| option(&command_line, name);
    let (Some(interface), Some(steps)) = (option("granule.interface"), option("granule.steps"))
    else {
        report.fail("the command line says what to do", &command_line);
        return report.finish();
    };
    let machine = match Machine::find() {
        Ok(machine) => machine,
        Err(error) => {
            report.fail("the machine has its devices", &error);
            return report.finish();
        }
    };
    let sabotage = option("granule.break").map(str::to_string);
    let mut guest = Guest { interface: interface.to_string(), sabotage, machine, report };
    for name in steps.split(',') {
        guest.report.begin(name);
        let done = match steps::named(name) {
            Some(step) => step(&mut guest),
            None => Err("there is no such step".into()),
        };
        if let Err(error) = done {
            guest.report.fail("the step gets to its end", &error);
        }
    }
    guest.report.finish();
}

/// The value behind `name=` in the kernel's command line.
fn option<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = command_line.split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
