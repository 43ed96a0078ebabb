//! Reads what the image needs out of a flattened device tree. Nothing is allocated.
//!
//! Addresses and lengths take two cells each, as everywhere in QEMU's `virt` machines.
#![cfg_attr(target_arch = "x86_64", allow(dead_code))] // Its machine is found through ACPI.

use dtb::{Reader, StructItem};

use super::Span;

/// A device tree, where the machine left it.
pub(crate) struct Tree<'t>(Reader<'t>);

/// How a node is found.
#[derive(Clone, Copy)]
pub(crate) enum Node<'n> {
    /// By its name, without the address.
    Named(&'n str),
    /// By one of the strings of its property `compatible`.
    Compatible(&'n str),
}

impl Tree<'static> {
    /// The tree at an address; `None` if there is none.
    pub(crate) fn at(address: u64) -> Option<Self> {
        // SAFETY: the machine leaves the tree where it is, in memory that the image never takes and
        // that is mapped one to one; the header is checked.
        unsafe { Reader::read_from_address(address as usize) }.ok().map(Self)
    }
}

impl<'t> Tree<'t> {
    /// The value of a property of the first such node.
    pub(crate) fn property(&self, node: Node<'_>, name: &str) -> Option<&'t [u8]> {
        let wanted = self.number_of(node)?;
        self.properties().find_map(|(number, property, value)| {
            (number == wanted && property == name).then_some(value)
        })
    }

    /// A property that is a string.
    pub(crate) fn text(&self, node: Node<'_>, name: &str) -> Option<&'t str> {
        core::str::from_utf8(self.property(node, name)?).ok()?.split('\0').next()
    }

    /// The first range of a node's `reg`.
    pub(crate) fn reg(&self, node: Node<'_>) -> Option<Span> {
        let reg = self.property(node, "reg")?;
        Some((pair(reg, 0)?, pair(reg, 2)?))
    }

    /// Where a PCI host puts 32-bit memory BARs: the first such entry of `ranges`, each of which is a
    /// PCI address of three cells, the first with the kind, an address and a length.
    pub(crate) fn pci_memory(&self, node: Node<'_>) -> Option<Span> {
        const KIND: u32 = 0x0300_0000;
        const MEMORY_32: u32 = 0x0200_0000;
        let ranges = self.property(node, "ranges")?;
        (0..ranges.len() / 28).map(|entry| entry * 7).find_map(|first| {
            let kind = cell(ranges, first)? & KIND;
            (kind == MEMORY_32).then_some((pair(ranges, first + 3)?, pair(ranges, first + 5)?))
        })
    }

    /// The node's number, in the order of the tree.
    fn number_of(&self, node: Node<'_>) -> Option<usize> {
        match node {
            Node::Named(wanted) => self.names().position(|name| name == wanted).map(|at| at + 1),
            Node::Compatible(wanted) => self.properties().find_map(|(number, name, value)| {
                let mut strings = value.split(|byte| *byte == 0);
                let found = name == "compatible" && strings.any(|text| text == wanted.as_bytes());
                found.then_some(number)
            }),
        }
    }

    fn items(&self) -> impl Iterator<Item = StructItem<'t>> {
        let mut items = self.0.struct_items();
        core::iter::from_fn(move || items.next_item().ok())
    }

    fn names(&self) -> impl Iterator<Item = &'t str> {
        self.items().filter(StructItem::is_begin_node).map(|item| item.node_name().unwrap_or(""))
    }

    /// All properties with the number of their node. A node's properties come before its children.
    fn properties(&self) -> impl Iterator<Item = (usize, &'t str, &'t [u8])> {
        let mut number = 0;
        self.items().filter_map(move |item| {
            number += usize::from(item.is_begin_node());
            item.is_property().then_some((number, item.name().ok()?, item.value().ok()?))
        })
    }
}

fn cell(value: &[u8], index: usize) -> Option<u32> {
    let bytes = value.get(index * 4..index * 4 + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Two cells.
fn pair(value: &[u8], index: usize) -> Option<u64> {
    Some(u64::from(cell(value, index)?) << 32 | u64::from(cell(value, index + 1)?))
}
