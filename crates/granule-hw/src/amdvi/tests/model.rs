//! A model of the unit: registers, the rings, and what it was made to forget.

use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use granule::addr::PhysAddr;
use granule_sim::machine::Machine;

use crate::Registers;
use crate::amdvi::spec::{control, reg, status};

#[derive(Default)]
pub(super) struct State {
    pub(super) features: u64,
    pub(super) control: u64,
    pub(super) status: u64,
    pub(super) devices: u64,
    commands: (u64, u64, u64),
    events: (u64, u64, u64),
    /// Takes commands and never finishes them.
    pub(super) mute: bool,
    /// Never lets go of its rings.
    pub(super) frozen: bool,
    /// Commands in order, waits left out.
    pub(super) forgot: Vec<(u64, u64)>,
}

#[derive(Clone)]
pub(super) struct Model {
    machine: Arc<Machine>,
    state: Arc<Mutex<State>>,
}

impl Model {
    pub(super) fn new(machine: Arc<Machine>, features: u64) -> Self {
        let state = State { features, ..State::default() };
        Self { machine, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// What it was made to forget since the last time.
    pub(super) fn forgot(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.state().forgot)
    }

    pub(super) fn long(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.machine.ram().read(PhysAddr::new(at), &mut bytes).expect("inside RAM");
        u64::from_le_bytes(bytes)
    }

    fn write(&self, at: u64, value: u64) {
        self.machine.ram().write_u64(PhysAddr::new(at), value).expect("inside RAM");
    }

    /// The device table entry of a function.
    pub(super) fn device(&self, function: u64) -> (u64, u64) {
        let at = (self.state().devices & !0xfff) + function * 32;
        (self.long(at), self.long(at + 8))
    }

    /// Logs an event, or notes that the log is full.
    pub(super) fn event(&self, low: u64, high: u64) {
        let mut state = self.state();
        let (base, head, tail) = state.events;
        if state.control & control::EVENT_LOG == 0 {
            return;
        }
        if (tail + 16) % 4096 == head {
            state.status |= status::EVENT_OVERFLOW;
            return;
        }
        self.write((base & 0xf_ffff_ffff_f000) + tail, low);
        self.write((base & 0xf_ffff_ffff_f000) + tail + 8, high);
        state.events.2 = (tail + 16) % 4096;
    }

    fn serve(&self, state: &mut State) {
        let on = control::ENABLE | control::COMMANDS;
        if state.mute || state.control & on != on {
            return;
        }
        let (base, _, tail) = state.commands;
        while state.commands.1 != tail {
            let at = (base & 0xf_ffff_ffff_f000) + state.commands.1;
            let (low, high) = (self.long(at), self.long(at + 8));
            match low >> 60 {
                1 => self.write(low & 0xf_ffff_ffff_fff8, high),
                2 | 3 | 8 => state.forgot.push((low, high)),
                other => panic!("no such command: {other}"),
            }
            state.commands.1 = (state.commands.1 + 16) % 4096;
        }
    }
}

impl Registers for Model {
    crate::testing::no_registers_of!(8 16 32);

    fn len(&self) -> usize {
        0x4000
    }

    fn read64(&self, offset: usize) -> u64 {
        let state = self.state();
        let running = if state.frozen { status::COMMANDS_RUNNING } else { 0 };
        match offset {
            reg::FEATURES => state.features,
            reg::CONTROL => state.control,
            reg::STATUS => state.status | running,
            reg::EVENT_TAIL => state.events.2,
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state();
        match offset {
            reg::DEVICE_TABLE => {
                assert_eq!(value & 0x1ff, 0x1ff, "2 MiB");
                state.devices = value;
            }
            reg::COMMAND_BASE | reg::EVENT_BASE => {
                assert_eq!(value >> 56, 8, "256 entries");
                let ring = (value, 0, 0);
                if offset == reg::COMMAND_BASE {
                    state.commands = ring
                } else {
                    state.events = ring
                }
            }
            reg::CONTROL => {
                assert!(value & 1 == 0 || state.devices != 0);
                state.control = value;
            }
            reg::COMMAND_HEAD => state.commands.1 = value,
            reg::COMMAND_TAIL => {
                state.commands.2 = value;
                self.serve(&mut state);
            }
            reg::EVENT_HEAD => state.events.1 = value,
            reg::EVENT_TAIL => state.events.2 = value,
            reg::STATUS => state.status &= !value,
            _ => panic!("write of {offset:#x}"),
        }
    }
}
