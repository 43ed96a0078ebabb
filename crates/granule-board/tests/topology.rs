//! Streams, masks, PCI maps, groups, and which nodes are devices.

mod common;

use common::{iommu, node, root, soc, streams, warnings};
use granule::addr::PageSizes;
use granule_board::{IommuKind, LookupError, Master, Stream, Warning};

#[test]
fn no_cells_one_cell_two_cells() {
    let board = root()
        .with(iommu(0x1000, "rockchip,iommu", 0, 1))
        .with(iommu(0x2000, "apple,t8103-dart", 1, 2))
        .with(iommu(0x3000, "qcom,smmu-500", 2, 3))
        .with(node("a").cells("iommus", &[1, 2, 7, 3, 0x820, 0x402]))
        .board();
    assert_eq!(streams(&board, "a"), [(0, 0, 0), (1, 7, 0), (2, 0x820, 0x402)]);
}

#[test]
fn stream_match_mask_counts_where_a_specifier_has_one_cell() {
    let smmu = |at, cells, phandle| {
        iommu(at, "nvidia,smmu-500", cells, phandle).cells("stream-match-mask", &[0x7f80])
    };
    let board = root()
        .with(smmu(0x1000, 1, 1))
        .with(smmu(0x2000, 2, 2))
        .with(iommu(0x3000, "arm,smmu-v3", 1, 3).cells("stream-match-mask", &[0x7f80]))
        .with(node("a").cells("iommus", &[1, 4, 2, 5, 1, 3, 6]))
        .board();
    assert_eq!(streams(&board, "a"), [(0, 4, 0x7f80), (1, 5, 1), (2, 6, 0)]);
}

#[test]
fn overlapping_streams_make_a_group_through_a_third_device() {
    let board = root()
        .with(iommu(0x1000, "arm,mmu-500", 2, 1))
        .with(iommu(0x2000, "arm,mmu-500", 2, 2))
        .with(node("a").cells("iommus", &[1, 0x10, 0]))
        .with(node("b").cells("iommus", &[1, 0x20, 0]))
        .with(node("c").cells("iommus", &[2, 0x10, 0]))
        .with(node("d").cells("iommus", &[1, 0x00, 0x30]))
        .with(node("e").cells("iommus", &[2, 0x11, 0, 2, 0x10, 0]))
        .with(node("f").cells("iommus", &[1, 0x40, 0xf, 2, 0x40, 0]))
        .with(node("g").cells("iommus", &[1, 0x48, 0x107]))
        .board();
    let group = |name| board.device(name).expect("it is there").group;
    assert_eq!(group("a"), group("d"));
    assert_eq!(group("b"), group("d"));
    assert_eq!(group("c"), group("e"));
    assert_eq!(group("f"), group("g"));
    let groups = [group("a"), group("c"), group("f")];
    assert_eq!(groups, [0, 1, 2]);
}

#[test]
fn overlap_is_equality_under_both_masks() {
    let stream = |id, mask| Stream { iommu: 0, id, mask };
    for a in 0..16 {
        for ma in 0..16 {
            for b in 0..16 {
                for mb in [0, 1, 6, 15] {
                    let (a, b) = (stream(a, ma), stream(b, mb));
                    let common = (0..16).any(|id| a.matches(id) && b.matches(id));
                    assert_eq!(a.overlaps(&b), common, "{a:?} {b:?}");
                }
            }
        }
    }
}

