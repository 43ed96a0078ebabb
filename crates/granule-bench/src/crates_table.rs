//! The page-table workloads on other crates: 4 KiB pages, no concurrency, no TLB work.

use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Instant;

use aarch64_paging::descriptor::{Descriptor, El1Attributes, PhysicalAddress};
use aarch64_paging::paging::{
    Constraints, El1And0, MemoryRegion, PageTable, RootTable, Translation, VaRange,
};
use granule::addr::{PhysAddr, PhysRange};
use granule::mem::{FrameRequest, Platform};
use page_table_multiarch as multiarch;
use x86_64::structures::paging::{self as x86, Mapper, Translate};

use crate::measure::{Bench, Rng, Sample};
use crate::platform::Machine;
use crate::report::Row;

const IOVA: usize = 0x4000_0000;
const PHYS: usize = 0x4_0000_0000;
const PAGE: usize = 4096;
const GIB: usize = 1 << 30;

/// A table of 4 KiB pages.
trait Pages {
    fn create() -> Self;
    fn map(&mut self, iova: usize, phys: usize, pages: usize);
    fn unmap(&mut self, iova: usize, pages: usize);
    fn find(&self, iova: usize) -> usize;
}

/// A frame from our machine, named by its CPU address: these crates get an identity map.
fn frame(zeroed: bool) -> usize {
    let frames = Machine.alloc_frames(&FrameRequest::new(4096, 4096)).expect("memory");
    let ptr = Machine.ptr(frames.start());
    if zeroed {
        // SAFETY: the frame is ours and that long.
        unsafe { ptr.write_bytes(0, PAGE) };
    }
    ptr.expose_provenance()
}

/// # Safety
/// `at` came from [`frame`] and is not used any more.
unsafe fn give_back(at: usize) {
    let phys = Machine.phys(std::ptr::with_exposed_provenance(at), PAGE).expect("a frame of ours");
    let range = PhysRange::new(PhysAddr::new(phys.start().raw()), PAGE as u64).expect("a range");
    // SAFETY: the caller's promise.
    unsafe { Machine.free_frames(range) };
}

#[derive(Clone)]
struct Identity;

impl Translation<El1Attributes> for Identity {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El1Attributes>>, PhysicalAddress) {
        let at = frame(true);
        let ptr = std::ptr::with_exposed_provenance_mut(at);
        (NonNull::new(ptr).expect("not null"), PhysicalAddress(at))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<El1Attributes>>) {
        // SAFETY: the caller's promise.
        unsafe { give_back(table.as_ptr().addr()) };
    }

    fn physical_to_virtual(&self, at: PhysicalAddress) -> NonNull<PageTable<El1Attributes>> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(at.0)).expect("not null")
    }
}

struct Aarch64(RootTable<El1And0, Identity>);

impl Aarch64 {
    fn set(&mut self, iova: usize, phys: usize, pages: usize, flags: El1Attributes) {
        let region = MemoryRegion::new(iova, iova + pages * PAGE);
        let only_pages = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
        self.0.map_range(&region, PhysicalAddress(phys), flags, only_pages).expect("mapped");
    }
}

impl Pages for Aarch64 {
    fn create() -> Self {
        Self(RootTable::with_va_range(Identity, 0, El1And0, VaRange::Lower))
    }

    fn map(&mut self, iova: usize, phys: usize, pages: usize) {
        let flags = El1Attributes::VALID
            | El1Attributes::ATTRIBUTE_INDEX_1
            | El1Attributes::INNER_SHAREABLE
            | El1Attributes::ACCESSED
            | El1Attributes::NON_GLOBAL;
        self.set(iova, phys, pages, flags);
    }

    /// By less than a table at a time, so that tables stay as they do with the others.
    fn unmap(&mut self, iova: usize, pages: usize) {
        let mut at = iova;
        let end = iova + pages * PAGE;
        while at < end {
            let to_table_end = 512 - at / PAGE % 512;
            let count = ((end - at) / PAGE).min(511).min(to_table_end);
            self.set(at, 0, count, El1Attributes::empty());
            at += count * PAGE;
        }
    }

