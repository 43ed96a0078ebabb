//! AMD-Vi: AMD's IOMMU with host page tables (`amdv1`).
//!
//! | file | subject |
//! | --- | --- |
//! | [`spec`] | registers, device table entries, commands, events |
//! | `rings` | the command buffer, complete on return, and the event log |
//! | `unit` | [`granule::domain::Unit`] |
//!
//! Make one [`AmdUnit`] for every [`Ivhd`](crate::acpi::ivrs::Ivhd) that IVRS names. A stream is the
//! PCI requester id that arrives at the unit:
//! [`Ivhd::stream_of`](crate::acpi::ivrs::Ivhd::stream_of) knows of aliases. Memory that firmware's
//! devices use ([`Ivrs::reserved_for`](crate::acpi::ivrs::Ivrs::reserved_for)) belongs into their
//! domains; until they are attached they are blocked, as every other.

mod rings;
pub mod spec;
#[cfg(test)]
mod tests;
mod unit;

use alloc::string::String;
use alloc::vec::Vec;

use granule::addr::{DmaAddr, PageSizes};
use granule::domain::{Reserved, StreamId, UnitInfo};
use granule::mem::Platform;
use granule::table::FormatId;
use lock_api::Mutex;

use crate::block::{Block, BlockRequest};
use crate::fault::MOST_AT_ONCE;
use crate::ids::Ids;
use crate::mmio::Registers;
use crate::{FaultEvent, HwError};
use rings::{Commands, Events};
use spec::{Command, DEVICE_ENTRY, DEVICE_TABLE_BYTES, DeviceEntry, Features, reg};
pub use unit::AmdContext;

/// The largest page that is used: Linux leaves out 256 GiB, which some hardware gets wrong.
const PAGE_SIZES: u64 = (1 << 38) - (1 << 12);

/// The first and last address of HyperTransport's own range.
const HYPER_TRANSPORT: (u64, u64) = (0xfd_0000_0000, 0xff_ffff_ffff);

/// What the unit's own registers do not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmdConfig {
    /// The unit's name in messages.
    pub name: String,
    /// The width of physical addresses in bits: IVRS, PASize.
    pub physical_bits: u32,
    /// The width of IOVAs in bits: IVRS, VASize, or fewer for shorter walks (48: four levels, 39:
    /// three); 0 if nobody says.
    pub virtual_bits: u32,
    /// The flags of the unit's IVHD block.
    pub flags: u8,
    /// NpCache, bit 26 of the unit's PCI capability: absent entries are cached.
    pub caches_absent: bool,
}

/// One AMD IOMMU, translating.
pub struct AmdUnit<P: Platform, R: Registers> {
    platform: P,
    registers: R,
    info: UnitInfo,
    features: Features,
    flags: u8,
    devices: Mutex<P::Lock, Option<Block<P>>>,
    commands: Mutex<P::Lock, Option<Commands<P>>>,
    events: Mutex<P::Lock, Option<Events<P>>>,
    domains: Mutex<P::Lock, Ids>,
}

impl<P: Platform, R: Registers> AmdUnit<P, R> {
    /// Takes a unit over, whatever firmware did with it, and turns translation on. From then on all
    /// its streams are blocked until they are attached. The device table takes 2 MiB.
    ///
    /// # Errors
    /// [`HwError::Registers`], [`HwError::Memory`], [`HwError::Timeout`].
    pub fn new(platform: P, registers: R, config: AmdConfig) -> Result<Self, HwError> {
        let (len, need) = (registers.len(), reg::END);
        if len < need {
            return Err(HwError::Registers { unit: config.name, len, need });
        }
        let features = Features(registers.read64(reg::FEATURES));
        let info = info(&config, features);
        let block = |what, size: usize| {
            let request = BlockRequest {
                unit: &info.name,
                what,
                size: size as u64,
                align: 4096,
                address_bits: info.output_bits,
                snooped: true,
            };
            Block::new(&platform, &request)
        };
        let devices = block("the device table", DEVICE_TABLE_BYTES)?;
        for function in 0..1 << 16 {
            devices.write64(function * DEVICE_ENTRY, DeviceEntry::Blocked.low());
        }
        let commands =
            Commands::new(&platform, block("commands", 4096)?, block("their status", 8)?);
        let events = Events::new(block("the event log", 4096)?);
        let unit = Self {
            registers,
            features,
            flags: config.flags,
            devices: Mutex::new(Some(devices)),
            commands: Mutex::new(Some(commands)),
            events: Mutex::new(Some(events)),
            domains: Mutex::new(Ids::default()),
            platform,
            info,
        };
        unit.start()?;
        Ok(unit)
    }

