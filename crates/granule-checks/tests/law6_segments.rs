//! Law 6: a mapped list of N entries has at most N segments, in order and equal in sum, each within
//! the device's mask, longest segment and boundary; an entry that cannot be is refused with its index
//! and length, and nothing else is. Against a model that is brute force: the device reads and writes
//! through the segments, and the bytes must be those of the entries.

use std::sync::Arc;

use granule::addr::{Direction, DmaSegment, Granule};
use granule::bounce::BouncePool;
use granule::dma::{Device, DeviceSpec, DmaError, ScatterList};
use granule::domain::{DomainConfig, Stream};
use granule::table::{Dart1, Lpae4k, Lpae64k};
use granule_checks::{Board, Buf, phys_range};
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::DeviceSpec as SimSpec;
use granule_sim::platform::SimPlatform;
use granule_sim::walk::SimFormat;
use proptest::prelude::*;

/// A list as a test makes it up: where its memory begins, and its entries as gaps and lengths.
#[derive(Clone, Debug)]
struct Shape {
    high: bool,
    offset: u64,
    entries: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    max_segment: u64,
    boundary: u64,
    mask_bits: u32,
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![2 => any_shape(), 1 => whole_granules()]
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let gap = prop::sample::select(vec![0u64, 0, 0, 1, 64, 0x1000, 0x3777]);
    let len = prop_oneof![1u64..0x200, 1u64..0x9000, Just(0x1000), Just(0x4000), Just(0x1_0000)];
    let offset = prop_oneof![Just(0u64), 0u64..0x1_0000, Just(0x3000), Just(0xffff)];
    let entries = prop::collection::vec((gap, len), 1..9);
    (any::<bool>(), offset, entries).prop_map(|(high, offset, entries)| Shape {
        high,
        offset,
        entries,
    })
}

