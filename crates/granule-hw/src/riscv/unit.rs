//! [`Unit`] on a RISC-V IOMMU: contexts, attachment, invalidation.

use alloc::vec::Vec;

use granule::addr::{IovaRange, PhysAddr};
use granule::domain::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
use granule::mem::Platform;
use granule::table::{FormatId, TableLayout};
use lock_api::Mutex;

use super::spec::command::Command;
use super::spec::context::{DeviceContext, Mode, WORDS};
use super::{LAST_SPACE, RiscvIommu};
use crate::matching::{for_all, matching};
use crate::mmio::Registers;

/// More pages than these are dropped by address space instead of one by one.
const MOST_PAGES: u64 = 64;
const PAGE_SHIFT: u32 = 12;

/// An address space of a RISC-V IOMMU: a process soft-context id.
pub struct RiscvContext<P: Platform> {
    space: u32,
    words: [u64; WORDS],
    state: Mutex<P::Lock, State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// A device could not be blocked: the id is never used again.
    Stuck,
    Closed,
}

impl<P: Platform> RiscvContext<P> {
    /// The `PSCID` that its cached entries carry.
    pub fn space(&self) -> u32 {
        self.space
    }
}

const BLOCKED: [u64; WORDS] = DeviceContext::Blocked.words();

impl<P: Platform, R: Registers> RiscvIommu<P, R> {
    fn run(&self, commands: impl IntoIterator<Item = Command>) -> Result<(), UnitError> {
        let late = |_| UnitError::Timeout { unit: self.info.name.clone() };
        self.commands.lock().run(&self.registers, commands).map_err(late)
    }

    fn device_ids(&self, stream: StreamId) -> Result<impl Iterator<Item = u32> + Clone, UnitError> {
        let limit = self.directory.lock().limit();
        matching(stream, limit).ok_or_else(|| UnitError::NoSuchStream {
            unit: self.info.name.clone(),
            stream,
            limit,
        })
    }

    /// Gives a device a context. The unit never sees a mixture of the old one and the new one: it is
    /// not valid in between ("Guidelines for changing device-contexts").
    fn set(&self, id: u32, words: &[u64; WORDS]) -> Result<(), UnitError> {
        let mut directory = self.directory.lock();
        let now = directory.get(id).unwrap_or(BLOCKED);
        let changed = [Command::ContextChanged { device: Some(id) }];
        if now == *words {
            return if *words == BLOCKED { Ok(()) } else { self.run(changed) };
        }
        directory.prepare(id).map_err(|_| UnitError::Exhausted {
            unit: self.info.name.clone(),
            what: "memory for the device directory",
        })?;
        directory.write_first(id, &BLOCKED);
        self.run(changed)?;
        directory.write_rest(id, words);
        if *words == BLOCKED {
            return Ok(());
        }
        directory.write_first(id, words);
        let done = self.run(changed);
        if done.is_err() {
            directory.write_first(id, &BLOCKED);
        }
        done
    }

    fn set_all(
        &self,
        ids: impl Iterator<Item = u32> + Clone,
        words: &[u64; WORDS],
    ) -> Result<(), UnitError> {
        for_all(ids, |id| self.set(id, words), |id| self.set(id, &BLOCKED))
    }

    fn drop_range(&self, space: u32, range: IovaRange, tables: bool) -> Result<(), UnitError> {
        let (first, last) = (range.start().raw() >> PAGE_SHIFT, range.last().raw() >> PAGE_SHIFT);
        let by_space = tables && !self.capabilities.non_leaf;
        if by_space || last.saturating_sub(first) >= MOST_PAGES {
            return self.run([Command::DropSpace { space }]);
        }
        self.run((first..=last).map(|page| Command::DropPage {
            space,
            address: page << PAGE_SHIFT,
            tables,
        }))
    }

    fn unsupported(&self, tables: &TableLayout) -> UnitError {
        UnitError::Unsupported {
            unit: self.info.name.clone(),
            format: tables.format,
            input_bits: tables.input_bits,
        }
    }
}

/// The input bits of the lower half.
const fn most_input_bits(format: FormatId) -> u32 {
    match format {
        FormatId::Sv39 => 38,
        FormatId::Sv48 => 47,
        _ => 56,
    }
}

// SAFETY: `invalidate` ends with an IOFENCE.C with PR and PW whose completion is waited for, after
// IOTINVAL commands that cover the request, so nothing cached is used and what used it has
// completed; `detach` makes the context invalid and has it and the space's entries dropped in the
// same way; contexts are invalid from the start, and the unit is off before that; tables are named by
// the contexts of attached devices only.
unsafe impl<P: Platform, R: Registers> Unit for RiscvIommu<P, R> {
    type Context = RiscvContext<P>;

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, _stream: StreamId) -> Vec<PhysAddr> {
        Vec::new()
    }

    fn open(&self, tables: &TableLayout) -> Result<RiscvContext<P>, UnitError> {
        let ([root], Some(mode)) = (&tables.roots[..], Mode::of(tables.format)) else {
            return Err(self.unsupported(tables));
        };
        if !self.info.formats.contains(&tables.format)
            || tables.input_bits > most_input_bits(tables.format)
        {
            return Err(self.unsupported(tables));
        }
        let space = self.spaces.lock().take(1, LAST_SPACE).ok_or_else(|| UnitError::Exhausted {
            unit: self.info.name.clone(),
            what: "process soft-context id",
        })?;
        let words = DeviceContext::Translate { root: root.raw(), mode, space }.words();
        Ok(RiscvContext { space, words, state: Mutex::new(State::Open) })
    }

    fn close(&self, context: &RiscvContext<P>) {
        let mut state = context.state.lock();
        let open = *state == State::Open;
        if open && self.run([Command::DropSpace { space: context.space }]).is_ok() {
            *state = State::Closed;
            self.spaces.lock().release(context.space);
        }
    }

    unsafe fn attach(&self, context: &RiscvContext<P>, stream: StreamId) -> Result<(), UnitError> {
        self.set_all(self.device_ids(stream)?, &context.words).inspect_err(|error| {
            // After a time-out nobody knows whether the unit has seen the context.
            if matches!(error, UnitError::Timeout { .. }) {
                *context.state.lock() = State::Stuck;
            }
        })
    }

    fn detach(&self, context: &RiscvContext<P>, stream: StreamId) -> Result<(), UnitError> {
        let mut blocked = Ok(());
        for id in self.device_ids(stream)? {
            // All are tried, even behind one that hangs.
            blocked = blocked.and(self.set(id, &BLOCKED));
        }
        blocked = blocked.and(self.run([Command::DropSpace { space: context.space }]));
        blocked.inspect_err(|_| *context.state.lock() = State::Stuck)
    }

    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError> {
        let context = if on { DeviceContext::Bypass } else { DeviceContext::Blocked };
        self.set_all(self.device_ids(stream)?, &context.words())
    }

    fn invalidate(
        &self,
        context: &RiscvContext<P>,
        request: &Invalidation,
    ) -> Result<(), UnitError> {
        match request.range {
            Some(range) => self.drop_range(context.space, range, request.tables),
            None => self.run([Command::DropSpace { space: context.space }]),
        }
    }
}
