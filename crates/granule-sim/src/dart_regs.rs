//! A DART's registers, in front of a [`SimIommu`]: for drivers that program hardware.
//!
//! The offsets and bits are the facts that Linux's driver (`apple-dart.c`, 6.12) relies on; the vendor
//! documents nothing, so this model shows that a driver does what that driver does, not that hardware
//! agrees. They are written here once more, apart from any driver's.
//!
//! | | [`DartRevision::T8020`] | [`DartRevision::T8110`] |
//! | --- | --- | --- |
//! | lock | CONFIG 0x60, bit 15 | PROTECT 0x200, bit 0 |
//! | TLB | SELECT 0x34, COMMAND 0x20 (bit 20, busy bit 2) | 0x80 (operation 10:8, stream 7:0, busy bit 31) |
//! | error | 0x40, address 0x50 | 0x100, address 0x170 |
//! | stream's control | 0x100 + 4n | 0x1000 + 4n |
//! | table bases | 0x200 + 16n + 4k, `address >> 12`, bit 31 | 0x1400 + 4n, `address >> 14 << 2`, bit 0 |
//!
//! Firmware's lock covers the whole DART: if the IOMMU has a locked stream, no control register and
//! no table base can be written. A flush that fails (by the fault plan) stays busy for ever.

#![forbid(unsafe_code)]

use std::sync::Arc;

use granule::addr::{Access, PhysAddr};
use parking_lot::Mutex;

use crate::iommu::{FaultReason, FaultRecord, SimIommu, StreamState};

/// Which registers a DART has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DartRevision {
    /// t8020's, which t8103 (M1) and t6000 (M1 Pro) have too.
    T8020,
    /// t8110's (M1 Ultra's and later).
    T8110,
}

/// Streams beyond these have no registers.
const MOST_STREAMS_T8020: u32 = 16;
const MOST_STREAMS_T8110: u32 = 256;

#[derive(Debug)]
struct State {
    control: Vec<u32>,
    bases: Vec<u32>,
    selected: u32,
    busy: bool,
    error: u32,
    address: u64,
}

/// The registers of one DART.
#[derive(Debug)]
pub struct DartRegisters {
    iommu: Arc<SimIommu>,
    revision: DartRevision,
    state: Mutex<State>,
}

/// Which register an offset names.
enum Place {
    Control(usize),
    Base(usize),
    Other(usize),
}

impl DartRegisters {
    /// The registers of an IOMMU that walks DART tables. Locked streams are set up as firmware left
    /// them.
    pub fn new(iommu: &Arc<SimIommu>, revision: DartRevision) -> Self {
        let streams = iommu.config().streams as usize;
        let registers = Self {
            iommu: iommu.clone(),
            revision,
            state: Mutex::new(State {
                control: vec![0; streams],
                bases: vec![0; streams * revision.bases()],
                selected: 0,
                busy: false,
                error: 0,
                address: 0,
            }),
        };
        registers.restart();
        registers
    }

    /// Power was lost and is back: as after reset, with firmware's locked streams set up again.
    pub fn restart(&self) {
        let mut state = self.state.lock();
        self.iommu.reset();
        state.control.fill(0);
        state.bases.fill(0);
        state.busy = false;
        let bases = self.revision.bases();
        for lock in &self.iommu.config().locked {
            let stream = lock.stream as usize;
            if let Some(control) = state.control.get_mut(stream) {
                *control = self.revision.translate();
            }
            for (index, root) in lock.roots.iter().enumerate().take(bases) {
                if let Some(base) = state.bases.get_mut(stream * bases + index) {
                    *base = self.revision.encode(root.raw());
                }
            }
        }
    }

    /// The size of the block.
    pub fn len(&self) -> usize {
        0x4000
    }

