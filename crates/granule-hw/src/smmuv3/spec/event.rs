//! Event records (IHI 0070, 7.3 "Event records"): 32 bytes each.
#![forbid(unsafe_code)]

use granule::addr::Access;

use crate::FaultReason;

/// An event record, as far as it is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event number.
    pub number: u8,
    /// The StreamID.
    pub stream: u32,
    /// `InputAddr`, where the event has one.
    pub address: Option<u64>,
    /// What the device wanted, where the event says.
    pub access: Access,
    /// `STAG`: the transaction stalls and waits for a command with this tag.
    pub stalled: Option<u16>,
}

/// 7.3: `F_TRANSLATION`.
pub const F_TRANSLATION: u8 = 0x10;
/// 7.3: `F_PERMISSION`.
pub const F_PERMISSION: u8 = 0x13;

impl Event {
    /// Decodes a record. Any four words are some event.
    pub fn decode(words: [u64; 4]) -> Self {
        let number = words[0] as u8;
        // The events of a translation have the address and its direction in the same places.
        let of_translation = matches!(number, 0x0b | 0x10..=0x13);
        let has_address = of_translation || matches!(number, 0x01 | 0x05 | 0x20);
        let wanted = if words[1] >> 35 & 1 == 1 { Access::READ } else { Access::WRITE };
        let stalls = of_translation && words[1] >> 31 & 1 == 1;
        Self {
            number,
            stream: (words[0] >> 32) as u32,
            address: has_address.then_some(words[2]),
            access: if of_translation { wanted } else { Access::empty() },
            stalled: stalls.then_some(words[1] as u16),
        }
    }

    /// The reason in words that all IOMMUs share.
    pub const fn reason(&self) -> FaultReason {
        match self.number {
            // C_BAD_STREAMID, C_BAD_STE, F_STREAM_DISABLED.
            0x02 | 0x04 | 0x06 => FaultReason::NotAttached,
            // F_STE_FETCH, F_CD_FETCH, C_BAD_CD, F_WALK_EABT, F_TLB_CONFLICT, F_CFG_CONFLICT.
            0x03 | 0x09 | 0x0a | 0x0b | 0x20 | 0x21 => FaultReason::BadTable,
            F_TRANSLATION => FaultReason::NotMapped,
            // F_ADDR_SIZE.
            0x11 => FaultReason::AddressSize,
            // F_ACCESS: the access flag, which our entries always carry.
            0x12 => FaultReason::BadTable,
            F_PERMISSION => FaultReason::Permission,
            _ => FaultReason::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translation_faults_7_3() {
        let read = Event::decode([0x10 | 8 << 32, 1 << 35, 0xdead_b000, 0]);
        let expected = Event {
            number: F_TRANSLATION,
            stream: 8,
            address: Some(0xdead_b000),
            access: Access::READ,
            stalled: None,
        };
        assert_eq!((read, read.reason()), (expected, FaultReason::NotMapped));
        let stalled = Event::decode([0x13 | 9 << 32, 1 << 31 | 0x1234, 0x1000, 0]);
        assert_eq!((stalled.access, stalled.stalled), (Access::WRITE, Some(0x1234)));
        assert_eq!(stalled.reason(), FaultReason::Permission);
    }

    #[test]
    fn configuration_faults_7_3() {
        let bad = Event::decode([0x02 | 0xffff << 32, u64::MAX, u64::MAX, 0]);
        assert_eq!((bad.stream, bad.address, bad.stalled), (0xffff, None, None));
        assert_eq!(bad.reason(), FaultReason::NotAttached);
        assert_eq!(Event::decode([0x0a, 0, 0, 0]).reason(), FaultReason::BadTable);
        assert_eq!(Event::decode([0xee, 0, 0, 0]).reason(), FaultReason::Other);
    }
}
