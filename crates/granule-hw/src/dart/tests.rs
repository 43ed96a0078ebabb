//! The driver on the simulator's registers, from mapping to what a device reaches.

use std::sync::Arc;

use granule::addr::{Access, Attributes, DmaAddr, IovaRange, PhysAddr, PhysRange};
use granule::domain::{
    Invalidation, Iommu, Paged, Stream, StreamId, Translation, TranslationError, Unit, UnitError,
};
use granule::mem::OwnedFrames;
use granule::table::{Dart1, Dart2, Format, Hint};
use granule_sim::dart_regs::{DartRegisters, DartRevision};
use granule_sim::faults::Point;
use granule_sim::iommu::{IommuConfig, LockedStream};
use granule_sim::machine::{DeviceSpec, Machine};
use granule_sim::platform::SimPlatform;
use granule_sim::walk::SimFormat;

use super::{Dart, Model};
use crate::mmio::Registers;
use crate::testing::{RW, byte_read_by, filled, map, range, written_by};
use crate::wait::Limit;
use crate::{FaultReason, HwError};

const LIMIT: Limit = Limit { nanoseconds: 100_000, turns: 100 };
const PAGE: u64 = 0x4000;
const STREAM: u32 = 3;

#[derive(Clone, Debug)]
struct Block(Arc<DartRegisters>);

impl Registers for Block {
    crate::testing::no_registers_of!(8 16 64);

    fn len(&self) -> usize {
        self.0.len()
    }

    fn read32(&self, offset: usize) -> u32 {
        self.0.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.write32(offset, value);
    }
}

struct Rig {
    machine: Machine,
    block: Block,
    model: Model,
}

fn rig(model: Model, change: impl FnOnce(&mut IommuConfig)) -> Rig {
    let (format, bits) = match model {
        Model::T8103 => (SimFormat::Dart1, 32),
        Model::T6000 => (SimFormat::Dart2, 32),
        Model::T8110 => (SimFormat::Dart2, 42),
    };
    let mut config = IommuConfig::new("dart", format, bits);
    change(&mut config);
    let ram = PhysRange::new(PhysAddr::new(0x8_0000_0000), 64 << 20).expect("a range");
    let firmware = PhysRange::new(PhysAddr::new(0x8_0000_0000), 1 << 20).expect("a range");
    let builder = Machine::builder().ram(ram).reserve(firmware).iommu(config);
    let device = DeviceSpec::behind("dcp", "dart", STREAM);
    let machine = builder.device(device).build().expect("a machine");
    let revision = match model {
        Model::T8103 | Model::T6000 => DartRevision::T8020,
        Model::T8110 => DartRevision::T8110,
    };
    let iommu = machine.iommu("dart").expect("as built");
    let block = Block(Arc::new(DartRegisters::new(iommu, revision)));
    Rig { machine, block, model }
}

type Unit1 = Dart<SimPlatform, Block>;
type Table<F> = Paged<F, SimPlatform, Unit1>;

impl Rig {
    fn start(&self) -> Arc<Iommu<SimPlatform, Unit1>> {
        let platform = self.machine.platform().clone();
        let dart = Dart::with_limit(platform, self.block.clone(), "dart", self.model, LIMIT);
        Iommu::new(dart.expect("a DART"))
    }

    fn table<F: Format>(&self, iommu: &Arc<Iommu<SimPlatform, Unit1>>) -> Table<F> {
        Paged::new(self.machine.platform(), std::slice::from_ref(iommu)).expect("a table")
    }

    fn memory(&self, pages: u64, fill: u8) -> OwnedFrames<SimPlatform> {
        filled(&self.machine, pages * PAGE, PAGE, fill)
    }

    fn reads(&self, address: u64) -> Option<u8> {
        byte_read_by(&self.machine, "dcp", address)
    }

    fn writes(&self, address: u64) -> bool {
        written_by(&self.machine, "dcp", address, b"x")
    }
}

fn unmap<F: Format>(table: &Table<F>, at: u64, len: u64) -> IovaRange {
    let range = range(at, len);
    // SAFETY: the tests unmap what they mapped.
    unsafe { table.unmap(range, Hint::NONE) }.expect("unmapped");
    range
}

fn attach<F: Format>(table: &Table<F>, stream: u32) -> Result<(), TranslationError> {
    // SAFETY: every test drops the table, which detaches first.
    unsafe { table.attach(Stream::new(stream)) }.map(|_| ())
}

