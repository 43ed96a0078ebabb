//! The two queues of the device: requests one at a time, and fault records.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use granule::mem::Platform;

use super::queue::{Part, Queue};
use super::spec::{FAULT_BYTES, Fault, Request, TAIL_BYTES};
use super::transport::VirtioTransport;
use crate::HwError;
use crate::block::{Block, BlockRequest};
use crate::wait::{Limit, TimedOut, wait_for};

pub(super) const REQUEST_QUEUE: u16 = 0;
pub(super) const EVENT_QUEUE: u16 = 1;
/// Where the part that the device writes begins: cache lines of its own.
const ANSWER: usize = 256;
/// No status that a device gives: it has written nothing.
const UNANSWERED: u8 = 0xff;
/// Bytes between the buffers of fault records.
const EVENT_STRIDE: usize = 32;
/// A record for each of this many faults: QEMU makes one for every 4 bytes of a refused transfer.
const EVENTS: u16 = 128;

/// The request queue. One request is under way at a time.
pub(super) struct Requests<P: Platform> {
    platform: P,
    queue: Queue<P>,
    buffer: Block<P>,
    properties: usize,
    /// A request was not answered: its buffer is the device's until a reset.
    pub(super) stuck: bool,
}

impl<P: Platform> Requests<P> {
    pub(super) fn new(
        platform: &P,
        unit: &str,
        size: u16,
        properties: usize,
    ) -> Result<Self, HwError> {
        let request = BlockRequest {
            unit,
            what: "requests",
            size: (ANSWER + properties + TAIL_BYTES) as u64,
            align: 1,
            address_bits: 64,
            snooped: false,
        };
        Ok(Self {
            platform: platform.clone(),
            // A queue has a power of two of entries, whatever the device says that it could have.
            queue: Queue::new(platform, unit, 1 << size.clamp(1, 4).ilog2())?,
            buffer: Block::new(platform, &request)?,
            properties,
            stuck: false,
        })
    }

    /// Sends a request and waits for its status.
    pub(super) fn send<T: VirtioTransport>(
        &mut self,
        transport: &T,
        request: &Request,
    ) -> Result<u8, TimedOut> {
        if self.stuck {
            return Err(TimedOut);
        }
        let (bytes, len) = request.encode();
        bytes.iter().take(len).enumerate().for_each(|(at, byte)| self.buffer.write8(at, *byte));
        let properties = if matches!(request, Request::Probe { .. }) { self.properties } else { 0 };
        let answer = properties + TAIL_BYTES;
        (0..answer).for_each(|at| self.buffer.write8(ANSWER + at, 0));
        self.buffer.write8(ANSWER + properties, UNANSWERED);
        self.buffer.publish(0, ANSWER + answer);
        let at = |offset: usize| self.buffer.phys() + offset as u64;
        self.queue.post(
            0,
            &[
                Part { phys: at(0), len: len as u32, device_writes: false },
                Part { phys: at(ANSWER), len: answer as u32, device_writes: true },
            ],
        );
        transport.notify(REQUEST_QUEUE);
        let used = wait_for(&self.platform, Limit::default(), || self.queue.take_used());
        self.buffer.refresh(ANSWER, answer);
        let status = self.buffer.read8(ANSWER + properties);
        match used {
            Ok((0, _)) if status != UNANSWERED => Ok(status),
            // No answer, or one to a request that was never made.
            _ => {
                self.stuck = true;
                Err(TimedOut)
            }
        }
    }

    /// The properties that the last PROBE returned.
    pub(super) fn properties(&self) -> Vec<u8> {
        (0..self.properties).map(|at| self.buffer.read8(ANSWER + at)).collect()
    }

    /// After the device was reset.
    pub(super) fn restart<T: VirtioTransport>(&mut self, transport: &T) {
        self.queue.reset();
        self.stuck = false;
        transport.set_queue(REQUEST_QUEUE, self.queue.size(), self.queue.addresses());
    }

    pub(super) fn leak(self) {
        self.queue.leak();
        self.buffer.leak();
    }
}

/// The event queue: buffers that the device fills with fault records.
pub(super) struct Events<P: Platform> {
    queue: Queue<P>,
    buffer: Block<P>,
}

impl<P: Platform> Events<P> {
    pub(super) fn new(platform: &P, unit: &str, most: u16) -> Result<Self, HwError> {
        let size = if most >= EVENTS { EVENTS } else { 1 << most.max(1).ilog2() };
        let request = BlockRequest {
            unit,
            what: "fault records",
            size: (usize::from(size) * EVENT_STRIDE) as u64,
            align: 1,
            address_bits: 64,
            snooped: false,
        };
        let buffer = Block::new(platform, &request)?;
        Ok(Self { queue: Queue::new(platform, unit, size)?, buffer })
    }

    fn post(&mut self, slot: u16) {
        let offset = usize::from(slot) * EVENT_STRIDE;
        let phys = self.buffer.phys() + offset as u64;
        self.queue.post(slot, &[Part { phys, len: FAULT_BYTES as u32, device_writes: true }]);
    }

    /// The next record; its buffer goes back to the device.
    pub(super) fn take(&mut self) -> Option<Fault> {
        let (slot, written) = self.queue.take_used()?;
        let slot = u16::try_from(slot).ok().filter(|slot| *slot < self.queue.size())?;
        let offset = usize::from(slot) * EVENT_STRIDE;
        self.buffer.refresh(offset, EVENT_STRIDE);
        let mut bytes = [0; FAULT_BYTES];
        bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = self.buffer.read8(offset + at));
        (0..EVENT_STRIDE).step_by(8).for_each(|at| self.buffer.write64(offset + at, 0));
        self.buffer.publish(offset, EVENT_STRIDE);
        self.post(slot);
        (written as usize >= FAULT_BYTES).then(|| Fault::decode(&bytes))
    }

    /// After the device was reset.
    pub(super) fn restart<T: VirtioTransport>(&mut self, transport: &T) {
        self.queue.reset();
        transport.set_queue(EVENT_QUEUE, self.queue.size(), self.queue.addresses());
        (0..self.queue.size()).for_each(|slot| self.post(slot));
    }

    pub(super) fn leak(self) {
        self.queue.leak();
        self.buffer.leak();
    }
}
