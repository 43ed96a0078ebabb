//! Buses: cell counts, `ranges`, `dma-ranges`, the way to memory, coherency.
//!
//! Where the Devicetree Specification leaves room, this follows Linux's `drivers/of/address.c`:
//! * a device's windows are the first non-empty `dma-ranges` on its way to memory; an empty one
//!   means no translation, and no non-empty one at all means everything at the same address;
//! * further up, an absent or empty `dma-ranges` is taken as one to one;
//! * the way to memory is the parent, or the provider of the `interconnects` entry named `dma-mem`.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::addr::{DmaAddr, DmaRange, PhysAddr, PhysRange};

use crate::cells::Cells;
use crate::limits::{Budget, MAX_DEPTH};
use crate::tree::{NodeId, Tree};
use crate::{BoardError, DmaWindow, Warning, Warnings};

/// Cells of an address or size that are accepted. PCI uses 3, a few buses 4.
const MAX_CELLS: u32 = 4;

/// One entry of `ranges` or `dma-ranges`.
#[derive(Clone, Copy, Debug)]
struct Entry {
    child: u64,
    parent: u64,
    len: u64,
}

/// What the devices on a bus reach.
#[derive(Clone)]
pub(crate) struct Windows {
    /// Empty, if not `broken`: everything, at the same address.
    pub(crate) list: Arc<[DmaWindow]>,
    /// Nothing is known to be reachable.
    pub(crate) broken: bool,
}

/// Resolves addresses of a tree.
pub(crate) struct Buses<'t, 'a> {
    tree: &'t Tree<'a>,
    windows: BTreeMap<Option<NodeId>, Windows>,
    coherent_by_default: bool,
}

/// `#address-cells` for the children of `bus`, as the specification's default has it.
pub(crate) fn address_cells(tree: &Tree<'_>, bus: NodeId) -> Option<u32> {
    cell_count(tree, bus, "#address-cells", 2)
}

/// `#size-cells` for the children of `bus`.
pub(crate) fn size_cells(tree: &Tree<'_>, bus: NodeId) -> Option<u32> {
    cell_count(tree, bus, "#size-cells", 1)
}

/// `None` for a count that is no number or that no bus has.
fn cell_count(tree: &Tree<'_>, bus: NodeId, name: &str, default: u32) -> Option<u32> {
    if !tree.has(bus, name) {
        return Some(default);
    }
    tree.u32(bus, name).filter(|&count| count <= MAX_CELLS)
}

impl<'t, 'a> Buses<'t, 'a> {
    pub(crate) fn new(tree: &'t Tree<'a>) -> Self {
        let coherent_by_default = is_riscv(tree);
        Self { tree, windows: BTreeMap::new(), coherent_by_default }
    }

    /// The buses from `start` towards memory, bounded, so that a circle ends.
    fn way_up(&self, start: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        core::iter::successors(Some(start), |&id| self.tree.dma_parent(id)).take(2 * MAX_DEPTH)
    }

    /// Whether the DMA of `id` snoops the CPU's caches (`of_dma_is_coherent`).
    pub(crate) fn coherent(&self, id: NodeId) -> bool {
        for bus in self.way_up(id) {
            if self.tree.has(bus, "dma-coherent") {
                return true;
            }
            if self.tree.has(bus, "dma-noncoherent") {
                return false;
            }
        }
        self.coherent_by_default
    }

    /// What `id` reaches. A PCI host stands for its functions: its own `dma-ranges` come first.
    pub(crate) fn dma_windows(
        &mut self,
        id: NodeId,
        budget: &mut Budget,
        warnings: &mut Warnings,
    ) -> Result<Windows, BoardError> {
        let start = if self.tree.is_pci(id) { Some(id) } else { self.tree.dma_parent(id) };
        budget.spend(2 * MAX_DEPTH)?;
        let tree = self.tree;
        let bus = start.and_then(|start| {
            let mut buses = self.way_up(start);
            buses.find(|&b| b != 0 && tree.prop(b, "dma-ranges").is_some_and(|p| !p.is_empty()))
        });
        if bus.is_none() && start.is_some_and(|start| self.way_up(start).count() >= 2 * MAX_DEPTH) {
            warnings.push(Warning::CircularBus { path: self.tree.path(id) });
            return Ok(Windows { list: Arc::default(), broken: true });
        }
        if let Some(known) = self.windows.get(&bus) {
            return Ok(known.clone());
        }
        let windows = match bus {
            Some(bus) => self.read_windows(bus, budget, warnings)?,
            None => Windows { list: Arc::default(), broken: false },
        };
        self.windows.insert(bus, windows.clone());
        Ok(windows)
    }

