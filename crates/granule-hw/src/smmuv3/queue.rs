//! The ports of the command queue and the event queue (IHI 0070, 3.5 "Command and Event queues").
#![forbid(unsafe_code)]

use super::spec::command::Command;
use super::spec::event::Event;
use super::spec::register as reg;
use crate::mmio::Registers;
use crate::queue::{COMMAND_WORDS, CommandPort, RECORD_WORDS, RecordPort};

fn base(start: u64, bits: u32) -> u64 {
    start | u64::from(bits) | reg::ALLOCATE
}

/// The command queue. The unit stops at a command that it refuses (4.8 "Command consumption summary",
/// 7.1 "Command queue errors").
#[derive(Debug)]
pub(super) enum CommandQueue {}

impl CommandPort for CommandQueue {
    type Command = Command;
    const FENCE: Command = Command::Sync;
    const LAPS: bool = true;

    fn words(command: Command) -> [u64; COMMAND_WORDS] {
        command.words()
    }

    fn program(registers: &impl Registers, start: u64, bits: u32) {
        registers.write64(reg::CMDQ_BASE, base(start, bits));
        registers.write32(reg::CMDQ_PROD, 0);
        registers.write32(reg::CMDQ_CONS, 0);
    }

    fn consumer(registers: &impl Registers) -> u32 {
        registers.read32(reg::CMDQ_CONS)
    }

    fn publish(registers: &impl Registers, index: u32) {
        registers.write32(reg::CMDQ_PROD, index);
    }

    fn stopped(registers: &impl Registers) -> Option<u32> {
        let errors = registers.read32(reg::GERROR) ^ registers.read32(reg::GERRORN);
        (errors & reg::GERROR_CMDQ != 0).then_some(reg::GERROR_CMDQ)
    }

    /// An error is acknowledged by making both registers agree on it; others are left as they are.
    fn go_on(registers: &impl Registers, errors: u32) {
        registers.write32(reg::GERRORN, registers.read32(reg::GERRORN) ^ errors);
    }
}

/// The event queue.
#[derive(Debug)]
pub(super) enum EventQueue {}

impl RecordPort for EventQueue {
    type Record = Event;
    const LAPS: bool = true;

    fn decode(words: [u64; RECORD_WORDS]) -> Event {
        Event::decode(words)
    }

    fn program(registers: &impl Registers, start: u64, bits: u32) {
        registers.write64(reg::EVENTQ_BASE, base(start, bits));
        registers.write32(reg::EVENTQ_PROD, 0);
        registers.write32(reg::EVENTQ_CONS, 0);
    }

    fn producer(registers: &impl Registers) -> u32 {
        registers.read32(reg::EVENTQ_PROD)
    }

    fn release(registers: &impl Registers, index: u32) {
        let acknowledged = registers.read32(reg::EVENTQ_CONS) & reg::OVERFLOW;
        registers.write32(reg::EVENTQ_CONS, index | acknowledged);
    }

    /// The overflow flags of both ends differ until the loss is acknowledged.
    fn take_loss(registers: &impl Registers, index: u32) -> bool {
        let flag = registers.read32(reg::EVENTQ_PROD) & reg::OVERFLOW;
        let lost = flag != registers.read32(reg::EVENTQ_CONS) & reg::OVERFLOW;
        if lost {
            registers.write32(reg::EVENTQ_CONS, index | flag);
        }
        lost
    }
}
