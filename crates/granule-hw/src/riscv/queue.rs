//! The command queue and the fault queue (RISC-V IOMMU 1.0, "In-memory queue interface").
#![forbid(unsafe_code)]

use granule::mem::Platform;

use super::spec::command::Command;
use super::spec::fault::Fault;
use super::spec::register as reg;
use crate::dma_memory::DmaMemory;
use crate::mmio::Registers;
use crate::wait::{Limit, TimedOut, wait_for};

/// 256 commands and 128 faults: a page each.
pub(super) const COMMAND_BITS: u32 = 8;
pub(super) const FAULT_BITS: u32 = 7;
const COMMAND_WORDS: usize = 2;
const FAULT_WORDS: usize = 4;

const fn next(index: u32, bits: u32) -> u32 {
    index.wrapping_add(1) & ((1 << bits) - 1)
}

/// Commands to the unit. One CPU at a time, behind the driver's lock.
#[derive(Debug)]
pub(super) struct Commands<P: Platform> {
    platform: P,
    memory: DmaMemory<P>,
    tail: u32,
    limit: Limit,
}

impl<P: Platform> Commands<P> {
    pub(super) fn new(platform: P, memory: DmaMemory<P>, limit: Limit) -> Self {
        Self { platform, memory, tail: 0, limit }
    }

    /// Programs base and tail; the unit has the queue off.
    pub(super) fn start(&mut self, registers: &impl Registers) {
        self.tail = 0;
        registers.write64(reg::CQB, reg::queue_base(self.memory.start(), COMMAND_BITS));
        registers.write32(reg::CQT, 0);
    }

    /// Has commands carried out; returns when the unit has. "A `IOFENCE.C` command completion, as
    /// determined by `cqh` advancing past its index, guarantees that all previous commands have been
    /// completed and committed."
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
        refused |= self.push(registers, Command::Fence)?;
        self.kick(registers);
        refused |= self.wait(registers, |head, this| head == this.tail)?;
        if refused { Err(TimedOut) } else { Ok(()) }
    }

    fn push(&mut self, registers: &impl Registers, command: Command) -> Result<bool, TimedOut> {
        let after = next(self.tail, COMMAND_BITS);
        let mut refused = false;
        if self.head(registers) == after {
            self.kick(registers);
            refused = self.wait(registers, |head, _| head != after)?;
        }
        self.memory.write(self.tail as usize * COMMAND_WORDS, &command.words());
        self.tail = after;
        Ok(refused)
    }

    fn kick(&self, registers: &impl Registers) {
        self.platform.barrier();
        registers.write32(reg::CQT, self.tail);
    }

    fn head(&self, registers: &impl Registers) -> u32 {
        registers.read32(reg::CQH) & ((1 << COMMAND_BITS) - 1)
    }

    fn wait(
        &self,
        registers: &impl Registers,
        done: impl Fn(u32, &Self) -> bool,
    ) -> Result<bool, TimedOut> {
        let mut refused = false;
        wait_for(&self.platform, self.limit, || {
            refused |= self.skip_refused(registers);
            done(self.head(registers), self).then_some(())
        })?;
        // An error may have been raised by the very last command.
        refused |= self.skip_refused(registers);
        self.platform.barrier();
        Ok(refused)
    }

    /// The unit stops at a command that it refuses, cannot read, or whose fence timed out. It is
    /// replaced by a fence, so that the queue goes on; whoever waits is told.
    fn skip_refused(&self, registers: &impl Registers) -> bool {
        let status = registers.read32(reg::CQCSR);
        if status == u32::MAX || status & reg::COMMAND_ERRORS == 0 {
            return false;
        }
        let head = self.head(registers);
        if head != self.tail {
            self.memory.write(head as usize * COMMAND_WORDS, &Command::Fence.words());
            self.platform.barrier();
        }
        registers.write32(reg::CQCSR, reg::QUEUE_ENABLE | status & reg::COMMAND_ERRORS);
        true
    }

    pub(super) fn free(self) {
        self.memory.free();
    }
}

/// What the unit reports.
#[derive(Debug)]
pub(super) struct Faults<P: Platform> {
    memory: DmaMemory<P>,
    head: u32,
}

/// The next thing in the fault queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A fault.
    Fault(Fault),
    /// Faults were lost.
    Overflow,
}

impl<P: Platform> Faults<P> {
    pub(super) fn new(memory: DmaMemory<P>) -> Self {
        Self { memory, head: 0 }
    }

    /// Programs base and head; the unit has the queue off.
    pub(super) fn start(&mut self, registers: &impl Registers) {
        self.head = 0;
        registers.write64(reg::FQB, reg::queue_base(self.memory.start(), FAULT_BITS));
        registers.write32(reg::FQH, 0);
    }

    /// Takes the oldest fault.
    pub(super) fn next(&mut self, registers: &impl Registers) -> Option<Next> {
        let tail = registers.read32(reg::FQT) & ((1 << FAULT_BITS) - 1);
        if self.head == tail {
            // Empty: now there is room again, so that a loss can be acknowledged.
            let errors = registers.read32(reg::FQCSR) & reg::FAULT_ERRORS;
            if errors == 0 {
                return None;
            }
            registers.write32(reg::FQCSR, reg::QUEUE_ENABLE | errors);
            return Some(Next::Overflow);
        }
        let words = self.memory.read(self.head as usize * FAULT_WORDS);
        self.head = next(self.head, FAULT_BITS);
        registers.write32(reg::FQH, self.head);
        Some(Next::Fault(Fault::decode(words)))
    }

    pub(super) fn free(self) {
        self.memory.free();
    }
}
