//! [`Unit`] on a DART: streams and their table bases.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use granule::addr::PhysAddr;
use granule::domain::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
use granule::mem::Platform;
use granule::table::TableLayout;
use lock_api::Mutex;

use super::Dart;
use crate::matching::matching;
use crate::mmio::Registers;

/// An address space of a DART: the bases that its streams get, and which streams those are.
pub struct DartContext<P: Platform> {
    roots: Vec<PhysAddr>,
    /// A level more than two.
    deep: bool,
    streams: Mutex<P::Lock, BTreeSet<u32>>,
}

impl<P: Platform, R: Registers> Dart<P, R> {
    fn late(&self) -> UnitError {
        UnitError::Timeout { unit: self.info.name.clone() }
    }

    fn stream_ids(&self, stream: StreamId) -> Result<impl Iterator<Item = u32> + Clone, UnitError> {
        matching(stream, self.streams).ok_or_else(|| UnitError::NoSuchStream {
            unit: self.info.name.clone(),
            stream,
            limit: self.streams,
        })
    }

    /// The roots that a stream's registers name now, if it translates.
    fn roots_of(&self, stream: u32) -> Vec<PhysAddr> {
        let at = self.model.registers();
        if self.registers.read32(at.control_of(stream)) & at.translate == 0 {
            return Vec::new();
        }
        let base = |index| self.registers.read32(at.base_of(stream, index));
        let roots = (0..at.bases_each).map_while(|index| self.model.root(base(index)));
        roots.map(PhysAddr::new).collect()
    }

    /// Blocks a stream and drops what is cached of it. Behind the lock.
    fn block(&self, stream: u32) -> Result<(), UnitError> {
        let at = self.model.registers();
        self.registers.write32(at.control_of(stream), 0);
        self.flush(core::iter::once(stream)).map_err(|_| self.late())?;
        for index in 0..at.bases_each {
            self.registers.write32(at.base_of(stream, index), 0);
        }
        Ok(())
    }

    /// Gives a stream its bases, then lets it translate. Behind the lock.
    fn route(&self, context: &DartContext<P>, stream: u32) -> Result<(), UnitError> {
        let at = self.model.registers();
        self.block(stream)?;
        for index in 0..at.bases_each {
            let base = context.roots.get(index).map_or(0, |root| self.model.base(root.raw()));
            self.registers.write32(at.base_of(stream, index), base);
        }
        let levels = if context.deep { at.more_levels } else { 0 };
        self.platform.barrier();
        self.registers.write32(at.control_of(stream), at.translate | levels);
        let flushed = self.flush(core::iter::once(stream)).map_err(|_| self.late());
        if flushed.is_err() {
            self.registers.write32(at.control_of(stream), 0);
        }
        flushed
    }

    fn locked(&self, stream: StreamId) -> UnitError {
        UnitError::Locked { unit: self.info.name.clone(), stream }
    }

    /// Whether every id has a root of firmware's.
    fn all_rooted(&self, mut ids: impl Iterator<Item = u32>) -> bool {
        ids.all(|id| !self.roots_of(id).is_empty())
    }
}

// SAFETY: `invalidate` flushes every stream of the context and waits until the DART is not busy, and
// so does `detach` after it blocked the stream; streams are blocked from the start, but for those
// whose registers firmware locked; bases are written for attached streams only, as the layout says.
unsafe impl<P: Platform, R: Registers> Unit for Dart<P, R> {
    type Context = DartContext<P>;

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, stream: StreamId) -> Vec<PhysAddr> {
        if !self.is_locked() {
            return Vec::new();
        }
        let found = self.stream_ids(stream).ok();
        let mut roots = found.into_iter().flatten().map(|id| self.roots_of(id));
        roots.find(|roots| !roots.is_empty()).unwrap_or_default()
    }

    fn open(&self, tables: &TableLayout) -> Result<DartContext<P>, UnitError> {
        let at = self.model.registers();
        let deep = tables.levels > 2;
        let fits = self.info.formats.contains(&tables.format)
            && tables.input_bits <= self.info.input_bits
            && (1..=at.bases_each).contains(&tables.roots.len())
            && (!deep || at.more_levels != 0);
        if !fits {
            return Err(UnitError::Unsupported {
                unit: self.info.name.clone(),
                format: tables.format,
                input_bits: tables.input_bits,
            });
        }
        let streams = Mutex::new(BTreeSet::new());
        Ok(DartContext { roots: tables.roots.clone(), deep, streams })
    }

    fn close(&self, context: &DartContext<P>) {
        // A stream that is still there after a failed detachment stays blocked.
        let _one_at_a_time = self.commands.lock();
        let streams = core::mem::take(&mut *context.streams.lock());
        if !self.is_locked() {
            streams.into_iter().for_each(|id| drop(self.block(id)));
        }
    }

    unsafe fn attach(&self, context: &DartContext<P>, stream: StreamId) -> Result<(), UnitError> {
        let ids = self.stream_ids(stream)?;
        let _one_at_a_time = self.commands.lock();
        let mut streams = context.streams.lock();
        if self.is_locked() {
            // The context's entries are in firmware's root already.
            if !self.all_rooted(ids.clone()) {
                return Err(self.locked(stream));
            }
            self.flush(ids.clone()).map_err(|_| self.late())?;
            streams.extend(ids);
            return Ok(());
        }
        for (index, id) in ids.clone().enumerate() {
            if let Err(error) = self.route(context, id) {
                for undone in ids.take(index) {
                    let _ = self.block(undone);
                    streams.remove(&undone);
                }
                return Err(error);
            }
            streams.insert(id);
        }
        Ok(())
    }

    fn detach(&self, context: &DartContext<P>, stream: StreamId) -> Result<(), UnitError> {
        let ids = self.stream_ids(stream)?;
        let _one_at_a_time = self.commands.lock();
        let mut streams = context.streams.lock();
        let mut done = Ok(());
        for id in ids {
            let one = if self.is_locked() {
                self.flush(core::iter::once(id)).map_err(|_| self.late())
            } else {
                self.block(id)
            };
            // All are tried, even behind one that hangs.
            if one.is_ok() {
                streams.remove(&id);
            }
            done = done.and(one);
        }
        done
    }

    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError> {
        let ids = self.stream_ids(stream)?;
        if self.is_locked() {
            // Blocked is what a stream that firmware did not set up is, locked or not.
            let at = self.model.registers();
            let idle = |id| self.registers.read32(at.control_of(id)) == 0;
            return if !on && ids.clone().all(idle) { Ok(()) } else { Err(self.locked(stream)) };
        }
        if on && !self.info.can_bypass {
            return Err(UnitError::NoBypass { unit: self.info.name.clone(), stream });
        }
        let _one_at_a_time = self.commands.lock();
        for id in ids {
            self.block(id)?;
            if on {
                let at = self.model.registers();
                self.registers.write32(at.control_of(id), at.bypass);
            }
        }
        Ok(())
    }

    fn invalidate(
        &self,
        context: &DartContext<P>,
        _request: &Invalidation,
    ) -> Result<(), UnitError> {
        let _one_at_a_time = self.commands.lock();
        let streams = context.streams.lock();
        if streams.is_empty() {
            return Ok(());
        }
        self.flush(streams.iter().copied()).map_err(|_| self.late())
    }
}
