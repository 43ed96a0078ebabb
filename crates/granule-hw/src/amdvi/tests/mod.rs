//! The driver against a model of the unit.

mod model;

use std::sync::Arc;
use std::vec::Vec;

use granule::addr::{Access, Attributes, DmaAddr, Iova, PhysAddr, PhysRange};
use granule::domain::{Invalidation, Iommu, Paged, Stream, StreamId, Translation, Unit, UnitError};
use granule::table::{Amdv1, FormatId, TableLayout};
use granule_sim::machine::Machine;

use super::spec::control;
use super::{AmdConfig, AmdUnit};
use crate::testing::{Clocked, machine, range};
use crate::{FaultReason, HwError};
use model::Model;

/// What QEMU's unit says of itself.
const FEATURES: u64 = 0x29d3;
const ALL: u64 = 0x7fff_ffff_ffff_f003;

type TestUnit = AmdUnit<Clocked, Model>;

fn config() -> AmdConfig {
    AmdConfig {
        name: "amd0".into(),
        physical_bits: 40,
        virtual_bits: 48,
        flags: 0b10,
        caches_absent: false,
    }
}

fn start(features: u64) -> (Arc<Machine>, Model, TestUnit) {
    let machine = Arc::new(machine());
    let model = Model::new(machine.clone(), features);
    let unit = AmdUnit::new(Clocked::hasty(&machine), model.clone(), config());
    (machine, model, unit.expect("it starts"))
}

fn layout(root: u64) -> TableLayout {
    TableLayout {
        format: FormatId::Amdv1,
        granule: granule::addr::Granule::K4,
        input_bits: 48,
        output_bits: 40,
        levels: 4,
        roots: Vec::from([PhysAddr::new(root)]),
        root_entry_bytes: 1 << 39,
    }
}

#[test]
fn it_starts_blocked_and_translating() {
    let (_machine, model, unit) = start(FEATURES);
    let want = control::ENABLE | control::COMMANDS | control::EVENT_LOG | control::COHERENT;
    assert_eq!(model.state().control, want | 1 << 8, "and PassPW, as IVHD says");
    assert_eq!(model.forgot(), [(8 << 60, 0)]);
    for function in [0, 0x18, 0xffff] {
        assert_eq!(model.device(function), (3, 0), "valid, no rights");
    }
    let reserved: Vec<_> = unit.reserved().iter().map(|reserved| reserved.range()).collect();
    assert_eq!(reserved, [range(0xfee0_0000, 0x10_0000), range(0xfd_0000_0000, 0x3_0000_0000)]);
    let info = unit.info();
    assert_eq!((info.input_bits, info.output_bits), (48, 40));
    assert!(info.page_sizes.contains(16 << 10) && !info.page_sizes.contains(1 << 38));
    drop(unit);
    assert_eq!(model.state().control & control::COMMANDS, 0);
    assert_eq!(model.device(0x18).0, 3, "its device table outlives the driver");
}

#[test]
fn without_the_command_for_everything_each_is_dropped() {
    let (_machine, model, _unit) = start(FEATURES & !0x40);
    let forgot = model.forgot();
    assert_eq!(forgot.len(), 2 << 16);
    assert_eq!(forgot[2 * 0x18..][..2], [(2 << 60 | 0x18, 0), (3 << 60 | 0x18 << 32, ALL)]);
}

#[test]
fn entries_come_and_go_with_their_invalidations() {
    let (_machine, model, unit) = start(FEATURES);
    let context = unit.open(&layout(0x1234_5000)).expect("an id");
    assert_eq!(context.domain(), 1);
    model.forgot();
    let stream = StreamId::exact(0x310);
    let both = [(2 << 60 | 0x310, 0), (3 << 60 | 1 << 32, ALL)];
    // SAFETY: nothing walks the tables.
    unsafe { unit.attach(&context, stream) }.expect("answered");
    assert_eq!(model.device(0x310), (0x6000_0000_1234_5803, 1));
    assert_eq!(model.forgot(), both);
    // SAFETY: as above.
    unsafe { unit.attach(&context, stream) }.expect("again, as in a resume");
    assert_eq!(model.forgot(), [both, both].concat());
    let other = unit.open(&layout(0x2000)).expect("an id");
    unit.detach(&other, stream).expect("not its stream: nothing to do");
    assert_eq!(model.device(0x310).0, 0x6000_0000_1234_5803);
    unit.detach(&context, stream).expect("answered");
    assert_eq!((model.device(0x310).0, model.forgot()), (3, both.to_vec()));
    // SAFETY: there is no device.
    unsafe { unit.bypass(stream, true) }.expect("answered");
    assert_eq!(model.device(0x310), (0x6000_0000_0000_0003, 0));
    // SAFETY: off.
    unsafe { unit.bypass(stream, false) }.expect("answered");
    assert_eq!(model.device(0x310).0, 3);
    for wrong in [StreamId::exact(0x1_0000), StreamId { id: 8, mask: 7 }] {
        // SAFETY: refused.
        let refused = unsafe { unit.attach(&context, wrong) };
        assert!(matches!(refused, Err(UnitError::NoSuchStream { limit: 0x1_0000, .. })));
    }
}

