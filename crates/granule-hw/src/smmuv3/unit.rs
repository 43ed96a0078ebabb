//! [`Unit`] on an SMMUv3: contexts, attachment, invalidation.

use alloc::vec::Vec;

use granule::addr::{Granule, IovaRange, PhysAddr};
use granule::domain::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
use granule::mem::Platform;
use granule::table::TableLayout;
use lock_api::Mutex;

use super::SmmuV3;
use super::spec::command::{Command, Pages};
use super::spec::entry::{Context, StreamEntry, WORDS};
use super::spec::register::Stall;
use crate::dma_memory::DmaMemory;
use crate::matching::{for_all, matching};
use crate::mmio::Registers;

/// Without `IDR3.RIL`, more pages than these are dropped by ASID instead of one by one.
const MOST_PAGES: u64 = 64;

/// An address space of an SMMUv3: an ASID and a context descriptor.
pub struct SmmuContext<P: Platform> {
    asid: u16,
    granule: Granule,
    entry: [u64; WORDS],
    memory: Mutex<P::Lock, Held<P>>,
}

/// What a context owns.
struct Held<P: Platform> {
    /// The descriptor.
    descriptor: Option<DmaMemory<P>>,
    /// A stream could not be blocked: descriptor and ASID are never used again.
    stuck: bool,
}

impl<P: Platform> SmmuContext<P> {
    /// The ASID that its cached entries carry.
    pub fn asid(&self) -> u16 {
        self.asid
    }
}

impl<P: Platform, R: Registers> SmmuV3<P, R> {
    fn late(&self) -> UnitError {
        UnitError::Timeout { unit: self.info.name.clone() }
    }

    fn exhausted(&self, what: &'static str) -> UnitError {
        UnitError::Exhausted { unit: self.info.name.clone(), what }
    }

    fn run(&self, commands: impl IntoIterator<Item = Command>) -> Result<(), UnitError> {
        self.commands.lock().run(&self.registers, commands).map_err(|_| self.late())
    }

    /// The StreamIDs that a stream stands for, bounded by the table.
    fn stream_ids(&self, stream: StreamId) -> Result<impl Iterator<Item = u32> + Clone, UnitError> {
        let limit = self.streams.lock().limit();
        matching(stream, limit).ok_or_else(|| UnitError::NoSuchStream {
            unit: self.info.name.clone(),
            stream,
            limit,
        })
    }

    /// Gives a stream an entry. The unit never sees a mixture of the old one and the new one: what is
    /// not blocked is blocked first, and the word that makes the entry count comes last (3.21.3.1
    /// "Configuration structure update procedure").
    fn set(&self, id: u32, words: &[u64; WORDS]) -> Result<(), UnitError> {
        let mut streams = self.streams.lock();
        let abort = StreamEntry::Abort.words();
        let now = streams.get(id);
        if *words == abort && now.is_none_or(|now| now == abort) {
            return Ok(());
        }
        let change = streams.prepare(id).map_err(|_| self.exhausted("memory for stream tables"))?;
        let changed = [
            Command::StreamChanged { stream: id, leaf: change.leaf },
            Command::ContextsChanged { stream: id },
        ];
        if now.is_some_and(|now| now == *words) {
            return self.run(changed);
        }
        streams.write_first(id, &abort);
        self.run(changed)?;
        streams.write_rest(id, words);
        self.run(changed)?;
        if *words == abort {
            return Ok(());
        }
        streams.write_first(id, words);
        let done = self.run(changed);
        if done.is_err() {
            streams.write_first(id, &abort);
        }
        done
    }

    fn set_all(
        &self,
        ids: impl Iterator<Item = u32> + Clone,
        words: &[u64; WORDS],
    ) -> Result<(), UnitError> {
        let abort = StreamEntry::Abort.words();
        for_all(ids, |id| self.set(id, words), |id| self.set(id, &abort))
    }

    /// Drops the entries of a range, by the shortest way that the unit has.
    fn drop_range(
        &self,
        context: &SmmuContext<P>,
        range: IovaRange,
        leaf: bool,
    ) -> Result<(), UnitError> {
        let shift = context.granule.shift();
        let (first, last) = (range.start().raw() >> shift, range.last().raw() >> shift);
        let count = last.saturating_sub(first).saturating_add(1);
        if !self.features.ranges && count > MOST_PAGES {
            return self.run([Command::DropAsid { asid: context.asid }]);
        }
        let (mut at, mut left) = (first, count);
        let ranges = self.features.ranges;
        self.run(core::iter::from_fn(|| {
            if left == 0 {
                return None;
            }
            let range = if ranges { Pages::first_of(left, shift) } else { None };
            let address = at << shift;
            let pages = range.map_or(1, |range| range.count());
            (at, left) = (at.saturating_add(pages), left.saturating_sub(pages));
            Some(Command::DropAddresses { asid: context.asid, address, leaf, range })
        }))
    }
}

