//! Memory, reserved regions, bus windows, doorbells.

mod common;

use common::{Node, iommu, node, root, soc, warnings};
use granule::addr::{DmaAddr, PhysAddr};
use granule_board::{Board, BoardDevice, DmaWindow, IovaRegionKind, Warning};

fn windows(device: &BoardDevice) -> Vec<(u64, u64, u64)> {
    let tuple = |w: &DmaWindow| (w.bus.start().raw(), w.phys.start().raw(), w.bus.len());
    device.windows.iter().map(tuple).collect()
}

fn device() -> Node {
    node("dev").strings("compatible", &["granule,direct-master"])
}

fn windows_of(root: Node) -> Vec<(u64, u64, u64)> {
    windows(root.board().device("dev").expect("the device is there"))
}

/// A bus with 32-bit addresses.
fn bus(name: &str) -> Node {
    node(name).cells("#address-cells", &[1]).cells("#size-cells", &[1]).flag("ranges")
}

#[test]
fn memory_is_sorted_merged_and_without_empty_entries() {
    let memory =
        |name: &str, reg: &[u32]| node(name).strings("device_type", &["memory"]).cells("reg", reg);
    let board = root()
        .with(memory("memory@2", &[2, 0, 0, 0x1000]))
        .with(memory("memory@0", &[0, 0x1000, 0, 0x1000, 0, 0x2000, 0, 0x1000, 9, 0, 0, 0]))
        .with(memory("memory@1", &[0, 0x2800, 0, 0x1000]))
        .with(memory("memory@3", &[3, 0, 0, 0x1000]).strings("status", &["disabled"]))
        .with(memory("memory@f", &[0xffff_ffff, 0xffff_f000, 0, 0x2000]))
        .board();
    let found: Vec<_> = board.memory.iter().map(|r| (r.start().raw(), r.len())).collect();
    assert_eq!(found, [(0x1000, 0x2800), (0x2_0000_0000, 0x1000)]);
    assert!(board.warnings.contains(&Warning::OverlappingMemory { at: 0x2800 }));
    assert!(warnings(&board).contains("/memory@f"));
}

#[test]
fn no_memory_is_said() {
    let empty = root().with(node("memory@80000000").cells("reg", &[0, 0x8000_0000, 0, 0]));
    for board in [root().board(), empty.board()] {
        assert_eq!(board.warnings, [Warning::NoMemory]);
        assert!(board.memory.is_empty());
    }
}

#[test]
fn windows_are_inherited_and_empty_ones_are_looked_through() {
    let ranges = [0x8000_0000, 8, 0, 0x1000_0000];
    let expected = [(0x8000_0000, 0x8_0000_0000, 0x1000_0000)];
    let outer = || bus("outer").cells("dma-ranges", &ranges);
    assert_eq!(windows_of(root().with(outer().with(device()))), expected);
    assert_eq!(windows_of(root().with(outer().with(bus("inner").with(device())))), expected);
    let inner = bus("inner").flag("dma-ranges").with(device());
    assert_eq!(windows_of(root().with(outer().with(inner))), expected);
    assert_eq!(windows_of(root().with(bus("outer").with(device()))), []);
    assert_eq!(windows_of(root().with(bus("outer").flag("dma-ranges").with(device()))), []);
}

#[test]
fn windows_are_translated_and_clipped_by_the_buses_above() {
    let outer = bus("outer").cells("dma-ranges", &[0x4000_0000, 1, 0, 0x1000_0000]);
    let inner = bus("inner")
        .cells("dma-ranges", &[0, 0x4800_0000, 0x2000_0000, 0x7000_0000, 0x9000_0000, 0x1000]);
    let found = windows_of(root().with(outer.with(inner.with(device()))));
    assert_eq!(found, [(0, 0x1_0800_0000, 0x800_0000)], "clipped; the second one leads nowhere");
}

#[test]
fn neighbouring_entries_become_one_window() {
    let ranges = [0, 8, 0, 0x1000, 0x1000, 8, 0x1000, 0x1000, 0x2000, 9, 0, 0x1000];
    let found = windows_of(root().with(bus("outer").cells("dma-ranges", &ranges).with(device())));
    assert_eq!(found, [(0, 0x8_0000_0000, 0x2000), (0x2000, 0x9_0000_0000, 0x1000)]);
}

#[test]
fn a_pci_host_uses_its_own_windows() {
    let host = node("dev")
        .strings("device_type", &["pci"])
        .cells("#address-cells", &[3])
        .cells("#size-cells", &[2])
        .cells("dma-ranges", &[0x0200_0000, 0, 0x1000, 8, 0, 0, 0x1000]);
    assert_eq!(windows_of(root().with(host)), [(0x1000, 0x8_0000_0000, 0x1000)]);
}

