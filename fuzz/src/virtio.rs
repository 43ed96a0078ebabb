//! What a virtio-iommu answers: registers, statuses, used rings, properties and fault records that are
//! anything, and a PCI configuration space of rubbish.
//!
//! The device writes only where the driver let it: answers, used rings and fault records. What it
//! writes there is the fuzzer's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use arbitrary::{Arbitrary, Unstructured};
use granule::addr::{Access, Attributes, Iova, IovaRange, PhysAddr, PhysRange};
use granule::domain::{Invalidation, Stream, StreamId, Translation};
use granule::table::Hint;
use granule_hw::virtio_iommu::pci::{PciConfig, Structures};
use granule_hw::virtio_iommu::{QueueAddresses, VirtioDomain, VirtioIommu, VirtioTransport};
use granule_sim::machine::Machine;

use crate::hasty::Hasty;

const RAM: u64 = 0x1000_0000;
/// What is mapped: memory of nobody, since no device of the machine does anything.
const TARGET: u64 = 0x8000_0000;

#[derive(Arbitrary, Debug)]
struct Device {
    device_type: Option<u16>,
    features: u64,
    plain: bool,
    config: Vec<u32>,
    generations: Vec<u8>,
    statuses: Vec<Option<u8>>,
    sizes: [u16; 2],
    answers: Vec<Answer>,
    faults: Vec<Fault>,
}

/// What the device does with a request.
#[derive(Arbitrary, Clone, Debug)]
enum Answer {
    /// What was asked for.
    Right,
    /// This status, with these properties before it.
    Status(u8, Vec<u8>),
    /// An entry of the used ring that was never asked for.
    Used { status: u8, id: u32, len: u32, index: u16 },
    /// Nothing.
    Silence,
    /// Anything in the whole used ring.
    Rubbish(Vec<u8>),
}

/// A record in the event queue.
#[derive(Arbitrary, Debug)]
struct Fault {
    bytes: [u8; 24],
    id: Option<u32>,
    len: u32,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Map { at: u8, pages: u8, access: u8, shift: u8 },
    Unmap { at: u8, pages: u8 },
    Attach { id: u8 },
    Detach { id: u8 },
    Reserved { id: u8 },
    Bypass { id: u8, end: bool },
    Faults,
    Reset,
    Invalidate,
    Resume,
}

/// Clones are the same device.
#[derive(Clone)]
struct Transport {
    machine: Arc<Machine>,
    state: Arc<Mutex<State>>,
}

struct State {
    device: Device,
    reads: usize,
    status: u8,
    queues: [Option<(u16, QueueAddresses)>; 2],
    seen: u16,
    used: [u16; 2],
    answered: usize,
    faults: usize,
}

/// Plays steps against a device.
pub fn run(data: &[u8]) {
    pci(data);
    let mut bytes = Unstructured::new(data);
    let Ok(device) = Device::arbitrary(&mut bytes) else { return };
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(bytes) else { return };
    let ram = PhysRange::new(PhysAddr::new(RAM), 4 << 20).expect("a range");
    let machine = Arc::new(Machine::builder().ram(ram).build().expect("a machine"));
    let stops = device.statuses.is_empty();
    let state = Arc::new(Mutex::new(State::new(device)));
    play(&machine, Transport { machine: machine.clone(), state }, &steps);
    // What a device may still write to that does not stop is never used again.
    assert!(!stops || machine.problems().is_empty(), "{:?}", machine.problems());
}

fn play(machine: &Machine, transport: Transport, steps: &[Step]) {
    let platform = Arc::new(machine.platform().clone());
    let Ok(iommu) = VirtioIommu::new(Hasty::new(&platform), transport, "viommu") else { return };
    let Ok(domain) = VirtioDomain::new(&iommu) else { return };
    let granule = iommu.page_sizes().granule().expect("it started").size();
    let mut play = Play { iommu, domain, granule, mapped: BTreeMap::new() };
    for step in steps.iter().take(64) {
        play.step(step);
    }
}

