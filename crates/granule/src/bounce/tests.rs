//! The laws of the pool, against a model that tries every address.

use super::testing::{Machine, POISON};
use super::*;
use crate::addr::{Granule, PhysAddr, PhysRange};
use proptest::prelude::*;
use std::vec::Vec;
use std::{format, vec};

mod edges;

const BASE: u64 = 0x8_0000_3000;

fn phys(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
}

/// A pool of `size` bytes in 64-slot areas, on a machine with blocks of at most `longest` bytes.
fn pool(size: u64, longest: u64, align: Granule) -> (Machine, BouncePool<Machine>) {
    let machine = Machine::new(BASE, size * 2 + 0x40_0000, longest, 3);
    let config = BounceConfig { align, ..BounceConfig::new(size) };
    let pool = BouncePool::with_areas(&machine, config, 6).expect("a pool");
    (machine, pool)
}

fn granules(len: u64, granule: Granule) -> BounceRequest {
    BounceRequest { align: granule.size(), whole_granules: true, ..BounceRequest::new(len) }
}

/// What a slot at `outer start` would own, by the definition of a placement; `None` if no slot may
/// start there.
fn placed(request: &BounceRequest, slot: u64, start: u64) -> Option<(PhysRange, PhysRange)> {
    let unit = request.align.max(slot);
    // The least distance at which the low bits agree.
    let offset =
        (0..unit).find(|offset| (start + offset) & request.keep == request.orig & request.keep)?;
    if start % unit != 0 {
        return None;
    }
    let end = offset + request.len;
    let len = end.next_multiple_of(if request.whole_granules { unit } else { slot });
    let outer = phys(start, len);
    Some((outer, phys(start + offset, request.len)))
}

/// Where `request` could go in `blocks`.
fn places(request: &BounceRequest, slot: u64, blocks: &[PhysRange]) -> Vec<(PhysRange, PhysRange)> {
    let starts = |block: &PhysRange| {
        let start = block.start().raw();
        (0..block.len() / slot).map(move |index| start + index * slot)
    };
    blocks
        .iter()
        .flat_map(|block| starts(block).map(move |start| (block, start)))
        .filter(|(_, start)| start % request.align == 0)
        .filter_map(|(block, start)| {
            placed(request, slot, start).filter(|(o, _)| block.contains_range(o))
        })
        .collect()
}

/// The model's verdict on a request that was refused.
fn check_refusal(
    error: BounceError,
    request: &BounceRequest,
    blocks: &[PhysRange],
    live: &[BounceSlot],
) -> Result<(), TestCaseError> {
    let all = places(request, 2048, blocks);
    let within =
        |outer: &PhysRange| request.window.is_none_or(|window| window.contains_range(outer));
    let free = |outer: &PhysRange| !live.iter().any(|slot| slot.outer().overlaps(outer));
    prop_assert!(
        !all.iter().any(|(outer, _)| within(outer) && free(outer)),
        "refused, but fits: {}",
        error
    );
    let reached: Vec<_> = places(&BounceRequest::new(1), 2048, blocks)
        .into_iter()
        .filter_map(|(slot, _)| within(&slot).then_some(slot))
        .collect();
    let free_bytes = reached.iter().filter(|slot| free(slot)).count() as u64 * 2048;
    let possible = all.iter().any(|(outer, _)| within(outer));
    match error {
        BounceError::TooLarge { .. } => prop_assert!(all.is_empty()),
        BounceError::OutOfReach { .. } => prop_assert!(!all.is_empty() && !possible),
        BounceError::Full { requested, free, total, .. } => {
            prop_assert!(possible && free < requested);
            prop_assert_eq!((free, total), (free_bytes, reached.len() as u64 * 2048));
        }
        BounceError::Fragmented { requested, free, total, usable, largest } => {
            prop_assert!(possible && free >= requested && usable < requested && usable <= largest);
            prop_assert_eq!((free, total), (free_bytes, reached.len() as u64 * 2048));
        }
        other => prop_assert!(false, "unexpected: {other}"),
    }
    Ok(())
}

