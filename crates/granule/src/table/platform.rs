//! Table pages from a [`Platform`]: frames where a table fills them, shares of a frame where not.

use alloc::collections::BTreeMap;
use core::sync::atomic::AtomicU64;

use lock_api::Mutex;

use super::{Contents, TableMemory};
use crate::addr::{Direction, PhysAddr, PhysRange};
use crate::mem::{FrameError, FrameRequest, Platform};

/// The smallest share of a frame; a frame has at most 64.
const LEAST_SHARE: u64 = 1024;

/// Table pages from the platform's frames.
///
/// A table larger than the CPU's page takes several contiguous frames (16 KiB tables on 4 KiB
/// pages). A smaller one shares a frame with others of its size (4 KiB tables on 64 KiB pages).
#[derive(Debug)]
pub struct PlatformTables<P: Platform> {
    platform: P,
    coherent: bool,
    window: Option<PhysRange>,
    shares: Mutex<P::Lock, Shares>,
}

/// Frames that are cut into shares, and the shares in use in each: one bit a share.
#[derive(Debug)]
struct Shares {
    frames: BTreeMap<(u64, u64), u64>,
    /// How many shares of each size (by logarithm) are free in those frames.
    free: [usize; 64],
    /// Where the last free share of each size was seen.
    last: [u64; 64],
}

impl<P: Platform> PlatformTables<P> {
    /// Table pages from `platform`, for a walker that snoops the CPU's caches or does not.
    pub fn new(platform: P, coherent: bool) -> Self {
        Self { platform, coherent, window: None, shares: Mutex::new(Shares::new()) }
    }

    /// The same, with all table pages inside `window` (hardware with 32-bit table pointers).
    #[must_use]
    pub fn within(mut self, window: Option<PhysRange>) -> Self {
        self.window = window;
        self
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    fn frames(&self, size: u64, align: u64) -> Result<PhysRange, FrameError> {
        let page = self.platform.cpu_page();
        let size = page.round_up(size).ok_or(FrameError::Unsupported)?;
        let request = FrameRequest::new(size, align.max(page.size())).within(self.window);
        self.platform.alloc_frames(&request)
    }

    /// The size of the share that a table of this size takes, or `None` if it takes whole frames.
    fn share_of(&self, size: u64) -> Option<u64> {
        let page = self.platform.cpu_page().size();
        let share = size.next_power_of_two().max(LEAST_SHARE).max(page / 64);
        (share < page).then_some(share)
    }

    fn take_share(&self, share: u64) -> Result<u64, FrameError> {
        let page = self.platform.cpu_page().size();
        let mut shares = self.shares.lock();
        if let Some(at) = shares.take(share, page) {
            return Ok(at);
        }
        let frame = self.frames(page, page)?.start().raw();
        shares.add(share, page, frame);
        shares.take(share, page).ok_or(FrameError::OutOfMemory)
    }
}

impl Shares {
    fn new() -> Self {
        Self { frames: BTreeMap::new(), free: [0; 64], last: [0; 64] }
    }

    fn add(&mut self, share: u64, page: u64, frame: u64) {
        let class = share.trailing_zeros() as usize;
        self.frames.insert((share, frame), 0);
        self.free[class] += (page / share) as usize;
        self.last[class] = frame;
    }

    fn take(&mut self, share: u64, page: u64) -> Option<u64> {
        let class = share.trailing_zeros() as usize;
        if self.free[class] == 0 {
            return None;
        }
        let full = u64::MAX >> (64 - page / share);
        let from = self.last[class];
        // From the frame used last, then around: what lies between two frees is skipped once.
        let ahead = self.frames.range((share, from)..(share + 1, 0));
        let behind = self.frames.range((share, 0)..(share, from));
        let (&(_, frame), _) = ahead.chain(behind).find(|(_, used)| **used != full)?;
        let used = self.frames.get_mut(&(share, frame))?;
        let slot = u64::from((!*used).trailing_zeros());
        *used |= 1 << slot;
        self.free[class] -= 1;
        self.last[class] = frame;
        Some(frame + slot * share)
    }

    /// Gives a share back; the frame, if nothing in it is used any more.
    fn put(&mut self, share: u64, page: u64, at: u64) -> Option<u64> {
        let class = share.trailing_zeros() as usize;
        let frame = at & !(page - 1);
        let used = self.frames.get_mut(&(share, frame))?;
        *used &= !(1 << ((at - frame) / share));
        self.free[class] += 1;
        self.last[class] = frame;
        if *used != 0 {
            return None;
        }
        self.frames.remove(&(share, frame));
        self.free[class] -= (page / share) as usize;
        Some(frame)
    }
}

// SAFETY: frames and shares of frames are exclusively ours until freed (`Platform::alloc_frames`, and
// one bit a share under the lock), `Platform::ptr` reaches them, and a frame at address 0 is refused.
unsafe impl<P: Platform> TableMemory for PlatformTables<P> {
    type Entry = AtomicU64;
    type Lock = P::Lock;

