//! Broken and hostile blobs: an error or warnings, never a panic, never unbounded work.

mod common;

use common::{iommu, node, root};
use granule_board::{
    Board, BoardError, DEFAULT_BOARD, MAX_BLOB_BYTES, MAX_DEPTH, MAX_NODES, MAX_STREAMS,
    MAX_WARNINGS,
};
use proptest::prelude::*;

const BEGIN: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A blob around a hand-made structure block. The strings block holds "reg".
fn raw(structure: &[u32]) -> Vec<u8> {
    let size = structure.len() as u32 * 4;
    let total = 56 + size + 4;
    let header = [0xd00d_feed, total, 56, 56 + size, 40, 17, 16, 0, 4, size, 0, 0, 0, 0];
    let words = header.iter().chain(structure);
    let mut blob: Vec<u8> = words.flat_map(|word| word.to_be_bytes()).collect();
    blob.extend_from_slice(b"reg\0");
    blob
}

fn malformed(structure: &[u32]) -> bool {
    matches!(Board::from_dtb(&raw(structure)), Err(BoardError::Malformed { .. }))
}

#[test]
fn a_structure_that_is_none() {
    assert!(Board::from_dtb(&raw(&[BEGIN, 0, END_NODE, END])).is_ok());
    assert!(
        Board::from_dtb(&raw(&[NOP, BEGIN, 0, NOP, PROP, 0, 0, NOP, END_NODE, NOP, END])).is_ok()
    );
    assert!(malformed(&[END]));
    assert!(malformed(&[BEGIN, 0, END]));
    assert!(malformed(&[END_NODE, END]));
    assert!(malformed(&[BEGIN, 0, END_NODE, BEGIN, 0, END_NODE, END]));
    assert!(malformed(&[BEGIN, 0, END_NODE, PROP, 0, 0, END]));
    assert!(malformed(&[PROP, 0, 0, END]));
    assert!(malformed(&[BEGIN, 0, END_NODE]));
    assert!(malformed(&[BEGIN, 0, 77, END_NODE, END]));
    assert!(malformed(&[BEGIN, 0x6161_6161]));
    assert!(malformed(&[BEGIN, 0xff00_0000, END_NODE, END]));
    assert!(malformed(&[BEGIN, 0, PROP, u32::MAX, 0, END_NODE, END]));
    assert!(malformed(&[BEGIN, 0, PROP, 0, u32::MAX, END_NODE, END]));
}

#[test]
fn headers_that_lie() {
    let good = root().blob();
    assert!(Board::from_dtb(&good).is_ok());
    assert!(matches!(Board::from_dtb(&[]), Err(BoardError::NotADeviceTree { found: 0 })));
    assert!(matches!(Board::from_dtb(b"/dts-v1/;"), Err(BoardError::NotADeviceTree { .. })));
    assert!(matches!(Board::from_dtb(&good[..8]), Err(BoardError::Truncated { .. })));
    let with = |word: usize, value: u32| {
        let mut blob = good.clone();
        blob[word * 4..word * 4 + 4].copy_from_slice(&value.to_be_bytes());
        Board::from_dtb(&blob)
    };
    assert!(matches!(with(1, u32::MAX), Err(BoardError::TooLarge { .. })));
    assert!(matches!(with(1, good.len() as u32 + 1), Err(BoardError::Truncated { .. })));
    assert!(with(1, 0).is_err());
    for word in 2..10 {
        for value in [0, 1, 3, 39, 41, u32::MAX, u32::MAX - 3, 0x8000_0000] {
            let _ = with(word, value);
        }
    }
    assert!(with(2, u32::MAX).is_err() && with(3, u32::MAX).is_err() && with(9, 4).is_err());
}

#[test]
fn any_alignment_and_a_tail_are_fine() {
    let reference = Board::from_dtb(DEFAULT_BOARD).expect("the built-in board loads");
    for shift in 0..9 {
        let mut moved = vec![0xaa; shift];
        moved.extend_from_slice(DEFAULT_BOARD);
        moved.extend_from_slice(&[0x55; 13]);
        assert_eq!(Board::from_dtb(&moved[shift..]), Ok(reference.clone()));
    }
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| {
        let mut words = [BEGIN, 0].repeat(depth);
        words.extend([END_NODE].repeat(depth));
        words.push(END);
        Board::from_dtb(&raw(&words))
    };
    assert!(nested(MAX_DEPTH).is_ok());
    for depth in [MAX_DEPTH + 1, 300_000] {
        assert!(matches!(nested(depth), Err(BoardError::TooLarge { what: "the nesting", .. })));
    }
}

