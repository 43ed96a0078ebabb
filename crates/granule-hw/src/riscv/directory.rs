//! The device directory: one to three levels of pages, made when their first device is attached.
#![forbid(unsafe_code)]

use alloc::collections::BTreeMap;

use granule::mem::{FrameError, Platform};

use super::spec::context::{WORDS, index_bits, non_leaf};
use super::spec::register::address_of;
use crate::dma_memory::DmaMemory;

const PAGE: u64 = 4096;

/// The device directory. One CPU at a time, behind the driver's lock.
#[derive(Debug)]
pub(super) struct Directory<P: Platform> {
    platform: P,
    root: u64,
    /// All pages, by address.
    pages: BTreeMap<u64, DmaMemory<P>>,
    levels: u32,
    extended: bool,
    address_bits: u32,
}

impl<P: Platform> Directory<P> {
    /// A directory in which every device is blocked. The number of levels comes later, from what
    /// the unit takes.
    pub(super) fn new(platform: &P, extended: bool, address_bits: u32) -> Result<Self, FrameError> {
        let page = DmaMemory::new(platform, PAGE, address_bits, true)?;
        let root = page.start();
        let pages = BTreeMap::from([(root, page)]);
        Ok(Self { platform: platform.clone(), root, pages, levels: 0, extended, address_bits })
    }

    /// The root page.
    pub(super) fn root(&self) -> u64 {
        self.root
    }

    /// The levels, 0 before they are known.
    pub(super) fn levels(&self) -> u32 {
        self.levels
    }

    /// Says how many levels the unit takes. Only before the first device.
    pub(super) fn set_levels(&mut self, levels: u32) {
        self.levels = levels;
    }

    /// How many device ids there are.
    pub(super) fn limit(&self) -> u32 {
        1 << index_bits(self.extended).iter().take(self.levels as usize).sum::<u32>()
    }

    /// Where a level's index starts in a device id.
    fn shift(&self, level: u32) -> u32 {
        index_bits(self.extended).iter().take(level as usize).sum()
    }

    fn index(&self, device: u32, level: u32) -> usize {
        let bits = index_bits(self.extended).get(level as usize).copied().unwrap_or(0);
        (device >> self.shift(level) & ((1 << bits) - 1)) as usize
    }

    /// The page and the first word of a device's context, if the page exists.
    fn find(&self, device: u32) -> Option<(&DmaMemory<P>, usize)> {
        let mut page = self.pages.get(&self.root)?;
        for level in (1..self.levels).rev() {
            let entry = page.get(self.index(device, level));
            if entry & 1 == 0 {
                return None;
            }
            page = self.pages.get(&address_of(entry))?;
        }
        let words = if self.extended { 8 } else { 4 };
        Some((page, self.index(device, 0) * words))
    }

    /// The words of a device's context; `None` where its page does not exist, so that it is blocked.
    pub(super) fn get(&self, device: u32) -> Option<[u64; WORDS]> {
        let (page, index) = self.find(device)?;
        Some(core::array::from_fn(|word| page.get(index + word)))
    }

    /// Makes sure that a device has a context.
    pub(super) fn prepare(&mut self, device: u32) -> Result<(), FrameError> {
        let mut at = self.root;
        for level in (1..self.levels).rev() {
            let index = self.index(device, level);
            let entry = self.pages.get(&at).map_or(0, |page| page.get(index));
            at = if entry & 1 == 1 { address_of(entry) } else { self.link(at, index)? };
        }
        Ok(())
    }

    /// Links a new page, in which every device is blocked, into the one at `parent`.
    fn link(&mut self, parent: u64, index: usize) -> Result<u64, FrameError> {
        let page = DmaMemory::new(&self.platform, PAGE, self.address_bits, true)?;
        let start = page.start();
        self.pages.insert(start, page);
        self.platform.barrier();
        if let Some(parent) = self.pages.get(&parent) {
            parent.write(index, &[non_leaf(start)]);
        }
        Ok(start)
    }

    /// Writes all of a context but its first word, which the unit does not look at while the context
    /// is not valid.
    pub(super) fn write_rest(&self, device: u32, words: &[u64; WORDS]) {
        if let Some((page, index)) = self.find(device) {
            page.write(index + 1, &words[1..]);
        }
    }

    /// Writes the first word of a context: from then on it means what it says.
    pub(super) fn write_first(&self, device: u32, words: &[u64; WORDS]) {
        if let Some((page, index)) = self.find(device) {
            self.platform.barrier();
            page.write(index, &words[..1]);
        }
    }

    pub(super) fn free(self) {
        self.pages.into_values().for_each(DmaMemory::free);
    }
}