    fn alloc(&self, size: u64, align: u64, contents: Contents) -> Result<PhysAddr, FrameError> {
        let (at, len) = match self.share_of(size.max(align)) {
            Some(share) => (self.take_share(share)?, share),
            None => {
                let frames = self.frames(size, align)?;
                (frames.start().raw(), frames.len())
            }
        };
        let table = PhysAddr::new(at);
        if at == 0 {
            // Kept for ever: nothing can be told from an entry that names address 0.
            return Err(FrameError::Unsupported);
        }
        if contents == Contents::Zeroed {
            let bytes = usize::try_from(len).map_err(|_| FrameError::Unsupported)?;
            // SAFETY: the memory was just allocated, is ours alone and `len` bytes long.
            unsafe { self.platform.ptr(table).write_bytes(0, bytes) };
        }
        Ok(table)
    }

    unsafe fn free(&self, table: PhysAddr, size: u64) {
        let page = self.platform.cpu_page();
        // `size` and the alignment are equal for whole tables, and a root is aligned to its size.
        let frame = match self.share_of(size) {
            Some(share) => match self.shares.lock().put(share, page.size(), table.raw()) {
                Some(frame) => PhysRange::new(PhysAddr::new(frame), page.size()),
                None => return,
            },
            None => PhysRange::new(table, page.round_up(size).unwrap_or(size)),
        };
        if let Ok(frame) = frame {
            // SAFETY: the caller gives the table up, and nothing else is left in the frame.
            unsafe { self.platform.free_frames(frame) };
        }
    }

    #[inline(always)]
    fn entry(&self, at: PhysAddr) -> *const AtomicU64 {
        self.platform.ptr(at).cast_const().cast()
    }

    #[inline(always)]
    fn coherent(&self) -> bool {
        self.coherent
    }

    fn clean(&self, entries: PhysRange) {
        self.platform.sync_for_device(entries, Direction::ToDevice);
    }

    #[inline(always)]
    fn barrier(&self) {
        self.platform.barrier();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const PAGE: u64 = 0x1_0000;
    const SHARE: u64 = 0x1000;

    #[test]
    fn shares_are_handed_out_once_and_frames_come_back_when_empty() {
        let mut shares = Shares::new();
        assert_eq!(shares.take(SHARE, PAGE), None);
        shares.add(SHARE, PAGE, 0x50_0000);
        let first: Vec<_> = (0..16).filter_map(|_| shares.take(SHARE, PAGE)).collect();
        assert_eq!(first, (0..16).map(|n| 0x50_0000 + n * SHARE).collect::<Vec<_>>());
        assert_eq!(shares.take(SHARE, PAGE), None);
        shares.add(SHARE, PAGE, 0x40_0000);
        assert_eq!(shares.take(SHARE, PAGE), Some(0x40_0000));
        // What was given back last is taken first: its frame is the one remembered.
        assert_eq!(shares.put(SHARE, PAGE, 0x50_3000), None);
        assert_eq!(shares.take(SHARE, PAGE), Some(0x50_3000));
        // That frame is full again: the search goes round to the other.
        assert_eq!(shares.take(SHARE, PAGE), Some(0x40_1000));
        assert_eq!(shares.put(SHARE, PAGE, 0x40_0000), None);
        assert_eq!(shares.put(SHARE, PAGE, 0x40_1000), Some(0x40_0000));
        assert_eq!(shares.take(SHARE, PAGE), None, "the second frame is gone");
        for at in &first[1..] {
            assert_eq!(shares.put(SHARE, PAGE, *at), None);
        }
        assert_eq!(shares.put(SHARE, PAGE, 0x50_0000), Some(0x50_0000));
        assert!(shares.frames.is_empty() && shares.free.iter().all(|free| *free == 0));
        assert_eq!(shares.put(SHARE, PAGE, 0x50_0000), None, "it is nobody's");
    }

    #[test]
    fn classes_are_kept_apart() {
        let mut shares = Shares::new();
        shares.add(0x400, PAGE, 0x10_0000);
        assert_eq!(shares.take(SHARE, PAGE), None);
        let all: Vec<_> = (0..65).map_while(|_| shares.take(0x400, PAGE)).collect();
        assert_eq!(all.len(), 64, "as many as a word has bits");
        assert_eq!(all.last(), Some(&(0x10_0000 + 63 * 0x400)));
        shares.add(SHARE, PAGE, 0x20_0000);
        assert_eq!(shares.take(SHARE, PAGE), Some(0x20_0000));
        assert_eq!(shares.take(0x400, PAGE), None);
    }
}
