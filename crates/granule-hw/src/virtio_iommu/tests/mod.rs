//! The driver against a model of the device, which does not snoop the CPU's caches.

mod model;
mod pci;

use std::sync::Arc;
use std::vec::Vec;

use granule::addr::{Access, Attributes, DmaAddr, Iova, PhysAddr, PhysRange};
use granule::domain::{
    DomainError, Invalidation, Stream, StreamId, Translation, TranslationError, UnitError,
    Unmanaged, UnmanagedConfig,
};
use granule::table::{Hint, TableError};
use granule_sim::machine::Machine;

use super::{VirtioDomain, VirtioIommu};
use crate::testing::{Clocked, RW, range, without_snooping};
use crate::{FaultReason, HwError};
use model::{Model, Space};

const G: u64 = 0x4000;

struct Bench {
    model: Model,
    device: Arc<VirtioIommu<Clocked, Model>>,
    machine: Arc<Machine>,
}

impl Bench {
    fn new() -> Self {
        let machine = Arc::new(without_snooping());
        let model = Model::new(machine.clone());
        let device = VirtioIommu::new(Clocked::hasty(&machine), model.clone(), "viommu");
        Self { model, device: device.expect("it starts"), machine }
    }

    fn domain(&self) -> VirtioDomain<Clocked, Model> {
        VirtioDomain::new(&self.device).expect("an id")
    }

    fn space(&self, id: u32) -> Option<Space> {
        self.model.state().spaces.get(&id).cloned()
    }
}

fn phys(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).expect("a range")
}

type Domain = VirtioDomain<Clocked, Model>;

fn map(domain: &Domain, at: u64, to: u64, len: u64) -> Result<Hint, TranslationError> {
    // SAFETY: no device does anything, and the tests own every range.
    unsafe { domain.map(Iova::new(at), phys(to, len), RW) }
}

fn unmap(domain: &Domain, at: u64, len: u64) -> Result<u64, TranslationError> {
    // SAFETY: as above.
    unsafe { domain.unmap(range(at, len), Hint::NONE) }.map(|unmapped| unmapped.bytes)
}

fn attach(domain: &Domain, endpoint: u32) -> Result<(), TranslationError> {
    // SAFETY: every test detaches, or drops the domain with its device.
    unsafe { domain.attach(Stream::new(endpoint)) }.map(|_| ())
}

#[test]
fn what_was_mapped_before_is_there_when_the_first_endpoint_comes() {
    let bench = Bench::new();
    assert_eq!(bench.model.state().bypass, 0, "endpoints without a domain reach nothing");
    let domain = bench.domain();
    map(&domain, G, 0x1000_0000, 3 * G).expect("free");
    assert_eq!(bench.space(domain.id()), None);
    attach(&domain, 8).expect("an endpoint");
    attach(&domain, 9).expect("another");
    attach(&domain, 8).expect("a second device of its group");
    map(&domain, 9 * G, 0x1100_0000, G).expect("free");
    let space = bench.space(domain.id()).expect("there");
    assert_eq!(space.endpoints.into_iter().collect::<Vec<_>>(), [8, 9]);
    let maps: Vec<_> = space.maps.into_iter().collect();
    assert_eq!(maps, [(G, (4 * G - 1, 0x1000_0000, 3)), (9 * G, (10 * G - 1, 0x1100_0000, 3))]);
    let found = domain.resolve(Iova::new(2 * G + 5)).expect("mapped");
    assert_eq!((found.phys.raw(), found.attributes), (0x1000_0000 + G + 5, RW));
    assert_eq!(unmap(&domain, 0, 10 * G), Ok(4 * G));
    assert_eq!(bench.space(domain.id()).expect("there").maps.len(), 0);
    assert_eq!(domain.invalidate(&Invalidation::ALL), Ok(()));
    domain.detach(Stream::new(8)).expect("one user is left");
    assert_eq!(bench.space(domain.id()).expect("there").endpoints.len(), 2);
    domain.detach(Stream::new(8)).expect("answered");
    domain.detach(Stream::new(9)).expect("answered");
    assert_eq!(bench.space(domain.id()), None);
}

#[test]
fn what_the_device_would_not_check_is_checked() {
    let bench = Bench::new();
    let domain = bench.domain();
    attach(&domain, 8).expect("an endpoint");
    let before = bench.model.state().requests.len();
    let misaligned =
        |result| matches!(result, Err(TranslationError::Table(TableError::Misaligned { .. })));
    assert!(misaligned(map(&domain, G + 0x1000, 0x1000_0000, G)));
    assert!(misaligned(map(&domain, G, 0x1000_1000, G)));
    assert!(misaligned(map(&domain, G, 0x1000_0000, 0x1000)));
    for at in [1 << 39, (1 << 39) - G, u64::MAX - G + 1] {
        let refused = map(&domain, at, 0x1000_0000, 2 * G);
        assert!(
            matches!(refused, Err(TranslationError::Table(TableError::OutsideInput { .. }))),
            "{at:#x}"
        );
    }
    let msi = map(&domain, 0xfedf_c000, 0x1000_0000, 2 * G);
    assert!(matches!(msi, Err(TranslationError::Unsupported { .. })));
    map(&domain, 2 * G, 0x1000_0000, 2 * G).expect("free");
    let taken = map(&domain, G, 0x1000_0000, 2 * G);
    assert_eq!(taken, Err(TableError::AlreadyMapped { iova: Iova::new(2 * G) }.into()));
    // SAFETY: refused.
    let nothing = unsafe {
        domain.map(Iova::new(0), phys(0x1000_0000, G), Attributes::memory(Access::empty()))
    };
    assert_eq!(nothing, Err(TableError::NoAccess.into()));
    let cut = unmap(&domain, G, 2 * G);
    assert!(matches!(cut, Err(TranslationError::Table(TableError::CutsPage { .. }))));
    assert_eq!(bench.model.state().requests.len(), before + 1, "one request was right");
    assert!(domain.resolve(Iova::new(3 * G)).is_some());
}

