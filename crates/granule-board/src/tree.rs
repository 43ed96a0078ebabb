//! The blob as an arena of nodes with parents, properties and phandles.
//!
//! The tokens come from the `dtb` crate; nesting, limits and phandles are checked here.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use dtb::{Error as DtbError, Reader, StructItem};

use crate::cells::Cells;
use crate::limits::{MAX_BLOB_BYTES, MAX_DEPTH, MAX_NODES, MAX_PATH_BYTES};
use crate::{BoardError, Warning, Warnings};

const MAGIC: u32 = 0xd00d_feed;
const HEADER_BYTES: usize = 40;

/// Index of a node in its [`Tree`]; the root is 0.
pub(crate) type NodeId = usize;

/// One node.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) name: &'a str,
    pub(crate) parent: Option<NodeId>,
    path_len: usize,
    /// By name, each name once.
    props: Vec<(&'a str, &'a [u8])>,
    facts: Facts,
}

/// What children ask of the nodes above them; found once, since a property may be megabytes long.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    enabled: bool,
    pci: bool,
    simple_bus: bool,
    dma_mem: Option<NodeId>,
}

/// A parsed blob. Node 0 is the root and always exists.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    nodes: Vec<Node<'a>>,
    by_phandle: BTreeMap<u32, NodeId>,
    /// The memory reservation block: (address, size), in bytes.
    pub(crate) reservations: Vec<(u64, u64)>,
}

/// A blob at an address that is a multiple of eight, as the format asks for; copied if it is not.
pub(crate) struct AlignedBlob<'a> {
    bytes: Cow<'a, [u8]>,
    start: usize,
    len: usize,
}

