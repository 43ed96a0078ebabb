//! What must be so before a device can be opened: each "no" with its reason and its remedy, before the
//! kernel is asked, whose answers are numbers.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use granule::mem::Platform;

use crate::sysfs::Sysfs;
use crate::{Backend, Bdf, Error, UserMemory};

/// What is known of a device that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) device: Bdf,
    pub(crate) group: u32,
}

/// The line of the kernel's log that says why a device was left without a group.
pub(crate) fn large_granule(line: &str) -> bool {
    line.contains("larger than system page size")
}

/// Checks everything that can be told without opening the device.
pub(crate) fn check(sysfs: &Sysfs, device: Bdf, backend: Backend) -> Result<Candidate, Error> {
    if !sysfs.device(device).exists() {
        return Err(Error::NoDevice { device });
    }
    if sysfs.is_bridge(device) {
        return Err(Error::Bridge { device });
    }
    let group = sysfs.group(device).ok_or_else(|| no_group(sysfs, device))?;
    let driver = sysfs.driver(device);
    if driver.as_deref() != Some("vfio-pci") {
        // Without the module, the commands that rebind would fail.
        module(sysfs, backend)?;
        return Err(Error::Driver { device, driver });
    }
    let others = in_the_way(sysfs, device, group);
    if !others.is_empty() {
        return Err(Error::GroupNotViable { device, group, others });
    }
    match backend {
        Backend::Vfio => {
            reachable(sysfs, "dev/vfio/vfio", |path| Error::NoVfio { path })?;
            let path = format!("dev/vfio/{group}");
            reachable(sysfs, &path, |path| Error::NoVfio { path })?;
        }
        Backend::Iommufd => {
            reachable(sysfs, "dev/iommu", |path| Error::NoIommufd { path })?;
            let name = sysfs.cdev(device).ok_or(Error::NoCdev { device })?;
            reachable(sysfs, &format!("dev/vfio/devices/{name}"), |_| Error::NoCdev { device })?;
        }
    }
    Ok(Candidate { device, group })
}

/// Whether the kernel has the interface at all.
pub(crate) fn module(sysfs: &Sysfs, backend: Backend) -> Result<(), Error> {
    match backend {
        Backend::Vfio => reachable(sysfs, "dev/vfio/vfio", |path| Error::NoVfio { path }),
        Backend::Iommufd => reachable(sysfs, "dev/iommu", |path| Error::NoIommufd { path }),
    }
}

pub(crate) fn no_group(sysfs: &Sysfs, device: Bdf) -> Error {
    let iommus = sysfs.iommus();
    let log = sysfs.log(large_granule);
    if iommus.is_empty() && log.is_empty() {
        return Error::NoIommu { device };
    }
    let iommus = if iommus.is_empty() { "an IOMMU".into() } else { iommus.join(", ") };
    let log = log.first().map_or_else(String::new, |line| format!(". The kernel's log: {line}"));
    let cpu_page = UserMemory::new().cpu_page();
    Error::NotTranslated { device, iommus, cpu_page, log }
}

/// The other devices of a group that a driver has which does its own DMA.
fn in_the_way(sysfs: &Sysfs, device: Bdf, group: u32) -> Vec<(Bdf, String)> {
    let others = sysfs.members(group).into_iter().filter(|other| *other != device);
    let driven = others.filter_map(|other| Some((other, sysfs.driver(other)?)));
    let harmless = ["vfio-pci", "pci-stub", "pcieport", "shpchp"];
    driven
        .filter(|(other, driver)| !harmless.contains(&driver.as_str()) && !sysfs.is_bridge(*other))
        .collect()
}

/// Whether a device file is there and may be opened. On another machine's files, only whether it is
/// there.
fn reachable(
    sysfs: &Sysfs,
    below: &str,
    missing: impl FnOnce(PathBuf) -> Error,
) -> Result<(), Error> {
    let path = sysfs.path(below);
    let shown = Path::new("/").join(below);
    if !path.exists() {
        return Err(missing(shown));
    }
    if may_open(&path) { Ok(()) } else { Err(Error::Permission { path: shown }) }
}

/// Whether permissions allow the file to be opened. A group's file is not opened for that: it admits one
/// user at a time.
pub(crate) fn may_open(path: &Path) -> bool {
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    rustix::fs::access(path, access).is_ok()
}

/// Whether a file that admits any number of users can be opened.
pub(crate) fn opens(path: &Path) -> Result<(), ErrorKind> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(|_| ()).map_err(|error| error.kind())
}
