//! IVRS: the AMD IOMMUs of a machine, who is behind them, and the memory that firmware's devices use.
//!
//! Source: AMD I/O Virtualization Technology (IOMMU) Specification, 48882, chapter 5 "I/O
//! Virtualization ACPI Table".
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use granule::addr::{Access, PhysAddr, PhysRange};

use super::table::{Bytes, check};
use super::{AcpiError, ReservedMemory};

/// Functions behind a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Functions {
    /// The first requester id.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// What their requests carry instead of their own id (legacy bridges).
    pub alias: Option<u16>,
    /// Interrupts that pass, and system management messages: bits 7:0 of the settings.
    pub settings: u8,
}

/// One unit (5.2.2, IVHD).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ivhd {
    /// The PCI segment.
    pub segment: u16,
    /// The unit's own requester id.
    pub function: u16,
    /// Where its registers lie.
    pub registers: PhysAddr,
    /// HtTunEn, PassPW, ResPassPW, Isoc and so on: how the control register is to be set.
    pub flags: u8,
    /// The extended feature register as firmware knows it, in newer blocks.
    pub features: Option<u64>,
    /// Who is behind it.
    pub functions: Vec<Functions>,
    kind: u8,
}

impl Ivhd {
    /// The requester id that a function's requests carry, if it is behind this unit.
    pub fn stream_of(&self, function: u16) -> Option<u16> {
        let inside = |range: &&Functions| (range.first..=range.last).contains(&function);
        // The narrowest block speaks: "all" is often the first of several.
        let found =
            self.functions.iter().filter(inside).min_by_key(|range| range.last - range.first);
        found.map(|range| range.alias.unwrap_or(function))
    }
}

/// Memory that firmware lets functions use (5.2.3, IVMD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ivmd {
    /// The first requester id.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// The memory.
    pub memory: ReservedMemory,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ivrs {
    /// The width of physical addresses in bits; 0 if firmware does not say.
    pub physical_bits: u32,
    /// The width of IOVAs in bits; 0 if firmware does not say.
    pub virtual_bits: u32,
    /// Whether 0xfd_0000_0000 to 0xff_ffff_ffff is not translated (HyperTransport's own).
    pub ht_reserved: bool,
    /// The units, all of them to be driven.
    pub units: Vec<Ivhd>,
    /// Reserved memory.
    pub reserved: Vec<Ivmd>,
}

impl Ivrs {
    /// Reads the table. Where firmware describes a unit several times, in older and newer words, the
    /// newest counts.
    ///
    /// # Errors
    /// [`AcpiError`] if it is no IVRS, or is broken as a whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let table = check(bytes, *b"IVRS")?;
        let info = table.u32(36).unwrap_or(0);
        let mut ivrs = Self {
            physical_bits: info >> 8 & 0x7f,
            virtual_bits: info >> 15 & 0x7f,
            ht_reserved: info >> 22 & 1 != 0,
            units: Vec::new(),
            reserved: Vec::new(),
        };
        for block in table.structures(48, 4, |bytes| bytes.u16(2).map(usize::from)) {
            match block.u8(0) {
                Some(kind @ (0x10 | 0x11 | 0x40)) => {
                    ivhd(block, kind).into_iter().for_each(|unit| ivrs.keep(unit));
                }
                Some(0x20..=0x22) => ivrs.reserved.extend(ivmd(block)),
                _ => {}
            }
        }
        Ok(ivrs)
    }

    fn keep(&mut self, unit: Ivhd) {
        let same = |known: &&mut Ivhd| known.registers == unit.registers;
        match self.units.iter_mut().find(same) {
            Some(known) if known.kind < unit.kind => *known = unit,
            Some(_) => {}
            None => self.units.push(unit),
        }
    }

    /// The memory that a function uses.
    pub fn reserved_for(&self, function: u16) -> Vec<ReservedMemory> {
        let inside = |region: &&Ivmd| (region.first..=region.last).contains(&function);
        self.reserved.iter().filter(inside).map(|region| region.memory).collect()
    }
}

fn ivhd(block: Bytes<'_>, kind: u8) -> Option<Ivhd> {
    let (entries, features) = match kind {
        0x10 => (24, None),
        _ => (40, Some(block.u64(24)?)),
    };
    Some(Ivhd {
        segment: block.u16(16)?,
        function: block.u16(4)?,
        registers: PhysAddr::new(block.u64(8)?),
        flags: block.u8(1)?,
        features,
        functions: functions(block, entries),
        kind,
    })
}

/// The size of a device entry follows from its type (5.2.2.4).
fn entry_len(entry: Bytes<'_>) -> Option<usize> {
    match entry.u8(0)? {
        0xf0 => Some(22 + usize::from(entry.u8(21)?)),
        kind @ 0..=0xbf => Some(4 << (kind >> 6)),
        _ => None,
    }
}

