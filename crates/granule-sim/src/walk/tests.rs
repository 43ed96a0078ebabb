//! Tables assembled by hand from the specifications, and garbage.

use std::collections::HashMap;

use granule::addr::{Access, Iova, PhysAddr};
use proptest::prelude::*;

use super::*;

/// Memory in which only the written words exist as non-zero, below a limit.
struct Words {
    words: HashMap<u64, u64>,
    limit: u64,
}

impl Words {
    fn new(entries: &[(u64, u64)]) -> Self {
        Self { words: entries.iter().copied().collect(), limit: 1 << 40 }
    }
}

impl PhysRead for Words {
    fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        if addr.raw() % 8 != 0 || addr.raw() >= self.limit {
            return None;
        }
        Some(self.words.get(&addr.raw()).copied().unwrap_or(0))
    }
}

fn walk(words: &Words, format: SimFormat, bits: u32, iova: u64) -> Result<Translation, WalkFault> {
    translate(words, format, &[PhysAddr::new(0x10_0000)], bits, Iova::new(iova))
}

fn list(words: &Words, format: SimFormat, bits: u32) -> Listing {
    mappings(words, format, &[PhysAddr::new(0x10_0000)], bits).expect("a legal shape")
}

#[test]
fn dart1_two_levels() {
    // Input 32 bits: root index 31:25, leaf index 24:14.
    // IOVA 0x0604_8000: root 3, leaf 0x12.
    let words = Words::new(&[
        (0x10_0000 + 3 * 8, 0x20_0001),
        (0x20_0000 + 0x12 * 8, 0x000f_ff08_0000_8001),
        (0x20_0000 + 0x13 * 8, 0x000f_ff08_0000_c001),
    ]);
    let hit = walk(&words, SimFormat::Dart1, 32, 0x0604_9234).expect("mapped");
    assert_eq!(hit.phys.raw(), 0x8_0000_9234);
    assert_eq!((hit.page_iova.raw(), hit.page_size), (0x0604_8000, 0x4000));
    let listing = list(&words, SimFormat::Dart1, 32);
    assert_eq!(listing.mappings.len(), 1);
    assert_eq!(
        listing.mappings[0].to_string(),
        "0x6048000..=0x604ffff -> 0x800008000, pages of 16 KiB, read and write"
    );
    assert_eq!(listing.tables, 2);
    assert!(matches!(
        walk(&words, SimFormat::Dart1, 32, 0x0604_7fff),
        Err(WalkFault::NotPresent { at, .. }) if at.raw() == 0x20_0000 + 0x11 * 8
    ));
    assert!(matches!(
        walk(&words, SimFormat::Dart1, 32, 1 << 32),
        Err(WalkFault::OutsideInput { input_bits: 32, .. })
    ));
}

#[test]
fn dart_roots_are_chosen_by_the_top_bits() {
    let roots = [0x10_0000, 0x11_0000, 0x12_0000, 0x13_0000].map(PhysAddr::new);
    let words = Words::new(&[(0x12_0000, 0x20_0001), (0x20_0000, 0x000f_ff08_0000_4001)]);
    let iova = Iova::new(2 << 36);
    let hit = translate(&words, SimFormat::Dart1, &roots, 38, iova).expect("mapped");
    assert_eq!(hit.phys.raw(), 0x8_0000_4000);
    let listing = mappings(&words, SimFormat::Dart1, &roots, 38).expect("a legal shape");
    assert_eq!(listing.mappings[0].iova, iova);
    let few = translate(&words, SimFormat::Dart1, &roots[..3], 38, Iova::new(3 << 36));
    assert!(matches!(few, Err(WalkFault::NoRoot { index: 3, .. })));
}

#[test]
fn neighbours_merge_only_with_equal_rights() {
    let words = Words::new(&[
        (0x10_0000, 0x20_0001),
        (0x20_0000, 0x000f_ff08_0000_0001),
        (0x20_0008, 0x000f_ff08_0000_4081),
        (0x20_0010, 0x000f_ff08_0000_8081),
        (0x20_0018, 0x000f_ff08_0001_0081),
    ]);
    let listing = list(&words, SimFormat::Dart1, 32);
    let shape: Vec<_> = listing.mappings.iter().map(|m| (m.iova.raw(), m.len, m.access)).collect();
    assert_eq!(
        shape,
        [
            (0, 0x4000, Access::all()),
            (0x4000, 0x8000, Access::READ),
            (0xc000, 0x4000, Access::READ)
        ]
    );
}

