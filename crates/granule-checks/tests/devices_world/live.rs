//! A live mapping and what must be in it.

use granule::addr::{Access, Direction, DmaAddr, Granule, PhysRange};
use granule::dma::{Coherent, Device, ListMapping, Mapping, Reservation};
use granule::share::Shared;
use granule_checks::{Board, Buf};
use granule_sim::hostile::Allowed;

use super::Step;

/// What holds the mapping.
pub(super) enum Hold {
    One(Mapping<Device, Buf>),
    /// The list's parts of its buffer, by offset and length, and all bytes of the buffer.
    List(ListMapping<Device, Buf>, Vec<(u64, u64)>, Vec<u8>),
    Linked(Reservation<Device, Buf>),
    Coherent(Coherent<Device>),
    Shared(Shared),
}

/// A mapping: where the device finds it, and the bytes that are there.
pub(super) struct Live {
    pub(super) hold: Hold,
    pub(super) device: &'static str,
    pub(super) segments: Vec<(DmaAddr, u64)>,
    pub(super) bytes: Vec<u8>,
    pub(super) direction: Direction,
    /// The memory that the device reaches where it lies.
    pub(super) memory: Vec<PhysRange>,
}

/// Some bytes that the step chooses.
pub(super) fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed.into());
    (0..len).map(|_| rng.u8(1..)).collect()
}

/// The last of `len` addresses.
pub(super) fn last(at: DmaAddr, len: u64) -> DmaAddr {
    DmaAddr::new(at.raw() + len - 1)
}

impl Live {
    /// First and last address of each segment, and of what other devices have of it.
    pub(super) fn spans(&self) -> Vec<(DmaAddr, DmaAddr)> {
        let places = match &self.hold {
            Hold::Shared(shared) => shared.ranges().map(|one| (one.address(), one.len())).collect(),
            _ => self.segments.clone(),
        };
        places.into_iter().map(|(at, len)| (at, last(at, len))).collect()
    }

    /// What the device may reach: the memory, and what lies beside it in pieces of `around` bytes.
    pub(super) fn allowed(&self, around: u64) -> impl Iterator<Item = Allowed> + '_ {
        // A device that may write may read where a table cannot tell the two apart.
        let reads_only = self.direction == Direction::ToDevice;
        let access = if reads_only { Access::READ } else { Access::all() };
        self.memory.iter().map(move |range| {
            let granule = Granule::new(around).ok();
            let range = granule.and_then(|granule| range.align_outward(granule)).unwrap_or(*range);
            Allowed { range, access }
        })
    }

    /// A part of the bytes: where it begins, and how long it is.
    fn part(&self, step: Step) -> (usize, usize) {
        let start = step.seed as usize % self.bytes.len();
        let most = self.bytes.len() - start;
        (start, 1 + step.shape as usize % most)
    }

    /// The addresses of a part, and which bytes lie there.
    fn places(&self, start: usize, len: usize) -> Vec<(DmaAddr, std::ops::Range<usize>)> {
        let (mut found, mut at) = (Vec::new(), 0);
        for (address, size) in &self.segments {
            let (from, to) = (start.max(at), (start + len).min(at + *size as usize));
            if from < to {
                found.push((DmaAddr::new(address.raw() + (from - at) as u64), from..to));
            }
            at += *size as usize;
        }
        found
    }

    /// The device reads, and writes if it may.
    pub(super) fn device_moves(&mut self, board: &Board, translated: bool, step: Step) {
        let (start, len) = self.part(step);
        for (at, place) in self.places(start, len) {
            if self.direction != Direction::FromDevice {
                let seen = board.read(self.device, at, place.len());
                assert_eq!(seen.as_deref(), Some(&self.bytes[place.clone()]), "{at:?}");
            }
            let new = noise(step.seed, place.len());
            if self.direction != Direction::ToDevice {
                assert!(board.write(self.device, at, &new), "{at:?}");
                self.bytes[place].copy_from_slice(&new);
            } else if translated {
                assert!(!board.write(self.device, at, &new), "{at:?} is not for writing");
            }
        }
    }

    /// The CPU reads a part, and writes it unless the buffer is only lent for reading.
    pub(super) fn cpu_looks(&mut self, step: Step) {
        let (start, len) = self.part(step);
        let (place, mut seen) = (start..start + len, vec![0; len]);
        let new = (self.direction != Direction::ToDevice).then(|| noise(!step.seed, len));
        match &mut self.hold {
            Hold::One(mapping) => {
                let part = start as u64..(start + len) as u64;
                let mut turn = mapping.sync_for_cpu(part).expect("inside");
                turn.read(0, &mut seen).expect("inside");
                if let Some(new) = &new {
                    turn.write(0, new).expect("inside");
                }
            }
            Hold::Coherent(memory) => {
                memory.read(start as u64, &mut seen).expect("inside");
                if let Some(new) = &new {
                    memory.write(start as u64, new).expect("inside");
                }
            }
            Hold::List(mapping, parts, _) => {
                return Self::cpu_looks_at_entries(mapping, parts, &self.bytes);
            }
            Hold::Shared(shared) => {
                let (offset, len) = (start as u64, len as u64);
                shared.sync_for_cpu(offset, len).expect("inside");
                shared.read(offset, &mut seen).expect("inside");
                if let Some(new) = &new {
                    shared.write(offset, new).expect("inside");
                    shared.sync_for_device(offset, len).expect("inside");
                }
            }
            Hold::Linked(_) => return,
        }
        assert_eq!(seen, self.bytes[place.clone()]);
        if let Some(new) = new {
            self.bytes[place].copy_from_slice(&new);
        }
    }

    fn cpu_looks_at_entries(
        mapping: &mut ListMapping<Device, Buf>,
        parts: &[(u64, u64)],
        bytes: &[u8],
    ) {
        mapping.sync_for_cpu(|turn| {
            let mut at = 0;
            for (index, (_, len)) in parts.iter().enumerate() {
                let mut seen = vec![0; *len as usize];
                turn.read(index, 0, &mut seen).expect("inside");
                assert_eq!(seen, bytes[at..at + seen.len()], "entry {index}");
                at += seen.len();
            }
        });
    }

    /// Ends the mapping one way or another; the buffer then holds what the model says.
    pub(super) fn end(self, step: Step) {
        if step.shape % 4 == 0 {
            return; // By dropping it.
        }
        let bytes = self.bytes;
        match self.hold {
            Hold::One(mapping) if step.shape % 4 == 1 => {
                let pending = mapping.unmap_later().expect("unmapped");
                assert!(pending.finish().expect("flushed").bytes() == bytes);
            }
            Hold::One(mapping) => assert!(mapping.unmap().expect("unmapped").bytes() == bytes),
            Hold::List(mapping, parts, mut whole) => {
                let list = mapping.unmap().expect("unmapped");
                let mut at = 0;
                for (offset, len) in parts {
                    let (offset, len) = (offset as usize, len as usize);
                    whole[offset..offset + len].copy_from_slice(&bytes[at..at + len]);
                    at += len;
                }
                let buffer = list.into_buffers().next().expect("one buffer");
                assert!(buffer.bytes() == whole, "the entries' bytes, and those between");
            }
            Hold::Linked(reserved) => {
                let buffers = reserved.unmap().expect("unmapped");
                let seen: Vec<u8> = buffers.iter().flat_map(Buf::bytes).collect();
                assert!(seen == bytes);
            }
            Hold::Coherent(memory) => memory.free().expect("freed"),
            Hold::Shared(shared) => shared.free().expect("freed"),
        }
    }
}
