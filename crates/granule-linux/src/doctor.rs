//! What a machine offers to drivers in user space, and what to do about each "no".
#![forbid(unsafe_code)]

use granule::mem::Platform;

use crate::checks;
use crate::limits::LockedMemory;
use crate::sysfs::{ReservedRegion, Sysfs};
use crate::{Backend, Bdf, UserMemory};

/// What [`Host::doctor`](crate::Host::doctor) found.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Report {
    /// The kernel's release; empty if it is not told.
    pub kernel: String,
    /// The CPU's page in bytes.
    pub cpu_page: u64,
    /// What the kernel was booted with that concerns IOMMUs and VFIO.
    pub boot_options: Vec<String>,
    /// The IOMMUs that the kernel uses.
    pub iommus: Vec<Iommu>,
    /// How many IOMMU groups there are.
    pub groups: usize,
    /// The interfaces, and whether they can be opened.
    pub backends: Vec<Interface>,
    /// All PCI functions that are no bridges.
    pub devices: Vec<DeviceReport>,
    /// The limit of memory that devices may reach.
    pub locked_memory: LockedMemory,
    /// Pools of huge pages.
    pub huge_pages: Vec<HugePages>,
    /// Lines of the kernel's log about IOMMUs that Linux left unused.
    pub log: Vec<String>,
    /// What stands in the way, and what to do about it.
    pub advice: Vec<Advice>,
}

/// An IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Iommu {
    /// Its name in `/sys/class/iommu`.
    pub name: String,
    /// What it is.
    pub kind: String,
    /// Its page sizes in bytes, where the kernel shows them.
    pub page_sizes: Option<Vec<u64>>,
}

/// One of the kernel's two interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Interface {
    /// Which.
    pub backend: Backend,
    /// Whether it can be opened.
    pub usable: bool,
    /// Why not, and what to do.
    pub reason: Option<String>,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DeviceReport {
    /// Where it is, as `lspci -D` writes it.
    pub address: String,
    /// Vendor and device id, as `lspci -n` writes them.
    pub ids: String,
    /// What it is, by its class.
    pub class: String,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// How the kernel's own drivers are translated in that group.
    pub group_type: Option<String>,
    /// The other functions of the group, bridges left out: one address space for all.
    pub shares_with: Vec<String>,
    /// Its IOMMU.
    pub iommu: Option<String>,
    /// That IOMMU's page sizes in bytes, where the kernel shows them.
    pub page_sizes: Option<Vec<u64>>,
    /// What is not for use in its address space.
    pub reserved: Vec<ReservedRegion>,
    /// Through which interfaces it can be opened now.
    pub opens_with: Vec<Backend>,
    /// What stands in the way: [`Error::kind`](crate::Error::kind).
    pub obstacle: Option<String>,
    /// The same with what to do about it.
    pub reason: Option<String>,
}

