//! Masters that do not snoop: what they see and what the CPU sees are two things.
//!
//! The mapping of RAM is the CPU's view, through its cache. For frames that are allocated, the model
//! keeps beside it what *memory behind the cache* holds, line by line, and what each line held when
//! the two last agreed (the baseline). So a line whose view differs from its baseline is *dirty*, and
//! one whose memory differs from it is *stale*:
//!
//! | event | effect on a line |
//! | --- | --- |
//! | allocation | memory holds [`STALE`] bytes: whatever the CPU sees has not been written back |
//! | write of a master that does not snoop | memory changes, the CPU's view does not |
//! | clean ([`sync_for_device`](Cache::sync_for_device)) | a dirty line is written back, whole |
//! | invalidate ([`sync_for_cpu`](Cache::sync_for_cpu)) | the view becomes what memory holds; a dirty line is lost; a line only partly in the range is written back first if dirty, as arm64 does |
//! | eviction, by seed | a dirty line is written back, a stale one dropped |
//! | uncached mapping | the view becomes what memory holds (dirty lines are lost), and from then on both are one |
//!
//! Limits. CPU stores are not trapped, so a store that writes what was there before does not make a
//! line dirty. One cache is shared by all CPUs. Memory that was never allocated (firmware's) is
//! always coherent. Dropping a stale line writes to RAM behind its owner's back, as DMA does. A
//! master that snoops sees the CPU's view, and its writes reach both.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use granule::addr::{Direction, PhysAddr, PhysRange};
use parking_lot::Mutex;

use crate::ram::Ram;

/// What memory behind the cache holds in frames that nobody has cleaned: taken for page-table entries
/// it is valid in the DART, LPAE and VT-d formats, so that a walker which does not snoop trips over a
/// table that was linked too early.
pub const STALE: u8 = 0x4f;

const PAGE: u64 = 4096;

/// Memory behind the cache, and what each line held when the CPU's view last agreed with it.
#[derive(Debug)]
struct Page {
    memory: Vec<u8>,
    baseline: Vec<u8>,
}

impl Page {
    fn fresh() -> Self {
        Self { memory: vec![STALE; PAGE as usize], baseline: vec![STALE; PAGE as usize] }
    }
}

#[derive(Debug)]
struct State {
    /// Allocated blocks: start to length.
    tracked: BTreeMap<u64, u64>,
    /// Pages of uncached mappings: start to length.
    uncached: BTreeMap<u64, u64>,
    /// Pages that were looked at; the rest of the tracked blocks is fresh.
    pages: BTreeMap<u64, Page>,
    rng: fastrand::Rng,
}

/// What happens to a line.
#[derive(Clone, Copy)]
enum Act {
    Clean,
    Invalidate { whole: bool },
    Evict,
}

/// The cache between the CPU and masters that do not snoop.
#[derive(Debug)]
pub struct Cache {
    line: u64,
    /// Evictions happen before one access in so many; 0 is never.
    evict_one_in: u32,
    state: Mutex<State>,
}

