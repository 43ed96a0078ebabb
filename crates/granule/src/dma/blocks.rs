//! Physical blocks for coherent and shared memory: allocated by size and alignment, zeroed, seen by
//! the CPU as one range where the platform can show them so.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use super::ops::{FrameSource, Side};
use crate::addr::{Direction, Granule, PageSizes, PhysRange};
use crate::mem::{FrameError, FrameRequest};

/// What is wanted of the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockRequest {
    /// Bytes asked for.
    pub len: u64,
    /// Every block is aligned to this and a multiple of it: the largest granule.
    pub align: Granule,
    /// Block sizes to try, largest first; `align` is always tried last.
    pub sizes: PageSizes,
    /// One block only.
    pub contiguous: bool,
    /// Aligned so that one block crosses no multiple of this, or 0; the block is not longer.
    pub boundary: u64,
    /// Where the blocks may lie; the first window that serves wins.
    pub windows: Vec<PhysRange>,
}

/// Blocks of physical memory that free themselves. Whoever maps them for a device keeps them alive
/// until the device has lost them.
pub(crate) struct Blocks {
    source: Arc<dyn FrameSource>,
    /// As they were allocated, and must be freed.
    allocated: Vec<PhysRange>,
    /// As devices see them: neighbours are one.
    blocks: Vec<PhysRange>,
    size: u64,
    cpu: Option<CpuView>,
    uncached: bool,
}

struct CpuView {
    ptr: NonNull<u8>,
    /// Made by `map_cpu`, to be unmapped again.
    mapped: bool,
}

// SAFETY: the view is a pointer to memory that the blocks own; it is used through volatile copies.
unsafe impl Send for Blocks {}
// SAFETY: as above.
unsafe impl Sync for Blocks {}

impl Blocks {
    /// Allocates and zeroes. `uncached` asks for an uncached view, for devices that do not snoop;
    /// without one there is an error, since memory would not be coherent.
    pub(crate) fn new(
        source: Arc<dyn FrameSource>,
        request: &BlockRequest,
        uncached: bool,
    ) -> Result<Self, FrameError> {
        let unit = request.align.max(source.cpu_page());
        let size = unit.round_up(request.len).ok_or(FrameError::OutOfMemory)?;
        let mut this =
            Self { source, allocated: Vec::new(), blocks: Vec::new(), size, cpu: None, uncached };
        if request.contiguous {
            let natural = size.checked_next_power_of_two().unwrap_or(1 << 63);
            let least = if request.boundary == 0 { unit.size() } else { natural.max(unit.size()) };
            this.add(size, size_align(size, unit, request.sizes), least, request)?;
        } else {
            this.fill(unit, request)?;
        }
        this.zero();
        this.view(uncached)?;
        Ok(this)
    }

