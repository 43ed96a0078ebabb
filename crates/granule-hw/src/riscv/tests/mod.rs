//! The driver against a model: what its queue answers, and what devices reach.

mod model;

use std::sync::Arc;

use granule::addr::{Access, Attributes};
use granule::domain::{
    Invalidation, Iommu, Paged, Stream, StreamId, Translation, TranslationError, Unit, UnitError,
};
use granule::mem::OwnedFrames;
use granule::table::{Format, Hint, Sv39, Sv48, Sv57};
use granule_sim::platform::SimPlatform;
use granule_sim::walk::SimFormat;

use super::RiscvIommu;
use crate::testing::{RW, filled, map, range};
use crate::wait::Limit;
use crate::{FaultReason, HwError};
use model::{Kind, Model, Mood};

type Riscv = RiscvIommu<SimPlatform, Model>;
type Table<F> = Paged<F, SimPlatform, Riscv>;

const LIMIT: Limit = Limit { nanoseconds: 100_000, turns: 100 };

fn start(model: &Model) -> Arc<Iommu<SimPlatform, Riscv>> {
    let platform = model.machine.platform().clone();
    Iommu::new(RiscvIommu::with_limit(platform, model.clone(), "iommu", LIMIT).expect("a unit"))
}

fn table<F: Format>(model: &Model, iommu: &Arc<Iommu<SimPlatform, Riscv>>) -> Table<F> {
    Paged::new(model.machine.platform(), std::slice::from_ref(iommu)).expect("a table")
}

/// Memory, aligned to its size and filled with a pattern.
fn memory(model: &Model, size: u64, fill: u8) -> OwnedFrames<SimPlatform> {
    filled(&model.machine, size, size.next_power_of_two(), fill)
}

/// Map (with a 2 MiB page), transfer, read-only, stale entry, unmap, detach; nothing is left over.
fn life<F: Format>(kind: Kind) {
    let model = Model::new(kind);
    let iommu = start(&model);
    assert_eq!(iommu.unit().levels(), kind.levels);
    let paged = table::<F>(&model, &iommu);
    let (data, large) = (memory(&model, 0x3000, 0x5a), memory(&model, 2 << 20, 0xee));
    assert_eq!(model.reads(0x1000), None, "blocked before it is attached");
    // SAFETY: the table outlives the attachment.
    unsafe { paged.attach(Stream::new(kind.device)) }.expect("attached");
    assert_eq!(model.reads(0x1000), None, "nothing is mapped");
    map(&paged, 0x1000, data.range(), RW);
    map(&paged, 2 << 20, large.range(), Attributes::memory(Access::READ));
    assert_eq!(model.reads(0x2011), Some(0x5a));
    assert!(model.writes(0x3000, b"granule"));
    assert!(!model.writes(3 << 20, b"x") && model.reads(3 << 20) == Some(0xee));
    assert_eq!((model.reads(0xfff), model.reads(0x4000)), (None, None), "the edges");
    // SAFETY: our own range.
    unsafe { paged.unmap(range(0x1000, 0x3000), Hint::NONE) }.expect("unmapped");
    assert_eq!(model.reads(0x2000), Some(0x5a), "the IOTLB still has it");
    paged.invalidate(&Invalidation::leaves(range(0x1000, 0x3000))).expect("done");
    assert_eq!((model.reads(0x2000), model.reads(0x3000)), (None, None));
    // SAFETY: as above.
    unsafe { paged.unmap(range(2 << 20, 2 << 20), Hint::NONE) }.expect("unmapped");
    assert_eq!(model.reads(3 << 20), Some(0xee));
    paged
        .invalidate(&Invalidation { range: Some(range(2 << 20, 4096)), tables: true })
        .expect("done");
    assert_eq!(model.reads(3 << 20), None);
    map(&paged, 2 << 20, large.range(), RW);
    assert_eq!(model.reads(2 << 20), Some(0xee));
    paged.detach(Stream::new(kind.device)).expect("detached");
    assert_eq!(model.reads(2 << 20), None);
    drop((paged, iommu, data, large));
    assert_eq!(model.peek(0x10) & 0xf, 0, "ddtp is Off");
    assert_eq!(model.machine.problems(), [""; 0]);
}

