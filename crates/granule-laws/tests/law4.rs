//! Law 4: a failed operation adds no reachable mapping, frees what it took, and gives back what it
//! was given. Every allocation and every invalidation of a program is made to fail in turn.

use granule::addr::{Access, Direction, Granule};
use granule::dma::{Coherent, Device, ListMapping, MapFlags, Mapping, ScatterList};
use granule::domain::{InvalidationPolicy, Stats, Stream};
use granule::share::{Plan, Shared};
use granule::table::FormatId;
use granule_laws::bench::{Bench, Case, Span};
use granule_laws::buffer::SimBuffer;
use granule_laws::check::{allow, confined, reads};
use granule_laws::effort::{self, full};
use granule_sim::faults::Point;
use granule_sim::hostile::Allowed;
use granule_sim::iommu::StreamState;

/// Everything that must be as before when a call has failed.
#[derive(Debug, PartialEq)]
struct State {
    views: usize,
    pool: Option<u64>,
    devices: Vec<Of>,
}

/// What a device and its domain count.
#[derive(Debug, PartialEq)]
struct Of {
    iova: u64,
    exposed: u64,
    leaked: u64,
    poisoned: bool,
    stats: Stats,
}

impl State {
    fn of(bench: &Bench, devices: &Devices<'_>) -> Self {
        let of = |device: &&Device| {
            let domain = device.domain_stats().unwrap_or_default();
            Of {
                iova: domain.iova_bytes,
                exposed: domain.exposed_bytes,
                leaked: domain.leaked_bytes,
                poisoned: domain.poisoned,
                stats: Stats { maps: 0, bounces: 0, ..device.stats() },
            }
        };
        Self {
            views: bench.machine.platform().views(),
            pool: bench.pool.as_ref().map(|pool| pool.usage().used),
            devices: devices.all().iter().map(of).collect(),
        }
    }

    fn leaked(&self) -> bool {
        self.devices.iter().any(|of| of.leaked > 0 || of.poisoned)
    }
}

/// Bytes of frames, and pages of table in all domains: empty ones may remain, counted.
fn memory(bench: &Bench, devices: &Devices<'_>) -> (u64, u64) {
    let stats = devices.all().map(|device| device.domain_stats().unwrap_or_default());
    (bench.machine.frames().live_bytes(), stats.iter().map(|stats| stats.table_pages).sum())
}

/// Whether frames grew by tables only.
fn only_tables(bench: &Bench, before: (u64, u64), after: (u64, u64)) -> bool {
    let most = after.1.saturating_sub(before.1) * bench.case.unit().size();
    after.0 <= before.0 + most
}

enum Held<'d> {
    Map(Mapping<&'d Device, SimBuffer>),
    List(ListMapping<&'d Device, SimBuffer>),
    Coherent(Coherent<&'d Device>),
    Shared(Shared),
}

/// What a program is run on: a device, one behind another IOMMU, one on the bus.
struct Devices<'d> {
    dev: &'d Device,
    other: &'d Device,
    direct: &'d Device,
}

impl<'d> Devices<'d> {
    fn all(&self) -> [&'d Device; 3] {
        [self.dev, self.other, self.direct]
    }
}

/// One operation: what it holds afterwards and what the device was given, or the error.
fn operation<'d>(
    bench: &Bench,
    devices: &Devices<'d>,
    number: usize,
) -> Result<(Held<'d>, Vec<Allowed>), String> {
    let (case, machine, dev) = (&bench.case, &bench.machine, devices.dev);
    let unit = case.unit().size();
    let outward = |ranges: &[granule::addr::PhysRange]| -> Vec<_> {
        ranges.iter().filter_map(|range| range.align_outward(case.granule())).collect()
    };
    match number % 5 {
        0 | 1 => {
            let (offset, len) = [(0, unit), (128, 3 * unit / 2)][number % 5];
            // The test's own memory is no part of the operation.
            let Some(buffer) = SimBuffer::try_new(case, machine, offset, len) else {
                return Err("the caller has no memory".into());
            };
            let (id, ranges) = (buffer.id(), buffer.ranges().to_vec());
            match dev.map(buffer, Direction::Bidirectional) {
                Ok(mapping) => Ok((Held::Map(mapping), allow(&outward(&ranges), Access::all()))),
                Err(refused) => {
                    if let Some(back) = refused.buffer {
                        assert_eq!((back.id(), back.ranges()), (id, &ranges[..]));
                        assert!(back.is_intact());
                    } else {
                        assert!(refused.error.is_stale(), "{}", refused.error);
                    }
                    Err(refused.error.to_string())
                }
            }
        }
        2 => {
            let shapes = [(0, unit), (64, 128), (unit / 2, unit)];
            let made = shapes.map(|(offset, len)| SimBuffer::try_new(case, machine, offset, len));
            if made.iter().any(Option::is_none) {
                return Err("the caller has no memory".into());
            }
            let buffers: Vec<SimBuffer> = made.into_iter().flatten().collect();
            let ranges: Vec<_> = buffers.iter().map(|buffer| buffer.ranges()[0]).collect();
            let list = ScatterList::new(buffers);
            let entries = list.entries().to_vec();
            match dev.map_list(list, Direction::Bidirectional) {
                Ok(mapping) => Ok((Held::List(mapping), allow(&outward(&ranges), Access::all()))),
                Err(refused) => {
                    if let Some(list) = refused.buffer {
                        assert_eq!(list.entries(), entries);
                        assert!(list.into_buffers().all(|buffer| buffer.is_intact()));
                    }
                    Err(refused.error.to_string())
                }
            }
        }
        3 => {
            let memory = Coherent::new(dev, 2 * unit + 5, MapFlags::empty());
            let memory = memory.map_err(|error| error.to_string())?;
            let given = allow(memory.scatter_list(), Access::all());
            Ok((Held::Coherent(memory), given))
        }
        _ => {
            let plan = Plan::new(3 * unit - 9).device(dev, Access::all());
            let plan = plan.device(devices.other, Access::READ);
            let plan = plan.device(devices.direct, Access::READ).solve().expect("a plan");
            let shared = plan.allocate().map_err(|error| error.to_string())?;
            let given = allow(shared.blocks(), Access::all());
            Ok((Held::Shared(shared), given))
        }
    }
}