impl Cache {
    /// A cache with lines of `line` bytes (a power of two from 16 to 4096, else 64) that evicts a
    /// random line before one master access in `evict_one_in` (0: never).
    pub fn new(line: usize, evict_one_in: u32, seed: u64) -> Self {
        let fits = line.is_power_of_two() && (16..=PAGE as usize).contains(&line);
        let line = if fits { line as u64 } else { 64 };
        let state = State {
            tracked: BTreeMap::new(),
            uncached: BTreeMap::new(),
            pages: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed),
        };
        Self { line, evict_one_in, state: Mutex::new(state) }
    }

    /// From now on `frames` are allocated: their contents are not in memory yet.
    pub fn track(&self, frames: PhysRange) {
        self.state.lock().tracked.insert(frames.start().raw(), frames.len());
    }

    /// `frames` were freed.
    pub fn untrack(&self, frames: PhysRange) {
        let mut state = self.state.lock();
        cut(&mut state.tracked, frames);
        cut(&mut state.uncached, frames);
        let (first, last) = (frames.start().raw(), frames.last().raw());
        let gone: Vec<_> = state.pages.range(first..=last).map(|(at, _)| *at).collect();
        for at in gone {
            state.pages.remove(&at);
        }
    }

    /// Writes the dirty lines of `range` back.
    pub fn sync_for_device(&self, ram: &Ram, range: PhysRange, _direction: Direction) {
        self.act(ram, range, |_| Act::Clean);
    }

    /// Drops the lines of `range`, if the device may have written.
    pub fn sync_for_cpu(&self, ram: &Ram, range: PhysRange, direction: Direction) {
        if direction.device_writes() {
            self.act(ram, range, |line| Act::Invalidate { whole: range.contains_range(line) });
        }
    }

    /// Makes `frames` uncached: the CPU sees what memory holds.
    pub fn make_uncached(&self, ram: &Ram, frames: PhysRange) {
        self.act(ram, frames, |_| Act::Invalidate { whole: true });
        let mut state = self.state.lock();
        state.uncached.insert(frames.start().raw(), frames.len());
    }

    /// Ends [`make_uncached`](Self::make_uncached).
    pub fn make_cached(&self, ram: &Ram, frames: PhysRange) {
        cut(&mut self.state.lock().uncached, frames);
        self.act(ram, frames, |_| Act::Clean);
    }

    /// What a master that does not snoop reads. `false` if the bytes are not all RAM.
    #[must_use]
    pub fn read(&self, ram: &Ram, addr: PhysAddr, out: &mut [u8]) -> bool {
        self.tick(ram);
        self.peek(ram, addr, out)
    }

    /// As [`read`](Self::read), for those who only look: nothing is evicted.
    #[must_use]
    pub fn peek(&self, ram: &Ram, addr: PhysAddr, out: &mut [u8]) -> bool {
        if ram.read(addr, out).is_err() {
            return false;
        }
        let mut state = self.state.lock();
        for piece in pieces(addr, out.len()) {
            if let Some(page) = state.page(piece.page) {
                let bytes = &page.memory[piece.inside..piece.inside + piece.len];
                out[piece.offset..piece.offset + piece.len].copy_from_slice(bytes);
            }
        }
        true
    }

    /// What a master writes. One that snoops changes the CPU's view too. `false` if the bytes are
    /// not all RAM.
    #[must_use]
    pub fn write(&self, ram: &Ram, addr: PhysAddr, data: &[u8], snoops: bool) -> bool {
        self.tick(ram);
        let Ok(range) = PhysRange::new(addr, data.len() as u64) else { return data.is_empty() };
        if !ram.contains(&range) {
            return false;
        }
        let mut state = self.state.lock();
        for piece in pieces(addr, data.len()) {
            let bytes = &data[piece.offset..piece.offset + piece.len];
            let places = piece.inside..piece.inside + piece.len;
            let shadowed = match state.page(piece.page) {
                Some(page) => {
                    page.memory[places.clone()].copy_from_slice(bytes);
                    if snoops {
                        page.baseline[places].copy_from_slice(bytes);
                    }
                    true
                }
                None => false,
            };
            if snoops || !shadowed {
                let at = PhysAddr::new(piece.page + piece.inside as u64);
                let _ = ram.write(at, bytes); // Inside RAM: checked above.
            }
        }
        true
    }

    /// Evicts `count` random lines of allocated memory, dirty or stale.
    pub fn evict(&self, ram: &Ram, count: usize) {
        for _ in 0..count {
            let Some(line) = self.random_line() else { return };
            self.act(ram, line, |_| Act::Evict);
        }
    }

    /// Evicts every line of `range`.
    pub fn evict_range(&self, ram: &Ram, range: PhysRange) {
        self.act(ram, range, |_| Act::Evict);
    }

    fn tick(&self, ram: &Ram) {
        let due = self.evict_one_in > 0 && self.state.lock().rng.u32(0..self.evict_one_in) == 0;
        if due {
            self.evict(ram, 1);
        }
    }

    fn random_line(&self) -> Option<PhysRange> {
        let mut state = self.state.lock();
        let count = state.tracked.len();
        let place = if count > 0 { state.rng.usize(0..count) } else { return None };
        let (start, len) = state.tracked.iter().nth(place).map(|(start, len)| (*start, *len))?;
        let line = state.rng.u64(0..(len / self.line).max(1));
        PhysRange::new(PhysAddr::new(start + line * self.line), self.line).ok()
    }

    /// Does `choose` of it to every line that `range` touches.
    fn act(&self, ram: &Ram, range: PhysRange, choose: impl Fn(&PhysRange) -> Act) {
        let mut state = self.state.lock();
        let last = range.last().raw();
        let mut at = range.start().raw() & !(self.line - 1);
        loop {
            let page_last = at | (PAGE - 1);
            if let Some(page) = state.page(at & !(PAGE - 1)) {
                for start in (at..=page_last.min(last)).step_by(self.line as usize) {
                    let Ok(line) = PhysRange::new(PhysAddr::new(start), self.line) else { break };
                    apply(ram, page, &line, choose(&line));
                }
            }
            if page_last >= last {
                return;
            }
            at = page_last + 1; // Below `last`, so it does not wrap.
        }
    }
}