#[test]
fn three_modes_live() {
    life::<Sv39>(Kind::default());
    life::<Sv48>(Kind { format: SimFormat::Sv48, levels: 2, ..Kind::default() });
    life::<Sv57>(Kind { format: SimFormat::Sv57, levels: 1, device: 0x25, ..Kind::default() });
}

#[test]
fn the_base_format_and_non_leaf_invalidation_live() {
    life::<Sv39>(Kind { extended: false, ..Kind::default() });
    life::<Sv39>(Kind { extended: false, levels: 1, device: 0x75, ..Kind::default() });
    life::<Sv39>(Kind { non_leaf: true, levels: 2, ..Kind::default() });
}

#[test]
fn no_64k_pages_are_made() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Sv39>(&model, &iommu);
    assert!(!paged.geometry().page_sizes.contains(0x1_0000));
    assert!(paged.geometry().page_sizes.contains(2 << 20));
}

#[test]
fn invalidations_take_the_shortest_way() {
    for (non_leaf, tables, pages, opcodes) in [
        (false, false, 3, [1, 1, 1, 2].as_slice()),
        (false, true, 3, &[1, 2]),
        (true, true, 2, &[1, 1, 2]),
        (true, true, 65, &[1, 2]),
    ] {
        let model = Model::new(Kind { non_leaf, ..Kind::default() });
        let iommu = start(&model);
        let paged = table::<Sv39>(&model, &iommu);
        model.take_seen();
        let request = Invalidation { range: Some(range(0x5000, pages * 0x1000)), tables };
        paged.invalidate(&request).expect("done");
        assert_eq!(model.take_seen(), opcodes);
    }
}

#[test]
fn the_queue_laps_and_fills() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Sv39>(&model, &iommu);
    for _ in 0..20 {
        paged.invalidate(&Invalidation::leaves(range(0, 64 * 0x1000))).expect("done");
    }
    // 64 pages and a fence; a call that finds the queue nearly full waits for room.
    model.take_seen();
    model.set_mood(Mood::Silent);
    for _ in 0..4 {
        assert!(paged.invalidate(&Invalidation::leaves(range(0, 64 * 0x1000))).is_err());
    }
    model.set_mood(Mood::Answers);
    paged.invalidate(&Invalidation::ALL).expect("the queue is worked off");
}

#[test]
fn a_silent_unit_is_a_timeout_and_nothing_is_reused() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Sv39>(&model, &iommu);
    let stream = Stream::new(Kind::default().device);
    // SAFETY: the table outlives the attachment.
    unsafe { paged.attach(stream) }.expect("attached");
    let used = iommu.unit().open(&paged.layout()).expect("a context").space();
    model.set_mood(Mood::Silent);
    let late = UnitError::Timeout { unit: "iommu".into() };
    assert_eq!(paged.invalidate(&Invalidation::ALL), Err(late.clone()));
    assert_eq!(paged.detach(stream), Err(late));
    // SAFETY: as above.
    let error = unsafe { paged.attach(Stream::new(3)) }.expect_err("silent");
    assert!(matches!(error, TranslationError::Unit(UnitError::Timeout { .. })), "{error}");
    model.set_mood(Mood::Answers);
    let live = model.machine.frames().live().len();
    drop(paged);
    assert_eq!(model.machine.frames().live().len(), live, "the tables are leaked");
    let fresh = table::<Sv39>(&model, &iommu);
    let next = iommu.unit().open(&fresh.layout()).expect("a context").space();
    assert_eq!(next, used + 2, "both are new: the stuck one does not come back");
}

