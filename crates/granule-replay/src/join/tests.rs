//! What is joined, and what is found, in traces made by hand.

use std::io::Cursor;

use super::*;
use crate::reader::{Input, Reader};

/// Lines of events of one device, `line N` being the N-th.
fn join(events: &[&str]) -> (Vec<OpKind>, Findings, Vec<Vec<Counts>>) {
    let text: String =
        events.iter().map(|event| format!(" t-1 [000] ..... 1.0: {event}\n")).collect();
    let mut reader = Reader::new(Input::new(Cursor::new(text)).expect("text"));
    let (mut joiner, mut findings, mut ops) = (Joiner::new(), Findings::default(), Vec::new());
    while let Some(event) = reader.next_event().expect("readable") {
        joiner.know(reader.devices());
        ops.extend(joiner.join(event, &mut findings).map(|op| op.kind));
    }
    assert_eq!(reader.stats().damaged, 0);
    joiner.finish(&mut findings);
    (ops, findings, joiner.into_counts())
}

fn map(dma: u64, size: u64) -> String {
    format!("dma_map_page: d dir=TO_DEVICE dma_addr={dma:x} size={size} phys_addr=5000 attrs=")
}

fn unmap(dma: u64, size: u64) -> String {
    format!("dma_unmap_page: d dir=TO_DEVICE dma_addr={dma:x} size={size} attrs=")
}

fn kinds(findings: &Findings) -> Vec<(FindingKind, u64, Option<u64>)> {
    findings.list().iter().map(|found| (found.kind, found.line, found.earlier)).collect()
}

#[test]
fn a_mapping_ends_once() {
    let (map, unmap) = (map(0x1000, 64), unmap(0x1000, 64));
    let (ops, findings, counts) = join(&[&map, &unmap, &unmap, &map]);
    assert_eq!(ops[1], OpKind::End { key: 1 });
    assert_eq!(ops[2], OpKind::Nothing);
    let expected = [(FindingKind::DoubleUnmap, 3, Some(2)), (FindingKind::NeverUnmapped, 4, None)];
    assert_eq!(kinds(&findings), expected);
    let count = counts[0][0];
    assert_eq!(
        (count.map, count.unmap, count.mapped_bytes, count.unmapped_bytes),
        (2, 2, 128, 128)
    );
}

#[test]
fn what_contradicts_is_found() {
    let other_dir = "dma_unmap_page: d dir=FROM_DEVICE dma_addr=2000 size=9 attrs=";
    let events = [
        &*unmap(0x1000, 64),
        &*map(0x1000, 64),
        &*map(0x1000, 64),
        &*unmap(0x1000, 32),
        &*unmap(0x1000, 64),
        &*map(0x2000, 9),
        other_dir,
    ];
    let (ops, findings, _) = join(&events);
    let expected = [
        (FindingKind::Unmatched, 1, None),
        (FindingKind::Reused, 3, Some(2)),
        (FindingKind::OtherSize, 4, Some(2)),
        (FindingKind::OtherDirection, 7, Some(6)),
    ];
    assert_eq!(kinds(&findings), expected);
    // The oldest ends first.
    assert_eq!((&ops[3], &ops[4]), (&OpKind::End { key: 1 }, &OpKind::End { key: 2 }));
}

#[test]
fn lists_are_known_by_their_memory() {
    let list = "dma_map_sg: d dir=FROM_DEVICE nents=2/2 ents=1/1 dma_addrs={0x8e00} sizes={0x300} phys_addrs={0x5e00,0x9000} attrs=";
    let runs = [
        "map: IOMMU: iova=0x8000 - 0x9000 paddr=0x5000 size=4096",
        "map: IOMMU: iova=0x9000 - 0xa000 paddr=0x9000 size=4096",
    ];
    let end = "dma_unmap_sg: d dir=FROM_DEVICE phys_addrs={0x5e00,0x9000} attrs=";
    let other = "dma_unmap_sg: d dir=FROM_DEVICE phys_addrs={0x5e00,0xa000} attrs=";
    let sync = "dma_sync_sg_for_cpu: d dir=FROM_DEVICE dma_addrs={0x8e00} sizes={0x300}";
    let (ops, findings, counts) = join(&[runs[0], runs[1], list, sync, end, other, sync]);
    let entries = vec![(0x5e00, 0x200), (0x9000, 0x100)];
    assert_eq!(ops[0], OpKind::MapList { key: 1, entries, dir: Direction::FromDevice });
    assert_eq!(ops[1], OpKind::SyncList { key: 1, turn: Turn::Cpu });
    assert_eq!(ops[2], OpKind::End { key: 1 });
    let expected = [(FindingKind::DoubleUnmap, 6, Some(5)), (FindingKind::StraySync, 7, None)];
    assert_eq!(kinds(&findings), expected);
    let count = counts[0][0];
    assert_eq!((count.map_sg, count.sg_entries, count.sg_segments), (1, 2, 1));
    assert_eq!((count.mapped_bytes, count.unmapped_bytes), (0x300, 0x300));
}

#[test]
fn devices_have_their_own_addresses() {
    let other = map(0x1000, 64).replace(": d ", ": e ");
    let (ops, findings, counts) = join(&[&map(0x1000, 64), &other, &unmap(0x1000, 64)]);
    assert_eq!(ops[2], OpKind::End { key: 1 });
    assert_eq!(kinds(&findings), [(FindingKind::NeverUnmapped, 2, None)]);
    assert_eq!(counts.len(), 2);
}

#[test]
fn a_sync_may_be_of_a_part() {
    let sync = "dma_sync_single_for_cpu: d dir=TO_DEVICE dma_addr=1010 size=16";
    let beyond = "dma_sync_single_for_cpu: d dir=TO_DEVICE dma_addr=1030 size=32";
    let (ops, findings, _) = join(&[&map(0x1000, 64), sync, beyond]);
    assert_eq!(ops[1], OpKind::Sync { key: 1, offset: 16, len: 16, turn: Turn::Cpu });
    assert_eq!(findings.count(FindingKind::StraySync), 1);
}

#[test]
fn coherent_memory_is_not_streaming_memory() {
    let alloc =
        "dma_alloc: d dir=BIDIRECTIONAL dma_addr=1000 size=512 virt_addr=0 flags=GFP_KERNEL attrs=";
    let free = "dma_free: d dir=BIDIRECTIONAL dma_addr=1000 size=512 virt_addr=0 attrs=";
    let (ops, findings, counts) = join(&[alloc, &unmap(0x1000, 512), free]);
    assert_eq!(ops[0], OpKind::Alloc { key: 1, len: 512, contiguous: false });
    assert_eq!(ops[2], OpKind::End { key: 1 });
    assert_eq!(kinds(&findings), [(FindingKind::Unmatched, 2, None)]);
    assert_eq!((counts[0][0].allocated_bytes, counts[0][0].freed_bytes), (512, 512));
}
