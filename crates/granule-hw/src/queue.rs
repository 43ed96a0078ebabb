//! Queues in memory whose ends stand in registers, as SMMUv3 and the RISC-V IOMMU have them: commands,
//! carried out in order and ended by a fence, and records of what went wrong.
//!
//! What differs between units is a [`CommandPort`] and a [`RecordPort`]: registers, bits, and the
//! words of a fence.
#![forbid(unsafe_code)]

use core::marker::PhantomData;

use granule::mem::Platform;

use crate::dma_memory::DmaMemory;
use crate::mmio::Registers;
use crate::wait::{Limit, TimedOut, wait_for};

/// The words of a command.
pub(crate) const COMMAND_WORDS: usize = 2;
/// The words of a record.
pub(crate) const RECORD_WORDS: usize = 4;

/// How a queue's registers count: slots, and with `laps` a bit above them that turns with every lap.
/// Without it, a full queue keeps one slot empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Index {
    pub(crate) bits: u32,
    pub(crate) laps: bool,
}

impl Index {
    const fn mask(self) -> u32 {
        let slots = 1 << self.bits;
        if self.laps { 2 * slots - 1 } else { slots - 1 }
    }

    const fn next(self, index: u32) -> u32 {
        index.wrapping_add(1) & self.mask()
    }

    const fn slot(self, index: u32) -> usize {
        (index & ((1 << self.bits) - 1)) as usize
    }

    const fn full(self, producer: u32, consumer: u32) -> bool {
        if self.laps {
            (producer ^ consumer) & self.mask() == 1 << self.bits
        } else {
            self.next(producer) == consumer & self.mask()
        }
    }
}

/// The command queue of a kind of unit. One CPU at a time, behind the driver's lock.
pub(crate) trait CommandPort {
    /// A command, not yet encoded.
    type Command;
    /// Once the unit is past it, everything before it is done.
    const FENCE: Self::Command;
    /// Whether the registers count laps.
    const LAPS: bool;

    /// How a command is encoded.
    fn words(command: Self::Command) -> [u64; COMMAND_WORDS];
    /// Programs an empty queue of `1 << bits` commands; the unit has it off.
    fn program(registers: &impl Registers, start: u64, bits: u32);
    /// What the unit carries out next.
    fn consumer(registers: &impl Registers) -> u32;
    /// Shows the unit what was put in, up to before `index`.
    fn publish(registers: &impl Registers, index: u32);
    /// The errors, if the unit stopped at a command.
    fn stopped(registers: &impl Registers) -> Option<u32>;
    /// Acknowledges what [`stopped`](Self::stopped) said: the unit reads the command again.
    fn go_on(registers: &impl Registers, errors: u32);
}

/// Commands to a unit.
#[derive(Debug)]
pub(crate) struct Commands<P: Platform, Q> {
    platform: P,
    memory: DmaMemory<P>,
    index: Index,
    producer: u32,
    limit: Limit,
    port: PhantomData<Q>,
}

impl<P: Platform, Q: CommandPort> Commands<P, Q> {
    /// A queue of `1 << bits` commands in memory that has room for them.
    pub(crate) fn new(platform: P, memory: DmaMemory<P>, bits: u32, limit: Limit) -> Self {
        let index = Index { bits, laps: Q::LAPS };
        Self { platform, memory, index, producer: 0, limit, port: PhantomData }
    }

    /// Programs the registers and forgets what was in the queue. The unit has it off.
    pub(crate) fn start(&mut self, registers: &impl Registers) {
        self.producer = 0;
        Q::program(registers, self.memory.start(), self.index.bits);
    }

    pub(crate) fn set_limit(&mut self, limit: Limit) {
        self.limit = limit;
    }

    /// Has commands carried out; returns when the unit has.
    ///
    /// # Errors
    /// [`TimedOut`] if it did not in time, or refused one: nothing may be assumed done.
    pub(crate) fn run(
        &mut self,
        registers: &impl Registers,
        commands: impl IntoIterator<Item = Q::Command>,
    ) -> Result<(), TimedOut> {
        let mut refused = false;
        for command in commands {
            refused |= self.push(registers, command)?;
        }
        refused |= self.push(registers, Q::FENCE)?;
        self.kick(registers);
        refused |= self.wait(registers, |consumer, this| consumer == this.producer)?;
        if refused { Err(TimedOut) } else { Ok(()) }
    }