    fn read_windows(
        &self,
        bus: NodeId,
        budget: &mut Budget,
        warnings: &mut Warnings,
    ) -> Result<Windows, BoardError> {
        let parent = self.tree.dma_parent(bus);
        let entries = self.entries(bus, parent, "dma-ranges", budget)?;
        let mut reason = "no entry reaches memory";
        if entries.is_none() {
            reason = "its length or its cell counts do not fit";
        }
        let mut windows: Vec<DmaWindow> = Vec::new();
        for entry in entries.unwrap_or_default() {
            let translated =
                self.translate("dma-ranges", parent, entry.parent, entry.len, budget)?;
            let Some((phys, len)) = translated else { continue };
            let emitted = DmaRange::new(DmaAddr::new(entry.child), len);
            let phys = PhysRange::new(PhysAddr::new(phys), len);
            if let (Ok(bus), Ok(phys)) = (emitted, phys) {
                let window = DmaWindow { bus, phys };
                match windows.last_mut() {
                    Some(last) if continues(last, &window) => extend(last, &window),
                    _ => windows.push(window),
                }
            }
        }
        let ambiguous = are_ambiguous(&windows);
        if ambiguous {
            reason = "two entries translate the same bus address differently";
        }
        let broken = ambiguous || windows.is_empty();
        if broken {
            windows.clear();
            let (path, property) = (self.tree.path(bus), "dma-ranges");
            let effect = "what the devices below reach is not known";
            warnings.push(Warning::BadProperty { path, property, reason, effect });
        }
        Ok(Windows { list: windows.into(), broken })
    }

    /// The entries of `property` at `bus`; `None` if they can't be read.
    fn entries(
        &self,
        bus: NodeId,
        parent: Option<NodeId>,
        property: &str,
        budget: &mut Budget,
    ) -> Result<Option<Vec<Entry>>, BoardError> {
        let value = self.tree.prop(bus, property).unwrap_or_default();
        budget.spend(value.len() / 4 + 1)?;
        let Some(parent) = parent else { return Ok(None) };
        let tree = self.tree;
        let counts = (address_cells(tree, bus), address_cells(tree, parent), size_cells(tree, bus));
        let (Some(child), Some(parent), Some(size)) = counts else { return Ok(None) };
        let entry_bytes = 4 * (child + parent + size) as usize;
        if entry_bytes == 0 || size == 0 || value.len() % entry_bytes != 0 {
            return Ok(None);
        }
        let mut cells = Cells::new(value);
        let mut entries = Vec::new();
        while !cells.is_empty() {
            let Some(entry) = read_entry(&mut cells, child, parent, size) else { return Ok(None) };
            if entry.len != 0 {
                entries.push(entry);
            }
        }
        Ok(Some(entries))
    }

    /// Takes an address of the bus `from` up to memory. Returns the address and how many of the
    /// `len` bytes stay together; `None` where a bus on the way does not pass it on.
    fn translate(
        &self,
        property: &'static str,
        from: Option<NodeId>,
        mut addr: u64,
        mut len: u64,
        budget: &mut Budget,
    ) -> Result<Option<(u64, u64)>, BoardError> {
        let dma = property == "dma-ranges";
        let mut at = from;
        for _ in 0..2 * MAX_DEPTH {
            let Some(bus) = at.filter(|&bus| bus != 0) else { return Ok(Some((addr, len))) };
            let parent = if dma { self.tree.dma_parent(bus) } else { self.tree.parent(bus) };
            match self.tree.prop(bus, property) {
                None if !dma => return Ok(None),
                None | Some([]) => {}
                Some(_) => {
                    let entries = self.entries(bus, parent, property, budget)?;
                    let Some(next) = entries.and_then(|list| pass_on(&list, addr, len)) else {
                        return Ok(None);
                    };
                    (addr, len) = next;
                }
            }
            at = parent;
        }
        Ok(None)
    }

