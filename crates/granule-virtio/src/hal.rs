//! The implementation of `Hal`: each function goes to the slot of its device.

use core::marker::PhantomData;
use core::ptr::NonNull;

use lock_api::RawMutex;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::Slot;

/// Says which device a [`GranuleHal`] speaks for, and where registers are mapped.
///
/// # Safety
/// [`registers`](Self::registers) is valid for accesses to these registers as long as anybody uses
/// it, and nothing else is at that pointer.
pub unsafe trait Binding: 'static {
    /// The slot's lock. A kernel that shares buffers in interrupts passes an interrupt-safe one.
    type Lock: RawMutex + Send + Sync + 'static;

    /// The device's slot: one for each device, always the same.
    fn slot() -> &'static Slot<Self::Lock>;

    /// The CPU's pointer to `size` bytes of device registers at a physical address, as PCI
    /// transports need it.
    fn registers(address: usize, size: usize) -> NonNull<u8>;
}

/// `virtio_drivers::Hal` for the device of a binding.
#[derive(Debug)]
pub struct GranuleHal<B: Binding>(PhantomData<B>);

// SAFETY: `dma_alloc` gives zeroed memory of granule's own, whole CPU pages that nobody else has
// until `dma_dealloc`; registers are the binding's promise.
unsafe impl<B: Binding> Hal for GranuleHal<B> {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // Address 0 is what the crate takes for "no memory".
        B::slot().alloc(pages).unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(address: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        B::slot().free(address);
        // The crate panics at anything else. What could not be freed is leaked, and counted.
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        B::registers(address, size)
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller's promise: the buffer is valid, and left alone until it is unshared.
        unsafe { B::slot().share(buffer, direction) }
    }

    unsafe fn unshare(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        // SAFETY: the caller's promise: as it was shared.
        unsafe { B::slot().unshare(address, buffer, direction) };
    }
}
