//! Properties of the simulator itself: the judge must be right before it judges.

use std::sync::Arc;

use granule::addr::{Access, Direction, DmaAddr, Granule, Iova, IovaRange, PhysAddr, PhysRange};
use granule::mem::{FrameRequest, Platform};
use granule_sim::faults::FaultPlan;
use granule_sim::frames::{Fragmentation, Frames};
use granule_sim::hostile::{Allowed, violations};
use granule_sim::iommu::{IommuConfig, Reach, StreamState, Via};
use granule_sim::machine::{DeviceSpec, Machine};
use granule_sim::ram::Ram;
use granule_sim::walk::{SimFormat, translate};
use proptest::prelude::*;

const RAM: u64 = 0x8_0000_0000;
const ROOT: PhysAddr = PhysAddr::new(RAM);

fn phys(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
}

/// What happens to a DART's tables and caches.
#[derive(Clone, Debug)]
enum Op {
    /// Points root entry `.0` at leaf table `.1`, or at nothing.
    Root(u64, Option<u64>),
    /// Points leaf entry `.1` of table `.0` at page `.2` with these right bits, or at nothing.
    Leaf(u64, u64, Option<(u64, u64)>),
    /// The device touches this page.
    Touch(u64, bool),
    /// Pages from `.0` on, `.1` of them, by leaf only or not.
    Invalidate(u64, u64, bool),
}

fn page() -> impl Strategy<Value = u64> {
    // Three root entries, four leaves in each.
    (0u64..3, 0u64..4).prop_map(|(root, leaf)| root * 2048 + leaf)
}

fn op() -> impl Strategy<Value = Op> {
    let rights = prop::sample::select(vec![0u64, 0x80, 0x100]);
    prop_oneof![
        (0u64..3, prop::option::of(0u64..3)).prop_map(|(root, table)| Op::Root(root, table)),
        (0u64..3, 0u64..4, prop::option::of((0u64..8, rights)))
            .prop_map(|(table, leaf, to)| Op::Leaf(table, leaf, to)),
        (page(), any::<bool>()).prop_map(|(page, write)| Op::Touch(page, write)),
        (page(), page(), any::<bool>())
            .prop_map(|(page, count, leaf)| { Op::Invalidate(page, count + 1, leaf) }),
    ]
}

fn dart(caching_mode: bool) -> Machine {
    let mut config = IommuConfig::new("dart", SimFormat::Dart1, 32);
    config.caching_mode = caching_mode;
    let machine = Machine::builder()
        .ram(phys(RAM, 1 << 20))
        .iommu(config)
        .device(DeviceSpec::behind("dev", "dart", 0))
        .build()
        .expect("a machine");
    let state = StreamState::Translate { context: 4, roots: vec![ROOT], input_bits: 32 };
    machine.iommu("dart").expect("as built").set_stream(0, state).expect("legal");
    for table in 0..3 {
        put(&machine, 0, table, (RAM + (1 + table) * 0x4000) | 1);
        (0..4).for_each(|leaf| put(&machine, 1 + table, leaf, to_page(table + leaf, 0)));
    }
    machine
}

fn to_page(page: u64, rights: u64) -> u64 {
    (RAM + 0x8_0000 + page * 0x4000) | rights | 0x000f_ff00_0000_0001
}

