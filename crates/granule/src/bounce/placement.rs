//! A request, and the arithmetic that turns it into "so many slots, starting at such an index".
#![forbid(unsafe_code)]

use super::BounceError;
use super::bitmap::Fit;
use crate::addr::{PhysAddr, PhysRange};

/// What a mapping needs of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BounceRequest {
    /// The length of the data in bytes.
    pub len: u64,
    /// The outer range starts at a multiple of this many bytes, a power of two: the granule of the
    /// domain, or 1.
    pub align: u64,
    /// Which low address bits of the original must be kept, of the form 2^n - 1: the device's
    /// minimum-alignment mask (`dma_set_min_align_mask` in Linux), or 0.
    pub keep: u64,
    /// The original address, physical or virtual, of which the bits in `keep` are kept.
    pub orig: u64,
    /// The outer range is also a multiple of `align` long, so that no other slot shares a granule
    /// with this one: for what an IOMMU will map.
    pub whole_granules: bool,
    /// The outer range must lie inside this: what the device reaches. `None`: anywhere.
    pub window: Option<PhysRange>,
}

impl BounceRequest {
    /// A request for `len` bytes, with no other wish.
    pub const fn new(len: u64) -> Self {
        Self { len, align: 1, keep: 0, orig: 0, whole_granules: false, window: None }
    }
}

/// A checked request in terms of one pool's slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    /// Bytes from the start of the outer range to the data.
    pub(super) offset: u64,
    /// The length of the data in bytes.
    pub(super) len: u64,
    /// The length of the outer range in bytes.
    pub(super) outer_len: u64,
    /// What the device reaches.
    pub(super) window: Option<PhysRange>,
    /// `outer.start & modulus_mask == residue`.
    modulus_mask: u64,
    residue: u64,
    slot_shift: u32,
}

impl Placement {
    /// Checks `request` by itself; whether it fits the pool is seen later. `slot_shift` is the logarithm of the pool's slot.
    #[inline]
    pub(super) fn new(request: &BounceRequest, slot_shift: u32) -> Result<Self, BounceError> {
        let &BounceRequest { len, align, keep, orig, whole_granules, window } = request;
        if len == 0 {
            return Err(BounceError::EmptyRequest);
        }
        if !align.is_power_of_two() {
            return Err(BounceError::BadAlign { align });
        }
        if keep & keep.wrapping_add(1) != 0 {
            return Err(BounceError::BadKeepMask { keep });
        }
        let slot = 1 << slot_shift;
        let unit_mask = align.max(slot) - 1;
        let offset = orig & keep & unit_mask;
        let end_mask = if whole_granules { unit_mask } else { slot - 1 };
        let outer_len = offset
            .checked_add(len)
            .and_then(|end| end.checked_add(end_mask))
            // Past 2^64 the largest length stands for all: it cannot be served either.
            .unwrap_or(u64::MAX)
            & !end_mask;
        let modulus_mask = keep | unit_mask;
        let residue = orig & keep & !unit_mask;
        Ok(Self { offset, len, outer_len, window, modulus_mask, residue, slot_shift })
    }

    /// The same without the window.
    pub(super) fn anywhere(&self) -> Self {
        Self { window: None, ..*self }
    }

    /// Which slots of the block at `base` (a multiple of the slot) the run may start at.
    #[inline]
    pub(super) fn fit(&self, base: PhysAddr) -> Fit {
        Fit {
            count: self.outer_len >> self.slot_shift,
            // The slot has at least 64 bytes, so adding one cannot pass 64 bits.
            stride: (self.modulus_mask >> self.slot_shift) + 1,
            phase: (self.residue.wrapping_sub(base.raw()) & self.modulus_mask) >> self.slot_shift,
        }
    }