impl<'a> AlignedBlob<'a> {
    /// Checks magic number and length. Bytes behind the length in the header are ignored.
    pub(crate) fn new(blob: &'a [u8]) -> Result<Self, BoardError> {
        let found = be32(blob, 0).unwrap_or(0);
        if found != MAGIC {
            return Err(BoardError::NotADeviceTree { found });
        }
        let needed = be32(blob, 4).unwrap_or(HEADER_BYTES as u32) as usize;
        let needed = needed.max(HEADER_BYTES);
        if needed > MAX_BLOB_BYTES {
            let limit = MAX_BLOB_BYTES as u64;
            return Err(BoardError::TooLarge { what: "the blob's size in bytes", limit });
        }
        let Some(used) = blob.get(..needed) else {
            return Err(BoardError::Truncated { len: blob.len() as u64, needed: needed as u64 });
        };
        if used.as_ptr() as usize % 8 == 0 {
            return Ok(Self { bytes: Cow::Borrowed(used), start: 0, len: needed });
        }
        let mut copy = vec![0; needed + 8];
        let start = (8 - copy.as_ptr() as usize % 8) % 8;
        for (to, from) in copy.iter_mut().skip(start).zip(used) {
            *to = *from;
        }
        Ok(Self { bytes: Cow::Owned(copy), start, len: needed })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl<'a> Tree<'a> {
    pub(crate) fn parse(
        blob: &'a AlignedBlob<'_>,
        warnings: &mut Warnings,
    ) -> Result<Self, BoardError> {
        let reader = Reader::read(blob.bytes()).map_err(malformed)?;
        let reservations = reader.reserved_mem_entries().map(|e| (e.address, e.size)).collect();
        let mut tree = Self { nodes: Vec::new(), by_phandle: BTreeMap::new(), reservations };
        tree.read_structure(&reader)?;
        if tree.nodes.is_empty() {
            return Err(BoardError::Malformed { reason: "it has no root node".into() });
        }
        for node in &mut tree.nodes {
            node.props.sort_by_key(|(name, _)| *name);
            node.props.dedup_by_key(|(name, _)| *name);
        }
        tree.index_phandles(warnings);
        for id in tree.ids() {
            let facts = tree.find_facts(id);
            if let Some(node) = tree.nodes.get_mut(id) {
                node.facts = facts;
            }
        }
        Ok(tree)
    }

    fn read_structure(&mut self, reader: &Reader<'a>) -> Result<(), BoardError> {
        let mut items = reader.struct_items();
        let mut open: Vec<NodeId> = Vec::new();
        loop {
            match items.next_item() {
                Ok(StructItem::BeginNode { name }) => {
                    let id = self.add_node(name, open.last().copied(), open.len())?;
                    open.push(id);
                }
                Ok(StructItem::Property { name, value }) => {
                    let node = open.last().and_then(|&id| self.nodes.get_mut(id));
                    let Some(node) = node else {
                        return Err(outside(&format!("the property '{name}'")));
                    };
                    node.props.push((name, value));
                }
                Ok(StructItem::EndNode) => {
                    if open.pop().is_none() {
                        return Err(outside("the end of a node"));
                    }
                }
                Err(DtbError::NoMoreStructItems) if open.is_empty() => return Ok(()),
                Err(DtbError::NoMoreStructItems) => {
                    let reason = format!("{} nodes are never closed", open.len());
                    return Err(BoardError::Malformed { reason });
                }
                Err(error) => return Err(malformed(error)),
            }
        }
    }

    fn add_node(
        &mut self,
        name: &'a str,
        parent: Option<NodeId>,
        depth: usize,
    ) -> Result<NodeId, BoardError> {
        if parent.is_none() && !self.nodes.is_empty() {
            return Err(outside(&format!("a second root node '{name}'")));
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(BoardError::TooLarge {
                what: "the number of nodes",
                limit: MAX_NODES as u64,
            });
        }
        if depth >= MAX_DEPTH {
            return Err(BoardError::TooLarge { what: "the nesting", limit: MAX_DEPTH as u64 });
        }
        let above = parent.and_then(|id| self.nodes.get(id)).map_or(0, |node| node.path_len);
        let path_len = if parent.is_none() { 0 } else { above + 1 + name.len() };
        if path_len > MAX_PATH_BYTES {
            let limit = MAX_PATH_BYTES as u64;
            return Err(BoardError::TooLarge { what: "a path's length in bytes", limit });
        }
        let facts = Facts::default();
        self.nodes.push(Node { name, parent, path_len, props: Vec::new(), facts });
        Ok(self.nodes.len() - 1)
    }

    fn index_phandles(&mut self, warnings: &mut Warnings) {
        for id in 0..self.nodes.len() {
            let phandle = self.u32(id, "phandle").or_else(|| self.u32(id, "linux,phandle"));
            let Some(phandle) = phandle.filter(|&p| p != 0 && p != u32::MAX) else { continue };
            if let Some(&first) = self.by_phandle.get(&phandle) {
                let (first, second) = (self.path(first), self.path(id));
                warnings.push(Warning::DuplicatePhandle { phandle, first, second });
            } else {
                self.by_phandle.insert(phandle, id);
            }
        }
    }

    pub(crate) fn ids(&self) -> core::ops::Range<NodeId> {
        0..self.nodes.len()
    }

    /// The node's name with its unit address; empty for the root and for no node.
    pub(crate) fn name(&self, id: NodeId) -> &'a str {
        self.nodes.get(id).map_or("", |node| node.name)
    }

    pub(crate) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.nodes.get(id).and_then(|node| node.parent)
    }

