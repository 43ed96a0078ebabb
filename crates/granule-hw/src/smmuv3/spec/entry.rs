//! Stream table entries and context descriptors (IHI 0070, chapter 5 "Data structure formats").
//!
//! Values that can only hold what this driver writes; `words` gives the bytes that the unit reads, as
//! little-endian 64-bit words.
#![forbid(unsafe_code)]

use granule::table::MAIR;

use super::register::ips;

/// Words of a stream table entry and of a context descriptor.
pub const WORDS: usize = 8;

/// A stream table entry, 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEntry {
    /// `Config` 0b000: every transaction is aborted, and none is recorded.
    Abort,
    /// `Config` 0b100: transactions pass untranslated.
    Bypass,
    /// `Config` 0b101: stage 1.
    Stage1 {
        /// `S1ContextPtr`: the one context descriptor, aligned to 64 bytes.
        context: u64,
        /// Whether the unit reads it through the caches (`S1CIR`, `S1COR`, `S1CSH`).
        coherent: bool,
        /// `S1STALLD`: faults terminate, whatever the context asks for. Only where the unit leaves
        /// a choice, else the bit is reserved.
        never_stalls: bool,
    },
}

const VALID: u64 = 1;
const ADDRESS: u64 = 0xf_ffff_ffff_ffc0;
/// Word 1, `SHCFG` 0b01: shareability as the transaction came.
const SHAREABILITY_AS_IS: u64 = 0b01 << 44;

impl StreamEntry {
    /// The words. All that makes the entry take effect is in word 0.
    pub const fn words(&self) -> [u64; WORDS] {
        let (first, second) = match *self {
            Self::Abort => (VALID, 0),
            Self::Bypass => (VALID | 0b100 << 1, SHAREABILITY_AS_IS),
            Self::Stage1 { context, coherent, never_stalls } => {
                // S1CIR and S1COR 0b01: write-back; S1CSH 0b11 inner, 0b10 outer shareable.
                let walk = if coherent { 0b11_01_01 << 2 } else { 0b10_00_00 << 2 };
                let stalls = if never_stalls { 1 << 27 } else { 0 };
                // S1Fmt 0 and S1CDMax 0: one descriptor. STRW 0: an EL1 context.
                (VALID | 0b101 << 1 | context & ADDRESS, walk | stalls)
            }
        };
        [first, second, 0, 0, 0, 0, 0, 0]
    }
}

/// A level 1 stream table descriptor, 5.1: a table of `1 << split` entries, or none.
pub const fn level1(table: u64, split: u32) -> u64 {
    table & ADDRESS | (split + 1) as u64
}

/// A context descriptor for one table of ours, 5.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// `TTB0`.
    pub root: u64,
    /// `64 - T0SZ`.
    pub input_bits: u32,
    /// `IPS`, in bits.
    pub output_bits: u32,
    /// `TG0`, as the logarithm of the granule: 12, 14 or 16.
    pub granule_shift: u32,
    /// `ASID`.
    pub asid: u16,
    /// Whether tables are walked through the caches (`IR0`, `OR0`, `SH0`).
    pub coherent: bool,
    /// `S`: faults stall; for units that can do nothing else.
    pub stalls: bool,
}

impl Context {
    /// The words.
    pub fn words(&self) -> [u64; WORDS] {
        let size = u64::from(64u32.saturating_sub(self.input_bits)) & 0x3f;
        let granule: u64 = match self.granule_shift {
            14 => 0b10,
            16 => 0b01,
            _ => 0b00,
        };
        let walk: u64 = if self.coherent { 0b11_01_01 } else { 0b10_00_00 };
        // EPD1: the upper half is unused; AA64; R: faults are recorded; A: and aborted; ASET: the
        // ASID is not one of a CPU's.
        let fixed = 1 << 30 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47;
        let first = size
            | granule << 6
            | walk << 8
            | 1 << 31
            | ips(self.output_bits.min(48)) << 32
            | u64::from(self.stalls) << 44
            | fixed
            | u64::from(self.asid) << 48;
        [first, self.root & 0xf_ffff_ffff_fff0, 0, MAIR, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_entries_5_2() {
        assert_eq!(StreamEntry::Abort.words(), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(StreamEntry::Bypass.words()[..2], [0b1001, 1 << 44]);
        let entry =
            StreamEntry::Stage1 { context: 0x8_1234_5640, coherent: true, never_stalls: true };
        let words = entry.words();
        assert_eq!(words[0], 0x8_1234_5640 | 0b1011);
        assert_eq!((words[1] >> 2) & 3, 1, "S1CIR");
        assert_eq!((words[1] >> 4) & 3, 1, "S1COR");
        assert_eq!((words[1] >> 6) & 3, 3, "S1CSH");
        assert_eq!((words[1] >> 27) & 1, 1, "S1STALLD");
        assert_eq!(words[2..], [0; 6]);
        assert_eq!(level1(0x4000, 8), 0x4009);
    }

    #[test]
    fn context_descriptors_5_4() {
        let context = Context {
            root: 0x4_5678_9000,
            input_bits: 48,
            output_bits: 44,
            granule_shift: 14,
            asid: 0xabcd,
            coherent: true,
            stalls: false,
        };
        let [first, root, upper, mair, rest @ ..] = context.words();
        assert_eq!(first & 0x3f, 16, "T0SZ");
        assert_eq!((first >> 6) & 3, 2, "TG0");
        assert_eq!((first >> 8) & 0x3f, 0b11_01_01, "SH0, OR0, IR0");
        assert_eq!((first >> 14) & 3, 0, "EPD0, ENDI");
        assert_eq!((first >> 30) & 3, 3, "V, EPD1");
        assert_eq!((first >> 32) & 7, 4, "IPS");
        assert_eq!((first >> 41) & 0x7f, 0b111_0001, "ASET, A, R, S, HA, HD, AA64");
        assert_eq!(first >> 48, 0xabcd, "ASID");
        assert_eq!((root, upper, mair), (0x4_5678_9000, 0, 0x4_ff44));
        assert_eq!(rest, [0; 4]);
        let other = Context { granule_shift: 16, coherent: false, ..context }.words()[0];
        assert_eq!((other >> 6) & 0xff, 0b10_00_00_01, "SH0, OR0, IR0, TG0");
    }
}