#[test]
fn lpae4k_page_block_and_group() {
    // 39 bits: L1 index 38:30, L2 29:21, L3 20:12.
    let mut entries = vec![
        (0x10_0000 + 8, 0x20_0003),               // L1[1] -> L2
        (0x10_0000 + 2 * 8, 0x4000_0000 | 0x441), // L1[2]: 1 GiB block
        (0x20_0000, 0x30_0003),                   // L2[0] -> L3
        (0x20_0000 + 8, 0x8020_0000 | 0x4c1),     // L2[1]: 2 MiB block, read-only
        (0x30_0000 + 5 * 8, 0x9000_1000 | 0x443), // L3[5]
    ];
    for page in 0..16 {
        // L3[16..32]: a group of 16 with the contiguous hint.
        let at = 0x30_0000 + (16 + page) * 8;
        entries.push((at, 0x0010_0000_a001_0443 + page * 0x1000));
    }
    let words = Words::new(&entries);
    let at = |iova| walk(&words, SimFormat::Lpae4k, 39, iova).expect("mapped");
    assert_eq!(at(0x4000_5123).phys.raw(), 0x9000_1123);
    assert_eq!(at(0x4030_0000).phys.raw(), 0x8030_0000);
    assert_eq!(at(0x4030_0000).access, Access::READ);
    assert_eq!(at(0x8765_4321).phys.raw(), 0x4765_4321);
    let group = at(0x4001_3010);
    assert_eq!((group.phys.raw(), group.page_size), (0xa001_3010, 0x1_0000));
    assert_eq!((group.page_iova.raw(), group.page_phys.raw()), (0x4001_0000, 0xa001_0000));
    let listing = list(&words, SimFormat::Lpae4k, 39);
    let sizes: Vec<_> = listing.mappings.iter().map(|m| (m.page_size, m.len)).collect();
    assert_eq!(
        sizes,
        [
            (0x1000, 0x1000),
            (0x1_0000, 0x1_0000),
            (0x20_0000, 0x20_0000),
            (0x4000_0000, 0x4000_0000)
        ]
    );
    assert!(listing.findings.is_empty());
}

#[test]
fn a_broken_group_is_found() {
    let words = Words::new(&[
        (0x10_0000, 0x20_0003),
        (0x20_0000, 0x30_0003),
        (0x30_0000, 0x0010_0000_a000_0443),
    ]);
    let listing = list(&words, SimFormat::Lpae4k, 39);
    assert_eq!(listing.findings[0].kind, FindingKind::BrokenGroup);
    assert_eq!(listing.mappings[0].page_size, 0x1000);
    // Contiguous, but one of the sixteen is read-only.
    let mut entries = vec![(0x10_0000, 0x20_0003), (0x20_0000, 0x30_0003)];
    let page = |n: u64| 0x0010_0000_a000_0443 + n * 0x1000 + if n == 9 { 0x80 } else { 0 };
    entries.extend((0..16).map(|n| (0x30_0000 + n * 8, page(n))));
    let listing = list(&Words::new(&entries), SimFormat::Lpae4k, 39);
    assert_eq!(listing.findings.len(), 16);
    assert!(listing.findings.iter().all(|finding| finding.kind == FindingKind::BrokenGroup));
}

#[test]
fn lpae16k_and_64k_levels() {
    // 16 KiB, 47 bits: L1 46:36, L2 35:25, L3 24:14.
    let words = Words::new(&[
        (0x10_0000 + 8, 0x20_0003),
        (0x20_0000 + 2 * 8, 0x30_0003),
        (0x20_0000 + 3 * 8, 0x2_0600_0000 | 0x441),
        (0x30_0000 + 3 * 8, 0x8_0000_4000 | 0x443),
    ]);
    let hit = walk(&words, SimFormat::Lpae16k, 47, (1 << 36) | (2 << 25) | (3 << 14) | 0x3fff);
    assert_eq!(hit.expect("mapped").phys.raw(), 0x8_0000_7fff);
    let block = walk(&words, SimFormat::Lpae16k, 47, (1 << 36) | (3 << 25)).expect("mapped");
    assert_eq!((block.phys.raw(), block.page_size), (0x2_0600_0000, 32 << 20));
    // 64 KiB, 48 bits: L1 47:42 (64 entries), L2 41:29, L3 28:16.
    let words = Words::new(&[
        (0x10_0000 + 63 * 8, 0x20_0003),
        (0x20_0000 + 8191 * 8, 0x30_0003),
        (0x30_0000 + 8191 * 8, 0x8_0001_0000 | 0x443),
    ]);
    let top = walk(&words, SimFormat::Lpae64k, 48, (1 << 48) - 1).expect("mapped");
    assert_eq!((top.phys.raw(), top.page_size), (0x8_0001_ffff, 0x1_0000));
}

