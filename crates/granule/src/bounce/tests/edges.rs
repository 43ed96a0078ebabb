//! What lies exactly at a limit, and which area, lock and block serve a request.

use super::super::testing::{Machine, most_held};
use super::*;

/// A pool of two areas of 64 slots on a machine of two CPUs, which take turns.
fn two_areas() -> BouncePool<Machine> {
    let machine = Machine::new(BASE, 0x20_0000, u64::MAX, 2);
    BouncePool::with_areas(&machine, BounceConfig::new(0x4_0000), 6).expect("a pool")
}

fn slot_number(pool: &BouncePool<Machine>, slot: &BounceSlot) -> u64 {
    let start = pool.ranges().next().expect("one block").start().raw();
    (slot.outer().start().raw() - start) / pool.slot_size()
}

#[test]
fn a_cpu_takes_from_its_own_area_and_then_from_the_next_with_one_lock_each() {
    let pool = two_areas();
    let one = BounceRequest::new(1);
    most_held();
    let mut taken = Vec::new();
    for turn in 0..128 {
        let slot = pool.acquire(&one).expect("free");
        // The two CPUs fill their areas evenly.
        assert_eq!(slot_number(&pool, &slot), turn % 2 * 64 + turn / 2);
        taken.push(slot);
    }
    assert_eq!(most_held(), 1, "no search of the whole block");
    for slot in taken.drain(..64) {
        pool.release(slot);
    }
    // CPU 0 twice: its area has 32 free slots, and so has the other.
    for _ in 0..64 {
        taken.push(pool.acquire(&one).expect("free"));
    }
    assert!(matches!(pool.acquire(&one), Err(BounceError::Full { .. })));
    taken.into_iter().for_each(|slot| pool.release(slot));
}

#[test]
fn where_the_own_area_is_full_every_other_one_is_asked() {
    let machine = Machine::new(BASE, 0x20_0000, u64::MAX, 3);
    let pool = BouncePool::with_areas(&machine, BounceConfig::new(0x6_0000), 6).expect("a pool");
    // Areas 0 to 2 are full but for the last one's last slot.
    let all = pool.acquire(&BounceRequest::new(0x6_0000 - 2048)).expect("free");
    let _ = most_held();
    for turn in 0..6 {
        let slot = pool.acquire(&BounceRequest::new(1)).expect("free");
        assert_eq!((slot_number(&pool, &slot), most_held()), (191, 1), "turn {turn}");
        pool.release(slot);
    }
    pool.release(all);
}

#[test]
fn more_cpus_than_areas_share_them() {
    let machine = Machine::new(BASE, 0x20_0000, u64::MAX, 5);
    let pool = BouncePool::with_areas(&machine, BounceConfig::new(0x4_0000), 6).expect("a pool");
    let slots: Vec<_> =
        (0..5).map(|_| pool.acquire(&BounceRequest::new(1)).expect("free")).collect();
    let numbers: Vec<_> = slots.iter().map(|slot| slot_number(&pool, slot)).collect();
    assert_eq!(numbers, [0, 64, 1, 65, 2]);
    slots.into_iter().for_each(|slot| pool.release(slot));
}

#[test]
fn as_much_as_is_free_but_in_pieces_is_fragmentation() {
    let pool = two_areas();
    let mut slots: Vec<_> =
        (0..128).map(|_| pool.acquire(&BounceRequest::new(2048)).expect("a slot")).collect();
    slots.sort_by_key(|slot| slot.outer().start());
    pool.release(slots.remove(100));
    pool.release(slots.remove(10));
    let refused = pool.acquire(&BounceRequest::new(4096));
    assert!(matches!(refused, Err(BounceError::Fragmented { requested: 4096, free: 4096, .. })));
    let refused = pool.acquire(&BounceRequest::new(4097));
    assert!(matches!(refused, Err(BounceError::Full { requested: 6144, free: 4096, .. })));
    slots.into_iter().for_each(|slot| pool.release(slot));
}