#[test]
fn nodes_paths_and_size_are_limited() {
    let mut words = vec![BEGIN, 0];
    words.extend([BEGIN, 0x6100_0000, END_NODE].repeat(MAX_NODES));
    words.extend([END_NODE, END]);
    let too_large =
        |words: &[u32]| matches!(Board::from_dtb(&raw(words)), Err(BoardError::TooLarge { .. }));
    assert!(too_large(&words));
    let mut long = vec![BEGIN, 0, BEGIN];
    long.extend([0x6161_6161].repeat(300));
    long.extend([0, END_NODE, END_NODE, END]);
    assert!(too_large(&long));
    assert!(too_large(&vec![NOP; MAX_BLOB_BYTES / 4]));
}

#[test]
fn streams_are_limited() {
    let ids: Vec<u32> = (0..=MAX_STREAMS as u32).flat_map(|id| [1, id]).collect();
    let tree =
        root().with(iommu(0x1000, "arm,smmu-v3", 1, 1)).with(node("a").cells("iommus", &ids));
    assert!(matches!(Board::from_dtb(&tree.blob()), Err(BoardError::TooLarge { .. })));
}

#[test]
fn work_is_limited() {
    // Masks that make a run of every single requester id.
    let map = [0, 1, 0, u32::MAX].repeat(4096);
    let scattered = root()
        .with(iommu(0x1000, "arm,smmu-v3", 1, 1))
        .with(node("pcie@0").cells("iommu-map", &map).cells("iommu-map-mask", &[0xfffe]));
    assert!(matches!(Board::from_dtb(&scattered.blob()), Err(BoardError::TooLarge { .. })));
    // A chain of buses, each with thousands of ranges that all have to be searched.
    let ranges = [0u32, 0, 1].repeat(3000);
    let mut bus = node("dev").strings("compatible", &["granule,direct-master"]);
    for _ in 0..40 {
        bus = node("b")
            .cells("#address-cells", &[1])
            .cells("#size-cells", &[1])
            .cells("dma-ranges", &ranges)
            .with(bus);
    }
    let chain = node("").cells("#address-cells", &[1]).cells("#size-cells", &[1]).with(bus);
    assert!(matches!(Board::from_dtb(&chain.blob()), Err(BoardError::TooLarge { .. })));
}

#[test]
fn warnings_are_limited() {
    let mut tree = root();
    for i in 0..2 * MAX_WARNINGS {
        tree = tree.with(node(&format!("d{i}")).cells("iommus", &[99]));
    }
    assert_eq!(tree.board().warnings.len(), MAX_WARNINGS + 1);
}

#[test]
fn a_bus_address_that_leads_to_two_places_is_not_believed() {
    let board = |ranges: &[u32]| {
        let device = node("dev").flag("dma-coherent");
        let bus = node("bus").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
        let bus = bus.strings("compatible", &["simple-bus"]);
        let bus = bus.cells("dma-ranges", ranges).with(device);
        let cells = root().cells("#address-cells", &[1]).cells("#size-cells", &[1]);
        cells.with(bus).board()
    };
    // Entries are (bus, memory, length). The third lies in the first, which the second hides.
    let unclear =
        board(&[0, 0x8000_0000, 0x10_0000, 0x1000, 0x8000_1000, 0x1000, 0x8000, 0, 0x1000]);
    let device = unclear.device("dev").expect("it is named");
    assert!(device.unresolved && device.windows.is_empty());
    assert!(common::warnings(&unclear).contains("translate the same bus address differently"));
    // Twice the same way is clear, and so are neighbours and holes.
    for clear in [
        [0, 0x8000_0000, 0x10_0000, 0x8000, 0x8000_8000, 0x1000],
        [0, 0x8000_0000, 0x8000, 0x8000, 0, 0x1000],
        [0x9000, 0x8000_0000, 0x8000, 0x8000, 0, 0x1000],
    ] {
        let board = board(&clear);
        assert!(!board.device("dev").expect("it is named").unresolved, "{clear:x?}");
    }
}

#[test]
fn duplicate_phandles_count_once() {
    let board = root()
        .with(iommu(0x1000, "apple,t8103-dart", 1, 1))
        .with(iommu(0x2000, "apple,t8103-dart", 1, 1))
        .with(node("a").cells("iommus", &[1, 0]))
        .board();
    assert_eq!(common::streams(&board, "a"), [(0, 0, 0)]);
    assert!(common::warnings(&board).contains("used by both /iommu@1000 and /iommu@2000"));
}

