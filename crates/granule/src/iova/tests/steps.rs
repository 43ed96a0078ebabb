//! What the random tests do, and in what apertures.

use proptest::prelude::*;

/// One call, or a change of scene.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Alloc { len: u64, align: u32, window: Option<(u64, u64)> },
    AllocAt { offset: u64, len: u64 },
    Reserve { offset: u64, len: u64 },
    Highest { len: u64, align: u32, window: Option<(u64, u64)> },
    Free { which: usize },
    Flush,
    Cpu(usize),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![6 => 1u64..12, 3 => 1u64..100, 1 => 60u64..700];
    let wish = || {
        (
            len.clone(),
            prop_oneof![4 => Just(0u32), 1 => 0u32..9],
            proptest::option::weighted(0.3, (0u64..700, 1u64..700)),
        )
    };
    prop_oneof![
        8 => wish().prop_map(|(len, align, window)| Step::Alloc { len, align, window }),
        1 => wish().prop_map(|(len, align, window)| Step::Highest { len, align, window }),
        2 => (0u64..700, len.clone()).prop_map(|(offset, len)| Step::AllocAt { offset, len }),
        1 => (0u64..700, 1u64..20).prop_map(|(offset, len)| Step::Reserve { offset, len }),
        7 => any::<usize>().prop_map(|which| Step::Free { which }),
        1 => Just(Step::Flush),
        1 => (0usize..3).prop_map(Step::Cpu),
    ]
}

/// Apertures of every kind: tiny, across node borders, at the top of the 64-bit space.
pub(super) fn aperture() -> impl Strategy<Value = (u64, u64, u64)> {
    let granule = prop_oneof![Just(4096u64), Just(16384), Just(65536), Just(2 << 20)];
    let len = prop_oneof![1 => Just(1u64), 1 => 2u64..64, 4 => 64u64..700];
    (granule, len, 0u8..4, 0u64..5000).prop_map(|(granule, len, place, offset)| {
        let low = match place {
            0 => 0,
            1 => offset,
            2 => (1 << 18) - offset.min(len / 2),
            _ => (u64::MAX / granule) - (len - 1),
        };
        (granule, low, len)
    })
}
