//! The unit as domains see it.

use alloc::vec::Vec;

use granule::addr::PhysAddr;
use granule::domain::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
use granule::mem::Platform;
use granule::table::{FormatId, TableLayout};

use super::commands::blocks;
use super::spec::{ContextEntry, Forget};
use super::{FIRST_DOMAIN, PASS_THROUGH, VtdUnit};
use crate::mmio::Registers;

/// More blocks of pages than this are dropped as a whole domain.
const MOST_BLOCKS: usize = 8;

/// An address space of a [`VtdUnit`]: a domain id and the tables behind it.
#[derive(Debug)]
pub struct VtdContext {
    domain: u16,
    root: u64,
    levels: u32,
}

impl VtdContext {
    /// The domain id.
    pub fn domain(&self) -> u16 {
        self.domain
    }
}

impl<P: Platform, R: Registers> VtdUnit<P, R> {
    fn source(&self, stream: StreamId) -> Result<u16, UnitError> {
        let exact = if stream.mask == 0 { u16::try_from(stream.id).ok() } else { None };
        let unit = || self.info.name.clone();
        exact.ok_or_else(|| UnitError::NoSuchStream { unit: unit(), stream, limit: 1 << 16 })
    }

    fn forget(&self, what: &[Forget]) -> Result<(), UnitError> {
        let done = self.commands.lock().forget(&self.registers, what);
        done.map_err(|_| UnitError::Timeout { unit: self.info.name.clone() })
    }

    /// Puts an entry in place of what was there.
    fn replace(&self, source: u16, entry: &ContextEntry) -> Result<(), UnitError> {
        let mut contexts = self.contexts.lock();
        contexts.make_room(source).map_err(|_| UnitError::Exhausted {
            unit: self.info.name.clone(),
            what: "memory for a context table",
        })?;
        if let Some(domain) = contexts.domain(source) {
            contexts.clear(source);
            self.forget(&[Forget::Context { domain, source }, Forget::Domain { domain }])?;
        }
        contexts.set(source, entry);
        // Where absence is cached, it is tagged with domain 0.
        let fresh =
            [Forget::Context { domain: 0, source }, Forget::Domain { domain: entry.domain }];
        self.forget(&fresh).inspect_err(|_| contexts.clear(source))
    }

    /// Makes a function's entry absent if `domain` owns it, and drops what is cached of it.
    fn block(&self, source: u16, domain: Option<u16>) -> Result<(), UnitError> {
        let contexts = self.contexts.lock();
        let Some(present) = contexts.domain(source) else {
            // Absent already, perhaps since an earlier attempt that was not answered.
            let Some(domain) = domain else { return Ok(()) };
            return self.forget(&[Forget::Context { domain, source }, Forget::Domain { domain }]);
        };
        if domain.is_some_and(|domain| domain != present) {
            return Ok(());
        }
        contexts.clear(source);
        let domain = present;
        self.forget(&[Forget::Context { domain, source }, Forget::Domain { domain }])
    }

    /// Drops what a request covers. Never allocates.
    fn drop_range(&self, domain: u16, request: &Invalidation) -> Result<(), UnitError> {
        let mut pieces = [(0, 0); MOST_BLOCKS];
        let count = match (request.range, self.cap.by_page()) {
            (Some(range), true) => {
                let (first, last) = (range.start().raw(), range.last().raw());
                blocks(first, last, self.cap.max_mask().min(51), &mut pieces)
            }
            _ => None,
        };
        let Some(count) = count else { return self.forget(&[Forget::Domain { domain }]) };
        let leaves = !request.tables;
        let batch = pieces.map(|(address, mask)| Forget::Pages { domain, address, mask, leaves });
        self.forget(&batch[..count])
    }
}

// SAFETY: invalidations wait for the unit's answer, with reads and writes under way drained where
// the unit can; an error is returned if there was none, and for ever after until a reset. An entry
// is absent until it is attached, since translation is on from the start, and `block` drops what the
// unit has cached of it. A context entry names the table that `open` was given.
unsafe impl<P: Platform, R: Registers> Unit for VtdUnit<P, R> {
    type Context = VtdContext;

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, _stream: StreamId) -> Vec<PhysAddr> {
        Vec::new()
    }

    fn open(&self, tables: &TableLayout) -> Result<VtdContext, UnitError> {
        let fits = tables.format == FormatId::Vtd2
            && self.cap.walks(tables.levels)
            && tables.input_bits <= self.info.input_bits
            && tables.output_bits <= self.info.output_bits;
        let (Some(root), true) = (tables.roots.first(), fits) else {
            return Err(UnitError::Unsupported {
                unit: self.info.name.clone(),
                format: tables.format,
                input_bits: tables.input_bits,
            });
        };
        let last = self.cap.domains() - 1;
        let id = self.domains.lock().take(FIRST_DOMAIN, last);
        let domain = id.and_then(|id| u16::try_from(id).ok()).ok_or_else(|| {
            UnitError::Exhausted { unit: self.info.name.clone(), what: "domain ids" }
        })?;
        Ok(VtdContext { domain, root: root.raw(), levels: tables.levels })
    }

    fn close(&self, context: &VtdContext) {
        self.domains.lock().release(context.domain.into());
    }

    unsafe fn attach(&self, context: &VtdContext, stream: StreamId) -> Result<(), UnitError> {
        let source = self.source(stream)?;
        let VtdContext { domain, root, levels } = *context;
        self.replace(source, &ContextEntry { table: Some(root), levels, domain })
    }

    fn detach(&self, context: &VtdContext, stream: StreamId) -> Result<(), UnitError> {
        self.block(self.source(stream)?, Some(context.domain))
    }

    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError> {
        let source = self.source(stream)?;
        if !on {
            return self.block(source, None);
        }
        if !self.ecap.pass_through() {
            return Err(UnitError::NoBypass { unit: self.info.name.clone(), stream });
        }
        // Pass-through asks for the widest address that the unit knows (9.3).
        let levels = [5, 4, 3].into_iter().find(|levels| self.cap.walks(*levels)).unwrap_or(3);
        self.replace(source, &ContextEntry { table: None, levels, domain: PASS_THROUGH as u16 })
    }

    fn invalidate(&self, context: &VtdContext, request: &Invalidation) -> Result<(), UnitError> {
        self.drop_range(context.domain, request)
    }
}
