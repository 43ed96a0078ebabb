//! Law 3: neither memory nor IOVA nor a table page is reused before the invalidation that covers it
//! has completed. The simulated IOTLB keeps leaves, table pointers and negative entries for ever
//! unless it is told to forget them, and every device here has touched all it could.

use granule::addr::{Direction, Granule, IovaRange};
use granule::dma::{MapFlags, Mapping, ScatterList};
use granule::domain::InvalidationPolicy;
use granule::table::FormatId;
use granule_laws::bench::{Bench, Case};
use granule_laws::buffer::{SimBuffer, bytes, fresh_id};
use granule_laws::check::{allow, confined, iova, reads, writes};
use granule_sim::faults::Point;
use granule_sim::iommu::Via;

/// The cases of [`Case::all`] without fragmentation, each strict or deferred.
fn cases(deferred: bool) -> impl Iterator<Item = Case> {
    Case::all().into_iter().filter(|case| case.max_block.is_none()).map(move |case| {
        let case = Case { coherent_walk: case.seed % 4 < 2, ..case };
        if deferred {
            case.deferred(4, 1000)
        } else {
            Case { policy: InvalidationPolicy::Strict, ..case }
        }
    })
}

/// Lets the device fill every cache with what it reaches.
fn touch(bench: &Bench) {
    bench.hostile("dev").touch_all();
}

/// Whether the device gets at the address, by whatever is cached.
fn reaches(bench: &Bench, at: granule::addr::DmaAddr) -> bool {
    bench.machine.device("dev").expect("as built").read(at, &mut [0]).is_ok()
}