/// A pool of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HugePages {
    /// The size of a page in bytes.
    pub size: u64,
    /// How many there are.
    pub total: u64,
    /// How many are free.
    pub free: u64,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Advice {
    /// What is so.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

/// Below this limit a driver soon meets it, in bytes.
const LITTLE_MEMORY: u64 = 64 << 20;

pub(crate) fn examine(sysfs: &Sysfs) -> Report {
    let iommus = sysfs.iommus().into_iter().map(|name| iommu(sysfs, name)).collect();
    let functions = sysfs.devices();
    let devices = functions.iter().filter(|device| !sysfs.is_bridge(**device));
    let devices = devices.map(|device| device_report(sysfs, *device)).collect();
    let mut report = Report {
        kernel: sysfs.text("proc/sys/kernel/osrelease").unwrap_or_default(),
        cpu_page: UserMemory::new().cpu_page().size(),
        boot_options: boot_options(&sysfs.text("proc/cmdline").unwrap_or_default()),
        iommus,
        groups: sysfs.groups().len(),
        backends: [Backend::Vfio, Backend::Iommufd].map(|backend| interface(sysfs, backend)).into(),
        devices,
        locked_memory: LockedMemory::of(sysfs),
        huge_pages: huge_pages(sysfs),
        log: sysfs.log(checks::large_granule),
        advice: Vec::new(),
    };
    report.advice = advice(&report, functions.is_empty());
    report
}

fn iommu(sysfs: &Sysfs, name: String) -> Iommu {
    Iommu { kind: sysfs.iommu_kind(&name), page_sizes: sizes(sysfs, &name), name }
}

fn sizes(sysfs: &Sysfs, iommu: &str) -> Option<Vec<u64>> {
    Some(sysfs.page_sizes(iommu)?.iter().collect())
}

fn boot_options(line: &str) -> Vec<String> {
    let concerns = ["iommu", "vfio", "hugepages", "amd_iommu", "pcie_acs_override"];
    let words = line.split_whitespace();
    words.filter(|word| concerns.iter().any(|name| word.contains(name))).map(String::from).collect()
}

fn interface(sysfs: &Sysfs, backend: Backend) -> Interface {
    let reason = checks::module(sysfs, backend).err();
    // The container and /dev/iommu admit any number of users: opening them disturbs nobody.
    let opened = || match backend {
        _ if !sysfs.is_live() => Ok(()),
        Backend::Vfio => checks::opens(&sysfs.path("dev/vfio/vfio")),
        Backend::Iommufd => checks::opens(&sysfs.path("dev/iommu")),
    };
    let reason = match reason {
        Some(error) => Some(error.to_string()),
        None => opened().err().map(|kind| format!("opening it fails: {kind}")),
    };
    Interface { backend, usable: reason.is_none(), reason }
}

fn device_report(sysfs: &Sysfs, device: Bdf) -> DeviceReport {
    let number = |attribute| sysfs.number(device, attribute).unwrap_or(0);
    let group = sysfs.group(device);
    let members = group.map(|group| sysfs.members(group)).unwrap_or_default();
    let others = members.into_iter().filter(|other| *other != device && !sysfs.is_bridge(*other));
    let iommu = sysfs.iommu_of(device);
    let tried =
        [Backend::Vfio, Backend::Iommufd].map(|b| (b, checks::check(sysfs, device, b).err()));
    let opens_with: Vec<_> =
        tried.iter().filter(|(_, error)| error.is_none()).map(|(backend, _)| *backend).collect();
    // What VFIO says is what most have to do; only if it opens, iommufd's word matters.
    let obstacle = tried.into_iter().find_map(|(_, error)| error).filter(|_| opens_with.is_empty());
    DeviceReport {
        address: device.to_string(),
        ids: format!("{:04x}:{:04x}", number("vendor"), number("device")),
        class: class_name(number("class")).into(),
        driver: sysfs.driver(device),
        group,
        group_type: group.and_then(|group| sysfs.group_type(group)),
        shares_with: others.map(|other| other.to_string()).collect(),
        page_sizes: iommu.as_deref().and_then(|iommu| sizes(sysfs, iommu)),
        iommu,
        reserved: group.map(|group| sysfs.reserved(group)).unwrap_or_default(),
        opens_with,
        obstacle: obstacle.as_ref().map(|error| error.kind().into()),
        reason: obstacle.map(|error| error.to_string()),
    }
}

fn huge_pages(sysfs: &Sysfs) -> Vec<HugePages> {
    let pool = |size: u64| {
        let folder = format!("sys/kernel/mm/hugepages/hugepages-{}kB", size >> 10);
        let number = |name: &str| sysfs.text(&format!("{folder}/{name}"))?.parse().ok();
        Some(HugePages { size, total: number("nr_hugepages")?, free: number("free_hugepages")? })
    };
    [2 << 20, 1 << 30].into_iter().filter_map(pool).collect()
}

fn advice(report: &Report, no_devices: bool) -> Vec<Advice> {
    let mut all = Vec::new();
    let mut add =
        |what: &str, todo: &str| all.push(Advice { what: what.into(), todo: todo.into() });
    if no_devices {
        add(
            "no PCI device is visible here",
            "a container or a small virtual machine hides them: run it where the devices are",
        );
    } else if report.iommus.is_empty() && report.groups == 0 {
        add("the kernel uses no IOMMU", &enable_iommu(report));
    } else if report.groups == 0 {
        add(
            "there is an IOMMU, and no device is behind it",
            "look at `dmesg | grep -i iommu`; boot without iommu=pt or iommu=off",
        );
    }
    if !report.log.is_empty() {
        add(
            "an IOMMU's granule is larger than the CPU's page: Linux leaves its devices alone",
            "boot a kernel with larger CPU pages, or drive the device with granule below an operating system",
        );
    }
    for interface in report.backends.iter().filter(|interface| !interface.usable) {
        let reason = interface.reason.as_deref().unwrap_or_default();
        add(&format!("{} cannot be used", interface.backend), reason);
    }
    for kind in ["other_driver", "group_not_viable", "permission"] {
        let first = report.devices.iter().find(|device| device.obstacle.as_deref() == Some(kind));
        if let Some(DeviceReport { address, reason: Some(reason), .. }) = first {
            add(&format!("{address} is not for user space yet"), reason);
        }
    }
    if report.locked_memory.left().is_some_and(|left| left < LITTLE_MEMORY) {
        add(
            &format!("memory that devices may reach is limited: {}", report.locked_memory),
            "raise RLIMIT_MEMLOCK to what you share and 64 MiB more: `ulimit -l`, /etc/security/limits.conf, \
             or LimitMEMLOCK= in a systemd unit",
        );
    }
    let none_free = report.huge_pages.iter().all(|pool| pool.free == 0);
    if report.groups > 0 && none_free {
        add(
            "no huge page is free: large buffers are mapped in small pages",
            "as root: echo 64 > /proc/sys/vm/nr_hugepages",
        );
    }
    all
}

fn enable_iommu(report: &Report) -> String {
    let firmware = "enable it in the firmware's setup (VT-d, AMD-Vi, SMMU)";
    let given = report.boot_options.iter().any(|option| option.starts_with("intel_iommu=on"));
    if given {
        format!(
            "{firmware}: intel_iommu=on is given and finds none (`dmesg | grep -i -e dmar -e iommu`)"
        )
    } else {
        format!(
            "{firmware}; on Intel boot with intel_iommu=on; a virtual machine needs an emulated one"
        )
    }
}

/// What a class code means (PCI Code and ID Assignment 1.11, section 1).
fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xff) {
        (0x01, 0x08) => "NVMe disk",
        (0x01, 0x06) => "SATA controller",
        (0x01, _) => "storage",
        (0x02, _) => "network card",
        (0x03, _) => "display",
        (0x04, _) => "multimedia",
        (0x05, _) => "memory",
        (0x06, _) => "bridge",
        (0x07, _) => "communication",
        (0x08, _) => "system",
        (0x0c, 0x03) => "USB controller",
        (0x0c, 0x05) => "SMBus",
        (0x0c, _) => "serial bus",
        (0x0d, _) => "wireless",
        (0x10, _) => "encryption",
        (0x12, _) => "accelerator",
        _ => "device",
    }
}
