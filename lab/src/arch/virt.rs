//! What QEMU's `virt` machines have in common: a device tree says it.

use super::tree::{Node, Tree};
use super::{Boot, Span, Tables};

/// The node of the PCI host.
const PCI_HOST: Node<'static> = Node::Compatible("pci-host-ecam-generic");

unsafe extern "C" {
    /// The first byte behind the image.
    static image_end: u8;
}

/// What the machine's device tree says.
pub(super) fn boot(address: u64) -> Boot {
    let found = Tree::at(address).and_then(|tree| {
        Some(Boot {
            command_line: tree.text(Node::Named("chosen"), "bootargs").unwrap_or(""),
            memory: free_memory(tree.reg(Node::Named("memory"))?, address),
            ecam: tree.reg(PCI_HOST)?,
            bars: Some(tree.pci_memory(PCI_HOST)?),
            tables: Tables::DeviceTree(address),
        })
    });
    found.unwrap_or_else(|| panic!("no device tree at {address:#x} that names memory and PCI"))
}

/// The memory behind the image, up to the device tree if that comes later.
fn free_memory((start, len): Span, tree: u64) -> Span {
    let begin = &raw const image_end as u64;
    let end = if tree > begin { tree.min(start + len) } else { start + len };
    (begin, end - begin)
}