fn life<F: Format>(rig: &Rig) {
    let iommu = rig.start();
    let paged = rig.table::<F>(&iommu);
    let (data, secret) = (rig.memory(3, 0x5a), rig.memory(1, 0xee));
    assert_eq!(rig.reads(PAGE), None, "blocked before it is attached");
    attach(&paged, STREAM).expect("attached");
    map(&paged, PAGE, data.range(), RW);
    map(&paged, 8 * PAGE, secret.range(), Attributes::memory(Access::READ));
    assert_eq!(rig.reads(2 * PAGE + 5), Some(0x5a));
    assert!(rig.writes(3 * PAGE) && !rig.writes(8 * PAGE));
    assert_eq!((rig.reads(PAGE - 1), rig.reads(4 * PAGE)), (None, None), "the edges");
    let range = unmap(&paged, PAGE, 3 * PAGE);
    assert_eq!(rig.reads(2 * PAGE), Some(0x5a), "the IOTLB still has it");
    paged.invalidate(&Invalidation::leaves(range)).expect("done");
    assert_eq!(rig.reads(2 * PAGE), None);
    paged.detach(Stream::new(STREAM)).expect("detached");
    assert_eq!(rig.reads(8 * PAGE), None);
    drop((paged, iommu, data, secret));
    assert_eq!(rig.machine.problems(), [""; 0]);
}

#[test]
fn three_models_live() {
    life::<Dart1>(&rig(Model::T8103, |_| ()));
    life::<Dart2>(&rig(Model::T6000, |_| ()));
    life::<Dart2>(&rig(Model::T8110, |config| config.streams = 64));
    life::<Dart2>(&rig(Model::T8110, |config| config.input_bits = 36));
}

#[test]
fn streams_of_one_domain_are_flushed_together() {
    for model in [Model::T6000, Model::T8110] {
        let rig = rig(model, |_| ());
        let iommu = rig.start();
        let paged = rig.table::<Dart2>(&iommu);
        let data = rig.memory(1, 0x11);
        attach(&paged, STREAM - 1).expect("attached");
        attach(&paged, STREAM).expect("attached");
        map(&paged, PAGE, data.range(), RW);
        assert_eq!(rig.reads(PAGE), Some(0x11));
        let range = unmap(&paged, PAGE, PAGE);
        paged.invalidate(&Invalidation::leaves(range)).expect("done");
        assert_eq!(rig.reads(PAGE), None);
    }
}

/// Firmware's table: root entry 1 leads to a table whose entry 0 maps a page.
fn locked(model: Model) -> Rig {
    let (root, leaves, page) = (0x8_0000_4000u64, 0x8_0000_8000u64, 0x8_0000_c000u64);
    let lock = LockedStream {
        stream: STREAM,
        context: 0x8000_0001,
        roots: std::vec![PhysAddr::new(root)],
        input_bits: 32,
    };
    let rig = rig(model, |config| config.locked = std::vec![lock]);
    let ram = rig.machine.ram();
    ram.write(PhysAddr::new(page), &[0xf1; 16]).expect("RAM");
    ram.write_u64(PhysAddr::new(root + 8), leaves | 1).expect("RAM");
    ram.write_u64(PhysAddr::new(leaves), page | 0x000f_ff00_0000_0003).expect("RAM");
    rig
}

#[test]
fn a_locked_root_is_read_from_the_registers_and_shared() {
    let rig = locked(Model::T8103);
    let firmware = 32 << 20;
    let iommu = rig.start();
    let dart = iommu.unit();
    assert!(dart.is_locked() && !dart.info().can_bypass);
    assert_eq!(dart.locked_roots(StreamId::exact(STREAM)), [PhysAddr::new(0x8_0000_4000)]);
    assert_eq!(rig.reads(firmware), Some(0xf1), "firmware's page outlives the driver's start");
    let paged = rig.table::<Dart1>(&iommu);
    let data = rig.memory(1, 0x44);
    attach(&paged, STREAM).expect("attached");
    map(&paged, PAGE, data.range(), RW);
    assert_eq!((rig.reads(PAGE), rig.reads(firmware)), (Some(0x44), Some(0xf1)));
    let range = unmap(&paged, PAGE, PAGE);
    paged.invalidate(&Invalidation::leaves(range)).expect("done");
    assert_eq!(rig.reads(PAGE), None);
    map(&paged, PAGE, data.range(), RW);
    assert_eq!(rig.reads(PAGE), Some(0x44));
    paged.detach(Stream::new(STREAM)).expect("detached");
    assert_eq!((rig.reads(PAGE), rig.reads(firmware)), (None, Some(0xf1)), "only ours is gone");
    let error = attach(&paged, STREAM + 1).expect_err("firmware left it no root");
    assert!(matches!(error, TranslationError::Unit(UnitError::Locked { .. })), "{error}");
    let stream = StreamId::exact(STREAM);
    // SAFETY: it is refused.
    let error = unsafe { dart.bypass(stream, true) }.expect_err("locked");
    assert_eq!(error, UnitError::Locked { unit: "dart".into(), stream });
    drop((paged, iommu, data));
    assert_eq!(rig.machine.problems(), [""; 0]);
}

