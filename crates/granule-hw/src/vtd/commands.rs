//! Commands to the unit: global ones, and invalidations, by queue or by register. Each is complete when
//! its call returns.
#![forbid(unsafe_code)]

use alloc::string::String;

use granule::domain::UnitInfo;
use granule::mem::Platform;

use super::spec::{self, Cap, Command, Ecap, Forget, fault_status, global, reg};
use crate::HwError;
use crate::block::{Block, BlockRequest};
use crate::mmio::Registers;
use crate::wait::{Limit, TimedOut, wait_for};

/// Entries of the queue: one page of 128-bit descriptors, IQA.QS = 0.
const ENTRIES: usize = 256;
const DESCRIPTOR: usize = 16;

/// The command side of one unit, used by one CPU at a time.
pub(super) struct Commands<P: Platform> {
    platform: P,
    name: String,
    cap: Cap,
    ecap: Ecap,
    /// The queue, and the word that a wait descriptor writes; `None`: invalidation by register.
    queue: Option<Queue<P>>,
    /// An invalidation did not complete: only a reset helps.
    stuck: bool,
}

struct Queue<P: Platform> {
    descriptors: Block<P>,
    status: Block<P>,
    tail: usize,
    /// What the last wait descriptor writes: each another number, so that a late one is no answer.
    sequence: u32,
}

impl<P: Platform> Commands<P> {
    pub(super) fn new(
        platform: &P,
        info: &UnitInfo,
        cap: Cap,
        ecap: Ecap,
    ) -> Result<Self, HwError> {
        let queue = if ecap.queue() { Some(Queue::new(platform, info)?) } else { None };
        let name = info.name.clone();
        Ok(Self { platform: platform.clone(), name, cap, ecap, queue, stuck: false })
    }

    fn wait<T>(&self, what: &'static str, ready: impl FnMut() -> Option<T>) -> Result<T, HwError> {
        wait_for(&self.platform, Limit::default(), ready)
            .map_err(|_| HwError::Timeout { unit: self.name.clone(), what })
    }

    /// Sets or clears a lasting bit, or gives a one-shot command, and waits until the status shows
    /// it.
    fn global(
        &self,
        registers: &impl Registers,
        bit: u32,
        on: bool,
        shows: bool,
        what: &'static str,
    ) -> Result<(), HwError> {
        let lasting = registers.read32(reg::GSTS) & global::LASTING;
        registers.write32(reg::GCMD, if on { lasting | bit } else { lasting & !bit });
        self.wait(what, || ((registers.read32(reg::GSTS) & bit != 0) == shows).then_some(()))
    }

    /// Turns off a queue that is in use, firmware's or ours, when it has run empty.
    pub(super) fn stop_queue(&mut self, registers: &impl Registers) -> Result<(), HwError> {
        if registers.read32(reg::GSTS) & global::QUEUE == 0 {
            return Ok(());
        }
        // A queue that met an error stands still until the error is cleared, and is then abandoned.
        clear_queue_errors(registers);
        if !self.stuck {
            self.wait("the old invalidation queue", || {
                let (head, tail) = (registers.read64(reg::IQH), registers.read64(reg::IQT));
                (head & !0xf == tail & !0xf).then_some(())
            })?;
        }
        self.global(registers, global::QUEUE, false, false, "turning the queue off")
    }

    pub(super) fn start_queue(&mut self, registers: &impl Registers) -> Result<(), HwError> {
        self.stuck = false;
        let Some(queue) = &mut self.queue else { return Ok(()) };
        queue.tail = 0;
        queue.descriptors.clear();
        registers.write64(reg::IQT, 0);
        registers.write64(reg::IQA, queue.descriptors.phys());
        self.global(registers, global::QUEUE, true, true, "turning the queue on")
    }

    pub(super) fn set_root(
        &mut self,
        registers: &impl Registers,
        root: u64,
    ) -> Result<(), HwError> {
        self.flush_write_buffer(registers)?;
        // Bits 11:10 zero: legacy mode.
        registers.write64(reg::RTADDR, root);
        self.global(registers, global::ROOT, true, true, "setting the root table")
    }

    pub(super) fn enable_translation(&mut self, registers: &impl Registers) -> Result<(), HwError> {
        self.global(registers, global::TRANSLATION, true, true, "turning translation on")
    }

    /// Protected memory would be refused to devices that are attached.
    pub(super) fn disable_protected_memory(
        &mut self,
        registers: &impl Registers,
    ) -> Result<(), HwError> {
        if !self.cap.protected_memory() {
            return Ok(());
        }
        let enable = registers.read32(reg::PMEN);
        registers.write32(reg::PMEN, enable & !spec::PMEN_ENABLE);
        self.wait("giving up protected memory", || {
            (registers.read32(reg::PMEN) & spec::PMEN_STATUS == 0).then_some(())
        })
    }

    fn flush_write_buffer(&self, registers: &impl Registers) -> Result<(), HwError> {
        if !self.cap.write_buffer() {
            return Ok(());
        }
        let what = "flushing the write buffer";
        self.global(registers, global::WRITE_BUFFER, true, false, what)
    }

    /// Has the unit forget things, in order, and returns when it has.
    pub(super) fn forget(
        &mut self,
        registers: &impl Registers,
        what: &[Forget],
    ) -> Result<(), TimedOut> {
        if self.stuck {
            return Err(TimedOut);
        }
        let flushed = self.flush_write_buffer(registers).map_err(|_| TimedOut);
        let done = flushed.and_then(|()| match &mut self.queue {
            Some(queue) => queue.run(&self.platform, registers, what, self.cap.drains()),
            None => self.by_register(registers, what),
        });
        self.stuck = done.is_err();
        done
    }

