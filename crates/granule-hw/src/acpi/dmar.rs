//! DMAR: the VT-d units of a machine, and the memory that firmware's devices use.
//!
//! Source: Intel Virtualization Technology for Directed I/O, revision 4.1, chapter 8 "BIOS
//! Considerations".
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use granule::addr::{Access, PhysAddr, PhysRange};

use super::table::{Bytes, check};
use super::{AcpiError, ReservedMemory};

/// What kind of device a scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeKind {
    /// A PCI function.
    Endpoint,
    /// A PCI bridge, and everything below it.
    Bridge,
    /// An I/O APIC.
    IoApic,
    /// A high-precision timer.
    Hpet,
    /// A device that ACPI's namespace lists.
    Namespace,
    /// Something newer.
    Other(u8),
}

/// A device, by its path from a bus that firmware numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceScope {
    /// What it is.
    pub kind: ScopeKind,
    /// The bus that the path starts at.
    pub start_bus: u8,
    /// Device and function on each bus of the way; all but the last are bridges.
    pub path: Vec<(u8, u8)>,
}

impl DeviceScope {
    /// The requester id, asking `secondary_bus` for the bus below the bridge with this requester id
    /// (its register 0x19) at each step. `None` if the path is empty or a bridge is not there.
    pub fn requester_id(&self, mut secondary_bus: impl FnMut(u16) -> Option<u8>) -> Option<u16> {
        let mut bus = self.start_bus;
        let (last, bridges) = self.path.split_last()?;
        for step in bridges {
            bus = secondary_bus(requester(bus, *step))?;
        }
        Some(requester(bus, *last))
    }
}

fn requester(bus: u8, (device, function): (u8, u8)) -> u16 {
    u16::from(bus) << 8 | u16::from(device & 0x1f) << 3 | u16::from(function & 7)
}

/// One VT-d unit (8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drhd {
    /// The PCI segment.
    pub segment: u16,
    /// Where its registers lie.
    pub registers: PhysAddr,
    /// The size of the register block in bytes, as the table says it: 4 KiB or more.
    pub size: u64,
    /// Whether it serves all devices of the segment that no other unit names.
    pub include_all: bool,
    /// The devices that it serves.
    pub devices: Vec<DeviceScope>,
}

/// Memory that firmware lets devices use (8.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rmrr {
    /// The PCI segment.
    pub segment: u16,
    /// The memory.
    pub range: PhysRange,
    /// The devices.
    pub devices: Vec<DeviceScope>,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dmar {
    /// The width of physical addresses in bits.
    pub host_address_bits: u32,
    /// The units, all of them to be driven.
    pub units: Vec<Drhd>,
    /// Reserved memory.
    pub reserved: Vec<Rmrr>,
}

impl Dmar {
    /// Reads the table.
    ///
    /// # Errors
    /// [`AcpiError`] if it is no DMAR, or is broken as a whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let table = check(bytes, *b"DMAR")?;
        let host_address_bits = u32::from(table.u8(36).unwrap_or(0)) + 1;
        let mut dmar = Self { host_address_bits, units: Vec::new(), reserved: Vec::new() };
        for structure in table.structures(48, 4, |bytes| bytes.u16(2).map(usize::from)) {
            match structure.u16(0) {
                Some(0) => dmar.units.extend(drhd(structure)),
                Some(1) => dmar.reserved.extend(rmrr(structure)),
                _ => {}
            }
        }
        Ok(dmar)
    }

    /// The memory that a function of a segment uses; see
    /// [`DeviceScope::requester_id`] for `secondary_bus`.
    pub fn reserved_for(
        &self,
        segment: u16,
        requester_id: u16,
        mut secondary_bus: impl FnMut(u16) -> Option<u8>,
    ) -> Vec<ReservedMemory> {
        let mut is_it =
            |scope: &DeviceScope| scope.requester_id(&mut secondary_bus) == Some(requester_id);
        let regions = self.reserved.iter().filter(|region| region.segment == segment);
        regions
            .filter(|region| region.devices.iter().any(&mut is_it))
            .map(|region| ReservedMemory { range: region.range, access: Access::all() })
            .collect()
    }
}

