//! Names, bits, geometry, attributes, fences, dumps: what each format says, against its specification.

use proptest::prelude::*;

use super::*;
use crate::addr::{Granule, MemoryKind};

fn kinds() -> [MemoryKind; 3] {
    [MemoryKind::Coherent, MemoryKind::NonCoherent, MemoryKind::Device]
}

#[test]
fn names_go_both_ways() {
    for id in FormatId::ALL {
        assert_eq!(std::format!("{id}").parse(), Ok(*id));
    }
    assert_eq!("lpae".parse::<FormatId>(), Err(UnknownFormat));
    assert_eq!("dart1".parse::<FormatId>(), Ok(FormatId::Dart1));
}

fn consistent<F: Format>() {
    assert_eq!(F::LEAF_LEVELS & 1, 1);
    assert!(F::INDEX_BITS >= 3 && F::MAX_LEVELS <= 6 && F::MAX_INPUT_BITS < 64);
    assert_eq!(F::ADDRESS_MASK & (1 << 6), 0, "the mark of detached tables is no address bit");
    for access in [Access::READ, Access::WRITE, Access::READ | Access::WRITE] {
        for kind in kinds() {
            let asked = Attributes { access, kind };
            let got = F::effective(asked);
            assert!(got.access.contains(access), "never less than asked");
            assert_eq!(F::effective(got), got);
            for level in (0..F::MAX_LEVELS).filter(|level| F::LEAF_LEVELS >> level & 1 == 1) {
                let leaf = F::leaf(asked, level, 0);
                assert_eq!(F::kind(leaf, level), Kind::Leaf);
                assert_eq!(F::attributes(leaf), got);
                assert_eq!(leaf & F::ADDRESS_MASK, 0);
            }
        }
    }
    for level in 1..F::MAX_LEVELS {
        assert_eq!(F::kind(F::table(level), level), Kind::Table);
        assert_eq!(F::kind(F::table(level) | F::SYNCED, level), Kind::Table);
    }
    for level in 0..F::MAX_LEVELS {
        assert_eq!(F::kind(0, level), Kind::Invalid);
        // A detached entry is invalid at every level, wherever its table lies.
        assert_eq!(F::kind(F::ADDRESS_MASK & !0xfff | 1 << 6, level), Kind::Invalid);
    }
}
every_format!(formats_are_consistent, consistent);

#[test]
fn entries_are_the_specifications() {
    use crate::table::format::encode;
    let read = Attributes::memory(Access::READ);
    let write = Attributes::memory(Access::WRITE);
    assert_eq!(Dart1::leaf(RW, 0, 0), 0x000f_ff00_0000_0003);
    assert_eq!(Dart1::leaf(read, 0, 0), 0x000f_ff00_0000_0083);
    assert_eq!(Dart1::leaf(write, 0, 0), 0x000f_ff00_0000_0103);
    assert_eq!(Dart2::leaf(RW, 0, 0), 0x000f_ff00_0000_0001);
    assert_eq!(Dart2::leaf(read, 0, 0), 0x000f_ff00_0000_0005);
    assert_eq!(Dart2::leaf(write, 0, 0), 0x000f_ff00_0000_0009);
    let device = Attributes { kind: MemoryKind::Device, ..RW };
    assert_eq!(Dart2::leaf(device, 0, 0), 0x000f_ff00_0000_0003);
    assert_eq!(encode::<Dart1>(0xf_ffff_c000), 0xf_ffff_c000);
    assert_eq!(encode::<Dart2>(0x3ff_ffff_c000), 0x3f_ffff_fc00);
    // AttrIndx 1, AP 01, SH 11, AF, nG, PXN, UXN; a page; then a block, read-only, contiguous.
    assert_eq!(Lpae4k::leaf(RW, 0, 0), 0x0060_0000_0000_0f47);
    assert_eq!(Lpae4k::leaf(read, 1, 4), 0x0070_0000_0000_0fc5);
    assert_eq!(Lpae64k::leaf(device, 0, 0), 0x0060_0000_0000_0e4b);
    let loose = Attributes { kind: MemoryKind::NonCoherent, ..RW };
    assert_eq!(Lpae16k::leaf(loose, 0, 0), 0x0060_0000_0000_0e43);
    assert_eq!(Lpae4k::effective(write).access, RW.access, "write implies read");
    assert_eq!(Dart1::effective(write).access, Access::WRITE);
    assert_eq!(MAIR.to_le_bytes()[..3], [0x44, 0xff, 0x04]);
}

