//! The page-table formats that the walkers read, and the shape of their tables.
//!
//! | format | page | index bits a level | levels | larger leaves |
//! | --- | --- | --- | --- | --- |
//! | `dart1`, `dart2` | 16 KiB | 11 | 2 (3 where the input needs it), up to 4 roots | none |
//! | `lpae4k` | 4 KiB | 9 | up to 4 | 2 MiB, 1 GiB, groups of 16 |
//! | `lpae16k` | 16 KiB | 11 | up to 4 | 32 MiB, groups of 128 (pages) and 32 (blocks) |
//! | `lpae64k` | 64 KiB | 13 | up to 3 | 512 MiB, groups of 32 |
//! | `vtd2` | 4 KiB | 9 | 3 to 5 | 2 MiB, 1 GiB |
//! | `vtd1` | 4 KiB | 9 | 4 or 5 | 2 MiB, 1 GiB |
//! | `amdv1` | 4 KiB | 9 | up to 5 | every level, and every power of two between |
//! | `sv39`, `sv48`, `sv57` | 4 KiB | 9 | 3 to 5 | every level, groups of 16 (Svnapot) |
//!
//! Sources: Linux `io-pgtable-dart.c` as a reference for DART; Arm ARM DDI 0487, D8.3 (VMSAv8-64);
//! Intel VT-d specification 9.7 and 9.8 (first- and second-stage paging entries); AMD I/O
//! Virtualization specification 2.2.3 (I/O page tables; skipped levels are not read); RISC-V privileged specification,
//! Sv39/48/57 and Svnapot.

use core::fmt;
use core::str::FromStr;

use granule::addr::Granule;

/// A page-table format that this crate can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SimFormat {
    /// Apple DART 1: 36-bit output, 16 KiB pages.
    Dart1,
    /// Apple DART 2: 42-bit output, address field shifted right by 4, 16 KiB pages.
    Dart2,
    /// VMSAv8-64 stage 1, 4 KiB granule.
    Lpae4k,
    /// VMSAv8-64 stage 1, 16 KiB granule.
    Lpae16k,
    /// VMSAv8-64 stage 1, 64 KiB granule; bits 15:12 of an entry are address bits 51:48.
    Lpae64k,
    /// Intel VT-d second stage.
    Vtd2,
    /// Intel VT-d first stage: the CPU's own format.
    Vtd1,
    /// AMD host page tables (version 1), with sizes between the levels.
    AmdV1,
    /// RISC-V Sv39.
    Sv39,
    /// RISC-V Sv48.
    Sv48,
    /// RISC-V Sv57.
    Sv57,
}

/// A format name that is not known, or a table shape that the format does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// No format has this name.
    #[error("no page-table format is called `{name}`; known: {}", SimFormat::names())]
    UnknownName {
        /// The name that was given.
        name: String,
    },
    /// The format cannot index that many bits.
    #[error("{format} indexes {min} to {max} input bits, not {input_bits}")]
    InputBits {
        /// The format.
        format: SimFormat,
        /// The input bits asked for.
        input_bits: u32,
        /// The fewest it can.
        min: u32,
        /// The most it can.
        max: u32,
    },
    /// A translation has one root, or with DART up to four.
    #[error("{format} takes 1 to {max} root tables, not {count}")]
    Roots {
        /// The format.
        format: SimFormat,
        /// How many roots were given.
        count: usize,
        /// The most it takes.
        max: usize,
    },
}

impl SimFormat {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::Dart1,
        Self::Dart2,
        Self::Lpae4k,
        Self::Lpae16k,
        Self::Lpae64k,
        Self::Vtd2,
        Self::Vtd1,
        Self::AmdV1,
        Self::Sv39,
        Self::Sv48,
        Self::Sv57,
    ];

    /// The name, as [`FromStr`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dart1 => "dart1",
            Self::Dart2 => "dart2",
            Self::Lpae4k => "lpae4k",
            Self::Lpae16k => "lpae16k",
            Self::Lpae64k => "lpae64k",
            Self::Vtd2 => "vtd2",
            Self::Vtd1 => "vtd1",
            Self::AmdV1 => "amdv1",
            Self::Sv39 => "sv39",
            Self::Sv48 => "sv48",
            Self::Sv57 => "sv57",
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The smallest page.
    pub const fn granule(self) -> Granule {
        match self {
            Self::Dart1 | Self::Dart2 | Self::Lpae16k => Granule::K16,
            Self::Lpae64k => Granule::K64,
            _ => Granule::K4,
        }
    }

    /// The most roots that one translation can have.
    pub const fn max_roots(self) -> usize {
        if self.is_dart() { 4 } else { 1 }
    }

    /// The widest input address in bits.
    pub const fn max_input_bits(self) -> u32 {
        match self {
            Self::Dart1 | Self::Dart2 => 47,
            Self::Lpae4k | Self::Lpae16k | Self::Lpae64k | Self::Sv48 => 48,
            Self::Sv39 => 39,
            Self::Vtd2 | Self::Vtd1 | Self::AmdV1 | Self::Sv57 => 57,
        }
    }

    /// The widest output address in bits that an entry can hold.
    pub const fn max_output_bits(self) -> u32 {
        match self {
            Self::Dart1 => 36,
            Self::Dart2 => 42,
            Self::Lpae4k | Self::Lpae16k => 48,
            Self::Lpae64k | Self::Vtd2 | Self::Vtd1 | Self::AmdV1 => 52,
            Self::Sv39 | Self::Sv48 | Self::Sv57 => 56,
        }
    }

    pub(crate) const fn is_dart(self) -> bool {
        matches!(self, Self::Dart1 | Self::Dart2)
    }

    /// CPU formats (RISC-V, VT-d first stage) sign-extend: the bits above the input repeat its top
    /// bit.
    pub(crate) const fn sign_extends(self) -> bool {
        matches!(self, Self::Vtd1 | Self::Sv39 | Self::Sv48 | Self::Sv57)
    }

    const fn fixed_levels(self) -> Option<u32> {
        match self {
            Self::Sv39 => Some(3),
            Self::Sv48 => Some(4),
            Self::Sv57 => Some(5),
            _ => None,
        }
    }
}

