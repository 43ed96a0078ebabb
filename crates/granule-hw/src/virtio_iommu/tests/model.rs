//! A model of the device behind its queues, with the checks that QEMU leaves out, and some vices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use granule::addr::PhysAddr;
use granule_sim::machine::Machine;

use crate::virtio_iommu::{QueueAddresses, VirtioTransport, spec, status};

pub(super) const FEATURES: u64 = 0x101_3000_0077;
/// The reserved region of every endpoint.
pub(super) const MSI: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// Pieces of a request: address, length, and whether the device writes.
type Chain = Vec<(u64, u32, bool)>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) endpoints: BTreeSet<u32>,
    /// First address: last address, physical address, flags.
    pub(super) maps: BTreeMap<u64, (u64, u64, u32)>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) features: u64,
    pub(super) status: u8,
    pub(super) bypass: u8,
    pub(super) spaces: BTreeMap<u32, Space>,
    /// Takes requests and never answers.
    pub(super) mute: bool,
    /// Never resets.
    pub(super) frozen: bool,
    /// Refuses a request of this type after so many of them, with this status.
    pub(super) refuse: Option<(u8, usize, u8)>,
    pub(super) requests: Vec<u8>,
    /// The most entries that a queue may have.
    pub(super) most: u16,
    queues: [Option<(u16, QueueAddresses)>; 2],
    seen: [u16; 2],
    generation: u8,
}

/// Clones are the same device.
#[derive(Clone)]
pub(super) struct Model {
    machine: Arc<Machine>,
    state: Arc<Mutex<State>>,
}

impl Model {
    pub(super) fn new(machine: Arc<Machine>) -> Self {
        let state = State { features: FEATURES, bypass: 1, most: 64, ..State::default() };
        Self { machine, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.machine.memory().master(false).read(PhysAddr::new(at), &mut bytes));
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.machine.memory().master(false).write(PhysAddr::new(at), bytes));
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    fn long(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }

    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    /// The next chain of a queue: its head, and (address, length, whether the device writes).
    fn take(&self, state: &mut State, queue: usize) -> Option<(u16, Chain)> {
        let (size, at) = state.queues[queue]?;
        if self.half(at.driver + 2) == state.seen[queue] {
            return None;
        }
        let head = self.half(at.driver + 4 + 2 * u64::from(state.seen[queue] % size));
        state.seen[queue] = state.seen[queue].wrapping_add(1);
        let mut parts = Vec::new();
        let mut next = head;
        loop {
            assert!(next < size);
            let descriptor = at.descriptors + 16 * u64::from(next);
            let flags = self.half(descriptor + 12);
            parts.push((self.long(descriptor), self.word(descriptor + 8), flags & 2 != 0));
            if flags & 1 == 0 {
                return Some((head, parts));
            }
            next = self.half(descriptor + 14);
        }
    }

