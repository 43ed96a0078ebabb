//! Whole machines: windows, locks, several IOMMUs, masters that do not snoop, hostile devices.

use granule::addr::{
    Access, Direction, DmaAddr, DmaRange, Granule, Iova, IovaRange, PhysAddr, PhysRange,
};
use granule::mem::{FrameRequest, OwnedFrames, Platform};
use granule_sim::device::DmaCause;
use granule_sim::faults::{FaultPlan, Point};
use granule_sim::frames::{Fragmentation, POISON};
use granule_sim::hostile::Allowed;
use granule_sim::iommu::{FaultReason, IommuConfig, StreamState, Via};
use granule_sim::machine::{Builder, DeviceSpec, Machine, MachineError, Wiring};
use granule_sim::platform::CpuConfig;
use granule_sim::ram::Image;
use granule_sim::walk::{SimFormat, mappings, translate};

const RAM: u64 = 0x8_0000_0000;

fn phys(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
}

fn dma(start: u64, len: u64) -> DmaRange {
    DmaRange::new(DmaAddr::new(start), len).expect("a legal range")
}

fn board() -> Builder {
    let page = CpuConfig { page: Granule::K4, line: 64, cpus: 2 };
    let mut dcp = DeviceSpec::behind("dcp", "dcp_dart", 0);
    dcp.window = Some(dma(0xf_0000_0000, 0xfc00_0000));
    let isp = [("isp0".into(), 0), ("isp1".into(), 0)];
    let direct = Wiring::Direct { window: dma(0x1000_0000, 1 << 28), phys: PhysAddr::new(RAM) };
    let mut old = DeviceSpec::new("old", direct);
    old.address_bits = 29;
    Machine::builder()
        .ram(phys(RAM, 8 << 30))
        .reserve(phys(RAM, 1 << 20))
        .cpu(page)
        .seed(11)
        .iommu(IommuConfig::new("dcp_dart", SimFormat::Dart1, 32))
        .iommu(IommuConfig::new("isp0", SimFormat::Dart1, 32))
        .iommu(IommuConfig::new("isp1", SimFormat::Dart1, 32))
        .device(dcp)
        .device(DeviceSpec::new("isp", Wiring::Streams(isp.to_vec())))
        .device(old)
}

/// A DART table of two levels, built by hand.
struct Table {
    root: OwnedFrames<granule_sim::platform::SimPlatform>,
    leaf: OwnedFrames<granule_sim::platform::SimPlatform>,
}

impl Table {
    fn new(machine: &Machine) -> Self {
        let request = FrameRequest::new(0x4000, 0x4000);
        let zeroed = || OwnedFrames::zeroed(machine.platform(), &request).expect("free memory");
        let table = Self { root: zeroed(), leaf: zeroed() };
        table.put(machine, table.root.start().raw(), table.leaf.start().raw() | 1);
        table
    }

    fn put(&self, machine: &Machine, at: u64, raw: u64) {
        machine.ram().write_u64(PhysAddr::new(at), raw).expect("inside");
    }

    fn map(&self, machine: &Machine, page: u64, raw: u64) {
        self.put(machine, self.leaf.start().raw() + page * 8, raw | 0x000f_ff00_0000_0001);
    }

    fn unmap(&self, machine: &Machine, page: u64) {
        self.put(machine, self.leaf.start().raw() + page * 8, 0);
    }

    fn attach(&self, machine: &Machine, iommu: &str) {
        let roots = vec![self.root.start()];
        let state = StreamState::Translate { context: 1, roots, input_bits: 32 };
        machine.iommu(iommu).expect("as built").set_stream(0, state).expect("legal");
    }
}

