//! The trait that a port implements.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use super::{FrameError, FrameRequest};
use crate::addr::{Direction, Granule, PhysAddr, PhysRange};

/// What a machine offers to the layers above: the one trait that a port implements.
///
/// The value is a handle: cloning it must be cheap (a zero-sized type in a kernel, an `Arc` in a
/// simulator) and every clone must speak of the same machine.
///
/// # Safety
///
/// Memory safety of every layer above rests on these promises:
///
/// * [`alloc_frames`](Self::alloc_frames) returns memory that is real, aligned and inside the
///   window as requested, that nobody else uses until [`free_frames`](Self::free_frames), and that
///   devices and the CPU can reach.
/// * [`ptr`](Self::ptr) of an address inside such frames (and inside any memory whose physical
///   address [`phys`](Self::phys) gave) is valid for reads and writes to the end of the frames, and
///   is the same memory.
/// * [`phys`](Self::phys) names the memory behind the pointer, now and for as long as the pointed-to
///   memory is allocated: pages do not move under a DMA mapping.
/// * [`zero_frames`](Self::zero_frames) leaves zeroes in those frames and writes nowhere else.
/// * Cache maintenance does what its documentation says when it returns.
/// * [`cpu`](Self::cpu) is below [`cpus`](Self::cpus). It may be stale (the caller may migrate at
///   any moment); it only picks a shard.
pub unsafe trait Platform: Clone + Send + Sync + 'static {
    /// The lock that guards shared state. A kernel passes an interrupt-safe one; [`SpinLock`] is
    /// there for machines that have none.
    type Lock: lock_api::RawMutex + Send + Sync + 'static;

    /// Allocates physically contiguous frames; their contents are undefined.
    ///
    /// # Errors
    /// [`FrameError::OutOfMemory`] if no such block is free now; [`FrameError::Unsupported`] if the
    /// request can never be met here.
    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError>;

    /// Frees frames.
    ///
    /// # Safety
    /// `frames` is a block, or a part of a block in whole CPU pages, that
    /// [`alloc_frames`](Self::alloc_frames) returned and that has not been freed since; neither the
    /// CPU nor any device reaches it any more.
    unsafe fn free_frames(&self, frames: PhysRange);

    /// Fills frames with zeroes, as the CPU sees them. A machine that has a better way than to write
    /// every byte (pages of a host that read as zero until they are written, an engine) takes that.
    ///
    /// # Safety
    /// `frames` are a block of [`alloc_frames`](Self::alloc_frames), or a part of one in whole CPU
    /// pages, that the caller owns alone: nobody reads or writes them meanwhile.
    unsafe fn zero_frames(&self, frames: PhysRange) {
        // What a pointer is valid to the end of is no longer than a pointer can count.
        // SAFETY: the frames are the caller's, and the pointer is valid to their end.
        unsafe { self.ptr(frames.start()).write_bytes(0, frames.len() as usize) };
    }

    /// The CPU's pointer to physical memory (its ordinary, cached mapping).
    fn ptr(&self, phys: PhysAddr) -> *mut u8;

    /// The physical memory behind `len` bytes at `ptr`: its first physically contiguous run, at
    /// most `len` bytes long. `None` if the memory has no physical address known here; such a buffer
    /// is bounced.
    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange>;

    /// The CPU's page: the unit in which frames are allocated. 4 KiB unless overridden.
    fn cpu_page(&self) -> Granule {
        Granule::K4
    }

    /// The cache line size in bytes, a power of two: a buffer that shares a line with something
    /// else is bounced for a device that does not snoop. 64 unless overridden.
    fn cache_line(&self) -> usize {
        64
    }

    /// Makes the CPU's writes to `range` visible to a master that does not snoop (and for a
    /// direction in which the device writes, sees to it that no dirty line is later written back
    /// over the device's data). Called before the device gets the memory, and for every page-table
    /// entry that a walker which does not snoop will read.
    ///
    /// Nothing on a machine where all devices snoop.
    fn sync_for_device(&self, range: PhysRange, direction: Direction) {
        let _ = (range, direction);
    }

    /// Makes a non-snooping master's writes to `range` visible to the CPU (drops stale lines).
    /// Called after the device lost the memory, or at an explicit sync.
    ///
    /// Nothing on a machine where all devices snoop.
    fn sync_for_cpu(&self, range: PhysRange, direction: Direction) {
        let _ = (range, direction);
    }

    /// Maps frames contiguously for the CPU: uncached if `uncached`, for coherent memory of a
    /// device that does not snoop; else cached, to give a CPU view of several blocks.
    ///
    /// The default supports what an identity map can: one block, cached.
    ///
    /// # Errors
    /// [`FrameError::Unsupported`] if the machine cannot; [`FrameError::OutOfMemory`] if it has no
    /// space for the mapping now.
    ///
    /// # Safety
    /// `frames` are owned by the caller until [`unmap_cpu`](Self::unmap_cpu).
    unsafe fn map_cpu(
        &self,
        frames: &[PhysRange],
        uncached: bool,
    ) -> Result<NonNull<u8>, FrameError> {
        match frames {
            [one] if !uncached => {
                NonNull::new(self.ptr(one.start())).ok_or(FrameError::Unsupported)
            }
            _ => Err(FrameError::Unsupported),
        }
    }

    /// Undoes [`map_cpu`](Self::map_cpu). Never allocates.
    ///
    /// # Safety
    /// `ptr` came from `map_cpu` for frames of `len` bytes in all, and is not used any more.
    unsafe fn unmap_cpu(&self, ptr: NonNull<u8>, len: usize) {
        let _ = (ptr, len);
    }

    /// Orders all earlier stores before all later ones, as seen by devices and by table walkers.
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }

    /// Tells machines apart where a program holds several (a simulator): devices of one can share
    /// memory with each other only. 0 on a machine that knows of no other.
    fn machine(&self) -> usize {
        0
    }

    /// A monotonic clock in nanoseconds, for time-outs and the age of a deferred flush. A machine
    /// without a clock returns 0 always: nothing then happens by age.
    fn now(&self) -> u64 {
        0
    }

    /// What a waiting loop does each turn.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// The number of the CPU that asks: a hint, used to pick a shard.
    fn cpu(&self) -> usize {
        0
    }

    /// How many CPUs there are; constant, and at least 1.
    fn cpus(&self) -> usize {
        1
    }
}

/// A spin lock for machines that have nothing better. It does not disable interrupts.
#[derive(Debug)]
pub struct SpinLock(AtomicBool);

// SAFETY: `try_lock` succeeds for one holder at a time, by compare-and-swap with acquire order, and
// `unlock` releases with release order.
unsafe impl lock_api::RawMutex for SpinLock {
    #[allow(clippy::declare_interior_mutable_const)] // What the trait asks for.
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardSend;

    #[inline]
    fn lock(&self) {
        while !self.try_lock() {
            while self.0.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}
