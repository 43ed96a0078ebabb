//! What both kinds of route share: the device's limits, its counters, its bounce pool, and the rules
//! for caches.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::ops::{Common, FrameSource, ListState, PlatformFrames, Side, SlotRelease};
use super::runs::{Runs, for_each_part, for_each_run, whole};
use super::{BounceReason, DeviceSpec, DmaError, MapFlags, Memory, Piece};
use crate::addr::{Direction, PhysAddr, PhysRange};
use crate::bounce::{BouncePool, BounceRequest, BounceSlot, RawBounceSlot};
use crate::domain::{Counters, Stats};
use crate::mem::Platform;

/// The part of a route that does not depend on what stands between device and memory.
pub(crate) struct RouteCore<P: Platform> {
    pub platform: P,
    pub spec: DeviceSpec,
    pub counters: Counters,
    pub pool: Option<Arc<BouncePool<P>>>,
}

/// How a bounce slot must lie for a route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotShape {
    /// The alignment in bytes.
    pub align: u64,
    /// A power of two that the device must not see the data cross a multiple of, or 0.
    pub boundary: u64,
    /// What is added to a physical address to get the device's, wrapping; 0 where an IOMMU is free to
    /// place the slot.
    pub shift: u64,
    /// Whether the slot is whole multiples of the alignment.
    pub whole: bool,
    /// Where the device reaches it.
    pub window: Option<PhysRange>,
    /// Whether nothing of its last owner may be left in it, whatever the caller skips: other devices
    /// may reach it that are not trusted, now or later.
    pub clean: bool,
}

impl<P: Platform> RouteCore<P> {
    pub(crate) fn new(platform: &P, spec: DeviceSpec, pool: Option<Arc<BouncePool<P>>>) -> Self {
        Self { platform: platform.clone(), counters: Counters::new(platform), spec, pool }
    }

    /// Whether caches must be maintained for this mapping.
    #[inline]
    pub(crate) fn maintains(&self, flags: MapFlags) -> bool {
        !self.spec.snoops && !flags.contains(MapFlags::SKIP_CPU_SYNC)
    }

    /// Whether the memory shares a cache line with something else, for a device that does not
    /// snoop: invalidating the line would then lose the neighbour's data.
    #[inline]
    pub(crate) fn shares_line(&self, phys: PhysRange, direction: Direction) -> bool {
        let line = self.platform.cache_line() as u64;
        !self.spec.snoops
            && direction.device_writes()
            && (phys.start().raw() | phys.len()) & (line - 1) != 0
    }

    /// The physical run of the whole buffer, if it is one.
    #[inline]
    pub(crate) fn whole(&self, memory: Memory<'_>) -> Option<PhysRange> {
        match memory {
            Memory::One(piece) => whole(&self.platform, &piece),
            Memory::Many(pieces) => {
                let mut runs = Runs::new(&self.platform, pieces);
                match (runs.next(), runs.next()) {
                    (Some(Ok(run)), None) => Some(run),
                    _ => None,
                }
            }
        }
    }

    /// Takes a slot, and copies the buffer in: also for a device that only writes, so that a short
    /// transfer leaves no stale bytes of somebody else's in the buffer (as Linux's swiotlb does).
    pub(crate) fn bounce(
        &self,
        memory: Memory<'_>,
        len: u64,
        shape: &SlotShape,
        reason: BounceReason,
        flags: MapFlags,
    ) -> Result<BounceSlot, DmaError> {
        let device = || self.spec.name.clone();
        let Some(pool) = &self.pool else {
            return Err(DmaError::NoBounce { device: device(), reason });
        };
        let kept = self.kept_bits(memory);
        let room = room(kept, len, shape.boundary);
        let request = BounceRequest {
            len,
            align: shape.align,
            keep: self.spec.min_align_mask | room.saturating_sub(1),
            orig: kept.wrapping_sub(shape.shift),
            whole_granules: shape.whole,
            window: shape.window,
        };
        let slot = pool.acquire(&request);
        let mut slot =
            slot.map_err(|cause| DmaError::Bounce { device: device(), reason, cause })?;
        if shape.clean {
            pool.zero_padding(&mut slot);
        }
        if !flags.contains(MapFlags::SKIP_CPU_SYNC) || shape.clean {
            self.copy_in(&slot, memory, 0, len);
        }
        if !self.spec.snoops {
            self.platform.sync_for_device(slot.outer(), Direction::Bidirectional);
        }
        Ok(slot)
    }