    fn find(&self, iova: usize) -> usize {
        let mut found = 0;
        let mut look = |_: &MemoryRegion, entry: &Descriptor<El1Attributes>, level: usize| {
            if level == 3 {
                found = entry.output_address().0 + iova % PAGE;
            }
            Ok(())
        };
        self.0.walk_range(&MemoryRegion::new(iova, iova + 1), &mut look).expect("a walk");
        found
    }
}

struct Meta;

impl multiarch::PagingMetaData for Meta {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 48;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = memory_addr::VirtAddr;

    #[inline]
    fn flush_tlb(_: Option<Self::VirtAddr>) {}
}

struct Handler;

impl multiarch::PagingHandler for Handler {
    fn alloc_frames(_: usize, _: usize) -> Option<memory_addr::PhysAddr> {
        Some(frame(false).into())
    }

    fn dealloc_frames(at: memory_addr::PhysAddr, _: usize) {
        // SAFETY: the crate gives back what it took.
        unsafe { give_back(at.as_usize()) };
    }

    #[inline]
    fn phys_to_virt(at: memory_addr::PhysAddr) -> memory_addr::VirtAddr {
        at.as_usize().into()
    }
}

type Table = multiarch::PageTable64<Meta, page_table_entry::x86_64::X64PTE, Handler>;
struct Multiarch(Table);

impl Pages for Multiarch {
    fn create() -> Self {
        Self(Table::try_new().expect("memory"))
    }

    fn map(&mut self, iova: usize, phys: usize, pages: usize) {
        use page_table_entry::MappingFlags;
        let flags = MappingFlags::READ | MappingFlags::WRITE;
        let place = |at: memory_addr::VirtAddr| (at.as_usize() - iova + phys).into();
        self.0.cursor().map_region(iova.into(), place, pages * PAGE, flags, false).expect("mapped");
    }

    fn unmap(&mut self, iova: usize, pages: usize) {
        self.0.cursor().unmap_region(iova.into(), pages * PAGE).expect("unmapped");
    }

    fn find(&self, iova: usize) -> usize {
        self.0.query(iova.into()).expect("mapped").0.as_usize()
    }
}

struct Frames;

// SAFETY: each frame is handed out once.
unsafe impl x86::FrameAllocator<x86::Size4KiB> for Frames {
    #[inline]
    fn allocate_frame(&mut self) -> Option<x86::PhysFrame> {
        Some(x86::PhysFrame::containing_address(x86_64::PhysAddr::new(frame(false) as u64)))
    }
}

