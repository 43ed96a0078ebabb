//! The ports of the command queue and the fault queue (RISC-V IOMMU 1.0, "In-memory queue interface").
#![forbid(unsafe_code)]

use super::spec::command::Command;
use super::spec::fault::Fault;
use super::spec::register as reg;
use crate::mmio::Registers;
use crate::queue::{COMMAND_WORDS, CommandPort, RECORD_WORDS, RecordPort};

/// 256 commands and 128 faults: a page each.
pub(super) const COMMAND_BITS: u32 = 8;
pub(super) const FAULT_BITS: u32 = 7;

/// The command queue. "A `IOFENCE.C` command completion, as determined by `cqh` advancing past its
/// index, guarantees that all previous commands have been completed and committed."
#[derive(Debug)]
pub(super) enum CommandQueue {}

impl CommandPort for CommandQueue {
    type Command = Command;
    const FENCE: Command = Command::Fence;
    const LAPS: bool = false;

    fn words(command: Command) -> [u64; COMMAND_WORDS] {
        command.words()
    }

    fn program(registers: &impl Registers, start: u64, bits: u32) {
        registers.write64(reg::CQB, reg::queue_base(start, bits));
        registers.write32(reg::CQT, 0);
    }

    fn consumer(registers: &impl Registers) -> u32 {
        registers.read32(reg::CQH)
    }

    fn publish(registers: &impl Registers, index: u32) {
        registers.write32(reg::CQT, index);
    }

    /// Illegal, not readable, or its fence timed out. All ones is what a unit reads as that is gone.
    fn stopped(registers: &impl Registers) -> Option<u32> {
        let status = registers.read32(reg::CQCSR);
        let errors = status & reg::COMMAND_ERRORS;
        (status != u32::MAX && errors != 0).then_some(errors)
    }

    fn go_on(registers: &impl Registers, errors: u32) {
        registers.write32(reg::CQCSR, reg::QUEUE_ENABLE | errors);
    }
}

/// The fault queue.
#[derive(Debug)]
pub(super) enum FaultQueue {}

impl RecordPort for FaultQueue {
    type Record = Fault;
    const LAPS: bool = false;

    fn decode(words: [u64; RECORD_WORDS]) -> Fault {
        Fault::decode(words)
    }

    fn program(registers: &impl Registers, start: u64, bits: u32) {
        registers.write64(reg::FQB, reg::queue_base(start, bits));
        registers.write32(reg::FQH, 0);
    }

    fn producer(registers: &impl Registers) -> u32 {
        registers.read32(reg::FQT)
    }

    fn release(registers: &impl Registers, index: u32) {
        registers.write32(reg::FQH, index);
    }

    fn take_loss(registers: &impl Registers, _index: u32) -> bool {
        let errors = registers.read32(reg::FQCSR) & reg::FAULT_ERRORS;
        if errors != 0 {
            registers.write32(reg::FQCSR, reg::QUEUE_ENABLE | errors);
        }
        errors != 0
    }
}