#[test]
fn vtd2_rights_are_the_meet_of_all_levels() {
    // 48 bits: 47:39, 38:30, 29:21, 20:12.
    let words = Words::new(&[
        (0x10_0000, 0x20_0003),
        (0x20_0000 + 8, 0x30_0001),
        (0x20_0000 + 2 * 8, 0xc000_0083),
        (0x30_0000 + 2 * 8, 0x40_0003),
        (0x40_0000 + 3 * 8, 0x1234_5003),
    ]);
    let page = walk(&words, SimFormat::Vtd2, 48, 0x4040_3678).expect("mapped");
    assert_eq!((page.phys.raw(), page.access), (0x1234_5678, Access::READ));
    let giant = walk(&words, SimFormat::Vtd2, 48, 0x8000_0001).expect("mapped");
    assert_eq!((giant.phys.raw(), giant.page_size), (0xc000_0001, 1 << 30));
}

#[test]
fn sv39_superpage_group_and_upper_half() {
    // 38:30, 29:21, 20:12. Leaf bits V R W U A D = 0xd7; PPN is address >> 2.
    let words = Words::new(&[
        (0x10_0000 + 8, 0x20_0000 >> 2 | 1),
        (0x10_0000 + 511 * 8, 0x8000_0000 >> 2 | 0xd7),
        (0x20_0000 + 8, 0x8020_0000 >> 2 | 0xd7),
    ]);
    let mega = walk(&words, SimFormat::Sv39, 39, 0x4020_1234).expect("mapped");
    assert_eq!((mega.phys.raw(), mega.page_size), (0x8020_1234, 0x20_0000));
    let high = walk(&words, SimFormat::Sv39, 39, 0xffff_ffff_c000_0042).expect("mapped");
    assert_eq!(high.phys.raw(), 0x8000_0042);
    let listing = list(&words, SimFormat::Sv39, 39);
    assert_eq!(listing.mappings[1].iova.raw(), 0xffff_ffff_c000_0000);
}

/// Sv57 with 34 bits still has five levels: a page of its root is larger than all of the input.
#[test]
fn a_page_larger_than_the_input_is_listed_as_far_as_it_is_reached() {
    let words = Words::new(&[(0x10_0000, 0xdf)]);
    let listing = list(&words, SimFormat::Sv57, 34);
    let [mapping] = listing.mappings.as_slice() else { panic!("{:?}", listing.mappings) };
    assert_eq!((mapping.iova.raw(), mapping.len, mapping.page_size), (0, 1 << 34, 1 << 48));
    let last = walk(&words, SimFormat::Sv57, 34, (1 << 34) - 1).expect("mapped");
    assert_eq!(last.phys.raw(), (1 << 34) - 1);
    assert!(matches!(
        walk(&words, SimFormat::Sv57, 34, 1 << 34),
        Err(WalkFault::OutsideInput { .. })
    ));
}

#[test]
fn amd_pages_between_the_levels() {
    // 39 bits: levels 3, 2, 1. A 16 KiB page is its entry four times.
    let mut entries = vec![
        (0x10_0000, 0x6000_0000_0020_0401), // Level 3: next level 2.
        (0x20_0000, 0x6000_0000_0030_0201), // Level 2: next level 1.
        (0x20_0008, 0x2000_0000_0040_0001), // Level 2: a 2 MiB page, read-only.
    ];
    entries.extend((8..12).map(|index| (0x30_0000 + index * 8, 0x6000_0008_0000_1e01)));
    let words = Words::new(&entries);
    let hit = walk(&words, SimFormat::AmdV1, 39, 0xb123).expect("mapped");
    assert_eq!((hit.phys.raw(), hit.page_size), (0x8_0000_3123, 0x4000));
    assert_eq!((hit.page_iova.raw(), hit.page_phys.raw()), (0x8000, 0x8_0000_0000));
    let large = walk(&words, SimFormat::AmdV1, 39, 0x20_0000).expect("mapped");
    assert_eq!((large.phys.raw(), large.access), (0x40_0000, Access::READ));
    let listing = list(&words, SimFormat::AmdV1, 39);
    let sizes: Vec<_> = listing.mappings.iter().map(|m| (m.page_size, m.len)).collect();
    assert_eq!(sizes, [(0x4000, 0x4000), (0x20_0000, 0x20_0000)]);
    assert!(listing.findings.is_empty());
    entries.truncate(5);
    let listing = list(&Words::new(&entries), SimFormat::AmdV1, 39);
    assert_eq!(listing.findings[0].kind, FindingKind::BrokenGroup);
}