impl Held<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Map(_) => "buffer",
            Self::List(_) => "list",
            Self::Coherent(_) => "coherent memory",
            Self::Shared(_) => "shared buffer",
        }
    }
}

/// Ends what is held; whether the hardware confirmed it.
fn end(held: Held<'_>) -> bool {
    match held {
        Held::Map(mapping) => mapping.unmap().is_ok(),
        Held::List(mapping) => mapping.unmap().is_ok(),
        Held::Coherent(memory) => memory.free().is_ok(),
        Held::Shared(shared) => shared.free().is_ok(),
    }
}

/// The benches of this file: each format, strict over two IOMMUs or deferred on one; absence cached,
/// so that maps invalidate as well.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (index, format) in FormatId::ALL.iter().enumerate() {
        let deferred = index % 2 == 1;
        let mut case = Case::new(*format, if index == 3 { Granule::K16 } else { Granule::K4 });
        case.caching_mode = true;
        case.coherent_walk = index % 3 != 0;
        case.snoops = index != 1;
        case.pool = 0;
        case.span = if deferred { Span::One } else { Span::Mirror };
        if deferred {
            case.policy = InvalidationPolicy::Deferred { capacity: 3, max_age: u64::MAX };
        }
        cases.push(case);
    }
    effort::some(cases)
}

/// Each of five kinds in turn, twice, with the oldest of six ended in between.
const OPERATIONS: usize = 10;

