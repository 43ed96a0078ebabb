//! The machine's devices, as `/sys` has them, and the drivers that hold them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Failure, shell};

const DEVICES: &str = "/sys/bus/pci/devices";

/// QEMU's device that copies.
const EDU: (u32, u32) = (0x1234, 0x11e8);

/// The class of an NVMe disk.
const NVME: u32 = 0x01_0802;

/// A device on PCI.
#[derive(Clone, Debug)]
pub(crate) struct Pci {
    /// Its address, as in `0000:01:00.0`.
    pub(crate) address: String,
}

impl Pci {
    fn folder(&self) -> PathBuf {
        Path::new(DEVICES).join(&self.address)
    }

    fn number(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.folder().join(name)).ok()?;
        u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    }

    fn link(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.folder().join(name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// The number of its IOMMU group.
    pub(crate) fn group(&self) -> Option<String> {
        self.link("iommu_group")
    }

    /// The driver that holds it.
    pub(crate) fn driver(&self) -> Option<String> {
        self.link("driver")
    }

    /// Gives it to `vfio-pci`, unless that has it.
    pub(crate) fn give_to_vfio(&self) -> Result<(), Failure> {
        let folder = self.folder();
        if self.driver().as_deref() == Some("vfio-pci") {
            return Ok(());
        }
        if self.driver().is_some() {
            fs::write(folder.join("driver/unbind"), &self.address)?;
        }
        fs::write(folder.join("driver_override"), "vfio-pci")?;
        fs::write("/sys/bus/pci/drivers_probe", &self.address)?;
        match self.driver().as_deref() {
            Some("vfio-pci") => Ok(()),
            other => Err(format!("{} has driver {other:?}, not vfio-pci", self.address).into()),
        }
    }

    /// The nodes of `/dev/vfio` through which it is opened: its group's and its own, as far as they
    /// are there.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let group = self.group().map(|group| format!("/dev/vfio/{group}"));
        let own = fs::read_dir(self.folder().join("vfio-dev")).into_iter().flatten().flatten();
        let own =
            own.map(|entry| format!("/dev/vfio/devices/{}", entry.file_name().to_string_lossy()));
        group.into_iter().chain(own).filter(|node| Path::new(node).exists()).collect()
    }
}

/// The devices that the steps are about.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Devices that copy, each with a group of its own, or without one.
    pub(crate) edus: Vec<Pci>,
    /// Devices that copy, in one group.
    pub(crate) together: Vec<Pci>,
    /// The disk.
    pub(crate) nvme: Option<Pci>,
}

impl Machine {
    /// Looks for them.
    pub(crate) fn find() -> Result<Self, Failure> {
        let mut all = Vec::new();
        for entry in fs::read_dir(DEVICES)? {
            all.push(Pci { address: entry?.file_name().to_string_lossy().into_owned() });
        }
        all.sort_by(|a, b| a.address.cmp(&b.address));
        let is_edu = |pci: &&Pci| pci.number("vendor").zip(pci.number("device")) == Some(EDU);
        let edus: Vec<Pci> = all.iter().filter(is_edu).cloned().collect();
        let shares = |pci: &Pci| {
            let same = edus.iter().filter(|other| other.group() == pci.group());
            pci.group().is_some() && same.count() > 1
        };
        let (together, edus) = edus.iter().cloned().partition(shares);
        let nvme = all.iter().find(|pci| pci.number("class") == Some(NVME)).cloned();
        Ok(Self { edus, together, nvme })
    }

    /// The first two devices that copy.
    pub(crate) fn pair(&self) -> Result<[&Pci; 2], Failure> {
        match self.edus.as_slice() {
            [first, second, ..] => Ok([first, second]),
            _ => Err(format!("the machine does not have two edu devices: {self:?}").into()),
        }
    }

    /// The disk.
    pub(crate) fn disk(&self) -> Result<&Pci, Failure> {
        self.nvme.as_ref().ok_or_else(|| "the machine has no NVMe disk".into())
    }
}

/// Loads VFIO, where it is not part of the kernel.
pub(crate) fn load_vfio() -> Result<(), Failure> {
    if Path::new("/sys/bus/pci/drivers/vfio-pci").is_dir() {
        return Ok(());
    }
    for name in ["irqbypass", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci"] {
        shell::must(&format!("insmod /modules/{name}.ko"))?;
    }
    Ok(())
}
