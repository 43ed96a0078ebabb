//! A domain on a kernel of our own, which counts mappings, takes them back only whole, and fails on
//! request.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use granule::addr::Direction;
use granule::dma::{Device, DeviceSpec, ScatterList};
use granule::domain::{Domain, DomainConfig, Placement, Reserved};
use granule::mem::{FrameRequest, OwnedFrames};
use granule::share::Plan;

use super::*;
use crate::vfio::range;

#[derive(Default)]
struct Shared {
    /// What is mapped: address, length and rights by IOVA.
    mapped: Mutex<BTreeMap<u64, (u64, u64, Access)>>,
    /// How many maps succeed before one fails, once.
    until_failure: Mutex<Option<(usize, Errno)>>,
    maps: AtomicUsize,
}

struct FakeKernel(Arc<Shared>);

impl Kernel for FakeKernel {
    fn limits(&self) -> io::Result<Limits> {
        let ranges = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];
        Ok(Limits {
            ranges: ranges.into_iter().filter_map(range).collect(),
            page_sizes: PageSizes::from_bits(0x4020_1000),
            alignment: 0x1000,
            mappings_left: Some(65_535 - self.0.mapped.lock().len() as u64),
        })
    }

    unsafe fn map(&self, iova: u64, address: u64, len: u64, access: Access) -> io::Result<()> {
        let mut failure = self.0.until_failure.lock();
        match *failure {
            Some((0, errno)) => {
                *failure = None;
                return Err(errno.into());
            }
            Some((left, errno)) => *failure = Some((left - 1, errno)),
            None => {}
        }
        self.0.maps.fetch_add(1, Ordering::Relaxed);
        let mut mapped = self.0.mapped.lock();
        let overlaps =
            mapped.range(..iova + len).next_back().is_some_and(|(at, (_, l, _))| at + l > iova);
        assert!(!overlaps, "{iova:#x}+{len:#x} is mapped already");
        mapped.insert(iova, (address, len, access));
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let mut mapped = self.0.mapped.lock();
        match mapped.get(&iova) {
            Some((_, whole, _)) if *whole == len => {
                mapped.remove(&iova);
                Ok(())
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn mapping_limit(&self) -> Option<u64> {
        Some(65_535)
    }
}

struct FakeMaster {
    quiet: AtomicBool,
    obeys: bool,
}

impl Master for FakeMaster {
    fn silence(&self) -> bool {
        self.quiet.store(self.obeys, Ordering::Relaxed);
        self.obeys
    }
}

struct Bench {
    shared: Arc<Shared>,
    domain: Arc<Domain<UserMemory, AddressSpace>>,
    master: Arc<FakeMaster>,
    device: Device,
}

fn bench_with(name: &str, obeys: bool) -> Bench {
    let shared = Arc::new(Shared::default());
    let kernel = FakeKernel(shared.clone());
    let limits = kernel.limits().expect("limits");
    let sysfs = Sysfs::new(Path::new("/nowhere"));
    let memory = UserMemory::new();
    let space = AddressSpace::new(Box::new(kernel), "fake".into(), &limits, memory, sysfs);
    let space = space.expect("a space");
    let reserved = space.holes().into_iter().map(Reserved::hole).collect();
    let config = DomainConfig { reserved, ..DomainConfig::default() };
    let domain = Domain::new(&memory, space, &config).expect("a domain");
    let master = Arc::new(FakeMaster { quiet: AtomicBool::new(false), obeys });
    domain.translation().admit(7, master.clone());
    let device = domain.attach(DeviceSpec::new(name), &[Stream::new(7)], None).expect("attached");
    Bench { shared, domain, master, device }
}

fn bench(name: &str) -> Bench {
    bench_with(name, true)
}

#[test]
fn two_spaces_share_one_buffer_with_one_mapping_each() {
    let (a, b) = (bench("a"), bench("b"));
    let plan = Plan::new(8 << 20).device(&a.device, Access::all()).device(&b.device, Access::READ);
    let shared = plan.solve().expect("solved").allocate().expect("allocated");
    let start = shared.blocks()[0].start().raw();
    for (side, rights) in [(&a, Access::all()), (&b, Access::READ)] {
        let range = shared.range_of(&side.device).expect("a range");
        let mapped = side.shared.mapped.lock().clone();
        assert_eq!(mapped.len(), 1, "adjoining blocks are one mapping");
        assert_eq!(mapped[&range.address().raw()], (start, 8 << 20, rights));
        assert_eq!(side.domain.translation().mappings_left(), Some(65_534));
    }
    shared.write(5 << 20, b"granule").expect("inside");
    let pointer = core::ptr::with_exposed_provenance::<u8>(start as usize + (5 << 20));
    // SAFETY: inside the buffer, which lives.
    assert_eq!(unsafe { core::slice::from_raw_parts(pointer, 7) }, b"granule");
    shared.free().expect("freed");
    assert!(a.shared.mapped.lock().is_empty() && b.shared.mapped.lock().is_empty());
}

#[test]
fn nothing_is_placed_in_a_hole() {
    let bench = bench("a");
    let holes = bench.domain.translation().holes();
    assert_eq!(holes, [range((0xfee0_0000, 0xfeef_ffff)).expect("legal")]);
    // As much as fits below 4 GiB: whatever the allocator does, it meets the hole.
    let (memory, size) = (UserMemory::new(), 16 << 20);
    let frames = OwnedFrames::new(&memory, &FrameRequest::new(size, 4096)).expect("memory");
    let window = range((0x10_0000, 0xffff_ffff)).expect("legal");
    let place = Placement { size, align: 4096, window, guard: false, at: None };
    let attrs = Attributes::memory(Access::READ);
    let mut mapped = Vec::new();
    // SAFETY: the frames are ours, live longer than the mappings, and nobody uses them.
    while let Ok(next) = unsafe { bench.domain.map(&place, frames.range(), attrs, None) } {
        let start = next.range.start().raw();
        assert!(start + size <= 0xfee0_0000 || start >= 0xfef0_0000, "{start:#x}");
        mapped.push(next);
    }
    assert!(mapped.len() > 250, "{}", mapped.len());
    for one in mapped {
        // SAFETY: mapped above, and ended once.
        unsafe { bench.domain.unmap(&one) }.expect("unmapped");
    }
    assert!(bench.shared.mapped.lock().is_empty());
}

#[test]
fn a_heap_buffer_goes_to_the_device_and_comes_back() {
    let bench = bench("a");
    let mapping = bench.device.map(vec![3u8; 5000], Direction::ToDevice).expect("mapped");
    let (iova, (address, len, access)) =
        bench.shared.mapped.lock().iter().next().map(|(iova, m)| (*iova, *m)).expect("mapped");
    assert_eq!(access, Access::READ);
    assert_eq!(mapping.address().raw() - iova, mapping.address().raw() & 0xfff);
    assert_eq!((address | len) & 0xfff, 0);
    assert_eq!(mapping.unmap().expect("unmapped"), vec![3u8; 5000]);
    assert!(bench.shared.mapped.lock().is_empty());
}

#[test]
fn a_list_that_fails_in_the_middle_leaves_nothing() {
    let bench = bench("a");
    let buffers = || ScatterList::new((0..6).map(|n| vec![n as u8; 20_000 + n * 4096]));
    drop(bench.device.map_list(buffers(), Direction::Bidirectional).expect("mapped"));
    let maps = bench.shared.maps.load(Ordering::Relaxed);
    assert!(maps > 1, "the list takes several mappings");
    let before = bench.device.domain_stats().expect("translated").iova_bytes;
    for k in 0..maps {
        *bench.shared.until_failure.lock() = Some((k, Errno::NOMEM));
        let refused = bench.device.map_list(buffers(), Direction::Bidirectional);
        assert!(refused.is_err(), "map {k} of {maps} failed");
        assert!(bench.shared.mapped.lock().is_empty(), "after failure {k}");
        assert_eq!(bench.device.domain_stats().expect("translated").iova_bytes, before);
    }
}

/// The same without a domain above it, which would clean up too.
#[test]
fn a_failed_list_is_undone_by_the_space_itself() {
    let bench = bench("a");
    let space = bench.domain.translation();
    let request = FrameRequest::new(6 * 4096, 4096);
    let frames = OwnedFrames::new(&UserMemory::new(), &request).expect("memory");
    let piece = |index: u64| frames.range().slice(2 * index * 4096, 4096).expect("inside");
    let attrs = Attributes::memory(Access::READ);
    for k in 0..3 {
        *bench.shared.until_failure.lock() = Some((k, Errno::NOMEM));
        // SAFETY: the addresses are nobody's, and the frames outlive the space's mappings.
        let mapped = unsafe { space.map_list(Iova::new(0x40_0000), (0..3).map(piece), attrs) };
        assert!(matches!(mapped, Err(TranslationError::Backend { code: 12, .. })), "{mapped:?}");
        assert!(bench.shared.mapped.lock().is_empty(), "after failure {k}");
        assert_eq!(space.mappings(), 0, "after failure {k}");
    }
}

#[test]
fn refusals_are_in_words_with_numbers() {
    let bench = bench("a");
    let refuse = |errno| {
        *bench.shared.until_failure.lock() = Some((0, errno));
        let refused = bench.device.alloc_coherent(4096).expect_err("refused");
        refused.to_string()
    };
    assert!(refuse(Errno::NOSPC).contains("all 65535 mappings of this VFIO container"));
    assert!(refuse(Errno::FAULT).contains("cannot be pinned"));
    let locked = LockedMemory { limit: Some(8 << 20), locked: 1 << 20, exempt: false };
    let words = no_memory(&locked, 8 << 20);
    assert!(
        words.contains("RLIMIT_MEMLOCK is 8192 KiB") && words.contains("`ulimit -l 9216`"),
        "{words}"
    );
    let exempt = no_memory(&LockedMemory { exempt: true, ..locked }, 8 << 20);
    assert!(exempt.contains("no memory to pin"), "{exempt}");
}

#[test]
fn a_part_of_a_mapping_is_not_unmapped() {
    let bench = bench("a");
    let coherent = bench.device.alloc_coherent(0x4000).expect("allocated");
    let part = IovaRange::new(Iova::new(coherent.address().raw()), 0x1000).expect("legal");
    let space = bench.domain.translation();
    // SAFETY: the range is refused, and stays mapped.
    let cut = unsafe { space.unmap(part, Hint::NONE) };
    assert!(matches!(cut, Err(TranslationError::Table(TableError::CutsPage { .. }))));
    let found = space.resolve(Iova::new(part.start().raw() + 0x1234)).expect("still mapped");
    let pointer = coherent.as_ptr().expect("a pointer").as_ptr().expose_provenance() as u64;
    assert_eq!(found.phys.raw(), pointer + 0x1234);
    assert_eq!(space.mapped_bytes(part), 0x1000);
    let longer = IovaRange::new(part.start(), 0x8000).expect("legal");
    assert_eq!(space.mapped_bytes(longer), 0x4000);
}

#[test]
fn a_device_that_leaves_is_silenced() {
    let Bench { master, device, .. } = bench("a");
    assert!(!master.quiet.load(Ordering::Relaxed));
    device.detach().expect("detached");
    assert!(master.quiet.load(Ordering::Relaxed));
    let stuck = bench_with("b", false);
    stuck.device.detach().expect("detached");
    assert!(stuck.domain.is_poisoned(), "it may still make DMA");
}

#[test]
fn more_devices_may_not_take_addresses_away() {
    let bench = bench("a");
    let space = bench.domain.translation();
    let mut limits = space.limits().expect("limits");
    assert_eq!(space.lost(&limits), None);
    limits.ranges = [(0, 0xffff_ffff_ffff)].into_iter().filter_map(range).collect();
    assert_eq!(space.lost(&limits), None, "more is no loss");
    limits.ranges = [(0, 0xfedf_ffff)].into_iter().filter_map(range).collect();
    assert_eq!(space.lost(&limits), range((0xfef0_0000, 0xffff_ffff_ffff)));
}
