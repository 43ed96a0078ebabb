//! Law 1: what is promised as one range translates byte for byte to the buffer, in order. Judged on
//! the bytes of the tables by an independent walker, and by DMA of data that differs everywhere.
//!
//! Law 7 goes along: what comes back is what was given.

use granule::addr::{Access, Direction, DmaAddr, Granule, IovaRange, PageSizes, PhysRange};
use granule::dma::{Coherent, MapFlags, ScatterList};
use granule::mem::{FrameRequest, OwnedFrames};
use granule::share::Plan;
use granule::table::FormatId;
use granule_laws::bench::{BANK, Bench, Case, RAM, Span, phys};
use granule_laws::buffer::{SimBuffer, bytes, fresh_id};
use granule_laws::check::{iova, reads, walks_to, writes};

/// Lengths and offsets around every border there is.
fn shapes(case: &Case) -> Vec<(u64, u64)> {
    let (unit, granule, page) = (case.unit().size(), case.granule().size(), case.page.size());
    vec![
        (0, 1),
        (0, granule),
        (1, 1),
        (granule - 1, 2),
        (page / 2, page),
        (64, 3 * granule),
        (granule / 2, granule / 2),
        (unit - 64, unit + 128),
        (3, 5 * granule + 7),
    ]
    .into_iter()
    .filter(|(offset, len)| {
        case.max_block
            .is_none_or(|max| case.unit().round_up(offset + len).is_some_and(|size| size <= max))
    })
    .collect()
}

#[test]
fn a_mapping_is_its_buffer_byte_for_byte() {
    for case in Case::all().into_iter().flat_map(|case| [case.clone(), case.untrusted()]) {
        let bench = case.bench();
        for (offset, len) in shapes(&case) {
            let buffer = SimBuffer::new(&case, &bench.machine, offset, len);
            let (id, ranges) = (buffer.id(), buffer.ranges().to_vec());
            let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
            if !mapping.is_bounced() {
                walks_to(&bench, 0, 0, mapping.address(), &ranges);
            }
            assert_eq!(mapping.len(), len);
            reads(&bench, "dev", mapping.address(), &bytes(id, len));
            let answer = bytes(fresh_id(), len);
            writes(&bench, "dev", mapping.address(), &answer);
            let back = mapping.unmap().expect("hardware that answers");
            assert_eq!((back.id(), back.ranges()), (id, &ranges[..]));
            assert_eq!(back.contents(), answer, "{case:?}, {len:#x} bytes at {offset:#x}");
        }
        assert_eq!(bench.close(), [""; 0]);
    }
}

