//! A machine's `/sys`, `/proc` and `/dev`, as far as this crate looks at them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use granule_linux::Host;
use tempfile::TempDir;

pub(crate) struct Machine {
    folder: TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn host(&self) -> Host {
        Host::at(self.folder.path())
    }

    fn path(&self, below: &str) -> PathBuf {
        let path = self.folder.path().join(below);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        path
    }

    pub(crate) fn file(&self, below: &str, text: &str) -> &Self {
        fs::write(self.path(below), text).expect("written");
        self
    }

    fn link(&self, below: &str, target: &str) {
        symlink(target, self.path(below)).expect("linked");
    }

    /// A PCI function of this class.
    pub(crate) fn device(&self, address: &str, class: u32) -> &Self {
        let folder = format!("sys/bus/pci/devices/{address}");
        self.file(&format!("{folder}/class"), &format!("{class:#08x}\n"));
        self.file(&format!("{folder}/vendor"), "0x1234\n");
        self.file(&format!("{folder}/device"), "0x11e8\n")
    }

    pub(crate) fn driver(&self, address: &str, driver: &str) -> &Self {
        let target = format!("../../drivers/{driver}");
        self.link(&format!("sys/bus/pci/devices/{address}/driver"), &target);
        self
    }

    pub(crate) fn group(&self, number: u32, addresses: &[&str]) -> &Self {
        let folder = format!("sys/kernel/iommu_groups/{number}");
        for address in addresses {
            let target = format!("../../../../kernel/iommu_groups/{number}");
            self.link(&format!("sys/bus/pci/devices/{address}/iommu_group"), &target);
            self.file(&format!("{folder}/devices/{address}"), "");
        }
        self.file(&format!("{folder}/type"), "DMA-FQ\n");
        self.file(
            &format!("{folder}/reserved_regions"),
            "0x00000000fee00000 0x00000000feefffff msi\n",
        )
    }

    /// Intel's IOMMU, as QEMU has it, before these devices.
    pub(crate) fn intel(&self, addresses: &[&str]) -> &Self {
        self.file("sys/class/iommu/dmar0/intel-iommu/cap", "d2008c222f0606\n");
        for address in addresses {
            self.link(
                &format!("sys/bus/pci/devices/{address}/iommu"),
                "../../../virtual/iommu/dmar0",
            );
        }
        self
    }
}