#[test]
fn entries_of_vtd_and_riscv_are_the_specifications() {
    use crate::table::format::encode;
    let read = Attributes::memory(Access::READ);
    let write = Attributes::memory(Access::WRITE);
    assert_eq!(
        [Vtd2::leaf(RW, 0, 0), Vtd2::leaf(read, 1, 0), Vtd2::leaf(write, 2, 0)],
        [3, 0x81, 0x82]
    );
    assert_eq!(Vtd2::kind(0x83, 3), Kind::Invalid, "no pages of 512 GiB");
    assert_eq!([Sv39::leaf(RW, 0, 0), Sv39::leaf(read, 1, 0)], [0xd7, 0xd3]);
    assert_eq!(Sv48::leaf(RW, 0, 4), 0x8000_0000_0000_20d7);
    assert_eq!(Sv57::effective(write).access, RW.access, "write implies read");
    assert_eq!(encode::<Sv39>(0x8000_1000), 0x2000_0400);
}

#[test]
fn entries_of_amd_are_the_specifications() {
    let read = Attributes::memory(Access::READ);
    let loose = Attributes { kind: MemoryKind::NonCoherent, ..RW };
    assert_eq!(Amdv1::leaf(RW, 0, 0), 0x7000_0000_0000_0001);
    assert_eq!(Amdv1::leaf(read, 2, 0), 0x3000_0000_0000_0001);
    assert_eq!(Amdv1::leaf(loose, 1, 0), 0x6000_0000_0000_0001);
    // 8 KiB, 16 KiB, 1 MiB, 4 MiB: next level 7, and the size below the lowest 0.
    assert_eq!(Amdv1::leaf(loose, 0, 1), 0x6000_0000_0000_0e01);
    assert_eq!(Amdv1::leaf(loose, 0, 2), 0x6000_0000_0000_1e01);
    assert_eq!(Amdv1::leaf(loose, 0, 8), 0x6000_0000_0007_fe01);
    assert_eq!(Amdv1::leaf(loose, 1, 1), 0x6000_0000_001f_fe01);
    assert_eq!(
        [1, 2, 3, 4].map(Amdv1::table),
        [1, 2, 3, 4].map(|n| 0x6000_0000_0000_0001 | n << 9)
    );
    let group = 0x6000_0008_0000_1e01;
    assert_eq!((Amdv1::kind(group, 0), Amdv1::group(group, 0)), (Kind::Leaf, 2));
    assert_eq!(Amdv1::kind(group, 1), Kind::Invalid, "16 KiB are no size of level 1");
    assert_eq!(Amdv1::kind(0x6000_0000_0000_0001, 3), Kind::Invalid, "no pages of 512 GiB");
    assert_eq!(Amdv1::kind(0x6000_0000_0000_0201, 2), Kind::Invalid, "no skipped levels");
    let sizes = table::<Amdv1>(&TestMemory::new(), 48).page_sizes();
    assert_eq!(sizes.bits(), (1 << 39) - (1 << 12), "every power of two to 256 GiB");
    let only_16k = [4096, 16 << 10].into_iter().collect();
    let config = TableConfig::new(48, 52).limited_to(only_16k);
    let table = PageTable::<Amdv1, _>::new(TestMemory::new(), config).expect("a table");
    map(&table, 0x3000, 0x10_3000, 0xa000).expect("free");
    let sizes: Vec<_> = leaves(&table).iter().map(|leaf| leaf.1).collect();
    assert_eq!(sizes, [0x1000, 0x4000, 0x4000, 0x1000]);
}

fn shape<F: Format>(input: u32) -> (u32, usize, u64, u32) {
    let layout = table::<F>(&TestMemory::new(), input).layout();
    (layout.levels, layout.roots.len(), layout.root_entry_bytes, layout.input_bits)
}

