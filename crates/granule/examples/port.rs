//! The smallest port: a toy kernel's memory, a device on the bus, one DMA.
//!
//! Copy `Toy` and fill in your own frame allocator. On a machine where everything is coherent and
//! memory is identity-mapped, this is all that granule asks for.

use std::alloc::{Layout, alloc_zeroed};
use std::sync::OnceLock;

use granule::addr::{Direction, PhysAddr, PhysRange};
use granule::dma::{BusWindow, Device, DeviceSpec};
use granule::mem::{FrameError, FrameRequest, Platform, SpinLock};

/// The handle of the machine: of size zero, since a kernel runs on one machine only.
#[derive(Clone, Copy)]
struct Toy;

const PAGE: u64 = 4096;
const PAGES: usize = 256;

/// A map of pages in use: slow, and easy to see through. A kernel has something better.
struct Frames {
    start: u64,
    used: [bool; PAGES],
}

/// "Physical memory": a megabyte of this process, where a pointer is a physical address.
fn frames() -> &'static lock_api::Mutex<SpinLock, Frames> {
    static FRAMES: OnceLock<lock_api::Mutex<SpinLock, Frames>> = OnceLock::new();
    FRAMES.get_or_init(|| {
        let size = PAGES * PAGE as usize;
        let layout = Layout::from_size_align(size, size).expect("a legal layout");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) }.expose_provenance() as u64;
        lock_api::Mutex::new(Frames { start, used: [false; PAGES] })
    })
}

// SAFETY: a page is handed out once until it is freed; memory is identity-mapped, stays where it is,
// and every device snoops, so the defaults of all other methods hold.
unsafe impl Platform for Toy {
    type Lock = SpinLock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        let mut frames = frames().lock();
        let count = (request.size / PAGE) as usize;
        for first in 0..PAGES {
            let Some(run) = frames.used.get(first..first.saturating_add(count)) else { break };
            let start = frames.start + first as u64 * PAGE;
            let range = PhysRange::new(PhysAddr::new(start), request.size)
                .map_err(|_| FrameError::Unsupported)?;
            let inside = request.window.is_none_or(|window| window.contains_range(&range));
            if inside && start % request.align == 0 && !run.contains(&true) {
                frames.used[first..first + count].fill(true);
                return Ok(range);
            }
        }
        Err(FrameError::OutOfMemory)
    }

    unsafe fn free_frames(&self, range: PhysRange) {
        let mut frames = frames().lock();
        let first = ((range.start().raw() - frames.start) / PAGE) as usize;
        frames.used[first..first + (range.len() / PAGE) as usize].fill(false);
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(phys.raw() as usize)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        PhysRange::new(PhysAddr::new(ptr.expose_provenance() as u64), len as u64).ok()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What the bus shows the device: all addresses of 47 bits, each meaning itself.
    let everything = BusWindow::identity(PhysRange::new(PhysAddr::new(PAGE), 1 << 47)?);
    let disk = Device::direct(&Toy, DeviceSpec::new("disk"), &[everything], None)?;

    // A descriptor ring, which both sides see at all times.
    let ring = disk.alloc_coherent(256)?;
    // A buffer, which the device has until it is unmapped.
    let mapping = disk.map(vec![0u8; 512], Direction::FromDevice)?;
    ring.write(0, &mapping.address().raw().to_le_bytes())?;
    println!("program {} with the ring at {}", disk.name(), ring.address());

    // The device's part: it reads the descriptor and writes a sector.
    let mut descriptor = [0; 8];
    ring.read(0, &mut descriptor)?;
    let target = Toy.ptr(PhysAddr::new(u64::from_le_bytes(descriptor)));
    // SAFETY: the mapping lends the device 512 bytes there.
    unsafe { target.write_bytes(0x5a, 512) };

    let sector = mapping.unmap()?;
    assert!(sector.iter().all(|byte| *byte == 0x5a));
    println!("a sector of {} bytes arrived", sector.len());
    Ok(())
}
