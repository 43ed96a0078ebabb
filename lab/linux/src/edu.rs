//! A driver of QEMU's `edu` device, in user space: it copies between memory and 4 KiB of its own.
//!
//! Source: QEMU, `docs/specs/edu.rst`.

use std::thread;
use std::time::{Duration, Instant};

use granule::dma::{self, DeviceSpec};
use granule_linux::{Bar, Device, Host};

use crate::machine::Pci;
use crate::{Failure, Guest};

/// The bytes that the device holds, and the most that it copies at once.
pub(crate) const SIZE: usize = 4096;

/// Where the device itself sees its bytes.
const OWN: u64 = 0x4_0000;

/// Registers: from, to, how many bytes, command.
const FROM: u64 = 0x80;
const TO: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;

/// Bits of the command.
const START: u64 = 1;
const TO_MEMORY: u64 = 2;

/// A copy takes a tenth of a second.
const LIMIT: Duration = Duration::from_secs(20);

/// A device in an address space of its own.
pub(crate) struct Edu {
    device: Device,
    registers: Bar,
}

impl Edu {
    /// Opens the device.
    pub(crate) fn open(guest: &Guest, host: &Host, pci: &Pci) -> Result<Self, Failure> {
        let space = host.space(guest.backend()?);
        let name = format!("edu {}", pci.address);
        let device = space.device(pci.address.parse()?, DeviceSpec::new(name)).open()?;
        let registers = device.pci().bar(0)?;
        device.pci().enable_bus_mastering()?;
        Ok(Self { device, registers })
    }

    /// The device as granule knows it.
    pub(crate) fn dma(&self) -> &dma::Device {
        self.device.dma()
    }

    /// Reads `len` bytes at a DMA address into the device.
    pub(crate) fn load(&self, address: u64, len: usize) -> Result<(), Failure> {
        self.copy(address, OWN, len, START)
    }

    /// Writes the device's first `len` bytes to a DMA address.
    pub(crate) fn store(&self, address: u64, len: usize) -> Result<(), Failure> {
        self.copy(OWN, address, len, START | TO_MEMORY)
    }

    fn copy(&self, from: u64, to: u64, len: usize, command: u64) -> Result<(), Failure> {
        let registers = &self.registers;
        registers.write(FROM, from)?;
        registers.write(TO, to)?;
        registers.write(COUNT, len as u64)?;
        registers.write(COMMAND, command)?;
        let begin = Instant::now();
        while registers.read::<u64>(COMMAND)? & START != 0 {
            if begin.elapsed() > LIMIT {
                return Err(format!("{} does not end its copy", self.dma().name()).into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