#[test]
fn geometry_follows_the_input_bits() {
    const M: u64 = 1 << 20;
    assert_eq!(shape::<Dart1>(32), (2, 1, 32 * M, 32));
    assert_eq!(shape::<Dart1>(36), (2, 1, 32 * M, 36));
    assert_eq!(shape::<Dart1>(37), (2, 2, 32 * M, 37));
    assert_eq!(shape::<Dart2>(38), (2, 4, 32 * M, 38));
    assert_eq!(shape::<Dart2>(42), (3, 1, 64 << 30, 42));
    assert_eq!(shape::<Lpae4k>(48), (4, 1, 512 << 30, 48));
    assert_eq!(shape::<Lpae4k>(39), (3, 1, 1 << 30, 39));
    assert_eq!(shape::<Lpae4k>(25), (2, 1, 2 * M, 25));
    assert_eq!(shape::<Lpae16k>(47), (3, 1, 64 << 30, 47));
    assert_eq!(shape::<Lpae16k>(48), (4, 1, 1 << 47, 48));
    assert_eq!(shape::<Lpae16k>(25), (1, 1, 16 << 10, 25));
    assert_eq!(shape::<Lpae64k>(42), (2, 1, 512 * M, 42));
    assert_eq!(shape::<Lpae64k>(48), (3, 1, 4 << 40, 48));
    assert_eq!(shape::<Vtd2>(39), (3, 1, 1 << 30, 39));
    assert_eq!(shape::<Vtd2>(48), (4, 1, 512 << 30, 48));
    assert_eq!(shape::<Vtd2>(57), (5, 1, 1 << 48, 57));
    assert_eq!(shape::<Amdv1>(39), (3, 1, 1 << 30, 39));
    assert_eq!(shape::<Amdv1>(57), (5, 1, 1 << 48, 57));
    assert_eq!(shape::<Sv39>(38), (3, 1, 1 << 30, 38));
    assert_eq!(shape::<Sv57>(56), (5, 1, 1 << 48, 56));
    // The root is no larger than it must be.
    let memory = TestMemory::new();
    let _table = table::<Lpae4k>(&memory, 32);
    assert_eq!(memory.0.live.lock().unwrap().values().copied().max(), Some(64));
}

#[test]
fn what_a_format_cannot_do_is_refused() {
    let new = |input, output| {
        PageTable::<Dart1, _>::new(TestMemory::new(), TableConfig::new(input, output)).err()
    };
    assert!(matches!(new(39, 36), Some(TableError::InputBits { bits: 39, max: 38, .. })));
    assert!(matches!(new(0, 36), Some(TableError::InputBits { .. })));
    assert!(matches!(new(u32::MAX, 36), Some(TableError::InputBits { .. })));
    assert!(matches!(new(32, 37), Some(TableError::OutputBits { bits: 37, max: 36, .. })));
    assert!(matches!(new(32, 0), Some(TableError::OutputBits { .. })));
    let no_pages = TableConfig::new(32, 36).limited_to([4096].into_iter().collect());
    let error = PageTable::<Dart1, _>::new(TestMemory::new(), no_pages).err();
    assert!(matches!(error, Some(TableError::NoGranule { granule: Granule::K16, .. })));
}

#[test]
fn page_sizes_can_be_limited() {
    let all = table::<Lpae4k>(&TestMemory::new(), 48).page_sizes();
    let want = [4 << 10, 64 << 10, 2 << 20, 32 << 20, 1 << 30, 16 << 30];
    assert!(all.iter().eq(want));
    assert!(table::<Lpae16k>(&TestMemory::new(), 48).page_sizes().iter().eq([
        16 << 10,
        2 << 20,
        32 << 20,
        1 << 30
    ]));
    assert!(table::<Lpae64k>(&TestMemory::new(), 32).page_sizes().iter().eq([
        64 << 10,
        2 << 20,
        512 << 20
    ]));
    let config = TableConfig::new(48, 48).limited_to([4096, 2 << 20].into_iter().collect());
    let table = PageTable::<Lpae4k, _>::new(TestMemory::new(), config).expect("a table");
    map(&table, 0, 0, (4 << 20) + 0x1_0000).expect("free");
    let mut sizes: Vec<_> = leaves(&table).iter().map(|leaf| leaf.1).collect();
    sizes.dedup();
    assert_eq!(sizes, [2 << 20, 4096]);
}