/// The model's verdict on a slot that was handed out.
fn check_slot(
    slot: &BounceSlot,
    request: &BounceRequest,
    blocks: &[PhysRange],
    live: &[BounceSlot],
) -> Result<(), TestCaseError> {
    let outer = slot.outer();
    prop_assert!(blocks.iter().any(|block| block.contains_range(&outer)));
    prop_assert!(request.window.is_none_or(|window| window.contains_range(&outer)));
    prop_assert!(live.iter().all(|other| !other.outer().overlaps(&outer)), "overlap at {}", outer);
    let expected = placed(request, 2048, outer.start().raw());
    prop_assert_eq!(Some((outer, slot.data())), expected);
    prop_assert_eq!(slot.data().start().raw() & request.keep, request.orig & request.keep);
    if let (true, Ok(granule)) = (request.whole_granules, Granule::new(request.align)) {
        prop_assert!(outer.is_aligned(granule));
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Op {
    Acquire(BounceRequest),
    Release(prop::sample::Index),
}

fn request() -> impl Strategy<Value = BounceRequest> {
    let len = prop_oneof![6 => 1..6000u64, 3 => 1..0x1_8000u64, 1 => 1..0x14_0000u64];
    let align = prop_oneof![2 => Just(0u32), 3 => 0..19u32];
    let keep = prop_oneof![2 => Just(0u32), 3 => 0..18u32];
    let window = proptest::option::weighted(0.3, (0..0x18_0000u64, 1..0x10_0000u64));
    (len, align, keep, any::<u32>(), any::<bool>(), window).prop_map(
        |(len, align, keep, orig, whole, window)| BounceRequest {
            len,
            align: 1 << align,
            keep: (1 << keep) - 1,
            orig: orig.into(),
            whole_granules: whole,
            window: window.map(|(start, len)| phys(BASE + start, len)),
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => request().prop_map(Op::Acquire),
        2 => any::<prop::sample::Index>().prop_map(Op::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::effort::effort(96)))]

    #[test]
    fn the_pool_agrees_with_a_model_that_tries_every_slot(
        ops in proptest::collection::vec(op(), 1..60),
        longest in prop_oneof![Just(u64::MAX), Just(0x5_0000u64)],
        align in prop_oneof![Just(Granule::K4), Just(Granule::K16), Just(Granule::K64)],
    ) {
        let (machine, pool) = pool(0xc_0000, longest, align);
        let blocks: Vec<_> = pool.ranges().collect();
        prop_assert!(blocks.iter().all(|block| block.is_aligned(align)));
        let mut live: Vec<BounceSlot> = Vec::new();
        let mut peak = 0;
        for op in ops {
            match op {
                Op::Acquire(request) => match pool.acquire(&request) {
                    Ok(slot) => {
                        check_slot(&slot, &request, &blocks, &live)?;
                        prop_assert!(request.len <= pool.max_len(&request));
                        live.push(slot);
                    }
                    Err(error) => {
                        check_refusal(error, &request, &blocks, &live)?;
                        let never = matches!(error, BounceError::TooLarge { .. } | BounceError::OutOfReach { .. });
                        prop_assert_eq!(request.len > pool.max_len(&request), never);
                    }
                },
                Op::Release(index) if !live.is_empty() => pool.release(live.swap_remove(index.index(live.len()))),
                Op::Release(_) => {}
            }
            let used: u64 = live.iter().map(|slot| slot.outer().len()).sum();
            peak = used.max(peak);
            let usage = pool.usage();
            prop_assert_eq!(usage.used, used);
            prop_assert!(usage.peak >= peak);
        }
        live.into_iter().for_each(|slot| pool.release(slot));
        let usage = pool.usage();
        prop_assert_eq!(usage.used, 0);
        prop_assert_eq!(usage.largest_free, blocks.iter().map(|block| block.len()).max().unwrap_or(0));
        drop(pool);
        prop_assert_eq!(machine.live(), 0);
    }

    #[test]
    fn bytes_go_in_and_come_out_at_any_offset(
        data in proptest::collection::vec(any::<u8>(), 1..300),
        orig in 0..64u64,
        at in any::<prop::sample::Index>(),
        shift in 0..8usize,
    ) {
        let (machine, pool) = pool(0x1_0000, u64::MAX, Granule::K4);
        let request = BounceRequest { keep: 63, orig, ..BounceRequest::new(data.len() as u64) };
        let mut slot = pool.acquire(&request).expect("a slot");
        pool.write(&mut slot, 0, &data).expect("in bounds");
        prop_assert_eq!(&machine.device_read(slot.data()), &data);
        let at = at.index(data.len());
        let mut out = vec![0xee; data.len() - at + shift];
        pool.read(&slot, at as u64, &mut out[shift..]).expect("in bounds");
        prop_assert_eq!(&out[shift..], &data[at..]);
        prop_assert!(out[..shift].iter().all(|byte| *byte == 0xee));
        let past = pool.read(&slot, at as u64 + 1, &mut out[shift..]);
        let out_of_bounds = matches!(past, Err(BounceError::OutOfBounds { .. }));
        prop_assert!(out_of_bounds);
        pool.release(slot);
    }
}

#[test]
fn a_full_pool_and_a_fragmented_one_say_so() {
    let (_machine, pool) = pool(0x4_0000, u64::MAX, Granule::K4);
    let mut slots: Vec<_> =
        (0..128).map(|_| pool.acquire(&BounceRequest::new(2048)).expect("a slot")).collect();
    let full = BounceError::Full { requested: 2048, free: 0, largest: 0, total: 0x4_0000 };
    assert_eq!(pool.acquire(&BounceRequest::new(1)), Err(full));
    // Every second slot free: half the pool, but nothing for two slots.
    slots.sort_by_key(|slot| slot.outer().start());
    let (even, odd): (Vec<_>, Vec<_>) =
        slots.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    even.into_iter().for_each(|(_, slot)| pool.release(slot));
    let fragmented = BounceError::Fragmented {
        requested: 4096,
        free: 0x2_0000,
        largest: 2048,
        usable: 2048,
        total: 0x4_0000,
    };
    assert_eq!(pool.acquire(&BounceRequest::new(2049)), Err(fragmented));
    assert!(
        format!("{fragmented}").contains("fragmented: 0x1000 bytes requested, 0x20000 of 0x40000")
    );
    let never = BounceError::TooLarge { requested: 0x4_0800, largest: 0x4_0000, total: 0x4_0000 };
    assert_eq!(pool.acquire(&BounceRequest::new(0x4_0001)), Err(never));
    let usage = pool.usage();
    assert_eq!((usage.refused_full, usage.refused_fragmented, usage.refused_impossible), (1, 1, 1));
    assert_eq!((usage.used, usage.peak, usage.largest_free), (0x2_0000, 0x4_0000, 2048));
    odd.into_iter().for_each(|(_, slot)| pool.release(slot));
    // One request may take the whole block, across all areas.
    let all = pool.acquire(&BounceRequest::new(0x4_0000)).expect("the whole block");
    pool.release(all);
}

#[test]
fn padding_is_zeroed_and_nothing_else() {
    let (machine, pool) = pool(0x4_0000, u64::MAX, Granule::K64);
    let whole = pool.acquire(&BounceRequest::new(0x4_0000)).expect("the whole block");
    machine.device_fill(whole.outer(), 0x77);
    pool.release(whole);
    let request = BounceRequest { keep: 0xfff, orig: 0x123, ..granules(0x100, Granule::K64) };
    let mut slot = pool.acquire(&request).expect("a slot");
    let neighbour = pool.acquire(&request).expect("a slot");
    pool.zero_padding(&mut slot);
    let seen = machine.device_read(slot.outer());
    assert_eq!(seen.len(), 0x1_0000);
    assert!(seen[..0x123].iter().chain(&seen[0x223..]).all(|byte| *byte == 0));
    assert!(seen[0x123..0x223].iter().all(|byte| *byte == 0x77));
    assert!(machine.device_read(neighbour.outer()).iter().all(|byte| *byte == 0x77));
    pool.release(slot);
    pool.release(neighbour);
}

#[test]
fn a_new_pool_is_zeroed_and_a_scrubbing_one_stays_so() {
    let machine = Machine::new(BASE, 0x10_0000, u64::MAX, 1);
    for scrub in [true, false] {
        let config = BounceConfig { scrub, ..BounceConfig::new(0x1_0000) };
        let pool = BouncePool::new(&machine, config).expect("a pool");
        let slot = pool.acquire(&BounceRequest::new(0x1_0000)).expect("a slot");
        let outer = slot.outer();
        assert!(machine.device_read(outer).iter().all(|byte| *byte == 0 && *byte != POISON));
        machine.device_fill(outer, 0x77);
        pool.release(slot);
        assert!(
            machine.device_read(outer).iter().all(|byte| *byte == if scrub { 0 } else { 0x77 })
        );
    }
}

#[test]
fn a_pool_is_all_or_nothing_and_falls_back_to_smaller_blocks() {
    let machine = Machine::new(BASE, 0x20_0000, 0x2_0000, 1);
    let config = BounceConfig { align: Granule::K64, ..BounceConfig::new(0x8_0001) };
    let pool = BouncePool::new(&machine, config).expect("a pool of several blocks");
    assert_eq!((pool.usage().total, pool.usage().blocks), (0x9_0000, machine.live()));
    assert_eq!(pool.max_len(&granules(1, Granule::K64)), 0x2_0000);
    drop(pool);
    let refused = BouncePool::new(&machine, BounceConfig::new(0x40_0000));
    assert!(matches!(refused, Err(BounceError::NoMemory { found: 1.., .. })));
    assert_eq!(machine.live(), 0);
    for (size, slot) in [(0, 2048), (u64::MAX, 2048)] {
        let refused = BouncePool::new(&machine, BounceConfig { slot, ..BounceConfig::new(size) });
        assert_eq!(refused.err(), Some(BounceError::BadPoolSize { size }));
    }
    for slot in [0, 32, 3000] {
        let refused =
            BouncePool::new(&machine, BounceConfig { slot, ..BounceConfig::new(0x1_0000) });
        assert_eq!(refused.err(), Some(BounceError::BadSlotSize { slot, least: 64 }));
    }
}

#[test]
fn the_pool_lies_in_its_window() {
    let machine = Machine::new(BASE, 0x40_0000, u64::MAX, 1);
    let window = phys(BASE + 0x20_0001, 0x10_0000);
    let config = BounceConfig { window: Some(window), ..BounceConfig::new(0x4_0000) };
    let pool = BouncePool::new(&machine, config).expect("a pool");
    assert!(pool.ranges().all(|block| window.contains_range(&block)));
    let outside = BounceRequest { window: Some(phys(0, 0x1000)), ..BounceRequest::new(1) };
    let refused = pool.acquire(&outside);
    assert!(matches!(refused, Err(BounceError::OutOfReach { largest: 0, .. })));
}

#[test]
fn slots_of_another_pool_are_refused_and_a_pool_in_use_leaks_its_memory() {
    let (machine, ours) = pool(0x1_0000, u64::MAX, Granule::K4);
    let (_, other) = pool(0x1_0000, u64::MAX, Granule::K4);
    let mut slot = other.acquire(&BounceRequest::new(8)).expect("a slot");
    let foreign = BounceError::ForeignSlot { outer: slot.outer() };
    assert_eq!(ours.write(&mut slot, 0, &[1]), Err(foreign));
    assert_eq!(ours.read(&slot, 0, &mut [0]), Err(foreign));
    ours.release(slot);
    assert_eq!((ours.usage().foreign_releases, other.usage().used), (1, 2048));

    let raw = ours.acquire(&BounceRequest::new(8)).expect("a slot").into_raw();
    assert_eq!(ours.usage().used, 2048);
    // SAFETY: the record was just made of a slot.
    ours.release(unsafe { ours.slot_from_raw(raw) });
    let _forgotten = ours.acquire(&BounceRequest::new(8)).expect("a slot");
    drop(ours);
    assert_eq!(machine.live(), 1, "a device may still reach the forgotten slot");
}

#[test]
fn threads_never_share_a_byte() {
    let (machine, pool) = pool(0x8_0000, 0x6_0000, Granule::K16);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (machine, pool) = (&machine, &pool);
            scope.spawn(move || churn(machine, pool, thread + 1));
        }
    });
    let usage = pool.usage();
    assert_eq!(usage.used, 0);
    for block in pool.ranges() {
        pool.acquire(&BounceRequest { window: Some(block), ..BounceRequest::new(block.len()) })
            .map(|slot| pool.release(slot))
            .expect("all of it is free again");
    }
}