fn functions(block: Bytes<'_>, at: usize) -> Vec<Functions> {
    let mut found = Vec::new();
    let mut open: Option<Functions> = None;
    for entry in block.structures(at, 4, entry_len) {
        let (Some(kind), Some(id), Some(settings)) = (entry.u8(0), entry.u16(1), entry.u8(3))
        else {
            continue;
        };
        // Special devices and aliases have the id that counts in bytes 5 and 6.
        let second = entry.u16(5);
        let one = |first, alias| Functions { first, last: first, alias, settings };
        match kind {
            0x01 => found.push(Functions { first: 0, last: u16::MAX, alias: None, settings }),
            0x02 | 0x46 | 0xf0 => found.push(one(id, None)),
            0x42 => found.push(one(id, second)),
            0x48 => found.extend(second.map(|id| one(id, None))),
            0x03 | 0x47 => open = Some(one(id, None)),
            0x43 => open = Some(one(id, second)),
            0x04 => {
                let range = open.take().filter(|range| range.first <= id);
                found.extend(range.map(|range| Functions { last: id, ..range }));
            }
            _ => {}
        }
    }
    found
}

fn ivmd(block: Bytes<'_>) -> Option<Ivmd> {
    let (flags, id) = (block.u8(1)?, block.u16(4)?);
    let (first, last) = match block.u8(0)? {
        0x20 => (0, u16::MAX),
        0x21 => (id, id),
        _ => (id, block.u16(6)?),
    };
    let range = PhysRange::new(PhysAddr::new(block.u64(16)?), block.u64(24)?).ok()?;
    // An excluded range (bit 3) is accessed untranslated; a mapping with all rights does the same.
    let access = if flags & 8 != 0 { Access::all() } else { access(flags) };
    let memory = ReservedMemory { range, access };
    // A range of a device that neither reads nor writes it reserves nothing.
    (first <= last && !access.is_empty()).then_some(Ivmd { first, last, memory })
}

fn access(flags: u8) -> Access {
    let mut access = Access::empty();
    access.set(Access::READ, flags & 2 != 0);
    access.set(Access::WRITE, flags & 4 != 0);
    access
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::table::testing::{join, table};
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let base = 0xfed8_0000u64.to_le_bytes();
        let efr = 0x29d3u64.to_le_bytes();
        let (start, len) = (0x7000_0000u64.to_le_bytes(), 0x1_0000u64.to_le_bytes());
        table(
            *b"IVRS",
            &join(&[
                &[0x00, 0x28, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[0x10, 0x31, 28, 0, 0x10, 0, 0x40, 0],
                &base,
                &[0, 0, 0, 0, 0, 0, 0, 0],
                &[1, 0, 0, 0],
                // The same unit again, in newer words.
                &[0x11, 0x31, 72, 0, 0x10, 0, 0x40, 0],
                &base,
                &[0, 0, 0, 0, 0, 0, 0, 0],
                &efr,
                &[0; 8],
                &[2, 8, 0, 0],
                &[3, 0, 1, 0xd7],
                &[4, 0xff, 1, 0],
                &[0x42, 0x00, 0x02, 0, 0, 0x08, 0x01, 0],
                // The I/O APIC at 00:14.0.
                &[0x48, 0, 0, 0xd7, 0, 0xa0, 0, 1],
                &[0, 0, 0, 0],
                &[0x22, 7, 32, 0, 0x00, 0x01, 0x0f, 0x01, 0, 0, 0, 0, 0, 0, 0, 0],
                &start,
                &len,
            ]),
        )
    }

    #[test]
    fn units_functions_and_memory_are_read() {
        let ivrs = Ivrs::parse(&sample()).expect("a table");
        assert_eq!((ivrs.physical_bits, ivrs.virtual_bits, ivrs.ht_reserved), (40, 64, true));
        let [unit] = &ivrs.units[..] else { panic!("one unit, said twice: {:?}", ivrs.units) };
        assert_eq!((unit.registers.raw(), unit.function, unit.flags), (0xfed8_0000, 0x10, 0x31));
        assert_eq!(unit.features, Some(0x29d3));
        assert_eq!(unit.stream_of(8), Some(8));
        assert_eq!(unit.stream_of(0x150), Some(0x150));
        assert_eq!(unit.stream_of(0x200), Some(0x108), "an alias");
        assert_eq!(unit.stream_of(0xa0), Some(0xa0));
        assert_eq!(unit.stream_of(9), None);
        let found = ivrs.reserved_for(0x10f);
        assert_eq!((found[0].range.len(), found[0].access), (0x1_0000, Access::all()));
        assert_eq!(ivrs.reserved_for(0x110), []);
    }

    proptest! {
        #[test]
        fn anything_is_read_to_an_end(body in proptest::collection::vec(any::<u8>(), 0..300), function: u16) {
            if let Ok(ivrs) = Ivrs::parse(&table(*b"IVRS", &body)) {
                let _ = ivrs.units.iter().filter_map(|unit| unit.stream_of(function)).count();
                let _ = ivrs.reserved_for(function);
            }
        }

        #[test]
        fn a_damaged_table_is_read_to_an_end(at in 36usize..180, value: u8, function: u16) {
            let mut bytes = sample();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let ivrs = Ivrs::parse(&table(*b"IVRS", &bytes[36..])).expect("the header is whole");
            let _ = ivrs.units.iter().filter_map(|unit| unit.stream_of(function)).count();
        }
    }
}
