//! The reader on good, packed and damaged text.

use std::io::{Cursor, Write as _};

use granule::addr::Direction;
use proptest::prelude::*;

use super::*;

const GOOD: &str = "\
# tracer: nop
 init-1 [000] ..... 9.2: tracing_mark_write: == drivers probe
 lab-336 [000] ..... 15.3: map: IOMMU: iova=0x00000000fff9e000 - 0x00000000fff9f000 paddr=0x000000000c7c1000 size=4096
 lab-336 [000] ..... 15.4: dma_map_sg: 0000:00:01.0 dir=FROM_DEVICE nents=2/2 ents=1/1 dma_addrs={0xfff9ee00} sizes={0x1000} phys_addrs={0xc7c1e00,0xc7ce000} attrs=NO_WARN
 lab-336 [000] ..... 15.5: qi_submit: iotlb_inv dmar0: 0x300f2 0xffffd040 0x0 0x0
 lab-336 [000] d.h1. 15.6: dma_unmap_sg: 0000:00:01.0 dir=FROM_DEVICE phys_addrs={0xc7c1e00,0xc7ce000} attrs=
 broken
 lab-336 [000] ..... 15.7: dma_map_page: 0000:00:01.0 dir=SIDEWAYS dma_addr=ffffd000 size=1 phys_addr=0 attrs=
 lab-336 [000] ..... 15.8: dma_map_page: 0000:00:02.0 dir=TO_DEVICE dma_addr=ffffd000 size=8 phys_addr=8eea000 attrs=
";

fn read(bytes: Vec<u8>) -> (Vec<Event>, Reader) {
    let mut reader = Reader::new(Input::new(Cursor::new(bytes)).expect("text"));
    let mut events = Vec::new();
    while let Some(event) = reader.next_event().expect("readable") {
        events.push(event);
    }
    (events, reader)
}

#[test]
fn events_are_read_and_the_rest_is_counted() {
    let (events, reader) = read(GOOD.into());
    assert_eq!(reader.devices(), ["0000:00:01.0", "0000:00:02.0"]);
    assert_eq!(events.iter().map(|event| event.line).collect::<Vec<_>>(), [2, 3, 4, 6, 9]);
    assert_eq!(events[0].kind, EventKind::Phase("drivers probe".into()));
    let (iova, phys) = (0xfff9_e000, 0xc7c_1000);
    assert_eq!(events[1].kind, EventKind::IommuMap { iova, phys, size: 4096 });
    let phys = vec![0xc7c_1e00, 0xc7c_e000];
    let dir = Direction::FromDevice;
    let (dma, sizes) = (vec![0xfff9_ee00], vec![0x1000]);
    let list = EventKind::MapSg {
        device: 0,
        dir,
        entries: 2,
        segments: 1,
        dma,
        sizes,
        phys: phys.clone(),
    };
    assert_eq!(events[2].kind, list);
    assert_eq!(events[3].kind, EventKind::UnmapSg { device: 0, dir, phys });
    assert_eq!((events[3].context, events[3].time), ((336, true), 15_600_000_000));
    let stats = reader.stats();
    assert_eq!((stats.damaged, &*stats.damaged_lines), (2, &[7, 8][..]));
    assert_eq!((stats.events, stats.dma_events, stats.skipped["qi_submit"]), (6, 3, 1));
}

#[test]
fn a_number_with_a_sign_is_damage() {
    let line = |iova, size| {
        format!(
            "  swapper/0-1  [000] .....  9.393148: map: IOMMU: iova={iova} - 0x0 paddr=0x1000 \
             size={size}\n"
        )
    };
    for (iova, size, damaged) in
        [("0x1000", "4096", 0), ("0x+1000", "4096", 1), ("0x1000", "+4096", 1)]
    {
        let (events, reader) = read(line(iova, size).into());
        assert_eq!(
            (events.len() as u64, reader.stats().damaged),
            (1 - damaged, damaged),
            "{iova} {size}"
        );
    }
}

#[test]
fn packed_text_is_the_same_text() {
    let plain = read(GOOD.into()).0;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(GOOD.as_bytes()).expect("memory");
    assert_eq!(read(gzip.finish().expect("memory")).0, plain);
    // Two frames one after the other, as `cat a.zst b.zst` makes them.
    let half = GOOD.find(" lab-336").expect("a line");
    let pack = |text: &str| zstd::encode_all(text.as_bytes(), 1).expect("packed");
    let mut zstd = pack(&GOOD[..half]);
    zstd.extend(pack(&GOOD[half..]));
    assert_eq!(read(zstd).0, plain);
}

#[test]
fn binary_files_are_named() {
    for (head, tool) in [(&b"\x17\x08Dtracing6\0"[..], "trace-cmd"), (b"PERFILE2hhhhhhhhh", "perf")]
    {
        match Input::new(Cursor::new(head.to_vec())) {
            Err(ReplayError::Binary { tool: found, .. }) => assert_eq!(found, tool),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_line_without_end_takes_no_memory() {
    let mut reader = Reader::new(Input::new(io::repeat(b'x').take(1 << 22)).expect("text"));
    assert_eq!(reader.next_event().expect("readable"), None);
    assert!(reader.buffer.capacity() <= 2 * MAX_LINE + 4096);
    assert_eq!((reader.stats().damaged, reader.stats().bytes), (1, 1 << 22));
}

use std::io::Read as _;

proptest! {
    /// Any change of any bytes: no panic, every line is accounted for.
    #[test]
    fn damage_is_survived(at in 0..GOOD.len(), len in 0usize..40, with in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut bytes = GOOD.as_bytes().to_vec();
        let end = (at + len).min(bytes.len());
        bytes.splice(at..end, with);
        let lines = bytes.split(|byte| *byte == b'\n').count() as u64;
        let (events, reader) = read(bytes);
        let stats = reader.stats();
        prop_assert!(stats.lines <= lines);
        prop_assert!(events.len() as u64 <= stats.events + stats.lost);
        prop_assert!(stats.events + stats.damaged <= stats.lines);
    }
}
