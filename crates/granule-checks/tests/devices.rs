//! Devices with limits of every kind, two of them in one domain, under random programs of the DMA API on
//! buffers that lie anywhere: what a device is told to emit is what it can emit, what it reads and writes
//! are the bytes of its buffers, an untrusted one reaches no other, nobody shares an address, and what
//! lists refuse is what no place would do for. The model is plain: the bytes of every live buffer.

mod devices_world;

use devices_world::{Case, Kind, Limits, Step, World};
use granule_laws::effort::effort;
use proptest::prelude::*;
use proptest::sample::select;

/// Steps of a program.
const STEPS: usize = 40;

fn limits() -> impl Strategy<Value = Limits> {
    let bits = select(vec![64u32, 64, 36, 33, 32, 31, 30]);
    let coherent_bits = select(vec![64u32, 64, 32, 30]);
    let boundary = select(vec![0u64, 0, 0x1000, 0x1_0000, 0x10_0000]);
    let max_segment = select(vec![u64::MAX, u64::MAX, 0x1_0000, 0x8001]);
    let align_mask = select(vec![0u64, 0, 0x3f, 0x1ff, 0xfff]);
    let window = select(vec![0u8, 0, 0, 1, 2, 3]);
    let flags = (prop::bool::weighted(0.6), prop::bool::weighted(0.7));
    (bits, coherent_bits, boundary, max_segment, align_mask, window, flags).prop_map(
        |(bits, coherent_bits, boundary, max_segment, align_mask, window, flags)| Limits {
            bits,
            coherent_bits,
            boundary,
            max_segment,
            align_mask,
            window,
            trusted: flags.0,
            snoops: flags.1,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    (any::<u8>(), any::<u16>(), any::<u16>(), any::<u32>())
        .prop_map(|(kind, pick, shape, seed)| Step { kind, pick, shape, seed })
}

fn case(kind: Kind) -> impl Strategy<Value = Case> {
    let devices = [limits(), limits()];
    let program = prop::collection::vec(step(), 1..STEPS);
    (devices, any::<bool>(), program).prop_map(move |(devices, deferred, program)| Case {
        kind,
        devices,
        deferred,
        program,
    })
}

macro_rules! programs {
    ($name:ident, $kind:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(effort(8)))]

            #[test]
            fn $name(case in case($kind)) {
                World::run(&case);
            }
        }
    };
}

programs!(behind_a_dart, Kind::Dart);
programs!(behind_granules_of_4k, Kind::Lpae4k);
programs!(behind_granules_of_64k, Kind::Lpae64k);
programs!(on_the_bus, Kind::Direct);
