//! This process's memory as a platform: its addresses stand for physical ones, since the kernel takes
//! addresses of the process and finds the pages behind them itself.
//!
//! Frames come from memfds, sealed against growing and shrinking, in a stretch of address space that is
//! reserved once. Small requests are cut out of chunks; a large one has a memfd of its own, of huge
//! pages if its alignment and length ask for them and the machine has some free.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::Instant;

use granule::addr::{Granule, PhysAddr, PhysRange};
use granule::mem::{FrameError, FrameRequest, Platform};
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::extents::Extents;

/// Address space is reserved in the largest of these that the process may have: 256 GiB to 1 GiB.
const RESERVE: [u64; 5] = [1 << 38, 1 << 36, 1 << 34, 1 << 32, 1 << 30];
/// Requests below this are cut out of chunks of this size. A huge page on most machines.
const CHUNK: u64 = 2 << 20;

/// The memory of this process, as a [`Platform`]: what the DMA API on Linux allocates from.
///
/// A physical address is here an address of the process. The kernel pins the pages behind it when it
/// is mapped for a device, and the pages need not be contiguous for that: only alignment and length in
/// CPU pages count. Memory of any kind that the process has can be mapped, if the kernel can pin it.
///
/// All handles are of the same memory; what is freed stays with the process.
#[derive(Clone, Copy, Debug)]
pub struct UserMemory {
    inner: &'static Inner,
}

#[derive(Debug)]
struct Inner {
    page: Granule,
    cpus: usize,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Reserved and not backed.
    space: Extents,
    /// Backed by chunks, and free.
    ready: Extents,
    /// Chunks and blocks by their first address.
    backed: BTreeMap<u64, Backing>,
}

/// A memfd's mapping.
#[derive(Clone, Copy, Debug)]
struct Backing {
    len: u64,
    /// The size of its pages, in bytes.
    page: u64,
    /// Whether requests are cut out of it.
    chunk: bool,
    /// Bytes in use.
    used: u64,
}

impl UserMemory {
    /// This process's memory.
    pub fn new() -> Self {
        static MEMORY: OnceLock<Inner> = OnceLock::new();
        Self { inner: MEMORY.get_or_init(Inner::new) }
    }

    /// The size of the pages that surely lie behind an address: the CPU's, or that of the huge pages
    /// that it was allocated from.
    pub fn page_behind(&self, phys: PhysAddr) -> u64 {
        let state = self.inner.state.lock();
        state.backing_of(phys.raw()).map_or(self.inner.page.size(), |(_, backing)| backing.page)
    }

    /// Bytes that are allocated now.
    pub fn allocated(&self) -> u64 {
        self.inner.state.lock().backed.values().map(|backing| backing.used).sum()
    }
}

impl Default for UserMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    fn new() -> Self {
        let page = Granule::new(rustix::param::page_size() as u64).unwrap_or(Granule::K4);
        let mut state = State::default();
        if let Some((start, len)) = RESERVE.iter().find_map(|len| reserve(*len)) {
            // Chunks and huge pages begin at their own multiples.
            state.space.put(start, len);
        }
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { page, cpus, start: Instant::now(), state: Mutex::new(state) }
    }

    fn alloc(&self, request: &FrameRequest) -> Result<u64, FrameError> {
        let page = self.page.size();
        let align = request.align.max(page);
        if request.size == 0 || request.size % page != 0 || !align.is_power_of_two() {
            return Err(FrameError::Unsupported);
        }
        let mut state = self.state.lock();
        if request.size < CHUNK && align < CHUNK {
            return state.alloc_small(request, align, page);
        }
        let taken = state.space.take(request.size, align, request.window);
        let start = taken.ok_or(FrameError::OutOfMemory)?;
        match back_large(start, request.size, align, page) {
            Some(page) => {
                let (len, chunk) = (request.size, false);
                state.backed.insert(start, Backing { len, page, chunk, used: len });
                Ok(start)
            }
            None => {
                state.space.put(start, request.size);
                Err(FrameError::OutOfMemory)
            }
        }
    }
}

impl State {
    fn alloc_small(
        &mut self,
        request: &FrameRequest,
        align: u64,
        page: u64,
    ) -> Result<u64, FrameError> {
        let start = match self.ready.take(request.size, align, request.window) {
            Some(start) => start,
            None => {
                self.add_chunk(request.window, page)?;
                let taken = self.ready.take(request.size, align, request.window);
                taken.ok_or(FrameError::OutOfMemory)?
            }
        };
        self.count(start, request.size, true);
        Ok(start)
    }