/// A line is dirty if the view differs from the baseline, stale if memory does.
fn apply(ram: &Ram, page: &mut Page, line: &PhysRange, act: Act) {
    let inside = (line.start().raw() & (PAGE - 1)) as usize;
    let places = inside..inside + line.len() as usize;
    let mut view = [0; PAGE as usize];
    let view = &mut view[..line.len() as usize];
    if ram.read(line.start(), view).is_err() {
        return; // Tracked frames are RAM.
    }
    let memory = &mut page.memory[places.clone()];
    let baseline = &mut page.baseline[places];
    let dirty = *view != *baseline;
    let write_back = match act {
        Act::Clean | Act::Evict | Act::Invalidate { whole: false } => dirty,
        Act::Invalidate { whole: true } => false,
    };
    if write_back {
        memory.copy_from_slice(view);
        baseline.copy_from_slice(view);
        return;
    }
    // Cleaning a line that is not dirty does nothing; all else drops the line.
    if !matches!(act, Act::Clean) {
        baseline.copy_from_slice(memory);
        if *view != *memory {
            let _ = ram.write(line.start(), memory); // RAM: it was read just now.
        }
    }
}

impl State {
    /// The page at `at`, if it is allocated and cached.
    fn page(&mut self, at: u64) -> Option<&mut Page> {
        if !covers(&self.tracked, at) || covers(&self.uncached, at) {
            return None;
        }
        Some(self.pages.entry(at).or_insert_with(Page::fresh))
    }
}

fn covers(ranges: &BTreeMap<u64, u64>, at: u64) -> bool {
    ranges.range(..=at).next_back().is_some_and(|(start, len)| at - start < *len)
}

/// Takes `gone` out of every range.
pub(crate) fn cut(ranges: &mut BTreeMap<u64, u64>, gone: PhysRange) {
    let (first, last) = (gone.start().raw(), gone.last().raw());
    let touched: Vec<_> = ranges
        .range(..=last)
        .rev()
        .map(|(start, len)| (*start, *len))
        .take_while(|(start, len)| start + (len - 1) >= first)
        .collect();
    for (start, len) in touched {
        ranges.remove(&start);
        if start < first {
            ranges.insert(start, first - start);
        }
        if start + (len - 1) > last {
            ranges.insert(last + 1, start + (len - 1) - last);
        }
    }
}

/// A part of an access that lies in one page.
struct Piece {
    page: u64,
    inside: usize,
    offset: usize,
    len: usize,
}

