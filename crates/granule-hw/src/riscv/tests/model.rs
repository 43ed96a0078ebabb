//! A RISC-V IOMMU as a device: registers and queues after the specification, in front of the
//! simulator's walker and IOTLB. It decodes by bit positions of its own, not by the driver's `spec`.

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
    seen: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) machine: Machine,
    pub(super) iommu: Arc<SimIommu>,
    levels: u32,
    state: Arc<Mutex<State>>,
}

/// What differs from model to model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) format: SimFormat,
    pub(super) extended: bool,
    pub(super) non_leaf: bool,
    /// The deepest directory that the unit takes.
    pub(super) levels: u32,
    pub(super) device: u32,
}

impl Default for Kind {
    fn default() -> Self {
        let format = SimFormat::Sv39;
        Self { format, extended: true, non_leaf: false, levels: 3, device: 0x1a5 }
    }
}

impl Model {
    pub(super) fn new(kind: Kind) -> Self {
        let (bits, bit) = match kind.format {
            SimFormat::Sv39 => (39, 9),
            SimFormat::Sv48 => (48, 10),
            _ => (57, 11),
        };
        let mut config = IommuConfig::new("iommu", kind.format, bits);
        config.streams = 0x200;
        config.output_bits = 44;
        let builder = Machine::builder().ram(crate::testing::ram()).iommu(config);
        let device = DeviceSpec::behind("nic", "iommu", kind.device);
        let machine = builder.device(device).build().expect("a machine");
        let iommu = machine.iommu("iommu").expect("as built").clone();
        let mut words = std::vec![0; 0x400];
        words[0] = 0x10 | 1 << bit | u32::from(kind.extended) << 22;
        words[1] = 44 | u32::from(kind.non_leaf) << 10;
        let state = State { words, mood: Mood::Answers, seen: Vec::new() };
        Self { machine, iommu, levels: kind.levels, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.state.lock().mood = mood;
    }

    /// The low 10 bits of all commands carried out, and forgets them.
    pub(super) fn take_seen(&self) -> Vec<u64> {
        std::mem::take(&mut self.state.lock().seen)
    }

    /// Power is lost.
    pub(super) fn lose_power(&self) {
        self.iommu.reset();
        self.state.lock().words[2..].fill(0);
    }

    pub(super) fn peek(&self, offset: usize) -> u32 {
        self.state.lock().words[offset / 4]
    }

    pub(super) fn poke(&self, offset: usize, value: u32) {
        self.state.lock().words[offset / 4] = value;
    }

    fn load(&self, at: u64) -> u64 {
        self.machine.ram().read_u64(PhysAddr::new(at)).expect("RAM")
    }

    /// Writes a fault record, or sets `fqof`.
    pub(super) fn post(&self, record: [u64; 4]) {
        let mut state = self.state.lock();
        let base = u64::from(state.words[0x28 / 4]) | u64::from(state.words[0x2c / 4]) << 32;
        let mask = (2u32 << (base & 0x1f)) - 1;
        let (head, tail) = (state.words[0x30 / 4], state.words[0x34 / 4]);
        if (tail + 1) & mask == head || state.words[0x4c / 4] & 1 << 9 != 0 {
            state.words[0x4c / 4] |= 1 << 9;
            return;
        }
        let at = (base >> 10 << 12) + u64::from(tail) * 32;
        for (index, word) in record.into_iter().enumerate() {
            let place = PhysAddr::new(at + index as u64 * 8);
            self.machine.ram().write(place, &word.to_le_bytes()).expect("RAM");
        }
        state.words[0x34 / 4] = (tail + 1) & mask;
    }

    fn consume(&self, state: &mut State) {
        let base = u64::from(state.words[0x18 / 4]) | u64::from(state.words[0x1c / 4]) << 32;
        let mask = (2u32 << (base & 0x1f)) - 1;
        while state.mood != Mood::Silent && state.words[0x48 / 4] & 0x1_0700 == 0x1_0000 {
            let head = state.words[0x20 / 4];
            if head == state.words[0x24 / 4] & mask {
                return;
            }
            let at = (base >> 10 << 12) + u64::from(head) * 16;
            let command = [self.load(at), self.load(at + 8)];
            let refused = state.mood == Mood::RefusesOne && command[0] & 0x7f != 2;
            if refused || !self.carry_out(state, command) {
                state.mood = Mood::Answers;
                state.words[0x48 / 4] |= 1 << 10;
                return;
            }
            state.words[0x20 / 4] = (head + 1) & mask;
        }
    }

    fn carry_out(&self, state: &mut State, [low, high]: [u64; 2]) -> bool {
        state.seen.push(low & 0x3ff);
        match low & 0x3ff {
            1 => self.drop_translations(state, low, high),
            2 => true,
            3 => {
                let ids = match low >> 33 & 1 {
                    0 => 0..self.iommu.config().streams,
                    _ => (low >> 40) as u32..(low >> 40) as u32 + 1,
                };
                ids.for_each(|id| self.configure(state, id));
                true
            }
            _ => false,
        }
    }

    fn drop_translations(&self, state: &State, low: u64, high: u64) -> bool {
        let space = (low >> 12 & 0xf_ffff) as u32;
        let non_leaf = low >> 34 & 1 == 1;
        let legal = (!non_leaf || state.words[1] >> 10 & 1 == 1) && low >> 33 & 1 == 0;
        let range = IovaRange::new(Iova::new(high >> 10 << 12), 4096).expect("a range");
        let result = match (low >> 32 & 1, low >> 10 & 1) {
            (0, 0) => self.iommu.invalidate_all(),
            (1, 0) => self.iommu.invalidate(space, None, false),
            (1, 1) => self.iommu.invalidate(space, Some(range), !non_leaf),
            _ => return false,
        };
        legal && result.is_ok()
    }

    /// Reads a device's context: until the next command for it, this is what counts.
    fn configure(&self, state: &State, device: u32) {
        let ddtp = u64::from(state.words[4]) | u64::from(state.words[5]) << 32;
        let extended = state.words[0] >> 22 & 1 == 1;
        let shifts = if extended { [0, 6, 15, 24] } else { [0, 7, 16, 24] };
        let levels = (ddtp & 0xf).saturating_sub(1) as usize;
        let mut table = ddtp >> 10 << 12;
        if levels == 0 || device >> shifts[levels] != 0 {
            return self.set(device, StreamState::Blocked);
        }
        for level in (1..levels).rev() {
            let index = device >> shifts[level] & ((1 << (shifts[level + 1] - shifts[level])) - 1);
            let entry = self.load(table + u64::from(index) * 8);
            if entry & 1 == 0 {
                return self.set(device, StreamState::Blocked);
            }
            table = entry >> 10 << 12;
        }
        let size = if extended { 64 } else { 32 };
        let at = table + u64::from(device & ((1 << shifts[1]) - 1)) * size;
        let [control, second, attributes, first] = [0, 8, 16, 24].map(|word| self.load(at + word));
        if control & 1 == 0 {
            return self.set(device, StreamState::Blocked);
        }
        assert_eq!((control, second), (1, 0));
        let input_bits = match first >> 60 {
            0 => return self.set(device, StreamState::Bypass),
            8 => 39,
            9 => 48,
            10 => 57,
            other => panic!("mode {other}"),
        };
        let translate = StreamState::Translate {
            context: (attributes >> 12 & 0xf_ffff) as u32,
            roots: std::vec![PhysAddr::new((first & 0xfff_ffff_ffff) << 12)],
            input_bits,
        };
        self.set(device, translate);
    }

    fn set(&self, device: u32, wanted: StreamState) {
        self.iommu.set_stream(device, wanted).expect("a stream of the model");
    }

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
        0x1000
    }

    fn read32(&self, offset: usize) -> u32 {
        self.peek(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();
        match offset {
            0x48 | 0x4c => {
                // Errors are cleared by writing 1; the queue is on as soon as it is enabled.
                let errors = state.words[offset / 4] & 0x700 & !value;
                state.words[offset / 4] = (value & 3) | (value & 1) << 16 | errors;
                if value & 1 == 0 || errors == 0 && offset == 0x4c {
                    state.words[offset / 4] &= !0x700;
                }
                if value & 1 == 0 && offset == 0x48 {
                    state.words[0x20 / 4] = 0;
                }
                if value & 1 == 0 && offset == 0x4c {
                    state.words[0x34 / 4] = 0;
                }
            }
            _ => state.words[offset / 4] = value,
        }
        if matches!(offset, 0x24 | 0x48) {
            self.consume(&mut state);
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.peek(offset)) | u64::from(self.peek(offset + 4)) << 32
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.lock();
        if offset == 0x10 && value & 0xf > u64::from(self.levels) + 1 {
            return; // A mode that is not supported is not taken.
        }
        state.words[offset / 4] = value as u32;
        state.words[offset / 4 + 1] = (value >> 32) as u32;
    }
}