/// What a file system or a display hands over: nothing shares a granule with anything.
fn whole_granules() -> impl Strategy<Value = Shape> {
    let entries = prop::collection::vec((0u64..3, 1u64..4), 1..9);
    let unit = prop::sample::select(vec![0x1000u64, 0x4000, 0x1_0000]);
    (any::<bool>(), unit, entries).prop_map(|(high, unit, entries)| {
        let entries = entries.into_iter().map(|(gap, len)| (gap * unit, len * unit)).collect();
        Shape { high, offset: 0, entries }
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let max = prop::sample::select(vec![u64::MAX, 0x1_0000, 0x8000, 0x1001]);
    let boundary = prop::sample::select(vec![0u64, 0x1000, 0x4000, 0x1_0000, 0x10_0000]);
    (max, boundary, prop::sample::select(vec![64u32, 32, 26]))
        .prop_map(|(max_segment, boundary, mask_bits)| Limits { max_segment, boundary, mask_bits })
}

impl Shape {
    /// The parts of the buffer: offset and length of each entry.
    fn parts(&self) -> Vec<(u64, u64)> {
        let mut at = 0;
        let place = |(gap, len): &(u64, u64)| {
            let part = (at + gap, *len);
            at += gap + len;
            part
        };
        self.entries.iter().map(place).collect()
    }

    fn len(&self) -> u64 {
        self.entries.iter().map(|(gap, len)| gap + len).sum()
    }

    fn buffer(&self, board: &Board) -> Buf {
        let window =
            if self.high { Board::high() } else { Some(phys_range(0xf000_0000, 0xfff_0000)) };
        let mut buffer = Buf::within(&board.machine, window, self.offset, self.len());
        let bytes: Vec<u8> = (0..self.len()).map(|at| (at * 7 + at / 256) as u8).collect();
        buffer.fill(&bytes);
        buffer
    }
}

impl Limits {
    fn spec(&self, name: &str) -> DeviceSpec {
        let spec = DeviceSpec::new(name).max_segment(self.max_segment).boundary(self.boundary);
        spec.mask_bits(self.mask_bits)
    }

    /// Whether some start that is `inside` bytes into a granule keeps `len` bytes off the boundary:
    /// every place is tried.
    fn has_place(&self, inside: u64, len: u64, granule: u64) -> bool {
        if self.boundary == 0 {
            return true;
        }
        let period = self.boundary.max(granule);
        let mut starts = (0..period / granule).map(|n| n * granule + inside);
        starts.any(|start| start / self.boundary == (start + len - 1) / self.boundary)
    }
}

/// What must come of an entry.
#[derive(Debug, PartialEq)]
enum Fate {
    Mapped,
    TooLong(usize, u64),
    Crosses(usize, u64),
}

/// The first entry that cannot be. `inside` says how many bytes into a granule an entry will lie.
fn fate(shape: &Shape, limits: &Limits, inside: impl Fn(u64, u64) -> u64, granule: u64) -> Fate {
    for (index, (offset, len)) in shape.parts().into_iter().enumerate() {
        if len > limits.max_segment {
            return Fate::TooLong(index, len);
        }
        if !limits.has_place(inside(shape.offset + offset, len), len, granule) {
            return Fate::Crosses(index, len);
        }
    }
    Fate::Mapped
}

fn check(segments: &[DmaSegment], shape: &Shape, limits: &Limits) -> Result<(), TestCaseError> {
    let mask = if limits.mask_bits == 64 { u64::MAX } else { (1 << limits.mask_bits) - 1 };
    prop_assert!(segments.len() <= shape.entries.len(), "{} segments", segments.len());
    let sum: u64 = segments.iter().map(|segment| segment.len).sum();
    prop_assert_eq!(sum, shape.entries.iter().map(|(_, len)| len).sum::<u64>());
    for segment in segments {
        let (first, last) = (segment.address.raw(), segment.address.raw() + segment.len - 1);
        prop_assert!(segment.len > 0 && segment.len <= limits.max_segment, "{:?}", segment);
        prop_assert!(first != 0 && last <= mask, "{:?} beyond {:#x}", segment, mask);
        let sides = [first, last].map(|at| at.checked_div(limits.boundary));
        prop_assert_eq!(sides[0], sides[1], "{:?} crosses {:#x}", segment, limits.boundary);
    }
    Ok(())
}

/// Maps the list, and compares with the model.
fn run(
    board: &Board,
    device: &Device,
    shape: &Shape,
    limits: &Limits,
    wanted: &Fate,
) -> Result<usize, TestCaseError> {
    let buffer = shape.buffer(board);
    let before = buffer.bytes();
    let list = ScatterList::new([buffer.in_parts(&shape.parts())]);
    let mapping = match device.map_list(list, Direction::Bidirectional) {
        Ok(mapping) => mapping,
        Err(refused) => {
            prop_assert!(refused.buffer.is_some(), "the list comes back");
            let fate = match refused.error {
                DmaError::Segment { index, len, max, .. } if max == limits.max_segment => {
                    Fate::TooLong(index, len)
                }
                DmaError::Boundary { index, len, boundary, .. } if boundary == limits.boundary => {
                    Fate::Crosses(index, len)
                }
                other => return Err(TestCaseError::fail(other.to_string())),
            };
            prop_assert_eq!(&fate, wanted);
            return Ok(0);
        }
    };
    prop_assert_eq!(wanted, &Fate::Mapped);
    check(mapping.segments(), shape, limits)?;
    let (mut read, mut flipped) = (Vec::new(), before.clone());
    for segment in mapping.segments() {
        let bytes = board.read(device.name(), segment.address, segment.len as usize);
        let bytes = bytes.ok_or_else(|| TestCaseError::fail("the device cannot read a segment"))?;
        let inverted: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        prop_assert!(board.write(device.name(), segment.address, &inverted));
        read.extend(bytes);
    }
    let bytes_of = |(at, len): &(u64, u64)| before[*at as usize..(at + len) as usize].to_vec();
    let entries: Vec<u8> = shape.parts().iter().flat_map(bytes_of).collect();
    prop_assert!(read == entries, "the device reads the entries' bytes, in order");
    for (at, len) in shape.parts() {
        flipped[at as usize..(at + len) as usize].iter_mut().for_each(|byte| *byte = !*byte);
    }
    let bounced = mapping.bounced();
    let list = mapping.unmap().map_err(|error| TestCaseError::fail(error.to_string()))?;
    let buffer = list.into_buffers().next().expect("one buffer");
    prop_assert!(buffer.bytes() == flipped, "what the device wrote, and nothing beside it");
    Ok(bounced)
}

fn finish(board: &Board, device: Device) -> Result<(), TestCaseError> {
    prop_assert_eq!(device.stats().live_mappings, 0);
    let error = device.detach().err().map(|(_, error)| error.to_string());
    prop_assert_eq!(error, None);
    prop_assert_eq!(board.machine.problems(), Vec::<String>::new());
    Ok(())
}

macro_rules! translated {
    ($name:ident, $format:ty, $sim:expr, $granule:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(granule_laws::effort::effort(48)))]

            #[test]
            fn $name(shape in shape(), limits in limits()) {
                let parts = Board::parts().iommu(IommuConfig::new("unit", $sim, 38));
                let board = Board::build(parts.device(SimSpec::behind("list", "unit", 0)));
                let granule: Granule = $granule;
                {
                    let config = DomainConfig::default();
                    let domain = board.domain_of::<$format>("unit", &config);
                    let device = board.attach(&domain, limits.spec("list"), 0);
                    let inside = |at, _| at & granule.mask();
                    let wanted = fate(&shape, &limits, inside, granule.size());
                    let bounced = run(&board, &device, &shape, &limits, &wanted)?;
                    prop_assert_eq!(bounced, 0, "a trusted device needs no bounce buffer");
                    drop(domain);
                    finish(&board, device)?;
                }
            }
        }
    };
}