fn pieces(addr: PhysAddr, len: usize) -> impl Iterator<Item = Piece> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        if offset >= len {
            return None;
        }
        let at = addr.raw() + offset as u64; // Inside RAM: checked by the callers.
        let inside = (at & (PAGE - 1)) as usize;
        let step = (len - offset).min(PAGE as usize - inside);
        let piece = Piece { page: at & !(PAGE - 1), inside, offset, len: step };
        offset += step;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: PhysAddr = PhysAddr::new(0x10_0000);

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    fn machine() -> (Ram, Cache) {
        let ram = Ram::new(&[range(BASE.raw(), 0x10_0000)]).expect("RAM");
        let cache = Cache::new(64, 0, 1);
        cache.track(range(BASE.raw(), 0x1_0000));
        (ram, cache)
    }

    fn memory(ram: &Ram, cache: &Cache, at: u64) -> u8 {
        let mut byte = [0];
        assert!(cache.read(ram, PhysAddr::new(at), &mut byte));
        byte[0]
    }

    fn view(ram: &Ram, at: u64) -> u8 {
        let mut byte = [0];
        ram.read(PhysAddr::new(at), &mut byte).expect("inside");
        byte[0]
    }

    #[test]
    fn a_store_is_seen_after_the_clean_of_its_line_only() {
        let (ram, cache) = machine();
        ram.write(BASE, &[7; 128]).expect("inside");
        assert_eq!(memory(&ram, &cache, 0x10_0000), STALE);
        cache.sync_for_device(&ram, range(0x10_0000, 8), Direction::ToDevice);
        assert_eq!(memory(&ram, &cache, 0x10_003f), 7);
        assert_eq!(memory(&ram, &cache, 0x10_0040), STALE);
        cache.evict_range(&ram, range(0x10_0040, 1));
        assert_eq!(memory(&ram, &cache, 0x10_0040), 7);
    }

    #[test]
    fn a_device_write_is_seen_after_the_invalidate_only() {
        let (ram, cache) = machine();
        ram.write(BASE, &[1; 64]).expect("inside");
        cache.sync_for_device(&ram, range(0x10_0000, 64), Direction::FromDevice);
        assert!(cache.write(&ram, BASE, &[9; 64], false));
        assert_eq!(view(&ram, 0x10_0000), 1);
        cache.sync_for_cpu(&ram, range(0x10_0000, 64), Direction::ToDevice);
        assert_eq!(view(&ram, 0x10_0000), 1);
        cache.sync_for_cpu(&ram, range(0x10_0000, 64), Direction::FromDevice);
        assert_eq!(view(&ram, 0x10_0000), 9);
    }

    #[test]
    fn a_shared_line_loses_what_the_device_wrote() {
        let (ram, cache) = machine();
        ram.write(BASE, &[1; 64]).expect("inside");
        cache.sync_for_device(&ram, range(0x10_0000, 32), Direction::FromDevice);
        assert!(cache.write(&ram, BASE, &[9; 32], false));
        // A neighbour in the same line.
        ram.write(PhysAddr::new(0x10_0030), &[2]).expect("inside");
        cache.sync_for_cpu(&ram, range(0x10_0000, 32), Direction::FromDevice);
        assert_eq!(view(&ram, 0x10_0000), 1);
    }

    #[test]
    fn a_late_write_back_overwrites_device_data() {
        let (ram, cache) = machine();
        ram.write(BASE, &[1; 64]).expect("inside"); // Dirty, and never cleaned.
        assert!(cache.write(&ram, BASE, &[9; 64], false));
        cache.evict_range(&ram, range(0x10_0000, 64));
        assert_eq!(memory(&ram, &cache, 0x10_0000), 1);
    }

    #[test]
    fn uncached_memory_is_one() {
        let (ram, cache) = machine();
        ram.write(BASE, &[5]).expect("inside");
        cache.make_uncached(&ram, range(0x10_0000, 0x1000));
        assert_eq!(view(&ram, 0x10_0000), STALE);
        ram.write(BASE, &[6]).expect("inside");
        assert_eq!(memory(&ram, &cache, 0x10_0000), 6);
        assert!(cache.write(&ram, BASE, &[7], false));
        assert_eq!(view(&ram, 0x10_0000), 7);
        cache.make_cached(&ram, range(0x10_0000, 0x1000));
        assert_eq!(memory(&ram, &cache, 0x10_0000), 7);
    }

    #[test]
    fn a_snooping_write_reaches_both() {
        let (ram, cache) = machine();
        assert!(cache.write(&ram, BASE, &[3; 8], true));
        assert_eq!((view(&ram, 0x10_0000), memory(&ram, &cache, 0x10_0000)), (3, 3));
        let far = PhysAddr::new(0x1f_ffff);
        assert!(!cache.write(&ram, far, &[3; 2], true));
        assert!(!cache.read(&ram, far, &mut [0; 2]));
    }

    #[test]
    fn memory_nobody_allocated_is_coherent_and_frees_forget() {
        let (ram, cache) = machine();
        ram.write(PhysAddr::new(0x18_0000), &[4]).expect("inside");
        assert_eq!(memory(&ram, &cache, 0x18_0000), 4);
        assert_eq!(memory(&ram, &cache, 0x10_8000), STALE);
        cache.untrack(range(0x10_8000, 0x1000));
        assert_eq!(memory(&ram, &cache, 0x10_8000), 0);
        assert_eq!(memory(&ram, &cache, 0x10_9000), STALE);
    }

    #[test]
    fn random_evictions_write_back_in_the_end() {
        let ram = Ram::new(&[range(BASE.raw(), 0x1_0000)]).expect("RAM");
        let cache = Cache::new(64, 1, 3);
        cache.track(range(BASE.raw(), 0x1000));
        ram.write(BASE, &[8; 4096]).expect("inside");
        let seen = (0..10_000).any(|_| memory(&ram, &cache, BASE.raw()) == 8);
        assert!(seen);
    }
}