    /// The low bits of the address that the device must see in its own.
    pub(crate) fn kept_bits(&self, memory: Memory<'_>) -> u64 {
        self.original_address(memory) & self.spec.min_align_mask
    }

    /// The address whose low bits a bounce slot keeps.
    fn original_address(&self, memory: Memory<'_>) -> u64 {
        match memory.pieces().first() {
            Some(piece) => match Runs::new(&self.platform, core::slice::from_ref(piece)).next() {
                Some(Ok(run)) => run.start().raw(),
                _ => match piece {
                    Piece::Cpu { ptr, .. } => ptr.addr() as u64,
                    Piece::Phys(range) => range.start().raw(),
                },
            },
            None => 0,
        }
    }

    fn copy_in(&self, slot: &BounceSlot, memory: Memory<'_>, offset: u64, len: u64) {
        let Some(pool) = &self.pool else { return };
        for_each_part(&self.platform, memory, offset, len, |at, ptr, part| {
            // SAFETY: the part is memory of the mapped buffer, valid for reads; the slot is held by
            // the mapping.
            let copied = unsafe { pool.copy_in(slot, at, ptr, part) };
            debug_assert!(copied.is_ok(), "the slot is as long as the buffer");
        });
    }

    fn copy_out(&self, slot: &BounceSlot, memory: Memory<'_>, offset: u64, len: u64) {
        let Some(pool) = &self.pool else { return };
        for_each_part(&self.platform, memory, offset, len, |at, ptr, part| {
            // SAFETY: the part is memory of the mapped buffer, which the device may write, hence
            // valid for writes; the slot is held by the mapping.
            let copied = unsafe { pool.copy_out(slot, at, ptr, part) };
            debug_assert!(copied.is_ok(), "the slot is as long as the buffer");
        });
    }

    /// Brings one side's view of a part of a buffer up to date.
    ///
    /// # Safety
    /// `slot`, if any, is held by the mapping of `memory`.
    pub(crate) unsafe fn sync(
        &self,
        slot: Option<RawBounceSlot>,
        memory: Memory<'_>,
        (offset, len): (u64, u64),
        direction: Direction,
        side: Side,
    ) {
        match (slot, &self.pool) {
            (Some(raw), Some(pool)) => {
                // SAFETY: the mapping holds the slot; this handle of it is not released.
                let slot = unsafe { pool.slot_from_raw(raw) };
                self.sync_slot(&slot, memory, (offset, len), direction, side);
                let _ = slot.into_raw();
            }
            _ if !self.spec.snoops => {
                for_each_run(&self.platform, memory, offset, len, |run| {
                    self.caches(run, direction, side)
                });
            }
            _ => {}
        }
    }

    fn sync_slot(
        &self,
        slot: &BounceSlot,
        memory: Memory<'_>,
        (offset, len): (u64, u64),
        direction: Direction,
        side: Side,
    ) {
        let part = slot.data().slice(offset, len);
        match (side, part) {
            (Side::Cpu, Some(part)) if direction.device_writes() => {
                if !self.spec.snoops {
                    self.caches(part, direction, side);
                }
                self.copy_out(slot, memory, offset, len);
            }
            (Side::Device, Some(part)) => {
                // For a device that only writes, the slot has the news: copying the buffer in would
                // undo what it wrote while the CPU looked.
                if direction.device_reads() {
                    self.copy_in(slot, memory, offset, len);
                }
                if !self.spec.snoops {
                    self.caches(part, direction, side);
                }
            }
            _ => {}
        }
    }

    fn caches(&self, range: PhysRange, direction: Direction, side: Side) {
        match side {
            Side::Cpu => self.platform.sync_for_cpu(range, direction),
            Side::Device => self.platform.sync_for_device(range, direction),
        }
    }

    /// Prepares the caches for a mapping that is not bounced.
    #[inline]
    pub(crate) fn before_device(
        &self,
        memory: Memory<'_>,
        len: u64,
        direction: Direction,
        flags: MapFlags,
    ) {
        if self.maintains(flags) {
            for_each_run(&self.platform, memory, 0, len, |run| {
                self.platform.sync_for_device(run, direction);
            });
        }
    }

