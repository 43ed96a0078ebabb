//! The pool: blocks, and the way from a request to a slot and back.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::block::{Block, Shortage};
use super::placement::Placement;
use super::{BounceConfig, BounceError, BounceRequest, BounceSlot, BounceUsage, RawBounceSlot};
use crate::mem::{FrameRequest, OwnedFrames, Platform};

/// The smallest slot in bytes.
const LEAST_SLOT: u64 = 64;
/// A pool that cannot be had in one block comes in at most about this many.
const MOST_BLOCKS: u64 = 64;
/// Areas smaller than this many slots (1 MiB of 2 KiB slots) would overflow too often.
const LEAST_AREA: u64 = 512;

/// Tells pools apart, so that a slot cannot be released into, or copied through, the wrong one.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A pool of bounce memory; see the [module](super).
///
/// Dropping a pool frees its blocks, except those in which slots are still in use: a device may
/// reach them, so they are leaked.
pub struct BouncePool<P: Platform> {
    platform: P,
    id: u64,
    slot_shift: u32,
    scrub: bool,
    blocks: Box<[Block<P>]>,
    /// All areas as (block, area), in order; a CPU starts at its own.
    areas: Box<[(usize, usize)]>,
    refusals: Refusals,
}

#[derive(Debug, Default)]
struct Refusals {
    full: AtomicU64,
    fragmented: AtomicU64,
    impossible: AtomicU64,
    foreign: AtomicU64,
}

impl<P: Platform> BouncePool<P> {
    /// Builds a pool: one block if the platform has it, else several smaller ones, zeroed.
    ///
    /// # Errors
    /// [`BounceError::BadSlotSize`] and [`BounceError::BadPoolSize`] for a configuration that cannot
    /// be; [`BounceError::NoMemory`] if the platform has not enough memory in blocks of at least a
    /// 64th of the size. What was allocated is freed again.
    pub fn new(platform: &P, config: BounceConfig) -> Result<Self, BounceError> {
        let cpus = platform.cpus().max(1) as u64;
        let share = config.size / config.slot.max(1) / cpus;
        // Rounded down to a power of two: between one and two areas a CPU.
        Self::with_areas(platform, config, share.max(LEAST_AREA).ilog2())
    }

    /// As [`new`](Self::new), with areas of `1 << area_shift` slots.
    pub(super) fn with_areas(
        platform: &P,
        config: BounceConfig,
        area_shift: u32,
    ) -> Result<Self, BounceError> {
        let least = LEAST_SLOT.max(platform.cache_line() as u64);
        let slot = config.slot;
        if !slot.is_power_of_two() || slot < least {
            return Err(BounceError::BadSlotSize { slot, least });
        }
        let slot_shift = slot.trailing_zeros();
        let blocks: Box<[Block<P>]> = gather(platform, &config)?
            .into_iter()
            .map(|frames| Block::new(frames, slot_shift, area_shift))
            .collect();
        let areas = blocks.iter().enumerate();
        let areas =
            areas.flat_map(|(block, of)| (0..of.areas()).map(move |area| (block, area))).collect();
        Ok(Self {
            platform: platform.clone(),
            id: NEXT_ID.fetch_add(1, Relaxed),
            slot_shift,
            scrub: config.scrub,
            blocks,
            areas,
            refusals: Refusals::default(),
        })
    }

    /// Borrows a slot. Never allocates memory.
    ///
    /// # Errors
    /// [`BounceError::EmptyRequest`], [`BounceError::BadAlign`], [`BounceError::BadKeepMask`] for a
    /// request that makes no sense; [`BounceError::TooLarge`] and [`BounceError::OutOfReach`] for
    /// one that can never be served; [`BounceError::Full`] and [`BounceError::Fragmented`] for one
    /// that cannot be served now. In a pool of one block the last two describe one moment; in a pool
    /// of several, each block at the moment when it was searched.
    #[inline]
    pub fn acquire(&self, request: &BounceRequest) -> Result<BounceSlot, BounceError> {
        let placement = Placement::new(request, self.slot_shift)?;
        match self.take_near(&placement) {
            Some((block, first)) => self.slot(&placement, block, first),
            None => self.take_far(&placement),
        }
    }