    /// Puts a command into the queue once there is room; says whether one was refused meanwhile.
    fn push(&mut self, registers: &impl Registers, command: Q::Command) -> Result<bool, TimedOut> {
        let mut refused = false;
        if self.index.full(self.producer, self.consumer(registers)) {
            self.kick(registers);
            let room = |consumer, this: &Self| !this.index.full(this.producer, consumer);
            refused = self.wait(registers, room)?;
        }
        self.memory.write(self.index.slot(self.producer) * COMMAND_WORDS, &Q::words(command));
        self.producer = self.index.next(self.producer);
        Ok(refused)
    }

    fn kick(&self, registers: &impl Registers) {
        self.platform.barrier();
        Q::publish(registers, self.producer);
    }

    fn consumer(&self, registers: &impl Registers) -> u32 {
        Q::consumer(registers) & self.index.mask()
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
        // An error may have been raised by the very last command.
        refused |= self.skip_refused(registers);
        self.platform.barrier();
        Ok(refused)
    }

    /// A unit stops at a command that it refuses or cannot read. The command is replaced by a fence, so
    /// that the queue goes on; whoever waits is told.
    fn skip_refused(&self, registers: &impl Registers) -> bool {
        let Some(errors) = Q::stopped(registers) else { return false };
        let consumer = self.consumer(registers);
        if consumer != self.producer {
            self.memory.write(self.index.slot(consumer) * COMMAND_WORDS, &Q::words(Q::FENCE));
            self.platform.barrier();
        }
        Q::go_on(registers, errors);
        true
    }

    pub(crate) fn free(self) {
        self.memory.free();
    }
}

/// The queue of fault records of a kind of unit.
pub(crate) trait RecordPort {
    /// A record, decoded.
    type Record;
    /// Whether the registers count laps.
    const LAPS: bool;

    /// What the words of a record say.
    fn decode(words: [u64; RECORD_WORDS]) -> Self::Record;
    /// Programs an empty queue of `1 << bits` records; the unit has it off.
    fn program(registers: &impl Registers, start: u64, bits: u32);
    /// Where the unit writes next.
    fn producer(registers: &impl Registers) -> u32;
    /// Gives the slots before `index` back to the unit.
    fn release(registers: &impl Registers, index: u32);
    /// Whether records were lost since the last call; acknowledges it. The queue is empty, all before
    /// `index` given back.
    fn take_loss(registers: &impl Registers, index: u32) -> bool;
}

/// What a unit reports.
#[derive(Debug)]
pub(crate) struct Records<P: Platform, Q> {
    memory: DmaMemory<P>,
    index: Index,
    consumer: u32,
    port: PhantomData<Q>,
}

/// The next thing in a queue of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// A record.
    Record(T),
    /// Records were lost.
    Overflow,
}

impl<P: Platform, Q: RecordPort> Records<P, Q> {
    /// A queue of `1 << bits` records in memory that has room for them.
    pub(crate) fn new(memory: DmaMemory<P>, bits: u32) -> Self {
        let index = Index { bits, laps: Q::LAPS };
        Self { memory, index, consumer: 0, port: PhantomData }
    }

    /// Programs the registers and forgets what was in the queue. The unit has it off.
    pub(crate) fn start(&mut self, registers: &impl Registers) {
        self.consumer = 0;
        Q::program(registers, self.memory.start(), self.index.bits);
    }

    /// Takes the oldest record; a loss comes behind those that were written before it.
    pub(crate) fn next(&mut self, registers: &impl Registers) -> Option<Next<Q::Record>> {
        if self.consumer == Q::producer(registers) & self.index.mask() {
            // Empty: now there is room again, so that a loss can be acknowledged.
            return Q::take_loss(registers, self.consumer).then_some(Next::Overflow);
        }
        let words = self.memory.read(self.index.slot(self.consumer) * RECORD_WORDS);
        self.consumer = self.index.next(self.consumer);
        Q::release(registers, self.consumer);
        Some(Next::Record(Q::decode(words)))
    }

    pub(crate) fn free(self) {
        self.memory.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(index: Index, from: u32) -> [u32; 4] {
        let mut at = from;
        core::array::from_fn(|_| {
            let now = at;
            at = index.next(at);
            now
        })
    }

    #[test]
    fn an_index_laps() {
        let index = Index { bits: 2, laps: true };
        assert_eq!(steps(index, 6), [6, 7, 0, 1]);
        assert_eq!((index.slot(6), index.slot(7), index.slot(0)), (2, 3, 0));
        assert!(index.full(4, 0) && index.full(1, 5) && !index.full(0, 0) && !index.full(3, 0));
    }

    #[test]
    fn an_index_without_laps_keeps_a_slot_empty() {
        let index = Index { bits: 2, laps: false };
        assert_eq!(steps(index, 2), [2, 3, 0, 1]);
        assert!(index.full(3, 0) && index.full(0, 1) && !index.full(0, 0) && !index.full(2, 0));
    }
}
