//! The driver of a simulated IOMMU: what [`granule::domain`] programs it through.
//!
//! It only uses the model's registers; the tables are the core's, and the model reads their bytes
//! with a walker of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use granule::addr::{PageSizes, PhysAddr};
use granule::domain::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
use granule::table::{FormatId, TableLayout};
use parking_lot::Mutex;

use crate::iommu::{LockedStream, SimIommu, SimIommuError, StreamState};

/// Firmware's contexts are numbered from here on, away from ours.
pub const FIRMWARE_CONTEXTS: u32 = 0x8000_0000;

/// The driver of one [`SimIommu`].
#[derive(Debug)]
pub struct SimUnit {
    iommu: Arc<SimIommu>,
    info: UnitInfo,
    next_context: AtomicU32,
}

/// An address space of a [`SimUnit`].
#[derive(Debug)]
pub struct SimContext {
    number: u32,
    roots: Vec<PhysAddr>,
    input_bits: u32,
    streams: Mutex<BTreeSet<u32>>,
}

impl SimUnit {
    /// Drives an IOMMU.
    ///
    /// `None` if the core has no format of the name that the model walks.
    pub fn new(iommu: &Arc<SimIommu>) -> Option<Self> {
        let config = iommu.config();
        let format: FormatId = config.format.name().parse().ok()?;
        let info = UnitInfo {
            name: config.name.clone(),
            formats: vec![format],
            input_bits: config.input_bits,
            output_bits: config.output_bits,
            page_sizes: PageSizes::from_bits(u64::MAX),
            coherent_walk: config.coherent_walk,
            caches_absent: config.caching_mode,
            can_bypass: config.can_bypass,
        };
        Some(Self { iommu: iommu.clone(), info, next_context: AtomicU32::new(1) })
    }

    /// The model.
    pub fn iommu(&self) -> &Arc<SimIommu> {
        &self.iommu
    }

    /// The streams that an id with its mask stands for.
    fn matching(&self, stream: StreamId) -> Result<Vec<u32>, UnitError> {
        let limit = self.iommu.config().streams;
        let all = if stream.mask == 0 { stream.id..stream.id.saturating_add(1) } else { 0..limit };
        let found: Vec<u32> =
            all.filter(|id| *id < limit && StreamId::exact(*id).overlaps(stream)).collect();
        if found.is_empty() {
            return Err(UnitError::NoSuchStream { unit: self.info.name.clone(), stream, limit });
        }
        Ok(found)
    }

    fn lock_of(&self, stream: u32) -> Option<&LockedStream> {
        self.iommu.config().locked.iter().find(|locked| locked.stream == stream)
    }

    fn error(&self, stream: StreamId, error: SimIommuError) -> UnitError {
        let unit = self.info.name.clone();
        match error {
            SimIommuError::Locked { .. } => UnitError::Locked { unit, stream },
            SimIommuError::NoBypass { .. } => UnitError::NoBypass { unit, stream },
            SimIommuError::InvalidationTimedOut { .. } => UnitError::Timeout { unit },
            SimIommuError::NoSuchStream { last, .. } => {
                UnitError::NoSuchStream { unit, stream, limit: last.saturating_add(1) }
            }
            _ => UnitError::Unsupported {
                unit,
                format: self.info.formats[0],
                input_bits: self.info.input_bits,
            },
        }
    }

    /// What a stream of the context is programmed with: for a locked one, the root that it has.
    fn state_for(&self, context: &SimContext, id: u32) -> StreamState {
        let (roots, input_bits) = match self.lock_of(id) {
            Some(lock) => (lock.roots.clone(), lock.input_bits),
            None => (context.roots.clone(), context.input_bits),
        };
        StreamState::Translate { context: context.number, roots, input_bits }
    }

    /// Takes a stream out of every context: firmware's table again if it is locked, else blocked.
    fn release(&self, id: u32) -> Result<(), SimIommuError> {
        let state = match self.lock_of(id) {
            Some(lock) => StreamState::Translate {
                context: lock.context,
                roots: lock.roots.clone(),
                input_bits: lock.input_bits,
            },
            None => StreamState::Blocked,
        };
        self.iommu.set_stream(id, state)
    }
}

// SAFETY: the model drops what an invalidation covers before it returns, or says that it did not;
// blocked streams fault; tables are read for attached streams only, as the layout says.
unsafe impl Unit for SimUnit {
    type Context = SimContext;

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, stream: StreamId) -> Vec<PhysAddr> {
        let ids = self.matching(stream).unwrap_or_default();
        let lock = ids.iter().find_map(|id| self.lock_of(*id));
        lock.map(|lock| lock.roots.clone()).unwrap_or_default()
    }

    fn open(&self, tables: &TableLayout) -> Result<SimContext, UnitError> {
        if !self.info.formats.contains(&tables.format) || tables.input_bits > self.info.input_bits {
            return Err(UnitError::Unsupported {
                unit: self.info.name.clone(),
                format: tables.format,
                input_bits: tables.input_bits,
            });
        }
        let number = self.next_context.fetch_add(1, Ordering::Relaxed);
        if number >= FIRMWARE_CONTEXTS {
            return Err(UnitError::Exhausted { unit: self.info.name.clone(), what: "context" });
        }
        Ok(SimContext {
            number,
            roots: tables.roots.clone(),
            input_bits: tables.input_bits,
            streams: Mutex::default(),
        })
    }

    fn close(&self, context: &SimContext) {
        for id in context.streams.lock().iter() {
            // A stream that is still there after a failed detachment stays blocked.
            let _ = self.release(*id);
        }
    }

    unsafe fn attach(&self, context: &SimContext, stream: StreamId) -> Result<(), UnitError> {
        let ids = self.matching(stream)?;
        let mut streams = context.streams.lock();
        for (index, id) in ids.iter().enumerate() {
            if let Err(error) = self.iommu.set_stream(*id, self.state_for(context, *id)) {
                for undone in &ids[..index] {
                    let _ = self.release(*undone);
                    streams.remove(undone);
                }
                return Err(self.error(stream, error));
            }
            streams.insert(*id);
        }
        Ok(())
    }

    fn detach(&self, context: &SimContext, stream: StreamId) -> Result<(), UnitError> {
        let mut streams = context.streams.lock();
        for id in self.matching(stream)? {
            self.release(id).map_err(|error| self.error(stream, error))?;
            streams.remove(&id);
        }
        drop(streams);
        self.invalidate(context, &Invalidation::ALL)
    }

    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError> {
        for id in self.matching(stream)? {
            let result =
                if on { self.iommu.set_stream(id, StreamState::Bypass) } else { self.release(id) };
            result.map_err(|error| self.error(stream, error))?;
        }
        Ok(())
    }

    fn invalidate(&self, context: &SimContext, request: &Invalidation) -> Result<(), UnitError> {
        self.iommu
            .invalidate(context.number, request.range, !request.tables)
            .map_err(|_| UnitError::Timeout { unit: self.info.name.clone() })
    }
}