#[test]
fn a_pci_host_has_the_streams_of_its_functions() {
    let host = |name: &str, map: &[u32], mask: Option<u32>| {
        let host = node(name).strings("device_type", &["pci"]).cells("iommu-map", map);
        match mask {
            Some(mask) => host.cells("iommu-map-mask", &[mask]),
            None => host,
        }
    };
    let board = root()
        .with(iommu(0x1000, "arm,smmu-v3", 1, 1))
        .with(iommu(0x2000, "apple,t8103-dart", 1, 2))
        .with(host("pcie@1", &[0, 1, 0x4000, 0x1000], None))
        .with(host("pcie@2", &[0x100, 2, 1, 1, 0x200, 2, 3, 1], Some(0xff00)))
        .with(host("pcie@3", &[0, 1, 9, 0x1000], Some(0)))
        .with(host("pcie@4", &[3, 1, 0x8003, 6], None))
        .board();
    assert_eq!(streams(&board, "pcie@1"), [(0, 0x4000, 0xfff)]);
    assert_eq!(streams(&board, "pcie@2"), [(1, 1, 0), (1, 3, 0)]);
    assert_eq!(streams(&board, "pcie@3"), [(0, 9, 0)]);
    assert_eq!(streams(&board, "pcie@4"), [(0, 0x8003, 0), (0, 0x8004, 3), (0, 0x8008, 0)]);
    let map = |name: &str| board.device(name).expect("a host").pci.clone().expect("a map");
    let stream = |iommu, id| Some(Stream { iommu, id, mask: 0 });
    assert_eq!(map("pcie@1").stream(0x0123), stream(0, 0x4123));
    assert_eq!(map("pcie@1").stream(0x1000), None);
    assert_eq!(map("pcie@2").stream(0x2ff), stream(1, 3));
    assert_eq!(map("pcie@2").stream(0x3ff), None);
    assert_eq!(map("pcie@3").stream(0xffff), stream(0, 9));
    assert_eq!(map("pcie@4").stream(2), None);
}

#[test]
fn an_unknown_iommu_gets_a_warning_and_no_guess() {
    let board = root()
        .with(iommu(0x1000, "acme,iommu-9000", 1, 1))
        .with(node("a").cells("iommus", &[1, 5]))
        .board();
    let iommu = &board.iommus[0];
    assert_eq!(iommu.kind, IommuKind::Unknown);
    assert_eq!(iommu.page_sizes, PageSizes::default());
    assert!(iommu.formats.is_empty() && iommu.input_bits.is_none());
    assert_eq!(streams(&board, "a"), [(0, 5, 0)]);
    let compatible = "acme,iommu-9000".to_string();
    let path = "/iommu@1000".to_string();
    assert!(board.warnings.contains(&Warning::UnknownIommu { path, compatible }));
}

#[test]
fn iommus_that_cannot_be_read_never_make_a_direct_device() {
    let board = root()
        .with(iommu(0x1000, "arm,mmu-500", 2, 1))
        .with(node("missing").cells("iommus", &[77, 1]))
        .with(node("cut").cells("iommus", &[1, 5, 0, 1, 6]))
        .with(node("odd").bytes("iommus", &[0, 0, 0, 1, 0]))
        .with(node("empty").flag("iommus"))
        .with(node("other").cells("phandle", &[9]))
        .with(node("wrong").cells("iommus", &[9, 1]))
        .with(node("pcie@0").cells("iommu-map", &[0, 1, 2]))
        .with(node("pcie@1").cells("iommu-map", &[0, 1, 2, 1]).cells("iommu-map-mask", &[1, 2]))
        .board();
    for name in ["missing", "cut", "odd", "empty", "wrong", "pcie@0", "pcie@1"] {
        let device = board.device(name).expect("it is listed");
        assert!(device.unresolved && !device.is_direct(), "{name}");
        assert!(warnings(&board).contains(&format!("/{name}")), "{name} has a warning");
    }
    assert_eq!(streams(&board, "cut"), [(0, 5, 0)]);
}

#[test]
fn disabled_is_kept_and_marked_and_inherited() {
    let board = root()
        .with(iommu(0x1000, "apple,t8103-dart", 1, 1).strings("status", &["disabled"]))
        .with(node("a").cells("iommus", &[1, 0]).strings("status", &["okay"]))
        .with(soc().strings("status", &["fail"]).with(node("b").cells("iommus", &[1, 1])))
        .board();
    assert!(!board.iommus[0].enabled);
    assert!(board.device("a").expect("a").enabled);
    assert!(!board.device("b").expect("b").enabled);
    let disabled: Vec<_> =
        board.warnings.iter().filter(|w| matches!(w, Warning::DisabledIommu { .. })).collect();
    assert_eq!(disabled.len(), 1, "only the enabled device is worth a warning");
    assert!(matches!(board.device_or_direct("b"), Err(LookupError::Disabled { .. })));
}

