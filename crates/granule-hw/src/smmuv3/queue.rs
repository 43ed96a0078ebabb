//! The command queue and the event queue (IHI 0070, 3.5 "Command and Event queues").
#![forbid(unsafe_code)]

use granule::mem::Platform;

use super::spec::command::Command;
use super::spec::event::Event;
use super::spec::register as reg;
use crate::dma_memory::DmaMemory;
use crate::mmio::Registers;
use crate::wait::{Limit, TimedOut, wait_for};

/// Two words a command.
const COMMAND_WORDS: usize = 2;
/// Four words an event.
const EVENT_WORDS: usize = 4;

/// The registers' index: position and a wrap bit above it.
#[derive(Clone, Copy, Debug)]
struct Index {
    bits: u32,
}

impl Index {
    const fn mask(self) -> u32 {
        (2 << self.bits) - 1
    }

    const fn next(self, index: u32) -> u32 {
        index.wrapping_add(1) & self.mask()
    }

    const fn slot(self, index: u32) -> usize {
        (index & ((1 << self.bits) - 1)) as usize
    }

    /// Full: the same slot, another lap.
    const fn full(self, producer: u32, consumer: u32) -> bool {
        (producer ^ consumer) & self.mask() == 1 << self.bits
    }
}

/// Commands to the unit. One CPU at a time, behind the driver's lock.
#[derive(Debug)]
pub(super) struct Commands<P: Platform> {
    platform: P,
    memory: DmaMemory<P>,
    index: Index,
    producer: u32,
    limit: Limit,
}

impl<P: Platform> Commands<P> {
    pub(super) fn new(platform: P, memory: DmaMemory<P>, bits: u32, limit: Limit) -> Self {
        Self { platform, memory, index: Index { bits }, producer: 0, limit }
    }

    /// Programs the base and forgets what was in the queue. The unit has it disabled.
    pub(super) fn start(&mut self, registers: &impl Registers) {
        self.producer = 0;
        let base = self.memory.start() | u64::from(self.index.bits) | reg::ALLOCATE;
        registers.write64(reg::CMDQ_BASE, base);
        registers.write32(reg::CMDQ_PROD, 0);
        registers.write32(reg::CMDQ_CONS, 0);
    }

    pub(super) fn set_limit(&mut self, limit: Limit) {
        self.limit = limit;
    }

    /// Has commands carried out; returns when the unit has.
    ///
    /// # Errors
    /// [`TimedOut`] if it did not in time, or refused one: nothing may be assumed done.
    pub(super) fn run(
        &mut self,
        registers: &impl Registers,
        commands: impl IntoIterator<Item = Command>,
    ) -> Result<(), TimedOut> {
        let mut refused = false;
        for command in commands {
            refused |= self.push(registers, command)?;
        }
        refused |= self.push(registers, Command::Sync)?;
        self.kick(registers);
        refused |= self.wait(registers, |consumer, this| consumer == this.producer)?;
        if refused { Err(TimedOut) } else { Ok(()) }
    }

    /// Puts a command into the queue once there is room; says whether one was refused meanwhile.
    fn push(&mut self, registers: &impl Registers, command: Command) -> Result<bool, TimedOut> {
        let mut refused = false;
        if self.index.full(self.producer, self.consumer(registers)) {
            self.kick(registers);
            refused =
                self.wait(registers, |consumer, this| !this.index.full(this.producer, consumer))?;
        }
        let slot = self.index.slot(self.producer) * COMMAND_WORDS;
        self.memory.write(slot, &command.words());
        self.producer = self.index.next(self.producer);
        Ok(refused)
    }

    /// Shows the unit what was put in.
    fn kick(&self, registers: &impl Registers) {
        self.platform.barrier();
        registers.write32(reg::CMDQ_PROD, self.producer);
    }

    fn consumer(&self, registers: &impl Registers) -> u32 {
        registers.read32(reg::CMDQ_CONS) & self.index.mask()
    }

    fn wait(
        &self,
        registers: &impl Registers,
        done: impl Fn(u32, &Self) -> bool,
    ) -> Result<bool, TimedOut> {
        let mut refused = false;
        wait_for(&self.platform, self.limit, || {
            refused |= self.skip_refused(registers);
            done(self.consumer(registers), self).then_some(())
        })?;
        self.platform.barrier();
        Ok(refused)
    }

    /// The unit stops at a command that it refuses (4.8 "Command consumption summary", 7.1 "Command
    /// queue errors"). It is replaced by one that does nothing, so that the queue goes on; whoever
    /// waits is told.
    fn skip_refused(&self, registers: &impl Registers) -> bool {
        let (errors, seen) = (registers.read32(reg::GERROR), registers.read32(reg::GERRORN));
        if (errors ^ seen) & reg::GERROR_CMDQ == 0 {
            return false;
        }
        let slot = self.index.slot(self.consumer(registers)) * COMMAND_WORDS;
        self.memory.write(slot, &Command::Sync.words());
        self.platform.barrier();
        registers.write32(reg::GERRORN, seen ^ reg::GERROR_CMDQ);
        true
    }

    pub(super) fn free(self) {
        self.memory.free();
    }
}

/// What the unit reports.
#[derive(Debug)]
pub(super) struct Events<P: Platform> {
    memory: DmaMemory<P>,
    index: Index,
    consumer: u32,
}

/// The next thing in the event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// An event.
    Event(Event),
    /// Events were lost.
    Overflow,
}

impl<P: Platform> Events<P> {
    pub(super) fn new(memory: DmaMemory<P>, bits: u32) -> Self {
        Self { memory, index: Index { bits }, consumer: 0 }
    }

    /// Programs the base and forgets what was in the queue. The unit has it disabled.
    pub(super) fn start(&mut self, registers: &impl Registers) {
        self.consumer = 0;
        let base = self.memory.start() | u64::from(self.index.bits) | reg::ALLOCATE;
        registers.write64(reg::EVENTQ_BASE, base);
        registers.write32(reg::EVENTQ_PROD, 0);
        registers.write32(reg::EVENTQ_CONS, 0);
    }

    /// Takes the oldest event.
    pub(super) fn next(&mut self, registers: &impl Registers) -> Option<Next> {
        let producer = registers.read32(reg::EVENTQ_PROD);
        let acknowledged = registers.read32(reg::EVENTQ_CONS) & reg::OVERFLOW;
        if self.consumer == producer & self.index.mask() {
            // Empty: now there is room again, so that a loss can be acknowledged.
            let lost = (producer ^ acknowledged) & reg::OVERFLOW != 0;
            if lost {
                let flag = producer & reg::OVERFLOW;
                registers.write32(reg::EVENTQ_CONS, self.consumer | flag);
            }
            return lost.then_some(Next::Overflow);
        }
        let words = self.memory.read(self.index.slot(self.consumer) * EVENT_WORDS);
        self.consumer = self.index.next(self.consumer);
        registers.write32(reg::EVENTQ_CONS, self.consumer | acknowledged);
        Some(Next::Event(Event::decode(words)))
    }

    pub(super) fn free(self) {
        self.memory.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_laps() {
        let index = Index { bits: 2 };
        let laps: alloc::vec::Vec<_> =
            core::iter::successors(Some(6), |at| Some(index.next(*at))).take(4).collect();
        assert_eq!(laps, [6, 7, 0, 1]);
        assert_eq!((index.slot(6), index.slot(7), index.slot(0)), (2, 3, 0));
        assert!(index.full(4, 0) && index.full(1, 5) && !index.full(0, 0) && !index.full(3, 0));
    }
}
