//! Law 7: unmap returns the caller's buffer and segments unchanged: the same memory, in the same
//! order, with what the device wrote and nothing else. (Law 1's tests look at this for buffers of
//! simulated memory; here are the other kinds.)

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use granule::addr::Direction;
use granule::dma::{ForeignMemory, MapFlags, Mapping, Piece, ScatterList};
use granule::mem::{FrameRequest, OwnedFrames};
use granule_laws::bench::{Bench, Case};
use granule_laws::buffer::{SimBuffer, bytes, fresh_id};
use granule_laws::check::{reads, writes};

/// A word of every width, as vector, box and static slice, through a bounce buffer or not.
#[test]
fn every_kind_of_buffer_comes_back_as_it_went() {
    for case in Case::all() {
        let bench = case.bench();
        let words: Vec<u64> = (0..100).map(|word| word * 0x0101_0101_0101).collect();
        let mut vector = Vec::with_capacity(333);
        vector.extend_from_slice(&words);
        let (at, capacity) = (vector.as_ptr(), vector.capacity());
        let mapping = bench.dev().map(vector, Direction::Bidirectional).expect("a mapping");
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        reads(&bench, "dev", mapping.address(), &data);
        let vector = mapping.unmap().expect("hardware that answers");
        assert_eq!((vector.as_ptr(), vector.capacity(), &vector), (at, capacity, &words));

        let boxed: Box<[u16]> = (0..77).collect();
        let at = boxed.as_ptr();
        let mapping = bench.dev().map(boxed, Direction::FromDevice).expect("a mapping");
        writes(&bench, "dev", mapping.address(), &[1, 2, 3, 4]);
        let boxed = mapping.unmap().expect("hardware that answers");
        assert_eq!((boxed.as_ptr(), boxed.len()), (at, 77));
        assert_eq!((boxed[0], boxed[1]), (0x0201, 0x0403));
        // What the device did not write is what was there.
        assert!(boxed.iter().skip(2).copied().eq(2..77));

        let shared: Arc<[u8]> = bytes(fresh_id(), 500).into();
        let mapping = bench.dev().map_to_device(shared.clone()).expect("a mapping");
        reads(&bench, "dev", mapping.address(), &shared);
        let back = mapping.unmap().expect("hardware that answers");
        assert!(Arc::ptr_eq(&back, &shared));
        assert_eq!(Arc::strong_count(&shared), 2);
        drop(back);
        assert_eq!(bench.close(), [""; 0]);
    }
}

/// The completion of memory that granule cannot own is called once, and not before the flush.
#[test]
fn foreign_memory_is_given_back_once() {
    for case in Case::all() {
        let bench = case.bench();
        let done = Arc::new(AtomicUsize::new(0));
        let unit = case.unit().size();
        let frames: Vec<_> = (0..3)
            .map(|_| {
                let request = FrameRequest::new(unit, unit);
                OwnedFrames::zeroed(bench.machine.platform(), &request).expect("free memory")
            })
            .collect();
        let pages: Vec<_> = frames.iter().map(|frames| frames.range()).collect();
        let foreign = || {
            let done = done.clone();
            let count = move || {
                done.fetch_add(1, Ordering::SeqCst);
            };
            // SAFETY: the frames live until the end, and the CPU leaves them alone.
            unsafe { ForeignMemory::from_pages(&pages, count) }
        };
        let mapping = bench.dev().map(foreign(), Direction::Bidirectional).expect("a mapping");
        let back = mapping.unmap().expect("hardware that answers");
        assert_eq!(done.load(Ordering::SeqCst), 0, "it came back to the caller");
        drop(back);
        assert_eq!(done.load(Ordering::SeqCst), 1);
        let mapping = bench.dev().map(foreign(), Direction::Bidirectional).expect("a mapping");
        bench.hostile("dev").touch_all();
        drop(mapping);
        let early = done.load(Ordering::SeqCst);
        assert_eq!(early == 1, bench.domain.is_deferred(), "{case:?}");
        bench.domain.flush().expect("hardware that answers");
        assert_eq!(done.load(Ordering::SeqCst), 2);
        // Forgotten: never.
        std::mem::forget(bench.dev().map(foreign(), Direction::ToDevice).expect("a mapping"));
        bench.domain.flush().expect("hardware that answers");
        assert_eq!(done.load(Ordering::SeqCst), 2);
        drop(frames);
    }
}

