//! The driver against a model: what its queue answers, and what devices reach.

mod model;

use std::sync::Arc;

use granule::addr::{Access, Attributes};
use granule::domain::{
    Invalidation, Iommu, Paged, Stream, StreamId, Translation, TranslationError, Unit, UnitError,
};
use granule::mem::OwnedFrames;
use granule::table::{Format, Hint, Lpae4k, Lpae16k, Lpae64k};
use granule_sim::platform::SimPlatform;
use granule_sim::walk::SimFormat;

use super::SmmuV3;
use crate::testing::{RW, filled, map, range};
use crate::wait::Limit;
use crate::{FaultReason, HwError};
use model::{Kind, Model, Mood, STREAM};

type Smmu = SmmuV3<SimPlatform, Model>;
type Table<F> = Paged<F, SimPlatform, Smmu>;

const LIMIT: Limit = Limit { nanoseconds: 100_000, turns: 100 };

fn start(model: &Model) -> Arc<Iommu<SimPlatform, Smmu>> {
    let platform = model.machine.platform().clone();
    let smmu = SmmuV3::with_limit(platform, model.clone(), "smmu", LIMIT).expect("a unit");
    Iommu::new(smmu)
}

fn table<F: Format>(model: &Model, iommu: &Arc<Iommu<SimPlatform, Smmu>>) -> Table<F> {
    Paged::new(model.machine.platform(), std::slice::from_ref(iommu)).expect("a table")
}

fn stream(kind: Kind) -> Stream {
    Stream::new(STREAM & ((1 << kind.stream_bits) - 1))
}

/// Memory of `granules` granules, filled with a pattern.
fn memory<F: Format>(model: &Model, granules: u64, fill: u8) -> OwnedFrames<SimPlatform> {
    let size = F::GRANULE.size();
    filled(&model.machine, size * granules, size, fill)
}

/// Map, transfer, read-only, stale entry, unmap, detach; nothing is left over.
fn life<F: Format>(kind: Kind) {
    let model = Model::new(kind);
    let granule = F::GRANULE.size();
    let iommu = start(&model);
    assert_eq!(model.reads(granule), None, "blocked before it is attached");
    let paged = table::<F>(&model, &iommu);
    let (data, secret) = (memory::<F>(&model, 3, 0x5a), memory::<F>(&model, 1, 0xee));
    // SAFETY: the table outlives the attachment.
    unsafe { paged.attach(stream(kind)) }.expect("attached");
    assert_eq!(model.reads(granule), None, "nothing is mapped");
    map(&paged, granule, data.range(), RW);
    map(&paged, 8 * granule, secret.range(), Attributes::memory(Access::READ));
    assert_eq!(model.reads(2 * granule + 17), Some(0x5a));
    assert!(model.writes(3 * granule, b"granule"));
    assert!(!model.writes(8 * granule, b"x") && model.reads(8 * granule) == Some(0xee));
    assert_eq!((model.reads(granule - 1), model.reads(4 * granule)), (None, None), "the edges");
    // SAFETY: our own range.
    unsafe { paged.unmap(range(granule, 3 * granule), Hint::NONE) }.expect("unmapped");
    assert_eq!(model.reads(2 * granule), Some(0x5a), "the IOTLB still has it");
    paged.invalidate(&Invalidation::leaves(range(granule, 3 * granule))).expect("done");
    assert_eq!((model.reads(2 * granule), model.reads(3 * granule)), (None, None));
    assert_eq!(model.reads(8 * granule), Some(0xee), "its neighbour stays");
    paged.detach(stream(kind)).expect("detached");
    assert_eq!(model.reads(8 * granule), None);
    drop((paged, iommu, data, secret));
    assert_eq!(model.peek(0x20), 0, "disabled");
    assert_ne!(model.peek(0x44) & 1 << 20, 0, "GBPA.ABORT");
    assert_eq!(model.machine.problems(), [""; 0]);
}

#[test]
fn three_granules_live() {
    life::<Lpae4k>(Kind { format: SimFormat::Lpae4k, ..Kind::default() });
    life::<Lpae16k>(Kind::default());
    life::<Lpae64k>(Kind { format: SimFormat::Lpae64k, ..Kind::default() });
}

#[test]
fn a_unit_that_does_not_snoop_lives() {
    life::<Lpae16k>(Kind { coherent: false, ..Kind::default() });
    life::<Lpae4k>(Kind {
        coherent: false,
        two_levels: false,
        format: SimFormat::Lpae4k,
        ..Kind::default()
    });
}

#[test]
fn a_small_unit_lives() {
    life::<Lpae16k>(Kind { ranges: false, two_levels: false, stream_bits: 4, ..Kind::default() });
}

#[test]
fn long_ranges_are_dropped_by_the_shortest_way() {
    for (ranges, opcodes) in [(true, [0x12, 0x12, 0x12, 0x46].as_slice()), (false, &[0x11, 0x46])] {
        let model = Model::new(Kind { ranges, ..Kind::default() });
        let iommu = start(&model);
        let paged = table::<Lpae16k>(&model, &iommu);
        model.take_seen();
        // 0b1_00001_00001 granules.
        paged.invalidate(&Invalidation::leaves(range(0x4000, 0x421 * 0x4000))).expect("done");
        assert_eq!(model.take_seen(), opcodes);
    }
    // Short ones by page, even if that takes more commands than the queue has room for.
    let model = Model::new(Kind { ranges: false, ..Kind::default() });
    let iommu = start(&model);
    let paged = table::<Lpae16k>(&model, &iommu);
    model.take_seen();
    paged.invalidate(&Invalidation::leaves(range(0, 20 * 0x4000))).expect("done");
    assert_eq!(model.take_seen().iter().filter(|opcode| **opcode == 0x12).count(), 20);
}

