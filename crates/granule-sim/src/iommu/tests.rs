//! What hardware may remember, remembered.

use std::sync::Arc;

use granule::addr::{Direction, PhysRange};

use super::*;
use crate::cache::Cache;
use crate::faults::Point;
use crate::ram::Ram;
use crate::walk::SimFormat;

const ROOT: u64 = 0x8_0000_0000;
const LEAF: u64 = 0x8_0000_4000;
const DATA: u64 = 0x8_0010_0000;

fn memory(coherent: bool) -> Memory {
    let range = PhysRange::new(PhysAddr::new(ROOT), 1 << 24).expect("a legal range");
    let ram = Arc::new(Ram::new(&[range]).expect("RAM"));
    let cache = (!coherent).then(|| {
        let cache = Cache::new(64, 0, 0);
        cache.track(range);
        Arc::new(cache)
    });
    Memory::new(ram, cache)
}

fn dart(change: impl FnOnce(&mut IommuConfig), memory: Memory, plan: &FaultPlan) -> SimIommu {
    let mut config = IommuConfig::new("dart", SimFormat::Dart1, 32);
    change(&mut config);
    SimIommu::new(config, memory, Clock::manual(), plan.clone(), 0).expect("a legal IOMMU")
}

fn translate(context: u32) -> StreamState {
    StreamState::Translate { context, roots: vec![PhysAddr::new(ROOT)], input_bits: 32 }
}

fn write(iommu: &SimIommu, at: u64, raw: u64) {
    iommu.memory().ram().write_u64(PhysAddr::new(at), raw).expect("inside");
}

/// Maps the page number `page` of a DART whose first leaf table is at [`LEAF`].
fn map(iommu: &SimIommu, page: u64, phys: u64) {
    write(iommu, ROOT, LEAF | 1);
    write(iommu, LEAF + page * 8, 0x000f_ff00_0000_0001 | phys);
}

fn unmap(iommu: &SimIommu, page: u64) {
    write(iommu, LEAF + page * 8, 0);
}

fn go(iommu: &SimIommu, address: u64) -> Result<u64, FaultReason> {
    iommu.access(1, DmaAddr::new(address), Access::READ).map(|target| target.phys.raw())
}

fn pages(first: u64, count: u64) -> Option<IovaRange> {
    Some(IovaRange::new(Iova::new(first * 0x4000), count * 0x4000).expect("a legal range"))
}

#[test]
fn a_leaf_serves_until_it_is_invalidated() {
    let iommu = dart(|_| (), memory(true), &FaultPlan::new());
    assert_eq!(go(&iommu, 0), Err(FaultReason::Blocked));
    iommu.set_stream(1, translate(7)).expect("legal");
    map(&iommu, 3, DATA);
    assert_eq!(go(&iommu, 0xc004), Ok(DATA + 4));
    unmap(&iommu, 3);
    assert_eq!(go(&iommu, 0xc008), Ok(DATA + 8));
    iommu.invalidate(8, None, false).expect("another context");
    iommu.invalidate(7, pages(0, 3), false).expect("another range");
    assert_eq!(go(&iommu, 0xc008), Ok(DATA + 8));
    iommu.invalidate(7, pages(3, 1), true).expect("done");
    assert!(matches!(go(&iommu, 0xc008), Err(FaultReason::Walk(WalkFault::NotPresent { .. }))));
    let counters = iommu.counters();
    assert_eq!((counters.walks, counters.hits, counters.faults), (2, 2, 2));
    assert_eq!(iommu.take_faults().len(), 2);
}

#[test]
fn a_cached_pointer_outlives_its_entry() {
    let iommu = dart(|_| (), memory(true), &FaultPlan::new());
    iommu.set_stream(1, translate(7)).expect("legal");
    map(&iommu, 0, DATA);
    assert!(go(&iommu, 0).is_ok());
    // The leaf table is unlinked and invalidated by leaf only; its memory holds something else now.
    write(&iommu, ROOT, 0);
    iommu.invalidate(7, None, true).expect("done");
    write(&iommu, LEAF + 8, 0x000f_ff00_0000_0001 | (DATA + 0x4000));
    assert_eq!(go(&iommu, 0x4000), Ok(DATA + 0x4000));
    assert!(iommu.reachable(1).expect("a stream").iter().any(|reach| reach.via == Via::WalkCache));
    iommu.invalidate(7, pages(5, 1), false).expect("done");
    assert!(go(&iommu, 0x4000).is_ok(), "the leaf is cached still");
    iommu.invalidate(7, pages(1, 1), true).expect("done");
    assert!(go(&iommu, 0x4000).is_err());
    assert!(iommu.reachable(1).expect("a stream").is_empty());
}

