//! What cannot work is refused, in words that say why and what to do.

use std::fs;
use std::path::Path;

use crate::machine::{Pci, load_vfio};
use crate::{Failure, Guest, shell};

/// Shares a buffer between these devices.
fn share(guest: &Guest, devices: &[&Pci]) -> Result<shell::Outcome, Failure> {
    shell::run(&guest.share_line(devices, 256))
}

/// Before VFIO's modules are loaded.
pub(super) fn no_modules(guest: &mut Guest) -> Result<(), Failure> {
    let there = Path::new("/dev/vfio/vfio").exists();
    guest.report.check("there is no /dev/vfio yet", !there, || "it is there".into());
    let outcome = share(guest, &guest.machine.pair()?)?;
    outcome.is_refused(
        &mut guest.report,
        "share says which module",
        &["/dev/vfio", "modprobe vfio-pci"],
    );
    load_vfio()
}

/// Debian's kernels have no iommufd.
pub(super) fn no_iommufd(guest: &mut Guest) -> Result<(), Failure> {
    let [first, second] = guest.machine.pair()?;
    let line = format!("granule-lab-linux {},{} iommufd 4096", first.address, second.address);
    first.give_to_vfio()?;
    second.give_to_vfio()?;
    let outcome = shell::run(&line)?;
    outcome.is_refused(
        &mut guest.report,
        "share says what the kernel lacks",
        &["/dev/iommu", "CONFIG_IOMMUFD"],
    );
    Ok(())
}

/// The disk belongs to the kernel's driver. The commands that are printed are then typed, and help.
pub(super) fn other_driver(guest: &mut Guest) -> Result<(), Failure> {
    let disk = guest.machine.disk()?.clone();
    let driver = disk.driver();
    guest
        .report
        .check("nvme has the disk", driver.as_deref() == Some("nvme"), || format!("{driver:?}"));
    let [edu, other] = guest.machine.pair()?.map(Clone::clone);
    edu.give_to_vfio()?;
    other.give_to_vfio()?;
    let outcome = share(guest, &[&edu, &disk])?;
    let words = ["nvme", "vfio-pci", &disk.address, "driver_override", "drivers_probe"];
    outcome.is_refused(&mut guest.report, "share names the driver and the commands", &words);
    let commands: Vec<_> =
        outcome.err.lines().map(str::trim).filter(|line| line.starts_with("echo ")).collect();
    guest.report.check("there are two commands", commands.len() == 2, || outcome.err.clone());
    shell::must(&commands.join(" && "))?;
    let driver = disk.driver();
    let helped = driver.as_deref() == Some("vfio-pci");
    guest.report.check("the commands give the disk to vfio-pci", helped, || format!("{driver:?}"));
    let outcome = share(guest, &[&edu, &disk])?;
    outcome.succeeds(&mut guest.report, "then share works");
    Ok(())
}

/// Two devices that the IOMMU cannot tell apart.
pub(super) fn one_group(guest: &mut Guest) -> Result<(), Failure> {
    let [first, second] = match guest.machine.together.as_slice() {
        [first, second, ..] => [first.clone(), second.clone()],
        _ => return Err("no two devices share a group".into()),
    };
    first.give_to_vfio()?;
    second.give_to_vfio()?;
    let group = first.group().unwrap_or_default();
    let outcome = share(guest, &[&first, &second])?;
    let words = [&format!("group {group}"), &first.address, &second.address];
    outcome.is_refused(
        &mut guest.report,
        "share says which devices share a group",
        &words.map(String::as_str),
    );
    Ok(())
}

/// A container counts mappings, and says so when there are none left.
pub(super) fn mapping_limit(guest: &mut Guest) -> Result<(), Failure> {
    const LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    let before = fs::read_to_string(LIMIT)?;
    fs::write(LIMIT, "0")?;
    let outcome = share(guest, &guest.machine.pair()?);
    fs::write(LIMIT, before.trim())?;
    outcome?.is_refused(&mut guest.report, "share names the limit", &["dma_entry_limit"]);
    Ok(())
}

/// An IOMMU that does not remap interrupts: whoever trusts the device may say so.
pub(super) fn unsafe_interrupts(guest: &mut Guest) -> Result<(), Failure> {
    load_vfio()?;
    let pair = guest.machine.pair()?.map(Clone::clone);
    for pci in &pair {
        pci.give_to_vfio()?;
    }
    let pair = [&pair[0], &pair[1]];
    let outcome = share(guest, &pair)?;
    let words = ["interrupt", "allow_unsafe_interrupts"];
    outcome.is_refused(&mut guest.report, "share says what is unsafe, and what allows it", &words);
    let command = outcome.err.lines().find_map(|line| {
        let at = line.find("echo 1 > ")?;
        let path = line[at + "echo 1 > ".len()..].split_whitespace().next()?;
        Some(format!("echo 1 > {path}"))
    });
    let command = command.ok_or("no command is printed")?;
    shell::must(&command)?;
    let outcome = share(guest, &pair)?;
    outcome.succeeds(&mut guest.report, "the command that is printed helps");
    Ok(())
}

/// An IOMMU whose granule is larger than the CPU's page: Linux gives its devices no group.
pub(super) fn large_granule(guest: &mut Guest) -> Result<(), Failure> {
    load_vfio()?;
    if Path::new("/modules/virtio-iommu.ko").exists() {
        shell::must("insmod /modules/virtio-iommu.ko")?;
    }
    let log = shell::must("dmesg")?;
    let told = log.contains("granule 0x4000 larger than system page size 0x1000");
    guest.report.check("Linux refuses the IOMMU", told, || log.clone());
    let outcome = share(guest, &guest.machine.pair()?)?;
    let words = ["granule", "larger than", "page"];
    outcome.is_refused(&mut guest.report, "share says that Linux cannot express it", &words);
    Ok(())
}

/// A machine without an IOMMU.
pub(super) fn no_iommu(guest: &mut Guest) -> Result<(), Failure> {
    load_vfio()?;
    let outcome = share(guest, &guest.machine.pair()?)?;
    outcome.is_refused(&mut guest.report, "share says that there is none", &["no IOMMU"]);
    Ok(())
}