    /// Never: there are registers.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn is_locked(&self) -> bool {
        !self.iommu.config().locked.is_empty()
    }

    fn place(&self, offset: usize) -> Place {
        let (control, bases) = match self.revision {
            DartRevision::T8020 => (0x100, 0x200),
            DartRevision::T8110 => (0x1000, 0x1400),
        };
        let streams = self.revision.streams(&self.iommu) as usize;
        let index = |from: usize| offset.checked_sub(from).map(|bytes| bytes / 4);
        match (index(control), index(bases)) {
            (_, Some(index)) if index < streams * self.revision.bases() => Place::Base(index),
            (Some(index), _) if index < streams => Place::Control(index),
            _ => Place::Other(offset),
        }
    }

    /// Reads a register; what is none reads 0.
    pub fn read32(&self, offset: usize) -> u32 {
        let mut state = self.state.lock();
        let word = |words: &[u32], index: usize| words.get(index).copied().unwrap_or(0);
        let config = self.iommu.config();
        match (self.place(offset), self.revision) {
            (Place::Control(index), _) => word(&state.control, index),
            (Place::Base(index), _) => word(&state.bases, index),
            (Place::Other(0x00), _) => config.format.granule().shift() << 24,
            (Place::Other(0x04), _) => config.can_bypass.into(),
            (Place::Other(0x08), DartRevision::T8110) => {
                config.output_bits << 24 | config.input_bits << 16
            }
            (Place::Other(0x0c), DartRevision::T8110) => config.streams & 0x1ff,
            (Place::Other(0x60), DartRevision::T8020) => u32::from(self.is_locked()) << 15,
            (Place::Other(0x200), DartRevision::T8110) => self.is_locked().into(),
            (Place::Other(0x20), DartRevision::T8020) => u32::from(state.busy) << 2,
            (Place::Other(0x80), DartRevision::T8110) => u32::from(state.busy) << 31,
            (Place::Other(0x34), DartRevision::T8020) => state.selected,
            (Place::Other(0x40), DartRevision::T8020)
            | (Place::Other(0x100), DartRevision::T8110) => {
                self.latch(&mut state);
                state.error
            }
            (Place::Other(0x50), DartRevision::T8020)
            | (Place::Other(0x170), DartRevision::T8110) => state.address as u32,
            (Place::Other(0x54), DartRevision::T8020)
            | (Place::Other(0x174), DartRevision::T8110) => (state.address >> 32) as u32,
            _ => 0,
        }
    }

    /// Writes a register; what is none, or locked, stays as it is.
    pub fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();
        match (self.place(offset), self.revision) {
            (Place::Control(_) | Place::Base(_), _) if self.is_locked() => {}
            (Place::Control(index), _) => {
                state.control[index] = value;
                self.apply(&state, index);
            }
            (Place::Base(index), _) => {
                state.bases[index] = value;
                self.apply(&state, index / self.revision.bases());
            }
            (Place::Other(0x34), DartRevision::T8020) => state.selected = value,
            (Place::Other(0x20), DartRevision::T8020) if value >> 20 & 1 == 1 => {
                let selected = state.selected;
                state.busy = !self.flush((0..32).filter(|stream| selected >> stream & 1 == 1));
            }
            (Place::Other(0x80), DartRevision::T8110) => {
                let stream = value & 0xff;
                state.busy = match value >> 8 & 7 {
                    0 => self.iommu.invalidate_all().is_err(),
                    1 => !self.flush(std::iter::once(stream)),
                    _ => state.busy,
                };
            }
            (Place::Other(0x40), DartRevision::T8020)
            | (Place::Other(0x100), DartRevision::T8110) => state.error &= !value,
            _ => {}
        }
    }

    /// Whether all of it was done.
    fn flush(&self, streams: impl Iterator<Item = u32>) -> bool {
        let locked = &self.iommu.config().locked;
        streams.fold(true, |done, stream| {
            let lock = locked.iter().find(|lock| lock.stream == stream);
            let context = lock.map_or(stream, |lock| lock.context);
            self.iommu.invalidate(context, None, false).is_ok() && done
        })
    }

    /// What a stream's registers mean takes effect at once.
    fn apply(&self, state: &State, stream: usize) {
        let (bases, control) = (self.revision.bases(), state.control[stream]);
        let roots: Vec<PhysAddr> = state.bases[stream * bases..(stream + 1) * bases]
            .iter()
            .map_while(|base| self.revision.decode(*base))
            .map(PhysAddr::new)
            .collect();
        let wanted = if control & self.revision.bypass() != 0 {
            StreamState::Bypass
        } else if control & self.revision.translate() != 0 && !roots.is_empty() {
            let input_bits = self.iommu.config().input_bits;
            StreamState::Translate { context: stream as u32, roots, input_bits }
        } else {
            StreamState::Blocked
        };
        // What the hardware cannot do leaves the stream blocked.
        if self.iommu.set_stream(stream as u32, wanted).is_err() {
            let _ = self.iommu.set_stream(stream as u32, StreamState::Blocked);
        }
    }

    /// The register holds one error; those that come before it is cleared are lost.
    fn latch(&self, state: &mut State) {
        if state.error >> 31 == 1 {
            return;
        }
        let Some(fault) = self.iommu.take_faults().into_iter().next() else { return };
        state.address = fault.address.raw();
        let code = code_of(&fault);
        state.error = match self.revision {
            DartRevision::T8020 => 1 << 31 | (fault.stream & 0xf) << 24 | code,
            // One level more: all codes but the first are one bit further up.
            DartRevision::T8110 => {
                let code = if code == 1 { 1 } else { code << 1 };
                1 << 31 | (fault.stream & 0xff) << 20 | code
            }
        };
    }
}

