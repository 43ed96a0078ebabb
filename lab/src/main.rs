//! The lab's image: boots on a bare machine, finds its IOMMU and two `edu` devices, and runs the same
//! checks on every kind of IOMMU. See `README.md`.
#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod console;

mod arch;
mod disk;
mod edu;
mod heap;
mod pci;
mod platform;
mod player;
mod ram;
mod report;
mod rig;
mod rigs;
mod runtime;
mod scenario;

use arch::Boot;
use edu::Edu;
use report::Report;
use rig::{Failure, Sabotage};
use rigs::Given;

/// Where every machine's entry ends up: memory is mapped one to one, the console works.
fn main(boot: &Boot) -> ! {
    heap::init(boot);
    platform::init(boot);
    println!("lab: {} on {}", boot.command_line, arch::NAME);
    let mut report = Report::default();
    if let Err(error) = run(boot, &mut report) {
        report.broken("the row is set up", &error);
    }
    report.finish()
}

fn run(boot: &Boot, report: &mut Report) -> Result<(), Failure> {
    let sabotage = option(boot, "break").and_then(Sabotage::named);
    let bus = pci::Bus::new(boot);
    for function in bus.functions() {
        println!("pci {function}");
    }
    let row = option(boot, "row").unwrap_or_default();
    if let Some(iommu) = row.strip_prefix("disk-") {
        return rigs::run_disk(iommu, boot, &bus, report);
    }
    let mut edus = bus.find(edu::ID).filter_map(Edu::new);
    let (Some(first), Some(second)) = (edus.next(), edus.next()) else {
        return Err(ram::failure("the machine does not have two edu devices"));
    };
    let edus = [first, second];
    rigs::run(row, Given { boot, bus: &bus, edus: &edus, sabotage, report })
}

/// The value behind `name=` in the command line.
fn option(boot: &Boot, name: &str) -> Option<&'static str> {
    let mut words = boot.command_line.split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
