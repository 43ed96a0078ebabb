//! What the specification of the device says: virtio 1.2, section 5.13 "IOMMU Device", and the parts
//! of chapters 2 and 6 on features. All fields are little-endian.
//!
//! | request | what the device reads | what it writes |
//! | --- | --- | --- |
//! | ATTACH 1 | head, domain, endpoint, flags, reserved ×4 | tail |
//! | DETACH 2 | head, domain, endpoint, reserved ×8 | tail |
//! | MAP 3 | head, domain, first, last, phys, flags | tail |
//! | UNMAP 4 | head, domain, first, last, reserved ×4 | tail |
//! | PROBE 5 | head, endpoint, reserved ×64 | properties, tail |
//!
//! Head: the type, three zeroes. Tail: the status, three zeroes.
#![forbid(unsafe_code)]

use granule::addr::{Access, Attributes, IovaRange, MemoryKind};

/// The virtio device id of an IOMMU.
pub const DEVICE_TYPE: u16 = 23;

bitflags::bitflags! {
    /// Feature bits that concern this driver (5.13.3 and 6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `input_range` is valid.
        const INPUT_RANGE = 1 << 0;
        /// `domain_range` is valid.
        const DOMAIN_RANGE = 1 << 1;
        /// MAP and UNMAP are there.
        const MAP_UNMAP = 1 << 2;
        /// Endpoints that are attached to no domain are let through (never acknowledged here).
        const BYPASS = 1 << 3;
        /// PROBE is there.
        const PROBE = 1 << 4;
        /// The flag [`MAP_MMIO`] is there.
        const MMIO = 1 << 5;
        /// The field `bypass` and the attach flag for it are there.
        const BYPASS_CONFIG = 1 << 6;
        /// Not a legacy device.
        const VERSION_1 = 1 << 32;
        /// The device's own accesses are subject to the platform's rules.
        const ACCESS_PLATFORM = 1 << 33;
        /// The driver's stores need the platform's barriers.
        const ORDER_PLATFORM = 1 << 36;
    }
}

/// Byte offsets in the device's configuration (5.13.4).
pub mod config {
    /// 64 bits: supported page sizes; the lowest bit set is the granule.
    pub const PAGE_SIZE_MASK: usize = 0;
    /// 64 bits: the first address that is translated.
    pub const INPUT_START: usize = 8;
    /// 64 bits: the last one.
    pub const INPUT_END: usize = 16;
    /// 32 bits: the first domain id.
    pub const DOMAIN_START: usize = 24;
    /// 32 bits: the last one.
    pub const DOMAIN_END: usize = 28;
    /// 32 bits: the size of the properties in bytes.
    pub const PROBE_SIZE: usize = 32;
    /// 8 bits, writable: whether endpoints without a domain are let through.
    pub const BYPASS: usize = 36;
}

/// The largest part of a request that the device reads.
pub const REQUEST_BYTES: usize = 72;
/// The tail of every request.
pub const TAIL_BYTES: usize = 4;
/// One record of the event queue (5.13.6.9).
pub const FAULT_BYTES: usize = 24;

/// MAP flag: the range can be read.
pub const MAP_READ: u32 = 1;
/// MAP flag: the range can be written.
pub const MAP_WRITE: u32 = 2;
/// MAP flag: the range is no memory.
pub const MAP_MMIO: u32 = 4;
const ATTACH_BYPASS: u32 = 1;

/// A request to the device (5.13.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Routes an endpoint through a domain, which comes into being with its first endpoint.
    Attach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// Whether the domain lets everything through.
        bypass: bool,
    },
    /// Takes an endpoint off a domain, which ends with its last endpoint.
    Detach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
    },
    /// Maps a range.
    Map {
        /// The domain.
        domain: u32,
        /// The first address.
        first: u64,
        /// The last address.
        last: u64,
        /// What the first address leads to.
        phys: u64,
        /// [`MAP_READ`] and so on.
        flags: u32,
    },
    /// Unmaps all mappings inside a range.
    Unmap {
        /// The domain.
        domain: u32,
        /// The first address.
        first: u64,
        /// The last address.
        last: u64,
    },
    /// Asks for an endpoint's properties.
    Probe {
        /// The endpoint.
        endpoint: u32,
    },
}