    fn done(&self, state: &State, queue: usize, head: u16, written: u32) {
        let (size, at) = state.queues[queue].expect("set up");
        let index = self.half(at.device + 2);
        let slot = at.device + 4 + 8 * u64::from(index % size);
        self.write(slot, &u32::from(head).to_le_bytes());
        self.write(slot + 4, &written.to_le_bytes());
        self.write(at.device + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Writes a fault record into the next free buffer; false if there is none.
    pub(super) fn fault(&self, record: &[u8]) -> bool {
        let mut state = self.state();
        let Some((head, parts)) = self.take(&mut state, 1) else { return false };
        assert!(parts[0].2 && parts[0].1 >= 24);
        self.write(parts[0].0, record);
        self.done(&state, 1, head, record.len() as u32);
        true
    }

    fn serve(&self, state: &mut State) {
        while let Some((head, parts)) = self.take(state, 0) {
            let [(request, len, false), (answer, room, true)] = parts[..] else {
                panic!("not a request: {parts:?}")
            };
            let kind: [u8; 1] = self.read(request);
            state.requests.push(kind[0]);
            if state.mute {
                continue;
            }
            let refused = match state.refuse {
                Some((of, 0, status)) if of == kind[0] => Some(status),
                Some((of, left, status)) if of == kind[0] => {
                    state.refuse = Some((of, left - 1, status));
                    None
                }
                _ => None,
            };
            let status = refused.unwrap_or_else(|| self.execute(state, request, len, answer));
            self.write(answer + u64::from(room) - 4, &[status, 0, 0, 0]);
            self.done(state, 0, head, room);
        }
    }

    fn execute(&self, state: &mut State, at: u64, len: u32, answer: u64) -> u8 {
        let kind: [u8; 4] = self.read(at);
        let (first, second) = (self.word(at + 4), self.word(at + 8));
        match (kind, len) {
            ([1, 0, 0, 0], 20) => {
                state.spaces.values_mut().for_each(|space| {
                    space.endpoints.remove(&second);
                });
                state.spaces.retain(|_, space| !space.endpoints.is_empty());
                if second > 0xff {
                    return spec::NOENT;
                }
                state.spaces.entry(first).or_default().endpoints.insert(second);
                0
            }
            ([2, 0, 0, 0], 20) => {
                let Some(space) = state.spaces.get_mut(&first) else { return spec::INVAL };
                let there = space.endpoints.remove(&second);
                state.spaces.retain(|_, space| !space.endpoints.is_empty());
                if there { 0 } else { spec::INVAL }
            }
            ([3, 0, 0, 0], 36) => {
                let Some(space) = state.spaces.get_mut(&first) else { return spec::NOENT };
                let (start, last, phys) =
                    (self.long(at + 8), self.long(at + 16), self.long(at + 24));
                assert_eq!((start | phys | (last + 1)) & 0x3fff, 0, "whole granules");
                assert!(last <= 0x7f_ffff_ffff && (last < MSI.0 || start > MSI.1));
                if space.maps.iter().any(|(from, (to, ..))| *from <= last && *to >= start) {
                    return spec::INVAL;
                }
                space.maps.insert(start, (last, phys, self.word(at + 32)));
                0
            }
            ([4, 0, 0, 0], 28) => {
                let Some(space) = state.spaces.get_mut(&first) else { return spec::NOENT };
                let (start, last) = (self.long(at + 8), self.long(at + 16));
                let meets = |from: u64, to: u64| from <= last && to >= start;
                let inside = |from: u64, to: u64| from >= start && to <= last;
                if space.maps.iter().any(|(f, (t, ..))| meets(*f, *t) && !inside(*f, *t)) {
                    return 5;
                }
                space.maps.retain(|from, (to, ..)| !inside(*from, *to));
                0
            }
            ([5, 0, 0, 0], 72) => {
                let mut property = std::vec![1, 0, 20, 0, 1, 0, 0, 0];
                property.extend(MSI.0.to_le_bytes());
                property.extend(MSI.1.to_le_bytes());
                self.write(answer, &property);
                if first > 0xff { spec::NOENT } else { 0 }
            }
            _ => panic!("not a request: {kind:?}, {len} bytes"),
        }
    }
}

impl VirtioTransport for Model {
    fn device_type(&self) -> u16 {
        23
    }

    fn status(&self) -> u8 {
        self.state().status
    }

    fn set_status(&self, to: u8) {
        let mut state = self.state();
        if to == 0 && !state.frozen {
            state.queues = [None; 2];
            state.seen = [0; 2];
            state.spaces.clear();
            state.mute = false;
        }
        if to != 0 || !state.frozen {
            state.status = to;
        }
    }

    fn device_features(&self) -> u64 {
        self.state().features
    }

    fn set_driver_features(&self, features: u64) {
        let state = self.state();
        assert_eq!(features & !state.features, 0, "nothing that was not offered");
        assert_eq!(features & 8, 0, "no endpoint is let through");
    }

    fn max_queue_size(&self, queue: u16) -> u16 {
        if queue < 2 { self.state().most } else { 0 }
    }

    fn set_queue(&self, queue: u16, size: u16, addresses: QueueAddresses) {
        assert!(size.is_power_of_two() && size <= self.state().most);
        self.state().queues[usize::from(queue)] = Some((size, addresses));
    }

    fn notify(&self, queue: u16) {
        let mut state = self.state();
        assert_ne!(state.status & status::DRIVER_OK, 0, "not before it is started");
        if queue == 0 {
            self.serve(&mut state);
        }
    }

    fn config_generation(&self) -> u8 {
        // The first reading is disturbed.
        let mut state = self.state();
        state.generation = (state.generation + 1).min(3);
        state.generation / 2
    }

    fn config32(&self, offset: usize) -> u32 {
        match offset {
            0 => 0xffff_c000,
            4 | 16 => 0xffff_ffff,
            20 => 0x7f,
            28 => 9,
            32 => 512,
            _ => 0,
        }
    }

    fn write_config8(&self, offset: usize, value: u8) {
        assert_eq!(offset, 36);
        self.state().bypass = value;
    }
}