    /// The slots of `block` that lie wholly inside the window, as `(first, past the last)`.
    #[inline]
    pub(super) fn reach(&self, block: PhysRange) -> (u64, u64) {
        match &self.window {
            None => (0, block.len() >> self.slot_shift),
            Some(window) => self.reach_in(block, window),
        }
    }

    fn reach_in(&self, block: PhysRange, window: &PhysRange) -> (u64, u64) {
        let Some(shared) = block.intersection(window) else {
            return (0, 0);
        };
        let start = shared.start().raw() - block.start().raw();
        let slot_mask = (1 << self.slot_shift) - 1;
        // The block is whole slots, so rounding up inside it stays inside it.
        let low = (start >> self.slot_shift) + u64::from(start & slot_mask != 0);
        let high = (start + shared.len()) >> self.slot_shift;
        (low, high.max(low))
    }

    /// The outer range and the data of a run that starts at slot `first` of `block`.
    #[inline]
    pub(super) fn ranges(&self, block: PhysRange, first: u64) -> Option<(PhysRange, PhysRange)> {
        let outer = block.slice(first << self.slot_shift, self.outer_len)?;
        Some((outer, outer.slice(self.offset, self.len)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Granule;

    fn phys(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    #[test]
    fn a_kept_mask_wider_than_the_granule_chooses_the_outer_start() {
        let request = BounceRequest {
            align: 0x4000,
            keep: 0xffff,
            orig: 0xdead_b123,
            whole_granules: true,
            ..BounceRequest::new(0x100)
        };
        let placement = Placement::new(&request, 11).expect("legal");
        assert_eq!(placement.offset, 0x3123);
        assert_eq!(placement.outer_len, 0x4000);
        // 0xb123 = 0x8000 + 0x3123: the run starts at 0x8000 modulo 64 KiB.
        let fit = placement.fit(PhysAddr::new(0x1_4000));
        assert_eq!((fit.stride, fit.phase), (32, (0x8000 + 0x1_0000 - 0x4000) % 0x1_0000 / 2048));
        let (outer, data) = placement.ranges(phys(0x1_4000, 1 << 20), fit.phase).expect("fits");
        assert!(outer.is_aligned(Granule::K16));
        assert_eq!(data.start().raw() & 0xffff, 0xb123);
    }

    #[test]
    fn the_window_counts_whole_slots_only() {
        let within = |start, len| {
            let request = BounceRequest { window: Some(phys(start, len)), ..BounceRequest::new(1) };
            let placement = Placement::new(&request, 11).expect("legal");
            placement.reach(phys(0x10000, 0x10000))
        };
        assert_eq!(within(0, 0x20000), (0, 32));
        assert_eq!(within(0x10800, 0x1000), (1, 3));
        assert_eq!(within(0x11000, 0x800), (2, 3));
        assert_eq!(within(0x10001, 0x1000), (1, 2));
        assert_eq!(within(0x10001, 0xfff), (1, 2));
        assert_eq!(within(0x10001, 0xffe), (1, 1));
        assert_eq!(within(0x10001, 5), (1, 1));
        assert_eq!(within(0x40000, 0x1000), (0, 0));
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |request: BounceRequest| Placement::new(&request, 11).map(|_| ());
        let plain = BounceRequest::new(1);
        assert_eq!(check(BounceRequest::new(0)), Err(BounceError::EmptyRequest));
        for align in [0, 3, 0x3000] {
            assert_eq!(
                check(BounceRequest { align, ..plain }),
                Err(BounceError::BadAlign { align })
            );
        }
        for keep in [2, 0xff0, !1] {
            assert_eq!(
                check(BounceRequest { keep, ..plain }),
                Err(BounceError::BadKeepMask { keep })
            );
        }
        let huge = Placement::new(&BounceRequest::new(u64::MAX), 11).expect("refused by the pool");
        assert_eq!(huge.outer_len, !2047);
        assert_eq!(check(BounceRequest { keep: u64::MAX, align: 1 << 63, ..plain }), Ok(()));
    }
}