/// A list is mapped again and again, with its entries the same each time.
#[test]
fn a_list_survives_any_number_of_mappings() {
    for case in Case::all().into_iter().flat_map(|case| [case.clone(), case.untrusted()]) {
        let bench = case.bench();
        let unit = case.unit().size();
        let shapes = [(0, unit), (0, unit), (64, 64), (unit / 2, unit / 2), (192, 1)];
        let make = |(offset, len)| SimBuffer::new(&case, &bench.machine, offset, len);
        let mut list = ScatterList::new(shapes.map(make));
        let entries = list.entries().to_vec();
        for _ in 0..3 {
            let mapping = bench.dev().map_list(list, Direction::Bidirectional).expect("mapped");
            let total: u64 = mapping.segments().iter().map(|segment| segment.len).sum();
            assert_eq!(total, entries.iter().map(Piece::len).sum::<u64>());
            list = mapping.unmap().expect("hardware that answers");
            assert_eq!(list.entries(), entries);
        }
        assert!(list.into_buffers().all(|buffer| buffer.is_intact()));
        assert_eq!(bench.close(), [""; 0], "{case:?}");
    }
}

fn host(bench: &Bench, flags: MapFlags) -> (Mapping<&granule::dma::Device, Vec<u8>>, Vec<u8>) {
    let data = bytes(fresh_id(), 700);
    let mapping = Mapping::new(bench.dev(), data.clone(), Direction::Bidirectional, flags);
    (mapping.expect("a mapping"), data)
}

/// What the CPU writes during its turn reaches the device, and the other way round.
#[test]
fn turns_carry_data_both_ways() {
    for case in Case::all() {
        let bench = case.bench();
        let (mut mapping, data) = host(&bench, MapFlags::empty());
        let at = mapping.address();
        writes(&bench, "dev", at, b"device");
        let mut turn = mapping.sync_for_cpu(0..700).expect("inside");
        let mut seen = [0; 6];
        turn.read(0, &mut seen).expect("inside");
        assert_eq!(&seen, b"device");
        turn.write(100, b"cpu").expect("inside");
        turn.read(698, &mut seen).expect_err("past the end");
        drop(turn);
        let mut expected = data;
        expected[..6].copy_from_slice(b"device");
        expected[100..103].copy_from_slice(b"cpu");
        reads(&bench, "dev", at, &expected);
        assert_eq!(mapping.unmap().expect("hardware that answers"), expected, "{case:?}");
        // Where the caller syncs by himself, unmap copies nothing back.
        let (mapping, data) = host(&bench, MapFlags::SKIP_CPU_SYNC);
        writes(&bench, "dev", mapping.address(), b"lost");
        assert_eq!(mapping.unmap().expect("hardware that answers"), data);
        // A buffer that the device only writes takes the CPU's words as well.
        let buffer = SimBuffer::new(&case, &bench.machine, 32, 96);
        let before = buffer.contents();
        let mut mapping = bench.dev().map(buffer, Direction::FromDevice).expect("a mapping");
        let mut turn = mapping.sync_for_cpu(0..96).expect("inside");
        turn.write(5, b"words").expect("inside");
        drop(turn);
        let after = mapping.unmap().expect("hardware that answers").contents();
        assert_eq!(
            (&after[..5], &after[5..10], &after[10..]),
            (&before[..5], &b"words"[..], &before[10..])
        );
        assert_eq!(bench.close(), [""; 0]);
    }
}
