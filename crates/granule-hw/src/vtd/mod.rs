//! Intel VT-d, legacy mode with second-stage tables (`vtd2`).
//!
//! | file | subject |
//! | --- | --- |
//! | [`spec`] | registers, entries, descriptors, fault records |
//! | `commands` | global commands, the invalidation queue or its registers, complete on return |
//! | `contexts` | root and context tables |
//! | `unit` | [`granule::domain::Unit`] |
//!
//! A machine has several units: make one [`VtdUnit`] for every
//! [`Drhd`](crate::acpi::dmar::Drhd) that DMAR names, all of them, since firmware may have left any
//! of them translating. A stream is a PCI requester id (bus, device, function: 8, 5 and 3 bits).
//!
//! What DMAR says about reserved memory (RMRR) belongs into the domain of the device that uses it:
//! [`Dmar::reserved_for`](crate::acpi::dmar::Dmar::reserved_for). Between [`VtdUnit::new`] and that
//! attachment such a device is blocked, as every other.

mod commands;
mod contexts;
pub mod spec;
#[cfg(test)]
mod tests;
mod unit;

use alloc::string::String;
use alloc::vec::Vec;

use granule::addr::DmaAddr;
use granule::domain::{Reserved, StreamId, UnitInfo};
use granule::mem::Platform;
use granule::table::FormatId;
use lock_api::Mutex;

use crate::ids::Ids;
use crate::mmio::Registers;
use crate::{FaultEvent, FaultReason, HwError};
use commands::Commands;
use contexts::Contexts;
use spec::{Cap, Ecap, Fault, Forget, fault_status, reg};
pub use unit::VtdContext;

/// The domain id of what passes through; 0 tags absent entries where those are cached.
const PASS_THROUGH: u32 = 1;
/// The first domain id that is given out.
const FIRST_DOMAIN: u32 = 2;

/// What the unit's own registers do not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtdConfig {
    /// The unit's name in messages.
    pub name: String,
    /// The width of physical addresses in bits: DMAR's host address width.
    pub host_address_bits: u32,
}

/// One VT-d unit, translating.
pub struct VtdUnit<P: Platform, R: Registers> {
    registers: R,
    info: UnitInfo,
    cap: Cap,
    ecap: Ecap,
    commands: Mutex<P::Lock, Commands<P>>,
    contexts: Mutex<P::Lock, Contexts<P>>,
    domains: Mutex<P::Lock, Ids>,
}

impl<P: Platform, R: Registers> VtdUnit<P, R> {
    /// Takes a unit over, whatever firmware did with it, and turns translation on. From then on all
    /// its streams are blocked until they are attached. Protected memory regions that firmware set
    /// up are given up, since translation now protects.
    ///
    /// # Errors
    /// [`HwError::Registers`], [`HwError::Missing`] if it walks no second-stage table of legacy
    /// mode, [`HwError::Memory`], [`HwError::Timeout`].
    pub fn new(platform: P, registers: R, config: VtdConfig) -> Result<Self, HwError> {
        check_size(&registers, &config.name, reg::END)?;
        let cap = Cap(registers.read64(reg::CAP));
        let ecap = Ecap(registers.read64(reg::ECAP));
        let faults = cap.fault_offset() + 16 * cap.fault_records();
        check_size(&registers, &config.name, faults.max(ecap.iotlb_offset() + 16))?;
        let info = info(&config, cap, ecap)?;
        let commands = Commands::new(&platform, &info, cap, ecap)?;
        let contexts = Contexts::new(&platform, &info)?;
        let unit = Self {
            registers,
            info,
            cap,
            ecap,
            commands: Mutex::new(commands),
            contexts: Mutex::new(contexts),
            domains: Mutex::new(Ids::default()),
        };
        unit.start()?;
        Ok(unit)
    }

    /// The unit's registers.
    pub fn registers(&self) -> &R {
        &self.registers
    }

    /// What no device behind the unit can use as IOVA: writes there are interrupts (3.14). Part of
    /// every domain's configuration.
    pub fn reserved(&self) -> Vec<Reserved> {
        crate::hole(crate::X86_INTERRUPTS).into_iter().collect()
    }