#[test]
fn a_table_that_points_to_itself_ends() {
    let mut entries: Vec<_> = (0..512).map(|i| (0x10_0000 + i * 8, 0x10_0003)).collect();
    let words = Words::new(&entries);
    let listing = mappings_up_to(&words, SimFormat::Vtd2, &[PhysAddr::new(0x10_0000)], 48, 100_000)
        .expect("a legal shape");
    assert_eq!(listing.findings[0].kind, FindingKind::Loop);
    let limit = listing.truncated.expect("cut short");
    assert!(limit.to_string().contains("100000"));
    entries.truncate(1);
    assert!(list(&Words::new(&entries), SimFormat::Vtd2, 48).truncated.is_none());
}

#[test]
fn a_table_beyond_memory_is_a_finding() {
    let words = Words::new(&[(0x10_0000, 0xf_ffff_fff0_0003)]);
    let listing = list(&words, SimFormat::Vtd2, 48);
    assert_eq!(listing.findings[0].kind, FindingKind::TableOutsideMemory);
    assert!(matches!(
        walk(&words, SimFormat::Vtd2, 48, 0),
        Err(WalkFault::Unreadable { at, .. }) if at.raw() == 0xf_ffff_fff0_0000
    ));
}

/// Every word of memory is pseudo-random, with pointers kept in a small memory half of the time.
struct Garbage(u64);

impl PhysRead for Garbage {
    fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        let mut rng = fastrand::Rng::with_seed(self.0 ^ addr.raw());
        let raw = rng.u64(..);
        let small = raw & 0x000f_f000_003f_ffff;
        (addr.raw() % 8 == 0).then(|| if rng.bool() { raw } else { small })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in memory, the listing ends, and says of each page what `translate` says.
    #[test]
    fn garbage_is_bounded_and_consistent(seed: u64, which in 0usize..11, bits in 0u32..64, root: u64) {
        let format = SimFormat::ALL[which];
        let memory = Garbage(seed);
        let roots = [PhysAddr::new(root & !7)];
        let Ok(listing) = mappings_up_to(&memory, format, &roots, bits, 20_000) else {
            prop_assert!(translate(&memory, format, &roots, bits, Iova::new(0)).is_err());
            return Ok(());
        };
        for mapping in listing.mappings.iter().step_by(97) {
            let there = translate(&memory, format, &roots, bits, mapping.iova).unwrap();
            prop_assert_eq!(there.phys, mapping.phys);
            prop_assert_eq!(there.access, mapping.access);
        }
    }

    #[test]
    fn any_address_of_garbage_translates_or_faults(seed: u64, which in 0usize..11, bits in 0u32..64, iova: u64) {
        let roots = [PhysAddr::new(0x1000), PhysAddr::new(u64::MAX - 7)];
        for count in 0..=2 {
            let _ = translate(&Garbage(seed), SimFormat::ALL[which], &roots[..count], bits, Iova::new(iova));
        }
    }
}

/// Poison must show, not fault quietly: what freed and uncleaned tables hold maps something.
#[test]
fn poison_and_stale_bytes_are_live_entries() {
    for (format, bits) in [
        (SimFormat::Dart1, 32),
        (SimFormat::Dart2, 32),
        (SimFormat::Lpae4k, 30),
        (SimFormat::Lpae16k, 36),
        (SimFormat::Lpae64k, 42),
        (SimFormat::Vtd2, 39),
        (SimFormat::Vtd1, 48),
    ] {
        let geometry = Geometry::new(format, bits, 1).expect("a legal shape");
        for byte in [crate::frames::POISON, crate::cache::STALE] {
            let entry = decode(&geometry, 0, 0, u64::from_le_bytes([byte; 8]));
            assert!(matches!(entry, Entry::Page(_)), "{format}: {byte:#x} is {entry:?}");
        }
    }
}
