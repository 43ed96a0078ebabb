//! Locked roots: mirrored, firmware's entries preserved, conflicts named, nothing freed under them.

use super::*;

/// A live root as firmware leaves it, in the memory's arena.
fn firmware_root(memory: &TestMemory, bytes: u64, entries: &[(u64, u64)]) -> PhysAddr {
    let root = memory.alloc(bytes, bytes, Contents::Zeroed).expect("room");
    for (index, value) in entries {
        memory.write(root.raw() + index * 8, *value);
    }
    root
}

fn entries(memory: &TestMemory, root: PhysAddr, count: u64) -> Vec<(u64, u64)> {
    (0..count)
        .map(|n| (n, memory.read(root.raw() + n * 8)))
        .filter(|(_, value)| *value != 0)
        .collect()
}

const M32: u64 = 32 << 20;
const G: u64 = 16 << 10;
const FIRMWARE: [(u64, u64); 3] = [(5, 0x4000_0001), (6, 0x4000_8001), (9, 0x4001_0001)];

fn adopt(table: &PageTable<Dart1, TestMemory>, live: PhysAddr) -> Result<Adopted, TableError> {
    // SAFETY: no hardware walks it, and only the table writes it.
    unsafe { table.adopt_root(&[live]) }
}

#[test]
fn entries_are_mirrored_and_firmware_s_stay() {
    for memory in [TestMemory::new(), TestMemory::non_coherent()] {
        let table = table::<Dart1>(&memory, 32);
        let live = firmware_root(&memory, 16 << 10, &FIRMWARE);
        memory.clean_all(live, 16 << 10);
        map(&table, 0, 0, G).expect("free");
        let adopted = adopt(&table, live).expect("no slot is shared");
        assert_eq!(adopted.firmware(), [iova(5 * M32, 2 * M32), iova(9 * M32, M32)]);
        map(&table, M32, G, G).expect("a table linked later");
        map(&table, 2 * M32, 0, M32).expect("a whole table");
        let layout = TableLayout { roots: std::vec![live], ..table.layout() };
        for at in [0, M32, 2 * M32 + 5 * G] {
            let want = table.resolve(Iova::new(at)).map(|found| found.phys.raw());
            assert!(want.is_some());
            assert_eq!(reader::translate(&layout, &memory, at), want);
        }
        // Firmware's slot is refused even if nobody reserved it.
        let slot = iova(6 * M32, M32);
        let refused = map(&table, 6 * M32 + G, 0, G);
        assert_eq!(refused, Err(TableError::FirmwareEntry { slot }));
        let refused = map(&table, 6 * M32, 0, M32);
        assert_eq!(refused, Err(TableError::FirmwareEntry { slot }));
        // Detaching clears the live entry too.
        assert!(unmap(&table, 2 * M32, M32, Hint::NONE).expect("whole").tables);
        assert_eq!(reader::translate(&layout, &memory, 2 * M32), None);
        reap(&table, 2 * M32, M32);
        // SAFETY: it came from this table.
        unsafe { table.release_root(adopted) };
        assert_eq!(entries(&memory, live, 128), FIRMWARE);
        assert_eq!(reader::translate(&layout, &memory, 0), None);
        map(&table, 3 * M32, 0, G).expect("free");
        assert_eq!(entries(&memory, live, 128), FIRMWARE, "released roots are left alone");
        drop(table);
        assert_eq!(memory.live(), 1, "firmware's own");
    }
}

#[test]
fn a_shared_slot_is_named_and_nothing_written() {
    let memory = TestMemory::new();
    let table = table::<Dart1>(&memory, 32);
    map(&table, 0, 0, G).expect("free");
    map(&table, 9 * M32, 0, G).expect("free");
    let live = firmware_root(&memory, 16 << 10, &FIRMWARE);
    let error = adopt(&table, live).expect_err("slot 9");
    assert_eq!(error, TableError::FirmwareEntry { slot: iova(9 * M32, M32) });
    assert_eq!(entries(&memory, live, 2048), FIRMWARE);
    // SAFETY: refused.
    let error = unsafe { table.adopt_root(&[live, live]) };
    assert_eq!(error.err(), Some(TableError::LiveRoots { expected: 1, given: 2 }));
    let odd = PhysAddr::new(live.raw() + 4096);
    assert!(matches!(adopt(&table, odd), Err(TableError::Misaligned { .. })));
    map(&table, 20 * M32, 0, G).expect("no adopted root is left behind");
    assert_eq!(entries(&memory, live, 2048), FIRMWARE);
}