/// A board that uses every property.
fn rich() -> Vec<u8> {
    let map = [0x100, 2, 0x40, 4, 0x200, 2, 0x80, 1];
    let bus = node("bus")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1])
        .cells("ranges", &[0, 1, 0, 0x1000_0000])
        .cells("dma-ranges", &[0, 0, 0x8000_0000, 0x4000_0000, 0x5000_0000, 1, 0, 0x1000])
        .flag("dma-coherent");
    root()
        .strings("model", &["A board with everything"])
        .with(node("aliases").strings("a0", &["/bus/a@10"]).strings("p", &["/pcie@0"]))
        .with(node("memory@0").strings("device_type", &["memory"]).cells("reg", &[0, 0, 1, 0]))
        .with(
            node("reserved-memory").cells("#address-cells", &[2]).cells("#size-cells", &[2]).with(
                node("r@1000")
                    .cells("reg", &[0, 0x1000, 0, 0x1000])
                    .cells("iommu-addresses", &[4, 0x1000, 0x1000])
                    .cells("phandle", &[5]),
            ),
        )
        .with(iommu(0x1000, "qcom,smmu-500", 2, 1).cells("stream-match-mask", &[0x80]))
        .with(iommu(0x2000, "apple,t8103-dart", 1, 2).cells("apple,dma-range", &[1, 0, 0, 0x1000]))
        .with(
            bus.with(node("a@10").cells("iommus", &[1, 4, 1]).cells("phandle", &[4]))
                .with(node("mmc@20").strings("compatible", &["x"]).cells("memory-region", &[5])),
        )
        .with(
            node("pcie@0")
                .strings("device_type", &["pci"])
                .cells("iommu-map", &map)
                .cells("iommu-map-mask", &[0xfff0])
                .cells("msi-parent", &[6])
                .cells("interconnects", &[6])
                .strings("interconnect-names", &["dma-mem"]),
        )
        .with(
            node("its@8000")
                .strings("compatible", &["arm,gic-v3-its"])
                .cells("reg", &[0, 0x8000, 0, 0x2_0000])
                .cells("phandle", &[6]),
        )
        .blob_reserving(&[(0x9000, 0x1000)])
}

/// Whatever loads obeys what the types promise, and every name in it is found.
fn check(blob: &[u8]) {
    let Ok(board) = Board::from_dtb(blob) else { return };
    for device in &board.devices {
        assert!(device.streams.iter().all(|stream| stream.iommu < board.iommus.len()));
        assert!(device.memory_regions.iter().all(|&region| region < board.reserved.len()));
        assert!(device.iova_regions.iter().all(|region| region.reserved < board.reserved.len()));
        assert!(device.msi.is_none_or(|msi| msi < board.msi.len()));
        assert!(device.windows.iter().all(|window| window.bus.len() == window.phys.len()));
        assert!(!device.unresolved || !board.warnings.is_empty());
        assert!(
            board.device(&device.path).is_ok()
                || board.devices.iter().filter(|d| d.path == device.path).count() > 1
        );
        let _ = board.device_or_direct(&device.name);
    }
    let _ = board.device("no such thing");
    assert!(board.memory.windows(2).all(|pair| pair[0].last() < pair[1].start()));
    assert!(board.warnings.len() <= MAX_WARNINGS + 1);
}

#[test]
fn every_single_byte_may_be_wrong() {
    let good = rich();
    check(&good);
    for at in 0..good.len() {
        for value in [0, 0xff, good[at] ^ 1, good[at] ^ 0x80] {
            let mut blob = good.clone();
            blob[at] = value;
            check(&blob);
        }
    }
}

#[test]
fn every_cut_is_an_error() {
    for good in [rich(), DEFAULT_BOARD.to_vec()] {
        for len in 0..good.len() {
            let error = Board::from_dtb(&good[..len]).expect_err("a cut blob");
            assert!(matches!(
                error,
                BoardError::Truncated { .. } | BoardError::NotADeviceTree { .. }
            ));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn flipped_words_do_not_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>(), any::<bool>()), 1..12),
        builtin in any::<bool>(),
    ) {
        let mut blob = if builtin { DEFAULT_BOARD.to_vec() } else { rich() };
        for (index, value, small) in flips {
            let at = index.index(blob.len() / 4) * 4;
            let value = if small { value % 12 } else { value };
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        check(&blob);
    }

    #[test]
    fn random_structure_blocks_do_not_panic(
        words in prop::collection::vec(prop_oneof![Just(BEGIN), Just(END_NODE), Just(PROP), Just(NOP), Just(END), 0u32..16, any::<u32>()], 0..64),
    ) {
        check(&raw(&words));
        let mut nested = vec![BEGIN, 0];
        nested.extend(words);
        nested.extend([END_NODE, END]);
        check(&raw(&nested));
    }

    #[test]
    fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
        let mut blob = 0xd00d_feedu32.to_be_bytes().to_vec();
        blob.extend((bytes.len() as u32).to_be_bytes());
        blob.extend(bytes);
        check(&blob);
    }
}