    /// Gives a slot back, scrubbed if the pool was configured so. Never allocates, never fails for
    /// a slot of this pool. The device must have lost it: its invalidation is complete.
    ///
    /// A slot of another pool stays in use there, and is counted in
    /// [`BounceUsage::foreign_releases`].
    #[inline]
    pub fn release(&self, mut slot: BounceSlot) {
        if !self.owns(&slot) {
            count(&self.refusals.foreign);
            return;
        }
        if self.scrub {
            self.scrub(&mut slot);
        }
        let RawBounceSlot { outer, block, .. } = slot.into_raw();
        if let Some(block) = self.blocks.get(block) {
            let start = outer.start().raw() - block.range().start().raw();
            block.give(start >> self.slot_shift, outer.len() >> self.slot_shift);
        }
    }

    /// Makes a slot of its record again.
    ///
    /// # Safety
    /// `raw` came from [`BounceSlot::into_raw`], and no other slot has been made of it since: the
    /// slot has not been released.
    #[inline]
    pub unsafe fn slot_from_raw(&self, raw: RawBounceSlot) -> BounceSlot {
        BounceSlot(raw)
    }

    /// The longest `len` with which `request` could succeed if the pool were empty; 0 if none
    /// could, or if the request makes no sense. (`swiotlb_max_mapping_size` in Linux.)
    pub fn max_len(&self, request: &BounceRequest) -> u64 {
        let shortest = BounceRequest { len: 1, ..*request };
        let Ok(placement) = Placement::new(&shortest, self.slot_shift) else {
            return 0;
        };
        let unit = if request.whole_granules { request.align.max(1 << self.slot_shift) } else { 1 };
        let bytes = self.longest_possible(&placement) & !(unit - 1);
        bytes.saturating_sub(placement.offset)
    }

    /// How full the pool is. Takes every lock in turn and looks at every slot: for reports.
    pub fn usage(&self) -> BounceUsage {
        let sum = |slots: fn(&Block<P>) -> u64| self.blocks.iter().map(slots).sum::<u64>();
        BounceUsage {
            total: self.total(),
            used: sum(Block::used) << self.slot_shift,
            peak: sum(Block::peak) << self.slot_shift,
            largest_free: self.blocks.iter().map(Block::longest_free).max().unwrap_or(0)
                << self.slot_shift,
            blocks: self.blocks.len(),
            refused_full: self.refusals.full.load(Relaxed),
            refused_fragmented: self.refusals.fragmented.load(Relaxed),
            refused_impossible: self.refusals.impossible.load(Relaxed),
            foreign_releases: self.refusals.foreign.load(Relaxed),
        }
    }

