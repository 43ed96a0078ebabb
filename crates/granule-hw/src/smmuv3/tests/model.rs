//! An SMMUv3 as a device: registers and queues after IHI 0070, in front of the simulator's walker and
//! IOTLB. It decodes by bit positions of its own, not by the driver's `spec`.

use std::sync::Arc;
use std::vec::Vec;

use granule::addr::{Iova, IovaRange, PhysAddr};
use granule_sim::iommu::{IommuConfig, SimIommu, StreamState};
use granule_sim::machine::{DeviceSpec, Machine};
use granule_sim::walk::{PhysRead, SimFormat};
use parking_lot::Mutex;

use crate::mmio::Registers;
use crate::testing::{byte_read_by, written_by};

/// How the model's command queue behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Answers,
    /// Commands are left lying.
    Silent,
    /// The next command is refused as illegal.
    RefusesOne,
}

#[derive(Debug)]
struct State {
    words: Vec<u32>,
    mood: Mood,
    halted: bool,
    seen: Vec<u64>,
    overflow: bool,
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) machine: Machine,
    pub(super) iommu: Arc<SimIommu>,
    coherent: bool,
    state: Arc<Mutex<State>>,
}

impl Clone for Model {
    fn clone(&self) -> Self {
        Self {
            machine: self.machine.clone(),
            iommu: self.iommu.clone(),
            coherent: self.coherent,
            state: self.state.clone(),
        }
    }
}

/// What differs from model to model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) format: SimFormat,
    pub(super) coherent: bool,
    pub(super) two_levels: bool,
    pub(super) ranges: bool,
    pub(super) stream_bits: u32,
}

impl Default for Kind {
    fn default() -> Self {
        let format = SimFormat::Lpae16k;
        Self { format, coherent: true, two_levels: true, ranges: true, stream_bits: 10 }
    }
}

pub(super) const STREAM: u32 = 0x2a5;