#[test]
fn which_nodes_are_devices() {
    let plain =
        |name: &str| node(name).strings("compatible", &["acme,x"]).cells("reg", &[0, 1, 0, 1]);
    let board = root()
        .with(node("reserved-memory").with(node("r").cells("phandle", &[1])))
        .with(
            soc()
                .flag("dma-coherent")
                .with(plain("serial@1"))
                .with(plain("spi@2").flag("dma-coherent"))
                .with(plain("remoteproc@3").cells("memory-region", &[1]))
                .with(plain("dma@4").cells("#dma-cells", &[1]))
                .with(plain("ethernet@5").with(plain("usb@0")))
                .with(plain("usb@6").flag("ranges").with(plain("usb@7")))
                .with(
                    plain("pcie@8")
                        .strings("device_type", &["pci"])
                        .flag("ranges")
                        .with(plain("ethernet@9")),
                )
                .with(plain("msi@a").flag("dma-noncoherent").flag("msi-controller")),
        )
        .with(node("smem").cells("memory-region", &[1]))
        .board();
    let found: Vec<_> = board.devices.iter().map(|d| (d.path.as_str(), d.master)).collect();
    assert_eq!(
        found,
        [
            ("/soc/spi@2", Master::Coherency),
            ("/soc/remoteproc@3", Master::MemoryRegion),
            ("/soc/dma@4", Master::DmaController),
            ("/soc/ethernet@5", Master::GenericName),
            ("/soc/usb@6/usb@7", Master::GenericName),
            ("/soc/pcie@8", Master::PciHost),
        ]
    );
    assert!(board.devices.iter().all(|device| device.is_direct() && device.coherent));
    let serial = board.device_or_direct("serial").expect("an enabled node");
    assert_eq!((serial.master, serial.is_direct()), (Master::Named, true));
    assert!(board.devices.iter().all(|device| device.group != serial.group));
}

#[test]
fn coherency_is_inherited_and_can_be_taken_back() {
    let board = root()
        .with(iommu(0x1000, "arm,smmu-v3", 1, 1))
        .with(
            soc()
                .flag("dma-coherent")
                .with(node("a").cells("iommus", &[1, 0]))
                .with(node("b").cells("iommus", &[1, 1]).flag("dma-noncoherent")),
        )
        .with(node("c").cells("iommus", &[1, 2]))
        .board();
    let coherent = |name| board.device(name).expect("it is there").coherent;
    assert_eq!([coherent("a"), coherent("b"), coherent("c")], [true, false, false]);
    let riscv = root()
        .with(node("cpus").with(node("cpu@0").strings("riscv,isa", &["rv64gc"])))
        .with(iommu(0x1000, "riscv,iommu", 1, 1))
        .with(node("a").cells("iommus", &[1, 0]))
        .board();
    assert!(riscv.device("a").expect("a").coherent, "RISC-V snoops by default");
}

#[test]
fn iommus_that_say_too_much() {
    let board = root()
        .with(iommu(0x1000, "apple,t8103-dart", 3, 1))
        .with(iommu(0x2000, "arm,smmu-v3", 4_000_000_000, 2))
        .with(iommu(0x3000, "apple,t8103-dart", 1, 3).cells("apple,dma-range", &[0, 0, 0, 0]))
        .with(iommu(0x4000, "apple,t8103-dart", 1, 4).cells("apple,dma-range", &[1, 0, 0]))
        .with(iommu(0x5000, "arm,smmu-v2", 1, 9).cells("apple,dma-range", &[0, 0, 1, 0]))
        .with(node("smmu").flag("mmu-masters"))
        .with(node("a").cells("iommus", &[1, 5, 6, 7, 3, 8]))
        .board();
    assert_eq!(board.iommus.len(), 4);
    assert_eq!(streams(&board, "a"), [(0, 5, 0), (1, 8, 0)]);
    assert!(board.iommus.iter().all(|iommu| iommu.window.is_none()));
    let text = warnings(&board);
    let parts = [
        "/iommu@1000: 3 cells",
        "/iommu@2000",
        "/iommu@3000",
        "/iommu@4000",
        "/smmu",
        "only a DART",
    ];
    for part in parts {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}
