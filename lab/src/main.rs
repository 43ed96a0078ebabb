//! The lab's image: boots on a bare machine, finds its IOMMU and two `edu` devices, and runs the same
//! checks on every kind of IOMMU. See `README.md`.
#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod console;

mod arch;
mod heap;
mod pci;
mod platform;
mod report;
mod runtime;

use arch::Boot;
use report::Report;

/// Where every machine's entry ends up: memory is mapped one to one, the console works.
fn main(boot: &Boot) -> ! {
    heap::init(boot);
    println!("lab: {} on {}", boot.command_line, arch::NAME);
    let mut report = Report::default();
    run(boot, &mut report);
    report.finish()
}

fn run(boot: &Boot, report: &mut Report) {
    let bus = pci::Bus::new(boot);
    for function in bus.functions() {
        println!("pci {function}");
    }
    report.check("the machine has PCI functions", !bus.functions().is_empty(), || "none".into());
}
