//! Law 2: a device reaches only what it was given and its padding. Exposed bytes are counted; for an
//! untrusted device they are 0. The judge is a hostile device after every step of a random program;
//! it sees its tables and everything that its IOMMU remembers.

use granule::addr::{Direction, Granule};
use granule::dma::{DeviceSpec, DmaError, MapFlags, Mapping};
use granule::domain::Stream;
use granule::table::FormatId;
use granule_laws::bench::Case;
use granule_laws::buffer::{SECRET, SimBuffer, bytes};
use granule_laws::check::{confined, walks_nowhere};
use granule_laws::effort::{effort, full};
use granule_laws::program::Program;

/// 5 steps (at usual effort) on every bench: trusted and not, strict and deferred, fragmented or not.
#[test]
fn a_device_reaches_what_it_was_given_after_every_step() {
    let mut taken = [0; 8];
    for case in Case::all().into_iter().flat_map(|case| [case.clone(), case.untrusted()]) {
        // One CPU: entries leave quarantine in the order in which they came.
        let case = Case { cpus: 1, ..case };
        let bench = case.bench();
        let mut program = Program::new(case.seed);
        for _ in 0..effort(5) {
            program.step(&bench);
        }
        program.finish_all(&bench);
        confined(&bench, "dev", &[], "in the end");
        taken.iter_mut().zip(program.taken).for_each(|(sum, count)| *sum += count);
        assert_eq!(bench.close(), [""; 0], "{case:?}");
    }
    assert!(!full() || taken.iter().all(|count| *count > 10), "{taken:?}");
}

