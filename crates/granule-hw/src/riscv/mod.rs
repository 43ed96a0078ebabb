//! RISC-V IOMMU (RISC-V IOMMU Architecture Specification 1.0): first stage through the core's Sv39,
//! Sv48 or Sv57 tables, one process soft-context id (`PSCID`) a domain.
//!
//! | file | subject |
//! | --- | --- |
//! | [`spec`] | registers, commands, device contexts, fault records, as the specification has them |
//! | `queue` | the ports of the command and fault queues |
//! | `directory` | the device directory |
//! | `unit` | [`Unit`](granule::domain::Unit) on those |
//!
//! # What it does
//!
//! * A device that is not attached has no valid context: its transactions fault, and are recorded
//!   with cause 258. The directory has as many levels as the unit takes, up to three.
//! * An invalidation goes by page where there are few, else by `PSCID`; the address form covers leaf
//!   entries only, so that unlinked tables go by `PSCID` too, unless the unit has the extension for
//!   non-leaf entries (`capabilities.NL`). Every call ends with `IOFENCE.C` and a bounded wait for the
//!   head, under a lock.
//! * 64 KiB pages (Svnapot) are not used: no capability says that the unit has them, and QEMU 10
//!   translates them wrongly without a word.
//! * The unit is taken to snoop the CPU's caches: no capability says otherwise.
//!
//! Interrupts stay off: call [`RiscvIommu::next_fault`] from wherever they are handled, or poll it.
//! ATS, page requests, process directories, MSI remapping and the second stage are not used.

mod directory;
mod queue;
pub mod spec;
#[cfg(test)]
mod tests;
mod unit;

use alloc::string::String;
use core::mem::ManuallyDrop;

use granule::addr::{Access, DmaAddr, PageSizes};
use granule::domain::{StreamId, UnitInfo};
use granule::mem::Platform;
use granule::table::FormatId;
use lock_api::Mutex;

use crate::dma_memory::DmaMemory;
use crate::ids::Ids;
use crate::mmio::Registers;
use crate::queue::{Commands, Next, Records};
use crate::wait::{Limit, wait_for};
use crate::{FaultEvent, FaultReason, HwError};
use directory::Directory;
use queue::{COMMAND_BITS, CommandQueue, FAULT_BITS, FaultQueue};
use spec::command::Command;
use spec::register::{self as reg, Capabilities};
pub use unit::RiscvContext;

/// The last `PSCID`: it has 20 bits. 0 is kept back: it is what a context holds that nobody wrote.
const LAST_SPACE: u32 = (1 << 20) - 1;
/// 4 KiB, 2 MiB, 1 GiB, 512 GiB, 256 TiB.
const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30 | 1 << 39 | 1 << 48);

/// The driver of one RISC-V IOMMU.
pub struct RiscvIommu<P: Platform, R: Registers> {
    platform: P,
    registers: R,
    capabilities: Capabilities,
    info: UnitInfo,
    limit: Limit,
    commands: ManuallyDrop<Mutex<P::Lock, Commands<P, CommandQueue>>>,
    faults: ManuallyDrop<Mutex<P::Lock, Records<P, FaultQueue>>>,
    directory: ManuallyDrop<Mutex<P::Lock, Directory<P>>>,
    spaces: Mutex<P::Lock, Ids>,
}

impl<P: Platform, R: Registers> RiscvIommu<P, R> {
    /// Takes the unit over from whoever had it: every device is blocked from then on.
    ///
    /// # Errors
    /// [`HwError`]: the unit lacks something, memory is short, or it does not answer.
    pub fn new(platform: P, registers: R, name: impl Into<String>) -> Result<Self, HwError> {
        Self::with_limit(platform, registers, name, Limit::default())
    }