#[test]
fn a_window_above_the_table_and_a_transfer_over_pages() {
    let machine = board().build().expect("a machine");
    let table = Table::new(&machine);
    table.attach(&machine, "dcp_dart");
    table.map(&machine, 1, RAM + 0x100_0000);
    table.map(&machine, 2, RAM + 0x200_0000);
    let dcp = machine.device("dcp").expect("as built");
    let data: Vec<u8> = (0..0x6000u32).map(|n| n as u8).collect();
    dcp.write(DmaAddr::new(0xf_0000_5000), &data).expect("mapped");
    let mut tail = [0; 0x10];
    machine.ram().read(PhysAddr::new(RAM + 0x200_0000), &mut tail).expect("inside");
    assert_eq!(tail[..], data[0x3000..0x3010]);
    // It stops at the page that is not mapped, and says how far it came.
    let fault = dcp.write(DmaAddr::new(0xf_0000_9000), &data).expect_err("page 3 is not mapped");
    assert_eq!((fault.done, fault.at.raw()), (0x3000, 0xf_0000_c000));
    assert!(matches!(*fault.cause, DmaCause::Iommu { .. }));
    let low = dcp.read(DmaAddr::new(0x5000), &mut tail).expect_err("below the window");
    assert!(matches!(*low.cause, DmaCause::OutsideWindow { .. }));
    assert_eq!(machine.iommu("dcp_dart").expect("as built").faults().len(), 1);
}

#[test]
fn several_streams_must_agree() {
    let machine = board().build().expect("a machine");
    let tables = [Table::new(&machine), Table::new(&machine)];
    tables[0].attach(&machine, "isp0");
    tables[1].attach(&machine, "isp1");
    tables[0].map(&machine, 1, RAM + 0x100_0000);
    let isp = machine.device("isp").expect("as built");
    let read = || isp.read(DmaAddr::new(0x4000), &mut [0; 4]).map_err(|fault| *fault.cause);
    assert!(matches!(read(), Err(DmaCause::Iommu { iommu, .. }) if iommu == "isp1"));
    tables[1].map(&machine, 1, RAM + 0x100_4000);
    assert!(matches!(read(), Err(DmaCause::Mismatch { .. })));
    tables[1].map(&machine, 1, RAM + 0x100_0000);
    assert!(read().is_err(), "the wrong leaf is cached");
    machine.iommu("isp1").expect("as built").invalidate(1, None, false).expect("done");
    assert_eq!(read(), Ok(()));
}

#[test]
fn a_direct_device_has_a_mask_and_a_window() {
    let machine = board().build().expect("a machine");
    let old = machine.device("old").expect("as built");
    old.write(DmaAddr::new(0x1000_0010), &[5]).expect("inside");
    let mut byte = [0];
    machine.ram().read(PhysAddr::new(RAM + 0x10), &mut byte).expect("inside");
    assert_eq!(byte, [5]);
    let cause = |at| old.write(DmaAddr::new(at), &[5; 2]).expect_err("refused");
    assert!(matches!(*cause(0x0fff_ffff).cause, DmaCause::OutsideWindow { .. }));
    assert!(matches!(*cause(0x2000_0000).cause, DmaCause::BeyondMask { bits: 29 }));
    assert_eq!((cause(0x1fff_ffff).done, old.is_translated()), (1, false));
    let reach = old.reachable();
    assert_eq!((reach[0].phys, reach[0].via), (phys(RAM, 1 << 28), Via::Direct));
}