/// Whatever lies beside an unaligned buffer is out of an untrusted device's reach, byte for byte.
#[test]
fn neighbours_are_out_of_reach_of_an_untrusted_device() {
    for case in Case::all().into_iter().map(Case::untrusted) {
        let bench = case.bench();
        let granule = case.granule().size();
        let buffer = SimBuffer::new(&case, &bench.machine, granule / 4, granule / 4);
        let (id, len) = (buffer.id(), buffer.len());
        let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
        assert!(mapping.is_bounced());
        let device = bench.machine.device("dev").expect("as built");
        let start = granule::addr::DmaAddr::new(mapping.address().raw() & !(granule - 1));
        let mut seen = vec![0xff; granule as usize];
        device.read(start, &mut seen).expect("the whole granule is mapped");
        let front = (mapping.address().raw() - start.raw()) as usize;
        let data = front..front + len as usize;
        assert_eq!(seen[data.clone()], bytes(id, len));
        let outside = seen.iter().enumerate().filter(|(at, _)| !data.contains(at));
        assert!(outside.clone().all(|(_, byte)| *byte == 0), "{case:?}: padding is not zero");
        assert_eq!(bench.dev().stats().exposed_bytes, 0);
        assert!(outside.count() > 0 && !seen.contains(&SECRET) || seen[data].contains(&SECRET));
        drop(mapping);
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// A slot that was used before: nothing of its last owner is left in it, for any device of the
/// domain, even if the mapping skips every copy.
#[test]
fn used_slots_hold_nothing_of_their_last_owner() {
    for format in FormatId::ALL {
        let case = Case::new(*format, Granule::K4);
        let bench = case.bench();
        let granule = case.granule().size();
        let secret = vec![SECRET; 3 * granule as usize];
        // The trusted device first, alone; then an untrusted one joins the domain.
        for flags in [MapFlags::empty(), MapFlags::SKIP_CPU_SYNC] {
            let used = Mapping::to_device(bench.dev(), secret.clone(), MapFlags::empty());
            drop(used.expect("a mapping"));
            let small = vec![1u8; 64];
            let mapping = Mapping::new(bench.dev(), small, Direction::Bidirectional, flags);
            let mapping = mapping.expect("a mapping");
            let spec = DeviceSpec::new("mate").untrusted();
            let mate = bench.attach(&bench.domain, spec, &[Stream::new(1)]).expect("attached");
            let start = granule::addr::DmaAddr::new(mapping.address().raw() & !(granule - 1));
            let mut seen = vec![0; granule as usize];
            let device = bench.machine.device("mate").expect("as built");
            device.read(start, &mut seen).expect("the whole granule is mapped");
            assert!(!seen.contains(&SECRET), "{format}, {flags:?}");
            drop((mapping, mate));
        }
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// A trusted device that shares a domain with an untrusted one exposes nothing either; and an
/// untrusted one cannot join while something is exposed.
#[test]
fn the_least_trusted_device_sets_the_trust() {
    for case in Case::all() {
        if case.granule() == Granule::K4 && case.page == Granule::K4 {
            continue;
        }
        let bench = case.bench();
        let odd = || SimBuffer::new(&case, &bench.machine, 128, 256);
        let mapping = bench.dev().map(odd(), Direction::Bidirectional).expect("a mapping");
        assert!(!mapping.is_bounced() && bench.domain.stats().exposed_bytes > 0);
        let join = || {
            let spec = case.clone().untrusted().spec("mate");
            bench.attach(&bench.domain, spec, &[Stream::new(1)])
        };
        let refused = join().expect_err("bytes are exposed");
        assert!(refused.to_string().contains("exposed"), "{refused}");
        assert!(!bench.domain.is_untrusted(), "a refused device leaves no trace");
        drop(mapping);
        let mate = join().expect("nothing is exposed now");
        confined(&bench, "mate", &[], "after what was exposed is gone");
        let mapping = bench.dev().map(odd(), Direction::Bidirectional).expect("a mapping");
        assert!(mapping.is_bounced());
        assert_eq!(bench.domain.stats().exposed_bytes, 0);
        drop((mapping, mate));
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// An attachment that fails for another reason leaves the domain as trusted as it was.
#[test]
fn a_failed_attachment_leaves_the_trust_alone() {
    for case in Case::all() {
        let bench = case.bench();
        let spec = case.clone().untrusted().spec("mate");
        let streams = [Stream::new(1), Stream::new(99)];
        bench.attach(&bench.domain, spec, &streams).expect_err("there is no stream 99");
        assert!(!bench.domain.is_untrusted(), "{case:?}");
        assert_eq!(bench.iommus[0].streams().len(), 1);
        confined(&bench, "mate", &[], "after a failed attachment");
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Without a pool an untrusted device's unaligned buffer is refused, and comes back.
#[test]
fn without_a_pool_the_unaligned_is_refused() {
    for case in Case::all() {
        let case = Case { pool: 0, ..case }.untrusted();
        let bench = case.bench();
        let buffer = SimBuffer::new(&case, &bench.machine, 64, 64);
        let refused = bench.dev().map(buffer, Direction::Bidirectional).expect_err("no pool");
        assert!(matches!(refused.error, DmaError::NoBounce { .. }), "{}", refused.error);
        assert!(refused.buffer.expect("it comes back").is_intact());
        assert_eq!(bench.domain.stats().iova_bytes, 0);
        confined(&bench, "dev", &[], "after a refusal");
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Guards of shared buffers and lists stay unmapped.
#[test]
fn guards_stay_unmapped() {
    for case in Case::all() {
        let bench = case.bench();
        let granule = case.granule().size();
        let plan = granule::share::Plan::new(granule).guard(true);
        let plan = plan.device(bench.dev(), granule::addr::Access::all());
        let shared = plan.solve().expect("a plan").allocate().expect("memory");
        // Neighbours on both sides, as near as they come.
        let around: Vec<_> =
            (0..4).map(|_| bench.dev().alloc_coherent(1).expect("memory")).collect();
        let mapped = shared.range_of(bench.dev()).and_then(|range| range.mapped());
        let mapped = mapped.expect("a range");
        for at in [mapped.start().raw() - 1, mapped.start().raw() - granule] {
            assert!(walks_nowhere(&bench, 0, 0, at), "{case:?}");
        }
        for at in [mapped.last().raw() + 1, mapped.last().raw() + granule] {
            assert!(walks_nowhere(&bench, 0, 0, at), "{case:?}");
        }
        drop((around, shared));
        assert_eq!(bench.close(), [""; 0]);
    }
}
