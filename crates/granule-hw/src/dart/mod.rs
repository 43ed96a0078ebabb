//! Apple's DART: 16 KiB pages, a table a stream, everything in registers.
//!
//! **This driver has not met hardware.** QEMU has no such device; it is proven against the register
//! model in `granule-sim` ([`DartRegisters`](https://docs.rs/granule-sim)), which was written from the
//! same facts: those that Linux's driver relies on (see [`spec`]). What they do not say, such as
//! whether a flush waits for transfers under way, is as Linux takes it to be.
//!
//! # What it does
//!
//! * A stream is blocked by clearing its control register, and translated by its table bases. Linux
//!   routes several streams to one domain in the same way.
//! * What is cached is dropped by stream, always all of it: an invalidation of a range is one of each
//!   stream of the domain. The wait is bounded.
//! * Where firmware locked the DART, neither control nor bases can be written. A stream that firmware
//!   set up keeps its root, which [`locked_roots`](granule::domain::Unit::locked_roots) reads from the
//!   registers so that the domain's entries can be mirrored into it; any other stream is refused.
//! * The table is indexed with the low input bits of what a device emits, whatever stands above them.
//!
//! The DART keeps one error at a time; call [`Dart::next_fault`] from wherever its interrupt is
//! handled, or poll it.

pub mod spec;
#[cfg(test)]
mod tests;
mod unit;

use alloc::string::String;
use alloc::vec::Vec;

use granule::addr::{DmaAddr, Granule, PageSizes};
use granule::domain::{StreamId, UnitInfo};
use granule::mem::Platform;
use lock_api::Mutex;

use crate::mmio::Registers;
use crate::wait::{Limit, wait_for};
use crate::{FaultEvent, HwError};
pub use spec::Model;
pub use unit::DartContext;

/// Streams of the first generation, and what its tables index and put out.
const STREAMS: u32 = 16;
const INPUT_BITS: u32 = 32;

/// The driver of one DART.
pub struct Dart<P: Platform, R: Registers> {
    platform: P,
    registers: R,
    model: Model,
    info: UnitInfo,
    streams: u32,
    limit: Limit,
    /// Held while commands are given and while a stream's registers change.
    commands: Mutex<P::Lock, ()>,
}

impl<P: Platform, R: Registers> Dart<P, R> {
    /// Takes the DART over from whoever had it: every stream is blocked from then on, but for those
    /// that firmware locked.
    ///
    /// # Errors
    /// [`HwError`]: it is not what `model` says, or does not answer.
    pub fn new(
        platform: P,
        registers: R,
        name: impl Into<String>,
        model: Model,
    ) -> Result<Self, HwError> {
        Self::with_limit(platform, registers, name, model, Limit::default())
    }

