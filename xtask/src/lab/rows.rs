//! The lab's rows: one kind of IOMMU each, as QEMU emulates it.

use anyhow::{Result, bail};

use super::machine::Machine;

/// A row of the lab.
#[derive(Debug)]
pub(super) struct Row {
    /// Its name: what the guest is told as `row=…`.
    pub(super) name: &'static str,
    /// What is emulated, for people.
    pub(super) about: &'static str,
    /// The machine.
    pub(super) machine: Machine,
    /// What QEMU is told about the IOMMU, before the other devices.
    pub(super) iommu: &'static [&'static str],
    /// Whether entries stay cached after their removal until they are invalidated. Where removal
    /// and invalidation are one request, a driver cannot forget the second.
    pub(super) caches: bool,
}

/// A way to break the driver, which the guest is told as `break=…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// No invalidation of a mapping reaches the hardware.
    SkipInvalidate,
    /// The rights to read and to write are swapped.
    SwapRights,
}

impl Sabotage {
    pub(super) const ALL: [Self; 2] = [Self::SkipInvalidate, Self::SwapRights];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::SkipInvalidate => "skip-invalidate",
            Self::SwapRights => "swap-rights",
        }
    }
}

/// All rows, in the order of the table.
pub(super) static ROWS: &[Row] = &[
    Row {
        name: "virtio-4k",
        about: "virtio-iommu, granule 4K",
        machine: Machine::X86,
        iommu: &["-device", "virtio-iommu-pci,granule=4k"],
        caches: false,
    },
    Row {
        name: "virtio-16k",
        about: "virtio-iommu, granule 16K",
        machine: Machine::X86,
        iommu: &["-device", "virtio-iommu-pci,granule=16k"],
        caches: false,
    },
    Row {
        name: "virtio-64k",
        about: "virtio-iommu, granule 64K",
        machine: Machine::X86,
        iommu: &["-device", "virtio-iommu-pci,granule=64k"],
        caches: false,
    },
    Row {
        name: "vtd",
        about: "Intel VT-d, second stage, 4K with 2M leaves",
        machine: Machine::X86,
        iommu: &["-device", "intel-iommu,intremap=off"],
        caches: true,
    },
    Row {
        name: "amdvi-4k",
        about: "AMD-Vi, 4K pages",
        machine: Machine::X86,
        iommu: &["-device", "amd-iommu,pt=off"],
        caches: true,
    },
    Row {
        name: "amdvi-16k",
        about: "AMD-Vi, 16K pages",
        machine: Machine::X86,
        iommu: &["-device", "amd-iommu,pt=off"],
        caches: true,
    },
    Row {
        name: "smmuv3-4k",
        about: "Arm SMMUv3, stage 1, granule 4K",
        machine: Machine::AArch64,
        iommu: &[],
        caches: true,
    },
    Row {
        name: "smmuv3-16k",
        about: "Arm SMMUv3, stage 1, granule 16K",
        machine: Machine::AArch64,
        iommu: &[],
        caches: true,
    },
    Row {
        name: "smmuv3-64k",
        about: "Arm SMMUv3, stage 1, granule 64K",
        machine: Machine::AArch64,
        iommu: &[],
        caches: true,
    },
    Row {
        name: "riscv",
        about: "RISC-V IOMMU, Sv39, 4K with 2M leaves",
        machine: Machine::RiscV64,
        iommu: &["-device", "riscv-iommu-pci"],
        caches: true,
    },
    Row {
        name: "disk-virtio-64k",
        about: "a virtio disk behind virtio-iommu, granule 64K",
        machine: Machine::X86,
        iommu: &["-device", "virtio-iommu-pci,granule=64k"],
        caches: false,
    },
    Row {
        name: "disk-vtd",
        about: "a virtio disk behind Intel VT-d",
        machine: Machine::X86,
        iommu: &["-device", "intel-iommu,intremap=off"],
        caches: true,
    },
];

impl Row {
    /// Whether the row drives a disk instead of running the scenario.
    pub(super) fn has_disk(&self) -> bool {
        self.name.starts_with("disk-")
    }

    /// Whether the checks have to notice this broken driver.
    pub(super) fn notices(&self, sabotage: Sabotage) -> bool {
        match sabotage {
            Sabotage::SkipInvalidate => self.caches,
            Sabotage::SwapRights => true,
        }
    }
}

/// The rows with these names, or all.
pub(super) fn select(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let find = |name: &String| match ROWS.iter().find(|row| row.name == name) {
        Some(row) => Ok(row),
        None => {
            let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
            bail!("the lab has no row `{name}`; its rows: {}, linux, iommufd", known.join(", "))
        }
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_name_and_names_are_unique() {
        for row in ROWS {
            let found = select(&[row.name.to_string()]).unwrap();
            assert!(std::ptr::eq(found[0], row), "{}", row.name);
        }
        assert_eq!(select(&[]).unwrap().len(), ROWS.len());
        assert!(select(&["vtd".into(), "vdt".into()]).is_err());
    }

    #[test]
    fn each_way_to_break_a_driver_is_noticed_somewhere() {
        for sabotage in Sabotage::ALL {
            assert!(ROWS.iter().any(|row| row.notices(sabotage)), "{}", sabotage.name());
        }
    }
}
