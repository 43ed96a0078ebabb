//! Where a small mapping's entries are, so that unmap need not walk.
#![forbid(unsafe_code)]

/// The place of a small mapping's entries, from [`map`](super::PageTable::map) for
/// [`unmap`](super::PageTable::unmap). One word, without a meaning of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint(u64);

const COUNT: u32 = 56;

impl Hint {
    /// No hint: unmap walks.
    pub const NONE: Self = Self(0);

    /// The most entries a hint covers.
    pub(super) const MOST: usize = 64;

    #[inline(always)]
    pub(super) fn new(phys: u64, count: usize) -> Self {
        if count <= Self::MOST { Self(phys | (count as u64) << COUNT) } else { Self::NONE }
    }

    #[inline(always)]
    pub(super) fn phys(self) -> u64 {
        self.0 & ((1 << COUNT) - 1)
    }

    #[inline(always)]
    pub(super) fn count(self) -> usize {
        (self.0 >> COUNT) as usize
    }

    /// The hint as a word, for a backend that keeps it beside something else.
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// A hint from [`to_raw`](Self::to_raw). Any other word breaks the contract of
    /// [`unmap`](super::PageTable::unmap).
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

impl Default for Hint {
    fn default() -> Self {
        Self::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_an_address_and_a_count() {
        let hint = Hint::new(0xff_ffff_ffff_f008, 64);
        assert_eq!((hint.phys(), hint.count()), (0xff_ffff_ffff_f008, 64));
        assert_eq!(hint.to_raw(), 0x40ff_ffff_ffff_f008);
        assert_eq!(Hint::from_raw(hint.to_raw()), hint);
        assert_eq!(Hint::new(0x1000, 65), Hint::NONE);
        assert_eq!((Hint::NONE.count(), Hint::default()), (0, Hint::NONE));
    }
}
