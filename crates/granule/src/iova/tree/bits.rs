//! Bit arithmetic on one word of 64 slots, of which a set bit is free.

/// `ALIGNED[a]` has the bits whose position is a multiple of 2^a.
const ALIGNED: [u64; 7] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

/// The positions that are a multiple of 2^`align`; from 6 up that is position 0 alone.
#[inline]
pub(super) fn aligned(align: u32) -> u64 {
    ALIGNED[align.min(6) as usize]
}

/// The positions, aligned to 2^`order`, at which 2^`order` bits in a row are set.
#[inline]
pub(super) fn runs(word: u64, order: u32) -> u64 {
    if order > 6 {
        return 0;
    }
    let mut starts = word;
    for step in 0..order {
        starts &= starts >> (1 << step);
    }
    starts & aligned(order)
}

/// One more than the order of the largest aligned run of set bits; 0 if no bit is set.
#[inline]
pub(super) fn rank(word: u64) -> u8 {
    let pairs = word & (word >> 1) & ALIGNED[1];
    let fours = pairs & (pairs >> 2) & ALIGNED[2];
    let eights = fours & (fours >> 4) & ALIGNED[3];
    let sixteens = eights & (eights >> 8) & ALIGNED[4];
    let halves = sixteens & (sixteens >> 16) & ALIGNED[5];
    u8::from(word != 0)
        + u8::from(pairs != 0)
        + u8::from(fours != 0)
        + u8::from(eights != 0)
        + u8::from(sixteens != 0)
        + u8::from(halves != 0)
        + u8::from(word == u64::MAX)
}

/// The bits from `low` to `high`, both included; neither is above 63, `low` not above `high`.
#[inline]
pub(super) fn ones(low: u64, high: u64) -> u64 {
    (u64::MAX >> (63 - (high - low))) << low
}

/// The start positions of runs of 2^`order` bits that lie wholly in `low..=high`.
#[inline]
pub(super) fn starts_within(order: u32, low: u64, high: u64) -> u64 {
    match (high + 1).checked_sub(1 << order) {
        Some(last) if last >= low => ones(low, last),
        _ => 0,
    }
}

/// The position of the highest set bit.
#[inline]
pub(super) fn top(word: u64) -> Option<u64> {
    if word == 0 { None } else { Some(u64::from(63 - word.leading_zeros())) }
}

/// The position of the lowest set bit.
#[inline]
pub(super) fn bottom(word: u64) -> Option<u64> {
    if word == 0 { None } else { Some(u64::from(word.trailing_zeros())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run_is_set(word: u64, start: u64, order: u32) -> bool {
        (start..start + (1 << order)).all(|bit| word >> bit & 1 == 1)
    }

    proptest! {
        #[test]
        fn runs_agree_with_looking_at_every_bit(a: u64, b: u64, order in 0u32..7, low in 0u64..64, len in 0u64..64) {
            let word = a | b;
            let high = (low + len).min(63);
            let found = runs(word, order) & starts_within(order, low, high);
            for start in 0..64u64 {
                let fits = start % (1 << order) == 0
                    && start >= low
                    && start + (1 << order) - 1 <= high
                    && run_is_set(word, start, order);
                prop_assert_eq!(found >> start & 1 == 1, fits);
            }
        }

        #[test]
        fn rank_is_the_largest_run(a: u64, b: u64, c: u64) {
            for word in [a, a | b, a | b | c, 0, u64::MAX, u64::MAX << 32] {
                let brute = (0..7u8).filter(|k| runs(word, u32::from(*k)) != 0).max().map_or(0, |k| k + 1);
                prop_assert_eq!(rank(word), brute);
            }
        }
    }
}