#[test]
fn a_silent_unit_is_a_timeout_and_nothing_is_reused() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Lpae16k>(&model, &iommu);
    // SAFETY: the table outlives the attachment.
    unsafe { paged.attach(stream(Kind::default())) }.expect("attached");
    let used = iommu.unit().open(&paged.layout()).expect("a context").asid();
    model.set_mood(Mood::Silent);
    let late = UnitError::Timeout { unit: "smmu".into() };
    assert_eq!(paged.invalidate(&Invalidation::ALL), Err(late.clone()));
    assert_eq!(paged.detach(stream(Kind::default())), Err(late));
    // SAFETY: as above.
    let error = unsafe { paged.attach(Stream::new(3)) }.expect_err("silent");
    assert!(matches!(error, TranslationError::Unit(UnitError::Timeout { .. })), "{error}");
    model.set_mood(Mood::Answers);
    let live = model.machine.frames().live().len();
    drop(paged);
    assert_eq!(model.machine.frames().live().len(), live, "tables and descriptor are leaked");
    let fresh = table::<Lpae16k>(&model, &iommu);
    let next = iommu.unit().open(&fresh.layout()).expect("a context").asid();
    assert_eq!(next, used + 2, "both are new: the stuck one does not come back");
}

#[test]
fn a_refused_command_fails_the_call_and_the_queue_goes_on() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Lpae16k>(&model, &iommu);
    model.set_mood(Mood::RefusesOne);
    assert!(paged.invalidate(&Invalidation::ALL).is_err());
    assert_eq!(model.peek(0x60) & 1, model.peek(0x64) & 1, "acknowledged");
    paged.invalidate(&Invalidation::ALL).expect("the next one");
}

#[test]
fn streams_are_those_of_the_table() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let unit = iommu.unit();
    let beyond = StreamId::exact(1 << 10);
    // SAFETY: `on` is false.
    let error = unsafe { unit.bypass(beyond, false) }.expect_err("beyond the table");
    assert_eq!(error, UnitError::NoSuchStream { unit: "smmu".into(), stream: beyond, limit: 1024 });
    let data = memory::<Lpae16k>(&model, 1, 0x77);
    let masked = StreamId { id: STREAM, mask: 0b101 };
    // SAFETY: the model's device may reach all memory.
    unsafe { iommu.bypass(masked) }.expect("let through");
    assert_eq!(model.reads(data.start().raw()), Some(0x77));
    iommu.end_bypass(masked).expect("blocked");
    assert_eq!(model.reads(data.start().raw()), None);
}

#[test]
fn power_is_lost_and_comes_back() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let paged = table::<Lpae16k>(&model, &iommu);
    let data = memory::<Lpae16k>(&model, 1, 0x21);
    // SAFETY: the table outlives the attachment.
    unsafe { paged.attach(stream(Kind::default())) }.expect("attached");
    map(&paged, 0x4000, data.range(), RW);
    assert_eq!(model.reads(0x4000), Some(0x21));
    model.lose_power();
    assert_eq!(model.reads(0x4000), None);
    iommu.unit().reset().expect("programmed again");
    paged.resume().expect("attached again");
    assert_eq!(model.reads(0x4000), Some(0x21));
    paged.detach(stream(Kind::default())).expect("detached");
}

#[test]
fn events_come_out_in_order_and_losses_are_told() {
    let model = Model::new(Kind::default());
    let iommu = start(&model);
    let unit = iommu.unit();
    assert_eq!(unit.next_fault(), None);
    for lap in 0..3u64 {
        for index in 0..6 {
            model.post([0x10 | 5 << 32, 1 << 35, 0x1000 * (lap + index), 0]);
        }
        for index in 0..4 {
            let fault = unit.next_fault().expect("an event");
            assert_eq!(fault.address.map(|at| at.raw()), Some(0x1000 * (lap + index)));
            assert_eq!((fault.reason, fault.code), (FaultReason::NotMapped, 0x10));
            assert_eq!((fault.stream, fault.access), (Some(StreamId::exact(5)), Access::READ));
        }
        assert_eq!(unit.next_fault().map(|fault| fault.reason), Some(FaultReason::Overflow));
        assert_eq!(unit.next_fault(), None);
    }
    model.take_seen();
    model.post([0x13 | 5 << 32, 1 << 31 | 0x99, 0, 0]);
    assert_eq!(unit.next_fault().map(|fault| fault.reason), Some(FaultReason::Permission));
    assert_eq!(model.take_seen(), [0x44, 0x46], "what stalls is ended");
}

#[test]
fn what_cannot_be_driven_is_refused() {
    let model = Model::new(Kind::default());
    let platform = model.machine.platform().clone();
    for (offset, value, what) in [
        (0, 2 << 2, "stage 1 translation (IDR0.S1P)"),
        (0, 1 << 1, "the AArch64 table format (IDR0.TTF)"),
        (4, 1 << 30 | 0x42 << 16 | 10, "table and queue bases of our choice (IDR1)"),
        (0x14, 5, "a granule (IDR5)"),
    ] {
        let model = Model::new(Kind::default());
        crate::mmio::Registers::write32(&model, offset, value);
        let error = SmmuV3::new(platform.clone(), model, "smmu").err();
        assert!(matches!(error, Some(HwError::Missing { what: found, .. }) if found == what));
    }
    model.set_mood(Mood::Silent);
    let error = SmmuV3::with_limit(platform, model.clone(), "smmu", LIMIT).err();
    assert!(matches!(error, Some(HwError::Timeout { what: "the first invalidation", .. })));
    assert_eq!(model.machine.problems(), [""; 0]);
}