    /// The `reg` of a node as the CPU sees it; what can't be translated is left out.
    pub(crate) fn registers(
        &self,
        id: NodeId,
        budget: &mut Budget,
    ) -> Result<Vec<PhysRange>, BoardError> {
        let mut found = Vec::new();
        let Some(parent) = self.tree.parent(id) else { return Ok(found) };
        let pci = self.tree.is_pci(parent);
        for (addr, len) in self.pairs(id, parent, "reg") {
            // The reg of a PCI function is its address in configuration space, not memory.
            if pci {
                break;
            }
            if let Some((phys, len)) = self.translate("ranges", Some(parent), addr, len, budget)? {
                found.extend(PhysRange::new(PhysAddr::new(phys), len).ok());
            }
        }
        Ok(found)
    }

    /// (address, size) pairs in the cells of `bus`, empty ones and a cut tail left out.
    pub(crate) fn pairs(
        &self,
        id: NodeId,
        bus: NodeId,
        property: &str,
    ) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let counts = (address_cells(self.tree, bus), size_cells(self.tree, bus));
        let value = self.tree.prop(id, property).unwrap_or_default();
        let mut cells = Cells::new(value);
        core::iter::from_fn(move || {
            let (Some(address), Some(size)) = counts else { return None };
            if address + size == 0 {
                return None;
            }
            Some((cells.number(address)?, cells.number(size)?))
        })
        .filter(|&(_, len)| len != 0)
    }
}

fn read_entry(cells: &mut Cells<'_>, child: u32, parent: u32, size: u32) -> Option<Entry> {
    Some(Entry {
        child: bus_address(cells, child)?,
        parent: bus_address(cells, parent)?,
        len: cells.number(size)?,
    })
}

/// An address of `count` cells. Of three, the first holds PCI's space code and is no part of it.
fn bus_address(cells: &mut Cells<'_>, count: u32) -> Option<u64> {
    if count == 3 {
        cells.skip(1)?;
        return cells.number(2);
    }
    cells.number(count)
}

fn pass_on(entries: &[Entry], addr: u64, len: u64) -> Option<(u64, u64)> {
    entries.iter().find_map(|entry| {
        let offset = addr.checked_sub(entry.child).filter(|&offset| offset < entry.len)?;
        Some((entry.parent.checked_add(offset)?, len.min(entry.len - offset)))
    })
}

/// Whether one bus address leads to two places. Which one it would be, the bus's hardware knows alone.
fn are_ambiguous(windows: &[DmaWindow]) -> bool {
    let mut sorted: Vec<_> = windows.iter().collect();
    sorted.sort_by_key(|window| window.bus.start());
    let mut last_of_run: Option<DmaAddr> = None;
    sorted.windows(2).any(|pair| {
        let last = last_of_run.map_or(pair[0].bus.last(), |last| last.max(pair[0].bus.last()));
        last_of_run = Some(last);
        pair[1].bus.start() <= last && pair[0].offset() != pair[1].offset()
    })
}

fn continues(last: &DmaWindow, next: &DmaWindow) -> bool {
    last.bus.is_followed_by(&next.bus) && last.phys.is_followed_by(&next.phys)
}

fn extend(last: &mut DmaWindow, next: &DmaWindow) {
    let bus = DmaRange::from_inclusive(last.bus.start(), next.bus.last());
    let phys = PhysRange::from_inclusive(last.phys.start(), next.phys.last());
    if let (Ok(bus), Ok(phys)) = (bus, phys) {
        *last = DmaWindow { bus, phys };
    }
}

/// RISC-V's platforms snoop unless they say otherwise; Arm's do not.
fn is_riscv(tree: &Tree<'_>) -> bool {
    let Some(cpus) = tree.child(0, "cpus") else { return false };
    tree.children(cpus).any(|cpu| {
        tree.has(cpu, "riscv,isa")
            || tree.has(cpu, "riscv,isa-base")
            || tree.strings(cpu, "compatible").any(|c| c == "riscv")
    })
}
