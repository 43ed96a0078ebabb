//! Memory: what there is, what is reserved, which IOVAs go with it, where interrupts are written.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use granule::addr::{Iova, IovaRange, PhysAddr, PhysRange};

use crate::bus::{self, Buses};
use crate::cells::Cells;
use crate::limits::Budget;
use crate::tree::{NodeId, Tree};
use crate::{
    BoardError, IovaRegion, IovaRegionKind, MsiController, ReservedRegion, Warning, Warnings,
};

/// RAM: the memory nodes below the root that have a size.
pub(crate) fn memory(
    tree: &Tree<'_>,
    buses: &Buses<'_, '_>,
    warnings: &mut Warnings,
) -> Vec<PhysRange> {
    let mut found = Vec::new();
    for id in tree.children(0).filter(|&id| is_memory(tree, id) && tree.enabled(id)) {
        for (start, len) in buses.pairs(id, 0, "reg") {
            match PhysRange::new(PhysAddr::new(start), len) {
                Ok(range) => found.push(range),
                Err(_) => bad(tree, id, "reg", "a range passes 2^64", warnings),
            }
        }
    }
    found.sort_unstable_by_key(PhysRange::start);
    let mut merged: Vec<PhysRange> = Vec::new();
    for range in found {
        let Some(last) =
            merged.last_mut().filter(|l| l.overlaps(&range) || l.is_followed_by(&range))
        else {
            merged.push(range);
            continue;
        };
        if last.overlaps(&range) {
            warnings.push(Warning::OverlappingMemory { at: range.start().raw() });
        }
        let end = last.last().max(range.last());
        if let Ok(united) = PhysRange::from_inclusive(last.start(), end) {
            *last = united;
        }
    }
    if merged.is_empty() {
        warnings.push(Warning::NoMemory);
    }
    merged
}

fn is_memory(tree: &Tree<'_>, id: NodeId) -> bool {
    let by_name = tree.name(id).split('@').next() == Some("memory");
    by_name || tree.strings(id, "device_type").next() == Some("memory")
}

/// The reserved regions and the IOVAs they ask for.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    pub(crate) list: Vec<ReservedRegion>,
    by_node: BTreeMap<NodeId, usize>,
    /// What `iommu-addresses` asks for, by the node of the device.
    pub(crate) iovas: BTreeMap<NodeId, Vec<IovaRegion>>,
}

impl Reserved {
    pub(crate) fn collect(tree: &Tree<'_>, buses: &Buses<'_, '_>, warnings: &mut Warnings) -> Self {
        let mut reserved = Self::default();
        if let Some(parent) = tree.child(0, "reserved-memory") {
            for id in tree.children(parent) {
                let region = read_region(tree, buses, parent, id);
                reserved.by_node.insert(id, reserved.list.len());
                reserved.list.push(region);
                reserved.read_iovas(tree, id, warnings);
            }
        }
        for &(start, len) in &tree.reservations {
            let ranges: Vec<_> = PhysRange::new(PhysAddr::new(start), len).into_iter().collect();
            if !ranges.is_empty() {
                reserved.list.push(ReservedRegion { ranges, ..empty_region() });
            }
        }
        reserved
    }

    /// `memory-region` of a device, as indices.
    pub(crate) fn regions_of(
        &self,
        tree: &Tree<'_>,
        id: NodeId,
        warnings: &mut Warnings,
    ) -> Vec<usize> {
        let mut cells = Cells::new(tree.prop(id, "memory-region").unwrap_or_default());
        let mut found = Vec::new();
        while let Some(phandle) = cells.cell() {
            let region = tree.by_phandle(phandle).and_then(|node| self.by_node.get(&node));
            match region {
                Some(&region) => found.push(region),
                None => warnings.push(Warning::NoSuchPhandle {
                    path: tree.path(id),
                    property: "memory-region",
                    phandle,
                }),
            }
        }
        found
    }

    /// `iommu-addresses`: device, IOVA and size in the cells of the device's bus.
    fn read_iovas(&mut self, tree: &Tree<'_>, id: NodeId, warnings: &mut Warnings) {
        let Some(index) = self.by_node.get(&id).copied() else { return };
        let mut cells = Cells::new(tree.prop(id, "iommu-addresses").unwrap_or_default());
        while !cells.is_empty() {
            let Some(phandle) = cells.cell() else {
                return bad(tree, id, "iommu-addresses", "its length does not fit", warnings);
            };
            let property = "iommu-addresses";
            let Some(device) = tree.by_phandle(phandle) else {
                let path = tree.path(id);
                return warnings.push(Warning::NoSuchPhandle { path, property, phandle });
            };
            let parent = tree.dma_parent(device).unwrap_or(0);
            let counts = (bus::address_cells(tree, parent), bus::size_cells(tree, parent));
            let pair = match counts {
                (Some(address), Some(size)) => cells.number(address).zip(cells.number(size)),
                _ => None,
            };
            let range = pair.and_then(|(start, len)| IovaRange::new(Iova::new(start), len).ok());
            let Some(iova) = range else {
                return bad(
                    tree,
                    id,
                    property,
                    "a range does not fit the device's cells",
                    warnings,
                );
            };
            self.add_iova(tree, id, index, device, iova, warnings);
        }
    }