    /// As [`new`](Self::new), with another limit for every wait.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_limit(
        platform: P,
        registers: R,
        name: impl Into<String>,
        limit: Limit,
    ) -> Result<Self, HwError> {
        let name = name.into();
        let capabilities = identify(&registers, &name)?;
        let bits = capabilities.output_bits;
        let memory = |what, bytes: u64| {
            DmaMemory::new(&platform, bytes, bits, true).map_err(HwError::no_memory(&name, what))
        };
        let commands = memory("the command queue", 16 << COMMAND_BITS)?;
        let faults = match memory("the fault queue", 32 << FAULT_BITS) {
            Ok(faults) => faults,
            Err(error) => {
                commands.free();
                return Err(error);
            }
        };
        let directory = match Directory::new(&platform, capabilities.extended, bits) {
            Ok(directory) => directory,
            Err(error) => {
                commands.free();
                faults.free();
                return Err(HwError::no_memory(&name, "the device directory")(error));
            }
        };
        let commands = Commands::new(platform.clone(), commands, COMMAND_BITS, limit);
        let unit = Self {
            info: info(name, &capabilities),
            commands: ManuallyDrop::new(Mutex::new(commands)),
            faults: ManuallyDrop::new(Mutex::new(Records::new(faults, FAULT_BITS))),
            directory: ManuallyDrop::new(Mutex::new(directory)),
            spaces: Mutex::new(Ids::default()),
            platform,
            registers,
            capabilities,
            limit,
        };
        unit.reset()?;
        Ok(unit)
    }

    /// What the unit can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The registers.
    pub fn registers(&self) -> &R {
        &self.registers
    }

    /// The levels of the device directory.
    pub fn levels(&self) -> u32 {
        self.directory.lock().levels()
    }

    /// Programs the unit again after it lost its state: registers and queues. What devices are
    /// attached to stands in memory and is in force again; everything cached is dropped.
    ///
    /// # Errors
    /// [`HwError::Timeout`]: the unit lets nothing through.
    pub fn reset(&self) -> Result<(), HwError> {
        self.disable()?;
        let registers = &self.registers;
        if self.capabilities.endian {
            registers.write32(reg::FCTL, registers.read32(reg::FCTL) & !reg::BIG_ENDIAN);
        }
        let mut commands = self.commands.lock();
        commands.start(registers);
        self.switch(reg::CQCSR, true, "the command queue")?;
        self.faults.lock().start(registers);
        self.switch(reg::FQCSR, true, "the fault queue")?;
        let clean = [Command::ContextChanged { device: None }, Command::DropAll];
        commands.run(registers, clean).map_err(|_| self.timeout("the first invalidation"))?;
        self.enable_directory()?;
        let clean = [Command::ContextChanged { device: None }, Command::DropAll];
        commands.run(registers, clean).map_err(|_| self.timeout("the first invalidation"))
    }

    /// With as many levels as the unit takes; after a reset, as many as before.
    fn enable_directory(&self) -> Result<(), HwError> {
        let mut directory = self.directory.lock();
        let known = directory.levels();
        let most = if known == 0 { 3 } else { known };
        let least = if known == 0 { 1 } else { known };
        for levels in (least..=most).rev() {
            let wanted = reg::ddtp(directory.root(), levels);
            self.registers.write64(reg::DDTP, wanted);
            if self.settled()? == wanted {
                directory.set_levels(levels);
                return Ok(());
            }
        }
        let value = self.registers.read64(reg::DDTP);
        let what = "a device directory in memory (ddtp.iommu_mode)";
        Err(HwError::Missing { unit: self.info.name.clone(), what, value })
    }

    /// `ddtp` once the unit is done with it.
    fn settled(&self) -> Result<u64, HwError> {
        let ready = || {
            let value = self.registers.read64(reg::DDTP);
            (value & reg::DDTP_BUSY == 0).then_some(value)
        };
        wait_for(&self.platform, self.limit, ready).map_err(|_| self.timeout("ddtp"))
    }

    /// Nothing is let through, and the unit reads none of our memory.
    fn disable(&self) -> Result<(), HwError> {
        self.settled()?;
        self.registers.write64(reg::DDTP, reg::ddtp(0, 0));
        if self.settled()? & reg::DDTP_MODE != 0 {
            return Err(self.timeout("ddtp"));
        }
        self.switch(reg::CQCSR, false, "the command queue")?;
        self.switch(reg::FQCSR, false, "the fault queue")?;
        self.switch(reg::PQCSR, false, "the page request queue")
    }

    /// Turns a queue on or off; clears its errors.
    fn switch(&self, register: usize, on: bool, what: &'static str) -> Result<(), HwError> {
        let errors = if register == reg::CQCSR { reg::COMMAND_ERRORS } else { reg::FAULT_ERRORS };
        let (control, state) =
            if on { (reg::QUEUE_ENABLE | errors, reg::QUEUE_ON) } else { (0, 0) };
        self.registers.write32(register, control);
        let both = reg::QUEUE_BUSY | reg::QUEUE_ON;
        let ready = || (self.registers.read32(register) & both == state).then_some(());
        wait_for(&self.platform, self.limit, ready).map_err(|_| self.timeout(what))
    }

    fn timeout(&self, what: &'static str) -> HwError {
        HwError::Timeout { unit: self.info.name.clone(), what }
    }

    /// Takes the oldest fault that the unit has recorded.
    pub fn next_fault(&self) -> Option<FaultEvent> {
        let next = self.faults.lock().next(&self.registers)?;
        let unit = self.info.name.clone();
        Some(match next {
            Next::Record(fault) => FaultEvent {
                unit,
                stream: fault.device.map(StreamId::exact),
                address: fault.address.map(DmaAddr::new),
                access: fault.access,
                reason: fault.reason(),
                code: fault.cause.into(),
            },
            Next::Overflow => FaultEvent {
                unit,
                stream: None,
                address: None,
                access: Access::empty(),
                reason: FaultReason::Overflow,
                code: 0,
            },
        })
    }
}

