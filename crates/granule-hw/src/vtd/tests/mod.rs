//! The driver against a model of the unit, which does not snoop the CPU's caches.

mod model;

use std::sync::Arc;
use std::vec::Vec;

use granule::addr::{Access, Attributes, DmaAddr, Iova, PageSizes, PhysAddr, PhysRange};
use granule::domain::{Invalidation, Iommu, Paged, Stream, StreamId, Translation, Unit, UnitError};
use granule::table::{FormatId, TableLayout, Vtd2};
use granule_sim::machine::Machine;

use super::spec::global;
use super::{VtdConfig, VtdUnit};
use crate::testing::{Clocked, range, without_snooping};
use crate::{FaultReason, HwError};
use model::{CAP, ECAP, Model};

type TestUnit = VtdUnit<Clocked, Model>;

fn config() -> VtdConfig {
    VtdConfig { name: "dmar0".into(), host_address_bits: 39 }
}

fn start(cap: u64, ecap: u64) -> (Arc<Machine>, Model, Result<TestUnit, HwError>) {
    let machine = Arc::new(without_snooping());
    let model = Model::new(machine.clone(), cap, ecap);
    let unit = VtdUnit::new(Clocked::hasty(&machine), model.clone(), config());
    (machine, model, unit)
}

fn layout(root: u64) -> TableLayout {
    TableLayout {
        format: FormatId::Vtd2,
        granule: granule::addr::Granule::K4,
        input_bits: 48,
        output_bits: 39,
        levels: 4,
        roots: Vec::from([PhysAddr::new(root)]),
        root_entry_bytes: 1 << 39,
    }
}

#[test]
fn it_starts_blocked_and_translating() {
    let (_machine, model, unit) = start(CAP, ECAP);
    let unit = unit.expect("it starts");
    let state = model.state();
    assert_eq!(
        state.status & (global::TRANSLATION | global::QUEUE),
        global::TRANSLATION | global::QUEUE
    );
    assert_ne!(state.walked, 0);
    drop(state);
    assert_eq!(model.forgot(), [(0x11, 0), (0xd2, 0)]);
    assert_eq!(model.context(0x10), None);
    let info = unit.info();
    assert_eq!((info.input_bits, info.output_bits), (48, 39));
    assert!(!info.coherent_walk && !info.caches_absent && info.can_bypass);
    assert_eq!(info.page_sizes, [4096, 2 << 20, 1 << 30].into_iter().collect::<PageSizes>());
}

#[test]
fn entries_come_and_go_with_their_invalidations() {
    let (_machine, model, unit) = start(CAP, ECAP);
    let unit = unit.expect("it starts");
    let context = unit.open(&layout(0x1234_5000)).expect("an id");
    assert_eq!(context.domain(), 2);
    model.forgot();
    let stream = StreamId::exact(0x0310);
    // SAFETY: nothing walks the tables.
    unsafe { unit.attach(&context, stream) }.expect("answered");
    assert_eq!(model.context(0x310), Some((0x1234_5001, 0x202)));
    // What was cached as absent, under domain 0; then the domain's pages.
    assert_eq!(model.forgot(), [(0x0310_0000_0031, 0), (0x2_00e2, 0)]);
    // SAFETY: as above.
    unsafe { unit.attach(&context, stream) }.expect("again, as in a resume");
    assert_eq!(model.forgot().len(), 4);
    let other = unit.open(&layout(0x2000)).expect("an id");
    unit.detach(&other, stream).expect("not its stream: nothing to do");
    assert_eq!(model.context(0x310), Some((0x1234_5001, 0x202)));
    unit.detach(&context, stream).expect("answered");
    assert_eq!(model.context(0x310).map(|entry| entry.0), Some(0));
    assert_eq!(model.forgot(), [(0x0310_0002_0031, 0), (0x2_00e2, 0)]);
    // SAFETY: there is no device.
    unsafe { unit.bypass(stream, true) }.expect("it can");
    assert_eq!(model.context(0x310), Some((9, 0x102)));
    // SAFETY: off.
    unsafe { unit.bypass(stream, false) }.expect("answered");
    assert_eq!(model.context(0x310).map(|entry| entry.0), Some(0));
    for wrong in [StreamId::exact(0x1_0000), StreamId { id: 8, mask: 7 }] {
        // SAFETY: refused.
        let refused = unsafe { unit.attach(&context, wrong) };
        assert!(matches!(refused, Err(UnitError::NoSuchStream { limit: 0x1_0000, .. })));
    }
}