fn drhd(bytes: Bytes<'_>) -> Option<Drhd> {
    let pages = u32::from(bytes.u8(5)? & 0xf);
    Some(Drhd {
        include_all: bytes.u8(4)? & 1 != 0,
        size: 4096 << pages,
        segment: bytes.u16(6)?,
        registers: PhysAddr::new(bytes.u64(8)?),
        devices: scopes(bytes, 16),
    })
}

fn rmrr(bytes: Bytes<'_>) -> Option<Rmrr> {
    let (first, last) = (PhysAddr::new(bytes.u64(8)?), PhysAddr::new(bytes.u64(16)?));
    Some(Rmrr {
        segment: bytes.u16(6)?,
        range: PhysRange::from_inclusive(first, last).ok()?,
        devices: scopes(bytes, 24),
    })
}

fn scopes(bytes: Bytes<'_>, at: usize) -> Vec<DeviceScope> {
    let scopes = bytes.structures(at, 6, |bytes| bytes.u8(1).map(usize::from));
    scopes.filter_map(scope).collect()
}

fn scope(bytes: Bytes<'_>) -> Option<DeviceScope> {
    let kind = match bytes.u8(0)? {
        1 => ScopeKind::Endpoint,
        2 => ScopeKind::Bridge,
        3 => ScopeKind::IoApic,
        4 => ScopeKind::Hpet,
        5 => ScopeKind::Namespace,
        other => ScopeKind::Other(other),
    };
    let path = bytes.from(6)?.0.chunks_exact(2).map(|step| (step[0], step[1])).collect();
    Some(DeviceScope { kind, start_bus: bytes.u8(5)?, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::table::testing::{join, table};
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let head: &[u8] = &[38, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let base = 0xfed9_0000u64.to_le_bytes();
        let other = 0x1_fed9_1000u64.to_le_bytes();
        let (first, last) = (0x7b80_0000u64.to_le_bytes(), 0x7fff_ffffu64.to_le_bytes());
        table(
            *b"DMAR",
            &join(&[
                head,
                &[0, 0, 24, 0, 0, 0, 0, 0],
                &base,
                &[1, 8, 0, 0, 0, 0, 2, 0],
                // A structure of another kind.
                &[4, 0, 6, 0, 1, 2],
                &[0, 0, 16, 0, 1, 1, 3, 0],
                &other,
                &[1, 0, 34, 0, 0, 0, 0, 0],
                &first,
                &last,
                // Behind the bridge 00:1c.4, function 1 of device 3.
                &[1, 10, 0, 0, 0, 0, 0x1c, 4, 3, 1],
            ]),
        )
    }

    #[test]
    fn all_units_and_regions_are_read() {
        let dmar = Dmar::parse(&sample()).expect("a table");
        assert_eq!((dmar.host_address_bits, dmar.units.len()), (39, 2));
        let [graphics, rest] = &dmar.units[..] else { panic!("two") };
        assert_eq!(graphics.registers, PhysAddr::new(0xfed9_0000));
        assert!(!graphics.include_all);
        assert_eq!(graphics.devices[0].requester_id(|_| None), Some(0x10));
        assert!(rest.include_all);
        assert_eq!((rest.segment, rest.size, rest.registers.raw()), (3, 8192, 0x1_fed9_1000));
        let bridge = |bridge| (bridge == 0x00e4).then_some(5);
        let found = dmar.reserved_for(0, 0x0519, bridge);
        assert_eq!(found[0].range.len(), 0x480_0000);
        assert_eq!(dmar.reserved_for(0, 0x0518, bridge), []);
        assert_eq!(dmar.reserved_for(1, 0x0519, bridge), []);
        assert_eq!(dmar.reserved_for(0, 0x0519, |_| None), []);
    }

    proptest! {
        #[test]
        fn anything_is_read_to_an_end(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Dmar::parse(&body);
            let _ = Dmar::parse(&table(*b"DMAR", &body));
        }

        #[test]
        fn a_cut_or_damaged_table_is_read_to_an_end(at in 36usize..150, value: u8) {
            let mut bytes = sample();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = Dmar::parse(&table(*b"DMAR", &bytes[36..at.clamp(36, bytes.len())]));
            let _ = Dmar::parse(&table(*b"DMAR", &bytes[36..]));
        }
    }
}
