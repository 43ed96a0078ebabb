//! What entries mean, word by word as the specifications have them, and what errors say.

use super::*;
use crate::addr::{Granule, MemoryKind};

const READ: Access = Access::READ;
const WRITE: Access = Access::WRITE;

fn means<F: Format>(leaf: u64, access: Access, kind: MemoryKind) {
    assert_eq!(F::attributes(leaf), Attributes { access, kind }, "{}: {leaf:#x}", F::ID);
}

#[test]
fn leaves_of_amd_mean_what_the_manual_says() {
    // FC is bit 60, IR 61, IW 62.
    means::<Amdv1>(0x7000_0000_0000_0001, READ | WRITE, MemoryKind::Coherent);
    means::<Amdv1>(0x6000_0000_0000_0001, READ | WRITE, MemoryKind::NonCoherent);
    means::<Amdv1>(0x3000_0000_0000_0001, READ, MemoryKind::Coherent);
    means::<Amdv1>(0x4000_0000_0000_0001, WRITE, MemoryKind::NonCoherent);
    means::<Amdv1>(0x0000_0000_0000_0001, Access::empty(), MemoryKind::NonCoherent);
    // Leaves stand at three levels, alone or in groups.
    let kinds = |entry: u64| [0, 1, 2, 3].map(|level| Amdv1::kind(entry, level));
    let (leaf, none) = (Kind::Leaf, Kind::Invalid);
    assert_eq!(kinds(0x6000_0000_0000_0001), [leaf, leaf, leaf, none]);
    // Next level 7 and 2^40 bytes: a group of 2 at the level of 512 GiB, which has no leaves.
    assert_eq!(Amdv1::group(0x6000_007f_ffff_fe01, 3), 1);
    assert_eq!(kinds(0x6000_007f_ffff_fe01), [none, none, none, none]);
    assert_eq!(Amdv1::kind(0x6000_0000_0000_0201, 1), Kind::Table);
    assert_eq!(Amdv1::kind(0x6000_0000_0000_0201, 2), Kind::Invalid, "levels are not skipped");
}

#[test]
fn leaves_of_arm_mean_what_the_manual_says() {
    // AttrIndx is bits 4:2, AP[2] bit 7.
    means::<Lpae4k>(0x0060_0000_0000_0f47, READ | WRITE, MemoryKind::Coherent);
    means::<Lpae4k>(0x0060_0000_0000_0fc7, READ, MemoryKind::Coherent);
    means::<Lpae16k>(0x0060_0000_0000_0e43, READ | WRITE, MemoryKind::NonCoherent);
    means::<Lpae64k>(0x0060_0000_0000_0ecb, READ, MemoryKind::Device);
}

#[test]
fn leaves_of_darts_mean_what_linux_says() {
    means::<Dart1>(0x000f_ff00_0000_0003, READ | WRITE, MemoryKind::Coherent);
    means::<Dart1>(0x000f_ff00_0000_0083, READ, MemoryKind::Coherent);
    means::<Dart1>(0x000f_ff00_0000_0103, WRITE, MemoryKind::Coherent);
    means::<Dart2>(0x000f_ff00_0000_0001, READ | WRITE, MemoryKind::Coherent);
    means::<Dart2>(0x000f_ff00_0000_0005, READ, MemoryKind::Coherent);
    means::<Dart2>(0x000f_ff00_0000_000b, WRITE, MemoryKind::NonCoherent);
    let fence = Fence { front: 20, back: 28 };
    let fenced = 0x0050_0000_0000_0001 | 0xff8 << 40;
    assert_eq!(Dart2::fenced(0x000f_ff00_0000_0001, fence), fenced);
    assert_eq!(Dart2::fence(fenced), fence);
    assert_eq!(Dart1::fence(fenced), fence);
    assert_eq!(
        Dart1::fence(fenced | 2),
        Fence::default(),
        "bit 1 is: no protection below the page"
    );
    // Another fence takes the place of the first.
    assert_eq!(Dart2::fenced(fenced, Fence::default()), 0x000f_ff00_0000_0001);
}