    fn add_chunk(&mut self, window: Option<PhysRange>, page: u64) -> Result<(), FrameError> {
        let taken = self.space.take(CHUNK, CHUNK, window);
        let start = taken.ok_or(FrameError::OutOfMemory)?;
        if !back(start, CHUNK, MemfdFlags::empty()) {
            self.space.put(start, CHUNK);
            return Err(FrameError::OutOfMemory);
        }
        self.backed.insert(start, Backing { len: CHUNK, page, chunk: true, used: 0 });
        self.ready.put(start, CHUNK);
        Ok(())
    }

    fn backing_of(&self, at: u64) -> Option<(u64, Backing)> {
        let (start, backing) = self.backed.range(..=at).next_back()?;
        (at - start < backing.len).then_some((*start, *backing))
    }

    /// Counts bytes in or out. They may lie in several chunks that adjoin.
    fn count(&mut self, at: u64, size: u64, taken: bool) {
        let (mut at, end) = (at, at + size);
        while at < end {
            let Some((start, backing)) = self.backed.range_mut(..=at).next_back() else { return };
            let part = (start + backing.len).min(end).saturating_sub(at);
            if part == 0 {
                return;
            }
            let used = backing.used;
            backing.used = if taken { used + part } else { used.saturating_sub(part) };
            at += part;
        }
    }

    fn free(&mut self, at: u64, size: u64) {
        self.count(at, size, false);
        let Some((start, backing)) = self.backing_of(at) else { return };
        if backing.chunk {
            self.ready.put(at, size);
            let touched = self.backed.range(start..at + size);
            let empty: Vec<u64> =
                touched.filter(|(_, chunk)| chunk.used == 0).map(|(start, _)| *start).collect();
            for start in empty {
                if self.ready.cut(start, CHUNK) {
                    self.release(start, CHUNK);
                    self.backed.remove(&start);
                }
            }
        } else if backing.used == 0 {
            // Parts of a block wait for the last of them: huge pages cannot be cut.
            self.release(start, backing.len);
            self.backed.remove(&start);
        }
    }

    fn release(&mut self, start: u64, len: u64) {
        if unback(start, len) {
            self.space.put(start, len);
        }
    }
}

/// Reserves address space that nobody can touch yet.
fn reserve(len: u64) -> Option<(u64, u64)> {
    let size = usize::try_from(len).ok()?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe {
        rustix::mm::mmap_anonymous(core::ptr::null_mut(), size, ProtFlags::empty(), flags)
    };
    Some((start.ok()?.expose_provenance() as u64, len))
}

/// Puts memory behind reserved addresses, of the largest pages that fit; their size comes back.
fn back_large(start: u64, len: u64, align: u64, page: u64) -> Option<u64> {
    let huge = [(1 << 30, MemfdFlags::HUGE_1GB), (2 << 20, MemfdFlags::HUGE_2MB)];
    for (size, flag) in huge {
        let whole = align >= size && len % size == 0;
        if whole && back(start, len, MemfdFlags::HUGETLB | flag) {
            return Some(size);
        }
    }
    back(start, len, MemfdFlags::empty()).then(|| {
        advise_huge(start, len);
        page
    })
}

/// Puts a memfd's pages behind reserved addresses.
fn back(start: u64, len: u64, flags: MemfdFlags) -> bool {
    let all = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let Ok(file) = rustix::fs::memfd_create(c"granule", all) else { return false };
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let sized = rustix::fs::ftruncate(&file, len);
    let sealed = sized.and_then(|()| rustix::fs::fcntl_add_seals(&file, seals));
    let Ok(size) = usize::try_from(len) else { return false };
    let at = core::ptr::with_exposed_provenance_mut(start as usize);
    let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
    // SAFETY: the addresses are of our reservation, and nobody was given them.
    sealed.is_ok() && unsafe { rustix::mm::mmap(at, size, rights, flags, &file, 0) }.is_ok()
}

/// Large pages are welcome, and no more than that.
fn advise_huge(start: u64, len: u64) {
    let at = core::ptr::with_exposed_provenance_mut(start as usize);
    // SAFETY: the memory is ours; this advice changes no contents.
    let _ = unsafe { rustix::mm::madvise(at, len as usize, Advice::LinuxHugepage) };
}