fn put(machine: &Machine, table: u64, index: u64, raw: u64) {
    let at = PhysAddr::new(RAM + table * 0x4000 + index * 8);
    machine.ram().write_u64(at, raw).expect("inside");
}

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(Iova::new(first * 0x4000), count * 0x4000).expect("a legal range")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a device gets at was listed as reachable before; and after an invalidation that
    /// covers pointers, what it gets is what the tables say.
    #[test]
    fn reach_is_complete_and_invalidation_is_final(
        ops in prop::collection::vec(op(), 1..80),
        caching in any::<bool>(),
    ) {
        let machine = dart(caching);
        let iommu = machine.iommu("dart").expect("as built");
        let device = machine.device("dev").expect("as built");
        for op in ops {
            match op {
                Op::Root(root, table) => {
                    let raw = table.map_or(0, |table| (RAM + (1 + table) * 0x4000) | 1);
                    put(&machine, 0, root, raw);
                }
                Op::Leaf(table, leaf, to) => {
                    let raw = to.map_or(0, |(page, rights)| to_page(page, rights));
                    put(&machine, 1 + table, leaf, raw);
                }
                Op::Touch(page, write) => {
                    let access = if write { Access::WRITE } else { Access::READ };
                    let reach = device.reachable();
                    if let Ok(target) = device.resolve(DmaAddr::new(page * 0x4000), access) {
                        let listed = reach.iter().any(|one| {
                            one.access.contains(access) && one.phys.contains(target.phys)
                        });
                        prop_assert!(listed, "{page} leads to {:?}, {reach:?}", target);
                    }
                }
                Op::Invalidate(page, count, leaf_only) => {
                    iommu.invalidate(4, Some(pages(page, count)), leaf_only).expect("done");
                    if leaf_only {
                        continue;
                    }
                    let iova = Iova::new(page * 0x4000);
                    let told = translate(machine.ram(), SimFormat::Dart1, &[ROOT], 32, iova);
                    let done = device.resolve(DmaAddr::new(iova.raw()), Access::READ);
                    let may = told.ok().filter(|told| told.access.contains(Access::READ));
                    prop_assert_eq!(may.map(|may| may.phys), done.ok().map(|target| target.phys));
                }
            }
        }
    }

    /// Who cleans before the device reads and invalidates after it wrote sees every byte, wherever
    /// the cache evicts; nobody else's lines are touched.
    #[test]
    fn the_sync_protocol_is_enough(
        seed: u64,
        line in prop::sample::select(vec![32usize, 64, 128]),
        rounds in prop::collection::vec((0u64..60, 1u64..5, any::<u8>(), any::<bool>()), 1..30),
    ) {
        let mut spec = DeviceSpec::behind("dev", "dart", 0);
        spec.snoops = false;
        let config = granule_sim::platform::CpuConfig { page: Granule::K4, line, cpus: 1 };
        let machine = Machine::builder()
            .ram(phys(RAM, 1 << 20))
            .cpu(config)
            .seed(seed)
            .evict_one_in(2)
            .iommu(IommuConfig::new("dart", SimFormat::Dart1, 32))
            .device(spec)
            .build()
            .expect("a machine");
        machine.iommu("dart").expect("as built").set_stream(0, StreamState::Bypass).expect("legal");
        let device = machine.device("dev").expect("as built");
        let platform = machine.platform();
        let frames = platform.alloc_frames(&FrameRequest::new(0x2000, 0x1000)).expect("memory");
        machine.ram().fill(frames, 0xaa).expect("inside");
        platform.sync_for_device(frames, Direction::Bidirectional);
        let mut model = vec![0xaa; 0x2000];
        for (first, count, byte, to_device) in rounds {
            let (at, len) = (first * line as u64, count * line as u64);
            let part = frames.slice(at, len).expect("inside");
            let data = vec![byte; len as usize];
            let mut seen = vec![0; len as usize];
            if to_device {
                machine.ram().write(part.start(), &data).expect("inside");
                platform.sync_for_device(part, Direction::ToDevice);
                device.read(DmaAddr::new(part.start().raw()), &mut seen).expect("bypass");
            } else {
                platform.sync_for_device(part, Direction::FromDevice);
                device.write(DmaAddr::new(part.start().raw()), &data).expect("bypass");
                platform.sync_for_cpu(part, Direction::FromDevice);
                machine.ram().read(part.start(), &mut seen).expect("inside");
            }
            prop_assert_eq!(&seen, &data);
            model[at as usize..(at + len) as usize].fill(byte);
        }
        let mut all = vec![0; 0x2000];
        machine.ram().read(frames.start(), &mut all).expect("inside");
        prop_assert_eq!(all, model);
    }

    /// Live blocks never overlap, and stand where they were asked for.
    #[test]
    fn frames_are_disjoint_and_aligned(
        seed: u64,
        fragmented in any::<bool>(),
        requests in prop::collection::vec((1u64..6, 0u32..4, any::<bool>(), any::<bool>()), 1..120),
    ) {
        let ranges = [phys(RAM, 1 << 20), phys(RAM + (4 << 20), 1 << 20)];
        let ram = Arc::new(Ram::new(&ranges).expect("RAM"));
        let reserved = phys(RAM + 0x1_2345, 0x100);
        let fragments = fragmented.then_some(Fragmentation { max_block: 0x1_0000 });
        let plan = FaultPlan::new();
        let frames = Frames::new(ram, Granule::K16, &[reserved], fragments, plan, seed);
        let mut live: Vec<PhysRange> = Vec::new();
        for (blocks, align, low, free) in requests {
            if free && !live.is_empty() {
                let gone = live.swap_remove(blocks as usize % live.len());
                prop_assert!(frames.free(gone).is_ok());
                continue;
            }
            let align = 0x4000 << align;
            let window = low.then_some(ranges[0]);
            let request = FrameRequest::new(blocks * 0x4000, align).within(window);
            let Ok(block) = frames.alloc(&request) else { continue };
            prop_assert!(block.start().raw() % align == 0 && block.len() == blocks * 0x4000);
            prop_assert!(!low || ranges[0].contains_range(&block));
            prop_assert!(ranges.iter().any(|range| range.contains_range(&block)));
            prop_assert!(!block.overlaps(&reserved));
            prop_assert!(live.iter().all(|other| !other.overlaps(&block)));
            live.push(block);
        }
        let held: u64 = live.iter().map(PhysRange::len).sum();
        prop_assert_eq!(frames.live_bytes(), held);
        prop_assert!(frames.errors().is_empty());
    }

    /// The subtraction of what is allowed agrees with asking byte by byte.
    #[test]
    fn violations_agree_with_a_byte_map(
        reach in prop::collection::vec((0u64..64, 1u64..24, 0u8..4), 0..4),
        allowed in prop::collection::vec((0u64..64, 1u64..24, 0u8..4), 0..6),
    ) {
        let access = |bits| Access::from_bits_truncate(bits);
        let reach: Vec<_> = reach.iter().map(|(at, len, bits)| Reach {
            phys: phys(*at, *len),
            access: access(*bits),
            iova: Iova::new(0),
            page_size: 1,
            via: Via::Tables,
        }).collect();
        let allowed: Vec<_> = allowed.iter().map(|(at, len, bits)| Allowed {
            range: phys(*at, *len),
            access: access(*bits),
        }).collect();
        let found = violations(&reach, &allowed);
        for at in (0..96).map(PhysAddr::new) {
            for right in [Access::READ, Access::WRITE] {
                let reached = reach.iter().any(|r| r.access.contains(right) && r.phys.contains(at));
                let may = allowed.iter().any(|a| a.access.contains(right) && a.range.contains(at));
                let named = found.iter().any(|v| v.access == right && v.phys.contains(at));
                prop_assert_eq!(reached && !may, named, "{:?} {:?}", at, right);
            }
        }
    }
}