#[test]
fn nothing_is_remembered_in_caching_mode_only() {
    for caching_mode in [false, true] {
        let plan = FaultPlan::new();
        let iommu = dart(|config| config.caching_mode = caching_mode, memory(true), &plan);
        iommu.set_stream(1, translate(7)).expect("legal");
        assert!(go(&iommu, 0x4000).is_err());
        map(&iommu, 1, DATA);
        assert_eq!(go(&iommu, 0x4000).is_err(), caching_mode);
        iommu.invalidate(7, pages(1, 1), true).expect("done");
        assert_eq!(go(&iommu, 0x4000), Ok(DATA));
    }
}

#[test]
fn a_failed_invalidation_leaves_everything() {
    let plan = FaultPlan::new();
    let iommu = dart(|_| (), memory(true), &plan);
    iommu.set_stream(1, translate(7)).expect("legal");
    map(&iommu, 0, DATA);
    assert!(go(&iommu, 0).is_ok());
    unmap(&iommu, 0);
    plan.fail_nth(Point::Invalidation, 0);
    assert!(matches!(
        iommu.invalidate(7, None, false),
        Err(SimIommuError::InvalidationTimedOut { .. })
    ));
    assert_eq!(go(&iommu, 0), Ok(DATA));
    iommu.invalidate(7, None, false).expect("done");
    assert!(go(&iommu, 0).is_err());
    assert_eq!((iommu.counters().timeouts, iommu.counters().invalidations), (1, 1));
}

#[test]
fn locked_streams_keep_their_root() {
    let lock =
        LockedStream { stream: 1, context: 3, roots: vec![PhysAddr::new(ROOT)], input_bits: 32 };
    let iommu = dart(|config| config.locked = vec![lock], memory(true), &FaultPlan::new());
    map(&iommu, 0, DATA);
    assert_eq!(go(&iommu, 0), Ok(DATA));
    let other = StreamState::Translate {
        context: 3,
        roots: vec![PhysAddr::new(ROOT + 0x8000)],
        input_bits: 32,
    };
    for wanted in [StreamState::Bypass, StreamState::Blocked, other] {
        assert!(matches!(iommu.set_stream(1, wanted), Err(SimIommuError::Locked { .. })));
    }
    iommu.set_stream(1, translate(9)).expect("the same root");
    iommu.set_stream(0, StreamState::Bypass).expect("not locked");
    iommu.reset();
    assert_eq!(iommu.stream(1), Ok(translate(3)));
    assert_eq!(iommu.stream(0), Ok(StreamState::Blocked));
}

#[test]
fn impossible_commands_are_refused() {
    let iommu = dart(|config| config.can_bypass = false, memory(true), &FaultPlan::new());
    assert!(matches!(
        iommu.set_stream(1, StreamState::Bypass),
        Err(SimIommuError::NoBypass { .. })
    ));
    assert!(matches!(iommu.set_stream(16, translate(0)), Err(SimIommuError::NoSuchStream { .. })));
    let wide =
        StreamState::Translate { context: 0, roots: vec![PhysAddr::new(ROOT)], input_bits: 36 };
    assert!(matches!(iommu.set_stream(1, wide), Err(SimIommuError::InputBits { .. })));
    assert_eq!(go(&iommu, 0), Err(FaultReason::Blocked));
}