impl fmt::Display for SimFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SimFormat {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        let wanted = name.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|format| format.name() == wanted)
            .ok_or_else(|| FormatError::UnknownName { name: name.into() })
    }
}

/// The shape of one translation's tables. Levels are counted by *height*: 0 is the level whose
/// entries map the smallest page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) format: SimFormat,
    pub(crate) input_bits: u32,
    /// The height of the root tables.
    pub(crate) top: u32,
    page_shift: u32,
    index_bits: u32,
}

impl Geometry {
    pub(crate) fn new(
        format: SimFormat,
        input_bits: u32,
        roots: usize,
    ) -> Result<Self, FormatError> {
        let max_roots = format.max_roots();
        if roots == 0 || roots > max_roots {
            return Err(FormatError::Roots { format, count: roots, max: max_roots });
        }
        let page_shift = format.granule().shift();
        let (min, max) = (page_shift + 1, format.max_input_bits());
        if input_bits < min || input_bits > max {
            return Err(FormatError::InputBits { format, input_bits, min, max });
        }
        let index_bits = page_shift - 3;
        let root_bits = roots.next_power_of_two().trailing_zeros();
        let indexed = (input_bits - page_shift).saturating_sub(root_bits);
        let needed = indexed.div_ceil(index_bits).max(1);
        let levels = match format.fixed_levels() {
            Some(levels) => levels,
            // A DART has no one-level form; VT-d no form below three levels, and nobody gives an AMD
            // IOMMU fewer.
            None if format.is_dart() => needed.max(2),
            None if matches!(format, SimFormat::Vtd2 | SimFormat::AmdV1) => needed.max(3),
            None if format == SimFormat::Vtd1 => needed.max(4),
            None => needed,
        };
        Ok(Self { format, input_bits, top: levels - 1, page_shift, index_bits })
    }

    /// The logarithm of what one entry at `height` spans.
    pub(crate) fn shift(&self, height: u32) -> u32 {
        self.page_shift + height * self.index_bits
    }

    /// How many entries a table at `height` has. A root may be shorter than a page.
    pub(crate) fn entries(&self, height: u32) -> u64 {
        let full = self.index_bits;
        if height < self.top || self.format.is_dart() {
            return 1 << full;
        }
        1 << full.min(self.input_bits.saturating_sub(self.shift(height)))
    }

    /// Where `iova` stands in a table at `height`.
    pub(crate) fn index(&self, iova: u64, height: u32) -> u64 {
        (iova >> self.shift(height)) & (self.entries(height) - 1)
    }

    /// Which root serves `iova`.
    pub(crate) fn root_index(&self, iova: u64) -> usize {
        let shift = self.shift(self.top + 1);
        if self.format.is_dart() && shift < 64 { (iova >> shift) as usize } else { 0 }
    }

    /// The bits of `iova` that are indexed, or `None` if it lies outside the input space.
    pub(crate) fn indexed(&self, iova: u64) -> Option<u64> {
        let low = iova & ((1 << self.input_bits) - 1);
        (self.extend(low) == iova).then_some(low)
    }

    /// The address as a device emits it, from its indexed bits.
    pub(crate) fn extend(&self, low: u64) -> u64 {
        let top_bit = 1u64 << (self.input_bits - 1);
        if self.format.sign_extends() && self.is_full() && low & top_bit != 0 {
            low | !((1 << self.input_bits) - 1)
        } else {
            low
        }
    }

