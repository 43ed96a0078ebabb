//! Fault records (RISC-V IOMMU 1.0, "Fault/Event-Queue"): 32 bytes each.
#![forbid(unsafe_code)]

use granule::addr::Access;

use crate::FaultReason;

/// A fault record, as far as it is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `CAUSE`.
    pub cause: u16,
    /// `DID`, where a transaction is the reason.
    pub device: Option<u32>,
    /// `iotval`, where a transaction is the reason.
    pub address: Option<u64>,
    /// By `TTYP`.
    pub access: Access,
}

impl Fault {
    /// Decodes a record. Any four words are some fault.
    pub fn decode(words: [u64; 4]) -> Self {
        let kind = words[0] >> 34 & 0x3f;
        let access = match kind {
            // Untranslated and translated reads, for execution or not; an ATS request.
            1 | 2 | 5 | 6 | 8 => Access::READ,
            3 | 7 => Access::WRITE,
            _ => Access::empty(),
        };
        let by_device = kind != 0;
        Self {
            cause: (words[0] & 0xfff) as u16,
            device: by_device.then_some((words[0] >> 40) as u32),
            address: by_device.then_some(words[2]),
            access,
        }
    }

    /// The reason in words that all IOMMUs share. A page fault does not tell what is not mapped from
    /// what is not allowed: both are `NotMapped`.
    pub const fn reason(&self) -> FaultReason {
        match self.cause {
            // Instruction, read and write page faults; guest page faults.
            12 | 13 | 15 | 20 | 21 | 23 => FaultReason::NotMapped,
            // All disallowed; context not valid; type of transaction disallowed (also: the device id
            // is wider than the directory).
            256 | 258 | 260 => FaultReason::NotAttached,
            // Access faults of a context or its tables, misconfigured contexts, corrupted data.
            1 | 5 | 7 | 257 | 259 | 261..=270 | 272..=274 => FaultReason::BadTable,
            _ => FaultReason::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let write = Fault::decode([15 | 3 << 34 | 0x108 << 40, 0, 0x4_2000, 0]);
        let expected = Fault {
            cause: 15,
            device: Some(0x108),
            address: Some(0x4_2000),
            access: Access::WRITE,
        };
        assert_eq!((write, write.reason()), (expected, FaultReason::NotMapped));
        let read = Fault::decode([258 | 2 << 34, 0, 0, 0]);
        assert_eq!((read.access, read.reason()), (Access::READ, FaultReason::NotAttached));
        let internal = Fault::decode([274, 0, 5, 0]);
        assert_eq!((internal.device, internal.address), (None, None));
        assert_eq!(internal.reason(), FaultReason::BadTable);
    }
}