    /// # Safety
    /// The slot is released once, after its device has lost it.
    pub(crate) unsafe fn release(&self, raw: RawBounceSlot) {
        if let Some(pool) = &self.pool {
            // SAFETY: the caller's promise.
            pool.release(unsafe { pool.slot_from_raw(raw) });
        }
    }

    /// Gives back the slots that a list took before it failed.
    ///
    /// # Safety
    /// No device was given any of them.
    pub(crate) unsafe fn release_all(&self, slots: &mut Vec<(usize, RawBounceSlot)>) {
        for (_, slot) in slots.drain(..) {
            // SAFETY: the caller's promise; draining makes it happen once.
            unsafe { self.release(slot) };
        }
    }

    /// The longest buffer that could be bounced into a slot of this shape.
    pub(crate) fn max_bounce(&self, shape: &SlotShape) -> u64 {
        let request = BounceRequest {
            len: 1,
            align: shape.align,
            keep: self.spec.min_align_mask,
            orig: self.spec.min_align_mask,
            whole_granules: shape.whole,
            window: shape.window,
        };
        self.pool.as_ref().map_or(0, |pool| pool.max_len(&request))
    }
}

/// Data that begins `kept` bytes into so many, aligned, does not cross a multiple of `boundary`: the
/// smallest such power of two, at most the boundary; 0 without one.
fn room(kept: u64, len: u64, boundary: u64) -> u64 {
    if boundary == 0 {
        return 0;
    }
    let inside = kept & (boundary - 1);
    let least = inside.checked_add(len).and_then(u64::checked_next_power_of_two);
    least.map_or(boundary, |least| least.min(boundary))
}

/// A route that has such a core.
pub(crate) trait Routed: Send + Sync {
    type Platform: Platform;
    fn core(&self) -> &RouteCore<Self::Platform>;
}

impl<R: Routed> Common for R {
    fn spec(&self) -> &DeviceSpec {
        &self.core().spec
    }

    fn frames(&self) -> Arc<dyn FrameSource> {
        Arc::new(PlatformFrames(self.core().platform.clone()))
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.core().platform.ptr(phys)
    }

    fn stats(&self) -> Stats {
        self.core().counters.stats()
    }

    fn live(&self) -> u64 {
        self.core().counters.live()
    }

    unsafe fn sync(
        &self,
        slot: Option<RawBounceSlot>,
        memory: Memory<'_>,
        part: (u64, u64),
        direction: Direction,
        side: Side,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.core().sync(slot, memory, part, direction, side) };
    }

    unsafe fn sync_list(
        &self,
        entries: &[Piece],
        state: &ListState,
        direction: Direction,
        side: Side,
    ) {
        let mut slots = state.slots.iter().copied().peekable();
        for (index, piece) in entries.iter().enumerate() {
            let slot = slots.next_if(|(at, _)| *at == index).map(|(_, slot)| slot);
            let part = (0, piece.len());
            // SAFETY: the caller's promise.
            unsafe { self.core().sync(slot, Memory::One(*piece), part, direction, side) };
        }
    }

    unsafe fn settle(
        &self,
        slot: Option<RawBounceSlot>,
        memory: Memory<'_>,
        direction: Direction,
        flags: MapFlags,
    ) {
        let core = self.core();
        if !flags.contains(MapFlags::SKIP_CPU_SYNC) {
            let all = (0, memory.len().unwrap_or(u64::MAX));
            // SAFETY: the caller's promise.
            unsafe { core.sync(slot, memory, all, direction, Side::Cpu) };
        }
        if let Some(slot) = slot {
            // SAFETY: the caller's promise.
            unsafe { core.release(slot) };
        }
    }

    unsafe fn release_slot(&self, slot: RawBounceSlot) {
        // SAFETY: the caller's promise.
        unsafe { self.core().release(slot) };
    }

    fn slot_releaser(&self) -> Option<Arc<dyn SlotRelease>> {
        let pool = self.core().pool.clone()?;
        Some(pool)
    }

    fn shares_line(&self, phys: PhysRange, direction: Direction) -> bool {
        self.core().shares_line(phys, direction)
    }

    fn whole(&self, piece: &Piece) -> Option<PhysRange> {
        whole(&self.core().platform, piece)
    }
}

impl<P: Platform> SlotRelease for BouncePool<P> {
    unsafe fn release_slot(&self, slot: RawBounceSlot) {
        // SAFETY: the caller's promise.
        self.release(unsafe { self.slot_from_raw(slot) });
    }
}