#[test]
fn a_refused_command_fails_the_call_and_the_queue_goes_on() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Sv39>(&model, &iommu);
    model.set_mood(Mood::RefusesOne);
    assert!(paged.invalidate(&Invalidation::ALL).is_err());
    assert_eq!(model.peek(0x48) & 0x700, 0, "cleared");
    paged.invalidate(&Invalidation::ALL).expect("the next one");
}

#[test]
fn devices_are_those_of_the_directory() {
    let model = Model::new(Kind { levels: 2, ..Kind::default() });
    let iommu = start(&model);
    let unit = iommu.unit();
    let beyond = StreamId::exact(1 << 15);
    // SAFETY: `on` is false.
    let error = unsafe { unit.bypass(beyond, false) }.expect_err("beyond the directory");
    let limit = 1 << 15;
    assert_eq!(error, UnitError::NoSuchStream { unit: "iommu".into(), stream: beyond, limit });
    let data = memory(&model, 0x1000, 0x77);
    let stream = StreamId::exact(0x1a5);
    // SAFETY: the model's device may reach all memory.
    unsafe { iommu.bypass(stream) }.expect("let through");
    assert_eq!(model.reads(data.start().raw()), Some(0x77));
    iommu.end_bypass(stream).expect("blocked");
    assert_eq!(model.reads(data.start().raw()), None);
}

#[test]
fn power_is_lost_and_comes_back() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Sv39>(&model, &iommu);
    let data = memory(&model, 0x1000, 0x21);
    let stream = Stream::new(Kind::default().device);
    // SAFETY: the table outlives the attachment.
    unsafe { paged.attach(stream) }.expect("attached");
    map(&paged, 0x4000, data.range(), RW);
    assert_eq!(model.reads(0x4000), Some(0x21));
    model.lose_power();
    assert_eq!(model.reads(0x4000), None);
    iommu.unit().reset().expect("programmed again");
    paged.resume().expect("attached again");
    assert_eq!(model.reads(0x4000), Some(0x21));
    paged.detach(stream).expect("detached");
}

#[test]
fn faults_come_out_in_order_and_losses_are_told() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let unit = iommu.unit();
    assert_eq!(unit.next_fault(), None);
    for _lap in 0..3 {
        (0..200).for_each(|index| model.post([15 | 3 << 34 | 8 << 40, 0, index << 12, 0]));
        for index in 0..127 {
            let fault = unit.next_fault().expect("a fault");
            assert_eq!(fault.address.map(|at| at.raw()), Some(index << 12));
            assert_eq!((fault.reason, fault.code), (FaultReason::NotMapped, 15));
            assert_eq!((fault.stream, fault.access), (Some(StreamId::exact(8)), Access::WRITE));
        }
        assert_eq!(unit.next_fault().map(|fault| fault.reason), Some(FaultReason::Overflow));
        assert_eq!(unit.next_fault(), None);
    }
}

#[test]
fn what_cannot_be_driven_is_refused() {
    for (value, high, what) in [
        (0x20 | 1 << 9, 44, "version 1 of the specification"),
        (0x10, 44, "Sv39, Sv48 or Sv57"),
        (0x10 | 1 << 9, 0, "physical addresses (PAS)"),
    ] {
        let model = Model::new(Kind::default());
        model.poke(0, value);
        model.poke(4, high);
        let platform = model.machine.platform().clone();
        let error = RiscvIommu::new(platform, model, "iommu").err();
        assert!(matches!(error, Some(HwError::Missing { what: found, .. }) if found == what));
    }
    let model = Model::new(Kind { levels: 0, ..Kind::default() });
    let platform = model.machine.platform().clone();
    let error = RiscvIommu::with_limit(platform.clone(), model.clone(), "iommu", LIMIT).err();
    assert!(matches!(error, Some(HwError::Missing { .. })), "no directory: {error:?}");
    model.set_mood(Mood::Silent);
    let error = RiscvIommu::with_limit(platform, model.clone(), "iommu", LIMIT).err();
    assert!(matches!(error, Some(HwError::Timeout { what: "the first invalidation", .. })));
    assert_eq!(model.machine.problems(), [""; 0]);
}