#[test]
fn invalidations_are_as_small_as_the_request() {
    let (_machine, model, unit) = start(CAP, ECAP);
    let unit = unit.expect("it starts");
    let context = unit.open(&layout(0x1000)).expect("an id");
    let forgot = |request: Invalidation| {
        model.forgot();
        unit.invalidate(&context, &request).expect("answered");
        model.forgot()
    };
    let pages = 0x2_00f2;
    assert_eq!(forgot(Invalidation::leaves(range(0x5000, 0x1000))), [(pages, 0x5040)]);
    assert_eq!(
        forgot(Invalidation { range: Some(range(0x3000, 0x2000)), tables: true }),
        [(pages, 0x3000), (pages, 0x4000)]
    );
    assert_eq!(forgot(Invalidation::leaves(range(0x20_0000, 0x20_0000))), [(pages, 0x20_0049)]);
    assert_eq!(forgot(Invalidation::ALL), [(0x2_00e2, 0)]);
    // Too many pieces.
    assert_eq!(forgot(Invalidation::leaves(range(0x1000, 0x7ff_e000))), [(0x2_00e2, 0)]);
}

#[test]
fn without_a_queue_registers_do() {
    let (_machine, model, unit) = start(CAP, ECAP & !2);
    let unit = unit.expect("it starts");
    assert_eq!(model.state().status & global::QUEUE, 0);
    assert_eq!(model.forgot(), [(0xa000_0000_0000_0000, 0), (0x9003_0000_0000_0000, 0)]);
    let context = unit.open(&layout(0x1000)).expect("an id");
    unit.invalidate(&context, &Invalidation::leaves(range(0x5000, 0x1000))).expect("answered");
    assert_eq!(model.forgot(), [(0xb003_0002_0000_0000, 0x5040)]);
    model.state().refuse = true;
    let refused = unit.invalidate(&context, &Invalidation::ALL);
    assert!(matches!(refused, Err(UnitError::Timeout { .. })));
}

#[test]
fn a_unit_that_does_not_answer_is_an_error_until_its_reset() {
    for ecap in [ECAP, ECAP & !2] {
        let (_machine, model, unit) = start(CAP, ecap);
        let unit = unit.expect("it starts");
        let context = unit.open(&layout(0x1000)).expect("an id");
        let stream = StreamId::exact(8);
        // SAFETY: nothing walks the tables.
        unsafe { unit.attach(&context, stream) }.expect("answered");
        model.state().mute = true;
        let timeout = Err(UnitError::Timeout { unit: "dmar0".into() });
        assert_eq!(unit.invalidate(&context, &Invalidation::ALL), timeout);
        model.state().mute = false;
        assert_eq!(unit.invalidate(&context, &Invalidation::ALL), timeout, "still uncertain");
        assert_eq!(unit.detach(&context, stream), timeout);
        // SAFETY: as above.
        assert_eq!(unsafe { unit.attach(&context, stream) }, timeout);
        assert_eq!(model.context(8).map(|entry| entry.0), Some(0), "blocked in memory at least");
        unit.reset().expect("it answers again");
        assert_eq!(unit.invalidate(&context, &Invalidation::ALL), Ok(()));
        // SAFETY: as above.
        unsafe { unit.attach(&context, stream) }.expect("answered");
        assert_eq!(model.context(8), Some((0x1001, 0x202)));
    }
}

#[test]
fn firmware_is_taken_over() {
    let machine = Arc::new(without_snooping());
    // Write-buffer flush and protected memory too; translation and a queue are on.
    let model = Model::new(machine.clone(), CAP | 0x30, ECAP);
    model.state().status = global::TRANSLATION | global::QUEUE | 1 << 25;
    model.state().protected = 1 << 31 | 1;
    let unit = VtdUnit::new(Clocked::hasty(&machine), model.clone(), config());
    let unit = unit.expect("it starts");
    assert!(unit.info().caches_absent, "a new entry waits in the write buffer");
    let state = model.state();
    assert_eq!(state.protected, 0);
    assert_ne!(state.status & 1 << 25, 0, "interrupt remapping stays as it was");
    assert_ne!(state.write_buffer_flushes, 0);
}