    fn add_iova(
        &mut self,
        tree: &Tree<'_>,
        id: NodeId,
        index: usize,
        device: NodeId,
        iova: IovaRange,
        warnings: &mut Warnings,
    ) {
        let memory = self.list.get(index).and_then(|region| region.ranges.first()).copied();
        let phys = memory.and_then(|memory| memory.slice(0, iova.len()));
        if memory.is_some() && phys.is_none() {
            bad(tree, id, "iommu-addresses", "it is longer than the memory behind it", warnings);
        }
        let region = IovaRegion { iova, phys, reserved: index };
        if region.kind() == IovaRegionKind::Translated {
            let (region, device) = (tree.path(id), tree.path(device));
            let iova = iova.start().raw();
            warnings.push(Warning::TranslatedRegion { region, device, iova });
        }
        self.iovas.entry(device).or_default().push(region);
    }
}

fn empty_region() -> ReservedRegion {
    ReservedRegion {
        path: String::new(),
        name: String::new(),
        compatible: Vec::new(),
        ranges: Vec::new(),
        size: None,
        alignment: None,
        alloc_ranges: Vec::new(),
        no_map: false,
        reusable: false,
        enabled: true,
    }
}

fn read_region(
    tree: &Tree<'_>,
    buses: &Buses<'_, '_>,
    parent: NodeId,
    id: NodeId,
) -> ReservedRegion {
    let ranges = |property| {
        let pairs = buses.pairs(id, parent, property);
        pairs.filter_map(|(start, len)| PhysRange::new(PhysAddr::new(start), len).ok()).collect()
    };
    let number = |property| {
        let cells = bus::size_cells(tree, parent)?;
        Cells::new(tree.prop(id, property)?).number(cells).filter(|&value| value != 0)
    };
    ReservedRegion {
        path: tree.path(id),
        name: tree.name(id).to_string(),
        compatible: tree.strings(id, "compatible").map(ToString::to_string).collect(),
        ranges: ranges("reg"),
        size: number("size"),
        alignment: number("alignment"),
        alloc_ranges: ranges("alloc-ranges"),
        no_map: tree.has(id, "no-map"),
        reusable: tree.has(id, "reusable"),
        enabled: tree.enabled(id),
    }
}

/// The controllers of message-signalled interrupts, with the nodes that they are.
pub(crate) fn msi_controllers(
    tree: &Tree<'_>,
    buses: &Buses<'_, '_>,
    budget: &mut Budget,
) -> Result<(Vec<MsiController>, BTreeMap<NodeId, usize>), BoardError> {
    let mut list = Vec::new();
    let mut by_node = BTreeMap::new();
    for id in tree.ids() {
        let Some(register) = tree.strings(id, "compatible").find_map(doorbell) else { continue };
        let frames = buses.registers(id, budget)?;
        let doorbells: Vec<PhysRange> = match register {
            Doorbell::At(offset) => {
                frames.first().and_then(|frame| frame.slice(offset, 4)).into_iter().collect()
            }
            Doorbell::Whole => frames,
        };
        if !doorbells.is_empty() {
            by_node.insert(id, list.len());
            list.push(MsiController { path: tree.path(id), doorbells, enabled: tree.enabled(id) });
        }
    }
    Ok((list, by_node))
}

enum Doorbell {
    /// A register so many bytes into the first frame.
    At(u64),
    Whole,
}

fn doorbell(compatible: &str) -> Option<Doorbell> {
    match compatible {
        // GITS_TRANSLATER, in the second 64 KiB frame (Arm IHI 0069, 12.19).
        "arm,gic-v3-its" => Some(Doorbell::At(0x1_0040)),
        // MSI_SETSPI_NS (Arm SBSA, GICv2m).
        "arm,gic-v2m-frame" => Some(Doorbell::At(0x40)),
        // seteipnum_le of every interrupt file (RISC-V AIA, chapter 3).
        "riscv,imsics" => Some(Doorbell::Whole),
        _ => None,
    }
}

fn bad(
    tree: &Tree<'_>,
    id: NodeId,
    property: &'static str,
    reason: &'static str,
    warnings: &mut Warnings,
) {
    let effect = "that part is ignored";
    warnings.push(Warning::BadProperty { path: tree.path(id), property, reason, effect });
}
