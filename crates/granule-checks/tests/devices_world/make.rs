//! New mappings, and what must be true of each at once.

use granule::addr::{Access, Direction, DmaAddr, PhysRange};
use granule::dma::{
    Coherent, Device, DmaError, ListMapping, MapFlags, Mapping, Reservation, ScatterList,
};
use granule::mem::Platform as _;
use granule::share::Plan;
use granule_checks::{Board, Buf, dma_range, phys_range};

use super::live::{Hold, Live, last, noise};
use super::{Limits, NAMES, Step, World};

const DIRECTIONS: [Direction; 3] =
    [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional];

/// What must come of a list.
#[derive(Debug, PartialEq)]
enum Fate {
    Mapped,
    TooLong(usize, u64),
    Crosses(usize, u64),
}

/// Whether a multiple of `boundary` lies between the first and the last of `len` addresses.
fn crosses(at: u64, len: u64, boundary: u64) -> bool {
    boundary != 0 && at / boundary != (at + len - 1) / boundary
}

/// Where a buffer begins in its block, and where the block lies.
fn buffer(board: &Board, step: Step, len: u64, whole: bool) -> Buf {
    let mut rng = fastrand::Rng::with_seed(u64::from(step.seed) ^ 0x5eed);
    let offset = match step.shape >> 8 & 3 {
        _ if whole => 0,
        0 => 0,
        1 => rng.u64(..0x1_0000),
        2 => 0x1000 * rng.u64(..16),
        _ => 0x1_0000 - 1,
    };
    let high = step.shape & 0x800 != 0;
    let low = Some(phys_range(granule_checks::RAM, (1 << 32) - granule_checks::RAM));
    let window = if high { Board::high() } else { low };
    let mut buffer = Buf::within(&board.machine, window, offset, len);
    buffer.fill(&noise(step.seed, len as usize));
    buffer
}

/// A length that the step chooses.
fn len(rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(..6) {
        0 => rng.u64(1..0x200),
        1 => rng.u64(1..0x9000),
        2 => 0x1000,
        3 => 0x4000,
        4 => 0x1_0000,
        _ => rng.u64(1..0x1_2000),
    }
}

