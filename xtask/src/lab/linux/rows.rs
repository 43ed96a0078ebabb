//! The machines that Linux is booted on, and the steps that the guest takes in each.

use anyhow::{Result, bail};

/// The interface of the kernel's that is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    /// VFIO's own containers, type 1.
    Vfio,
    /// `/dev/iommu`, and VFIO's character devices.
    Iommufd,
}

impl Interface {
    /// The interface that the first of the words behind `lab` chooses, and the words behind it.
    pub(crate) fn chosen(words: &[String]) -> Option<(Self, &[String])> {
        let (first, rest) = words.split_first()?;
        match first.as_str() {
            "linux" => Some((Self::Vfio, rest)),
            "iommufd" => Some((Self::Iommufd, rest)),
            _ => None,
        }
    }

    /// What it is called here, and in the guest.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Vfio => "vfio",
            Self::Iommufd => "iommufd",
        }
    }
}

/// A machine.
#[derive(Debug)]
pub(super) struct Row {
    /// Its name.
    pub(super) name: &'static str,
    /// What is emulated, for people.
    pub(super) about: &'static str,
    /// What QEMU is told about the IOMMU.
    pub(super) iommu: &'static [&'static str],
    /// What QEMU is told about devices.
    pub(super) devices: &'static [&'static str],
    /// What the guest does, in this order: each step has a function in `lab/linux/src/steps`. A step
    /// may be for one interface only.
    steps: &'static [(&'static str, Option<Interface>)],
}

/// Intel's IOMMU, which remaps interrupts too.
const VTD: &[&str] = &["-device", "intel-iommu,intremap=on"];

/// Two devices that copy, an NVMe disk, and two devices that cannot be told apart by the IOMMU.
const ALL_DEVICES: &[&str] = &[
    "-device",
    "pcie-root-port,id=port1,chassis=1,slot=1",
    "-device",
    "edu,bus=port1,dma_mask=0xffffffffff",
    "-device",
    "pcie-root-port,id=port2,chassis=2,slot=2",
    "-device",
    "edu,bus=port2,dma_mask=0xffffffffff",
    "-device",
    "pcie-root-port,id=port3,chassis=3,slot=3",
    "-device",
    "nvme,bus=port3,drive=disk,serial=granule-lab",
    "-device",
    "pcie-root-port,id=port4,chassis=4,slot=4",
    "-device",
    "pcie-pci-bridge,id=bridge,bus=port4",
    "-device",
    "edu,bus=bridge,addr=1,dma_mask=0xffffffffff",
    "-device",
    "edu,bus=bridge,addr=2,dma_mask=0xffffffffff",
];

/// Two devices that copy.
const TWO_EDUS: &[&str] = &[
    "-device",
    "pcie-root-port,id=port1,chassis=1,slot=1",
    "-device",
    "edu,bus=port1,dma_mask=0xffffffffff",
    "-device",
    "pcie-root-port,id=port2,chassis=2,slot=2",
    "-device",
    "edu,bus=port2,dma_mask=0xffffffffff",
];

const VFIO: Option<Interface> = Some(Interface::Vfio);
const BOTH: Option<Interface> = None;

/// All rows, in the order of the table.
static ROWS: &[Row] = &[
    Row {
        name: "devices",
        about: "Intel VT-d, four edu devices, an NVMe disk",
        iommu: VTD,
        devices: ALL_DEVICES,
        steps: &[
            ("no-modules", VFIO),
            ("no-iommufd", VFIO),
            ("other-driver", BOTH),
            ("one-group", BOTH),
            ("doctor", BOTH),
            ("share", BOTH),
            ("dma", BOTH),
            ("late-dma", BOTH),
            ("nvme", BOTH),
            ("permission", BOTH),
            ("memlock", BOTH),
            ("mapping-limit", VFIO),
        ],
    },
    Row {
        name: "no-remapping",
        about: "Intel VT-d that does not remap interrupts",
        iommu: &["-device", "intel-iommu,intremap=off"],
        devices: TWO_EDUS,
        steps: &[("unsafe-interrupts", BOTH)],
    },
    Row {
        name: "large-granule",
        about: "virtio-iommu, granule 16K under CPU pages of 4K",
        iommu: &["-device", "virtio-iommu-pci,granule=16k"],
        devices: TWO_EDUS,
        steps: &[("large-granule", BOTH)],
    },
    Row {
        name: "no-iommu",
        about: "no IOMMU",
        iommu: &[],
        devices: TWO_EDUS,
        steps: &[("no-iommu", BOTH)],
    },
];

impl Row {
    /// What the guest has to do.
    pub(super) fn steps(&self, interface: Interface) -> Vec<&'static str> {
        let wanted = |only: &Option<Interface>| only.is_none_or(|only| only == interface);
        self.steps.iter().filter(|(_, only)| wanted(only)).map(|(name, _)| *name).collect()
    }
}

/// The rows with these names, or all that have something to do over the interface.
pub(super) fn select(interface: Interface, names: &[String]) -> Result<Vec<&'static Row>> {
    let known: Vec<&Row> = ROWS.iter().filter(|row| !row.steps(interface).is_empty()).collect();
    if names.is_empty() {
        return Ok(known);
    }
    let find = |name: &String| match known.iter().find(|row| row.name == name) {
        Some(row) => Ok(*row),
        None => {
            let names: Vec<_> = known.iter().map(|row| row.name).collect();
            bail!("Linux has no row `{name}` in the lab; its rows: {}", names.join(", "))
        }
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_name_and_have_steps() {
        for interface in [Interface::Vfio, Interface::Iommufd] {
            for row in select(interface, &[]).unwrap() {
                assert!(!row.steps(interface).is_empty(), "{}", row.name);
                let found = select(interface, &[row.name.to_string()]).unwrap();
                assert!(std::ptr::eq(found[0], row), "{}", row.name);
            }
            assert!(select(interface, &["device".into()]).is_err());
        }
    }

    #[test]
    fn a_step_for_one_interface_is_not_asked_of_the_other() {
        let devices = &ROWS[0];
        assert!(devices.steps(Interface::Vfio).contains(&"no-modules"));
        assert!(!devices.steps(Interface::Iommufd).contains(&"no-modules"));
        assert!(devices.steps(Interface::Iommufd).contains(&"dma"));
    }
}