#[test]
fn a_walker_that_does_not_snoop_sees_clean_entries_only() {
    let iommu = dart(|config| config.coherent_walk = false, memory(false), &FaultPlan::new());
    iommu.set_stream(1, translate(7)).expect("legal");
    let ram = iommu.memory().ram().clone();
    let table = PhysRange::new(PhysAddr::new(ROOT), 0x8000).expect("a legal range");
    ram.fill(table, 0).expect("inside");
    let cache = iommu.memory().cache().expect("a cache").clone();
    cache.sync_for_device(&ram, table, Direction::ToDevice);
    map(&iommu, 0, DATA);
    assert!(go(&iommu, 0).is_err());
    // What the CPU wrote may be written back at any moment, so it counts as reachable.
    assert_eq!(iommu.reachable(1).expect("a stream").len(), 1);
    cache.sync_for_device(&ram, table, Direction::ToDevice);
    assert_eq!(go(&iommu, 0), Ok(DATA));
}

#[test]
fn rights_fences_and_output_bits_hold() {
    let iommu = dart(|config| config.output_bits = 34, memory(true), &FaultPlan::new());
    iommu.set_stream(1, translate(7)).expect("legal");
    map(&iommu, 0, DATA);
    assert!(matches!(go(&iommu, 0), Err(FaultReason::OutputSize { output_bits: 34, .. })));
    let iommu = dart(|_| (), iommu.memory().clone(), &FaultPlan::new());
    iommu.set_stream(1, translate(7)).expect("legal");
    write(&iommu, LEAF, 0x4007_ff00_0000_0081 | DATA); // No write; the second 4 KiB only.
    let access = |address, access| iommu.access(1, DmaAddr::new(address), access);
    let fence = FaultReason::Fence { first: 0x1000, last: 0x1fff };
    assert_eq!(access(0xfff, Access::READ), Err(fence));
    let target = access(0x1800, Access::READ).expect("inside the fence");
    assert_eq!((target.phys.raw(), target.len), (DATA + 0x1800, 0x800));
    let refused = access(0x1800, Access::WRITE);
    assert_eq!(refused, Err(FaultReason::Permission { granted: Access::READ }));
    // The upper bits of what a device emits take no part in a DART's walk.
    assert_eq!(go(&iommu, 0xf_0000_1800), Ok(DATA + 0x1800));
}

#[test]
fn two_page_sizes_for_one_address_conflict() {
    let config = IommuConfig::new("vtd", SimFormat::Vtd2, 39);
    let iommu = SimIommu::new(config, memory(true), Clock::manual(), FaultPlan::new(), 0);
    let iommu = iommu.expect("a legal IOMMU");
    let roots = vec![PhysAddr::new(ROOT)];
    let state = StreamState::Translate { context: 1, roots, input_bits: 39 };
    iommu.set_stream(1, state).expect("legal");
    write(&iommu, ROOT, (ROOT + 0x1000) | 3);
    write(&iommu, ROOT + 0x1000, (ROOT + 0x2000) | 3);
    write(&iommu, ROOT + 0x2000, DATA | 3);
    assert_eq!(go(&iommu, 0), Ok(DATA));
    // A 2 MiB page takes the table's place, pointers are dropped, and another page is fetched.
    write(&iommu, ROOT + 0x1000, 0x8_0020_0083);
    let second = IovaRange::new(Iova::new(0x1000), 0x1000).expect("a legal range");
    iommu.invalidate(1, Some(second), false).expect("done");
    assert_eq!(go(&iommu, 0x1000), Ok(0x8_0020_1000));
    assert_eq!(go(&iommu, 0), Ok(DATA), "the older entry wins");
    assert_eq!(iommu.counters().conflicts, 1);
}

#[test]
fn random_eviction_forgets_in_the_end_and_latency_passes() {
    let latency = std::time::Duration::from_micros(5);
    let change = |config: &mut IommuConfig| {
        config.evict_one_in = 4;
        config.invalidation_latency = latency;
    };
    let iommu = dart(change, memory(true), &FaultPlan::new());
    iommu.set_stream(1, translate(7)).expect("legal");
    map(&iommu, 0, DATA);
    assert!(go(&iommu, 0).is_ok());
    unmap(&iommu, 0);
    assert!((0..1000).any(|_| go(&iommu, 0).is_err()));
    iommu.invalidate_all().expect("done");
    assert_eq!(iommu.clock.now(), 5000);
}