impl World<'_> {
    fn device_of(&self, step: Step) -> (usize, Device, Direction, MapFlags) {
        let index = usize::from(step.pick & 1);
        let direction = DIRECTIONS[usize::from(step.pick >> 1) % 3];
        let guard = step.pick & 0x700 == 0;
        let flags = if guard { MapFlags::GUARD } else { MapFlags::empty() };
        (index, self.device(index).clone(), direction, flags)
    }

    /// The device can emit all of it.
    fn check_emitted(&self, index: usize, bits: u32, segments: &[(DmaAddr, u64)]) {
        let limits = &self.case.devices[index];
        let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        for (at, len) in segments {
            let (first, last) = (*at, last(*at, *len));
            assert!(first.raw() != 0 && last.raw() <= mask, "{first:?} to {last:?}: {mask:#x}");
            if let Some(window) = limits.window(self.case.kind) {
                let inside = window.contains(first) && window.contains(last);
                assert!(inside, "{first:?} to {last:?} outside {window}");
            }
        }
    }

    pub(super) fn map_one(&mut self, step: Step) {
        let (index, device, direction, flags) = self.device_of(step);
        let len = len(&mut fastrand::Rng::with_seed(step.seed.into()));
        let buffer = buffer(self.board, step, len, false);
        let (range, bytes) = (buffer.range(), buffer.bytes());
        let mapping = match Mapping::new(device, buffer, direction, flags) {
            Ok(mapping) => mapping,
            Err(refused) => panic!("{:?}: {}", self.case, refused.error),
        };
        let segments = vec![(mapping.address(), len)];
        let limits = &self.case.devices[index];
        self.check_emitted(index, limits.bits(self.case.kind), &segments);
        let kept = (mapping.address().raw() ^ range.start().raw()) & limits.align_mask;
        assert_eq!(kept, 0, "address bits are kept");
        if self.translated() {
            assert_ne!(mapping.is_bounced(), self.in_place(index, &range, direction));
        }
        let memory = if mapping.is_bounced() { Vec::new() } else { vec![range] };
        let bounced = mapping.is_bounced();
        let device = NAMES[index];
        let live = Live { hold: Hold::One(mapping), device, segments, bytes, direction, memory };
        if bounced && self.translated() && direction != Direction::FromDevice {
            self.check_padding(&live);
        }
        self.enter(live);
    }

    /// Whether an IOMMU maps memory where it lies: nobody sees what must not be seen beside it, and no
    /// cache line of it holds bytes that the CPU may write back over the device's.
    fn in_place(&self, index: usize, range: &PhysRange, direction: Direction) -> bool {
        let line = self.board.platform().cache_line() as u64;
        let shares_line = (range.start().raw() | range.len()) & (line - 1) != 0;
        let deaf = !self.case.devices[index].snoops;
        let overwritten = deaf && shares_line && direction.device_writes();
        !overwritten && (self.all_trusted() || range.is_aligned(self.case.kind.granule()))
    }

    /// Around a bounced buffer the device finds zeroes, up to the granules' ends.
    fn check_padding(&self, live: &Live) {
        let granule = self.case.kind.granule();
        let (at, len) = live.segments[0];
        let first = at.align_down(granule);
        let before = (at.raw() - first.raw()) as usize;
        let size = granule.round_up(before as u64 + len).expect("small");
        let seen = self.board.read(live.device, first, size as usize).expect("whole granules");
        assert!(seen[..before].iter().all(|byte| *byte == 0), "before it");
        assert!(seen[before + len as usize..].iter().all(|byte| *byte == 0), "behind it");
        assert!(seen[before..][..len as usize] == live.bytes);
    }

    pub(super) fn map_list(&mut self, step: Step) {
        let (index, device, direction, flags) = self.device_of(step);
        let mut rng = fastrand::Rng::with_seed(step.seed.into());
        let whole = rng.bool();
        let mut parts = Vec::new();
        let mut end = 0;
        for _ in 0..rng.usize(1..7) {
            let unit = 0x1000u64 << rng.u32(..5);
            let (gap, len) = match whole {
                true => (unit * rng.u64(..2), unit * rng.u64(1..3)),
                false => {
                    (*rng.choice(&[0, 0, 1, 64, 0x1000, 0x3777]).expect("some"), len(&mut rng))
                }
            };
            // Entries that fill granules begin where these do.
            let start = if whole { (end + gap).next_multiple_of(unit) } else { end + gap };
            parts.push((start, len));
            end = start + len;
        }
        let buffer = buffer(self.board, step, end, whole);
        let (range, all) = (buffer.range(), buffer.bytes());
        let entries: Vec<PhysRange> =
            parts.iter().map(|(at, len)| range.slice(*at, *len).expect("inside")).collect();
        let fate = self.fate(index, &entries, direction);
        let list = ScatterList::new([buffer.in_parts(&parts)]);
        let mapping = match ListMapping::new(device, list, direction, flags) {
            Ok(mapping) => mapping,
            Err(refused) => {
                assert!(refused.buffer.is_some(), "the list comes back");
                return self.check_refused(index, &entries, fate, &refused.error);
            }
        };
        assert_eq!(fate, Fate::Mapped, "{:?}", mapping.segments());
        let segments: Vec<_> =
            mapping.segments().iter().map(|one| (one.address, one.len)).collect();
        self.check_segments(index, &entries, &segments);
        let bytes_of = |(at, len): &(u64, u64)| all[*at as usize..(at + len) as usize].to_vec();
        let bytes = parts.iter().flat_map(bytes_of).collect();
        let seen = |entry: &&PhysRange| self.in_place(index, entry, direction);
        let memory = entries.iter().filter(seen).copied().collect();
        let hold = Hold::List(mapping, parts, all);
        self.enter(Live { hold, device: NAMES[index], segments, bytes, direction, memory });
    }

    fn check_segments(&self, index: usize, entries: &[PhysRange], segments: &[(DmaAddr, u64)]) {
        let limits = &self.case.devices[index];
        self.check_emitted(index, limits.bits(self.case.kind), segments);
        assert!(segments.len() <= entries.len());
        let total: u64 = entries.iter().map(PhysRange::len).sum();
        assert_eq!(segments.iter().map(|(_, len)| len).sum::<u64>(), total);
        // A segment begins where an entry begins, and keeps its low bits.
        let mut at = 0;
        for (address, len) in segments {
            assert!(*len <= limits.max_segment);
            assert!(!crosses(address.raw(), *len, limits.boundary), "{address:?}, {len:#x}");
            let mut before = 0;
            let first = entries.iter().find(|entry| {
                before += entry.len();
                before - entry.len() == at
            });
            let first = first.expect("an entry is never split").start();
            assert_eq!((address.raw() ^ first.raw()) & limits.align_mask, 0);
            at += len;
        }
    }

    /// What must come of a list.
    fn fate(&self, index: usize, entries: &[PhysRange], direction: Direction) -> Fate {
        let limits = &self.case.devices[index];
        let granule = self.case.kind.granule();
        for (number, entry) in entries.iter().enumerate() {
            let (at, len) = (entry.start().raw(), entry.len());
            if len > limits.max_segment {
                return Fate::TooLong(number, len);
            }
            // What an IOMMU maps as it is lies as far into its granule as its memory; what is bounced
            // keeps the bits that the device wants kept. On the bus everything can be bounced.
            let in_place = self.translated() && self.in_place(index, entry, direction);
            let kept = if in_place { granule.mask() } else { limits.align_mask };
            let inside = at & kept & granule.mask();
            let period = limits.boundary.max(granule.size());
            let mut starts = (0..period / granule.size()).map(|n| n * granule.size() + inside);
            if starts.all(|start| crosses(start, len, limits.boundary)) {
                return Fate::Crosses(number, len);
            }
        }
        Fate::Mapped
    }

    /// A refusal names the first entry that cannot be, and why.
    fn check_refused(&self, index: usize, entries: &[PhysRange], wanted: Fate, error: &DmaError) {
        let limits = &self.case.devices[index];
        let fate = match error {
            DmaError::Segment { index, len, max, .. } if *max == limits.max_segment => {
                Fate::TooLong(*index, *len)
            }
            DmaError::Boundary { index, len, boundary, .. } if *boundary == limits.boundary => {
                Fate::Crosses(*index, *len)
            }
            other => panic!("{:?}: {other}", self.case),
        };
        assert_eq!(fate, wanted, "{entries:x?}");
    }

    pub(super) fn allocate(&mut self, step: Step) {
        let (index, device, _, flags) = self.device_of(step);
        let most = 3 * self.case.kind.granule().size();
        let len = 1 + u64::from(step.seed) % most;
        let memory = match Coherent::new(device, len, flags) {
            Ok(memory) => memory,
            Err(error) => panic!("{:?}: {error}", self.case),
        };
        let segments = vec![(memory.address(), len)];
        let bits = self.case.devices[index].coherent_bits(self.case.kind);
        self.check_emitted(index, bits, &segments);
        let blocks = memory.scatter_list().to_vec();
        let (bytes, direction) = (vec![0; len as usize], Direction::Bidirectional);
        let hold = Hold::Coherent(memory);
        let mut live =
            Live { hold, device: NAMES[index], segments, bytes, direction, memory: blocks };
        // It is zeroed.
        live.device_moves(self.board, self.translated(), Step { seed: 0, ..step });
        self.enter(live);
    }

    /// One buffer for both devices.
    pub(super) fn share(&mut self, step: Step) {
        let len = 1 + u64::from(step.seed) % (3 * self.case.kind.granule().size());
        let same = step.shape & 7 == 0;
        let plan = Plan::new(len)
            .device(self.device(0), Access::all())
            .device(self.device(1), Access::all())
            .guard(step.shape & 8 != 0)
            .same_address(same);
        let limits = &self.case.devices;
        let too_long =
            |one: &Limits| len > one.max_segment || one.boundary != 0 && len > one.boundary;
        let too_long = limits.iter().any(too_long);
        let shared = match plan.solve().and_then(|solved| solved.allocate()) {
            Ok(shared) => shared,
            Err(_) if too_long => return,
            Err(_) if same && !self.have_common_addresses() => return,
            Err(error) => panic!("{:?}: {error}", self.case),
        };
        assert!(!too_long, "no device could describe it");
        let places: Vec<_> = [0, 1]
            .map(|index| shared.range_of(self.device(index)).expect("planned").address())
            .into_iter()
            .map(|at| (at, len))
            .collect();
        for (index, place) in places.iter().enumerate() {
            let bits = self.case.devices[index].coherent_bits(self.case.kind);
            self.check_emitted(index, bits, &[*place]);
            assert!(!crosses(place.0.raw(), len, limits[index].boundary), "{place:x?}");
        }
        assert!(!same || places[0] == places[1]);
        let bytes = noise(step.seed, len as usize);
        shared.write(0, &bytes).expect("inside");
        for index in [0, 1, 0] {
            shared.sync_for_device(0, len).expect("inside");
            let (other, new) = (index ^ 1, noise(step.seed ^ 1, len as usize));
            let seen = self.board.read(NAMES[index], places[index].0, len as usize);
            assert!(seen == Some(bytes.clone()), "{} sees it", NAMES[index]);
            assert!(self.board.write(NAMES[index], places[index].0, &new));
            shared.sync_for_cpu(0, len).expect("inside");
            let seen = self.board.read(NAMES[other], places[other].0, len as usize);
            assert!(seen == Some(new), "{} sees what {} wrote", NAMES[other], NAMES[index]);
            shared.write(0, &bytes).expect("inside");
        }
        shared.sync_for_device(0, len).expect("inside");
        let memory = shared.blocks().to_vec();
        self.enter(Live {
            hold: Hold::Shared(shared),
            device: NAMES[0],
            segments: vec![places[0]],
            bytes,
            direction: Direction::Bidirectional,
            memory,
        });
    }

    /// Whether there are addresses that both devices can emit. If so, there are many.
    fn have_common_addresses(&self) -> bool {
        let kind = self.case.kind;
        let reach = |limits: &Limits| {
            let mask = dma_range(0, 1 << limits.coherent_bits(kind).min(63));
            // Without a window nothing adds bits that the tables do not index.
            let window = limits.window(kind).unwrap_or(dma_range(0, 1 << kind.index_bits()));
            window.intersection(&mask)
        };
        let [first, second] = &self.case.devices;
        reach(first).zip(reach(second)).is_some_and(|(first, second)| first.overlaps(&second))
    }

    /// Whole granules one behind the other.
    pub(super) fn reserve(&mut self, step: Step) {
        if !self.translated() {
            return;
        }
        let (index, device, direction, _) = self.device_of(step);
        let mut rng = fastrand::Rng::with_seed(step.seed.into());
        let size = self.case.kind.granule().size();
        let sizes: Vec<u64> = (0..rng.usize(1..4)).map(|_| size * rng.u64(1..3)).collect();
        let total = sizes.iter().sum();
        let mut reserved = match Reservation::new(device, total) {
            Ok(reserved) => reserved,
            Err(error) => panic!("{:?}: {error}", self.case),
        };
        let (mut bytes, mut memory) = (Vec::new(), Vec::new());
        for (number, len) in sizes.into_iter().enumerate() {
            let step = Step { seed: step.seed ^ number as u32, ..step };
            let buffer = buffer(self.board, step, len, true);
            bytes.extend(buffer.bytes());
            memory.push(buffer.range());
            if let Err(refused) = reserved.link(buffer, direction) {
                panic!("{:?}: {}", self.case, refused.error);
            }
        }
        let address = reserved.sync().expect("linked");
        let segments = vec![(address, total)];
        self.check_emitted(index, self.case.devices[index].bits(self.case.kind), &segments);
        let hold = Hold::Linked(reserved);
        self.enter(Live { hold, device: NAMES[index], segments, bytes, direction, memory });
    }
}