    fn by_register(&self, registers: &impl Registers, what: &[Forget]) -> Result<(), TimedOut> {
        let pages = self.ecap.iotlb_offset();
        for forget in what {
            let (at, done) = match forget.command(self.cap.drains()) {
                Command::Context(value) => {
                    registers.write64(reg::CCMD, value);
                    (reg::CCMD, spec::CONTEXT_DONE)
                }
                Command::Pages { iotlb, address } => {
                    registers.write64(pages, address);
                    registers.write64(pages + 8, iotlb);
                    (pages + 8, spec::PAGES_DONE)
                }
            };
            let answer = wait_for(&self.platform, Limit::default(), || {
                let value = registers.read64(at);
                (value & spec::COMMAND_BUSY == 0).then_some(value)
            })?;
            if answer & done == 0 {
                // The unit says that it did nothing.
                return Err(TimedOut);
            }
        }
        Ok(())
    }

    /// The unit goes on without this driver: its queue is turned off, or else never freed.
    pub(super) fn abandon(&mut self, registers: &impl Registers) {
        if self.stop_queue(registers).is_err() {
            if let Some(queue) = self.queue.take() {
                queue.descriptors.leak();
                queue.status.leak();
            }
        }
    }
}

fn clear_queue_errors(registers: &impl Registers) -> u32 {
    let errors =
        fault_status::QUEUE_ERROR | fault_status::COMPLETION_ERROR | fault_status::TIMEOUT_ERROR;
    let found = registers.read32(reg::FSTS) & errors;
    if found != 0 {
        registers.write32(reg::FSTS, found);
    }
    found
}

impl<P: Platform> Queue<P> {
    fn new(platform: &P, info: &UnitInfo) -> Result<Self, HwError> {
        let block = |what| {
            Block::new(
                platform,
                &BlockRequest {
                    unit: &info.name,
                    what,
                    size: (ENTRIES * DESCRIPTOR) as u64,
                    align: 4096,
                    address_bits: info.output_bits,
                    snooped: info.coherent_walk,
                },
            )
        };
        Ok(Self {
            descriptors: block("the invalidation queue")?,
            status: block("the invalidation status")?,
            tail: 0,
            sequence: 0,
        })
    }

    fn put(&mut self, (low, high): (u64, u64)) {
        let at = self.tail * DESCRIPTOR;
        self.descriptors.write64(at, low);
        self.descriptors.write64(at + 8, high);
        self.descriptors.publish(at, DESCRIPTOR);
        self.tail = (self.tail + 1) % ENTRIES;
    }

    /// Runs descriptors and waits for them; the queue is empty before and after.
    fn run(
        &mut self,
        platform: &P,
        registers: &impl Registers,
        what: &[Forget],
        drains: (bool, bool),
    ) -> Result<(), TimedOut> {
        for part in what.chunks(ENTRIES - 2) {
            part.iter().for_each(|forget| self.put(forget.descriptor(drains)));
            self.sequence = self.sequence.wrapping_add(1).max(1);
            self.put(spec::wait_descriptor(self.status.phys(), self.sequence));
            registers.write64(reg::IQT, (self.tail * DESCRIPTOR) as u64);
            let (status, sequence) = (&self.status, self.sequence);
            let answered = || {
                status.refresh(0, 4);
                status.read32(0) == sequence
            };
            wait_for(platform, Limit::default(), || answered().then_some(()))?;
        }
        Ok(())
    }
}

/// The fewest aligned blocks that cover whole 4 KiB pages from `first` to `last`, as (address,
/// logarithm). Says how many of `found` it filled; `None` if there is no room for all.
pub(super) fn blocks(
    first: u64,
    last: u64,
    max_mask: u32,
    found: &mut [(u64, u32)],
) -> Option<usize> {
    let (mut page, end) = (first >> 12, last >> 12);
    for (index, slot) in found.iter_mut().enumerate() {
        let left = end.checked_sub(page)? + 1;
        let mask = page.trailing_zeros().min(left.ilog2()).min(max_mask);
        *slot = (page << 12, mask);
        page += 1 << mask;
        if page > end {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The blocks cover the range, no more, in order, each aligned and small enough.
        #[test]
        fn blocks_cover_the_range(first in 0u64..1 << 40, pages in 1u64..5000, max_mask in 0u32..20) {
            let first = first & !0xfff;
            let last = first + (pages << 12) - 1;
            let mut found = [(0, 0); 64];
            let Some(count) = blocks(first, last, max_mask, &mut found) else {
                prop_assert!(pages > 63 || max_mask < 6);
                return Ok(());
            };
            let mut at = first;
            for (address, mask) in &found[..count] {
                prop_assert_eq!(*address, at);
                prop_assert!(*mask <= max_mask && at % (4096 << mask) == 0);
                at += 4096 << mask;
            }
            prop_assert_eq!(at, last + 1);
        }
    }

    #[test]
    fn the_ends_of_the_space_are_covered() {
        let mut found = [(0, 0); 4];
        assert_eq!(blocks(0, u64::MAX, 52, &mut found), Some(1));
        assert_eq!(found[0], (0, 52));
        assert_eq!(blocks(u64::MAX - 0xfff, u64::MAX, 52, &mut found), Some(1));
        assert_eq!(blocks(0x1000, 0xffff, 52, &mut found), Some(4));
        assert_eq!(blocks(0x1000, 0x1ffff, 52, &mut found), None);
    }
}