#[test]
fn what_the_unit_lacks_is_refused() {
    let (_, _, unit) = start(CAP & !0x1f00, ECAP);
    assert!(matches!(unit.err(), Some(HwError::Missing { .. })));
    let (_machine, _, unit) = start(CAP, ECAP & !0x40);
    let unit = unit.expect("it starts");
    // SAFETY: refused.
    let bypass = unsafe { unit.bypass(StreamId::exact(8), true) };
    assert!(matches!(bypass, Err(UnitError::NoBypass { .. })));
    let wrong = [
        TableLayout { format: FormatId::Lpae4k, ..layout(0) },
        TableLayout { levels: 5, ..layout(0) },
        TableLayout { input_bits: 49, ..layout(0) },
        TableLayout { output_bits: 46, ..layout(0) },
        TableLayout { roots: Vec::new(), ..layout(0) },
    ];
    for layout in wrong {
        assert!(matches!(unit.open(&layout), Err(UnitError::Unsupported { .. })));
    }
    // 16 domain ids, of which 0 and 1 are spoken for.
    let (_machine, _, unit) = start(CAP & !7, ECAP);
    let unit = unit.expect("it starts");
    let contexts: Vec<_> = (0..14).map(|_| unit.open(&layout(0)).expect("an id")).collect();
    assert!(matches!(unit.open(&layout(0)), Err(UnitError::Exhausted { .. })));
    unit.close(&contexts[3]);
    assert_eq!(unit.open(&layout(0)).expect("an id").domain(), contexts[3].domain());
}

#[test]
fn faults_are_handed_over_once() {
    let (_machine, model, unit) = start(CAP | 1 << 40, ECAP);
    let unit = unit.expect("it starts");
    model.state().faults = [(0, 0), (0x7654_3000, 1 << 63 | 5 << 32 | 0x18)];
    model.state().fault_status = 3;
    let mut seen = Vec::new();
    assert_eq!(unit.take_faults(&mut |fault| seen.push(fault)), 2);
    assert_eq!(unit.take_faults(&mut |fault| seen.push(fault)), 0);
    assert_eq!((seen[0].stream, seen[0].code), (Some(StreamId::exact(0x18)), 5));
    assert_eq!(seen[0].address, Some(DmaAddr::new(0x7654_3000)));
    assert_eq!((seen[0].access, seen[0].reason), (Access::WRITE, FaultReason::Permission));
    assert_eq!(seen[1].reason, FaultReason::Overflow);
}

/// A whole domain over the driver: the walk from the root table reaches the page.
#[test]
fn a_domain_is_walked_from_the_root_table() {
    let (machine, model, unit) = start(CAP, ECAP);
    let iommu = Iommu::new(unit.expect("it starts"));
    let platform = Clocked::hasty(&machine);
    let domain =
        Paged::<Vtd2, _, _>::new(&platform, core::slice::from_ref(&iommu)).expect("a table");
    let page = PhysRange::new(PhysAddr::new(0x1234_5000), 4096).expect("a range");
    let read = Attributes::memory(Access::READ);
    // SAFETY: no device does anything.
    unsafe { domain.attach(Stream::new(0x18)) }.expect("answered");
    // SAFETY: as above.
    unsafe { domain.map(Iova::new(0x80_1234_5000), page, read) }.expect("free");
    let (low, high) = model.context(0x18).expect("a table for its bus");
    assert_eq!(high & 7, 2, "four levels");
    let mut table = low & !0xfff;
    for index in [1, 0, 0x91, 0x145] {
        table = model.long(table + index * 8) & 0xf_ffff_ffff_f000;
    }
    assert_eq!(table, 0x1234_5000);
    domain.resume().expect("answered");
    domain.detach(Stream::new(0x18)).expect("answered");
}

#[test]
fn tables_outlive_the_driver() {
    let (machine, _model, unit) = start(CAP, ECAP);
    let unit = unit.expect("it starts");
    let context = unit.open(&layout(0x1000)).expect("an id");
    // SAFETY: nothing walks the tables.
    unsafe { unit.attach(&context, StreamId::exact(8)) }.expect("answered");
    unit.reserve_bus(0).expect("there already");
    assert_eq!(unit.reserved()[0].range(), range(0xfee0_0000, 0x10_0000));
    drop(unit);
    // The root table and one context table; the queue was turned off and is free.
    assert_eq!(machine.frames().live_bytes(), 2 * 4096);
}
