//! What Linux tells in `/sys`, `/proc` and `/dev` about devices, groups and IOMMUs. Nothing here opens a
//! device.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use granule::addr::{Iova, IovaRange, PageSizes};

use crate::Bdf;

/// The folder in which `sys`, `proc` and `dev` are found: `/`, or one that a test or a snapshot of
/// another machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sysfs {
    root: PathBuf,
}

/// A range of a group's IOVA space that is not for use (`reserved_regions`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ReservedRegion {
    /// The first address.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// What it is for: `direct`, `msi`, `reserved` and the like.
    pub kind: String,
}

impl ReservedRegion {
    /// The addresses.
    pub fn range(&self) -> Option<IovaRange> {
        IovaRange::from_inclusive(Iova::new(self.first), Iova::new(self.last)).ok()
    }
}

impl Sysfs {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Whether this is the machine itself, so that device files may be opened.
    pub(crate) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    pub(crate) fn device(&self, bdf: Bdf) -> PathBuf {
        self.path(&format!("sys/bus/pci/devices/{bdf}"))
    }

    /// A file's text without the blanks around it.
    pub(crate) fn text(&self, below: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(below)).ok()?.trim().into())
    }

    /// All PCI functions, in order.
    pub(crate) fn devices(&self) -> Vec<Bdf> {
        let mut all: Vec<Bdf> = names(&self.path("sys/bus/pci/devices"))
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        all.sort();
        all
    }

    /// The IOMMU group's number.
    pub(crate) fn group(&self, bdf: Bdf) -> Option<u32> {
        link_name(&self.device(bdf).join("iommu_group"))?.parse().ok()
    }

    /// The driver that has the device.
    pub(crate) fn driver(&self, bdf: Bdf) -> Option<String> {
        link_name(&self.device(bdf).join("driver"))
    }

    /// The IOMMU that the device is behind.
    pub(crate) fn iommu_of(&self, bdf: Bdf) -> Option<String> {
        link_name(&self.device(bdf).join("iommu"))
    }

    /// A hexadecimal attribute of a device: `vendor`, `device`, `class`.
    pub(crate) fn number(&self, bdf: Bdf, attribute: &str) -> Option<u32> {
        let text = fs::read_to_string(self.device(bdf).join(attribute)).ok()?;
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    }

    /// Whether the function is a bridge, which makes no DMA of its own to be mapped.
    pub(crate) fn is_bridge(&self, bdf: Bdf) -> bool {
        self.number(bdf, "class").is_some_and(|class| class >> 16 == 0x06)
    }

    /// The PCI functions of a group, in order.
    pub(crate) fn members(&self, group: u32) -> Vec<Bdf> {
        let folder = self.path(&format!("sys/kernel/iommu_groups/{group}/devices"));
        let mut all: Vec<Bdf> =
            names(&folder).iter().filter_map(|name| name.parse().ok()).collect();
        all.sort();
        all
    }

    /// All groups, in order.
    pub(crate) fn groups(&self) -> Vec<u32> {
        let mut all: Vec<u32> = names(&self.path("sys/kernel/iommu_groups"))
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        all.sort_unstable();
        all
    }

    /// How the kernel translates for a group now: `DMA`, `DMA-FQ`, `identity`, `blocked`.
    pub(crate) fn group_type(&self, group: u32) -> Option<String> {
        self.text(&format!("sys/kernel/iommu_groups/{group}/type"))
    }

    /// What is not for use in a group's IOVA space.
    pub(crate) fn reserved(&self, group: u32) -> Vec<ReservedRegion> {
        let text = self.text(&format!("sys/kernel/iommu_groups/{group}/reserved_regions"));
        text.unwrap_or_default().lines().filter_map(region).collect()
    }

    /// The IOMMUs, by name.
    pub(crate) fn iommus(&self) -> Vec<String> {
        let mut all = names(&self.path("sys/class/iommu"));
        all.sort();
        all
    }

    /// What kind of IOMMU this is, as far as the kernel says.
    pub(crate) fn iommu_kind(&self, name: &str) -> String {
        let folder = self.path(&format!("sys/class/iommu/{name}"));
        for (attribute, kind) in [("intel-iommu", "Intel VT-d"), ("amd-iommu", "AMD-Vi")] {
            if folder.join(attribute).is_dir() {
                return kind.into();
            }
        }
        let driver = link_name(&folder.join("device/driver"));
        driver.unwrap_or_else(|| name.split('.').next().unwrap_or(name).into())
    }

    /// The page sizes of an IOMMU's second stage, where it shows its capabilities.
    ///
    /// Source: Intel VT-d 4.1, section 11.4.2 (capability register, SLLPS, bits 34 and 35); AMD I/O
    /// Virtualization Technology 3.08, section 2.2.3 (every power of two from 4 KiB).
    pub(crate) fn page_sizes(&self, iommu: &str) -> Option<PageSizes> {
        if let Some(cap) = self.text(&format!("sys/class/iommu/{iommu}/intel-iommu/cap")) {
            let cap = u64::from_str_radix(&cap, 16).ok()?;
            return Some(PageSizes::from_bits(
                (1 << 12) | ((cap >> 34) & 1) << 21 | ((cap >> 35) & 1) << 30,
            ));
        }
        let amd = self.path(&format!("sys/class/iommu/{iommu}/amd-iommu"));
        amd.is_dir().then(|| PageSizes::from_bits(((1 << 40) - 1) & !0xfff))
    }

    /// The name of the device's VFIO character device.
    pub(crate) fn cdev(&self, bdf: Bdf) -> Option<String> {
        names(&self.device(bdf).join("vfio-dev")).into_iter().next()
    }

    /// Lines of the kernel's log that `wanted` likes. Empty if the log may not be read.
    pub(crate) fn log(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let opened =
            fs::OpenOptions::new().read(true).custom_flags(nonblock).open(self.path("dev/kmsg"));
        let Ok(mut file) = opened else { return Vec::new() };
        let mut lines = Vec::new();
        let mut record = vec![0; 16 << 10];
        // One record a read; a reader that was overtaken gets EPIPE once, and goes on.
        for _ in 0..1 << 16 {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    lines.extend(
                        text.lines().map(message).filter(|line| wanted(line)).map(String::from),
                    );
                }
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        lines
    }
}

/// What stands behind the `;` of a record of the kernel's log.
fn message(line: &str) -> &str {
    line.split_once(';').map_or(line, |(_, text)| text)
}

/// `0x00000000fee00000 0x00000000feefffff msi`.
fn region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_whitespace();
    let mut number = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let (first, last) = (number()?, number()?);
    let kind = words.next()?.into();
    (first <= last).then_some(ReservedRegion { first, last, kind })
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn link_name(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(String::from)
}