    /// Allocates the largest blocks that memory still has, never below the alignment. What failed
    /// once is not tried again.
    fn fill(&mut self, unit: Granule, request: &BlockRequest) -> Result<(), FrameError> {
        let mut limit = u64::MAX;
        let mut left = self.size;
        while left > 0 {
            let fitting =
                request.sizes.largest_up_to(left.min(limit)).unwrap_or(0).max(unit.size());
            match self.add(fitting, fitting, unit.size(), request) {
                Ok(()) => left -= fitting,
                // A size that the machine never has is no reason not to try smaller ones.
                Err(_) if fitting > unit.size() => limit = fitting / 2,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Allocates one block in the first window that has one; tries the least alignment before it
    /// gives up.
    fn add(
        &mut self,
        size: u64,
        align: u64,
        least: u64,
        request: &BlockRequest,
    ) -> Result<(), FrameError> {
        self.allocated.try_reserve(1).map_err(|_| FrameError::OutOfMemory)?;
        self.blocks.try_reserve(1).map_err(|_| FrameError::OutOfMemory)?;
        let mut refused = FrameError::Unsupported;
        for align in [align, least] {
            for window in &request.windows {
                let wanted = FrameRequest::new(size, align.max(least)).within(Some(*window));
                match self.source.alloc(&wanted) {
                    Ok(block) => {
                        self.allocated.push(block);
                        self.join(block);
                        return Ok(());
                    }
                    // If any window could serve later, that is what the caller should know.
                    Err(FrameError::OutOfMemory) => refused = FrameError::OutOfMemory,
                    Err(_) => {}
                }
            }
        }
        Err(refused)
    }

    /// Neighbours become one block: larger pages may then map them.
    fn join(&mut self, block: PhysRange) {
        if let Some(last) = self.blocks.last_mut() {
            if last.is_followed_by(&block) {
                if let Ok(joined) = PhysRange::new(last.start(), last.len() + block.len()) {
                    *last = joined;
                    return;
                }
            }
        }
        self.blocks.push(block);
    }

    fn zero(&self) {
        for block in &self.allocated {
            // SAFETY: the block is ours, and nobody knows of it yet.
            unsafe { self.source.zero(*block) };
            // The zeroes must be in memory before an uncached view or a device looks.
            self.source.sync(*block, Direction::Bidirectional, Side::Device);
        }
    }

    fn view(&mut self, uncached: bool) -> Result<(), FrameError> {
        if let (Some(ptr), false) = (self.ordinary(), uncached) {
            self.cpu = Some(CpuView { ptr, mapped: false });
            return Ok(());
        }
        // SAFETY: the blocks are ours until `drop`, which unmaps first.
        match unsafe { self.source.map_cpu(&self.allocated, uncached) } {
            Ok(ptr) => self.cpu = Some(CpuView { ptr, mapped: true }),
            // Without a contiguous view the CPU goes through the blocks one by one; only an
            // uncached view is indispensable.
            Err(error) if uncached => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    /// The platform's ordinary pointer, if that shows all blocks one behind the other: neighbours in
    /// physical memory need not be neighbours to the CPU.
    fn ordinary(&self) -> Option<NonNull<u8>> {
        let at = |block: &PhysRange| self.source.ptr(block.start());
        let follows =
            |pair: &[PhysRange]| at(&pair[0]).wrapping_add(pair[0].len() as usize) == at(&pair[1]);
        let first = self.allocated.first()?;
        if self.allocated.windows(2).all(follows) { NonNull::new(at(first)) } else { None }
    }

    pub(crate) fn blocks(&self) -> &[PhysRange] {
        &self.blocks
    }

    /// The size of all blocks in bytes: padding included.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether the CPU's view is uncached.
    pub(crate) fn is_uncached(&self) -> bool {
        self.uncached
    }

    pub(crate) fn machine(&self) -> usize {
        self.source.machine()
    }

    /// The CPU's contiguous view.
    pub(crate) fn ptr(&self) -> Option<NonNull<u8>> {
        self.cpu.as_ref().map(|view| view.ptr)
    }

    /// Copies bytes out by volatile reads. The caller has checked the bounds.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.each(offset, bytes.len(), |at, ptr, len| {
            for (index, byte) in bytes[at..at + len].iter_mut().enumerate() {
                // SAFETY: inside our blocks; volatile, since devices may write at any moment.
                *byte = unsafe { ptr.add(index).read_volatile() };
            }
        });
    }

    /// Copies bytes in by volatile writes. The caller has checked the bounds.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.each(offset, bytes.len(), |at, ptr, len| {
            for (index, byte) in bytes[at..at + len].iter().enumerate() {
                // SAFETY: inside our blocks; volatile, since devices may access it at any moment.
                unsafe { ptr.add(index).write_volatile(*byte) };
            }
        });
    }

    /// Calls `visit` with the offset, the pointer and the length of each stretch of a range.
    fn each(&self, offset: u64, len: usize, mut visit: impl FnMut(usize, *mut u8, usize)) {
        if let Some(view) = &self.cpu {
            // Bounds were checked, so the sum stays inside the view.
            visit(0, view.ptr.as_ptr().wrapping_add(offset as usize), len);
            return;
        }
        let end = offset + len as u64;
        let mut start = 0u64;
        for block in &self.allocated {
            let (from, to) = (offset.max(start), end.min(start + block.len()));
            if from < to {
                let base = self.source.ptr(block.start());
                visit(
                    (from - offset) as usize,
                    base.wrapping_add((from - start) as usize),
                    (to - from) as usize,
                );
            }
            start += block.len();
        }
    }

    /// Maintains caches for a part, for devices that do not snoop.
    pub(crate) fn sync(&self, offset: u64, len: u64, direction: Direction, side: Side) {
        let end = offset.saturating_add(len);
        let mut start = 0u64;
        for block in &self.blocks {
            let (from, to) = (offset.max(start), end.min(start + block.len()));
            if let Some(part) = to.checked_sub(from).and_then(|len| block.slice(from - start, len))
            {
                self.source.sync(part, direction, side);
            }
            start += block.len();
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if let Some(view) = self.cpu.take().filter(|view| view.mapped) {
            // SAFETY: the view is `map_cpu`'s of these blocks, and nobody holds it any more.
            unsafe { self.source.unmap_cpu(view.ptr, self.size as usize) };
        }
        for block in self.allocated.drain(..) {
            // SAFETY: the block is ours; whoever mapped it dropped us after the device lost it.
            unsafe { self.source.free(block) };
        }
    }
}

/// The alignment that lets one block be mapped with the largest pages.
fn size_align(size: u64, unit: Granule, sizes: PageSizes) -> u64 {
    sizes.largest_up_to(size).unwrap_or(0).max(unit.size())
}