#[test]
fn leaves_of_vtd_and_riscv_mean_what_the_manuals_say() {
    means::<Vtd2>(3, READ | WRITE, Vtd2::attributes(3).kind);
    means::<Vtd2>(1, READ, Vtd2::attributes(3).kind);
    means::<Vtd2>(2, WRITE, Vtd2::attributes(3).kind);
    means::<Sv39>(0xd7, READ | WRITE, Sv39::attributes(0xd7).kind);
    means::<Sv39>(0xd3, READ, Sv39::attributes(0xd7).kind);
}

#[test]
fn an_error_names_every_bit_that_is_out_of_line() {
    let table = table::<Lpae4k>(&TestMemory::new(), 39);
    let said = |value| Err(TableError::Misaligned { value, granule: Granule::K4 });
    assert_eq!(map(&table, 0x800, 0x10_0000, 0x1000), said(0x1800));
    assert_eq!(map(&table, 0x1000, 0x10_0000, 0x1010), said(0x10_1010));
    assert_eq!(map(&table, 0x1000, 0x10_0800, 0x1000), said(0x10_1800));
    assert_eq!(unmap(&table, 0x1000, 0x801, Hint::NONE).err(), said(0x1801).err());
}

/// Four roots, far from each other as hardware's registers may have them.
fn walk_of_a_dump_finds_every_root<F: Format>(input: u32) {
    let memory = TestMemory::new();
    let table = table::<F>(&memory, input);
    let real = table.layout().roots;
    let apart: Vec<_> = (1..=4).map(|n| PhysAddr::new(n << 48)).collect();
    assert_eq!(real.len(), apart.len());
    let read = |at: PhysAddr| match (at.raw() >> 48, at.raw() & ((1 << 48) - 1)) {
        (0, at) => Some(memory.read(at)),
        (root, offset) if offset < F::GRANULE.size() => {
            Some(memory.read(real[root as usize - 1].raw() + offset))
        }
        _ => None,
    };
    let (quarter, granule) = (1u64 << (input - 2), F::GRANULE.size());
    let place = |root| root * quarter + quarter / 2 + 3 * granule;
    for root in 0..4 {
        map(&table, place(root), 0x10_0000 * (root + 1), granule).expect("free");
    }
    let config = TableConfig::new(input, F::MAX_OUTPUT_BITS);
    for root in 0..4 {
        let at = Iova::new(place(root) + 5);
        let found = walk::<F>(&config, &apart, at, read).expect("a legal table");
        let Walk::Mapped(found) = found else { panic!("{}: {at} is {found:?}", F::ID) };
        assert_eq!(found.phys.raw(), 0x10_0000 * (root + 1) + 5);
        assert_eq!(table.resolve(at), Some(found));
    }
    let behind = walk::<F>(&config, &apart, Iova::new(4 * quarter), read);
    assert_eq!(behind, Ok(Walk::OutsideInput));
}

#[test]
fn dumps_of_tables_with_four_roots_are_walked() {
    walk_of_a_dump_finds_every_root::<Dart1>(38);
    walk_of_a_dump_finds_every_root::<Dart2>(38);
}

#[test]
fn blocks_of_arm_are_leaves_only_at_the_levels_that_have_them() {
    fn check<F: Format>() {
        for level in 1..F::MAX_LEVELS {
            let leaf = F::LEAF_LEVELS >> level & 1 == 1;
            assert_eq!(F::kind(0b01, level) == Kind::Leaf, leaf, "{}, level {level}", F::ID);
        }
    }
    check::<Lpae4k>();
    check::<Lpae16k>();
    check::<Lpae64k>();
}

/// RISC-V Privileged 4.3.2, step 4: an entry with R or X is a leaf, whatever the level.
#[test]
fn risc_v_pages_for_execution_alone_are_leaves() {
    fn check<F: Format>() {
        for level in 0..F::MAX_LEVELS {
            assert_eq!(F::kind(0b1001, level), Kind::Leaf, "{}, level {level}", F::ID);
        }
        assert_eq!(F::kind(0b0001, 1), Kind::Table, "{}", F::ID);
        assert_eq!(F::kind(0b0001, 0), Kind::Invalid, "{}", F::ID);
    }
    check::<Sv39>();
    check::<Sv48>();
    check::<Sv57>();
}
