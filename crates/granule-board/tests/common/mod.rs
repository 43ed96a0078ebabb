//! Small device trees for the tests.
#![allow(dead_code, unreachable_pub)] // Every test crate uses its own part of this.

use granule_board::Board;
use vm_fdt::{FdtReserveEntry, FdtWriter};

/// A node under construction.
pub struct Node {
    name: String,
    props: Vec<(String, Vec<u8>)>,
    children: Vec<Node>,
}

pub fn node(name: &str) -> Node {
    Node { name: name.into(), props: Vec::new(), children: Vec::new() }
}

/// A root with two address and two size cells, so that addresses below are pairs.
pub fn root() -> Node {
    node("").cells("#address-cells", &[2]).cells("#size-cells", &[2])
}

/// A bus that passes everything through.
pub fn soc() -> Node {
    node("soc")
        .strings("compatible", &["simple-bus"])
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .flag("ranges")
}

/// An IOMMU with its registers at `at`.
pub fn iommu(at: u32, compatible: &str, cells: u32, phandle: u32) -> Node {
    node(&format!("iommu@{at:x}"))
        .strings("compatible", &[compatible])
        .cells("reg", &[0, at, 0, 0x1000])
        .cells("#iommu-cells", &[cells])
        .cells("phandle", &[phandle])
}

impl Node {
    pub fn cells(self, name: &str, cells: &[u32]) -> Self {
        self.bytes(name, &cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<_>>())
    }

    pub fn strings(self, name: &str, strings: &[&str]) -> Self {
        self.bytes(
            name,
            &strings.iter().flat_map(|s| [s.as_bytes(), b"\0"].concat()).collect::<Vec<_>>(),
        )
    }

    pub fn flag(self, name: &str) -> Self {
        self.bytes(name, &[])
    }

    pub fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.props.retain(|(known, _)| known != name);
        self.props.push((name.into(), value.into()));
        self
    }

    pub fn with(mut self, child: Node) -> Self {
        self.children.push(child);
        self
    }

    fn write(&self, fdt: &mut FdtWriter) {
        let open = fdt.begin_node(&self.name).expect("a legal node name");
        for (name, value) in &self.props {
            fdt.property(name, value).expect("a legal property");
        }
        for child in &self.children {
            child.write(fdt);
        }
        fdt.end_node(open).expect("a balanced tree");
    }

    pub fn blob(&self) -> Vec<u8> {
        self.blob_reserving(&[])
    }

    pub fn blob_reserving(&self, reserved: &[(u64, u64)]) -> Vec<u8> {
        let entries: Vec<_> = reserved
            .iter()
            .map(|&(start, len)| FdtReserveEntry::new(start, len).expect("a legal reservation"))
            .collect();
        let mut fdt = FdtWriter::new_with_mem_reserv(&entries).expect("legal reservations");
        self.write(&mut fdt);
        fdt.finish().expect("a balanced tree")
    }

    pub fn board(&self) -> Board {
        Board::from_dtb(&self.blob()).expect("a well-formed tree")
    }
}

/// All warnings, as a person reads them.
pub fn warnings(board: &Board) -> String {
    board.warnings.iter().map(|warning| format!("{warning}\n")).collect()
}

/// The streams of a device as (IOMMU, id, mask).
pub fn streams(board: &Board, device: &str) -> Vec<(usize, u32, u32)> {
    let device = board.device(device).expect("the device is there");
    device.streams.iter().map(|s| (s.iommu, s.id, s.mask)).collect()
}