    /// As [`new`](Self::new), with another limit for every wait.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_limit(
        platform: P,
        registers: R,
        name: impl Into<String>,
        model: Model,
        limit: Limit,
    ) -> Result<Self, HwError> {
        let name = name.into();
        let len = registers.len();
        if len < spec::LEN {
            return Err(HwError::Registers { unit: name, len, need: spec::LEN });
        }
        let params = registers.read32(spec::PARAMS1);
        if params >> 24 & 0xf != Granule::K16.shift() {
            let what = "16 KiB pages (PARAMS1)";
            return Err(HwError::Missing { unit: name, what, value: params.into() });
        }
        let (input_bits, output_bits, streams) = sizes(&registers, model);
        if !(25..=47).contains(&input_bits) || streams == 0 {
            let what = "addresses or streams (PARAMS3, PARAMS4)";
            let value = registers.read32(spec::PARAMS3).into();
            return Err(HwError::Missing { unit: name, what, value });
        }
        let locked = is_locked(&registers, model);
        let bypasses = registers.read32(spec::PARAMS2) & 1 == 1;
        let info = UnitInfo {
            name,
            formats: Vec::from([model.format()]),
            input_bits,
            output_bits,
            page_sizes: PageSizes::from_bits(Granule::K16.size()),
            coherent_walk: true,
            caches_absent: false,
            can_bypass: bypasses && !locked,
        };
        let commands = Mutex::new(());
        let dart = Self { platform, registers, model, info, streams, limit, commands };
        dart.reset()?;
        Ok(dart)
    }

    /// Whether firmware locked it.
    pub fn is_locked(&self) -> bool {
        is_locked(&self.registers, self.model)
    }

    /// The registers.
    pub fn registers(&self) -> &R {
        &self.registers
    }

    /// Starts over after the DART lost its state: every stream is blocked (but for those that
    /// firmware locked) until it is attached again, which a domain's `resume` does. Everything cached
    /// is dropped.
    ///
    /// # Errors
    /// [`HwError::Timeout`].
    pub fn reset(&self) -> Result<(), HwError> {
        let at = self.model.registers();
        let _one_at_a_time = self.commands.lock();
        if !self.is_locked() {
            for stream in 0..self.streams {
                self.registers.write32(at.control_of(stream), 0);
                (0..at.bases_each)
                    .for_each(|index| self.registers.write32(at.base_of(stream, index), 0));
            }
            for (index, first) in (0..self.streams).step_by(32).enumerate() {
                let streams = (self.streams - first).min(32);
                let all = u32::MAX >> (32 - streams);
                self.registers.write32(at.enable + 4 * index, all);
            }
        }
        self.registers.write32(at.error, self.registers.read32(at.error));
        if let Some(mask) = at.error_mask {
            self.registers.write32(mask, 0);
        }
        let what = "the first flush";
        let late = |_| HwError::Timeout { unit: self.info.name.clone(), what };
        self.flush(0..self.streams).map_err(late)
    }

    /// Takes the error that the DART holds, so that it can note the next one.
    pub fn next_fault(&self) -> Option<FaultEvent> {
        let at = self.model.registers();
        let _one_at_a_time = self.commands.lock();
        let value = self.registers.read32(at.error);
        let error = self.model.error(value)?;
        let (low, high) = at.error_address;
        let address =
            u64::from(self.registers.read32(low)) | u64::from(self.registers.read32(high)) << 32;
        self.registers.write32(at.error, value);
        if let Some(noted) = at.error_streams {
            (0..self.streams.div_ceil(32) as usize)
                .for_each(|index| self.registers.write32(noted + 4 * index, u32::MAX));
        }
        Some(FaultEvent {
            unit: self.info.name.clone(),
            stream: Some(StreamId::exact(error.stream)),
            address: Some(DmaAddr::new(address)),
            access: error.access(),
            reason: error.reason(),
            code: error.code,
        })
    }

    /// Drops what is cached of streams. Behind the lock.
    fn flush(&self, streams: impl Iterator<Item = u32>) -> Result<(), crate::wait::TimedOut> {
        self.platform.barrier();
        match self.model {
            Model::T8103 | Model::T6000 => {
                let selected = streams.fold(0, |mask, stream| mask | 1u32 << (stream & 0x1f));
                self.registers.write32(spec::SELECT_T8020, selected);
                self.command(
                    spec::COMMAND_T8020,
                    spec::COMMAND_T8020_FLUSH,
                    spec::COMMAND_T8020_BUSY,
                )
            }
            Model::T8110 => streams.map(|stream| stream & 0xff).try_for_each(|stream| {
                let flush = spec::COMMAND_T8110_FLUSH | stream;
                self.command(spec::COMMAND_T8110, flush, spec::COMMAND_T8110_BUSY)
            }),
        }
    }

    fn command(
        &self,
        register: usize,
        command: u32,
        busy: u32,
    ) -> Result<(), crate::wait::TimedOut> {
        self.registers.write32(register, command);
        let done = || (self.registers.read32(register) & busy == 0).then_some(());
        wait_for(&self.platform, self.limit, done)?;
        self.platform.barrier();
        Ok(())
    }
}

fn is_locked(registers: &impl Registers, model: Model) -> bool {
    let (register, bit) = model.registers().lock;
    registers.read32(register) & bit != 0
}

/// Input bits, output bits, streams.
fn sizes(registers: &impl Registers, model: Model) -> (u32, u32, u32) {
    match model {
        Model::T8103 => (INPUT_BITS, 36, STREAMS),
        Model::T6000 => (INPUT_BITS, 42, STREAMS),
        Model::T8110 => {
            let widths = registers.read32(spec::PARAMS3);
            // One table base: two levels index 36 bits, three from 39 on.
            let input_bits = match widths >> 16 & 0x3f {
                37 | 38 => 36,
                bits => bits.min(47),
            };
            let streams = (registers.read32(spec::PARAMS4) & 0x1ff).min(256);
            (input_bits, (widths >> 24 & 0x3f).clamp(14, 42), streams)
        }
    }
}