#[test]
fn a_strict_unmap_ends_what_caches_remember() {
    for case in cases(false) {
        let bench = case.bench();
        let len = 2 * case.unit().size();
        let buffer = SimBuffer::new(&case, &bench.machine, 0, len);
        let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
        let at = mapping.address();
        touch(&bench);
        assert!(reaches(&bench, at));
        let buffer = mapping.unmap().expect("hardware that answers");
        assert!(!reaches(&bench, at), "{case:?}");
        confined(&bench, "dev", &[], "after a strict unmap");
        drop(buffer);
        // A new owner of the same memory, behind the same address perhaps.
        let next = SimBuffer::new(&case, &bench.machine, 0, len);
        confined(&bench, "dev", &[], "after the memory found a new owner");
        let id = next.id();
        let mapping = bench.dev().map(next, Direction::Bidirectional).expect("a mapping");
        reads(&bench, "dev", mapping.address(), &bytes(id, len));
        drop(mapping);
        confined(&bench, "dev", &[], "after a drop");
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Many small pages in one leaf table, all unmapped at once: the table goes, and a walk cache that
/// points to it must not find what is written into its memory later.
#[test]
fn table_pages_outlive_the_walk_caches() {
    for deferred in [false, true] {
        for case in cases(deferred) {
            let bench = case.bench();
            // What one leaf table spans, or as much of it as an allocation can take.
            let per_table = case.granule().size() / 8;
            let len = (per_table * case.granule().size()).min(32 << 20);
            let before = bench.domain.stats().table_pages;
            let mut all = bench.dev().reserve_iova::<SimBuffer>(len).expect("space");
            let mut parts = Vec::new();
            for _ in 0..3 {
                let part = SimBuffer::new(&case, &bench.machine, 0, case.unit().size());
                parts.extend(part.ranges().iter().copied());
                all.link(part, Direction::Bidirectional).expect("it joins");
            }
            touch(&bench);
            let frames = bench.machine.frames().live_bytes();
            drop(all);
            confined(&bench, "dev", &[], "after a reservation was dropped");
            bench.domain.flush().expect("hardware that answers");
            confined(&bench, "dev", &[], "after the flush");
            // Whatever was freed is taken again and filled with words that map all there is.
            let mut hostile_words = Vec::new();
            for _ in 0..8 {
                let block = SimBuffer::new(&case, &bench.machine, 0, case.unit().size());
                let word = (parts[0].start().raw() | 0x000f_ff00_0000_0003).to_le_bytes();
                block.write(&word.repeat(block.len() as usize / 8));
                hostile_words.push(block);
            }
            confined(&bench, "dev", &[], "with freed table pages in other hands");
            assert!(bench.domain.stats().table_pages >= before);
            assert!(frames > 0);
            drop(hostile_words);
            assert_eq!(bench.close(), [""; 0]);
        }
    }
}

/// A coherent buffer that spans whole leaf tables: unmapping it detaches them.
#[test]
fn detached_tables_are_freed_only_after_the_flush() {
    for deferred in [false, true] {
        for format in [FormatId::Lpae4k, FormatId::Dart1] {
            let mut case = Case::new(format, Granule::K4);
            if deferred {
                case = case.deferred(16, u64::MAX);
            }
            // Odd blocks keep large pages away, so that there is a table to detach.
            case.max_block = Some(case.granule().size());
            case.pool = 0;
            let bench = case.bench();
            let span = case.granule().size() / 8 * case.granule().size();
            let count = span / case.granule().size();
            let sizes = vec![case.granule().size(); count as usize];
            let buffer = pages(&case, &bench, &sizes);
            let ranges = buffer.ranges().to_vec();
            let mapping =
                Mapping::new(bench.dev(), buffer, Direction::Bidirectional, MapFlags::empty());
            let mapping = mapping.expect("a mapping");
            let full = bench.domain.stats().table_pages;
            touch(&bench);
            let pending = mapping.unmap_later().expect("a place in quarantine");
            if deferred {
                assert_eq!(bench.domain.stats().table_pages, full, "tables wait as well");
                assert!(!pending.is_ready());
                confined(&bench, "dev", &allow(&ranges, granule::addr::Access::all()), "waiting");
                assert!(bench.domain.stats().quarantined > 0);
            }
            let buffer = pending.finish().expect("hardware that answers");
            assert!(bench.domain.stats().table_pages < full, "{case:?}: a table was detached");
            confined(&bench, "dev", &[], "after the flush");
            drop(buffer);
            assert_eq!(bench.close(), [""; 0]);
        }
    }
}

/// If the invalidation fails, walk caches point to the detached tables for good: those stay too.
#[test]
fn detached_tables_stay_if_the_invalidation_fails() {
    for format in [FormatId::Lpae4k, FormatId::Dart2] {
        for coherent_walk in [true, false] {
            let mut case = Case { coherent_walk, pool: 0, ..Case::new(format, Granule::K4) };
            case.max_block = Some(case.granule().size());
            let bench = case.bench();
            let count = case.granule().size() / 8; // All that one leaf table maps.
            let buffer = pages(&case, &bench, &vec![case.granule().size(); count as usize]);
            let ranges = buffer.ranges().to_vec();
            let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
            let full = bench.domain.stats().table_pages;
            touch(&bench);
            bench.machine.faults().fail_nth(Point::Invalidation, 0);
            mapping.unmap().map(|_| ()).expect_err("the invalidation fails");
            assert_eq!(bench.domain.stats().table_pages, full, "{case:?}");
            let given = allow(&ranges, granule::addr::Access::all());
            confined(&bench, "dev", &given, "after a failed invalidation");
            let reach = bench.hostile("dev").reach();
            assert!(reach.iter().any(|one| one.via == Via::WalkCache), "{case:?}: no table");
        }
    }
}

/// A buffer of pages that do not adjoin.
fn pages(case: &Case, bench: &Bench, sizes: &[u64]) -> SimBuffer {
    SimBuffer::pages(case, &bench.machine, sizes).expect("free memory")
}

#[test]
fn deferred_memory_and_addresses_wait_for_the_flush() {
    for case in cases(true) {
        let case = Case { cpus: 1, ..case };
        let bench = case.bench();
        let len = case.unit().size();
        let mut waiting = Vec::new();
        let mut allowed = Vec::new();
        for _ in 0..4 {
            let buffer = SimBuffer::new(&case, &bench.machine, 0, len);
            allowed.extend(allow(buffer.ranges(), granule::addr::Access::all()));
            let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
            let at = mapping.address();
            touch(&bench);
            let pending = mapping.unmap_later().expect("a place in quarantine");
            // Neither the memory nor the address may be had by anybody.
            assert!(waiting.iter().all(|(_, other)| *other != at), "{case:?}: reused at once");
            let pending = pending.try_finish().expect_err("nothing was flushed");
            waiting.push((pending, at));
            confined(&bench, "dev", &allowed, "waiting");
        }
        let stats = bench.domain.stats();
        assert_eq!(stats.quarantined, 4);
        assert!(stats.quarantined_bytes >= 4 * len);
        // The fifth finds the ring full and flushes for all.
        let buffer = SimBuffer::new(&case, &bench.machine, 0, len);
        allowed = allow(buffer.ranges(), granule::addr::Access::all());
        let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
        assert!(waiting.iter().all(|(_, other)| *other != mapping.address()));
        touch(&bench);
        let fifth = mapping.unmap_later().expect("a place in quarantine");
        for (pending, at) in waiting {
            let buffer = pending.try_finish().unwrap_or_else(|_| panic!("{case:?}: flushed"));
            assert!(!reaches(&bench, at), "{case:?}");
            assert!(buffer.is_intact());
        }
        confined(&bench, "dev", &allowed, "after the flush of a full ring");
        // On request.
        assert!(!fifth.is_ready());
        bench.dev().flush().expect("hardware that answers");
        assert!(fifth.try_finish().is_ok());
        confined(&bench, "dev", &[], "after a flush on request");
        assert_eq!(bench.domain.stats().quarantined, 0);
        assert_eq!(bench.close(), [""; 0]);
    }
}

#[test]
fn the_timer_flushes_what_has_waited_long_enough() {
    for case in cases(true) {
        let bench = case.bench();
        let clock = bench.machine.clock();
        let one = |bench: &Bench| SimBuffer::new(&case, &bench.machine, 0, case.unit().size());
        let mapping = bench.dev().map(one(&bench), Direction::ToDevice).expect("a mapping");
        touch(&bench);
        let first = mapping.unmap_later().expect("a place in quarantine");
        clock.set(clock.now() + 999);
        bench.domain.poll().expect("hardware that answers");
        assert!(!first.is_ready(), "{case:?}: flushed before its time");
        clock.set(clock.now() + 1);
        bench.domain.poll().expect("hardware that answers");
        assert!(first.is_ready(), "{case:?}: not flushed in time");
        drop(first);
        // An unmap looks at the clock too.
        let mapping = bench.dev().map(one(&bench), Direction::ToDevice).expect("a mapping");
        let first = mapping.unmap_later().expect("a place in quarantine");
        clock.set(clock.now() + 5000);
        let mapping = bench.dev().map(one(&bench), Direction::ToDevice).expect("a mapping");
        let second = mapping.unmap_later().expect("a place in quarantine");
        assert!(first.is_ready() && second.is_ready());
        drop((first, second));
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Address space that waits in quarantine is flushed rather than refused.
#[test]
fn space_that_runs_out_is_flushed_and_tried_again() {
    for case in cases(true) {
        let granule = case.granule().size();
        let unit = case.unit().size();
        let window = IovaRange::new(granule::addr::Iova::new(4 * unit), 4 * unit).expect("legal");
        let case = Case { window: Some(window), ..case }.deferred(64, u64::MAX);
        let bench = case.bench();
        for round in 0..6 {
            let buffer = SimBuffer::new(&case, &bench.machine, 0, 3 * unit);
            let (id, ranges) = (buffer.id(), buffer.ranges().to_vec());
            let mapping = bench.dev().map(buffer, Direction::Bidirectional);
            let mapping = mapping.unwrap_or_else(|error| panic!("round {round}: {error}"));
            touch(&bench);
            reads(&bench, "dev", mapping.address(), &bytes(id, 3 * unit));
            confined(&bench, "dev", &allow(&ranges, granule::addr::Access::all()), "in turn");
            drop(mapping); // Deferred: range and buffer wait.
            assert_eq!(bench.domain.stats().quarantined, 1);
        }
        assert!(granule <= unit);
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// What a device that does not snoop wrote until the flush is what the CPU finds afterwards.
#[test]
fn the_cpu_sees_what_was_written_until_the_flush() {
    for case in cases(true) {
        let case = Case { snoops: false, ..case };
        let bench = case.bench();
        let len = case.unit().size();
        let buffer = SimBuffer::new(&case, &bench.machine, 0, len);
        let mapping = bench.dev().map(buffer, Direction::FromDevice).expect("a mapping");
        let at = mapping.address();
        writes(&bench, "dev", at, &bytes(fresh_id(), len));
        let pending = mapping.unmap_later().expect("a place in quarantine");
        // The device still has it, by its IOTLB.
        let last = bytes(fresh_id(), len);
        writes(&bench, "dev", at, &last);
        let buffer = pending.finish().expect("hardware that answers");
        assert_eq!(buffer.contents(), last, "{case:?}");
        assert!(!reaches(&bench, at));
        drop(buffer);
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Where absence is cached, a new mapping is visible at once all the same.
#[test]
fn cached_absence_hides_no_mapping() {
    for case in cases(false).chain(cases(true)) {
        let case = Case { caching_mode: true, ..case };
        let bench = case.bench();
        let len = case.unit().size();
        let mut last = None;
        for _ in 0..3 {
            let buffer = SimBuffer::new(&case, &bench.machine, 0, len);
            let id = buffer.id();
            // The device has asked for every address nearby before anything is there.
            for page in 0..64 {
                let near = last.unwrap_or(1 << 20) + page * case.granule().size();
                reaches(&bench, granule::addr::DmaAddr::new(near.saturating_sub(32 * len)));
            }
            let mapping = bench.dev().map(buffer, Direction::ToDevice).expect("a mapping");
            reads(&bench, "dev", mapping.address(), &bytes(id, len));
            last = Some(iova(mapping.address()).raw());
            drop(mapping.unmap());
            assert!(!reaches(&bench, granule::addr::DmaAddr::new(last.unwrap_or(0))));
        }
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// The model does what these tests rely on: without an invalidation the caches keep everything.
#[test]
fn the_judge_remembers() {
    let case = Case::new(FormatId::Dart1, Granule::K4).deferred(8, u64::MAX);
    let bench = case.bench();
    let buffer = SimBuffer::new(&case, &bench.machine, 0, 0x8000);
    let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
    touch(&bench);
    let pending = mapping.unmap_later().expect("a place in quarantine");
    let reach = bench.hostile("dev").reach();
    assert!(!reach.is_empty() && reach.iter().all(|one| one.via == Via::Iotlb));
    drop(pending);
    assert!(bench.hostile("dev").reach().is_empty());
}

/// A guard that is dropped while the hardware does not answer leaks its buffer.
#[test]
fn dropped_memory_is_kept_if_the_invalidation_fails() {
    for case in cases(false).chain(cases(true)) {
        // Deferred: the second finds a full ring, and the flush fails.
        let policy = match case.policy {
            InvalidationPolicy::Strict => InvalidationPolicy::Strict,
            _ => InvalidationPolicy::Deferred { capacity: 1, max_age: u64::MAX },
        };
        let case = Case { policy, cpus: 1, ..case };
        let bench = case.bench();
        let made = || SimBuffer::new(&case, &bench.machine, 0, case.unit().size());
        let (first, second, listed) = (made(), made(), made());
        let ranges = [&first, &second, &listed].map(|buffer| buffer.ranges()[0]);
        let list = ScatterList::new([listed]);
        let first = bench.dev().map(first, Direction::Bidirectional).expect("a mapping");
        let second = bench.dev().map(second, Direction::Bidirectional).expect("a mapping");
        let list = bench.dev().map_list(list, Direction::Bidirectional).expect("a mapping");
        touch(&bench);
        bench.machine.faults().fail_from(Point::Invalidation, 0);
        drop(first);
        drop(second);
        drop(list);
        let live = bench.machine.frames().live();
        for range in ranges {
            let owned = live.iter().any(|block| block.contains_range(&range));
            assert!(owned, "{case:?}: {range} was freed");
        }
        let given = allow(&ranges, granule::addr::Access::all());
        confined(&bench, "dev", &given, "after failed invalidations");
        let stats = bench.domain.stats();
        assert!(stats.poisoned && stats.leaked_bytes + stats.quarantined_bytes > 0);
        // What only waited comes back once the hardware answers; what was leaked never does.
        bench.machine.faults().clear();
        bench.domain.recover().expect("hardware that answers again");
        assert_eq!(bench.domain.stats().quarantined, 0);
        assert_eq!(bench.domain.stats().leaked_bytes, stats.leaked_bytes);
        confined(&bench, "dev", &[], "after recovery");
    }
}