#[test]
fn a_flush_that_hangs_is_a_timeout() {
    for model in [Model::T6000, Model::T8110] {
        let rig = rig(model, |_| ());
        let iommu = rig.start();
        let paged = rig.table::<Dart2>(&iommu);
        let data = rig.memory(1, 0x31);
        attach(&paged, STREAM).expect("attached");
        map(&paged, PAGE, data.range(), RW);
        assert_eq!(rig.reads(PAGE), Some(0x31));
        rig.machine.faults().fail_from(Point::Invalidation, 0);
        let late = UnitError::Timeout { unit: "dart".into() };
        assert_eq!(paged.invalidate(&Invalidation::ALL), Err(late.clone()));
        assert_eq!(paged.detach(Stream::new(STREAM)), Err(late));
        assert_eq!(rig.reads(PAGE), None, "blocked all the same");
        let live = rig.machine.frames().live().len();
        drop(paged);
        assert_eq!(rig.machine.frames().live().len(), live, "its tables are never freed");
        rig.machine.faults().clear();
        drop(iommu);
    }
}

#[test]
fn power_is_lost_and_comes_back() {
    let rig = rig(Model::T8110, |_| ());
    let iommu = rig.start();
    let paged = rig.table::<Dart2>(&iommu);
    let data = rig.memory(1, 0x21);
    attach(&paged, STREAM).expect("attached");
    map(&paged, PAGE, data.range(), RW);
    assert_eq!(rig.reads(PAGE), Some(0x21));
    rig.block.0.restart();
    assert_eq!(rig.reads(PAGE), None);
    iommu.unit().reset().expect("started again");
    paged.resume().expect("attached again");
    assert_eq!(rig.reads(PAGE), Some(0x21));
}

#[test]
fn streams_are_let_through_where_the_hardware_can() {
    let rig1 = rig(Model::T8103, |_| ());
    let (iommu, data) = (rig1.start(), rig1.memory(1, 0x77));
    let stream = StreamId { id: STREAM, mask: 1 };
    // SAFETY: the model's device may reach all memory.
    unsafe { iommu.bypass(stream) }.expect("let through");
    assert_eq!(rig1.reads(data.start().raw()), Some(0x77));
    iommu.end_bypass(stream).expect("blocked");
    assert_eq!(rig1.reads(data.start().raw()), None);
    let rig2 = rig(Model::T8103, |config| config.can_bypass = false);
    let iommu = rig2.start();
    // SAFETY: it is refused.
    let error = unsafe { iommu.unit().bypass(stream, true) }.expect_err("no bypass");
    assert_eq!(error, UnitError::NoBypass { unit: "dart".into(), stream });
    let beyond = StreamId::exact(16);
    // SAFETY: it is refused.
    let error = unsafe { iommu.unit().bypass(beyond, false) }.expect_err("16 streams");
    assert_eq!(error, UnitError::NoSuchStream { unit: "dart".into(), stream: beyond, limit: 16 });
}

#[test]
fn errors_become_faults() {
    for model in [Model::T6000, Model::T8110] {
        let rig = rig(model, |_| ());
        let iommu = rig.start();
        assert_eq!(iommu.unit().next_fault(), None);
        rig.reads(0x1234);
        let fault = iommu.unit().next_fault().expect("a fault");
        assert_eq!(
            (fault.stream, fault.reason),
            (Some(StreamId::exact(3)), FaultReason::NotAttached)
        );
        assert_eq!(fault.address, Some(DmaAddr::new(0x1234)));
        let paged = rig.table::<Dart2>(&iommu);
        attach(&paged, STREAM).expect("attached");
        let data = rig.memory(1, 0);
        map(&paged, PAGE, data.range(), Attributes::memory(Access::READ));
        rig.reads(4 * PAGE);
        let fault = iommu.unit().next_fault().expect("a fault");
        assert_eq!(fault.reason, FaultReason::NotMapped);
        rig.writes(PAGE);
        let fault = iommu.unit().next_fault().expect("a fault");
        assert_eq!((fault.reason, fault.access), (FaultReason::Permission, Access::WRITE));
        assert_eq!(iommu.unit().next_fault(), None);
    }
}

#[test]
fn what_is_no_such_dart_is_refused() {
    #[derive(Clone, Debug)]
    struct Blank(usize);
    impl Registers for Blank {
        fn len(&self) -> usize {
            self.0
        }
        fn read32(&self, _: usize) -> u32 {
            12 << 24
        }
        fn write32(&self, _: usize, _: u32) {}
        fn read64(&self, _: usize) -> u64 {
            0
        }
        fn write64(&self, _: usize, _: u64) {}
        fn read8(&self, _: usize) -> u8 {
            0
        }
        fn write8(&self, _: usize, _: u8) {}
        fn read16(&self, _: usize) -> u16 {
            0
        }
        fn write16(&self, _: usize, _: u16) {}
    }
    let rig = rig(Model::T8103, |_| ());
    let platform = rig.machine.platform();
    let error = Dart::new(platform.clone(), Blank(0x4000), "dart", Model::T8103).err();
    assert!(matches!(error, Some(HwError::Missing { what: "16 KiB pages (PARAMS1)", .. })));
    let error = Dart::new(platform.clone(), Blank(0x100), "dart", Model::T8103).err();
    assert!(matches!(error, Some(HwError::Registers { len: 0x100, .. })));
}
