//! A split virtqueue (virtio 1.2, 2.7) whose chains have fixed places: the driver says which
//! descriptors it uses, so nothing is allocated and nothing that the device writes is trusted.
#![forbid(unsafe_code)]

use granule::mem::Platform;

use super::transport::QueueAddresses;
use crate::HwError;
use crate::block::{Block, BlockRequest};

const DESCRIPTOR: usize = 16;
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// One piece of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) phys: u64,
    pub(super) len: u32,
    pub(super) device_writes: bool,
}

/// A queue in memory of its own.
pub(super) struct Queue<P: Platform> {
    block: Block<P>,
    size: u16,
    available: usize,
    used: usize,
    next_available: u16,
    next_used: u16,
}

impl<P: Platform> Queue<P> {
    /// A queue of `size` entries, a power of two.
    pub(super) fn new(platform: &P, unit: &str, size: u16) -> Result<Self, HwError> {
        // Each part on cache lines of its own: the device writes only the last one.
        let line = platform.cache_line().max(64);
        let entries = usize::from(size);
        let available = (entries * DESCRIPTOR).next_multiple_of(line);
        let used = (available + 6 + 2 * entries).next_multiple_of(line);
        let bytes = (used + 6 + 8 * entries).next_multiple_of(line);
        let request = BlockRequest {
            unit,
            what: "a virtqueue",
            size: bytes as u64,
            align: line as u64,
            address_bits: 64,
            snooped: false,
        };
        let block = Block::new(platform, &request)?;
        Ok(Self { block, size, available, used, next_available: 0, next_used: 0 })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn addresses(&self) -> QueueAddresses {
        let at = |offset: usize| self.block.phys() + offset as u64;
        QueueAddresses { descriptors: at(0), driver: at(self.available), device: at(self.used) }
    }

    /// Forgets everything: the device was reset.
    pub(super) fn reset(&mut self) {
        self.block.clear();
        self.next_available = 0;
        self.next_used = 0;
    }

    /// Makes a chain of the descriptors from `head` on available to the device.
    pub(super) fn post(&mut self, head: u16, parts: &[Part]) {
        let first = usize::from(head) * DESCRIPTOR;
        for (index, (part, id)) in parts.iter().zip(head..self.size).enumerate() {
            let at = first + index * DESCRIPTOR;
            let last = index + 1 == parts.len();
            let flags =
                if last { 0 } else { NEXT } | if part.device_writes { DEVICE_WRITES } else { 0 };
            self.block.write64(at, part.phys);
            self.block.write32(at + 8, part.len);
            self.block.write16(at + 12, flags);
            self.block.write16(at + 14, if last { 0 } else { id + 1 });
        }
        self.block.publish(first, parts.len() * DESCRIPTOR);
        let slot = usize::from(self.next_available % self.size);
        self.block.write16(self.available + 4 + 2 * slot, head);
        self.block.publish(self.available + 4 + 2 * slot, 2);
        self.next_available = self.next_available.wrapping_add(1);
        self.block.write16(self.available + 2, self.next_available);
        self.block.publish(self.available, 4);
    }

    /// The next chain that the device has done with: its head and how much the device wrote, both
    /// unchecked.
    pub(super) fn take_used(&mut self) -> Option<(u32, u32)> {
        self.block.refresh(self.used, 6 + 8 * usize::from(self.size));
        if self.block.read16(self.used + 2) == self.next_used {
            return None;
        }
        let slot = self.used + 4 + 8 * usize::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        Some((self.block.read32(slot), self.block.read32(slot + 4)))
    }

    pub(super) fn leak(self) {
        self.block.leak();
    }
}
