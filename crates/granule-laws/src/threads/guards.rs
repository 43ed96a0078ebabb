//! What a worker holds: one guard of each kind that the DMA API has.

use granule::addr::{Access, Direction, DmaAddr};
use granule::dma::{
    Coherent, Device, ListMapping, MapFlags, Mapping, PoolObject, Reservation, ScatterList,
};
use granule::share::{Plan, Shared};

use super::{Answer, OBJECT, Space, Worker, given_bytes};
use crate::buffer::{SimBuffer, fresh_id};

enum Guard {
    Buffer(Mapping<Device, SimBuffer>),
    Host(Mapping<Device, Vec<u8>>),
    List(ListMapping<Device, SimBuffer>),
    Linked(Reservation<Device, SimBuffer>),
    Coherent(Coherent<Device>),
    Object(PoolObject),
    Shared(Shared),
}

/// A guard, the ranges that are noted as live for it, and what must be found in the end.
pub(super) struct Held {
    guard: Guard,
    claims: Vec<(Space, u64)>,
    /// One for each buffer.
    answers: Vec<Answer>,
}

impl Worker<'_, '_> {
    /// Maps something, and lets the device at it.
    pub(super) fn begin(&mut self) {
        let held = match self.rng.u8(0..10) {
            0..=2 => self.map(),
            3 => self.host(),
            4 | 5 => self.list(),
            6 => self.link(),
            7 => self.coherent(),
            8 => self.object(),
            _ => self.share(),
        };
        self.held.push(held);
    }

    fn unit(&self) -> u64 {
        self.arena.bench.case.unit().size()
    }

    fn device(&self) -> Device {
        self.arena.bench.dev().clone()
    }

    fn direction(&mut self) -> Direction {
        [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional][self.rng.usize(0..3)]
    }

    /// A buffer whose bytes may be given to the device: of whole units, or unaligned and short.
    fn buffer(&mut self, whole: bool) -> (SimBuffer, Answer) {
        let unit = self.unit();
        let (offset, len) = match whole || self.rng.bool() {
            true => (0, unit),
            false => (self.rng.u64(0..unit), self.rng.u64(1..unit + unit / 2)),
        };
        let bench = self.arena.bench;
        let buffer = SimBuffer::new(&bench.case, &bench.machine, offset, len);
        let id = fresh_id();
        buffer.write(&given_bytes(id, len));
        (buffer, Answer { id, writable: false })
    }

    /// Notes a range in whole granules, and what will be found in it after the device's turn.
    fn enter(
        &mut self,
        at: DmaAddr,
        len: u64,
        access: Access,
        answer: &mut Answer,
    ) -> (Space, u64) {
        let mask = self.arena.bench.case.granule().mask();
        let first = at.raw() & !mask;
        self.arena.claim(Space::Dev, first, (at.raw() - first + len + mask) & !mask);
        self.turn(at, 0, len, access, answer);
        (Space::Dev, first)
    }

    /// The device's turn.
    fn turn(&mut self, at: DmaAddr, offset: u64, len: u64, access: Access, answer: &mut Answer) {
        let new = fresh_id();
        self.transfer(at, offset, len, access, new, answer.id);
        if access.contains(Access::WRITE) {
            *answer = Answer { id: new, writable: true };
        }
    }

    fn map(&mut self) -> Held {
        let (buffer, mut answer) = self.buffer(false);
        let (direction, len) = (self.direction(), buffer.len());
        let mapping = Mapping::new(self.device(), buffer, direction, MapFlags::empty());
        let mapping = mapping.expect("room for a mapping");
        let claim = self.enter(mapping.address(), len, direction.access(), &mut answer);
        Held { guard: Guard::Buffer(mapping), claims: vec![claim], answers: vec![answer] }
    }

    fn host(&mut self) -> Held {
        let (len, direction) = (self.rng.u64(1..2 * self.unit()), self.direction());
        let mut answer = Answer { id: fresh_id(), writable: false };
        let data = given_bytes(answer.id, len);
        let mapping = Mapping::new(self.device(), data, direction, MapFlags::empty());
        let mapping = mapping.expect("room for a mapping");
        let claim = self.enter(mapping.address(), len, direction.access(), &mut answer);
        Held { guard: Guard::Host(mapping), claims: vec![claim], answers: vec![answer] }
    }

    fn list(&mut self) -> Held {
        let count = self.rng.usize(1..4);
        let (buffers, mut answers): (Vec<_>, Vec<_>) =
            (0..count).map(|_| self.buffer(false)).unzip();
        let lens: Vec<u64> = buffers.iter().map(SimBuffer::len).collect();
        let direction = self.direction();
        let list = ScatterList::new(buffers);
        let mapping = ListMapping::new(self.device(), list, direction, MapFlags::empty());
        let mapping = mapping.expect("room for a mapping");
        let mut claims = Vec::new();
        let mask = self.arena.bench.case.granule().mask();
        for segment in mapping.segments() {
            let (first, end) = (segment.address.raw() & !mask, segment.address.raw() + segment.len);
            self.arena.claim(Space::Dev, first, (end - first + mask) & !mask);
            claims.push((Space::Dev, first));
        }
        let mut segments = mapping.segments().iter();
        let (mut at, mut left) = (0, 0);
        for (len, answer) in lens.into_iter().zip(&mut answers) {
            if left == 0 {
                let segment = segments.next().expect("a segment for every entry");
                (at, left) = (segment.address.raw(), segment.len);
            }
            self.turn(DmaAddr::new(at), 0, len, direction.access(), answer);
            (at, left) = (at + len, left - len);
        }
        Held { guard: Guard::List(mapping), claims, answers }
    }

