//! What a device's route must be able to do: the one dynamic call of each DMA operation.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU64;
use core::ptr::NonNull;

use super::{DeviceSpec, DmaError, MapFlags, Memory, RouteReport};
use crate::addr::{
    Access, Direction, DmaAddr, DmaRange, DmaSegment, Granule, PageSizes, PhysAddr, PhysRange,
};
use crate::bounce::RawBounceSlot;
use crate::domain::{
    DomainStats, Footprint, Mapped, Release, Stats, Ticket, UnitError, UnmapError,
};
use crate::mem::{FrameError, FrameRequest};
use crate::table::Hint;

/// A live mapping of anything but one buffer, as the guard that owns it keeps it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    /// The address of the first byte.
    pub dma: DmaAddr,
    /// The length in bytes.
    pub len: u64,
    /// What the domain mapped, if one translates.
    pub mapped: Option<Mapped>,
    /// What it adds to the counters.
    pub print: Footprint,
}

/// A live mapping of the common case: one run of memory, given to the device where it lies, without
/// guards, fences or caches to maintain. What was mapped follows from the address and the length. It
/// fits two registers; copying it costs nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brief {
    /// The address of the first byte, never 0.
    pub address: NonZeroU64,
    pub hint: Hint,
}

impl Brief {
    /// A mapping at an address. 0 is never handed out, and would become 1.
    #[inline]
    pub(crate) fn new(address: DmaAddr, hint: Hint) -> Self {
        Self { address: NonZeroU64::new(address.raw()).unwrap_or(NonZeroU64::MIN), hint }
    }
}

/// A live mapping of one buffer. Whoever ends it knows the buffer's length and the flags; all else
/// follows from these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Single {
    pub brief: Brief,
    /// The bounce slot, if the data went there.
    pub slot: Option<RawBounceSlot>,
    pub made: Made,
}

/// How a mapping was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// By [`Ops::map_brief`].
    Briefly,
    /// With fences inside its granules.
    Fenced,
    /// In any other way.
    Fully,
}

/// A piece of a reservation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkPlace {
    /// Bytes from the start of the reservation, whole granules.
    pub offset: u64,
    /// Whole granules of memory.
    pub outer: PhysRange,
    /// How many bytes of them are the buffer's.
    pub len: u64,
}

impl LinkPlace {
    pub(crate) fn print(&self) -> Footprint {
        Footprint { bytes: self.len, exposed: self.outer.len() - self.len, ..Footprint::default() }
    }
}

/// Whose view is brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Cpu,
    Device,
}

/// How memory blocks shall be placed in a device's address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockPlacement {
    pub access: Access,
    pub guard: bool,
    /// Exactly at this address.
    pub at: Option<DmaAddr>,
    /// How many bytes of the blocks are the caller's; the rest is padding.
    pub len: u64,
}

/// What a device's route demands of memory that it is to see as one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Demands {
    /// `None` if no IOMMU translates.
    pub translated: Option<TranslatedDemands>,
    /// Where memory may lie, sorted. For a direct device each with the DMA address of its start.
    pub windows: Vec<(PhysRange, DmaAddr)>,
    /// The addresses that the device can be given.
    pub addresses: DmaRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TranslatedDemands {
    pub granule: Granule,
    pub page_sizes: PageSizes,
    /// Tells domains apart.
    pub domain: usize,
    /// What DMA addresses have above the bits that the table indexes.
    pub base: u64,
}

/// What every route does in the same way: [`RouteCore`](super::route::RouteCore) has it.
pub(crate) trait Common: Send + Sync {
    fn spec(&self) -> &DeviceSpec;
    fn frames(&self) -> Arc<dyn FrameSource>;
    /// The CPU's pointer to physical memory.
    fn ptr(&self, phys: PhysAddr) -> *mut u8;
    fn stats(&self) -> Stats;
    fn live(&self) -> u64;

    /// Brings one side's view of a part of a mapping up to date.
    ///
    /// # Safety
    /// `slot` is that of the mapping of `memory`, which has not been settled; the part lies inside.
    unsafe fn sync(
        &self,
        slot: Option<RawBounceSlot>,
        memory: Memory<'_>,
        part: (u64, u64),
        direction: Direction,
        side: Side,
    );

    /// The same for a whole list.
    ///
    /// # Safety
    /// As [`sync`](Self::sync).
    unsafe fn sync_list(
        &self,
        entries: &[super::Piece],
        state: &ListState,
        direction: Direction,
        side: Side,
    );

    /// Brings the CPU's view up to date, unless `flags` say otherwise, and gives a bounce slot back.
    ///
    /// # Safety
    /// The mapping of `memory` with this slot has ended, its invalidation has completed, and it is
    /// settled once.
    unsafe fn settle(
        &self,
        slot: Option<RawBounceSlot>,
        memory: Memory<'_>,
        direction: Direction,
        flags: MapFlags,
    );