impl Request {
    /// The bytes that the device reads, and how many of them there are.
    pub fn encode(&self) -> ([u8; REQUEST_BYTES], usize) {
        let mut bytes = [0; REQUEST_BYTES];
        let mut put = |at: usize, value: &[u8]| {
            bytes.iter_mut().skip(at).zip(value).for_each(|(to, from)| *to = *from);
        };
        let len = match *self {
            Self::Attach { domain, endpoint, bypass } => {
                let flags = if bypass { ATTACH_BYPASS } else { 0 };
                put(0, &[1]);
                put(4, &domain.to_le_bytes());
                put(8, &endpoint.to_le_bytes());
                put(12, &flags.to_le_bytes());
                20
            }
            Self::Detach { domain, endpoint } => {
                put(0, &[2]);
                put(4, &domain.to_le_bytes());
                put(8, &endpoint.to_le_bytes());
                20
            }
            Self::Map { domain, first, last, phys, flags } => {
                put(0, &[3]);
                put(4, &domain.to_le_bytes());
                put(8, &first.to_le_bytes());
                put(16, &last.to_le_bytes());
                put(24, &phys.to_le_bytes());
                put(32, &flags.to_le_bytes());
                36
            }
            Self::Unmap { domain, first, last } => {
                put(0, &[4]);
                put(4, &domain.to_le_bytes());
                put(8, &first.to_le_bytes());
                put(16, &last.to_le_bytes());
                28
            }
            Self::Probe { endpoint } => {
                put(0, &[5]);
                put(4, &endpoint.to_le_bytes());
                72
            }
        };
        (bytes, len)
    }

    /// The request in words.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Attach { .. } => "to attach an endpoint",
            Self::Detach { .. } => "to detach an endpoint",
            Self::Map { .. } => "to map a range",
            Self::Unmap { .. } => "to unmap a range",
            Self::Probe { .. } => "to tell an endpoint's properties",
        }
    }
}

/// Status: done.
pub const OK: u8 = 0;
/// Status: a parameter is wrong.
pub const INVAL: u8 = 4;
/// Status: there is no such domain or endpoint.
pub const NOENT: u8 = 6;
/// Status: the device has no memory for it.
pub const NOMEM: u8 = 8;

/// The flags of a MAP request; [`MAP_MMIO`] only where the device knows it.
pub fn map_flags(attrs: Attributes, features: Features) -> u32 {
    let mut flags = 0;
    if attrs.access.contains(Access::READ) {
        flags |= MAP_READ;
    }
    if attrs.access.contains(Access::WRITE) {
        flags |= MAP_WRITE;
    }
    if attrs.kind == MemoryKind::Device && features.contains(Features::MMIO) {
        flags |= MAP_MMIO;
    }
    flags
}

/// A range that an endpoint cannot use (property 1, 5.13.6.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The range.
    pub range: IovaRange,
    /// Whether writes to it are interrupts, which pass untranslated.
    pub msi: bool,
}

fn le<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Reads the reserved regions from the properties that PROBE returned; unknown properties are
/// skipped, and what is cut off or inverted is left out.
pub fn reserved_regions(properties: &[u8]) -> impl Iterator<Item = ReservedRegion> + '_ {
    let mut rest = properties;
    core::iter::from_fn(move || {
        loop {
            let kind = u16::from_le_bytes(le(rest, 0)?) & 0xfff;
            let len = usize::from(u16::from_le_bytes(le(rest, 2)?));
            let value = rest.get(4..4 + len)?;
            if kind == 0 {
                return None;
            }
            rest = rest.get(4 + len..)?;
            if kind != 1 {
                continue;
            }
            if let Some(region) = reserved_region(value) {
                return Some(region);
            }
        }
    })
}

