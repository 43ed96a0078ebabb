//! Why a device cannot be opened or used, and what to do about it.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use granule::addr::{Granule, IovaRange};
use granule::dma::AttachError;
use granule::domain::DomainError;

use crate::{Backend, Bdf, LockedMemory};

/// Why Linux, or this crate, refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a PCI address.
    #[error("`{text}` is no PCI address: write it as `lspci -D` does, 0000:01:00.0")]
    BadAddress {
        /// What was given.
        text: String,
    },
    /// No such device.
    #[error("there is no PCI device {device}: `lspci -D` lists those that are there")]
    NoDevice {
        /// The device.
        device: Bdf,
    },
    /// The function is a bridge.
    #[error("{device} is a bridge: it makes no DMA that could be mapped; name a device behind it")]
    Bridge {
        /// The device.
        device: Bdf,
    },
    /// Nothing translates for the device: the machine has no IOMMU, or it is off.
    #[error(
        "{device} has no IOMMU group: this kernel uses no IOMMU. Enable it in the firmware's setup (VT-d, \
         AMD-Vi, SMMU), boot with intel_iommu=on on Intel, and look at `dmesg | grep -i iommu`"
    )]
    NoIommu {
        /// The device.
        device: Bdf,
    },
    /// The machine has IOMMUs, and none of them translates for the device.
    #[error(
        "{device} has no IOMMU group, though this machine has {iommus}: the device is not behind it, or its \
         granule is larger than the CPU page of {cpu_page}, which Linux refuses and this interface cannot \
         express{log}"
    )]
    NotTranslated {
        /// The device.
        device: Bdf,
        /// The IOMMUs that there are.
        iommus: String,
        /// The CPU's page.
        cpu_page: Granule,
        /// What the kernel's log says about it, with a separator before it; empty if nothing.
        log: String,
    },
    /// The IOMMU's smallest page is larger than the CPU's.
    #[error(
        "{device}: the smallest page of its IOMMU is {granule}, the CPU's is {cpu_page}: neither VFIO nor \
         iommufd can express that. Boot a kernel with CPU pages of {granule}"
    )]
    LargeGranule {
        /// The device.
        device: Bdf,
        /// The IOMMU's smallest page.
        granule: Granule,
        /// The CPU's.
        cpu_page: Granule,
    },
    /// The kernel has no VFIO.
    #[error(
        "{path} is not there: this kernel has no VFIO, or it is not loaded: `modprobe vfio-pci`"
    )]
    NoVfio {
        /// What was looked for.
        path: PathBuf,
    },
    /// The kernel has no iommufd.
    #[error(
        "{path} is not there: this kernel was built without CONFIG_IOMMUFD (Debian's are), or it is not \
         loaded: `modprobe iommufd`. The VFIO backend needs neither"
    )]
    NoIommufd {
        /// What was looked for.
        path: PathBuf,
    },
    /// The kernel gives the device no character device.
    #[error(
        "{device} has no character device in /dev/vfio/devices: this kernel was built without \
         CONFIG_VFIO_DEVICE_CDEV. The VFIO backend does not need it"
    )]
    NoCdev {
        /// The device.
        device: Bdf,
    },
    /// Another driver has the device, or none.
    #[error("{device} {has}, not vfio-pci. As root:\n{commands}", has = driver_words(driver.as_deref()), commands = rebind(*device, driver.is_some()))]
    Driver {
        /// The device.
        device: Bdf,
        /// The driver that has it.
        driver: Option<String>,
    },
    /// Another device of the group is in a driver's hands.
    #[error(
        "{device} is in IOMMU group {group} together with {with}: all of a group must be in the hands of \
         vfio-pci or of no driver. As root:\n{commands}",
        with = list(others), commands = rebind_all(others)
    )]
    GroupNotViable {
        /// The device.
        device: Bdf,
        /// The group.
        group: u32,
        /// The other devices, and their drivers.
        others: Vec<(Bdf, String)>,
    },
    /// Devices of one group cannot be in two address spaces.
    #[error(
        "{device} is in IOMMU group {group} together with {other}, which is open in another address space: \
         the IOMMU cannot tell them apart. Open both in one space (`granule share --live … --one-space`), or put one of them into another slot",
        other = names(others)
    )]
    Group {
        /// The device.
        device: Bdf,
        /// The group.
        group: u32,
        /// The devices of the group that are open.
        others: Vec<Bdf>,
    },
    /// The device is open already, in this process.
    #[error("{device} is open in this process already")]
    Open {
        /// The device.
        device: Bdf,
    },
    /// Another process has the group or the device.
    #[error("{path} is in use by another process (`fuser -v {path}` names it)")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file may not be opened.
    #[error(
        "{path}: permission denied. As root: `chown $USER {path}`, or a udev rule that gives it to a group \
         of yours"
    )]
    Permission {
        /// The file.
        path: PathBuf,
    },
    /// The machine cannot keep a device from sending interrupts that are not its own.
    #[error(
        "{device}: the machine cannot keep it from forging interrupts (no interrupt remapping), so Linux \
         refuses to hand it out. Enable interrupt remapping in the firmware; or, if you trust the device, \
         as root: echo 1 > {parameter}"
    )]
    UnsafeInterrupts {
        /// The device.
        device: Bdf,
        /// The module's parameter that allows it.
        parameter: &'static str,
    },
    /// More memory would be pinned than the process may lock.
    #[error("{reason}", reason = crate::space::no_memory(locked, *len))]
    LockedMemory {
        /// The limit, and what is used of it.
        locked: LockedMemory,
        /// The bytes that would be pinned, in all address spaces together.
        len: u64,
    },
    /// A device that does not snoop the caches.
    #[error(
        "{device} is described as not snooping the CPU's caches: a process cannot maintain them. Only \
         devices that snoop can be driven from here"
    )]
    NotSnooping {
        /// The device.
        device: Bdf,
    },
    /// The device narrows what the devices before it could use.
    #[error(
        "{device} cannot use {lost}, which the devices before it in this address space may have been given: \
         open it first, or in a space of its own"
    )]
    Narrower {
        /// The device.
        device: Bdf,
        /// What it cannot use.
        lost: IovaRange,
    },
    /// The kernel reports no address that could be mapped.
    #[error("{device}: the kernel reports no IOVA that could be mapped through {backend}")]
    NoAddresses {
        /// The device.
        device: Bdf,
        /// The interface.
        backend: Backend,
    },
    /// The device has no such register window.
    #[error("{device} has no BAR {bar}")]
    NoBar {
        /// The device.
        device: Bdf,
        /// Which.
        bar: u32,
    },
    /// A register outside of its window, or not aligned to its width.
    #[error(
        "{device}: {width} bytes at offset {offset:#x} are not an aligned register inside the {len:#x} bytes of {window}"
    )]
    Register {
        /// The device.
        device: Bdf,
        /// Which window: "BAR 0", "the configuration space".
        window: String,
        /// The offset in bytes.
        offset: u64,
        /// The width in bytes.
        width: usize,
        /// The window's length in bytes.
        len: u64,
    },
    /// The device is no longer attached.
    #[error("{device} was taken off its address space: its bus mastering stays off")]
    Detached {
        /// The device.
        device: Bdf,
    },
    /// The command register is not to be written directly.
    #[error(
        "{device}: offset {offset:#x} is the command register: enable_bus_mastering() and disable_bus_mastering() write it"
    )]
    CommandRegister {
        /// The device.
        device: Bdf,
        /// The offset in bytes.
        offset: u64,
    },
    /// The kernel refused something else.
    #[error("{device}: {what}: {error}")]
    Kernel {
        /// The device.
        device: Bdf,
        /// What it refused.
        what: String,
        /// Its answer.
        error: io::Error,
    },
    /// The address space could not be set up.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The device could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl Error {
    /// One word (or a few) that programs can rely on.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::BadAddress { .. } => "bad_address",
            Self::NoDevice { .. } => "no_device",
            Self::Bridge { .. } => "bridge",
            Self::NoIommu { .. } => "no_iommu",
            Self::NotTranslated { .. } => "not_translated",
            Self::LargeGranule { .. } => "large_granule",
            Self::NoVfio { .. } => "no_vfio",
            Self::NoIommufd { .. } => "no_iommufd",
            Self::NoCdev { .. } => "no_cdev",
            Self::Driver { driver: Some(_), .. } => "other_driver",
            Self::Driver { .. } => "no_driver",
            Self::GroupNotViable { .. } => "group_not_viable",
            Self::Group { .. } => "group",
            Self::Open { .. } => "open",
            Self::Busy { .. } => "busy",
            Self::Permission { .. } => "permission",
            Self::UnsafeInterrupts { .. } => "unsafe_interrupts",
            Self::LockedMemory { .. } => "locked_memory",
            Self::NotSnooping { .. } => "not_snooping",
            Self::Narrower { .. } => "narrower",
            Self::NoAddresses { .. } => "no_addresses",
            Self::NoBar { .. } => "no_bar",
            Self::Register { .. } => "register",
            Self::Detached { .. } => "detached",
            Self::CommandRegister { .. } => "command_register",
            Self::Kernel { .. } => "kernel",
            Self::Domain(_) => "domain",
            Self::Attach(_) => "attach",
        }
    }
}

fn driver_words(driver: Option<&str>) -> String {
    match driver {
        Some(driver) => format!("is in the hands of the driver {driver}"),
        None => "has no driver".into(),
    }
}

/// The commands that give a device to vfio-pci; with a driver to take it from.
pub(crate) fn rebind(device: Bdf, bound: bool) -> String {
    let folder = format!("/sys/bus/pci/devices/{device}");
    let unbind =
        if bound { format!("echo {device} > {folder}/driver/unbind; ") } else { String::new() };
    format!(
        "  echo vfio-pci > {folder}/driver_override\n  {unbind}echo {device} > /sys/bus/pci/drivers_probe"
    )
}

fn rebind_all(others: &[(Bdf, String)]) -> String {
    others.iter().map(|(device, _)| rebind(*device, true)).collect::<Vec<_>>().join("\n")
}

fn list(others: &[(Bdf, String)]) -> String {
    let words = others.iter().map(|(device, driver)| format!("{device} ({driver})"));
    words.collect::<Vec<_>>().join(", ")
}

fn names(devices: &[Bdf]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