impl Model {
    pub(super) fn new(kind: Kind) -> Self {
        let mut config = IommuConfig::new("smmu", kind.format, 48);
        config.streams = 1 << kind.stream_bits;
        config.output_bits = 44;
        config.coherent_walk = kind.coherent;
        let stream = STREAM & (config.streams - 1);
        let ram = crate::testing::ram();
        let builder = Machine::builder().ram(ram).iommu(config);
        let machine =
            builder.device(DeviceSpec::behind("nic", "smmu", stream)).build().expect("a machine");
        let iommu = machine.iommu("smmu").expect("as built").clone();
        let mut words = std::vec![0; 0x1_0100 / 4];
        let levels = u32::from(kind.two_levels);
        words[0] = 1 << 1
            | 2 << 2
            | u32::from(kind.coherent) << 4
            | 1 << 12
            | 2 << 21
            | 1 << 24
            | levels << 27;
        // Short queues, so that they fill up: 8 commands, 4 events.
        words[1] = 3 << 21 | 2 << 16 | kind.stream_bits;
        words[0xc / 4] = u32::from(kind.ranges) << 10;
        words[0x14 / 4] = 0x74;
        let state =
            State { words, mood: Mood::Answers, halted: false, seen: Vec::new(), overflow: false };
        Self { machine, iommu, coherent: kind.coherent, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.state.lock().mood = mood;
    }

    /// The opcodes of all commands carried out, and forgets them.
    pub(super) fn take_seen(&self) -> Vec<u64> {
        std::mem::take(&mut self.state.lock().seen)
    }

    /// Power is lost.
    pub(super) fn lose_power(&self) {
        self.iommu.reset();
        self.state.lock().words[0x20 / 4..].fill(0);
    }

    pub(super) fn peek(&self, offset: usize) -> u32 {
        self.state.lock().words[offset / 4]
    }

    fn load(&self, at: u64) -> u64 {
        self.machine.memory().master(self.coherent).read_u64(PhysAddr::new(at)).expect("RAM")
    }

    /// Writes an event record, or sets the overflow flag.
    pub(super) fn post(&self, record: [u64; 4]) {
        let mut state = self.state.lock();
        let base = u64::from(state.words[0xa0 / 4]) | u64::from(state.words[0xa4 / 4]) << 32;
        let bits = base & 0x1f;
        let (producer, consumer) =
            (state.words[0x1_00a8 / 4] & 0x7fff_ffff, state.words[0x1_00ac / 4] & 0x7fff_ffff);
        if producer ^ consumer == 1 << bits {
            // Toggled only when the last loss was acknowledged.
            let acknowledged = state.words[0x1_00ac / 4] >> 31 == u32::from(state.overflow);
            state.overflow ^= acknowledged;
            let flag = u32::from(state.overflow) << 31;
            state.words[0x1_00a8 / 4] = producer | flag;
            return;
        }
        let slot = u64::from(producer) & ((1 << bits) - 1);
        let at = (base & 0xf_ffff_ffff_ffe0) + slot * 32;
        for (index, word) in record.into_iter().enumerate() {
            let place = PhysAddr::new(at + index as u64 * 8);
            let bytes = word.to_le_bytes();
            assert!(self.machine.memory().master(self.coherent).write(place, &bytes));
        }
        let flag = u32::from(state.overflow) << 31;
        state.words[0x1_00a8 / 4] = (producer + 1) & ((2 << bits) - 1) | flag;
    }

    fn consume(&self, state: &mut State) {
        let base = u64::from(state.words[0x90 / 4]) | u64::from(state.words[0x94 / 4]) << 32;
        let (bits, start) = (base & 0x1f, base & 0xf_ffff_ffff_ffe0);
        while !state.halted && state.mood != Mood::Silent && state.words[0x20 / 4] & 8 != 0 {
            let consumer = state.words[0x9c / 4] & 0xf_ffff;
            if consumer == state.words[0x98 / 4] & 0xf_ffff {
                return;
            }
            let at = start + (u64::from(consumer) & ((1 << bits) - 1)) * 16;
            let command = [self.load(at), self.load(at + 8)];
            let refused = state.mood == Mood::RefusesOne && command[0] & 0xff != 0x46;
            if refused || !self.carry_out(state, command) {
                state.mood = Mood::Answers;
                state.halted = true;
                state.words[0x60 / 4] ^= 1;
                state.words[0x9c / 4] = consumer | 1 << 24;
                return;
            }
            state.words[0x9c / 4] = (consumer + 1) & ((2 << bits) - 1);
        }
    }

    fn carry_out(&self, state: &mut State, [low, high]: [u64; 2]) -> bool {
        let opcode = low & 0xff;
        state.seen.push(opcode);
        let stream = (low >> 32) as u32;
        let asid = (low >> 48) as u32;
        match opcode {
            0x03 => self.configure(state, stream),
            0x04 => (0..self.iommu.config().streams).for_each(|id| self.configure(state, id)),
            0x06 | 0x44 => {}
            0x11 => return self.iommu.invalidate(asid, None, false).is_ok(),
            0x12 => {
                let granule = self.iommu.config().format.granule().size();
                let expected = [1 << 12, 1 << 14, 1 << 16].iter().position(|g| *g == granule);
                let (tg, scale, num) = (high >> 10 & 3, low >> 20 & 0x1f, low >> 12 & 0x1f);
                let pages = if tg == 0 { 1 } else { (num + 1) << scale };
                let legal = match tg {
                    0 => num == 0 && scale == 0,
                    tg => {
                        (num, scale) != (0, 0)
                            && expected == Some(tg as usize - 1)
                            && state.words[0xc / 4] >> 10 & 1 == 1
                    }
                };
                let start = Iova::new(high & !(granule - 1));
                let range = IovaRange::new(start, pages * granule).expect("a range");
                return legal && self.iommu.invalidate(asid, Some(range), high & 1 == 1).is_ok();
            }
            0x30 => return self.iommu.invalidate_all().is_ok(),
            0x46 => {}
            _ => return false,
        }
        true
    }

    /// Reads a stream's entry: until the next command for it, this is what counts.
    fn configure(&self, state: &State, stream: u32) {
        let base = u64::from(state.words[0x80 / 4]) | u64::from(state.words[0x84 / 4]) << 32;
        let start = base & 0xf_ffff_ffff_ffc0;
        let config = state.words[0x88 / 4];
        let at = if config >> 16 & 3 == 1 {
            let split = config >> 6 & 0x1f;
            let descriptor = self.load(start + u64::from(stream >> split) * 8);
            if descriptor & 0x1f == 0 {
                return self.set(stream, StreamState::Blocked);
            }
            assert_eq!(descriptor & 0x1f, u64::from(split) + 1, "Span");
            (descriptor & 0xf_ffff_ffff_ffc0) + u64::from(stream & ((1 << split) - 1)) * 64
        } else {
            start + u64::from(stream) * 64
        };
        let first = self.load(at);
        assert_eq!(first & 1, 1, "every entry is valid");
        let wanted = match first >> 1 & 7 {
            0b000 => StreamState::Blocked,
            0b100 => StreamState::Bypass,
            0b101 => self.context(first & 0xf_ffff_ffff_ffc0),
            other => panic!("Config {other:#b}"),
        };
        self.set(stream, wanted);
    }

    fn context(&self, at: u64) -> StreamState {
        let (first, root) = (self.load(at), self.load(at + 8));
        assert!(first >> 31 & 1 == 1 && first >> 30 & 1 == 1 && first >> 41 & 1 == 1);
        assert_eq!(self.load(at + 24), 0x0004_ff44);
        let granule = [12, 16, 14][(first >> 6 & 3) as usize];
        assert_eq!(1u64 << granule, self.iommu.config().format.granule().size(), "TG0");
        StreamState::Translate {
            context: (first >> 48) as u32,
            roots: std::vec![PhysAddr::new(root & 0xf_ffff_ffff_fff0)],
            input_bits: 64 - (first & 0x3f) as u32,
        }
    }

    fn set(&self, stream: u32, wanted: StreamState) {
        self.iommu.set_stream(stream, wanted).expect("a stream of the model");
    }

    /// Whether the device can read a byte there.
    pub(super) fn reads(&self, address: u64) -> Option<u8> {
        byte_read_by(&self.machine, "nic", address)
    }

    pub(super) fn writes(&self, address: u64, data: &[u8]) -> bool {
        written_by(&self.machine, "nic", address, data)
    }
}

impl Registers for Model {
    crate::testing::no_registers_of!(8 16);

    fn len(&self) -> usize {
        0x2_0000
    }

    fn read32(&self, offset: usize) -> u32 {
        self.peek(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();
        state.words[offset / 4] = value;
        match offset {
            0x20 => state.words[0x24 / 4] = value,
            0x44 => state.words[0x44 / 4] = value & 0x7fff_ffff,
            0x64 => {
                state.halted = (state.words[0x60 / 4] ^ value) & 1 == 1;
                self.consume(&mut state);
            }
            0x98 => self.consume(&mut state),
            _ => {}
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.peek(offset)) | u64::from(self.peek(offset + 4)) << 32
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.lock();
        state.words[offset / 4] = value as u32;
        state.words[offset / 4 + 1] = (value >> 32) as u32;
    }
}