translated!(granules_of_16k, Dart1, SimFormat::Dart1, Granule::K16);
translated!(granules_of_4k, Lpae4k, SimFormat::Lpae4k, Granule::K4);
translated!(granules_of_64k, Lpae64k, SimFormat::Lpae64k, Granule::K64);

/// Whether an entry fills its granules.
fn fills(at: u64, len: u64, granule: u64) -> bool {
    (at | len) & (granule - 1) == 0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(granule_laws::effort::effort(64)))]

    /// What does not fill its granules is bounced; a slot begins a granule.
    #[test]
    fn untrusted_devices(shape in shape(), limits in limits()) {
        let board = Board::usual();
        let pool = board.pool();
        let domain = board.domain("dart");
        let spec = limits.spec("dev").untrusted();
        let device = domain.attach(spec, &[Stream::new(0)], Some(pool.clone())).expect("legal");
        let wanted = fate(&shape, &limits, |_, _| 0, 0x4000);
        let bounced = run(&board, &device, &shape, &limits, &wanted)?;
        if wanted == Fate::Mapped {
            let odd = |(at, len): &(u64, u64)| !fills(shape.offset + at, *len, 0x4000);
            prop_assert_eq!(bounced, shape.parts().iter().filter(|part| odd(part)).count());
        }
        prop_assert_eq!(pool.usage().used, 0);
        drop((domain, pool));
        finish(&board, device)?;
    }

    /// On the bus an entry lies where it lies, unless a bounce buffer helps.
    #[test]
    fn direct_devices(shape in shape(), limits in limits()) {
        let limits = Limits { mask_bits: limits.mask_bits.max(32), ..limits };
        let parts = Board::parts().device(Board::direct_wiring("bus", limits.mask_bits));
        let board = Board::build(parts);
        let pool: Arc<BouncePool<SimPlatform>> = board.low_pool();
        let windows = [board.identity_window()];
        let spec = limits.spec("bus");
        let device = Device::direct(board.platform(), spec, &windows, Some(pool.clone()));
        let device = device.expect("a legal device");
        // A slot is aligned to the entry's size: any entry up to the boundary has a place.
        let wanted = fate(&shape, &limits, |_, _| 0, 0x1_0000);
        let bounced = run(&board, &device, &shape, &limits, &wanted)?;
        if wanted == Fate::Mapped {
            let crosses = |at: u64, len: u64| {
                limits.boundary != 0 && at / limits.boundary != (at + len - 1) / limits.boundary
            };
            let helped = |(at, len): &(u64, u64)| {
                (shape.high && limits.mask_bits == 32) || crosses(shape.offset + at, *len)
            };
            // The block is aligned to 64 KiB, so larger boundaries depend on where it lies.
            if limits.boundary <= 0x1_0000 {
                prop_assert_eq!(bounced, shape.parts().iter().filter(|part| helped(part)).count());
            }
        }
        prop_assert_eq!(pool.usage().used, 0);
        drop(pool);
        finish(&board, device)?;
    }
}
