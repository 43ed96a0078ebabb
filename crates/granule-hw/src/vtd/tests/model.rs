//! A model of the unit: registers, the queue, and what it was made to forget.

use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use granule::addr::PhysAddr;
use granule_sim::machine::Machine;

use crate::Registers;
use crate::vtd::spec::{Cap, Ecap, global, reg};

/// What QEMU's unit says of itself.
pub(super) const CAP: u64 = 0x00d2_008c_222f_0606;
pub(super) const ECAP: u64 = 0xf42;

pub(super) struct State {
    pub(super) cap: u64,
    pub(super) ecap: u64,
    pub(super) status: u32,
    pub(super) fault_status: u32,
    pub(super) protected: u32,
    pub(super) root: u64,
    /// The root that the unit walks.
    pub(super) walked: u64,
    pub(super) head: u64,
    pub(super) queue: u64,
    /// Takes descriptors or commands, and never finishes them.
    pub(super) mute: bool,
    /// Answers commands by register with "nothing done".
    pub(super) refuse: bool,
    /// Descriptors in order; commands as (command, address).
    pub(super) forgot: Vec<(u64, u64)>,
    pub(super) write_buffer_flushes: usize,
    address: u64,
    context: u64,
    iotlb: u64,
    pub(super) faults: [(u64, u64); 2],
}

#[derive(Clone)]
pub(super) struct Model {
    machine: Arc<Machine>,
    state: Arc<Mutex<State>>,
}

impl Model {
    pub(super) fn new(machine: Arc<Machine>, cap: u64, ecap: u64) -> Self {
        let state = State {
            cap,
            ecap,
            status: 0,
            fault_status: 0,
            protected: 0,
            root: 0,
            walked: 0,
            head: 0,
            queue: 0,
            mute: false,
            refuse: false,
            forgot: Vec::new(),
            write_buffer_flushes: 0,
            address: 0,
            context: 0,
            iotlb: 0,
            faults: [(0, 0); 2],
        };
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
        assert!(self.machine.memory().master(false).read(PhysAddr::new(at), &mut bytes));
        u64::from_le_bytes(bytes)
    }

    /// The context entry of a function, as the unit walks to it.
    pub(super) fn context(&self, source: u64) -> Option<(u64, u64)> {
        let table = self.long(self.state().walked + (source >> 8) * 16);
        let at = (table & !0xfff) + (source & 0xff) * 16;
        (table & 1 != 0).then(|| (self.long(at), self.long(at + 8)))
    }

    fn serve(&self, state: &mut State, tail: u64) {
        if state.mute || state.status & global::QUEUE == 0 {
            return;
        }
        while state.head != tail {
            let at = (state.queue & !0xfff) + state.head;
            let (low, high) = (self.long(at), self.long(at + 8));
            match low & 0xf {
                1 | 2 => state.forgot.push((low, high)),
                5 => {
                    assert_eq!(low & 0xfff0, 0x60, "fence, status, no interrupt");
                    let value = ((low >> 32) as u32).to_le_bytes();
                    assert!(self.machine.memory().master(false).write(PhysAddr::new(high), &value));
                }
                other => panic!("no such descriptor: {other}"),
            }
            state.head = (state.head + 16) % 4096;
        }
    }

    fn global(&self, state: &mut State, value: u32) {
        if value & global::WRITE_BUFFER != 0 {
            state.write_buffer_flushes += 1;
        }
        if value & global::ROOT != 0 {
            assert_eq!(state.root & 0xfff, 0, "legacy mode");
            state.walked = state.root;
        }
        let queue = value & global::QUEUE;
        if queue != 0 && state.status & global::QUEUE == 0 {
            state.head = 0;
        }
        let root = (state.status | value) & global::ROOT;
        state.status = value & global::LASTING | root;
    }
}

impl Registers for Model {
    crate::testing::no_registers_of!(8 16);

    fn len(&self) -> usize {
        0x1000
    }

    fn read32(&self, offset: usize) -> u32 {
        let state = self.state();
        match offset {
            reg::GSTS => state.status,
            reg::FSTS => state.fault_status,
            reg::PMEN => state.protected,
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state();
        match offset {
            reg::GCMD => self.global(&mut state, value),
            reg::FSTS => state.fault_status &= !value,
            reg::FECTL => assert_eq!(value, 1 << 31),
            reg::PMEN => state.protected = if value >> 31 == 0 { 0 } else { value },
            0x22c | 0x23c => {
                assert_eq!(value, 1 << 31);
                state.faults[usize::from(offset == 0x23c)].1 &= !(1 << 63);
            }
            _ => panic!("write of {offset:#x}"),
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let state = self.state();
        let iotlb = Ecap(state.ecap).iotlb_offset() + 8;
        let faults = Cap(state.cap).fault_offset();
        match offset {
            reg::CAP => state.cap,
            reg::ECAP => state.ecap,
            reg::IQH => state.head,
            reg::IQT => state.head,
            reg::CCMD => state.context,
            _ if offset == iotlb => state.iotlb,
            _ if offset >= faults && offset < faults + 32 => {
                let (low, high) = state.faults[(offset - faults) / 16];
                if offset % 16 == 0 { low } else { high }
            }
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state();
        let pages = Ecap(state.ecap).iotlb_offset();
        let answer = |value: u64, state: &State, done: u64| match (state.mute, state.refuse) {
            (true, _) => value,
            (_, true) => value & !(1 << 63),
            _ => value & !(1 << 63) | done,
        };
        match offset {
            reg::RTADDR => state.root = value,
            reg::IQA => state.queue = value,
            reg::IQT => self.serve(&mut state, value),
            reg::CCMD => {
                state.forgot.push((value, 0));
                state.context = answer(value, &state, 1 << 59);
            }
            _ if offset == pages => state.address = value,
            _ if offset == pages + 8 => {
                let address = state.address;
                state.forgot.push((value, address));
                state.iotlb = answer(value, &state, 1 << 57);
            }
            _ => panic!("write of {offset:#x}"),
        }
    }
}
