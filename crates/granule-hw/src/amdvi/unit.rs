//! The unit as domains see it.

use alloc::vec::Vec;

use granule::addr::PhysAddr;
use granule::domain::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
use granule::mem::Platform;
use granule::table::{FormatId, TableLayout};

use super::AmdUnit;
use super::spec::{Command, DEVICE_ENTRY, DeviceEntry};
use crate::block::Block;
use crate::mmio::Registers;

/// An address space of an [`AmdUnit`]: a domain id and the tables behind it.
#[derive(Debug)]
pub struct AmdContext {
    domain: u16,
    root: u64,
    levels: u32,
}

impl AmdContext {
    /// The domain id.
    pub fn domain(&self) -> u16 {
        self.domain
    }
}

fn entry<P: Platform>(devices: &Block<P>, function: u16) -> DeviceEntry {
    let at = usize::from(function) * DEVICE_ENTRY;
    DeviceEntry::decode(devices.read64(at), devices.read64(at + 8))
}

/// Writes the first half of an entry, which decides what the rest is for.
fn write_low<P: Platform>(devices: &Block<P>, function: u16, entry: &DeviceEntry) {
    let at = usize::from(function) * DEVICE_ENTRY;
    devices.write64(at, entry.low());
    devices.publish(at, 8);
}

impl<P: Platform, R: Registers> AmdUnit<P, R> {
    fn function(&self, stream: StreamId) -> Result<u16, UnitError> {
        let exact = if stream.mask == 0 { u16::try_from(stream.id).ok() } else { None };
        let unit = || self.info.name.clone();
        exact.ok_or_else(|| UnitError::NoSuchStream { unit: unit(), stream, limit: 1 << 16 })
    }

    fn timeout(&self) -> UnitError {
        UnitError::Timeout { unit: self.info.name.clone() }
    }

    fn run(&self, commands: &[Command]) -> Result<(), UnitError> {
        let mut ring = self.commands.lock();
        let done = ring.as_mut().map(|ring| ring.run(&self.registers, commands));
        done.and_then(Result::ok).ok_or_else(|| self.timeout())
    }

    /// Drops what is cached of a function and, if it was translated, of its domain.
    fn forget(&self, function: u16, domain: Option<u16>) -> Result<(), UnitError> {
        let device = Command::Device { function };
        match domain {
            Some(domain) => {
                let all = Command::Pages { domain, address: 0, size: 64, tables: true };
                self.run(&[device, all])
            }
            None => self.run(&[device]),
        }
    }

    /// Blocks a function that is not blocked, then puts `new` in its place.
    fn replace(&self, function: u16, new: &DeviceEntry) -> Result<(), UnitError> {
        let devices = self.devices.lock();
        let Some(devices) = devices.as_ref() else { return Err(self.timeout()) };
        match entry(devices, function) {
            DeviceEntry::Blocked => {}
            DeviceEntry::PassThrough => self.block(devices, function, None)?,
            DeviceEntry::Translated { domain, .. } => {
                self.block(devices, function, Some(domain))?
            }
        }
        let at = usize::from(function) * DEVICE_ENTRY;
        devices.write64(at + 8, new.high());
        devices.publish(at + 8, 8);
        write_low(devices, function, new);
        let domain = match new {
            DeviceEntry::Translated { domain, .. } => Some(*domain),
            _ => None,
        };
        self.forget(function, domain)
            .inspect_err(|_| write_low(devices, function, &DeviceEntry::Blocked))
    }

    fn block(
        &self,
        devices: &Block<P>,
        function: u16,
        domain: Option<u16>,
    ) -> Result<(), UnitError> {
        write_low(devices, function, &DeviceEntry::Blocked);
        self.forget(function, domain)
    }
}

/// The logarithm of the smallest aligned block that holds both addresses; 64 if none does.
fn covering(first: u64, last: u64) -> u32 {
    (64 - (first ^ last).leading_zeros()).max(12)
}

// SAFETY: every batch of commands ends with a COMPLETION_WAIT, whose answer is waited for; an error
// is returned if there was none, and for ever after until a reset. All entries of the device table
// refuse requests until they are attached, since translation is on from the start, and `block` drops
// what the unit has cached. A translating entry names the table that `open` was given.
unsafe impl<P: Platform, R: Registers> Unit for AmdUnit<P, R> {
    type Context = AmdContext;

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, _stream: StreamId) -> Vec<PhysAddr> {
        Vec::new()
    }

    fn open(&self, tables: &TableLayout) -> Result<AmdContext, UnitError> {
        let fits = tables.format == FormatId::Amdv1
            && (1..=self.features.levels()).contains(&tables.levels)
            && tables.input_bits <= self.info.input_bits
            && tables.output_bits <= self.info.output_bits;
        let (Some(root), true) = (tables.roots.first(), fits) else {
            return Err(UnitError::Unsupported {
                unit: self.info.name.clone(),
                format: tables.format,
                input_bits: tables.input_bits,
            });
        };
        // 0 is what functions without a domain carry.
        let id = self.domains.lock().take(1, u16::MAX.into());
        let domain = id.and_then(|id| u16::try_from(id).ok()).ok_or_else(|| {
            UnitError::Exhausted { unit: self.info.name.clone(), what: "domain ids" }
        })?;
        Ok(AmdContext { domain, root: root.raw(), levels: tables.levels })
    }

    fn close(&self, context: &AmdContext) {
        self.domains.lock().release(context.domain.into());
    }

    unsafe fn attach(&self, context: &AmdContext, stream: StreamId) -> Result<(), UnitError> {
        let AmdContext { domain, root, levels } = *context;
        self.replace(self.function(stream)?, &DeviceEntry::Translated { root, levels, domain })
    }

    fn detach(&self, context: &AmdContext, stream: StreamId) -> Result<(), UnitError> {
        let function = self.function(stream)?;
        let devices = self.devices.lock();
        let Some(devices) = devices.as_ref() else { return Err(self.timeout()) };
        match entry(devices, function) {
            DeviceEntry::Translated { domain, .. } if domain != context.domain => Ok(()),
            DeviceEntry::PassThrough => Ok(()),
            // Blocked already: perhaps since an earlier attempt that was not answered.
            _ => self.block(devices, function, Some(context.domain)),
        }
    }

    unsafe fn bypass(&self, stream: StreamId, on: bool) -> Result<(), UnitError> {
        let function = self.function(stream)?;
        self.replace(function, if on { &DeviceEntry::PassThrough } else { &DeviceEntry::Blocked })
    }

    fn invalidate(&self, context: &AmdContext, request: &Invalidation) -> Result<(), UnitError> {
        let (address, size) = match request.range {
            Some(range) => {
                let (first, last) = (range.start().raw(), range.last().raw());
                (first, covering(first, last))
            }
            None => (0, 64),
        };
        let (domain, tables) = (context.domain, request.tables);
        self.run(&[Command::Pages { domain, address, size, tables }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_their_range() {
        assert_eq!(covering(0x5000, 0x5fff), 12);
        assert_eq!(covering(0x4000, 0x7fff), 14);
        assert_eq!(covering(0x7000, 0x8fff), 16);
        assert_eq!(covering(0, u64::MAX), 64);
        assert_eq!(covering(5, 5), 12);
    }
}