#[test]
fn fences_close_the_ends() {
    let fence = Fence { front: 4096, back: 8192 };
    let at = Iova::new(0x8000);
    let table = table::<Dart1>(&TestMemory::new(), 32);
    let open = |table: &PageTable<Dart1, _>, at| table.resolve(Iova::new(at)).map(|r| r.fence);
    // SAFETY: the tests own every range.
    let mapped = |to, fence| unsafe { table.map_fenced(at, to, RW, fence) };
    mapped(phys(0x10_0000, 0xc000), fence).expect("three granules");
    assert_eq!(open(&table, 0x8000), Some(Fence { front: 4096, back: 0 }));
    assert_eq!(open(&table, 0xc000), Some(Fence::default()));
    let three = [0x10_0000, 0x10_4000, 0x10_8000].map(|to| (to - 0xf_8000, 0x4000, to));
    assert_eq!(leaves(&table), three);
    assert_eq!(open(&table, 0x1_0000), Some(Fence { front: 0, back: 8192 }));
    unmap(&table, 0x8000, 0xc000, Hint::NONE).expect("mapped");
    let hint = mapped(phys(0x10_0000, 0x4000), fence).expect("one granule");
    assert_eq!(open(&table, 0x8000), Some(fence));
    unmap(&table, 0x8000, 0x4000, hint).expect("mapped");
    let one = phys(0x10_0000, 0x4000);
    for (front, back) in [(2, 0), (0, 0x4000), (0x2000, 0x2000), (u64::MAX - 3, 8)] {
        let error = mapped(one, Fence { front, back });
        assert!(matches!(error, Err(TableError::BadFence { unit: 4, .. })), "{front} {back}");
    }
    let two = phys(0x10_0000, 0x8000);
    for (front, back) in [(0x4000, 0), (0, 0x4000)] {
        let error = mapped(two, Fence { front, back });
        assert!(matches!(error, Err(TableError::BadFence { unit: 4, .. })), "{front} {back}");
    }
    mapped(two, Fence { front: 0x3ffc, back: 0x3ffc }).expect("four bytes open in each");
    // Bit 1 (protection disabled) is clear only where there is a fence; start and end are inclusive.
    assert_eq!(Dart1::fenced(Dart1::leaf(RW, 0, 0), fence), 0x4007_ff00_0000_0001);
    assert_eq!(Dart1::fenced(Dart1::leaf(RW, 0, 0), Fence::default()), Dart1::leaf(RW, 0, 0));
    assert_eq!(Dart2::fenced(Dart2::leaf(RW, 0, 0), fence), 0x4007_ff00_0000_0001);
}

#[test]
fn other_formats_have_no_fences() {
    let table = table::<Lpae16k>(&TestMemory::new(), 32);
    // SAFETY: refused.
    let done =
        unsafe { table.map_fenced(Iova::new(0), phys(0, 0x4000), RW, Fence { front: 4, back: 0 }) };
    assert_eq!(done, Err(TableError::Unsupported { format: FormatId::Lpae16k }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::effort::effort(300), ..ProptestConfig::default() })]

    /// Any bytes are walked without a panic, and to an end, cycles included.
    #[test]
    fn dumps_of_rubbish_are_walked(
        words in proptest::collection::vec(any::<u64>(), 64),
        low in proptest::collection::vec(0u64..16, 64),
        address: u64, input in 0u32..70, output in 0u32..70, readable: bool,
    ) {
        struct Fuzz<'a> { words: &'a [u64], low: &'a [u64], address: u64, input: u32, output: u32, readable: bool }
        impl FormatVisitor for &Fuzz<'_> {
            type Output = ();
            fn visit<F: Format>(self) {
                let read = |at: PhysAddr| {
                    let n = (at.raw() >> 3) as usize % 64;
                    // Half of the entries look like tables that lead anywhere, back here included.
                    self.readable.then(|| if n % 2 == 0 { self.words[n] } else { self.words[n] & !15 | self.low[n] | 1 })
                };
                let config = TableConfig::new(self.input, self.output);
                let roots = [PhysAddr::new(self.address & !0xfff)];
                let _ = walk::<F>(&config, &roots, Iova::new(self.address), read);
                let good = TableConfig::new(F::MAX_INPUT_BITS, F::MAX_OUTPUT_BITS);
                let inside = self.address & ((1 << F::MAX_INPUT_BITS) - 1);
                walk::<F>(&good, &roots, Iova::new(inside), read).expect("a legal geometry");
            }
        }
        let fuzz = Fuzz { words: &words, low: &low, address, input, output, readable };
        FormatId::ALL.iter().for_each(|id| id.visit(&fuzz));
    }
}

fn dumps_agree<F: Format>() {
    let memory = TestMemory::new();
    let input = F::MAX_INPUT_BITS;
    let table = table::<F>(&memory, input);
    let g = F::GRANULE.size();
    let at = (1 << (input - 1)) + 7 * g;
    map(&table, at, 0x80 * g + 7 * g, (g << F::INDEX_BITS) + 3 * g).expect("free");
    let config = TableConfig::new(input, F::MAX_OUTPUT_BITS);
    for address in [at, at + 5, at + (g << F::INDEX_BITS), at - 1, 0, (1 << input) - 1] {
        let read = |at: PhysAddr| Some(memory.read(at.raw()));
        let walked = walk::<F>(&config, &table.layout().roots, Iova::new(address), read);
        let resolved = table.resolve(Iova::new(address));
        match walked.expect("a legal geometry") {
            Walk::Mapped(found) => assert_eq!(Some(found), resolved),
            Walk::Fault { .. } => assert_eq!(None, resolved),
            other => panic!("{other:?}"),
        }
    }
}
every_format!(a_dump_reads_like_the_live_table, dumps_agree);