struct X86(x86::OffsetPageTable<'static>);

impl X86 {
    fn pages(iova: usize, pages: usize) -> impl Iterator<Item = x86::Page<x86::Size4KiB>> {
        (0..pages).map(move |n| {
            x86::Page::containing_address(x86_64::VirtAddr::new((iova + n * PAGE) as u64))
        })
    }
}

impl Pages for X86 {
    fn create() -> Self {
        let root = std::ptr::with_exposed_provenance_mut::<x86::PageTable>(frame(true));
        // SAFETY: a zeroed frame that lives for ever is an empty table, and frames are mapped at
        // their own addresses.
        Self(unsafe { x86::OffsetPageTable::new(&mut *root, x86_64::VirtAddr::new(0)) })
    }

    fn map(&mut self, iova: usize, phys: usize, pages: usize) {
        let flags = x86::PageTableFlags::PRESENT | x86::PageTableFlags::WRITABLE;
        for (n, page) in Self::pages(iova, pages).enumerate() {
            let at = x86_64::PhysAddr::new((phys + n * PAGE) as u64);
            let to = x86::PhysFrame::containing_address(at);
            // SAFETY: nothing ever runs on this table.
            unsafe { self.0.map_to(page, to, flags, &mut Frames) }.expect("mapped").ignore();
        }
    }

    fn unmap(&mut self, iova: usize, pages: usize) {
        Self::pages(iova, pages).for_each(|page| self.0.unmap(page).expect("mapped").1.ignore());
    }

    fn find(&self, iova: usize) -> usize {
        let found = self.0.translate_addr(x86_64::VirtAddr::new(iova as u64));
        found.map_or(0, |at| at.as_u64() as usize)
    }
}

/// All rows of all crates. They stand beside the rows of format lpae4k, whose tables are as large.
pub fn run(bench: &mut Bench) {
    if bench.wants("table/lpae4k/") {
        rows::<Aarch64>(bench, "aarch64-paging");
        rows::<Multiarch>(bench, "page_table_multiarch");
        rows::<X86>(bench, "x86_64");
    }
}

fn rows<T: Pages>(bench: &mut Bench, by: &str) {
    let mut table = T::create();
    for pages in [1, 16, 512] {
        let (mut mapped, mut unmapped) = (Vec::new(), Vec::new());
        for _ in 0..bench.samples() {
            let (map, unmap) = pieces(&mut table, pages);
            mapped.push(map);
            unmapped.push(unmap);
        }
        enter(bench, by, &format!("map/{pages}"), mapped);
        enter(bench, by, &format!("unmap/{pages}"), unmapped);
    }
    let (mut mapped, mut unmapped) = (Vec::new(), Vec::new());
    for _ in 0..if bench.quick { 3 } else { 15 } {
        let begin = Instant::now();
        table.map(IOVA, PHYS, GIB / PAGE);
        mapped.push(begin.elapsed().as_nanos() as f64 / (GIB / PAGE) as f64);
        let begin = Instant::now();
        table.unmap(IOVA, GIB / PAGE);
        unmapped.push(begin.elapsed().as_nanos() as f64 / (GIB / PAGE) as f64);
    }
    enter(bench, by, "map/1G", mapped);
    enter(bench, by, "unmap/1G", unmapped);
    find(bench, by, &mut table);
}

fn enter(bench: &mut Bench, by: &str, what: &str, times: Vec<f64>) {
    let name = format!("table/lpae4k/{what}");
    if bench.wants(&name) {
        bench.enter(Row::new(by, &name, Sample::of(times)));
    }
}

fn pieces<T: Pages>(table: &mut T, pages: usize) -> (f64, f64) {
    let (total, repeat) = (2048, 8);
    let (mut mapped, mut unmapped) = (0, 0);
    for _ in 0..repeat {
        let begin = Instant::now();
        for n in (0..total).step_by(pages) {
            table.map(IOVA + n * PAGE, PHYS + n * PAGE, pages);
        }
        mapped += begin.elapsed().as_nanos();
        let begin = Instant::now();
        for n in (0..total).step_by(pages) {
            table.unmap(IOVA + n * PAGE, pages);
        }
        unmapped += begin.elapsed().as_nanos();
    }
    let ops = (total * repeat) as f64;
    (mapped as f64 / ops, unmapped as f64 / ops)
}

fn find<T: Pages>(bench: &mut Bench, by: &str, table: &mut T) {
    table.map(IOVA, PHYS, GIB / PAGE);
    assert_eq!(table.find(IOVA + 5 * PAGE + 8), PHYS + 5 * PAGE + 8);
    let (mut sequential, mut random) = (Vec::new(), Vec::new());
    for _ in 0..if bench.quick { 3 } else { 15 } {
        let begin = Instant::now();
        black_box((0..GIB / PAGE).fold(0, |sum, n| sum ^ table.find(IOVA + n * PAGE + 8)));
        sequential.push(begin.elapsed().as_nanos() as f64 / (GIB / PAGE) as f64);
        let mut rng = Rng::new(5);
        let begin = Instant::now();
        let next =
            |sum, _| sum ^ table.find(IOVA + (rng.next() as usize >> 20) % (GIB / PAGE) * PAGE);
        black_box((0..100_000).fold(0, next));
        random.push(begin.elapsed().as_nanos() as f64 / 100_000.0);
    }
    enter(bench, by, "resolve", sequential);
    enter(bench, by, "resolve/random", random);
}