// SAFETY: `invalidate` ends with a CMD_SYNC whose completion is waited for, after TLBI commands that
// cover the request, so nothing cached is used and what used it has completed (IHI 0070, 4.7.3);
// `detach` writes an aborting entry and has it and the ASID's entries dropped in the same way; every
// entry aborts from the start, and GBPA aborts while the unit is disabled; tables are named by the
// entries of attached streams only.
unsafe impl<P: Platform, R: Registers> Unit for SmmuV3<P, R> {
    type Context = SmmuContext<P>;

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, _stream: StreamId) -> Vec<PhysAddr> {
        Vec::new()
    }

    fn open(&self, tables: &TableLayout) -> Result<SmmuContext<P>, UnitError> {
        let [root] = tables.roots[..] else { return Err(self.unsupported(tables)) };
        if !self.info.formats.contains(&tables.format) || tables.input_bits > self.info.input_bits {
            return Err(self.unsupported(tables));
        }
        let descriptor = self.descriptor_memory()?;
        // 0 is kept back: it is what an entry holds that nobody wrote.
        let last = (1 << self.features.asid_bits) - 1;
        let asid = self.asids.lock().take(1, last).and_then(|asid| u16::try_from(asid).ok());
        let Some(asid) = asid else {
            descriptor.free();
            return Err(self.exhausted("ASID"));
        };
        let coherent = self.features.coherent;
        let words = Context {
            root: root.raw(),
            input_bits: tables.input_bits,
            output_bits: tables.output_bits,
            granule_shift: tables.granule.shift(),
            asid,
            coherent,
            stalls: self.features.stall == Stall::Always,
        };
        descriptor.write(0, &words.words());
        let entry = StreamEntry::Stage1 {
            context: descriptor.start(),
            coherent,
            never_stalls: self.features.stall == Stall::Choice,
        };
        Ok(SmmuContext {
            asid,
            granule: tables.granule,
            entry: entry.words(),
            memory: Mutex::new(Held { descriptor: Some(descriptor), stuck: false }),
        })
    }

    fn close(&self, context: &SmmuContext<P>) {
        let mut held = context.memory.lock();
        let Some(descriptor) = held.descriptor.take() else { return };
        if held.stuck || self.run([Command::DropAsid { asid: context.asid }]).is_err() {
            return; // Dropping it leaks it: the unit may read it, and the ASID is not reused.
        }
        descriptor.free();
        self.asids.lock().release(context.asid.into());
    }

    unsafe fn attach(&self, context: &SmmuContext<P>, stream: StreamId) -> Result<(), UnitError> {
        self.set_all(self.stream_ids(stream)?, &context.entry).inspect_err(|error| {
            // After a time-out nobody knows whether the unit has seen the entry.
            if matches!(error, UnitError::Timeout { .. }) {
                context.memory.lock().stuck = true;
            }
        })
    }

    fn detach(&self, context: &SmmuContext<P>, stream: StreamId) -> Result<(), UnitError> {
        let abort = StreamEntry::Abort.words();
        let mut blocked = Ok(());
        for id in self.stream_ids(stream)? {
            // All are tried, even behind one that hangs.
            blocked = blocked.and(self.set(id, &abort));
        }
        blocked = blocked.and(self.run([Command::DropAsid { asid: context.asid }]));
        blocked.inspect_err(|_| context.memory.lock().stuck = true)
    }

    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError> {
        let entry = if on { StreamEntry::Bypass } else { StreamEntry::Abort };
        self.set_all(self.stream_ids(stream)?, &entry.words())
    }

    fn invalidate(
        &self,
        context: &SmmuContext<P>,
        request: &Invalidation,
    ) -> Result<(), UnitError> {
        match request.range {
            Some(range) => self.drop_range(context, range, !request.tables),
            None => self.run([Command::DropAsid { asid: context.asid }]),
        }
    }
}

impl<P: Platform, R: Registers> SmmuV3<P, R> {
    fn unsupported(&self, tables: &TableLayout) -> UnitError {
        UnitError::Unsupported {
            unit: self.info.name.clone(),
            format: tables.format,
            input_bits: tables.input_bits,
        }
    }

    fn descriptor_memory(&self) -> Result<DmaMemory<P>, UnitError> {
        let bits = self.info.output_bits;
        DmaMemory::new(&self.platform, 64, bits, self.features.coherent)
            .map_err(|_| self.exhausted("memory for context descriptors"))
    }
}
