//! The devices of a board, and the rule that says which nodes are devices.
//!
//! A node is a device that makes DMA if, in this order, it
//! 1. has `iommus` or `iommu-map`;
//! 2. is a PCI host (`device_type = "pci"`, not below another one);
//! 3. has `dma-coherent` or `dma-noncoherent` itself;
//! 4. has `memory-region` and registers, or a reserved region's `iommu-addresses` names it;
//! 5. has `#dma-cells` (a DMA controller; its users are not masters themselves);
//! 6. has the generic name of a bus master (`ethernet`, `mmc`, `usb`, …);
//! 7. has the compatible string of a known bus master.
//!
//! Rules 3 to 7 count only for nodes that sit on a bus the CPU can address: not for what hangs
//! below a PCI host, an I2C bus or a USB controller. They do not count for buses and wrappers (nodes
//! with `ranges` of their own: the core inside is the master), nor for interrupt controllers.
//! Whatever else makes DMA can be named:
//! [`Board::device_or_direct`](crate::Board::device_or_direct).

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::bus::Buses;
use crate::cells::Cells;
use crate::iommus::Iommus;
use crate::limits::Budget;
use crate::names::NameIndex;
use crate::reserved::Reserved;
use crate::streams::StreamReader;
use crate::tree::{NodeId, Tree};
use crate::{BoardDevice, BoardError, Master, Warning, Warnings};

/// Generic names (Devicetree Specification, 2.2.2) that only bus masters have.
const GENERIC_NAMES: &[&str] =
    &["ethernet", "gpu", "mmc", "nvme", "sata", "sdhci", "ufs", "ufshc", "usb", "virtio_mmio"];

/// Bus masters that no other rule finds.
const MASTERS: &[&str] = &[
    "apple,nvme-ans2", // the NVMe of Apple's chips, behind an address filter and no IOMMU
    "granule,direct-master", // the made-up master of the board in this crate
];

/// Top-level nodes that hold no devices.
const NOT_HARDWARE: &[&str] = &[
    "__fixups__",
    "__local_fixups__",
    "__symbols__",
    "aliases",
    "chosen",
    "cpus",
    "memory",
    "opp-table",
    "options",
    "reserved-memory",
    "thermal-zones",
];

/// What devices are made from.
pub(crate) struct Parts<'t, 'a> {
    pub(crate) tree: &'t Tree<'a>,
    pub(crate) iommus: &'t Iommus,
    pub(crate) reserved: &'t Reserved,
    pub(crate) msi: &'t BTreeMap<NodeId, usize>,
    pub(crate) names: &'t NameIndex,
}

/// The devices, and the nodes that are none by any rule but may be named.
pub(crate) fn collect(
    parts: &Parts<'_, '_>,
    buses: &mut Buses<'_, '_>,
    budget: &mut Budget,
    warnings: &mut Warnings,
) -> Result<(Vec<BoardDevice>, Vec<BoardDevice>), BoardError> {
    let tree = parts.tree;
    let mut streams = StreamReader { tree, iommus: parts.iommus, total: 0 };
    let (mut devices, mut others) = (Vec::new(), Vec::new());
    for id in tree.ids().skip(1) {
        if !is_hardware(tree, id) || parts.iommus.index_of(id).is_some() {
            // An IOMMU may itself be behind one; what it fetches are tables, not a device's DMA.
            continue;
        }
        let master = rule(parts, id);
        if master.is_none() && !tree.has(id, "compatible") && !tree.has(id, "reg") {
            continue;
        }
        let found = streams.read(id, budget, warnings)?;
        let windows = buses.dma_windows(id, budget, warnings)?;
        let mut device = BoardDevice {
            path: tree.path(id),
            name: tree.name(id).to_string(),
            aliases: parts.names.of(id),
            compatible: tree.strings(id, "compatible").map(ToString::to_string).collect(),
            streams: found.streams,
            unresolved: found.unresolved || windows.broken,
            group: 0,
            coherent: buses.coherent(id),
            enabled: tree.enabled(id),
            windows: windows.list,
            iova_regions: parts.reserved.iovas.get(&id).cloned().unwrap_or_default(),
            memory_regions: Vec::new(),
            pci: found.pci,
            msi: msi_of(parts, id),
            master: master.unwrap_or(Master::Named),
        };
        if master.is_some() {
            device.memory_regions = parts.reserved.regions_of(tree, id, warnings);
            warn_of_disabled(parts, &device, warnings);
            devices.push(device);
        } else {
            others.push(device);
        }
    }
    Ok((devices, others))
}

fn is_hardware(tree: &Tree<'_>, id: NodeId) -> bool {
    let top = tree.ancestors(id).find(|&above| tree.parent(above) == Some(0));
    let name = top.and_then(|top| tree.name(top).split('@').next()).unwrap_or_default();
    !NOT_HARDWARE.contains(&name)
}

fn rule(parts: &Parts<'_, '_>, id: NodeId) -> Option<Master> {
    let tree = parts.tree;
    if tree.has(id, "iommus") || tree.has(id, "iommu-map") {
        return Some(Master::Streams);
    }
    let below_pci = tree.ancestors(id).skip(1).any(|above| tree.is_pci(above));
    if below_pci {
        return None;
    }
    if tree.is_pci(id) {
        return Some(Master::PciHost);
    }
    let bus = tree.has(id, "ranges") || tree.is_simple_bus(id);
    let interrupts = tree.has(id, "interrupt-controller") || tree.has(id, "msi-controller");
    if bus || interrupts || !on_addressable_bus(tree, id) {
        return None;
    }
    if tree.has(id, "dma-coherent") || tree.has(id, "dma-noncoherent") {
        return Some(Master::Coherency);
    }
    let has_region = tree.has(id, "memory-region") && tree.has(id, "reg");
    if has_region || parts.reserved.iovas.contains_key(&id) {
        return Some(Master::MemoryRegion);
    }
    if tree.has(id, "#dma-cells") {
        return Some(Master::DmaController);
    }
    let generic = tree.name(id).split('@').next().unwrap_or_default();
    if GENERIC_NAMES.contains(&generic) && tree.has(id, "compatible") {
        return Some(Master::GenericName);
    }
    tree.strings(id, "compatible").any(|c| MASTERS.contains(&c)).then_some(Master::Compatible)
}

/// Whether every bus above has `ranges`, so that the CPU's addresses reach down to it.
fn on_addressable_bus(tree: &Tree<'_>, id: NodeId) -> bool {
    let mut above = tree.ancestors(id).skip(1);
    above.all(|bus| bus == 0 || tree.has(bus, "ranges") || tree.is_simple_bus(bus))
}

fn msi_of(parts: &Parts<'_, '_>, id: NodeId) -> Option<usize> {
    let parent = parts.tree.prop(id, "msi-parent").and_then(|value| Cells::new(value).cell());
    let map = parts.tree.prop(id, "msi-map").and_then(|value| {
        let mut cells = Cells::new(value);
        cells.skip(1)?;
        cells.cell()
    });
    let controller = parts.tree.by_phandle(parent.or(map)?)?;
    parts.msi.get(&controller).copied()
}

fn warn_of_disabled(parts: &Parts<'_, '_>, device: &BoardDevice, warnings: &mut Warnings) {
    if !device.enabled {
        return;
    }
    for stream in &device.streams {
        if let Some(iommu) = parts.iommus.list.get(stream.iommu).filter(|iommu| !iommu.enabled) {
            let (device, iommu) = (device.path.clone(), iommu.path.clone());
            warnings.push(Warning::DisabledIommu { device, iommu });
        }
    }
}
