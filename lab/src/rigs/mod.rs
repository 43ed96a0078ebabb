//! The kinds of IOMMU, one file each: how it is found, and what a domain of it is made of.
//!
//! To add one: a file with a type that implements [`Rig`], and its rows in [`run`].

mod amdvi;
mod riscv;
mod smmuv3;
mod virtio;
mod vtd;

use granule::addr::Granule;
use granule::table::{Lpae4k, Lpae16k, Lpae64k};

use crate::arch::Boot;
use crate::disk;
use crate::edu::Edu;
use crate::pci::Bus;
use crate::ram::failure;
use crate::report::Report;
use crate::rig::{Failure, Rig, Sabotage};
use crate::scenario::Stage;

/// What every row is given.
pub(crate) struct Given<'g> {
    /// What the machine says of itself.
    pub boot: &'g Boot,
    /// Its PCI functions.
    pub bus: &'g Bus,
    /// The devices.
    pub edus: &'g [Edu; 2],
    /// How the driver is broken, if it is.
    pub sabotage: Option<Sabotage>,
    /// Where results go.
    pub report: &'g mut Report,
}

/// Page sizes in bytes.
const K4: u64 = 4 << 10;
const K16: u64 = 16 << 10;
const M2: u64 = 2 << 20;

/// Sets a row's IOMMU up and runs the scenario on it.
pub(crate) fn run(row: &str, given: Given<'_>) -> Result<(), Failure> {
    match row {
        "virtio-4k" => play(&virtio::VirtioRig::new(given.boot, given.bus)?, Granule::K4, given),
        "virtio-16k" => play(&virtio::VirtioRig::new(given.boot, given.bus)?, Granule::K16, given),
        "virtio-64k" => play(&virtio::VirtioRig::new(given.boot, given.bus)?, Granule::K64, given),
        "vtd" => play(&vtd::VtdRig::new(given.boot)?, Granule::K4, given),
        "amdvi-4k" => play(&amdvi::AmdRig::new(given.boot, K4, M2)?, Granule::K4, given),
        "amdvi-16k" => play(&amdvi::AmdRig::new(given.boot, K16, K16)?, Granule::K16, given),
        "smmuv3-4k" => play(&smmuv3::SmmuRig::<Lpae4k>::new(given.boot)?, Granule::K4, given),
        "smmuv3-16k" => play(&smmuv3::SmmuRig::<Lpae16k>::new(given.boot)?, Granule::K16, given),
        "smmuv3-64k" => play(&smmuv3::SmmuRig::<Lpae64k>::new(given.boot)?, Granule::K64, given),
        "riscv" => play(&riscv::RiscvRig::new(given.bus)?, Granule::K4, given),
        _ => Err(failure("the image has no such row")),
    }
}

/// Sets a row's IOMMU up and drives a disk behind it.
pub(crate) fn run_disk(
    iommu: &str,
    boot: &Boot,
    bus: &Bus,
    report: &mut Report,
) -> Result<(), Failure> {
    match iommu {
        "virtio-64k" => disk::run(&virtio::VirtioRig::new(boot, bus)?, boot, bus, report),
        "vtd" => disk::run(&vtd::VtdRig::new(boot)?, boot, bus, report),
        _ => Err(failure("the image has no such row")),
    }
}

fn play<R: Rig>(rig: &R, granule: Granule, given: Given<'_>) -> Result<(), Failure> {
    let Given { edus, sabotage, report, .. } = given;
    Stage { rig, granule, edus, sabotage, report }.run();
    Ok(())
}