    /// How many bytes of the input lie from `low` on, which lies in it.
    pub(crate) fn behind(&self, low: u64) -> u64 {
        (1u64 << self.input_bits).saturating_sub(low)
    }

    /// Whether the input is all that the levels index: only then has it an upper half.
    fn is_full(&self) -> bool {
        self.input_bits == self.shift(self.top + 1)
    }
}

#[cfg(test)]
mod tests {
    use granule::addr::{Iova, PhysAddr};
    use granule::table::{Format, FormatId, FormatVisitor, TableConfig, Walk, walk};

    use super::*;

    #[test]
    fn names_round_trip() {
        for format in SimFormat::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        assert!("dart3".parse::<SimFormat>().unwrap_err().to_string().contains("lpae16k"));
    }

    #[test]
    fn levels_follow_from_input_bits() {
        let levels = |format, bits, roots| Geometry::new(format, bits, roots).unwrap().top + 1;
        assert_eq!(levels(SimFormat::Dart1, 32, 1), 2);
        assert_eq!(levels(SimFormat::Dart1, 38, 4), 2);
        assert_eq!(levels(SimFormat::Dart1, 20, 1), 2);
        assert_eq!(levels(SimFormat::Dart2, 42, 1), 3);
        assert_eq!(levels(SimFormat::Lpae4k, 48, 1), 4);
        assert_eq!(levels(SimFormat::Lpae4k, 39, 1), 3);
        assert_eq!(levels(SimFormat::Lpae4k, 32, 1), 3);
        assert_eq!(levels(SimFormat::Lpae16k, 36, 1), 2);
        assert_eq!(levels(SimFormat::Lpae16k, 48, 1), 4);
        assert_eq!(levels(SimFormat::Lpae64k, 48, 1), 3);
        assert_eq!(levels(SimFormat::Lpae64k, 42, 1), 2);
        assert_eq!(levels(SimFormat::Vtd2, 39, 1), 3);
        assert_eq!(levels(SimFormat::Vtd2, 48, 1), 4);
        assert_eq!(levels(SimFormat::Vtd1, 47, 1), 4);
        assert_eq!(levels(SimFormat::AmdV1, 39, 1), 3);
    }

    /// What the core programs hardware with, and what is walked here, are tables of one shape.
    #[test]
    fn levels_are_those_of_the_core_at_every_width() {
        struct RootLevel(u32);
        impl FormatVisitor for RootLevel {
            type Output = Option<u32>;
            fn visit<F: Format>(self) -> Self::Output {
                let config = TableConfig::new(self.0, F::MAX_OUTPUT_BITS);
                let root = [PhysAddr::new(0x10_0000)];
                match walk::<F>(&config, &root, Iova::new(0), |_| Some(0)).ok()? {
                    Walk::Fault { level, .. } => Some(level),
                    other => panic!("{}, {} bits: {other:?}", F::ID, self.0),
                }
            }
        }
        for id in FormatId::ALL {
            let format = SimFormat::ALL.iter().find(|format| format.name() == id.name()).unwrap();
            // A single page is no input here; more than 36 bits take a DART more roots.
            let end = if format.is_dart() { 37 } else { 64 };
            let widths = format.granule().shift() + 1..end;
            let mut compared = 0;
            for bits in widths {
                let Some(level) = id.visit(RootLevel(bits)) else { continue };
                let here = Geometry::new(*format, bits, 1).map(|geometry| geometry.top);
                assert_eq!(here.ok(), Some(level), "{id}, {bits} bits");
                compared += 1;
            }
            assert!(compared > 0, "{id}");
        }
    }

    #[test]
    fn roots_may_be_short_tables() {
        let geometry = Geometry::new(SimFormat::Lpae16k, 48, 1).unwrap();
        assert_eq!(geometry.entries(3), 2);
        assert_eq!(geometry.entries(2), 2048);
        let dart = Geometry::new(SimFormat::Dart1, 38, 4).unwrap();
        assert_eq!(dart.root_index(3 << 36), 3);
    }

    #[test]
    fn absurd_shapes_are_refused() {
        assert!(Geometry::new(SimFormat::Lpae4k, 64, 1).is_err());
        assert!(Geometry::new(SimFormat::Lpae4k, 0, 1).is_err());
        assert!(Geometry::new(SimFormat::Lpae4k, 48, 2).is_err());
        assert!(Geometry::new(SimFormat::Dart1, 32, 0).is_err());
    }

    #[test]
    fn the_upper_half_of_sv39_is_sign_extended() {
        let geometry = Geometry::new(SimFormat::Sv39, 39, 1).unwrap();
        assert_eq!(geometry.indexed(1 << 38), None);
        assert_eq!(geometry.indexed(0xffff_ffc0_0000_0000), Some(1 << 38));
        assert_eq!(geometry.indexed((1 << 38) - 1), Some((1 << 38) - 1));
    }
}