impl<P: Platform, R: Registers> Drop for RiscvIommu<P, R> {
    fn drop(&mut self) {
        if self.disable().is_err() {
            return; // The unit may still read its directory and queues: they are never freed.
        }
        // SAFETY: taken once, here; the fields are not used after this.
        let (commands, faults, directory) = unsafe {
            (
                ManuallyDrop::take(&mut self.commands),
                ManuallyDrop::take(&mut self.faults),
                ManuallyDrop::take(&mut self.directory),
            )
        };
        commands.into_inner().free();
        faults.into_inner().free();
        directory.into_inner().free();
    }
}

/// Reads the capabilities and refuses what cannot be driven.
fn identify(registers: &impl Registers, name: &str) -> Result<Capabilities, HwError> {
    let len = registers.len();
    if len < reg::LEN {
        return Err(HwError::Registers { unit: name.into(), len, need: reg::LEN });
    }
    let value = registers.read64(reg::CAPABILITIES);
    let capabilities = Capabilities::decode(value);
    let big_endian = registers.read32(reg::FCTL) & reg::BIG_ENDIAN != 0;
    let needs = [
        (capabilities.version >> 4 == 1, "version 1 of the specification"),
        (capabilities.formats != [false; 3], "Sv39, Sv48 or Sv57"),
        (capabilities.output_bits > 12, "physical addresses (PAS)"),
        (capabilities.endian || !big_endian, "little-endian tables (fctl.BE)"),
    ];
    match needs.into_iter().find(|(met, _)| !met) {
        Some((_, what)) => Err(HwError::Missing { unit: name.into(), what, value }),
        None => Ok(capabilities),
    }
}

fn info(name: String, capabilities: &Capabilities) -> UnitInfo {
    // The highest input bit of each mode is the sign: the lower half is used.
    let modes = [(FormatId::Sv39, 38), (FormatId::Sv48, 47), (FormatId::Sv57, 56)];
    let present = || modes.into_iter().zip(capabilities.formats).filter(|(_, present)| *present);
    UnitInfo {
        name,
        formats: present().map(|((format, _), _)| format).collect(),
        input_bits: present().map(|((_, bits), _)| bits).max().unwrap_or(38),
        output_bits: capabilities.output_bits.min(56),
        page_sizes: PAGE_SIZES,
        coherent_walk: true,
        caches_absent: false,
        can_bypass: true,
    }
}