/// Takes the memory from behind addresses, which stay reserved.
fn unback(start: u64, len: u64) -> bool {
    let at = core::ptr::with_exposed_provenance_mut(start as usize);
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the memory was freed: nobody uses it, and no device reaches it (the contract of
    // `free_frames`).
    unsafe { rustix::mm::mmap_anonymous(at, len as usize, ProtFlags::empty(), flags) }.is_ok()
}

// SAFETY: frames are memory of our own reservation, given out once until they are freed, aligned and
// inside the window, readable and writable. A physical address is the address of the memory in this
// process, so `ptr` and `phys` are each other's inverse, and a page does not change its address. Pages
// behind an address stay while the kernel has them pinned; shared memory is not copied at a fork.
// Devices that do not snoop are refused where they are opened, so no cache needs care.
unsafe impl Platform for UserMemory {
    type Lock = parking_lot::RawMutex;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        let start = self.inner.alloc(request)?;
        PhysRange::new(PhysAddr::new(start), request.size).map_err(|_| FrameError::Unsupported)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        self.inner.state.lock().free(frames.start().raw(), frames.len());
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(phys.raw() as usize)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        PhysRange::new(PhysAddr::new(ptr.expose_provenance() as u64), len as u64).ok()
    }

    fn cpu_page(&self) -> Granule {
        self.inner.page
    }

    fn machine(&self) -> usize {
        core::ptr::from_ref(self.inner).addr()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.inner.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn cpu(&self) -> usize {
        rustix::thread::sched_getcpu() % self.inner.cpus
    }

    fn cpus(&self) -> usize {
        self.inner.cpus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use granule::mem::OwnedFrames;

    fn frames(size: u64, align: u64) -> OwnedFrames<UserMemory> {
        OwnedFrames::zeroed(&UserMemory::new(), &FrameRequest::new(size, align)).expect("memory")
    }

    #[test]
    fn frames_are_aligned_apart_and_given_back() {
        let memory = UserMemory::new();
        let page = memory.cpu_page().size();
        let sizes =
            [(page, page), (3 * page, page), (CHUNK, CHUNK), (page, 1 << 16), (5 << 20, 4 << 20)];
        let blocks: Vec<_> = sizes.iter().map(|(size, align)| frames(*size, *align)).collect();
        for (block, (size, align)) in blocks.iter().zip(sizes) {
            assert_eq!(block.start().raw() % align, 0);
            assert_eq!(block.range().len(), size);
            // SAFETY: the frames are ours, and this is inside of them.
            unsafe { block.ptr().add(size as usize - 1).write_volatile(7) };
        }
        for (index, one) in blocks.iter().enumerate() {
            assert!(blocks[index + 1..].iter().all(|two| !one.range().overlaps(&two.range())));
        }
        let found = memory.phys(blocks[1].ptr(), page as usize).expect("known");
        assert_eq!(found.start(), blocks[1].start());
        let big = blocks[4].range();
        drop(blocks);
        assert!(memory.inner.state.lock().backing_of(big.start().raw()).is_none());
    }

    #[test]
    fn a_block_may_be_freed_in_parts() {
        let memory = UserMemory::new();
        let page = memory.cpu_page().size();
        let block = frames(4 << 20, 1 << 21).into_raw();
        let (first, rest) = (block.slice(0, page), block.slice(page, block.len() - page));
        for part in [first, rest] {
            assert!(memory.inner.state.lock().backing_of(block.start().raw()).is_some());
            // SAFETY: a part of our block, freed once.
            unsafe { memory.free_frames(part.expect("inside")) };
        }
        assert!(memory.inner.state.lock().backing_of(block.start().raw()).is_none());
    }

    #[test]
    fn small_frames_lie_side_by_side() {
        let page = UserMemory::new().cpu_page().size();
        // Alone in a window of our own, since tests share the process's memory.
        let block = frames(CHUNK, CHUNK);
        drop(block);
        let blocks: Vec<_> = (0..64).map(|_| frames(page, page)).collect();
        let joined = blocks.windows(2).filter(|two| two[0].range().is_followed_by(&two[1].range()));
        assert!(joined.count() >= 32, "neighbours become one mapping");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let memory = UserMemory::new();
        let low = PhysRange::new(PhysAddr::new(0), 1 << 20).expect("legal");
        let outside = FrameRequest::new(CHUNK, CHUNK).within(Some(low));
        assert_eq!(memory.alloc_frames(&outside), Err(FrameError::OutOfMemory));
        assert_eq!(memory.alloc_frames(&FrameRequest::new(1, 4096)), Err(FrameError::Unsupported));
        let all = FrameRequest::new(1 << 50, 4096);
        assert_eq!(memory.alloc_frames(&all), Err(FrameError::OutOfMemory));
    }
}