    /// The node, its parent, and so on up to the root. At most [`MAX_DEPTH`] of them.
    pub(crate) fn ancestors(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        core::iter::successors(Some(id), |&id| self.parent(id))
    }

    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.ids().filter(move |&child| self.parent(child) == Some(id))
    }

    /// The child of `id` with exactly this name.
    pub(crate) fn child(&self, id: NodeId, name: &str) -> Option<NodeId> {
        self.children(id).find(|&child| self.name(child) == name)
    }

    pub(crate) fn by_phandle(&self, phandle: u32) -> Option<NodeId> {
        self.by_phandle.get(&phandle).copied()
    }

    pub(crate) fn path(&self, id: NodeId) -> String {
        let mut names: Vec<&str> = self.ancestors(id).map(|id| self.name(id)).collect();
        names.pop();
        if names.is_empty() {
            return "/".into();
        }
        let mut path = String::new();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        path
    }

    /// The value of the property with this name (of the first one, where it stands there twice).
    pub(crate) fn prop(&self, id: NodeId, name: &str) -> Option<&'a [u8]> {
        let props = self.nodes.get(id).map(|node| node.props.as_slice()).unwrap_or_default();
        let at = props.binary_search_by_key(&name, |(key, _)| *key).ok()?;
        props.get(at).map(|(_, value)| *value)
    }

    pub(crate) fn props(&self, id: NodeId) -> impl Iterator<Item = (&'a str, &'a [u8])> + '_ {
        self.nodes.get(id).into_iter().flat_map(|node| node.props.iter().copied())
    }

    pub(crate) fn has(&self, id: NodeId, name: &str) -> bool {
        self.prop(id, name).is_some()
    }

    /// A property that is exactly one cell.
    pub(crate) fn u32(&self, id: NodeId, name: &str) -> Option<u32> {
        let value = self.prop(id, name)?;
        if value.len() == 4 { be32(value, 0) } else { None }
    }

    /// The strings of a property; what is not UTF-8 is left out.
    pub(crate) fn strings(
        &self,
        id: NodeId,
        name: &str,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let value = self.prop(id, name).unwrap_or_default();
        let parts = value.split(|&byte| byte == 0).filter(|part| !part.is_empty());
        parts.filter_map(|part| core::str::from_utf8(part).ok())
    }

    /// Needs the facts of the parent, which stands before its children.
    fn find_facts(&self, id: NodeId) -> Facts {
        let above = self.parent(id).is_none_or(|parent| self.enabled(parent));
        let own = match self.prop(id, "status") {
            None => true,
            Some(value) => matches!(value, b"okay\0" | b"ok\0"),
        };
        let buses = ["simple-bus", "simple-pm-bus", "simple-mfd"];
        Facts {
            enabled: above && own,
            pci: matches!(self.strings(id, "device_type").next(), Some("pci" | "pciex")),
            simple_bus: self.strings(id, "compatible").any(|c| buses.contains(&c)),
            dma_mem: self.find_dma_mem(id),
        }
    }

    /// The provider of the interconnect named `dma-mem`.
    fn find_dma_mem(&self, id: NodeId) -> Option<NodeId> {
        let index = self.strings(id, "interconnect-names").position(|name| name == "dma-mem")?;
        let mut cells = Cells::new(self.prop(id, "interconnects")?);
        for _ in 0..index {
            let provider = self.by_phandle(cells.cell()?)?;
            cells.skip(self.u32(provider, "#interconnect-cells")? as usize)?;
        }
        self.by_phandle(cells.cell()?)
    }

    fn facts(&self, id: NodeId) -> Facts {
        self.nodes.get(id).map(|node| node.facts).unwrap_or_default()
    }

    /// Whether the node and everything above it is in use. Anything but "okay" (or no status) is
    /// not: Devicetree Specification 2.3.4.
    pub(crate) fn enabled(&self, id: NodeId) -> bool {
        self.facts(id).enabled
    }

    /// Whether the node is a PCI host or bridge.
    pub(crate) fn is_pci(&self, id: NodeId) -> bool {
        self.facts(id).pci
    }

    /// Whether it is a bus without a driver of its own.
    pub(crate) fn is_simple_bus(&self, id: NodeId) -> bool {
        self.facts(id).simple_bus
    }

    /// The bus that carries the DMA of `id`: its parent, or what the interconnect named `dma-mem`
    /// says.
    pub(crate) fn dma_parent(&self, id: NodeId) -> Option<NodeId> {
        self.facts(id).dma_mem.or_else(|| self.parent(id))
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_be_bytes)
}

fn outside(what: &str) -> BoardError {
    BoardError::Malformed { reason: format!("{what} stands outside the root node") }
}

fn malformed(error: DtbError) -> BoardError {
    let reason = match error {
        DtbError::BadVersion | DtbError::UnsupportedCompVersion => {
            "its version is not 17, compatible with 16".into()
        }
        DtbError::BadStructToken => "an unknown token stands in its structure block".into(),
        DtbError::UnexpectedEndOfStruct => "its structure block ends early".into(),
        DtbError::UnexpectedEndOfBlob => "an offset points past its end".into(),
        DtbError::BadStrEncoding(_) => "a name in it is not text".into(),
        DtbError::BadNodeName | DtbError::BadPropertyName => "a name in it never ends".into(),
        other => format!("its blocks do not fit together ({other:?})"),
    };
    BoardError::Malformed { reason }
}
