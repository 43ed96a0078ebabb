//! The IOMMUs of a board: every node with `#iommu-cells`.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use granule::addr::{DmaAddr, DmaRange, PageSizes};

use crate::bus::Buses;
use crate::cells::Cells;
use crate::limits::Budget;
use crate::names::NameIndex;
use crate::tree::{NodeId, Tree};
use crate::{BoardError, BoardIommu, IommuFacts, IommuKind, Stream, Warning, Warnings};

/// More cells than any binding has.
const MAX_SPECIFIER_CELLS: u32 = 8;

/// The IOMMUs and where their nodes are.
#[derive(Debug, Default)]
pub(crate) struct Iommus {
    pub(crate) list: Vec<BoardIommu>,
    by_node: BTreeMap<NodeId, usize>,
}

impl Iommus {
    pub(crate) fn collect(
        tree: &Tree<'_>,
        buses: &Buses<'_, '_>,
        names: &NameIndex,
        budget: &mut Budget,
        warnings: &mut Warnings,
    ) -> Result<Self, BoardError> {
        let mut iommus = Self::default();
        for id in tree.ids() {
            if tree.has(id, "mmu-masters") {
                warnings.push(Warning::LegacyMasters { path: tree.path(id) });
            }
            if !tree.has(id, "#iommu-cells") {
                continue;
            }
            let cells = tree.u32(id, "#iommu-cells").filter(|&cells| cells <= MAX_SPECIFIER_CELLS);
            let Some(cells) = cells else {
                bad(tree, id, "#iommu-cells", "it is no small number", warnings);
                continue;
            };
            let registers = buses.registers(id, budget)?;
            let mut iommu = read(tree, id, cells, warnings);
            iommu.aliases = names.of(id);
            // Linux's driver relies on DARTs to snoop, whatever their tree says.
            iommu.coherent = iommu.kind == IommuKind::Dart || buses.coherent(id);
            iommu.registers = registers;
            iommus.by_node.insert(id, iommus.list.len());
            iommus.list.push(iommu);
        }
        Ok(iommus)
    }

    /// The index of the IOMMU at this node.
    pub(crate) fn index_of(&self, node: NodeId) -> Option<usize> {
        self.by_node.get(&node).copied()
    }

    /// Reads one specifier of the IOMMU `index`; `None` if it is cut.
    pub(crate) fn stream(&self, index: usize, cells: &mut Cells<'_>) -> Option<Stream> {
        let iommu = self.list.get(index)?;
        let masks = iommu.kind.has_stream_masks();
        let id = if iommu.cells == 0 { 0 } else { cells.cell()? };
        let mut mask = if masks { iommu.stream_match_mask } else { 0 };
        if iommu.cells >= 2 {
            let second = cells.cell()?;
            cells.skip(iommu.cells as usize - 2)?;
            mask = if masks { second } else { 0 };
        }
        Some(Stream { iommu: index, id, mask })
    }
}

fn read(tree: &Tree<'_>, id: NodeId, cells: u32, warnings: &mut Warnings) -> BoardIommu {
    let compatible: Vec<String> = tree.strings(id, "compatible").map(ToString::to_string).collect();
    let first = compatible.first().cloned().unwrap_or_default();
    let facts = IommuFacts::of(compatible.iter().map(String::as_str));
    let kind = facts.map_or(IommuKind::Unknown, |facts| facts.kind);
    if facts.is_none() {
        let (path, compatible) = (tree.path(id), first);
        warnings.push(Warning::UnknownIommu { path, compatible });
    } else if cells > if kind.has_stream_masks() { 2 } else { 1 } {
        warnings.push(Warning::UnknownSpecifier { path: tree.path(id), compatible: first, cells });
    }
    BoardIommu {
        path: tree.path(id),
        name: tree.name(id).to_string(),
        aliases: Vec::new(),
        kind,
        page_sizes: facts.map_or(PageSizes::default(), |facts| facts.page_sizes),
        formats: facts.map_or(&[], |facts| facts.formats),
        input_bits: facts.and_then(|facts| facts.input_bits),
        output_bits: facts.and_then(|facts| facts.output_bits),
        bypass: facts.and_then(|facts| facts.bypass),
        probed: facts.is_some_and(|facts| facts.probed),
        window: window(tree, id, kind, warnings),
        registers: Vec::new(),
        cells,
        stream_match_mask: match_mask(tree, id, warnings),
        coherent: false,
        enabled: tree.enabled(id),
        locked_streams: locked_streams(tree, id, warnings),
        compatible,
    }
}

/// `apple,dma-range`: start and size, 64 bits each. Others than DARTs do not have it.
fn window(
    tree: &Tree<'_>,
    id: NodeId,
    kind: IommuKind,
    warnings: &mut Warnings,
) -> Option<DmaRange> {
    let value = tree.prop(id, "apple,dma-range")?;
    if !matches!(kind, IommuKind::Dart | IommuKind::Unknown) {
        bad(tree, id, "apple,dma-range", "only a DART has one", warnings);
        return None;
    }
    let mut cells = Cells::new(value);
    let pair = cells.number(2).zip(cells.number(2)).filter(|_| cells.is_empty());
    let window = pair.and_then(|(start, len)| DmaRange::new(DmaAddr::new(start), len).ok());
    if window.is_none() {
        bad(tree, id, "apple,dma-range", "it is no 64-bit start and size", warnings);
    }
    window
}

fn match_mask(tree: &Tree<'_>, id: NodeId, warnings: &mut Warnings) -> u32 {
    if !tree.has(id, "stream-match-mask") {
        return 0;
    }
    tree.u32(id, "stream-match-mask").unwrap_or_else(|| {
        bad(tree, id, "stream-match-mask", "it is not one cell", warnings);
        0
    })
}

fn locked_streams(tree: &Tree<'_>, id: NodeId, warnings: &mut Warnings) -> Vec<u32> {
    let mut cells = Cells::new(tree.prop(id, "granule,locked-streams").unwrap_or_default());
    let streams = core::iter::from_fn(|| cells.cell()).collect();
    if !cells.is_empty() {
        bad(tree, id, "granule,locked-streams", "its length is no multiple of four", warnings);
    }
    streams
}

fn bad(
    tree: &Tree<'_>,
    id: NodeId,
    property: &'static str,
    reason: &'static str,
    warnings: &mut Warnings,
) {
    let effect = "it is ignored";
    warnings.push(Warning::BadProperty { path: tree.path(id), property, reason, effect });
}