#[test]
fn the_way_to_memory_may_be_an_interconnect() {
    let controller = bus("mc")
        .cells("phandle", &[5])
        .cells("#interconnect-cells", &[1])
        .flag("dma-coherent")
        .cells("dma-ranges", &[0, 1, 0, 0x1000]);
    let other = node("other").cells("phandle", &[6]).cells("#interconnect-cells", &[0]);
    let dev = device()
        .cells("interconnects", &[6, 5, 0x77])
        .strings("interconnect-names", &["read", "dma-mem"]);
    let board = root().with(controller).with(other).with(soc().with(dev)).board();
    let dev = board.device("dev").expect("the device is there");
    assert_eq!(windows(dev), [(0, 0x1_0000_0000, 0x1000)]);
    assert!(dev.coherent);
}

#[test]
fn a_way_to_memory_in_a_circle_ends() {
    let looped = |name: &str, own: u32, next: u32| {
        device_named(name)
            .cells("phandle", &[own])
            .cells("#interconnect-cells", &[0])
            .cells("interconnects", &[next])
            .strings("interconnect-names", &["dma-mem"])
    };
    let board = root().with(looped("a", 1, 2)).with(looped("b", 2, 1)).board();
    assert!(board.warnings.contains(&Warning::CircularBus { path: "/a".into() }));
    assert!(board.device("a").expect("a").unresolved);
}

fn device_named(name: &str) -> Node {
    node(name).strings("compatible", &["granule,direct-master"])
}

#[test]
fn windows_that_cannot_be_read_are_no_guess() {
    let cases = [
        (1, 1, vec![0, 8, 0]),
        (4_000_000_000, 1, vec![0; 8]),
        (0, 0, vec![0; 4]),
        (1, 1, vec![0, u32::MAX, u32::MAX, 0]),
        (3, 2, vec![1, 2, 3, u32::MAX, u32::MAX, 0, 2]),
    ];
    for (address, size, ranges) in cases {
        let bus = node("bus")
            .cells("#address-cells", &[address])
            .cells("#size-cells", &[size])
            .cells("dma-ranges", &ranges)
            .flag("ranges");
        let board = root().with(bus.with(device())).board();
        assert!(warnings(&board).contains("/bus: dma-ranges"), "{}", warnings(&board));
        let device = board.device("dev").expect("the device is there");
        assert!(device.unresolved && !device.is_direct());
        assert_eq!(device.phys_to_bus(PhysAddr::new(0x1000)), None);
        assert_eq!(device.bus_to_phys(DmaAddr::new(0x1000)), None);
    }
}

fn reserved() -> Node {
    node("reserved-memory").cells("#address-cells", &[2]).cells("#size-cells", &[2]).flag("ranges")
}

#[test]
fn reserved_memory_of_every_kind() {
    let board = root()
        .with(
            reserved()
                .with(
                    node("fw@1000")
                        .cells("reg", &[0, 0x1000, 0, 0x1000, 1, 0, 0, 0x2000])
                        .flag("no-map"),
                )
                .with(
                    node("cma")
                        .strings("compatible", &["shared-dma-pool"])
                        .cells("size", &[0, 0x40_0000])
                        .cells("alignment", &[0, 0x2000])
                        .cells("alloc-ranges", &[0, 0, 1, 0])
                        .flag("reusable")
                        .strings("status", &["disabled"]),
                ),
        )
        .blob_reserving(&[(0x7000, 0x1000)]);
    let board = Board::from_dtb(&board).expect("a well-formed tree");
    let [fw, cma, entry] = &board.reserved[..] else { panic!("three regions") };
    let ranges: Vec<_> = fw.ranges.iter().map(|r| (r.start().raw(), r.len())).collect();
    assert_eq!(ranges, [(0x1000, 0x1000), (0x1_0000_0000, 0x2000)]);
    assert!(fw.no_map && !fw.reusable && fw.enabled);
    assert_eq!((cma.size, cma.alignment), (Some(0x40_0000), Some(0x2000)));
    assert!(cma.ranges.is_empty() && cma.reusable && !cma.no_map && !cma.enabled);
    assert_eq!(cma.alloc_ranges[0].len(), 1 << 32);
    assert_eq!(cma.compatible, ["shared-dma-pool"]);
    assert_eq!((entry.path.as_str(), entry.ranges[0].start().raw()), ("", 0x7000));
}