#[test]
fn no_failed_allocation_leaves_a_trace() {
    let mut places = 0;
    for case in cases() {
        // Every place of the first run through all kinds; later ones hit the same code.
        for k in 0.. {
            let bench = case.bench();
            let (other, _domain) = bench.other();
            let direct = bench.direct();
            let devices = Devices { dev: bench.dev(), other: &other, direct: &direct };
            bench.machine.faults().fail_nth(Point::Frames, k);
            let mut held: Vec<(Held<'_>, Vec<Allowed>)> = Vec::new();
            let mut failed = 0;
            for number in 0..if k < 24 { 6 } else { OPERATIONS } {
                let before = (State::of(&bench, &devices), memory(&bench, &devices));
                let fired = bench.machine.faults().fired();
                match operation(&bench, &devices, number) {
                    Ok(new) => held.push(new),
                    Err(why) => {
                        failed += 1;
                        assert!(bench.machine.faults().fired() > fired, "{case:?}: {why}");
                        let after = State::of(&bench, &devices);
                        assert_eq!(after, before.0, "{case:?}, k = {k}, {number}: {why}");
                        let now = memory(&bench, &devices);
                        assert!(only_tables(&bench, before.1, now), "{case:?}, k = {k}: {why}");
                        // Once more: nothing is in the way.
                        let again = operation(&bench, &devices, number);
                        held.push(again.unwrap_or_else(|why| panic!("{case:?}, k = {k}: {why}")));
                    }
                }
                let given: Vec<Allowed> =
                    held.iter().flat_map(|(_, given)| given.clone()).collect();
                confined(&bench, "dev", &given, "after an operation");
                if held.len() > 5 {
                    assert!(end(held.remove(0).0));
                }
            }
            let fired = bench.machine.faults().fired();
            assert!(failed <= fired);
            assert!(held.into_iter().all(|(held, _)| end(held)));
            confined(&bench, "dev", &[], "in the end");
            drop((other, direct, _domain));
            assert_eq!(bench.close(), [""; 0], "{case:?}, k = {k}");
            if fired == 0 {
                break;
            }
            places += fired;
        }
    }
    assert!(places > 50 || !full(), "{places}");
}

/// What is left of a failed invalidation: memory and IOVA in quarantine, counted, never reused; and
/// after `recover` the domain works again.
#[test]
fn what_a_failed_invalidation_covers_is_never_reused() {
    let mut places = 0;
    for case in cases() {
        for k in 0.. {
            let bench = case.bench();
            let (other, other_domain) = bench.other();
            let direct = bench.direct();
            let devices = Devices { dev: bench.dev(), other: &other, direct: &direct };
            bench.machine.faults().fail_nth(Point::Invalidation, k);
            let fired = || bench.machine.faults().fired() > 0;
            // Everything that the device was ever given and that may still be cached.
            let mut given: Vec<Allowed> = Vec::new();
            let mut held = Vec::new();
            let mut number = 0;
            while !fired() && number < 7 {
                let before = (State::of(&bench, &devices), memory(&bench, &devices));
                match operation(&bench, &devices, number) {
                    Ok((guard, allowed)) => {
                        given.extend(allowed);
                        held.push(guard);
                        bench.hostile("dev").touch_all();
                    }
                    // Where a map was undone in time nothing is lost.
                    Err(why) => {
                        assert!(fired(), "{why}");
                        let after = State::of(&bench, &devices);
                        if !after.leaked() {
                            assert_eq!(after, before.0, "{case:?}, k = {k}: {why}");
                            let now = memory(&bench, &devices);
                            assert!(only_tables(&bench, before.1, now), "{case:?}, k = {k}: {why}");
                        }
                    }
                }
                number += 1;
                if number % 2 == 0 && !fired() && !held.is_empty() {
                    let confirmed = end(held.remove(0));
                    assert!(confirmed || fired());
                }
            }
            if !fired() {
                bench.machine.faults().clear();
                assert!(held.into_iter().all(end));
                drop((other, other_domain, direct));
                assert_eq!(bench.close(), [""; 0]);
                break;
            }
            places += 1;
            lost(&bench, &devices, &given, held, k);
        }
    }
    assert!(places > 30 || !full(), "{places}");
}

/// After the fault: whatever was reached stays out of other hands, and recovery works.
fn lost(bench: &Bench, devices: &Devices<'_>, given: &[Allowed], held: Vec<Held<'_>>, k: u64) {
    let case = &bench.case;
    // Freed memory would be poisoned and found by its next owner.
    let stale: Vec<_> = bench.hostile("dev").reach();
    for one in &stale {
        assert!(bench.machine.frames().errors().is_empty());
        let live = bench.machine.frames().live();
        let owned = live.iter().any(|block| block.overlaps(&one.phys));
        assert!(owned, "{case:?}, k = {k}: {:?} was freed and is reached", one.phys);
    }
    let poisoned = |device: &Device| device.domain_stats().is_some_and(|stats| stats.poisoned);
    let (mine, theirs) = (poisoned(devices.dev), poisoned(devices.other));
    let domains = [devices.dev, devices.other].map(|device| device.domain_stats());
    let leaked: u64 = domains.iter().flatten().map(|stats| stats.leaked_bytes).sum();
    let waits: u64 = domains.iter().flatten().map(|stats| stats.quarantined).sum();
    assert!(leaked > 0 || waits > 0 || !(mine || theirs), "{case:?}, k = {k}: nothing is counted");
    if mine {
        let refused = operation(bench, devices, 0).err().expect("poisoned");
        assert!(refused.contains("poisoned"), "{refused}");
        bench.domain.recover().expect("hardware that answers again");
        assert!(!bench.domain.stats().poisoned);
        // What the table no longer says is out of the caches; what leaked stays allocated.
        let now = bench.hostile("dev").reach();
        assert!(now.iter().all(|one| one.via == granule_sim::iommu::Via::Tables));
    }
    if !theirs {
        for number in 0..5 {
            let (guard, allowed) = operation(bench, devices, number).expect("it works again");
            let mut all = given.to_vec();
            all.extend(allowed);
            confined(bench, "dev", &all, "after recovery");
            assert!(end(guard));
        }
    }
    for (index, guard) in held.into_iter().enumerate() {
        let kind = guard.kind();
        assert!(end(guard) || theirs, "{case:?}, k = {k}: {kind} number {index} was not ended");
    }
}

/// All streams are attached or none.
#[test]
fn streams_are_attached_together_or_not_at_all() {
    for case in cases() {
        let bench = case.blank();
        let good = case.streams();
        let mut streams = good.to_vec();
        streams.push(Stream::new(99));
        let refused = bench.attach(&bench.domain, case.spec("dev"), &streams);
        refused.expect_err("there is no stream 99");
        assert!(bench.iommus.iter().all(|iommu| iommu.streams().is_empty()));
        assert!(bench.machine.device("dev").expect("as built").reachable().is_empty());
        let state = bench.machine.iommu("iommu0").expect("as built").stream(0);
        assert_eq!(state, Ok(StreamState::Blocked), "{case:?}");
        // A stream that another domain holds.
        let other = case.domain(&bench.machine, &bench.iommus, Span::One).expect("a domain");
        let first = bench.attach(&other, case.spec("mate"), &[Stream::new(1)]).expect("attached");
        let mut streams = good.to_vec();
        streams.push(Stream::new(1));
        let refused = bench.attach(&bench.domain, case.spec("dev"), &streams);
        assert!(refused.expect_err("it is taken").to_string().contains("group"));
        assert_eq!(bench.iommus[0].streams().len(), 1);
        // Now all of them.
        let dev = bench.attach(&bench.domain, case.spec("dev"), good).expect("all are free");
        let memory = dev.alloc_coherent(100).expect("memory");
        reads(&bench, "dev", memory.address(), &[0; 100]);
        drop(memory);
        drop((dev, first, other));
        assert_eq!(bench.close(), [""; 0], "{case:?}");
    }
}

/// The root, a context, the quarantine: whatever a domain needs, it is had or nothing is.
#[test]
fn a_domain_that_cannot_be_made_keeps_nothing() {
    for case in cases() {
        let bench = case.blank();
        let before = bench.machine.frames().live_bytes();
        for k in 0.. {
            bench.machine.faults().clear();
            bench.machine.faults().fail_nth(Point::Frames, k);
            let made = case.domain(&bench.machine, &bench.iommus, case.span);
            let fired = bench.machine.faults().fired() > 0;
            assert_eq!(made.is_err(), fired, "{case:?}, k = {k}");
            drop(made);
            assert_eq!(bench.machine.frames().live_bytes(), before);
            if !fired {
                break;
            }
        }
        assert_eq!(bench.close(), [""; 0], "{case:?}");
    }
}

/// Bounce slots that a failed map took go back to the pool; those that a device may still reach
/// never do.
#[test]
fn slots_go_back_when_a_map_fails() {
    let (mut failures, mut lost) = (0, 0);
    for case in cases() {
        let case = Case { pool: 2 << 20, ..case }.untrusted();
        for (point, k, forever) in [
            (Point::Frames, 0, false),
            (Point::Frames, 1, false),
            (Point::Invalidation, 0, false),
            (Point::Invalidation, 0, true),
        ] {
            let bench = case.bench();
            let used = || bench.pool.as_ref().map_or(0, |pool| pool.usage().used);
            let odd = |len| SimBuffer::new(&case, &bench.machine, 64, len);
            let (buffer, list) = (odd(128), ScatterList::new([odd(64), odd(192), odd(640)]));
            let before = used();
            match (forever, bench.machine.faults()) {
                (true, faults) => faults.fail_from(point, k),
                (false, faults) => faults.fail_nth(point, k),
            }
            let check = |error: Option<granule::dma::DmaError>| match error {
                None => 0,
                Some(error) if error.is_stale() => {
                    assert!(used() > before, "{case:?}: a slot that is reached was given back");
                    1
                }
                Some(error) => {
                    assert!(forever || used() == before, "{case:?}: {error}");
                    0
                }
            };
            let mapped = bench.dev().map_list(list, Direction::Bidirectional);
            failures += u64::from(mapped.is_err());
            lost += check(mapped.err().map(|refused| refused.error));
            // What was mapped was dropped, and may wait.
            let _ = bench.domain.flush();
            let mapped = bench.dev().map(buffer, Direction::Bidirectional);
            failures += u64::from(mapped.is_err());
            lost += check(mapped.err().map(|refused| refused.error));
            bench.machine.faults().clear();
            if !forever && bench.domain.recover().is_ok() {
                assert_eq!(used(), before, "{case:?}");
                assert_eq!(bench.close(), [""; 0]);
            }
        }
    }
    assert!(failures > 10 && lost > 3 || !full(), "{failures} failures, {lost} lost");
}