fn reserved_region(value: &[u8]) -> Option<ReservedRegion> {
    let msi = *value.first()? == 1;
    let first = u64::from_le_bytes(le(value, 4)?);
    let last = u64::from_le_bytes(le(value, 12)?);
    let range =
        IovaRange::from_inclusive(granule::addr::Iova::new(first), granule::addr::Iova::new(last));
    range.ok().map(|range| ReservedRegion { range, msi })
}

/// A record of the event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// 0 unknown, 1 no domain, 2 no mapping.
    pub reason: u8,
    /// 1 read, 2 write, 4 execute, 0x100 the address is valid.
    pub flags: u32,
    /// The endpoint.
    pub endpoint: u32,
    /// The address, if the flag says so.
    pub address: u64,
}

impl Fault {
    /// Reads a record.
    pub fn decode(bytes: &[u8; FAULT_BYTES]) -> Self {
        let word = |at| le(bytes, at).map_or(0, u32::from_le_bytes);
        Self {
            reason: bytes[0],
            flags: word(4),
            endpoint: word(8),
            address: le(bytes, 16).map_or(0, u64::from_le_bytes),
        }
    }

    /// The address, if the record has one.
    pub fn address(&self) -> Option<u64> {
        (self.flags & 0x100 != 0).then_some(self.address)
    }

    /// What the endpoint wanted.
    pub fn access(&self) -> Access {
        Access::from_bits_truncate((self.flags & 3) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use granule::addr::Iova;
    use std::vec::Vec;

    #[test]
    fn requests_are_the_specifications() {
        let bytes = |request: Request| {
            let (bytes, len) = request.encode();
            bytes[..len].to_vec()
        };
        let attach = bytes(Request::Attach { domain: 0x0102, endpoint: 0x0304, bypass: true });
        assert_eq!(attach, [1, 0, 0, 0, 2, 1, 0, 0, 4, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let detach = bytes(Request::Detach { domain: 5, endpoint: 6 });
        assert_eq!(detach, [2, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let map = bytes(Request::Map {
            domain: 7,
            first: 0x1_0000_4000,
            last: 0x1_0000_7fff,
            phys: 0x2_0000_8000,
            flags: MAP_READ | MAP_WRITE,
        });
        assert_eq!(map.len(), 36);
        assert_eq!(map[8..16], 0x1_0000_4000u64.to_le_bytes());
        assert_eq!(map[16..24], 0x1_0000_7fffu64.to_le_bytes());
        assert_eq!(map[24..32], 0x2_0000_8000u64.to_le_bytes());
        assert_eq!(map[32..], [3, 0, 0, 0]);
        let unmap = bytes(Request::Unmap { domain: 7, first: 0, last: u64::MAX });
        assert_eq!(unmap[..4], [4, 0, 0, 0]);
        assert_eq!(
            (unmap.len(), &unmap[16..]),
            (28, &[255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0][..])
        );
        assert_eq!(bytes(Request::Probe { endpoint: 9 }).len(), 72);
    }

    fn property(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn region(subtype: u8, first: u64, last: u64) -> Vec<u8> {
        let mut value = std::vec![subtype, 0, 0, 0];
        value.extend(first.to_le_bytes());
        value.extend(last.to_le_bytes());
        value
    }

    #[test]
    fn properties_are_read_and_unknown_ones_skipped() {
        let mut bytes = property(7, &[1, 2, 3]);
        bytes.extend(property(1, &region(1, 0xfee0_0000, 0xfeef_ffff)));
        bytes.extend(property(1, &region(0, 9, 3)));
        bytes.extend(property(1, &region(0, 0x1000, 0x1fff)));
        bytes.extend([0; 16]);
        let found: Vec<_> = reserved_regions(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].msi && !found[1].msi);
        assert_eq!(found[0].range.start(), Iova::new(0xfee0_0000));
        assert_eq!(found[0].range.len(), 0x10_0000);
    }

    proptest::proptest! {
        #[test]
        fn any_properties_are_read_to_an_end(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = reserved_regions(&bytes).count();
        }
    }
}
