//! A streaming reader of ftrace text: memory does not grow with the trace.
//!
//! | file | subject |
//! | --- | --- |
//! | `input` | files and readers, plain, zstd or gzip |
//! | `line` | the front of a line, as three tools print it |
//! | `event` | the fields of the events that matter here |

mod event;
mod input;
mod line;

use std::collections::BTreeMap;
use std::io::{self, BufRead};

pub use event::{Allocator, DeviceIndex, EventKind, Turn};
pub use input::Input;

use crate::ReplayError;
use line::Shape;

/// Lines longer than this are damaged: a list of 128 entries takes under 8 KiB.
const MAX_LINE: usize = 1 << 17;
/// How many damaged lines are remembered by number.
const MAX_DAMAGED: usize = 100;
/// How many kinds of other events are told apart.
const MAX_KINDS: usize = 1000;
/// How many devices are told apart; the rest are one.
const MAX_DEVICES: usize = 1000;

/// One event of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The line, from 1.
    pub line: u64,
    /// The time in nanoseconds, by the trace's clock.
    pub time: u64,
    /// Which thread of execution: the task's number, and whether it was interrupted.
    pub context: (u32, bool),
    /// What happened.
    pub kind: EventKind,
}

/// What was read so far besides the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Lines.
    pub lines: u64,
    /// Bytes of text, unpacked.
    pub bytes: u64,
    /// Events of all kinds.
    pub events: u64,
    /// Events of the DMA API.
    pub dma_events: u64,
    /// Events that play no part, by name.
    pub skipped: BTreeMap<String, u64>,
    /// How many lines are no events, comments or the like.
    pub damaged: u64,
    /// The first hundred of them.
    pub damaged_lines: Vec<u64>,
    /// Events that the tracer says it lost.
    pub lost: u64,
}

/// Reads events one by one.
pub struct Reader {
    text: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    devices: Vec<String>,
    last_device: usize,
    stats: ReadStats,
}

impl Reader {
    /// Reads a trace.
    pub fn new(input: Input) -> Self {
        Self {
            text: input.into_text(),
            buffer: Vec::with_capacity(4096),
            devices: Vec::new(),
            last_device: 0,
            stats: ReadStats::default(),
        }
    }

    /// The devices met so far, by number.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// What was read so far.
    pub fn stats(&self) -> &ReadStats {
        &self.stats
    }

    /// The next event that matters, or `None` at the end.
    ///
    /// # Errors
    /// [`ReplayError::Read`].
    pub fn next_event(&mut self) -> Result<Option<Event>, ReplayError> {
        loop {
            let more = self.read_line();
            if !more.map_err(|cause| ReplayError::Read { line: self.stats.lines, cause })? {
                return Ok(None);
            }
            self.stats.lines += 1;
            if let Some(event) = self.parse_line() {
                return Ok(Some(event));
            }
        }
    }

    /// Reads one line into the buffer; of one that is too long, the beginning.
    fn read_line(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        let mut any = false;
        loop {
            let chunk = self.text.fill_buf()?;
            if chunk.is_empty() {
                return Ok(any);
            }
            any = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let room = (MAX_LINE + 1).saturating_sub(self.buffer.len());
            self.buffer.extend_from_slice(&part[..part.len().min(room)]);
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.text.consume(used);
            self.stats.bytes += used as u64;
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    fn parse_line(&mut self) -> Option<Event> {
        let number = self.stats.lines;
        let buffer = core::mem::take(&mut self.buffer);
        let shape = match core::str::from_utf8(&buffer) {
            Ok(text) if buffer.len() <= MAX_LINE => line::shape(text),
            _ => Shape::Damaged,
        };
        let event = match shape {
            Shape::Skip => None,
            Shape::Damaged => self.damaged(number),
            Shape::Lost(count) => {
                self.stats.lost = self.stats.lost.saturating_add(count);
                let kind = EventKind::Lost(count);
                Some(Event { line: number, time: 0, context: (0, false), kind })
            }
            Shape::Event(line) => self.parse_event(number, &line),
        };
        self.buffer = buffer;
        event
    }

    fn damaged<T>(&mut self, line: u64) -> Option<T> {
        self.stats.damaged += 1;
        if self.stats.damaged_lines.len() < MAX_DAMAGED {
            self.stats.damaged_lines.push(line);
        }
        None
    }

    fn parse_event(&mut self, number: u64, line: &line::Line<'_>) -> Option<Event> {
        let (devices, last) = (&mut self.devices, &mut self.last_device);
        let mut device = |name: &str| intern(devices, last, name);
        let kind = match event::parse(line.name, line.text, &mut device) {
            event::Parsed::Event(kind) => kind,
            event::Parsed::Damaged => return self.damaged(number),
            event::Parsed::Unknown => {
                self.stats.events += 1;
                self.skip(line.name);
                return None;
            }
        };
        self.stats.events += 1;
        self.stats.dma_events += u64::from(kind.is_dma());
        Some(Event { line: number, time: line.time, context: (line.pid, line.irq), kind })
    }

    fn skip(&mut self, name: &str) {
        let known = self.stats.skipped.len() < MAX_KINDS || self.stats.skipped.contains_key(name);
        match self.stats.skipped.get_mut(if known { name } else { "others" }) {
            Some(count) => *count += 1,
            None => {
                let name = if known { name } else { "others" };
                self.stats.skipped.insert(name.to_owned(), 1);
            }
        }
    }
}

fn intern(devices: &mut Vec<String>, last: &mut usize, name: &str) -> DeviceIndex {
    if devices.get(*last).is_none_or(|known| known != name) {
        *last = match devices.iter().position(|known| known == name) {
            Some(index) => index,
            None if devices.len() < MAX_DEVICES => {
                devices.push(name.to_owned());
                devices.len() - 1
            }
            None => MAX_DEVICES - 1,
        };
    }
    *last as DeviceIndex
}

impl core::fmt::Debug for Reader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Reader").field("stats", &self.stats).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
