//! The simulated machine as the core sees it: an implementation of [`Platform`].
//!
//! The unsafe code of this file is the implementation of that unsafe trait.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use granule::addr::{Direction, Granule, PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, Platform};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::frames::{Frames, POISON_LIMIT};
use crate::memory::Memory;
use crate::ram::View;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static CPU: Cell<Option<usize>> = const { Cell::new(None) };
}

/// What a simulated machine's processors are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// The CPU's page.
    pub page: Granule,
    /// The cache line in bytes.
    pub line: usize,
    /// How many CPUs there are.
    pub cpus: usize,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { page: Granule::K4, line: 64, cpus: 4 }
    }
}

#[derive(Debug)]
struct Inner {
    memory: Memory,
    frames: Arc<Frames>,
    clock: Clock,
    config: CpuConfig,
    views: Mutex<BTreeMap<usize, Mapped>>,
}

#[derive(Debug)]
struct Mapped {
    view: View,
    uncached: bool,
}

/// A handle to a simulated machine; clones are the same machine.
#[derive(Clone, Debug)]
pub struct SimPlatform {
    inner: Arc<Inner>,
}

impl SimPlatform {
    /// The platform of these parts.
    pub fn new(memory: Memory, frames: Arc<Frames>, clock: Clock, config: CpuConfig) -> Self {
        let views = Mutex::new(BTreeMap::new());
        let config = CpuConfig { cpus: config.cpus.max(1), ..config };
        Self { inner: Arc::new(Inner { memory, frames, clock, config, views }) }
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// The frame allocator.
    pub fn frames(&self) -> &Frames {
        &self.inner.frames
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// How many contiguous CPU views ([`Platform::map_cpu`]) are live.
    pub fn views(&self) -> usize {
        self.inner.views.lock().len()
    }

    /// From now on this thread is CPU `cpu` (modulo their number) of every machine. Threads that do
    /// not say are numbered in the order in which they ask.
    pub fn set_cpu(cpu: usize) {
        CPU.set(Some(cpu));
    }
}

// SAFETY: frames come from an allocator over real, mapped RAM that hands out a block once until it
// is freed, aligned and inside the window; `ptr` and `phys` are the two directions of one mapping
// that lives as long as any clone; RAM's pages do not move; cache maintenance acts before it
// returns; `cpu` is reduced modulo `cpus`.
unsafe impl Platform for SimPlatform {
    type Lock = parking_lot::RawMutex;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        let frames = self.inner.frames.alloc(request)?;
        if let Some(cache) = self.inner.memory.cache() {
            cache.track(frames);
        }
        Ok(frames)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        // While the allocator still holds the block: its next owner must find it untracked.
        if let (Some(cache), true) = (self.inner.memory.cache(), self.inner.frames.is_live(&frames))
        {
            cache.untrack(frames);
        }
        // A wrong free is recorded there; a destructor is no place to panic.
        let _ = self.inner.frames.free(frames);
    }

    /// Large blocks are given back to the host, whose pages read as zero until they are written: a
    /// coherent buffer of gigabytes takes no memory before it is used.
    unsafe fn zero_frames(&self, frames: PhysRange) {
        let ram = self.inner.memory.ram();
        let given_back = frames.len() > POISON_LIMIT && ram.discard(frames).is_ok();
        if !given_back {
            // Fails outside RAM only, where no frames are.
            let _ = ram.fill(frames, 0);
        }
    }

    /// Null outside RAM: a stray access ends in a fault, not in somebody's memory.
    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.inner.memory.ram().host_ptr(phys).unwrap_or(ptr::null_mut())
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        if let Some(range) = self.inner.memory.ram().phys_of(ptr, len) {
            return Some(range);
        }
        let views = self.inner.views.lock();
        let (_, mapped) = views.range(..=ptr as usize).next_back()?;
        mapped.view.phys_of(ptr, len)
    }

    fn machine(&self) -> usize {
        Arc::as_ptr(&self.inner).addr()
    }

    fn cpu_page(&self) -> Granule {
        self.inner.config.page
    }

    fn cache_line(&self) -> usize {
        self.inner.config.line
    }

    fn sync_for_device(&self, range: PhysRange, direction: Direction) {
        if let Some(cache) = self.inner.memory.cache() {
            cache.sync_for_device(self.inner.memory.ram(), range, direction);
        }
    }

    fn sync_for_cpu(&self, range: PhysRange, direction: Direction) {
        if let Some(cache) = self.inner.memory.cache() {
            cache.sync_for_cpu(self.inner.memory.ram(), range, direction);
        }
    }

    unsafe fn map_cpu(
        &self,
        frames: &[PhysRange],
        uncached: bool,
    ) -> Result<NonNull<u8>, FrameError> {
        let ram = self.inner.memory.ram();
        if let ([one], false) = (frames, uncached) {
            return ram.host_ptr(one.start()).and_then(NonNull::new).ok_or(FrameError::Unsupported);
        }
        let view = View::new(ram, frames).map_err(|_| FrameError::Unsupported)?;
        let base = view.base();
        if let (Some(cache), true) = (self.inner.memory.cache(), uncached) {
            frames.iter().for_each(|range| cache.make_uncached(ram, *range));
        }
        self.inner.views.lock().insert(base.as_ptr() as usize, Mapped { view, uncached });
        Ok(base)
    }

    unsafe fn unmap_cpu(&self, ptr: NonNull<u8>, _len: usize) {
        // One block, cached, was never given a view.
        let Some(mapped) = self.inner.views.lock().remove(&(ptr.as_ptr() as usize)) else { return };
        let cache = self.inner.memory.cache().filter(|_| mapped.uncached);
        for range in mapped.view.frames().iter().filter(|_| cache.is_some()) {
            if let Some(cache) = cache {
                cache.make_cached(self.inner.memory.ram(), *range);
            }
        }
    }