    /// Where the pool's memory lies, block by block.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = crate::addr::PhysRange> + '_ {
        self.blocks.iter().map(Block::range)
    }

    /// The unit of allocation in bytes.
    pub fn slot_size(&self) -> u64 {
        1 << self.slot_shift
    }

    pub(super) fn platform(&self) -> &P {
        &self.platform
    }

    /// Whether the slot came from this pool.
    #[inline]
    pub(super) fn owns(&self, slot: &BounceSlot) -> bool {
        slot.0.pool == self.id
    }

    fn total(&self) -> u64 {
        self.blocks.iter().map(|block| block.range().len()).sum()
    }

    /// Asks one area after the other, this CPU's own first.
    #[inline]
    fn take_near(&self, placement: &Placement) -> Option<(usize, u64)> {
        let areas = self.areas.len();
        let cpu = self.platform.cpu();
        let mut next = if cpu < areas { cpu } else { cpu.checked_rem(areas)? };
        for _ in 0..areas {
            let &(index, area) = self.areas.get(next)?;
            if let Some(first) = self.blocks.get(index)?.take_in_area(area, placement) {
                return Some((index, first));
            }
            next = if next + 1 < areas { next + 1 } else { 0 };
        }
        None
    }

    /// Asks one block after the other, across its areas; else says why there is nothing.
    #[cold]
    fn take_far(&self, placement: &Placement) -> Result<BounceSlot, BounceError> {
        self.check_possible(placement).inspect_err(|_| count(&self.refusals.impossible))?;
        let mut sum = Shortage::default();
        for (index, block) in self.blocks.iter().enumerate() {
            match block.take_anywhere(placement) {
                Ok(first) => return self.slot(placement, index, first),
                Err(shortage) => sum = sum.with(&shortage),
            }
        }
        Err(self.shortage(placement, &sum))
    }

    /// Refuses what could not be served if the pool were empty. Takes no lock.
    fn check_possible(&self, placement: &Placement) -> Result<(), BounceError> {
        let requested = placement.outer_len;
        let largest = self.longest_possible(&placement.anywhere());
        if largest < requested {
            return Err(BounceError::TooLarge { requested, largest, total: self.total() });
        }
        match placement.window {
            None => Ok(()),
            Some(window) => match self.longest_possible(placement) {
                largest if largest < requested => {
                    Err(BounceError::OutOfReach { requested, largest, window })
                }
                _ => Ok(()),
            },
        }
    }

    /// The longest run from a suitable place if the pool were empty, in bytes.
    fn longest_possible(&self, placement: &Placement) -> u64 {
        let runs = self.blocks.iter().map(|block| block.possible(placement));
        runs.max().unwrap_or(0) << self.slot_shift
    }

    /// Counts a shortage, and says which it is.
    fn shortage(&self, placement: &Placement, sum: &Shortage) -> BounceError {
        let bytes = |slots: u64| slots << self.slot_shift;
        let requested = placement.outer_len;
        let (free, total) = (bytes(sum.survey.free), bytes(sum.reach));
        let largest = bytes(sum.survey.longest);
        if free < requested {
            count(&self.refusals.full);
            return BounceError::Full { requested, free, largest, total };
        }
        count(&self.refusals.fragmented);
        let usable = bytes(sum.survey.usable);
        BounceError::Fragmented { requested, free, largest, usable, total }
    }

    #[inline]
    fn slot(
        &self,
        placement: &Placement,
        block: usize,
        first: u64,
    ) -> Result<BounceSlot, BounceError> {
        let ranges = self.blocks.get(block).and_then(|of| placement.ranges(of.range(), first));
        match ranges {
            Some((outer, data)) => {
                Ok(BounceSlot(RawBounceSlot { data, outer, pool: self.id, block }))
            }
            // Not reached: a run that was found lies inside its block.
            None => {
                let (requested, total) = (placement.outer_len, self.total());
                Err(BounceError::TooLarge { requested, largest: 0, total })
            }
        }
    }
}

impl<P: Platform> fmt::Debug for BouncePool<P> {
    /// Where the pool lies and what is in use; takes no lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used: u64 = self.blocks.iter().map(Block::used).sum();
        f.debug_struct("BouncePool")
            .field("slot", &self.slot_size())
            .field("used", &(used << self.slot_shift))
            .field("ranges", &self.ranges().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Shortage {
    /// Both together: sums of what is free, the larger of the runs.
    fn with(mut self, other: &Self) -> Self {
        self.survey.free += other.survey.free;
        self.survey.longest = self.survey.longest.max(other.survey.longest);
        self.survey.usable = self.survey.usable.max(other.survey.usable);
        self.reach += other.reach;
        self
    }
}

#[inline]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Allocates the blocks of a pool: the whole size at once, or in halves, quarters and so on.
fn gather<P: Platform>(
    platform: &P,
    config: &BounceConfig,
) -> Result<Vec<OwnedFrames<P>>, BounceError> {
    let align = config.align.size().max(config.slot).max(platform.cpu_page().size());
    let up = |bytes: u64| bytes.checked_add(align - 1).map(|sum| sum & !(align - 1));
    let bad = BounceError::BadPoolSize { size: config.size };
    let size = up(config.size).filter(|&size| size > 0).ok_or(bad)?;
    let least = up(size / MOST_BLOCKS).ok_or(bad)?.max(align);
    let mut blocks = Vec::new();
    let (mut left, mut chunk) = (size, size);
    while left > 0 {
        chunk = chunk.min(left);
        let request = FrameRequest { node: config.node, ..FrameRequest::new(chunk, align) };
        match OwnedFrames::zeroed(platform, &request.within(config.window)) {
            Ok(frames) => {
                left -= chunk;
                blocks.push(frames);
            }
            Err(source) if chunk <= least => {
                return Err(BounceError::NoMemory { size, align, found: size - left, source });
            }
            // Even if "unsupported": a buddy allocator says so of blocks above its largest order.
            Err(_) => chunk = up(chunk / 2).unwrap_or(align),
        }
    }
    Ok(blocks)
}