#[test]
fn invalidations_are_as_small_as_the_request() {
    let (_machine, model, unit) = start(FEATURES);
    let context = unit.open(&layout(0x1000)).expect("an id");
    let forgot = |request: Invalidation| {
        model.forgot();
        unit.invalidate(&context, &request).expect("answered");
        let [(low, high)] = model.forgot()[..] else { panic!("one command") };
        assert_eq!(low, 3 << 60 | 1 << 32);
        high
    };
    assert_eq!(forgot(Invalidation::leaves(range(0x5000, 0x1000))), 0x5000);
    assert_eq!(forgot(Invalidation::leaves(range(0x4000, 0x4000))), 0x5001);
    assert_eq!(forgot(Invalidation::leaves(range(0x3000, 0x2000))), 0x3001);
    assert_eq!(forgot(Invalidation { range: Some(range(0x5000, 0x1000)), tables: true }), 0x5002);
    assert_eq!(forgot(Invalidation::ALL), ALL);
}

#[test]
fn a_unit_that_does_not_answer_is_an_error_until_its_reset() {
    let (_machine, model, unit) = start(FEATURES);
    let context = unit.open(&layout(0x1000)).expect("an id");
    let stream = StreamId::exact(8);
    // SAFETY: nothing walks the tables.
    unsafe { unit.attach(&context, stream) }.expect("answered");
    model.state().mute = true;
    let timeout = Err(UnitError::Timeout { unit: "amd0".into() });
    assert_eq!(unit.invalidate(&context, &Invalidation::ALL), timeout);
    model.state().mute = false;
    assert_eq!(unit.invalidate(&context, &Invalidation::ALL), timeout, "still uncertain");
    assert_eq!(unit.detach(&context, stream), timeout);
    assert_eq!(model.device(8).0, 3, "blocked in memory at least");
    // SAFETY: as above.
    assert_eq!(unsafe { unit.attach(&context, stream) }, timeout);
    assert_eq!(model.device(8).0, 3);
    unit.reset().expect("it answers again");
    assert_eq!(unit.invalidate(&context, &Invalidation::ALL), Ok(()));
    model.state().frozen = true;
    assert!(matches!(unit.reset(), Err(HwError::Timeout { .. })));
}

#[test]
fn what_the_unit_lacks_is_refused() {
    let (_machine, _, unit) = start(FEATURES & !0xc00);
    assert_eq!(unit.info().input_bits, 48);
    let wrong = [
        TableLayout { format: FormatId::Vtd2, ..layout(0) },
        TableLayout { levels: 5, ..layout(0) },
        TableLayout { input_bits: 49, ..layout(0) },
        TableLayout { output_bits: 41, ..layout(0) },
        TableLayout { roots: Vec::new(), ..layout(0) },
    ];
    for layout in wrong {
        assert!(matches!(unit.open(&layout), Err(UnitError::Unsupported { .. })));
    }
}

#[test]
fn events_are_handed_over_and_a_full_log_goes_on() {
    let (_machine, model, unit) = start(FEATURES);
    let mut seen = Vec::new();
    model.event(2 << 60 | 1 << 53 | 0x18, 0x7654_3000);
    assert_eq!(unit.take_faults(&mut |fault| seen.push(fault)), 1);
    assert_eq!(seen[0].stream, Some(StreamId::exact(0x18)));
    assert_eq!(seen[0].address, Some(DmaAddr::new(0x7654_3000)));
    assert_eq!((seen[0].access, seen[0].reason), (Access::WRITE, FaultReason::NotMapped));
    seen.clear();
    (0..300).for_each(|n| model.event(2 << 60, n << 12));
    assert_eq!(unit.take_faults(&mut |fault| seen.push(fault)), 256);
    assert_eq!(seen[254].address, Some(DmaAddr::new(254 << 12)));
    assert_eq!(seen[255].reason, FaultReason::Overflow);
    model.event(2 << 60, 0x1000);
    assert_eq!(unit.take_faults(&mut |_| {}), 1, "it runs again");
    assert_eq!(unit.take_faults(&mut |_| {}), 0);
}

/// A device that faults as fast as its faults are read does not keep the reader for ever.
#[test]
fn events_without_end_are_read_in_bounded_work() {
    let (_machine, model, unit) = start(FEATURES);
    model.event(2 << 60, 0);
    assert_eq!(unit.take_faults(&mut |_| model.event(2 << 60, 0x1000)), 1 << 16);
    assert_eq!(unit.take_faults(&mut |_| {}), 1, "the last one waits");
}

/// A whole domain over the driver: the walk from the device table reaches a 16 KiB page.
#[test]
fn a_domain_is_walked_from_the_device_table() {
    let (machine, model, unit) = start(FEATURES);
    let iommu = Iommu::new(unit);
    let platform = Clocked::hasty(&machine);
    let domain =
        Paged::<Amdv1, _, _>::new(&platform, core::slice::from_ref(&iommu)).expect("a table");
    let page = PhysRange::new(PhysAddr::new(0x1234_4000), 0x4000).expect("a range");
    let read = Attributes::memory(Access::READ);
    // SAFETY: no device does anything.
    unsafe { domain.attach(Stream::new(0x18)) }.expect("answered");
    // SAFETY: as above.
    unsafe { domain.map(Iova::new(0x80_1234_4000), page, read) }.expect("free");
    let mut entry = model.device(0x18).0;
    for (index, level) in [(1, 4), (0, 3), (0x91, 2), (0x146, 1)] {
        assert_eq!(entry >> 9 & 7, level);
        entry = model.long((entry & 0xf_ffff_ffff_f000) + index * 8);
    }
    assert_eq!(entry, 0x3000_0000_1234_5e01, "one of four equal entries");
    domain.resume().expect("answered");
    domain.detach(Stream::new(0x18)).expect("answered");
}
