//! A platform and an IOMMU that never touch the heap, so that whatever does is the core: physical
//! memory is this process's own, frames come from a list that was made beforehand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use granule::addr::{PhysAddr, PhysRange};
use granule::domain::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
use granule::mem::{FrameError, FrameRequest, Platform, SpinLock};
use granule::table::{FormatId, TableLayout};

/// Frames of 64 KiB each, enough for every test.
const FRAMES: usize = 512;
const FRAME: u64 = 0x1_0000;

/// The platform; clones are the same machine.
#[derive(Clone)]
pub struct Quiet {
    shared: Arc<Shared>,
}

struct Shared {
    free: Mutex<Vec<u64>>,
    allocations: AtomicU64,
}

impl Default for Quiet {
    fn default() -> Self {
        // Two of them must not fight over one region, so each takes its own, for ever.
        let layout = std::alloc::Layout::from_size_align(FRAMES << 16, FRAME as usize)
            .expect("a legal layout");
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) }.expose_provenance() as u64;
        let free = (0..FRAMES as u64).rev().map(|index| base + index * FRAME).collect();
        let shared = Shared { free: Mutex::new(free), allocations: AtomicU64::new(0) };
        Self { shared: Arc::new(shared) }
    }
}

impl Quiet {
    /// How many blocks of frames were allocated so far.
    pub fn allocations(&self) -> u64 {
        self.shared.allocations.load(Ordering::Relaxed)
    }
}

// SAFETY: a frame is handed out once until it is freed; physical addresses are the process's own, so
// `ptr` and `phys` are the identity; everything is coherent.
unsafe impl Platform for Quiet {
    type Lock = SpinLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        if request.size > FRAME || request.align > FRAME {
            return Err(FrameError::Unsupported);
        }
        let start = self.shared.free.lock().expect("no panic").pop();
        let start = start.ok_or(FrameError::OutOfMemory)?;
        self.shared.allocations.fetch_add(1, Ordering::Relaxed);
        PhysRange::new(PhysAddr::new(start), request.size).map_err(|_| FrameError::Unsupported)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        // Its capacity is that of all frames.
        self.shared.free.lock().expect("no panic").push(frames.start().raw() & !(FRAME - 1));
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(phys.raw() as usize)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        PhysRange::new(PhysAddr::new(ptr.addr() as u64), len as u64).ok()
    }
}

/// What is to happen while a call waits for hardware.
type During = Box<dyn FnOnce() + Send>;

/// An IOMMU that nobody is behind.
pub struct QuietUnit {
    info: UnitInfo,
    during: Mutex<Option<During>>,
}

impl QuietUnit {
    /// Walks tables of this format.
    pub fn new(format: FormatId) -> Self {
        let info = UnitInfo {
            name: "quiet".into(),
            formats: vec![format],
            input_bits: 39,
            output_bits: 48,
            page_sizes: granule::addr::PageSizes::from_bits(u64::MAX),
            coherent_walk: true,
            caches_absent: false,
            can_bypass: false,
        };
        Self { info, during: Mutex::new(None) }
    }

    /// Has this happen during the next invalidation, once.
    pub fn during_next(&self, act: impl FnOnce() + Send + 'static) {
        *self.during.lock().expect("no panic") = Some(Box::new(act));
    }
}

// SAFETY: no device exists, so nothing is ever reached or cached.
unsafe impl Unit for QuietUnit {
    type Context = ();

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, _: StreamId) -> Vec<PhysAddr> {
        Vec::new()
    }

    fn open(&self, _: &TableLayout) -> Result<(), UnitError> {
        Ok(())
    }

    fn close(&self, (): &()) {}

    unsafe fn attach(&self, (): &(), _: StreamId) -> Result<(), UnitError> {
        Ok(())
    }

    fn detach(&self, (): &(), _: StreamId) -> Result<(), UnitError> {
        Ok(())
    }

    unsafe fn bypass(&self, _: StreamId, _: bool) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate(&self, (): &(), _: &Invalidation) -> Result<(), UnitError> {
        // Taken before it is called: it may invalidate in turn.
        let during = self.during.lock().expect("no panic").take();
        if let Some(during) = during {
            during();
        }
        Ok(())
    }
}
