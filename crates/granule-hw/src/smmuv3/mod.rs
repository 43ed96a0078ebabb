//! Arm SMMUv3 (Arm IHI 0070): stage 1 through the core's LPAE tables, one context a domain.
//!
//! | file | subject |
//! | --- | --- |
//! | [`spec`] | registers, entries, commands, events, as the specification has them |
//! | `queue` | the ports of the command and event queues |
//! | `streams` | the stream table |
//! | `unit` | [`Unit`](granule::domain::Unit) on those |
//!
//! A granule of 4, 16 or 64 KiB is a choice of the domain's, where `IDR5` has it: the CPU's page has
//! no part in it.
//!
//! # What it does
//!
//! * Every stream that is not attached is *aborted*, silently: the unit records nothing for such a
//!   stream. While the unit is disabled, and after the driver is dropped, `GBPA` aborts everything.
//! * An attached stream's entry names one context descriptor: the domain's table, its ASID, and the
//!   attributes that the core's entries count on. ASIDs are 1 and up; one comes back into use after
//!   everything cached under it was dropped, and never if that failed.
//! * An invalidation goes by address, in ranges where the unit takes them (`IDR3.RIL`), by page where
//!   it does not and there are few; else by ASID. Every call ends with `CMD_SYNC` and a bounded wait
//!   for the consumer index, under a lock.
//! * A unit that does not snoop (`IDR0.COHACC` 0) gets every entry and command cleaned.
//! * Faults terminate. On a unit that can only stall, [`SmmuV3::next_fault`] ends what stalled, so it
//!   has to be called.
//!
//! Interrupts stay off: call [`SmmuV3::next_fault`] from wherever they are handled, or poll it. ATS,
//! PRI and stage 2 are not used; wider addresses than 48 bits neither.

mod queue;
pub mod spec;
mod streams;
#[cfg(test)]
mod tests;
mod unit;

use alloc::string::String;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use granule::addr::{DmaAddr, PageSizes};
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
use queue::{CommandQueue, EventQueue};
use spec::command::Command;
use spec::register::{self as reg, Enable, Features};
use streams::Streams;
pub use unit::SmmuContext;

/// 256 commands, 128 events: a page each, as far as the unit allows.
const COMMAND_BITS: u32 = 8;
const EVENT_BITS: u32 = 7;
/// The widest input addresses of the formats here.
const INPUT_BITS: u32 = 48;

/// The driver of one SMMUv3.
pub struct SmmuV3<P: Platform, R: Registers> {
    platform: P,
    registers: R,
    features: Features,
    info: UnitInfo,
    limit: Limit,
    commands: ManuallyDrop<Mutex<P::Lock, Commands<P, CommandQueue>>>,
    events: ManuallyDrop<Mutex<P::Lock, Records<P, EventQueue>>>,
    streams: ManuallyDrop<Mutex<P::Lock, Streams<P>>>,
    asids: Mutex<P::Lock, Ids>,
}