/// The T8020's error code.
fn code_of(fault: &FaultRecord) -> u32 {
    match &fault.reason {
        FaultReason::NoSuchStream | FaultReason::Blocked => 1,
        // The model does not tell at which level the walk ended.
        FaultReason::Walk(_) => 1 << 2,
        _ if fault.access.contains(Access::WRITE) => 1 << 3,
        _ => 1 << 4,
    }
}

impl DartRevision {
    fn bases(self) -> usize {
        match self {
            Self::T8020 => 4,
            Self::T8110 => 1,
        }
    }

    fn streams(self, iommu: &SimIommu) -> u32 {
        let most = match self {
            Self::T8020 => MOST_STREAMS_T8020,
            Self::T8110 => MOST_STREAMS_T8110,
        };
        iommu.config().streams.min(most)
    }

    fn translate(self) -> u32 {
        match self {
            Self::T8020 => 1 << 7,
            Self::T8110 => 1,
        }
    }

    fn bypass(self) -> u32 {
        match self {
            Self::T8020 => 1 << 8,
            Self::T8110 => 1 << 1,
        }
    }

    fn encode(self, address: u64) -> u32 {
        match self {
            Self::T8020 => (address >> 12) as u32 | 1 << 31,
            Self::T8110 => ((address >> 14) as u32) << 2 | 1,
        }
    }

    /// The address in a table base, if it is valid.
    fn decode(self, base: u32) -> Option<u64> {
        match self {
            Self::T8020 => (base >> 31 == 1).then_some(u64::from(base & 0x7fff_ffff) << 12),
            Self::T8110 => (base & 1 == 1).then_some(u64::from(base >> 2) << 14),
        }
    }
}

#[cfg(test)]
mod tests {
    use granule::addr::{DmaAddr, PhysRange};

    use super::*;
    use crate::iommu::IommuConfig;
    use crate::machine::{DeviceSpec, Machine};
    use crate::walk::SimFormat;

    fn machine() -> Machine {
        let ram = PhysRange::new(PhysAddr::new(0x8_0000_0000), 64 << 20).expect("a range");
        let builder = Machine::builder().ram(ram);
        let builder = builder.iommu(IommuConfig::new("dart", SimFormat::Dart1, 32));
        builder.device(DeviceSpec::behind("dcp", "dart", 3)).build().expect("a machine")
    }

    #[test]
    fn tables_are_walked_and_errors_are_told() {
        let machine = machine();
        let registers =
            DartRegisters::new(machine.iommu("dart").expect("as built"), DartRevision::T8020);
        let device = machine.device("dcp").expect("as built");
        assert_eq!((registers.read32(0) >> 24 & 0xf, registers.read32(4)), (14, 1));
        let mut byte = [0];
        assert!(device.read(DmaAddr::new(0x4000), &mut byte).is_err());
        assert_eq!(registers.read32(0x40), 1 << 31 | 3 << 24 | 1, "no table");
        assert_eq!(registers.read32(0x50), 0x4000);
        registers.write32(0x40, registers.read32(0x40));
        assert_eq!(registers.read32(0x40) >> 31, 0);
        let (root, leaf, page) = (0x8_0010_0000, 0x8_0010_4000, 0x8_0020_0000_u64);
        machine.ram().write_u64(PhysAddr::new(root), leaf | 1).expect("RAM");
        let entry = page | 0x000f_ff00_0000_0001;
        machine.ram().write_u64(PhysAddr::new(leaf + 8), entry).expect("RAM");
        registers.write32(0x200 + 3 * 16, (root >> 12) as u32 | 1 << 31);
        registers.write32(0x100 + 3 * 4, 1 << 7);
        device.read(DmaAddr::new(0x4000), &mut byte).expect("mapped");
        machine.ram().write_u64(PhysAddr::new(leaf + 8), 0).expect("RAM");
        device.read(DmaAddr::new(0x4000), &mut byte).expect("still cached");
        registers.write32(0x34, 1 << 3);
        registers.write32(0x20, 1 << 20);
        assert_eq!(registers.read32(0x20), 0, "done");
        assert!(device.read(DmaAddr::new(0x4000), &mut byte).is_err());
        assert_eq!(registers.read32(0x40) & 0xfff, 1 << 2, "no page");
    }
}
