//! A pair of queues in coherent memory: commands go in, completions come out.
//!
//! Source: NVM Express Base Specification 2.0, sections 3.3 (queues) and 4 (entries).

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use granule::addr::DmaAddr;
use granule::dma::{Coherent, Device};
use granule_linux::Bar;

use crate::Outcome;

/// Entries of each queue: they fit one page.
pub(crate) const ENTRIES: u16 = 64;
const COMMAND_BYTES: u64 = 64;
const COMPLETION_BYTES: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(30);

/// A command of 16 words.
#[derive(Clone, Copy, Default)]
pub(crate) struct Command(pub(crate) [u32; 16]);

impl Command {
    pub(crate) fn new(opcode: u8, namespace: u32) -> Self {
        let mut words = [0; 16];
        words[0] = opcode.into();
        words[1] = namespace;
        Self(words)
    }

    /// Where the data lies: two PRP entries.
    pub(crate) fn data(mut self, first: u64, second: u64) -> Self {
        for (index, address) in [(6, first), (8, second)] {
            self.0[index] = address as u32;
            self.0[index + 1] = (address >> 32) as u32;
        }
        self
    }

    pub(crate) fn word(mut self, index: usize, value: u32) -> Self {
        self.0[index] = value;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// A submission and a completion queue of the same number.
pub(crate) struct QueuePair<'d> {
    submissions: Coherent<&'d Device>,
    completions: Coherent<&'d Device>,
    /// The doorbells' offsets in BAR 0.
    doorbells: [u64; 2],
    tail: u16,
    head: u16,
    phase: bool,
}

impl<'d> QueuePair<'d> {
    pub(crate) fn new(device: &'d Device, number: u64, stride: u64) -> Outcome<Self> {
        let doorbell = |index| 0x1000 + (2 * number + index) * stride;
        Ok(Self {
            submissions: device.alloc_coherent(u64::from(ENTRIES) * COMMAND_BYTES)?,
            completions: device.alloc_coherent(u64::from(ENTRIES) * COMPLETION_BYTES)?,
            doorbells: [doorbell(0), doorbell(1)],
            tail: 0,
            head: 0,
            phase: true,
        })
    }

    /// Where the submission queue and the completion queue lie.
    pub(crate) fn addresses(&self) -> (DmaAddr, DmaAddr) {
        (self.submissions.address(), self.completions.address())
    }

    /// Gives the controller a command and waits for its completion.
    pub(crate) fn perform(&mut self, registers: &Bar, command: Command) -> Outcome<()> {
        let identified = command.word(0, command.0[0] | u32::from(self.tail) << 16);
        self.submissions.write(u64::from(self.tail) * COMMAND_BYTES, &identified.bytes())?;
        self.tail = (self.tail + 1) % ENTRIES;
        registers.write(self.doorbells[0], u32::from(self.tail))?;
        let status = self.wait()?;
        registers.write(self.doorbells[1], u32::from(self.head))?;
        match status >> 1 {
            0 => Ok(()),
            code => {
                Err(format!("the controller refused opcode {:#x}: status {code:#x}", command.0[0])
                    .into())
            }
        }
    }

    /// The status of the next completion: its phase has turned.
    fn wait(&mut self) -> Outcome<u16> {
        let at = u64::from(self.head) * COMPLETION_BYTES;
        let start = Instant::now();
        loop {
            let mut status = [0; 2];
            self.completions.read(at + 14, &mut status)?;
            let status = u16::from_le_bytes(status);
            if (status & 1 == 1) == self.phase {
                fence(Ordering::Acquire);
                self.head = (self.head + 1) % ENTRIES;
                self.phase ^= self.head == 0;
                return Ok(status);
            }
            if start.elapsed() > PATIENCE {
                return Err("the controller does not complete a command".into());
            }
            std::thread::yield_now();
        }
    }
}