    /// Allocates the context table of a bus (4 KiB), which stays for the unit's life. Else the first
    /// attachment of a device of that bus does, and may fail for want of memory.
    ///
    /// # Errors
    /// [`HwError::Memory`].
    pub fn reserve_bus(&self, bus: u8) -> Result<(), HwError> {
        self.contexts.lock().make_room(u16::from(bus) << 8)
    }

    /// Programs the unit again after it lost its state (resume), or to get it out of an error, from
    /// what this driver holds. Afterwards every domain is resumed (`Domain::recover`).
    ///
    /// # Errors
    /// [`HwError::Timeout`].
    pub fn reset(&self) -> Result<(), HwError> {
        self.start()
    }

    fn start(&self) -> Result<(), HwError> {
        // Locked in the order in which attaching locks them.
        let root = self.contexts.lock().root();
        let mut commands = self.commands.lock();
        let registers = &self.registers;
        commands.stop_queue(registers)?;
        registers.write32(reg::FECTL, spec::FECTL_MASK);
        commands.set_root(registers, root)?;
        commands.start_queue(registers)?;
        let everything = [Forget::AllContexts, Forget::AllPages];
        commands.forget(registers, &everything).map_err(|_| HwError::Timeout {
            unit: self.info.name.clone(),
            what: "an invalidation of everything",
        })?;
        commands.enable_translation(registers)?;
        commands.disable_protected_memory(registers)
    }

    /// Hands over the faults that were recorded since the last call. Says how many.
    pub fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) -> usize {
        let mut count = 0;
        for index in 0..self.cap.fault_records() {
            let at = self.cap.fault_offset() + 16 * index;
            let high = self.registers.read64(at + 8);
            let Some(fault) = Fault::decode(self.registers.read64(at), high) else { continue };
            // Writes one to the bit that says "filled", which empties the record.
            self.registers.write32(at + 12, (spec::FAULT_FILLED >> 32) as u32);
            count += 1;
            each(FaultEvent {
                unit: self.info.name.clone(),
                stream: Some(StreamId::exact(fault.source.into())),
                address: Some(DmaAddr::new(fault.page)),
                access: fault.access,
                reason: fault.reason(),
                code: fault.code.into(),
            });
        }
        if self.registers.read32(reg::FSTS) & fault_status::OVERFLOW != 0 {
            self.registers.write32(reg::FSTS, fault_status::OVERFLOW);
            count += 1;
            each(FaultEvent {
                unit: self.info.name.clone(),
                stream: None,
                address: None,
                access: granule::addr::Access::empty(),
                reason: FaultReason::Overflow,
                code: 0,
            });
        }
        count
    }
}

impl<P: Platform, R: Registers> Drop for VtdUnit<P, R> {
    /// The unit goes on translating, with everything blocked that was: its tables are never freed.
    fn drop(&mut self) {
        self.commands.get_mut().abandon(&self.registers);
        self.contexts.get_mut().abandon();
    }
}

fn check_size(registers: &impl Registers, name: &str, need: usize) -> Result<(), HwError> {
    let len = registers.len();
    if len >= need { Ok(()) } else { Err(HwError::Registers { unit: name.into(), len, need }) }
}

fn info(config: &VtdConfig, cap: Cap, ecap: Ecap) -> Result<UnitInfo, HwError> {
    let name = config.name.clone();
    let Some((input_bits, _)) = cap.widest() else {
        let what = "second-stage tables of 39, 48 or 57 bits in legacy mode";
        return Err(HwError::Missing { unit: name, what, value: cap.0 });
    };
    Ok(UnitInfo {
        name,
        formats: Vec::from([FormatId::Vtd2]),
        input_bits,
        output_bits: config.host_address_bits.clamp(32, 52),
        page_sizes: cap.page_sizes(),
        coherent_walk: ecap.coherent(),
        // Where writes wait in a buffer, a new entry is not there before that was flushed: the same
        // cure as for cached absence.
        caches_absent: cap.caching_mode() || cap.write_buffer(),
        can_bypass: ecap.pass_through(),
    })
}