impl<P: Platform, R: Registers> SmmuV3<P, R> {
    /// Takes the unit over from whoever had it: every stream is blocked from then on.
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
        let features = identify(&registers, &name)?;
        let (command_bits, event_bits) =
            (features.command_bits.min(COMMAND_BITS), features.event_bits.min(EVENT_BITS));
        let memory = |what, bytes: u64| {
            let bits = features.output_bits.min(INPUT_BITS);
            DmaMemory::new(&platform, bytes, bits, features.coherent)
                .map_err(HwError::no_memory(&name, what))
        };
        let commands = memory("the command queue", 16 << command_bits)?;
        let events = match memory("the event queue", 32 << event_bits) {
            Ok(events) => events,
            Err(error) => {
                commands.free();
                return Err(error);
            }
        };
        let streams = match Streams::new(&platform, &features) {
            Ok(streams) => streams,
            Err(error) => {
                commands.free();
                events.free();
                return Err(HwError::no_memory(&name, "the stream table")(error));
            }
        };
        let commands = Commands::new(platform.clone(), commands, command_bits, limit);
        let unit = Self {
            info: info(name, &features),
            commands: ManuallyDrop::new(Mutex::new(commands)),
            events: ManuallyDrop::new(Mutex::new(Records::new(events, event_bits))),
            streams: ManuallyDrop::new(Mutex::new(streams)),
            asids: Mutex::new(Ids::default()),
            platform,
            registers,
            features,
            limit,
        };
        unit.reset()?;
        Ok(unit)
    }

    /// What the identification registers say.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The registers.
    pub fn registers(&self) -> &R {
        &self.registers
    }

    /// Sets how long a command may take.
    pub fn set_limit(&mut self, limit: Limit) {
        self.limit = limit;
        self.commands.get_mut().set_limit(limit);
    }

    /// Programs the unit again after it lost its state: registers and queues. What streams are
    /// attached to stands in memory and is in force again; everything cached is dropped.
    ///
    /// # Errors
    /// [`HwError::Timeout`]: the unit aborts everything.
    pub fn reset(&self) -> Result<(), HwError> {
        self.disable()?;
        let registers = &self.registers;
        let coherent = self.features.coherent;
        registers.write32(reg::IRQ_CTRL, 0);
        let attributes = if coherent { reg::CR1_COHERENT } else { reg::CR1_NON_COHERENT };
        registers.write32(reg::CR1, attributes);
        registers.write32(reg::CR2, reg::CR2_RECORD_PRIVATE);
        let (base, config) = self.streams.lock().base();
        registers.write64(reg::STRTAB_BASE, base);
        registers.write32(reg::STRTAB_BASE_CFG, config);
        // Errors from before are none of ours.
        registers.write32(reg::GERRORN, registers.read32(reg::GERROR));
        let mut commands = self.commands.lock();
        commands.start(registers);
        self.enable(Enable::COMMANDS)?;
        let hypervisor = self.features.hypervisor.then_some(Command::DropHypervisor);
        let clean = [Command::AllChanged, Command::DropAll].into_iter().chain(hypervisor);
        commands.run(registers, clean).map_err(|_| self.timeout("the first invalidation"))?;
        self.events.lock().start(registers);
        self.enable(Enable::COMMANDS | Enable::EVENTS)?;
        self.enable(Enable::COMMANDS | Enable::EVENTS | Enable::TRANSLATION)
    }

    /// Everything is aborted, and the unit reads none of our memory.
    fn disable(&self) -> Result<(), HwError> {
        let registers = &self.registers;
        let updated = || {
            let settled = || {
                let value = registers.read32(reg::GBPA);
                (value & reg::GBPA_UPDATE == 0).then_some(value)
            };
            wait_for(&self.platform, self.limit, settled).map_err(|_| self.timeout("GBPA"))
        };
        let value = updated()?;
        registers.write32(reg::GBPA, value | reg::GBPA_ABORT | reg::GBPA_UPDATE);
        updated()?;
        self.enable(Enable::empty())
    }

    fn enable(&self, what: Enable) -> Result<(), HwError> {
        let registers = &self.registers;
        registers.write32(reg::CR0, what.bits());
        let all = Enable::all().bits();
        let acknowledged = || (registers.read32(reg::CR0ACK) & all == what.bits()).then_some(());
        wait_for(&self.platform, self.limit, acknowledged).map_err(|_| self.timeout("CR0"))
    }

    fn timeout(&self, what: &'static str) -> HwError {
        HwError::Timeout { unit: self.info.name.clone(), what }
    }

    /// Takes the oldest event that the unit has recorded.
    pub fn next_fault(&self) -> Option<FaultEvent> {
        let next = self.events.lock().next(&self.registers)?;
        let mut fault = FaultEvent {
            unit: self.info.name.clone(),
            stream: None,
            address: None,
            access: granule::addr::Access::empty(),
            reason: FaultReason::Overflow,
            code: 0,
        };
        if let Next::Record(event) = next {
            if let Some(tag) = event.stalled {
                let end = Command::EndStalled { stream: event.stream, tag };
                // A unit that does not answer here does not answer an invalidation either.
                let _ = self.commands.lock().run(&self.registers, [end]);
            }
            fault.stream = Some(StreamId::exact(event.stream));
            fault.address = event.address.map(DmaAddr::new);
            fault.access = event.access;
            fault.reason = event.reason();
            fault.code = event.number.into();
        }
        Some(fault)
    }
}

impl<P: Platform, R: Registers> Drop for SmmuV3<P, R> {
    fn drop(&mut self) {
        if self.disable().is_err() {
            return; // The unit may still read its tables and queues: they are never freed.
        }
        // SAFETY: taken once, here; the fields are not used after this.
        let (commands, events, streams) = unsafe {
            (
                ManuallyDrop::take(&mut self.commands),
                ManuallyDrop::take(&mut self.events),
                ManuallyDrop::take(&mut self.streams),
            )
        };
        commands.into_inner().free();
        events.into_inner().free();
        streams.into_inner().free();
    }
}

/// Reads the identification registers and refuses what cannot be driven.
fn identify(registers: &impl Registers, name: &str) -> Result<Features, HwError> {
    let len = registers.len();
    if len < reg::LEN {
        return Err(HwError::Registers { unit: name.into(), len, need: reg::LEN });
    }
    let [idr0, idr1, idr3, idr5] =
        [reg::IDR0, reg::IDR1, reg::IDR3, reg::IDR5].map(|offset| registers.read32(offset));
    let features = Features::decode(idr0, idr1, idr3, idr5);
    let needs = [
        (features.stage1, "stage 1 translation (IDR0.S1P)", idr0),
        (features.aarch64, "the AArch64 table format (IDR0.TTF)", idr0),
        (features.little_endian, "little-endian tables (IDR0.TTENDIAN)", idr0),
        (!features.preset, "table and queue bases of our choice (IDR1)", idr1),
        (features.granules != [false; 3], "a granule (IDR5)", idr5),
    ];
    match needs.into_iter().find(|(met, ..)| !met) {
        Some((_, what, value)) => {
            Err(HwError::Missing { unit: name.into(), what, value: value.into() })
        }
        None => Ok(features),
    }
}

fn info(name: String, features: &Features) -> UnitInfo {
    let formats: Vec<FormatId> = [FormatId::Lpae4k, FormatId::Lpae16k, FormatId::Lpae64k]
        .into_iter()
        .zip(features.granules)
        .filter_map(|(format, present)| present.then_some(format))
        .collect();
    UnitInfo {
        name,
        formats,
        input_bits: INPUT_BITS,
        output_bits: features.output_bits.min(INPUT_BITS),
        page_sizes: PageSizes::from_bits(u64::MAX),
        coherent_walk: features.coherent,
        caches_absent: false,
        can_bypass: true,
    }
}