#[test]
fn a_hostile_device_finds_what_was_forgotten() {
    let machine = board().build().expect("a machine");
    let table = Table::new(&machine);
    table.attach(&machine, "dcp_dart");
    let page = phys(RAM + 0x100_0000, 0x4000);
    table.map(&machine, 1, page.start().raw());
    let allowed = [Allowed { range: page, access: Access::all() }];
    let mut hostile = machine.hostile("dcp").expect("as built");
    assert!(hostile.violations(&allowed).is_empty());
    assert_eq!(hostile.touch_all().len(), 4);
    assert!(!hostile.probe(200).is_empty());
    // Unmapped, not invalidated.
    table.unmap(&machine, 1);
    let stale = hostile.violations(&[]);
    assert!(stale.iter().all(|violation| violation.reach.via == Via::Iotlb) && stale.len() == 2);
    assert!(!hostile.probe(200).is_empty());
    let iommu = machine.iommu("dcp_dart").expect("as built");
    let range = IovaRange::new(Iova::new(0x4000), 0x4000).expect("a legal range");
    iommu.invalidate(1, Some(range), true).expect("done");
    assert!(hostile.violations(&[]).is_empty() && hostile.probe(200).is_empty());
    // The leaf table is unlinked and freed, the pointer to it still cached: the poison shows.
    table.put(&machine, table.root.start().raw(), 0);
    drop(table.leaf);
    assert!(hostile.violations(&[]).iter().all(|violation| violation.reach.via == Via::WalkCache));
    assert!(!hostile.violations(&[]).is_empty());
    iommu.invalidate(1, None, false).expect("done");
    assert!(hostile.violations(&[]).is_empty());
    drop(table.root);
    assert_eq!(machine.problems(), Vec::<String>::new());
}

#[test]
fn a_device_that_does_not_snoop() {
    let mut spec = DeviceSpec::behind("nic", "isp0", 0);
    spec.snoops = false;
    let machine = board().device(spec).build().expect("a machine");
    let table = Table::new(&machine);
    table.attach(&machine, "isp0");
    let request = FrameRequest::new(0x4000, 0x4000);
    let buffer = OwnedFrames::zeroed(machine.platform(), &request).expect("free memory");
    table.map(&machine, 1, buffer.start().raw());
    machine.ram().write(buffer.start(), b"hello").expect("inside");
    let nic = machine.device("nic").expect("as built");
    let mut seen = [0; 5];
    nic.read(DmaAddr::new(0x4000), &mut seen).expect("mapped");
    assert_ne!(&seen, b"hello");
    machine.platform().sync_for_device(buffer.range(), Direction::Bidirectional);
    nic.read(DmaAddr::new(0x4000), &mut seen).expect("mapped");
    assert_eq!(&seen, b"hello");
    nic.write(DmaAddr::new(0x4000), b"world").expect("mapped");
    machine.ram().read(buffer.start(), &mut seen).expect("inside");
    assert_eq!(&seen, b"hello");
    machine.platform().sync_for_cpu(buffer.range(), Direction::Bidirectional);
    machine.ram().read(buffer.start(), &mut seen).expect("inside");
    assert_eq!(&seen, b"world");
}

#[test]
fn a_dump_says_what_the_machine_says() {
    let machine = board().build().expect("a machine");
    let table = Table::new(&machine);
    table.map(&machine, 1, RAM + 0x100_0000);
    table.map(&machine, 7, (RAM + 0x180_0000) | 0x80);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ram.raw");
    machine.ram().write_image(&path).expect("written");
    let image = Image::open(&path, PhysAddr::new(RAM)).expect("opened");
    let roots = [table.root.start()];
    let dumped = mappings(&image, SimFormat::Dart1, &roots, 32).expect("legal");
    assert_eq!(dumped, mappings(machine.ram(), SimFormat::Dart1, &roots, 32).expect("legal"));
    assert_eq!((dumped.mappings.len(), dumped.mappings[1].access), (2, Access::READ));
    let there = translate(&image, SimFormat::Dart1, &roots, 32, Iova::new(0x4001)).expect("mapped");
    assert_eq!(there.phys.raw(), RAM + 0x100_0001);
}

