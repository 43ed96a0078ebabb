//! What devices demand of memory that they are to share, as an algebra.
//!
//! [`Constraints::union`] is commutative, associative and idempotent: alignments grow to the
//! largest, contiguity is needed if anybody needs it, windows shrink to what all reach. So the order
//! in which devices are named never matters, and naming one twice changes nothing.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Granule, PhysAddr, PhysRange};

/// Physical memory that may be used: sorted ranges that neither touch nor overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    ranges: Vec<PhysRange>,
}

impl Windows {
    /// All of physical memory but its very last byte, whose length would not fit 64 bits.
    pub fn everywhere() -> Self {
        let all = PhysRange::new(PhysAddr::new(0), u64::MAX);
        Self { ranges: all.into_iter().collect() }
    }

    /// What these ranges cover together.
    pub fn new(ranges: impl IntoIterator<Item = PhysRange>) -> Self {
        let mut sorted: Vec<PhysRange> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut ranges: Vec<PhysRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match ranges.last_mut() {
                Some(last) if touches(last, &range) => {
                    let end = last.last().max(range.last());
                    // From the lower start to the higher end: legal unless it is all 2^64 bytes.
                    *last = PhysRange::from_inclusive(last.start(), end).unwrap_or(*last);
                }
                _ => ranges.push(range),
            }
        }
        Self { ranges }
    }

    /// What both cover.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let pairs = self.ranges.iter().flat_map(|a| other.ranges.iter().map(move |b| (a, b)));
        Self::new(pairs.filter_map(|(a, b)| a.intersection(b)))
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[PhysRange] {
        &self.ranges
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether one of the ranges holds all of `range`.
    pub fn contains(&self, range: &PhysRange) -> bool {
        self.ranges.iter().any(|window| window.contains_range(range))
    }

    /// The longest stretch of whole granules, in bytes.
    pub fn longest(&self, granule: Granule) -> u64 {
        let inside = self.ranges.iter().filter_map(|range| range.align_inward(granule));
        inside.map(|range| range.len()).max().unwrap_or(0)
    }
}

fn touches(a: &PhysRange, b: &PhysRange) -> bool {
    a.overlaps(b) || a.is_followed_by(b)
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ranges.is_empty() {
            return f.write_str("nowhere");
        }
        for (index, range) in self.ranges.iter().enumerate() {
            if index != 0 {
                f.write_str(", ")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

/// What memory must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// Every block starts at a multiple of this, and is a multiple of it long.
    pub align: Granule,
    /// The memory must be one physical block.
    pub contiguous: bool,
    /// Where it may lie.
    pub windows: Windows,
    /// A power of two that the range may not cross a multiple of in any device's addresses, or 0.
    pub boundary: u64,
    /// The longest range that any device's descriptors take, in bytes.
    pub max_segment: u64,
}

impl Constraints {
    /// What memory must be like if nobody asks for anything: CPU pages.
    pub fn none(cpu_page: Granule) -> Self {
        Self {
            align: cpu_page,
            contiguous: false,
            windows: Windows::everywhere(),
            boundary: 0,
            max_segment: u64::MAX,
        }
    }

    /// What satisfies both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self {
            align: self.align.max(other.align),
            contiguous: self.contiguous || other.contiguous,
            windows: self.windows.intersection(&other.windows),
            boundary: stricter(self.boundary, other.boundary),
            max_segment: self.max_segment.min(other.max_segment),
        }
    }
}

/// The smaller of two boundaries, where 0 is none.
fn stricter(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { a | b } else { a.min(b) }
}

impl fmt::Display for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks of {}", self.align)?;
        f.write_str(if self.contiguous {
            ", one physical block"
        } else {
            ", any number of blocks"
        })?;
        if self.windows != Windows::everywhere() {
            write!(f, ", inside {}", self.windows)?;
        }
        if self.boundary != 0 {
            write!(f, ", not across {:#x}", self.boundary)?;
        }
        if self.max_segment != u64::MAX {
            write!(f, ", at most {:#x} bytes", self.max_segment)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn constraints_are_told_where_they_constrain() {
        let range = |start, len| PhysRange::new(PhysAddr::new(start), len).expect("legal");
        let two = Windows::new([range(0x1000, 0x1000), range(0x8000, 0x2000)]);
        assert_eq!(two.to_string(), "0x1000..=0x1fff, 0x8000..=0x9fff");
        assert_eq!(Windows::new([]).to_string(), "nowhere");
        let none = Constraints {
            align: Granule::K16,
            contiguous: false,
            windows: Windows::everywhere(),
            boundary: 0,
            max_segment: u64::MAX,
        };
        assert_eq!(none.to_string(), "blocks of 16 KiB, any number of blocks");
        let all = Constraints {
            contiguous: true,
            windows: Windows::new([range(0x1000, 0x1000)]),
            boundary: 0x1_0000,
            max_segment: 0x8000,
            ..none
        };
        let text = "blocks of 16 KiB, one physical block, inside 0x1000..=0x1fff, \
                    not across 0x10000, at most 0x8000 bytes";
        assert_eq!(all.to_string(), text);
    }

    fn constraints() -> impl Strategy<Value = Constraints> {
        let range = (0u64..64, 1u64..64).prop_map(|(start, len)| {
            PhysRange::new(PhysAddr::new(start << 20), len << 20).expect("far below the top")
        });
        (12u32..20, any::<bool>(), proptest::collection::vec(range, 1..4), 0u32..4, 0u32..3)
            .prop_map(|(align, contiguous, ranges, boundary, max)| Constraints {
                align: Granule::new(1 << align).expect("a granule"),
                contiguous,
                windows: Windows::new(ranges),
                boundary: [0, 1 << 16, 1 << 20, 1 << 32][boundary as usize],
                max_segment: [u64::MAX, 1 << 20, 1 << 16][max as usize],
            })
    }

    proptest! {
        #[test]
        fn union_is_commutative_associative_idempotent(a in constraints(), b in constraints(), c in constraints()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.union(&b).union(&c), a.union(&b.union(&c)));
            prop_assert_eq!(a.union(&a), a.clone());
            prop_assert_eq!(a.union(&b).union(&b), a.union(&b));
            let none = Constraints::none(Granule::K4);
            prop_assert_eq!(none.union(&a), a);
        }

        #[test]
        fn what_satisfies_the_union_satisfies_each(a in constraints(), b in constraints(), page in 0u64..128) {
            let both = a.union(&b);
            let range = PhysRange::new(PhysAddr::new(page << 20), 4096).expect("far below the top");
            prop_assert_eq!(both.windows.contains(&range), a.windows.contains(&range) && b.windows.contains(&range));
            prop_assert!(both.align >= a.align && both.align >= b.align);
        }
    }

    #[test]
    fn neighbours_become_one_window() {
        let range = |start: u64, len| PhysRange::new(PhysAddr::new(start), len).expect("legal");
        let windows =
            Windows::new([range(0x2000, 0x1000), range(0x1000, 0x1000), range(0x8000, 0x10)]);
        assert_eq!(windows.ranges(), &[range(0x1000, 0x2000), range(0x8000, 0x10)]);
    }
}