/// Takes slots of many shapes, marks every byte as its own and finds the marks again.
fn churn(machine: &Machine, pool: &BouncePool<Machine>, mark: u8) {
    let mut live: Vec<BounceSlot> = Vec::new();
    let mut state = u64::from(mark);
    for _ in 0..600 {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let pick = state >> 40;
        if live.len() > 6 {
            let slot = live.swap_remove(pick as usize % live.len());
            assert!(machine.device_read(slot.outer()).iter().all(|byte| *byte == mark));
            pool.release(slot);
        }
        let request = match pick % 8 {
            0 => BounceRequest::new(0x2_4000), // Longer than an area.
            1..=3 => granules(0x4001, Granule::K16),
            _ => BounceRequest { keep: 0xfff, orig: pick, ..BounceRequest::new(pick % 5000 + 1) },
        };
        if let Ok(slot) = pool.acquire(&request) {
            machine.device_fill(slot.outer(), mark);
            live.push(slot);
        }
    }
    live.into_iter().for_each(|slot| pool.release(slot));
}

#[test]
fn a_machine_may_lie_at_the_top_of_the_space() {
    let base = u64::MAX - 0x3_ffff;
    let machine = Machine::new(base, 0x4_0000, u64::MAX, 1);
    let config = BounceConfig { align: Granule::K64, ..BounceConfig::new(0x4_0000) };
    let pool = BouncePool::new(&machine, config).expect("a pool");
    let slots: Vec<_> = (0..4).map(|_| pool.acquire(&granules(0x1_0000, Granule::K64))).collect();
    assert!(slots.iter().all(Result::is_ok));
    assert!(matches!(pool.acquire(&BounceRequest::new(1)), Err(BounceError::Full { .. })));
    let wide = BounceRequest { align: 1 << 63, keep: u64::MAX, orig: 5, ..BounceRequest::new(1) };
    assert!(matches!(pool.acquire(&wide), Err(BounceError::TooLarge { largest: 0, .. })));
    slots.into_iter().flatten().for_each(|slot| pool.release(slot));
}