struct Play {
    iommu: Arc<VirtioIommu<Hasty, Transport>>,
    domain: VirtioDomain<Hasty, Transport>,
    granule: u64,
    /// Granules of IOVA space, and where each leads.
    mapped: BTreeMap<u64, u64>,
}

impl Play {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Map { at, pages, access, shift } => self.map(at, pages, access, shift),
            Step::Unmap { at, pages } => self.unmap(at, pages),
            Step::Attach { id } => drop(crate::hasty::attach(&self.domain, Stream::new(id.into()))),
            Step::Detach { id } => drop(self.domain.detach(Stream::new(id.into()))),
            Step::Reserved { id } => self.reserved(id),
            Step::Bypass { id, end } => {
                let stream = StreamId::exact(id.into());
                if end {
                    let _ = self.iommu.end_bypass(stream);
                } else {
                    let _ = crate::hasty::bypass(&self.iommu, stream);
                }
            }
            Step::Faults => {
                let mut heard = 0;
                let told = self.iommu.take_faults(&mut |_| heard += 1);
                assert_eq!(heard, told);
            }
            Step::Reset => {
                if self.iommu.reset().is_ok() {
                    assert!(!self.iommu.is_stuck());
                }
            }
            Step::Invalidate => {
                let done = self.domain.invalidate(&Invalidation::ALL);
                assert!(done.is_err() || !self.iommu.is_stuck(), "a stuck device is up to date");
            }
            Step::Resume => drop(self.domain.resume()),
        }
        self.compare();
    }

    fn range(&self, at: u8, pages: u8) -> Option<IovaRange> {
        let len = u64::from(pages).checked_mul(self.granule)?;
        IovaRange::new(Iova::new(u64::from(at).checked_mul(self.granule)?), len).ok()
    }

    fn map(&mut self, at: u8, pages: u8, access: u8, shift: u8) {
        let Some(range) = self.range(at, pages % 8) else { return };
        let misplaced = if shift > 250 { 1 << (shift % 12) } else { 0 };
        let target = u64::from(shift).wrapping_mul(self.granule).checked_add(TARGET);
        let target = target.and_then(|target| target.checked_next_multiple_of(self.granule));
        let Some(target) = target else { return };
        let Ok(phys) = PhysRange::new(PhysAddr::new(target | misplaced), range.len()) else {
            return;
        };
        let attrs = Attributes::memory(Access::from_bits_truncate(access));
        if crate::hasty::map(&self.domain, range.start(), phys, attrs).is_err() {
            return;
        }
        assert_eq!(misplaced, 0, "a misaligned target was mapped");
        for page in 0..range.len() / self.granule {
            let at = range.start().raw() + page * self.granule;
            assert_eq!(self.mapped.insert(at, target + page * self.granule), None, "mapped twice");
        }
    }

    fn unmap(&mut self, at: u8, pages: u8) {
        let Some(range) = self.range(at, pages % 16) else { return };
        match crate::hasty::unmap(&self.domain, range, Hint::NONE) {
            Ok(bytes) => {
                let before = self.mapped.len() as u64;
                let inside = range.start().raw()..=range.last().raw();
                self.mapped.retain(|at, _| !inside.contains(at));
                let gone = before - self.mapped.len() as u64;
                assert_eq!(bytes, gone * self.granule, "unmap of {range:?}");
            }
            // After a time-out the record is gone, and the device stuck until a reset.
            Err(_) => self.mapped.retain(|at, _| self.domain.resolve(Iova::new(*at)).is_some()),
        }
    }

    fn reserved(&mut self, id: u8) {
        if let Ok(regions) = self.iommu.reserved(StreamId::exact(id.into())) {
            assert!(regions.len() <= (1 << 16) / 20);
        }
    }

    /// What was mapped resolves, and nothing else. A device may have granules so large that IOVA space
    /// has few of them.
    fn compare(&self) {
        let some = (0..256).step_by(5).map_while(|page: u64| page.checked_mul(self.granule));
        for at in some.chain(self.mapped.keys().copied()) {
            let found = self.domain.resolve(Iova::new(at)).map(|found| found.phys.raw());
            assert_eq!(found, self.mapped.get(&at).copied(), "{at:#x}");
        }
    }
}