    /// Gives a bounce slot back, once no device reaches it.
    ///
    /// # Safety
    /// The mapping has ended and its invalidation has completed; called once.
    unsafe fn release_slot(&self, slot: RawBounceSlot);

    /// A function that gives slots back, for a deferred destructor.
    fn slot_releaser(&self) -> Option<Arc<dyn SlotRelease>>;

    /// Whether memory shares a cache line with something else, for a device that does not snoop.
    fn shares_line(&self, phys: PhysRange, direction: Direction) -> bool;

    /// The memory of a piece, if it is one physical run.
    fn whole(&self, piece: &super::Piece) -> Option<PhysRange>;
}

/// One device's way to memory.
///
/// `unmap`-like calls are unsafe because a [`Live`] is a plain record: it must be of this route and
/// be ended once.
pub(crate) trait Ops: Common {
    fn demands(&self) -> Demands;
    fn domain_stats(&self) -> Option<DomainStats>;
    fn report(&self, range: Option<DmaRange>) -> RouteReport;

    /// Maps a run, if that is the common case and takes nothing that must be thought of. `None` if not:
    /// nothing is done then, and [`map`](Self::map) knows why.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    unsafe fn map_brief(
        &self,
        piece: &super::Piece,
        direction: Direction,
        flags: MapFlags,
    ) -> Option<Brief>;

    /// Takes `len` bytes that [`map_brief`](Self::map_brief) mapped away from the device: it has lost
    /// them when this returns `Ok`, and nothing is to be settled.
    ///
    /// # Safety
    /// `brief` is of this route, of memory that is `len` bytes long, and is ended once.
    unsafe fn unmap_brief(&self, brief: Brief, len: u64) -> Result<(), UnmapError>;

    /// The same at the next flush, as [`end_later`](Self::end_later) does it.
    ///
    /// # Safety
    /// As [`unmap_brief`](Self::unmap_brief).
    unsafe fn end_brief_later(
        &self,
        brief: Brief,
        len: u64,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError>;

    /// # Safety
    /// The memory is valid for reads, and for writes if the device writes, until the mapping has
    /// ended.
    unsafe fn map(
        &self,
        memory: Memory<'_>,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Single, DmaError>;

    /// # Safety
    /// As [`map`](Self::map), for every entry.
    unsafe fn map_list(
        &self,
        entries: &[super::Piece],
        direction: Direction,
        flags: MapFlags,
        state: &mut ListState,
    ) -> Result<Live, DmaError>;

    /// # Safety
    /// `range` is another device's registers.
    unsafe fn map_resource(&self, range: PhysRange, access: Access) -> Result<Live, DmaError>;

    /// # Safety
    /// The blocks are owned by the caller, and stay allocated until the mapping has ended.
    unsafe fn map_blocks(
        &self,
        blocks: &[PhysRange],
        place: &BlockPlacement,
    ) -> Result<Live, DmaError>;

    /// Takes the memory away from the device: it has lost it when this returns `Ok`.
    ///
    /// # Safety
    /// `live` is of this route and is ended once.
    unsafe fn end(&self, live: &Live) -> Result<(), UnmapError>;

    /// Takes a buffer of `len` bytes away from the device: it has lost it when this returns `Ok`.
    /// [`settle`](Common::settle) is due then.
    ///
    /// # Safety
    /// `single` is of this route, mapped such a buffer with these flags, and is ended once.
    unsafe fn end_single(
        &self,
        single: &Single,
        len: u64,
        flags: MapFlags,
    ) -> Result<(), UnmapError>;

    /// The same at the next flush, as [`end_later`](Self::end_later) does it.
    ///
    /// # Safety
    /// As [`end_single`](Self::end_single).
    unsafe fn end_single_later(
        &self,
        single: &Single,
        len: u64,
        flags: MapFlags,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError>;

    /// Takes the memory away from the device with the next flush; at once in strict mode. `release` is
    /// taken, and runs when the memory may be reused; without one the caller asks
    /// [`is_flushed`](Self::is_flushed). After an error it must not run.
    ///
    /// # Safety
    /// `live` is of this route and is ended once.
    unsafe fn end_later(
        &self,
        live: &Live,
        release: &mut Option<Release>,
    ) -> Result<Option<Ticket>, UnmapError>;

    /// Counts a mapping that another device of the same domain made and ends.
    fn join(&self, live: &Live);

    /// Undoes [`join`](Self::join).
    fn leave(&self, live: &Live);

    fn is_flushed(&self, ticket: Ticket) -> bool;
    fn flush(&self) -> Result<(), UnitError>;

    /// Takes IOVA space for pieces that are linked one by one.
    fn reserve(&self, len: u64) -> Result<Live, DmaError>;

    /// # Safety
    /// As [`map_blocks`](Self::map_blocks) for the granules of `link`, where nothing is linked.
    unsafe fn link(&self, live: &Live, link: &LinkPlace, access: Access) -> Result<(), DmaError>;

    /// # Safety
    /// The same was linked and is unlinked once.
    unsafe fn unlink(&self, live: &Live, link: &LinkPlace) -> Result<(), UnmapError>;

    /// The highest address, not above `most`, where `len` bytes aligned to `align` are free (with
    /// a granule before and behind if `guard`). `None` for a direct device: its address is where the
    /// memory is.
    fn highest_free(&self, most: DmaAddr, len: u64, align: u64, guard: bool) -> Option<DmaAddr>;

    /// The largest length that a single mapping can have.
    fn max_mapping_size(&self) -> u64;

    /// Takes the device off its IOMMUs; whether all streams were blocked.
    fn detach(&self) -> bool;
}

/// Gives a bounce slot back from a deferred destructor.
pub(crate) trait SlotRelease: Send + Sync {
    /// # Safety
    /// As [`Common::release_slot`].
    unsafe fn release_slot(&self, slot: RawBounceSlot);
}

/// The platform's frames, without its type.
pub(crate) trait FrameSource: Send + Sync {
    fn machine(&self) -> usize;
    fn cpu_page(&self) -> Granule;
    fn alloc(&self, request: &FrameRequest) -> Result<PhysRange, FrameError>;
    /// # Safety
    /// As [`Platform::free_frames`](crate::mem::Platform::free_frames).
    unsafe fn free(&self, frames: PhysRange);
    /// # Safety
    /// As [`Platform::zero_frames`](crate::mem::Platform::zero_frames).
    unsafe fn zero(&self, frames: PhysRange);
    fn ptr(&self, phys: PhysAddr) -> *mut u8;
    /// # Safety
    /// As [`Platform::map_cpu`](crate::mem::Platform::map_cpu).
    unsafe fn map_cpu(
        &self,
        frames: &[PhysRange],
        uncached: bool,
    ) -> Result<NonNull<u8>, FrameError>;
    /// # Safety
    /// As [`Platform::unmap_cpu`](crate::mem::Platform::unmap_cpu).
    unsafe fn unmap_cpu(&self, ptr: NonNull<u8>, len: usize);
    fn sync(&self, range: PhysRange, direction: Direction, side: Side);
}

/// A platform as a [`FrameSource`].
pub(crate) struct PlatformFrames<P>(pub P);

impl<P: crate::mem::Platform> FrameSource for PlatformFrames<P> {
    fn machine(&self) -> usize {
        self.0.machine()
    }

    fn cpu_page(&self) -> Granule {
        self.0.cpu_page()
    }

    fn alloc(&self, request: &FrameRequest) -> Result<PhysRange, FrameError> {
        self.0.alloc_frames(request)
    }

    unsafe fn free(&self, frames: PhysRange) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free_frames(frames) }
    }

    unsafe fn zero(&self, frames: PhysRange) {
        // SAFETY: the caller's promise.
        unsafe { self.0.zero_frames(frames) }
    }

    fn ptr(&self, phys: PhysAddr) -> *mut u8 {
        self.0.ptr(phys)
    }

    unsafe fn map_cpu(
        &self,
        frames: &[PhysRange],
        uncached: bool,
    ) -> Result<NonNull<u8>, FrameError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.map_cpu(frames, uncached) }
    }

    unsafe fn unmap_cpu(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.unmap_cpu(ptr, len) }
    }

    fn sync(&self, range: PhysRange, direction: Direction, side: Side) {
        match side {
            Side::Cpu => self.0.sync_for_cpu(range, direction),
            Side::Device => self.0.sync_for_device(range, direction),
        }
    }
}

/// What one scatter list needs while it is mapped; kept with the list, so that mapping it again
/// allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct ListState {
    /// What a domain maps: whole granules, and their offset from the start of the allocation.
    pub pieces: Vec<(u64, PhysRange)>,
    /// The entries that go through bounce slots, in order.
    pub slots: Vec<(usize, RawBounceSlot)>,
    pub segments: Vec<DmaSegment>,
}

impl ListState {
    /// For a list of so many entries.
    pub(crate) fn with_capacity(entries: usize) -> Self {
        let (pieces, segments) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
        Self { pieces, slots: Vec::new(), segments }
    }

    /// Nothing is mapped, and no slot is held any more.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.slots.clear();
        self.segments.clear();
    }
}