#[test]
fn several_live_roots_and_several_tables() {
    let memory = TestMemory::new();
    let table = table::<Dart2>(&memory, 38);
    assert_eq!(table.layout().roots.len(), 4);
    let roots = |first: u64| -> Vec<PhysAddr> {
        (0..4).map(|n| firmware_root(&memory, 16 << 10, &[(first + n, 0x1001)])).collect()
    };
    let (one, two) = (roots(100), roots(200));
    // SAFETY: no hardware walks them, and only the table writes them.
    let (first, second) = unsafe { (table.adopt_root(&one), table.adopt_root(&two)) };
    let (first, second) = (first.expect("free"), second.expect("free"));
    assert_eq!(first.firmware()[3], iova((3 << 36) + 103 * M32, M32));
    map(&table, (2 << 36) + 7 * M32, 0, G).expect("free");
    let ours = memory.read(table.layout().roots[2].raw() + 7 * 8);
    assert_ne!(ours, 0);
    for live in [one[2], two[2]] {
        assert_eq!(memory.read(live.raw() + 7 * 8), ours);
    }
    // SAFETY: it came from this table.
    unsafe { table.release_root(first) };
    assert_eq!(memory.read(one[2].raw() + 7 * 8), 0);
    assert_eq!(memory.read(two[2].raw() + 7 * 8), ours);
    drop(table);
    // A live root that was never released still names our tables: they are leaked, not freed.
    assert_ne!(memory.read((ours & 0x3f_ffff_fc00) << 4), super::memory::POISON);
    drop(second);
    assert!(memory.live() > 8);
}

/// A table whose root holds the leaves itself.
#[test]
fn leaves_in_the_root_are_mirrored_too() {
    let memory = TestMemory::new();
    let table = table::<Lpae16k>(&memory, 25);
    let firmware = [(2047, 0x8000_0403)];
    let live = firmware_root(&memory, 16 << 10, &firmware);
    // SAFETY: no hardware walks it, and only the table writes it.
    let adopted = unsafe { table.adopt_root(&[live]) }.expect("free");
    assert_eq!(adopted.firmware(), [iova(2047 * G, G)]);
    map(&table, 0, 0, 130 * G).expect("free");
    assert_eq!(entries(&memory, live, 2046), entries(&memory, table.layout().roots[0], 2046));
    let refused = map(&table, 2046 * G, 0, 2 * G);
    assert_eq!(refused, Err(TableError::FirmwareEntry { slot: iova(2047 * G, G) }));
    assert_eq!(unmap(&table, 0, 130 * G, Hint::NONE).map(|done| done.bytes), Ok(130 * G));
    assert_eq!(entries(&memory, live, 2048), firmware);
    // SAFETY: it came from this table.
    unsafe { table.release_root(adopted) };
}

/// What a map of a few pages returns does not lead an unmap past the live root.
#[test]
fn a_hint_does_not_go_around_a_live_root() {
    let memory = TestMemory::new();
    let table = table::<Lpae16k>(&memory, 25);
    let live = firmware_root(&memory, 16 << 10, &[]);
    // SAFETY: no hardware walks it, and only the table writes it.
    let adopted = unsafe { table.adopt_root(&[live]) }.expect("free");
    for pages in [1, 3] {
        let hint = map(&table, 4 * G, 0x10 * G, pages * G).expect("free");
        assert_eq!(entries(&memory, live, 2048).len() as u64, pages);
        assert_eq!(unmap(&table, 4 * G, pages * G, hint).map(|done| done.bytes), Ok(pages * G));
        assert_eq!(entries(&memory, live, 2048), []);
    }
    // SAFETY: it came from this table.
    unsafe { table.release_root(adopted) };
}

/// A group of large pages in the root, where firmware holds one of its slots.
#[test]
fn a_slot_of_firmware_within_a_group_is_named() {
    let memory = TestMemory::new();
    let table = table::<Lpae4k>(&memory, 30);
    let (m2, m32) = (2u64 << 20, 32u64 << 20);
    let live = firmware_root(&memory, 4096, &[(5, 0x8000_0401)]);
    // SAFETY: no hardware walks it, and only the table writes it.
    let adopted = unsafe { table.adopt_root(&[live]) }.expect("free");
    let refused = map(&table, 0, m32, m32);
    assert_eq!(refused, Err(TableError::FirmwareEntry { slot: iova(5 * m2, m2) }));
    assert_eq!(leaves(&table), []);
    assert_eq!(entries(&memory, live, 512), [(5, 0x8000_0401)]);
    map(&table, m32, m32, m32).expect("free");
    assert_eq!(leaves(&table), [(m32, m32, m32)]);
    assert_eq!(entries(&memory, live, 512).len(), 17);
    // SAFETY: it came from this table.
    unsafe { table.release_root(adopted) };
}