impl State {
    fn new(device: Device) -> Self {
        let (queues, used) = ([None; 2], [0; 2]);
        Self { device, reads: 0, status: 0, queues, seen: 0, used, answered: 0, faults: 0 }
    }

    /// The next of a list of the fuzzer's, which begins anew at its end.
    fn next<T: Copy>(list: &[T], reads: &mut usize) -> Option<T> {
        let value = *list.get(*reads % list.len().max(1))?;
        *reads += 1;
        Some(value)
    }
}

impl Transport {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.machine.memory().master(true).read(PhysAddr::new(at), &mut bytes), "{at:#x}");
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.machine.memory().master(true).write(PhysAddr::new(at), bytes), "{at:#x}");
    }

    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    /// Serves what is new in the request queue.
    fn serve(&self, state: &mut State) {
        let Some((size, at)) = state.queues[0] else { return };
        while self.half(at.driver + 2) != state.seen {
            let head = self.half(at.driver + 4 + 2 * u64::from(state.seen % size));
            state.seen = state.seen.wrapping_add(1);
            assert!(head < size, "a head inside the queue");
            let second = at.descriptors
                + 16 * u64::from(self.half(at.descriptors + 16 * u64::from(head) + 14));
            let room = u64::from(u32::from_le_bytes(self.read(second + 8)));
            let answer = u64::from_le_bytes(self.read(second));
            let answers = &state.device.answers;
            let what = answers.get(state.answered % answers.len().max(1)).cloned();
            state.answered += 1;
            self.answer(state, head, (answer, room), what.unwrap_or(Answer::Right));
        }
    }

    fn answer(&self, state: &mut State, head: u16, (at, room): (u64, u64), what: Answer) {
        match what {
            Answer::Right => {
                self.write(at + room - 4, &[0; 4]);
                self.done(state, 0, u32::from(head), room as u32, 1);
            }
            Answer::Status(status, properties) => {
                let room_for = (room - 4) as usize;
                self.write(at, &properties[..properties.len().min(room_for)]);
                self.write(at + room - 4, &[status, 0, 0, 0]);
                self.done(state, 0, u32::from(head), room as u32, 1);
            }
            Answer::Used { status, id, len, index } => {
                self.write(at + room - 4, &[status, 0, 0, 0]);
                self.done(state, 0, id, len, index);
            }
            Answer::Silence => {}
            Answer::Rubbish(bytes) => {
                let Some((size, queue)) = state.queues[0] else { return };
                let room = 6 + 8 * usize::from(size);
                self.write(queue.device, &bytes[..bytes.len().min(room)]);
                state.used[0] = self.half(queue.device + 2);
            }
        }
    }

    fn done(&self, state: &mut State, queue: usize, id: u32, len: u32, step: u16) {
        let Some((size, at)) = state.queues[queue] else { return };
        let slot = at.device + 4 + 8 * u64::from(state.used[queue] % size);
        self.write(slot, &id.to_le_bytes());
        self.write(slot + 4, &len.to_le_bytes());
        state.used[queue] = state.used[queue].wrapping_add(step);
        self.write(at.device + 2, &state.used[queue].to_le_bytes());
    }

    /// Writes the next fault record into the buffer of the next descriptor.
    fn fault(&self, state: &mut State) {
        let Some((size, at)) = state.queues[1] else { return };
        let Some(fault) = state.device.faults.get(state.faults) else { return };
        let slot = state.faults as u16 % size;
        let buffer = u64::from_le_bytes(self.read(at.descriptors + 16 * u64::from(slot)));
        let (id, len) = (fault.id.unwrap_or(u32::from(slot)), fault.len);
        self.write(buffer, &fault.bytes);
        state.faults += 1;
        self.done(state, 1, id, len, 1);
    }
}