#[test]
fn same_seed_same_run() {
    let run = |seed| {
        let machine = board()
            .seed(seed)
            .fragment(Fragmentation { max_block: 0x8000 })
            .build()
            .expect("a machine");
        let table = Table::new(&machine);
        table.attach(&machine, "dcp_dart");
        for page in 0..32 {
            let request = FrameRequest::new(0x4000, 0x4000);
            let frames = machine.platform().alloc_frames(&request).expect("free memory");
            table.map(&machine, page, frames.start().raw());
        }
        machine.hostile("dcp").expect("as built").probe(500)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn every_allocation_can_fail_and_leaks_are_named() {
    let plan = FaultPlan::new();
    let mut places = 0;
    loop {
        plan.clear();
        let machine = board().faults(&plan).build().expect("a machine");
        plan.fail_nth(Point::Frames, places);
        let request = FrameRequest::new(0x4000, 0x4000);
        let results: Vec<_> =
            (0..3).map(|_| OwnedFrames::new(machine.platform(), &request)).collect();
        let failed = results.iter().filter(|result| result.is_err()).count() as u64;
        assert_eq!(failed, plan.fired());
        drop(results);
        assert!(machine.problems().is_empty());
        if failed == 0 {
            plan.clear();
            let leaked = OwnedFrames::new(machine.platform(), &request).expect("free memory");
            std::mem::forget(leaked);
            assert!(machine.problems()[0].ends_with("leaked"));
            break;
        }
        places += 1;
    }
    assert_eq!(places, 3);
}

#[test]
fn a_use_after_free_reads_poison() {
    let machine = board().build().expect("a machine");
    let table = Table::new(&machine);
    table.attach(&machine, "dcp_dart");
    let request = FrameRequest::new(0x4000, 0x4000);
    let buffer = OwnedFrames::zeroed(machine.platform(), &request).expect("free memory");
    table.map(&machine, 1, buffer.start().raw());
    drop(buffer);
    let mut seen = [0; 2];
    let dcp = machine.device("dcp").expect("as built");
    dcp.read(DmaAddr::new(0xf_0000_4000), &mut seen).expect("mapped still");
    assert_eq!(seen, [POISON; 2]);
}

#[test]
fn impossible_machines_are_refused() {
    let twice = board().device(DeviceSpec::behind("dcp", "isp0", 1)).build();
    assert!(matches!(twice, Err(MachineError::Duplicate { name }) if name == "dcp"));
    let nowhere = board().device(DeviceSpec::behind("x", "nowhere", 1)).build();
    assert!(matches!(nowhere, Err(MachineError::Wiring { .. })));
    let stream = board().device(DeviceSpec::behind("x", "isp0", 99)).build();
    assert!(matches!(stream, Err(MachineError::Wiring { stream: 99, .. })));
    assert!(matches!(Machine::builder().build(), Err(MachineError::Ram(_))));
    let wide = board().iommu(IommuConfig::new("w", SimFormat::Sv39, 48)).build();
    assert!(matches!(wide, Err(MachineError::Iommu(_))));
}

#[test]
fn threads_share_a_machine() {
    let machine = board().build().expect("a machine");
    let table = Table::new(&machine);
    table.attach(&machine, "dcp_dart");
    std::thread::scope(|scope| {
        for cpu in 0..4u64 {
            let (machine, table) = (&machine, &table);
            scope.spawn(move || {
                let request = FrameRequest::new(0x4000, 0x4000);
                let iommu = machine.iommu("dcp_dart").expect("as built");
                for round in 0..50 {
                    let page = cpu * 64 + round % 64;
                    let frames =
                        OwnedFrames::zeroed(machine.platform(), &request).expect("free memory");
                    table.map(machine, page, frames.start().raw());
                    let at = DmaAddr::new(0xf_0000_0000 + page * 0x4000);
                    let dcp = machine.device("dcp").expect("as built");
                    dcp.write(at, &[cpu as u8; 64]).expect("mapped");
                    table.unmap(machine, page);
                    let range = IovaRange::new(Iova::new(page * 0x4000), 0x4000).expect("legal");
                    iommu.invalidate(1, Some(range), true).expect("done");
                    let gone = dcp.write(at, &[1]).expect_err("unmapped").cause;
                    let walked =
                        matches!(*gone, DmaCause::Iommu { reason: FaultReason::Walk(_), .. });
                    assert!(walked);
                }
            });
        }
    });
    drop(table);
    assert_eq!(machine.problems(), Vec::<String>::new());
}
