//! The command buffer and the event log.
#![forbid(unsafe_code)]

use alloc::string::ToString;

use granule::addr::Access;
use granule::mem::Platform;

use super::spec::{Command, Event, RING_ENTRIES, RING_ENTRY, RING_LENGTH, control, reg, status};
use crate::block::Block;
use crate::mmio::Registers;
use crate::wait::{Limit, TimedOut, wait_for};
use crate::{FaultReason, HwError};

/// Stops translation and both rings, and waits until the unit has let go of them.
pub(super) fn stop<P: Platform>(
    platform: &P,
    registers: &impl Registers,
    name: &str,
) -> Result<(), HwError> {
    let on = control::ENABLE | control::COMMANDS | control::EVENT_LOG;
    let now = registers.read64(reg::CONTROL);
    registers.write64(reg::CONTROL, now & !on);
    stopped(platform, registers)
        .map_err(|_| HwError::Timeout { unit: name.to_string(), what: "stopping its rings" })
}

/// Waits until neither ring is running.
pub(super) fn stopped<P: Platform>(
    platform: &P,
    registers: &impl Registers,
) -> Result<(), TimedOut> {
    let running = status::COMMANDS_RUNNING | status::EVENT_RUNNING;
    wait_for(platform, Limit::default(), || {
        (registers.read64(reg::STATUS) & running == 0).then_some(())
    })
}

/// The command buffer. Every batch ends with a wait, so it is empty before and after.
pub(super) struct Commands<P: Platform> {
    platform: P,
    ring: Block<P>,
    status: Block<P>,
    tail: usize,
    /// What the last wait writes: each another number, so that a late one is no answer.
    sequence: u64,
    /// A batch did not complete: only a reset helps.
    stuck: bool,
}

impl<P: Platform> Commands<P> {
    pub(super) fn new(platform: &P, ring: Block<P>, status: Block<P>) -> Self {
        Self { platform: platform.clone(), ring, status, tail: 0, sequence: 0, stuck: false }
    }

    /// The unit has let go of the ring.
    pub(super) fn restart(&mut self, registers: &impl Registers) {
        self.ring.clear();
        self.tail = 0;
        self.stuck = false;
        registers.write64(reg::COMMAND_BASE, self.ring.phys() | RING_LENGTH);
        registers.write64(reg::COMMAND_HEAD, 0);
        registers.write64(reg::COMMAND_TAIL, 0);
    }

    fn put(&mut self, command: &Command) {
        let (low, high) = command.encode();
        let at = self.tail * RING_ENTRY;
        self.ring.write64(at, low);
        self.ring.write64(at + 8, high);
        self.ring.publish(at, RING_ENTRY);
        self.tail = (self.tail + 1) % RING_ENTRIES;
    }

    /// Runs commands, in order, and returns when they are done.
    pub(super) fn run(
        &mut self,
        registers: &impl Registers,
        commands: &[Command],
    ) -> Result<(), TimedOut> {
        if self.stuck {
            return Err(TimedOut);
        }
        for part in commands.chunks(RING_ENTRIES - 2) {
            part.iter().for_each(|command| self.put(command));
            self.sequence += 1;
            self.put(&Command::Wait { address: self.status.phys(), value: self.sequence });
            registers.write64(reg::COMMAND_TAIL, (self.tail * RING_ENTRY) as u64);
            let (status, sequence) = (&self.status, self.sequence);
            let answered = || {
                status.refresh(0, 8);
                status.read64(0) == sequence
            };
            let done = wait_for(&self.platform, Limit::default(), || answered().then_some(()));
            self.stuck = done.is_err();
            done?;
        }
        Ok(())
    }

    pub(super) fn leak(self) {
        self.ring.leak();
        self.status.leak();
    }
}

/// The event log.
pub(super) struct Events<P: Platform> {
    ring: Block<P>,
    head: usize,
}

impl<P: Platform> Events<P> {
    pub(super) fn new(ring: Block<P>) -> Self {
        Self { ring, head: 0 }
    }

    /// The unit has let go of the log.
    pub(super) fn restart(&mut self, registers: &impl Registers) {
        self.ring.clear();
        self.head = 0;
        registers.write64(reg::EVENT_BASE, self.ring.phys() | RING_LENGTH);
        registers.write64(reg::EVENT_HEAD, 0);
        registers.write64(reg::EVENT_TAIL, 0);
    }

    /// The next event; an overflow comes behind those that were logged before it.
    pub(super) fn take(&mut self, registers: &impl Registers) -> Option<Event> {
        let tail = registers.read64(reg::EVENT_TAIL) as usize / RING_ENTRY % RING_ENTRIES;
        if self.head == tail {
            return self.overflow(registers);
        }
        let at = self.head * RING_ENTRY;
        self.ring.refresh(at, RING_ENTRY);
        // The unit may move its tail before the entry has arrived (2.5, erratum of old models): then
        // it is read the next time.
        let event = Event::decode(self.ring.read64(at), self.ring.read64(at + 8))?;
        self.ring.write64(at, 0);
        self.ring.publish(at, RING_ENTRY);
        self.head = (self.head + 1) % RING_ENTRIES;
        registers.write64(reg::EVENT_HEAD, (self.head * RING_ENTRY) as u64);
        Some(event)
    }

    /// Starts a log again that stands still because it was full (3.4.13).
    fn overflow(&mut self, registers: &impl Registers) -> Option<Event> {
        if registers.read64(reg::STATUS) & status::EVENT_OVERFLOW == 0 {
            return None;
        }
        let control = registers.read64(reg::CONTROL);
        registers.write64(reg::CONTROL, control & !control::EVENT_LOG);
        registers.write64(reg::STATUS, status::EVENT_OVERFLOW);
        self.restart(registers);
        registers.write64(reg::CONTROL, control | control::EVENT_LOG);
        let (function, address, access) = (None, None, Access::empty());
        Some(Event { code: 0, function, address, access, reason: FaultReason::Overflow })
    }

    pub(super) fn leak(self) {
        self.ring.leak();
    }
}