#[test]
fn an_endpoint_is_in_one_domain_and_reserves_what_it_reserves() {
    let bench = Bench::new();
    let (one, two) = (bench.domain(), bench.domain());
    assert_ne!(one.id(), two.id());
    attach(&one, 8).expect("an endpoint");
    assert!(matches!(attach(&two, 8), Err(TranslationError::Group { .. })));
    // SAFETY: refused.
    let bypass = unsafe { bench.device.bypass(StreamId::exact(8)) };
    assert!(matches!(bypass, Err(TranslationError::Group { .. })));
    let unknown = attach(&two, 0x100);
    assert!(matches!(unknown, Err(TranslationError::Unit(UnitError::NoSuchStream { .. }))));
    map(&two, 0xfee0_0000, 0x1000_0000, G).expect("nobody reserves it yet");
    let reserved = attach(&two, 9);
    assert!(matches!(reserved, Err(TranslationError::Table(TableError::AlreadyMapped { .. }))));
    let regions = bench.device.reserved(StreamId::exact(9)).expect("told");
    assert_eq!(regions.len(), 1);
    assert_eq!(regions[0].range, range(0xfee0_0000, 0x10_0000));
    drop(one);
    assert_eq!(unmap(&two, 0xfee0_0000, G), Ok(G));
    attach(&two, 8).expect("free again");
    // SAFETY: there is no device.
    unsafe { bench.device.bypass(StreamId::exact(9)) }.expect("the device can");
    bench.device.end_bypass(StreamId::exact(9)).expect("answered");
    attach(&two, 9).expect("free again");
}

#[test]
fn a_list_is_mapped_whole_or_not_at_all() {
    let bench = Bench::new();
    let domain = bench.domain();
    attach(&domain, 8).expect("an endpoint");
    let pieces =
        [phys(0x1000_0000, G), phys(0x1000_4000, G), phys(0x1100_0000, G), phys(0x1200_0000, G)];
    // SAFETY: the tests own every range.
    let list = || unsafe { domain.map_list(Iova::new(G), pieces.into_iter(), RW) };
    for k in 0..3 {
        bench.model.state().refuse = Some((3, k, 8));
        assert!(matches!(list(), Err(TranslationError::Unit(UnitError::Exhausted { .. }))));
        assert_eq!(bench.space(domain.id()).expect("there").maps.len(), 0);
        assert_eq!(domain.resolve(Iova::new(G)), None);
    }
    bench.model.state().refuse = None;
    list().expect("free");
    assert_eq!(bench.space(domain.id()).expect("there").maps.len(), 3, "adjoining pieces are one");
    let mut pages = Vec::new();
    domain.for_each_page(range(0, 100 * G), &mut |iova, size| pages.push((iova.raw(), size)));
    assert_eq!(pages, [(G, G), (2 * G, G), (3 * G, G), (4 * G, G)]);
    bench.model.state().refuse = Some((3, 1, 8));
    let other = bench.domain();
    for n in 0..3 {
        map(&other, 2 * n * G, 0x1000_0000, G).expect("recorded");
    }
    assert!(attach(&other, 9).is_err(), "the second of three mappings is refused");
    assert_eq!(bench.space(other.id()), None);
}

#[test]
fn what_one_request_maps_is_unmapped_without_a_look_at_each_page() {
    let bench = Bench::new();
    let len = 1 << 38; // 16 million pages: memory lies one granule beside the addresses.
    let domain = bench.domain();
    map(&domain, 0, G, len).expect("free");
    assert_eq!(domain.mapped_bytes(range(G, len)), len - G);
    let config = UnmanagedConfig { allow_large_granule: true };
    let owner = Unmanaged::new(&Clocked::hasty(&bench.machine), domain, config).expect("a domain");
    // SAFETY: no device does anything.
    let beyond = unsafe { owner.unmap(range(0, len + G)) };
    assert!(matches!(beyond, Err(DomainError::Range { .. })), "{beyond:?}");
    // SAFETY: as above.
    unsafe { owner.unmap(range(0, len)) }.expect("mapped as a whole");
}

