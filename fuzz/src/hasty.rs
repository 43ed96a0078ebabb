//! A platform whose clock runs while one waits, so that time-outs come at once; and the calls whose
//! contracts concern memory that a device could reach: here no device reaches any.

use std::sync::{Arc, Weak};
use std::time::Duration;

use granule::addr::{Attributes, Direction, Iova, IovaRange, PhysAddr, PhysRange};
use granule::domain::{Attached, Stream, StreamId, Translation, TranslationError};
use granule::mem::{FrameError, FrameRequest, Platform};
use granule::table::Hint;
use granule_hw::virtio_iommu::{VirtioIommu, VirtioTransport};
use granule_sim::platform::SimPlatform;

/// The simulated platform, in a hurry.
///
/// It does not keep the platform: a driver whose device does not stop leaks what that may still write
/// to, and its platform along with it, and a day of fuzzing would be a million machines.
#[derive(Clone)]
pub(crate) struct Hasty(Weak<SimPlatform>);

impl Hasty {
    /// `platform`, for a driver that goes before it does.
    pub(crate) fn new(platform: &Arc<SimPlatform>) -> Self {
        Self(Arc::downgrade(platform))
    }

    fn inner(&self) -> Arc<SimPlatform> {
        self.0.upgrade().expect("the driver goes first")
    }
}

// SAFETY: everything that memory safety rests on is the inner platform's.
unsafe impl Platform for Hasty {
    type Lock = <SimPlatform as Platform>::Lock;

    fn alloc_frames(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        self.inner().alloc_frames(request)
    }

    unsafe fn free_frames(&self, frames: PhysRange) {
        // SAFETY: the caller's promise.
        unsafe { self.inner().free_frames(frames) };
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.inner().ptr(phys)
    }

    fn phys(&self, ptr: *const u8, len: usize) -> Option<PhysRange> {
        self.inner().phys(ptr, len)
    }

    fn sync_for_device(&self, range: PhysRange, direction: Direction) {
        self.inner().sync_for_device(range, direction);
    }

    fn sync_for_cpu(&self, range: PhysRange, direction: Direction) {
        self.inner().sync_for_cpu(range, direction);
    }

    fn now(&self) -> u64 {
        self.inner().now()
    }

    fn relax(&self) {
        self.inner().clock().pass(Duration::from_millis(100));
    }
}

/// Maps memory that nobody owns and no device reaches.
pub(crate) fn map(
    domain: &impl Translation,
    at: Iova,
    phys: PhysRange,
    attrs: Attributes,
) -> Result<Hint, TranslationError> {
    // SAFETY: no device does anything.
    unsafe { domain.map(at, phys, attrs) }
}

/// Unmaps it.
pub(crate) fn unmap(
    domain: &impl Translation,
    range: IovaRange,
    hint: Hint,
) -> Result<u64, TranslationError> {
    // SAFETY: no device does anything.
    unsafe { domain.unmap(range, hint) }.map(|unmapped| unmapped.bytes)
}

/// Attaches a stream that no device sends on.
pub(crate) fn attach(
    domain: &impl Translation,
    stream: Stream,
) -> Result<Attached, TranslationError> {
    // SAFETY: no device does anything.
    unsafe { domain.attach(stream) }
}

/// Lets a stream through that no device sends on.
pub(crate) fn bypass<T: VirtioTransport>(
    iommu: &VirtioIommu<Hasty, T>,
    stream: StreamId,
) -> Result<(), TranslationError> {
    // SAFETY: no device does anything.
    unsafe { iommu.bypass(stream) }
}