    fn link(&mut self) -> Held {
        let (count, unit) = (self.rng.u64(1..4), self.unit());
        let reserved = Reservation::new(self.device(), count * unit);
        let mut reserved = reserved.expect("room for a reservation");
        let mut answers = Vec::new();
        for _ in 0..count {
            let (buffer, answer) = self.buffer(true);
            reserved.link(buffer, Direction::Bidirectional).expect("whole units join");
            answers.push(answer);
        }
        let first = reserved.sync().expect("something is linked");
        self.arena.claim(Space::Dev, first.raw(), count * unit);
        for (answer, index) in answers.iter_mut().zip(0u64..) {
            let at = DmaAddr::new(first.raw() + index * unit);
            self.turn(at, 0, unit, Access::all(), answer);
        }
        Held { guard: Guard::Linked(reserved), claims: vec![(Space::Dev, first.raw())], answers }
    }

    fn coherent(&mut self) -> Held {
        let len = self.rng.u64(1..2 * self.unit());
        let memory = Coherent::new(self.device(), len, MapFlags::empty()).expect("memory");
        let mut answer = Answer { id: fresh_id(), writable: true };
        memory.write(0, &given_bytes(answer.id, len)).expect("inside");
        let claim = self.enter(memory.address(), len, Access::all(), &mut answer);
        Held { guard: Guard::Coherent(memory), claims: vec![claim], answers: vec![answer] }
    }

    fn object(&mut self) -> Held {
        let mut object = self.arena.pool.alloc().expect("memory");
        let mut answer = Answer { id: fresh_id(), writable: true };
        object.write(0, &given_bytes(answer.id, OBJECT)).expect("inside");
        let at = object.address();
        self.arena.claim(Space::Dev, at.raw(), OBJECT);
        self.turn(at, 0, OBJECT, Access::all(), &mut answer);
        let claims = vec![(Space::Dev, at.raw())];
        Held { guard: Guard::Object(object), claims, answers: vec![answer] }
    }

    fn share(&mut self) -> Held {
        let len = self.rng.u64(1..2 * self.unit());
        let plan = Plan::new(len).device(self.arena.bench.dev(), Access::all());
        let plan = plan.device(&self.arena.other, Access::READ).solve().expect("a plan");
        let shared = plan.allocate().expect("room for a shared buffer");
        let mut answer = Answer { id: fresh_id(), writable: true };
        shared.write(0, &given_bytes(answer.id, len)).expect("inside");
        shared.sync_for_device(0, len).expect("inside");
        let of = |device| shared.range_of(device).expect("the plan's").address();
        let (dev, other) = (of(self.arena.bench.dev()), of(&self.arena.other));
        let mut claims = vec![self.enter(dev, len, Access::all(), &mut answer)];
        self.arena.claim(Space::Other, other.raw(), len);
        claims.push((Space::Other, other.raw()));
        let mut seen = vec![0; len as usize];
        let sim = self.arena.sim(Space::Other);
        sim.read(other, &mut seen).unwrap_or_else(|fault| panic!("{fault}"));
        self.compare(&seen, answer, 0);
        sim.write(other, &[0]).expect_err("it may only read");
        Held { guard: Guard::Shared(shared), claims, answers: vec![answer] }
    }

    /// Ends something, in one of the ways that its kind has.
    pub(super) fn end(&mut self) {
        let Held { guard, claims, answers } =
            self.held.swap_remove(self.rng.usize(0..self.held.len()));
        claims.into_iter().for_each(|(space, first)| self.arena.disclaim(space, first));
        match guard {
            Guard::Buffer(mapping) => match self.rng.u8(0..4) {
                0 => drop(mapping),
                1 => {
                    let pending = mapping.unmap_later().expect("hardware that answers");
                    self.pending.push((pending, answers[0]));
                }
                _ => self.back(mapping.unmap().expect("hardware that answers"), answers[0]),
            },
            Guard::Host(mapping) => {
                let data = mapping.unmap().expect("hardware that answers");
                self.compare(&data, answers[0], 0);
            }
            Guard::List(mapping) if self.rng.bool() => drop(mapping),
            Guard::List(mapping) => {
                let list = mapping.unmap().expect("hardware that answers");
                list.into_buffers().zip(answers).for_each(|(one, answer)| self.back(one, answer));
            }
            Guard::Linked(reserved) if self.rng.bool() => drop(reserved),
            Guard::Linked(reserved) => {
                let buffers = reserved.unmap().expect("hardware that answers");
                buffers.into_iter().zip(answers).for_each(|(one, answer)| self.back(one, answer));
            }
            Guard::Coherent(memory) => {
                let mut seen = vec![0; memory.len() as usize];
                memory.read(0, &mut seen).expect("inside");
                self.compare(&seen, answers[0], 0);
                memory.free().expect("hardware that answers");
            }
            Guard::Object(object) => {
                let mut seen = vec![0; OBJECT as usize];
                object.read(0, &mut seen).expect("inside");
                self.compare(&seen, answers[0], 0);
            }
            Guard::Shared(shared) => {
                let mut seen = vec![0; shared.len() as usize];
                shared.sync_for_cpu(0, shared.len()).expect("inside");
                shared.read(0, &mut seen).expect("inside");
                self.compare(&seen, answers[0], 0);
                shared.free().expect("hardware that answers");
            }
        }
    }
}