#[test]
fn iommu_addresses_of_every_kind() {
    let board = root()
        .with(iommu(0x1000, "arm,smmu-v3", 1, 1))
        .with(bus("narrow").with(node("a").cells("iommus", &[1, 0]).cells("phandle", &[2])))
        .with(node("b").cells("iommus", &[1, 1]).cells("phandle", &[3]))
        .with(node("named").cells("phandle", &[4]))
        .with(
            reserved()
                .with(
                    node("shared@5000")
                        .cells("reg", &[0, 0x5000, 0, 0x2000])
                        .cells("iommu-addresses", &[2, 0x5000, 0x2000, 3, 0, 0x9000, 0, 0x1000]),
                )
                .with(node("hole").cells("iommu-addresses", &[3, 1, 0, 0, 0x1000, 4, 0, 0, 0, 1])),
        )
        .board();
    let regions = |name| board.device(name).expect("it is there").iova_regions.clone();
    let [direct] = regions("a")[..] else { panic!("one region") };
    assert_eq!((direct.kind(), direct.iova.len()), (IovaRegionKind::Direct, 0x2000));
    let [translated, hole] = regions("b")[..] else { panic!("two regions") };
    assert_eq!(translated.kind(), IovaRegionKind::Translated);
    assert_eq!(translated.phys.map(|p| (p.start().raw(), p.len())), Some((0x5000, 0x1000)));
    assert_eq!((hole.kind(), hole.iova.start().raw()), (IovaRegionKind::Reserved, 1 << 32));
    assert_eq!(regions("named").len(), 1, "naming a node makes it a device");
    let text = warnings(&board);
    assert!(
        text.contains("mapped for /b at IOVA 0x9000") && !text.contains("mapped for /a"),
        "{text}"
    );
}

#[test]
fn broken_references_to_memory_warn() {
    let board = root()
        .with(
            node("dev@1")
                .cells("reg", &[0, 1, 0, 1])
                .cells("phandle", &[2])
                .cells("memory-region", &[9, 3]),
        )
        .with(
            reserved()
                .with(node("ok").cells("phandle", &[3]))
                .with(node("cut").cells("iommu-addresses", &[2, 0, 0]))
                .with(node("gone").cells("iommu-addresses", &[8, 0, 0, 0, 1]))
                .with(node("empty").cells("iommu-addresses", &[2, 0, 0, 0, 0]))
                .with(node("odd").bytes("iommu-addresses", &[1, 2, 3]))
                .with(
                    node("long@0")
                        .cells("reg", &[0, 0, 0, 1])
                        .cells("iommu-addresses", &[2, 0, 0, 0, 2]),
                ),
        )
        .board();
    let text = warnings(&board);
    for part in
        ["/dev@1: memory-region refers to phandle 0x9", "/cut", "/gone", "/empty", "/odd", "/long"]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let device = board.device("dev").expect("the device is there");
    assert_eq!(device.memory_regions, [0]);
    assert_eq!(device.iova_regions[0].phys, None, "not enough memory behind it to map");
}

#[test]
fn registers_and_doorbells_are_translated() {
    let gic = bus("gic").cells("ranges", &[0, 1, 0x1000_0000, 0x100_0000]).with(
        node("its@40000")
            .strings("compatible", &["arm,gic-v3-its"])
            .cells("reg", &[0x4_0000, 0x2_0000])
            .cells("phandle", &[7]),
    );
    let closed = node("closed").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    let board = root()
        .with(gic)
        .with(node("pcie@0").strings("device_type", &["pci"]).cells("msi-map", &[0, 7, 0, 0x1000]))
        .with(node("pcie@1").strings("device_type", &["pci"]).cells("msi-parent", &[7, 0]))
        .with(node("pcie@2").strings("device_type", &["pci"]))
        .with(closed.with(iommu(0x1000, "arm,smmu-v3", 1, 1)))
        .with(iommu(0x2000, "arm,smmu-v3", 1, 2))
        .board();
    let doorbell = board.msi[0].doorbells[0];
    assert_eq!((doorbell.start().raw(), doorbell.len()), (0x1_1005_0040, 4));
    let msi = |name| board.device(name).expect("a host").msi;
    assert_eq!([msi("pcie@0"), msi("pcie@1"), msi("pcie@2")], [Some(0), Some(0), None]);
    assert!(board.iommus[0].registers.is_empty(), "a bus without ranges is not addressable");
    assert_eq!(board.iommus[1].registers[0].start().raw(), 0x2000);
}