#[test]
fn scattered_pages_are_one_range() {
    for case in Case::all() {
        let bench = case.bench();
        let unit = case.unit().size();
        for (offset, sizes) in [(0, [unit; 3]), (unit - 96, [96, unit, 100])] {
            let Some(buffer) = SimBuffer::scattered(&case, &bench.machine, offset, &sizes) else {
                panic!("free memory")
            };
            let (id, ranges, len) = (buffer.id(), buffer.ranges().to_vec(), buffer.len());
            let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
            if !mapping.is_bounced() {
                walks_to(&bench, 0, 0, mapping.address(), &ranges);
            }
            assert!(!mapping.is_bounced() || !case.snoops, "{case:?}");
            reads(&bench, "dev", mapping.address(), &bytes(id, len));
            let answer = bytes(fresh_id(), len);
            writes(&bench, "dev", mapping.address(), &answer);
            assert_eq!(mapping.unmap().expect("hardware that answers").contents(), answer);
        }
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// The pieces do not join at granules, or lie where the platform knows no physical address: one
/// range all the same, by bouncing.
#[test]
fn what_cannot_be_mapped_in_place_is_bounced_whole() {
    for case in Case::all() {
        let bench = case.bench();
        let sizes = [case.unit().size() - 32, 64, 64];
        let buffer = SimBuffer::scattered(&case, &bench.machine, 0, &sizes).expect("free memory");
        let (id, len) = (buffer.id(), buffer.len());
        let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
        assert!(mapping.is_bounced());
        reads(&bench, "dev", mapping.address(), &bytes(id, len));
        let answer = bytes(fresh_id(), len);
        writes(&bench, "dev", mapping.address(), &answer);
        assert_eq!(mapping.unmap().expect("hardware that answers").contents(), answer);

        let host = bytes(fresh_id(), 3000);
        let (at, capacity) = (host.as_ptr(), host.capacity());
        let mapping = bench.dev().map(host.clone(), Direction::ToDevice).expect("a mapping");
        reads(&bench, "dev", mapping.address(), &host);
        drop(mapping);
        let mapping = bench.dev().map(host, Direction::FromDevice).expect("a mapping");
        let answer = bytes(fresh_id(), 3000);
        writes(&bench, "dev", mapping.address(), &answer);
        let back = mapping.unmap().expect("hardware that answers");
        assert_eq!((back.as_ptr(), back.capacity()), (at, capacity));
        assert_eq!(back, answer);
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Each segment of a list leads to its entries, whatever entries share granules.
#[test]
fn list_segments_are_the_entries_in_order() {
    for case in Case::all().into_iter().flat_map(|case| [case.clone(), case.untrusted()]) {
        let bench = case.bench();
        for seed in 0..2 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let buffers: Vec<SimBuffer> = (0..rng.usize(1..9))
                .map(|_| {
                    let most = 2 * case.granule().size();
                    let offset = if rng.bool() { 0 } else { rng.u64(0..most / 2) };
                    let len = if rng.bool() { most / 2 } else { rng.u64(1..=most / 2) };
                    SimBuffer::new(&case, &bench.machine, offset, len)
                })
                .collect();
            let expected: Vec<_> = buffers.iter().flat_map(|b| bytes(b.id(), b.len())).collect();
            let identity: Vec<_> = buffers.iter().map(|b| (b.id(), b.ranges().to_vec())).collect();
            let list = ScatterList::new(buffers);
            let entries = list.entries().to_vec();
            let mapping = bench.dev().map_list(list, Direction::Bidirectional).expect("mapped");
            assert!(mapping.segments().len() <= entries.len());
            let answer = bytes(fresh_id(), expected.len() as u64);
            let mut at = 0;
            for segment in mapping.segments() {
                let end = at + segment.len as usize;
                reads(&bench, "dev", segment.address, &expected[at..end]);
                writes(&bench, "dev", segment.address, &answer[at..end]);
                at = end;
            }
            assert_eq!(at, expected.len());
            let list = mapping.unmap().expect("hardware that answers");
            assert_eq!(list.entries(), entries);
            let back: Vec<SimBuffer> = list.into_buffers().collect();
            let same: Vec<_> = back.iter().map(|b| (b.id(), b.ranges().to_vec())).collect();
            assert_eq!(same, identity);
            let contents: Vec<_> = back.iter().flat_map(SimBuffer::contents).collect();
            assert_eq!(contents, answer, "{case:?}, seed {seed}");
        }
        assert_eq!(bench.close(), [""; 0]);
    }
}

#[test]
fn coherent_memory_is_one_range_of_its_blocks() {
    for case in Case::all() {
        let bench = case.bench();
        let granule = case.granule().size();
        for len in [1, 100, granule, granule + 1, 9 * granule - 5] {
            let flags = if len == 100 { MapFlags::GUARD } else { MapFlags::empty() };
            let memory = Coherent::new(bench.dev(), len, flags).expect("coherent memory");
            walks_to(&bench, 0, 0, memory.address(), memory.scatter_list());
            reads(&bench, "dev", memory.address(), &vec![0; len as usize]);
            let (out, back) = (bytes(fresh_id(), len), bytes(fresh_id(), len));
            memory.write(0, &out).expect("inside");
            reads(&bench, "dev", memory.address(), &out);
            writes(&bench, "dev", memory.address(), &back);
            let mut seen = vec![0; len as usize];
            memory.read(0, &mut seen).expect("inside");
            assert_eq!(seen, back, "{case:?}, {len:#x} bytes");
            memory.free().expect("hardware that answers");
        }
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Two banks of memory hold together what neither does: smaller blocks are tried, and each goes back
/// as it was given.
#[test]
fn memory_of_two_banks_is_one_range() {
    let case = Case::new(FormatId::Lpae64k, Granule::K4);
    let bench = case.bench();
    let taken = FrameRequest::new(BANK - (20 << 20), 0x1000);
    let taken = [RAM, RAM + 2 * BANK].map(|start| {
        let request = taken.within(Some(phys(start, BANK)));
        OwnedFrames::new(bench.machine.platform(), &request).expect("free memory")
    });
    let memory = bench.dev().alloc_coherent(24 << 20).expect("coherent memory");
    assert!(memory.scatter_list().len() > 1);
    walks_to(&bench, 0, 0, memory.address(), memory.scatter_list());
    drop((memory, taken));
    assert_eq!(bench.close(), [""; 0]);
}

#[test]
fn links_of_a_reservation_are_one_range() {
    for case in Case::all() {
        let bench = case.bench();
        let unit = case.unit().size();
        let mut all = bench.dev().reserve_iova::<SimBuffer>(4 * unit).expect("space");
        let parts = [(unit / 2, unit / 2), (0, unit), (0, unit / 4)];
        let mut linked: Vec<(u64, PhysRange)> = Vec::new();
        for (offset, len) in parts {
            let buffer = SimBuffer::new(&case, &bench.machine, offset, len);
            linked.push((buffer.id(), buffer.ranges()[0]));
            all.link(buffer, Direction::Bidirectional).expect("it joins");
        }
        let start = all.sync().expect("something is linked");
        let pieces: Vec<_> = linked.iter().map(|(_, range)| *range).collect();
        walks_to(&bench, 0, 0, start, &pieces);
        let expected: Vec<u8> =
            linked.iter().flat_map(|(id, range)| bytes(*id, range.len())).collect();
        reads(&bench, "dev", start, &expected);
        let answer = bytes(fresh_id(), expected.len() as u64);
        writes(&bench, "dev", start, &answer);
        let back = all.unmap().expect("hardware that answers");
        let contents: Vec<_> = back.iter().flat_map(SimBuffer::contents).collect();
        assert_eq!(contents, answer, "{case:?}");
        let same: Vec<_> = back.iter().map(|b| (b.id(), b.ranges()[0])).collect();
        assert_eq!(same, linked);
        drop(back);
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// Two devices behind two IOMMUs and a third on the bus have the same bytes, each as one range.
#[test]
fn a_shared_buffer_is_one_range_for_each_device() {
    for case in Case::all() {
        let bench = case.bench();
        let (other, domain) = bench.other();
        let direct = bench.direct();
        let unit = case.unit().size();
        for (len, with_direct) in [(unit + 5, true), (7 * unit - 3, false), (1, false)] {
            let plan = Plan::new(len).device(bench.dev(), Access::all());
            let mut plan = plan.device(&other, Access::READ);
            if with_direct {
                plan = plan.device(&direct, Access::all());
            }
            let shared = plan.solve().expect("a plan").allocate().expect("memory");
            let address = |device| shared.range_of(device).expect("as planned").address();
            let (first, second) = (address(bench.dev()), address(&other));
            walks_to(&bench, 0, 0, first, shared.blocks());
            walks_to(&bench, 1, 2, second, shared.blocks());
            reads(&bench, "other", second, &vec![0; shared.size() as usize]);
            let data = bytes(fresh_id(), len);
            writes(&bench, "dev", first, &data);
            reads(&bench, "other", second, &data);
            if with_direct {
                reads(&bench, "direct", address(&direct), &data);
            }
            let mut seen = vec![0; len as usize];
            shared.sync_for_cpu(0, len).expect("inside");
            shared.read(0, &mut seen).expect("inside");
            assert_eq!(seen, data, "{case:?}");
            let data = bytes(fresh_id(), len);
            shared.write(0, &data).expect("inside");
            shared.sync_for_device(0, len).expect("inside");
            reads(&bench, "dev", first, &data);
            shared.free().expect("hardware that answers");
        }
        drop((other, domain, direct));
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// The largest page that address, memory and remaining length allow, at every step.
fn best_pages(sizes: PageSizes, mut iova: u64, blocks: &[PhysRange]) -> Vec<(u64, u64)> {
    let mut joined: Vec<PhysRange> = Vec::new();
    for block in blocks {
        match joined.last_mut() {
            Some(last) if last.is_followed_by(block) => {
                *last = PhysRange::new(last.start(), last.len() + block.len()).expect("legal");
            }
            _ => joined.push(*block),
        }
    }
    let mut pages = Vec::new();
    for block in joined {
        let (mut at, mut left) = (block.start().raw(), block.len());
        while left > 0 {
            let fits = |size: &u64| iova % size == 0 && at % size == 0 && left >= *size;
            let size = (12..40).rev().map(|bit| 1u64 << bit);
            let size = size.filter(|size| sizes.bits() & size != 0).find(fits).expect("granules");
            pages.push((iova, size));
            (iova, at, left) = (iova + size, at + size, left - size);
        }
    }
    pages
}

#[test]
fn the_largest_pages_are_used() {
    for case in Case::all() {
        if !case.snoops {
            continue; // The cache model makes large buffers slow, and pages are the same.
        }
        let bench = case.bench();
        for len in [3 << 20, (2 << 20) + case.granule().size()] {
            let memory = bench.dev().alloc_coherent(len).expect("coherent memory");
            let used = walks_to(&bench, 0, 0, memory.address(), memory.scatter_list());
            let sizes = page_sizes(&bench);
            let best = best_pages(sizes, memory.address().raw(), memory.scatter_list());
            assert_eq!(used, best, "{case:?}");
            let size = memory.scatter_list().iter().map(PhysRange::len).sum();
            let range = IovaRange::new(iova(memory.address()), size).expect("legal");
            let told: u64 = bench.domain.page_sizes_used(range).iter().map(|(s, n)| s * n).sum();
            assert_eq!(told, size);
            let large = used.iter().any(|(_, size)| *size > case.granule().size());
            let possible = case.max_block.is_none() && sizes.bits().count_ones() > 1;
            assert!(large || !possible, "{case:?}: no large page for {len:#x} bytes");
        }
    }
}

fn page_sizes(bench: &Bench) -> PageSizes {
    bench.domain.page_sizes()
}

/// One domain over two IOMMUs: both lead to the same bytes.
#[test]
fn a_domain_over_two_iommus_says_the_same_twice() {
    for mut case in Case::all() {
        for span in [Span::Paged, Span::Mirror] {
            case.span = span;
            let bench = case.bench();
            let buffer = SimBuffer::new(&case, &bench.machine, 0, case.unit().size());
            let (id, ranges, len) = (buffer.id(), buffer.ranges().to_vec(), buffer.len());
            let mapping = bench.dev().map(buffer, Direction::Bidirectional).expect("a mapping");
            walks_to(&bench, 0, 0, mapping.address(), &ranges);
            walks_to(&bench, 1, 0, mapping.address(), &ranges);
            reads(&bench, "dev", mapping.address(), &bytes(id, len));
            let at: DmaAddr = mapping.address();
            drop(mapping.unmap());
            let mut none = [0];
            let late = bench.machine.device("dev").expect("as built").read(at, &mut none);
            assert!(late.is_err(), "{case:?}");
            assert_eq!(bench.close(), [""; 0]);
        }
    }
}