    /// The unit's registers.
    pub fn registers(&self) -> &R {
        &self.registers
    }

    /// What no device behind the unit can use as IOVA: interrupts, and HyperTransport's own range
    /// (2.1.4.2, and the processors' address maps). Part of every domain's configuration.
    pub fn reserved(&self) -> Vec<Reserved> {
        [crate::X86_INTERRUPTS, HYPER_TRANSPORT].into_iter().filter_map(crate::hole).collect()
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
        let devices = self.devices.lock();
        let mut commands = self.commands.lock();
        let mut events = self.events.lock();
        let (Some(devices), Some(commands), Some(events)) =
            (devices.as_ref(), commands.as_mut(), events.as_mut())
        else {
            return Ok(());
        };
        let registers = &self.registers;
        rings::stop(&self.platform, registers, &self.info.name)?;
        devices.publish(0, devices.len());
        // Bits 8:0 count 4 KiB pages, less one.
        let pages = (DEVICE_TABLE_BYTES / 4096 - 1) as u64;
        registers.write64(reg::DEVICE_TABLE, devices.phys() | pages);
        commands.restart(registers);
        events.restart(registers);
        let running = spec::control::from_ivhd(self.flags)
            | spec::control::COHERENT
            | spec::control::COMMANDS
            | spec::control::EVENT_LOG;
        registers.write64(reg::CONTROL, running);
        registers.write64(reg::CONTROL, running | spec::control::ENABLE);
        let done = if self.features.invalidate_all() {
            commands.run(registers, &[Command::Everything])
        } else {
            self.forget_all(commands)
        };
        done.map_err(|_| HwError::Timeout {
            unit: self.info.name.clone(),
            what: "an invalidation of everything",
        })
    }

    /// Every device and every domain, one by one.
    fn forget_all(&self, commands: &mut Commands<P>) -> Result<(), crate::wait::TimedOut> {
        for id in 0..=u16::MAX {
            let pages = Command::Pages { domain: id, address: 0, size: 64, tables: true };
            commands.run(&self.registers, &[Command::Device { function: id }, pages])?;
        }
        Ok(())
    }

    /// Hands over the events that were logged since the last call, 65,536 at most: devices could go on
    /// for ever. Says how many.
    pub fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) -> usize {
        let mut count = 0;
        while count < MOST_AT_ONCE {
            let next = self.events.lock().as_mut().and_then(|log| log.take(&self.registers));
            let Some(event) = next else { break };
            count += 1;
            each(FaultEvent {
                unit: self.info.name.clone(),
                stream: event.function.map(|function| StreamId::exact(function.into())),
                address: event.address.map(DmaAddr::new),
                access: event.access,
                reason: event.reason,
                code: event.code.into(),
            });
        }
        count
    }
}

impl<P: Platform, R: Registers> Drop for AmdUnit<P, R> {
    /// The unit goes on with everything blocked that was: its device table, which is never freed,
    /// stays in force. Its rings are freed if they can be stopped.
    fn drop(&mut self) {
        let control = self.registers.read64(reg::CONTROL);
        let rings = spec::control::COMMANDS | spec::control::EVENT_LOG;
        self.registers.write64(reg::CONTROL, control & !rings);
        let stopped = rings::stopped(&self.platform, &self.registers);
        self.devices.get_mut().take().into_iter().for_each(Block::leak);
        if stopped.is_err() {
            self.commands.get_mut().take().into_iter().for_each(Commands::leak);
            self.events.get_mut().take().into_iter().for_each(Events::leak);
        }
    }
}

fn info(config: &AmdConfig, features: Features) -> UnitInfo {
    let widest = if features.levels() >= 5 { 57 } else { 48 };
    let input_bits = match config.virtual_bits {
        0..30 => widest,
        said => widest.min(said),
    };
    UnitInfo {
        name: config.name.clone(),
        formats: Vec::from([FormatId::Amdv1]),
        input_bits,
        output_bits: config.physical_bits.clamp(32, 52),
        page_sizes: PageSizes::from_bits(PAGE_SIZES),
        coherent_walk: true,
        caches_absent: config.caches_absent,
        can_bypass: true,
    }
}