#[test]
fn a_device_that_does_not_answer_is_an_error_until_its_reset() {
    let bench = Bench::new();
    let domain = bench.domain();
    attach(&domain, 8).expect("an endpoint");
    attach(&domain, 9).expect("an endpoint");
    map(&domain, G, 0x1000_0000, G).expect("free");
    map(&domain, 5 * G, 0x1100_0000, G).expect("free");
    bench.model.state().mute = true;
    let timeout = UnitError::Timeout { unit: "viommu".into() };
    assert_eq!(unmap(&domain, G, G), Err(timeout.clone().into()));
    assert_eq!(domain.invalidate(&Invalidation::ALL), Err(timeout.clone()));
    bench.model.state().mute = false;
    assert_eq!(map(&domain, 9 * G, 0x1000_0000, G), Err(timeout.clone().into()), "still uncertain");
    assert_eq!(domain.detach(Stream::new(8)), Err(timeout));
    bench.device.reset().expect("it starts again");
    assert_eq!(bench.space(domain.id()), None);
    domain.resume().expect("answered");
    let space = bench.space(domain.id()).expect("there");
    assert_eq!(space.endpoints.len(), 2);
    assert_eq!(space.maps.into_keys().collect::<Vec<_>>(), [5 * G], "what was given up stays away");
    domain.resume().expect("without a reset too");
    assert_eq!(bench.space(domain.id()).expect("there").maps.len(), 1);
    assert_eq!(domain.invalidate(&Invalidation::ALL), Ok(()));
    bench.device.reset().expect("it starts again");
    assert_eq!(unmap(&domain, 5 * G, G), Ok(G), "a device that was reset maps nothing");
    domain.detach(Stream::new(8)).expect("and knows no endpoint");
}

#[test]
fn faults_are_handed_over_and_buffers_go_back() {
    let bench = Bench::new();
    let mut record = [0u8; 24];
    record[0] = 2;
    record[4..8].copy_from_slice(&0x102u32.to_le_bytes());
    record[8..12].copy_from_slice(&8u32.to_le_bytes());
    record[16..24].copy_from_slice(&0x12_3456_7000u64.to_le_bytes());
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut posted = 0;
        while bench.model.fault(&record) {
            posted += 1;
        }
        assert_eq!(posted, 64, "every buffer is the device's again");
        assert_eq!(bench.device.take_faults(&mut |fault| seen.push(fault)), 64);
    }
    assert_eq!(seen[0].stream, Some(StreamId::exact(8)));
    assert_eq!(seen[0].address, Some(DmaAddr::new(0x12_3456_7000)));
    assert_eq!((seen[0].access, seen[0].reason), (Access::WRITE, FaultReason::NotMapped));
    assert!(bench.model.fault(&[1; 10]));
    assert_eq!(bench.device.take_faults(&mut |_| panic!("half a record")), 0);
}

/// A device that reports faults as fast as they are read does not keep the reader for ever.
#[test]
fn faults_without_end_are_read_in_bounded_work() {
    let (bench, record) = (Bench::new(), [2u8; 24]);
    assert!(bench.model.fault(&record));
    assert_eq!(bench.device.take_faults(&mut |_| assert!(bench.model.fault(&record))), 1 << 16);
    assert_eq!(bench.device.take_faults(&mut |_| {}), 1, "the last one waits");
}

#[test]
fn a_queue_has_a_power_of_two_of_entries_and_room_for_a_request() {
    let machine = Arc::new(without_snooping());
    for most in [0, 1, 2, 3, 5, 64] {
        let model = Model::new(machine.clone());
        model.state().most = most;
        let device = VirtioIommu::new(Clocked::hasty(&machine), model, "viommu");
        assert_eq!(device.is_ok(), most >= 2, "{most}");
        let Ok(device) = device else { continue };
        let domain = VirtioDomain::new(&device).expect("an id");
        attach(&domain, 8).expect("answered");
        domain.detach(Stream::new(8)).expect("answered");
    }
}

#[test]
fn a_device_that_cannot_serve_is_refused() {
    let machine = Arc::new(without_snooping());
    let start = |features, frozen, status| {
        let model = Model::new(machine.clone());
        model.state().features = features;
        model.state().frozen = frozen;
        model.state().status = status;
        VirtioIommu::new(Clocked::hasty(&machine), model, "viommu").err()
    };
    assert_eq!(start(model::FEATURES, false, 15), None);
    assert!(matches!(start(model::FEATURES & !4, false, 0), Some(HwError::Missing { .. })));
    assert!(matches!(start(0x77, false, 0), Some(HwError::Missing { .. })));
    assert!(matches!(start(model::FEATURES, true, 15), Some(HwError::Timeout { .. })));
}

#[test]
fn a_device_that_cannot_be_stopped_keeps_its_queues() {
    let bench = Bench::new();
    let live = || bench.machine.frames().live().len();
    let before = live();
    assert_ne!(before, 0);
    let Bench { model, device, .. } = &bench;
    model.state().frozen = true;
    let device = device.clone();
    let Bench { machine, device: last, .. } = bench;
    drop((device, last));
    assert_eq!(machine.frames().live().len(), before);
}