impl VirtioTransport for Transport {
    fn device_type(&self) -> u16 {
        self.state().device.device_type.unwrap_or(23)
    }

    fn status(&self) -> u8 {
        let state = &mut *self.state();
        match State::next(&state.device.statuses, &mut state.reads).flatten() {
            Some(status) => status,
            None => state.status,
        }
    }

    fn set_status(&self, status: u8) {
        let state = &mut *self.state();
        if status == 0 {
            (state.queues, state.seen, state.used) = ([None; 2], 0, [0; 2]);
        }
        state.status = status;
    }

    fn device_features(&self) -> u64 {
        let state = self.state();
        // Most of the time what a driver needs.
        state.device.features | if state.device.plain { 0x101_0000_0074 } else { 0 }
    }

    fn set_driver_features(&self, features: u64) {
        assert_eq!(features & !self.device_features(), 0, "nothing that was not offered");
    }

    fn max_queue_size(&self, queue: u16) -> u16 {
        let state = self.state();
        match state.device.sizes.get(usize::from(queue)) {
            Some(_) if state.device.plain => 64,
            Some(size) => *size,
            None => 0,
        }
    }

    fn set_queue(&self, queue: u16, size: u16, addresses: QueueAddresses) {
        let most = self.max_queue_size(queue);
        assert!(size.is_power_of_two() && size <= most, "queue {queue}: {size} of {most}");
        assert_eq!(
            (addresses.descriptors % 16, addresses.driver % 2, addresses.device % 4),
            (0, 0, 0)
        );
        self.state().queues[usize::from(queue)] = Some((size, addresses));
    }

    fn notify(&self, queue: u16) {
        let state = &mut *self.state();
        match queue {
            0 => self.serve(state),
            _ => self.fault(state),
        }
    }

    fn config_generation(&self) -> u8 {
        let state = &mut *self.state();
        State::next(&state.device.generations, &mut state.reads).unwrap_or(0)
    }

    fn config32(&self, offset: usize) -> u32 {
        let state = self.state();
        match state.device.config.get(offset / 4) {
            Some(word) if !state.device.plain => *word,
            // Page sizes of 4 KiB and up, all of the input, all domains, 512 bytes of properties.
            _ => match offset {
                0 => 0xffff_f000,
                4 | 16 | 20 => 0xffff_ffff,
                28 => 9,
                32 => 512,
                _ => 0,
            },
        }
    }

    fn write_config8(&self, offset: usize, value: u8) {
        assert_eq!((offset, value), (36, 0), "only bypass is written, and turned off");
    }
}

/// A configuration space: 256 bytes, over and over.
struct Config<'a>(&'a [u8]);

impl PciConfig for Config<'_> {
    fn read32(&self, offset: u16) -> u32 {
        assert_eq!(offset % 4, 0, "aligned");
        assert!(offset < 256, "inside the space: {offset:#x}");
        let byte = |at: u16| self.0.get(usize::from(at)).copied().unwrap_or(0);
        u32::from_le_bytes([byte(offset), byte(offset + 1), byte(offset + 2), byte(offset + 3)])
    }

    fn write32(&self, offset: u16, _: u32) {
        assert_eq!((offset % 4, offset < 256), (0, true));
    }
}

fn pci(data: &[u8]) {
    let mut space = data.to_vec();
    let _ = Structures::find(&Config(&space), "viommu");
    if let Some(head) = space.get_mut(..8) {
        head.copy_from_slice(&[0xf4, 0x1a, 0x57, 0x10, 0, 0, 0x10, 0]);
    }
    if let Ok(found) = Structures::find(&Config(&space), "viommu") {
        assert_eq!(found.device_type, 23);
        assert!([found.common, found.notify, found.device].iter().all(|place| place.bar < 6));
    }
}
