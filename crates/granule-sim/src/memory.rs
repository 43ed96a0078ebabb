//! Memory as each master sees it: through the CPU's cache, or behind it.

#![forbid(unsafe_code)]

use std::sync::Arc;

use granule::addr::PhysAddr;

use crate::cache::Cache;
use crate::ram::Ram;
use crate::walk::PhysRead;

/// RAM, with the cache in front of it if some master of the machine does not snoop. Clones are the
/// same memory.
#[derive(Clone, Debug)]
pub struct Memory {
    ram: Arc<Ram>,
    cache: Option<Arc<Cache>>,
}

impl Memory {
    /// Memory of a machine; without a cache model every master sees what the CPU sees.
    pub fn new(ram: Arc<Ram>, cache: Option<Arc<Cache>>) -> Self {
        Self { ram, cache }
    }

    /// The RAM: the CPU's view.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The cache model, if the machine has one.
    pub fn cache(&self) -> Option<&Arc<Cache>> {
        self.cache.as_ref()
    }

    /// The view of a master that does or does not snoop the CPU's caches.
    pub fn master(&self, snoops: bool) -> MasterView<'_> {
        MasterView { memory: self, snoops, quiet: false }
    }

    /// The same view for those who only look: reading it evicts nothing from the cache.
    pub fn inspect(&self, snoops: bool) -> MasterView<'_> {
        MasterView { memory: self, snoops, quiet: true }
    }
}

/// Memory as one kind of master sees it.
#[derive(Clone, Copy, Debug)]
pub struct MasterView<'a> {
    memory: &'a Memory,
    snoops: bool,
    quiet: bool,
}

impl MasterView<'_> {
    /// Reads; `false`, and nothing read, if the bytes are not all RAM.
    #[must_use]
    pub fn read(&self, addr: PhysAddr, out: &mut [u8]) -> bool {
        match self.memory.cache.as_ref().filter(|_| !self.snoops) {
            Some(cache) if self.quiet => cache.peek(&self.memory.ram, addr, out),
            Some(cache) => cache.read(&self.memory.ram, addr, out),
            None => self.memory.ram.read(addr, out).is_ok(),
        }
    }

    /// Writes; `false`, and nothing written, if the bytes are not all RAM.
    #[must_use]
    pub fn write(&self, addr: PhysAddr, data: &[u8]) -> bool {
        match &self.memory.cache {
            Some(cache) => cache.write(&self.memory.ram, addr, data, self.snoops),
            None => self.memory.ram.write(addr, data).is_ok(),
        }
    }
}

impl PhysRead for MasterView<'_> {
    fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        if self.snoops || self.memory.cache.is_none() {
            return self.memory.ram.read_u64(addr);
        }
        let mut word = [0; 8];
        let aligned = addr.raw() % 8 == 0;
        (aligned && self.read(addr, &mut word)).then(|| u64::from_le_bytes(word))
    }

    /// Behind the cache a table is read at once, if all of it is there: much cheaper than by word.
    fn read_words(&self, addr: PhysAddr, words: &mut [Option<u64>]) {
        let mut bytes = vec![0; words.len() * 8];
        let behind = !self.snoops && self.memory.cache.is_some() && addr.raw() % 8 == 0;
        let whole = behind && self.read(addr, &mut bytes);
        for (index, word) in words.iter_mut().enumerate() {
            let at = addr.checked_add(index as u64 * 8);
            *word = match bytes.get(index * 8..index * 8 + 8).filter(|_| whole) {
                Some(part) => part.try_into().ok().map(u64::from_le_bytes),
                None => at.and_then(|at| self.read_u64(at)),
            };
        }
    }
}