#[test]
fn the_smallest_slot_is_allowed_and_told() {
    let machine = Machine::new(BASE, 0x20_0000, u64::MAX, 1);
    let config = BounceConfig { slot: 64, ..BounceConfig::new(0x1_0000) };
    let pool = BouncePool::new(&machine, config).expect("64 bytes are a slot");
    assert_eq!(pool.slot_size(), 64);
    let slot = pool.acquire(&BounceRequest::new(65)).expect("free");
    assert_eq!(slot.outer().len(), 128);
    let shown = format!("{pool:?}");
    assert!(shown.contains("slot: 64") && shown.contains("used: 128"), "{shown}");
    pool.release(slot);
}

#[test]
fn no_bytes_are_copied_at_the_end_and_refused_behind_it() {
    let pool = two_areas();
    let mut slot = pool.acquire(&BounceRequest::new(100)).expect("free");
    assert_eq!(pool.write(&mut slot, 100, &[]), Ok(()));
    assert_eq!(pool.read(&slot, 100, &mut []), Ok(()));
    let behind = BounceError::OutOfBounds { offset: 101, len: 0, size: 100 };
    assert_eq!(pool.write(&mut slot, 101, &[]), Err(behind));
    assert_eq!(pool.read(&slot, 101, &mut []), Err(behind));
    pool.release(slot);
}

#[test]
fn the_longest_request_counts_whole_granules_only_where_asked() {
    let pool = two_areas();
    let kept = BounceRequest { keep: 0xfff, orig: 0x123, ..BounceRequest::new(1) };
    assert_eq!(pool.max_len(&kept), 0x4_0000 - 0x123);
    // The pool begins at 0x…3000: the first granule of 64 KiB begins 0xd000 behind that.
    let whole = BounceRequest { keep: 0xfff, orig: 0x123, ..granules(1, Granule::K64) };
    assert_eq!(pool.max_len(&whole), 0x3_0000 - 0x123);
    let odd = BouncePool::with_areas(
        &Machine::new(BASE, 0x20_0000, u64::MAX, 1),
        BounceConfig::new(0x4_3000),
        6,
    );
    let odd = odd.expect("a pool");
    assert_eq!(odd.max_len(&granules(1, Granule::K4)), 0x4_3000);
    assert_eq!(odd.max_len(&granules(1, Granule::K64)), 0x3_0000);
    // How long the request is does not matter.
    for len in [1, 0, 0x4_3001, u64::MAX] {
        assert_eq!(odd.max_len(&BounceRequest { len, ..BounceRequest::new(1) }), 0x4_3000);
    }
}

#[test]
fn every_block_is_asked_of_the_node_that_was_named() {
    for node in [None, Some(3)] {
        let machine = Machine::new(BASE, 0x20_0000, 0x1_0000, 1);
        let config = BounceConfig { node, ..BounceConfig::new(0x4_0000) };
        let _pool = BouncePool::new(&machine, config).expect("a pool");
        let asked = machine.nodes();
        assert!(asked.len() >= 4 && asked.iter().all(|asked| *asked == node), "{asked:?}");
    }
}

#[test]
fn a_pool_that_cannot_be_had_says_how_much_was_there() {
    // Blocks of at most 64 KiB, memory for five of them behind the first 64 KiB boundary.
    let machine = Machine::new(0x10_0000, 0x5_0000, 0x1_0000, 1);
    let refused = BouncePool::new(&machine, BounceConfig::new(0x10_0000));
    let Err(BounceError::NoMemory { size, found, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((size, found), (0x10_0000, 0x5_0000));
    assert_eq!(machine.live(), 0);
    // A 64th of the size is the smallest block: a machine with smaller ones has no pool.
    let scattered = Machine::new(0x10_0000, 0x100_0000, 0x1000, 1);
    let pool = BouncePool::new(&scattered, BounceConfig::new(0x4_0000)).expect("64 blocks");
    assert_eq!(pool.usage().blocks, 64);
    let refused = BouncePool::new(&scattered, BounceConfig::new(0x8_0000));
    assert!(matches!(refused, Err(BounceError::NoMemory { found: 0, .. })));
}