    fn now(&self) -> u64 {
        self.inner.clock.now()
    }

    fn relax(&self) {
        self.inner.clock.relax();
    }

    fn cpu(&self) -> usize {
        let number = CPU.get().unwrap_or_else(|| {
            let number = THREADS.fetch_add(1, Ordering::Relaxed);
            CPU.set(Some(number));
            number
        });
        number % self.inner.config.cpus
    }

    fn cpus(&self) -> usize {
        self.inner.config.cpus
    }
}

#[cfg(test)]
mod tests {
    use granule::mem::OwnedFrames;

    use super::*;
    use crate::cache::{Cache, STALE};
    use crate::faults::FaultPlan;
    use crate::ram::Ram;

    fn platform(page: Granule, coherent: bool) -> SimPlatform {
        let range = PhysRange::new(PhysAddr::new(0x8000_0000), 1 << 24).expect("a legal range");
        let ram = Arc::new(Ram::new(&[range]).expect("RAM"));
        let cache = (!coherent).then(|| Arc::new(Cache::new(64, 0, 0)));
        let frames = Frames::new(ram.clone(), page, &[], None, FaultPlan::new(), 0);
        let config = CpuConfig { page, line: 64, cpus: 2 };
        SimPlatform::new(Memory::new(ram, cache), Arc::new(frames), Clock::manual(), config)
    }

    #[test]
    fn owned_frames_live_and_die() {
        let platform = platform(Granule::K16, true);
        let request = FrameRequest::new(0x4000, 0x1_0000);
        let frames = OwnedFrames::zeroed(&platform, &request).expect("free memory");
        assert_eq!(platform.phys(frames.ptr(), 0x4000), Some(frames.range()));
        assert_eq!(platform.frames().live(), [frames.range()]);
        drop(frames);
        assert!(platform.frames().live().is_empty() && platform.frames().errors().is_empty());
    }

    #[test]
    fn zeroes_of_a_large_block_take_no_memory_of_the_host() {
        let platform = platform(Granule::K4, true);
        for size in [0x3000, 8 << 20] {
            let frames = OwnedFrames::new(&platform, &FrameRequest::new(size, 4096));
            let frames = frames.expect("free memory");
            let ram = platform.memory().ram();
            let filled = |byte: u8| {
                let mut bytes = vec![0; size as usize];
                ram.read(frames.start(), &mut bytes).expect("RAM");
                bytes.iter().all(|one| *one == byte)
            };
            ram.fill(frames.range(), 0x5a).expect("RAM");
            assert!(filled(0x5a) && ram.resident().expect("a host") >= size);
            // SAFETY: the frames are ours.
            unsafe { platform.zero_frames(frames.range()) };
            let large = size > POISON_LIMIT;
            assert_eq!(ram.resident().expect("a host") < size, large, "{size:#x}");
            assert!(filled(0));
        }
    }

    #[test]
    fn scattered_frames_have_one_view() {
        let platform = platform(Granule::K4, true);
        let blocks: Vec<_> = (0..4)
            .map(|_| OwnedFrames::zeroed(&platform, &FrameRequest::new(0x1000, 0x2000)).expect("m"))
            .collect();
        let ranges: Vec<_> = blocks.iter().map(OwnedFrames::range).collect();
        // SAFETY: the frames are owned until the view is gone.
        let view = unsafe { platform.map_cpu(&ranges, false) }.expect("a view");
        let third = view.as_ptr().wrapping_add(0x2000);
        // SAFETY: inside the view.
        unsafe { third.write_volatile(9) };
        // SAFETY: the first byte of the third block, which is owned.
        assert_eq!(unsafe { blocks[2].ptr().read_volatile() }, 9);
        assert_eq!(platform.phys(third, 0x5000), Some(ranges[2]));
        // SAFETY: the view is not used any more.
        unsafe { platform.unmap_cpu(view, 0x4000) };
        assert_eq!((platform.views(), platform.phys(third, 1)), (0, None));
    }

    #[test]
    fn an_uncached_view_is_what_devices_see() {
        let platform = platform(Granule::K4, false);
        let frames =
            OwnedFrames::zeroed(&platform, &FrameRequest::new(0x1000, 0x1000)).expect("memory");
        // SAFETY: the frames are owned until the view is gone.
        let view = unsafe { platform.map_cpu(&[frames.range()], true) }.expect("a view");
        let mut byte = [0];
        // SAFETY: inside the view. The zeroes were still in the cache, which nobody cleaned.
        assert_eq!(unsafe { view.as_ptr().read_volatile() }, STALE);
        // SAFETY: inside the view.
        unsafe { view.as_ptr().write_volatile(3) };
        assert!(platform.memory().master(false).read(frames.start(), &mut byte));
        assert_eq!(byte, [3]);
        // SAFETY: the view is not used any more.
        unsafe { platform.unmap_cpu(view, 0x1000) };
        let start = frames.start();
        drop(frames);
        assert!(platform.memory().master(false).read(start, &mut byte));
        assert_eq!(byte, [crate::frames::POISON]);
    }

    #[test]
    fn threads_are_cpus_and_time_passes() {
        let platform = platform(Granule::K64, true);
        SimPlatform::set_cpu(5);
        assert_eq!((platform.cpu(), platform.cpus()), (1, 2));
        let before = platform.now();
        platform.relax();
        assert!(platform.now() > before);
        assert!(platform.phys([0u8; 4].as_ptr(), 4).is_none());
        assert!(platform.ptr(PhysAddr::new(0)).is_null());
    }
}
