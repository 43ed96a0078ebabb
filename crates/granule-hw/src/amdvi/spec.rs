//! What the specification says: AMD I/O Virtualization Technology (IOMMU) Specification, 48882: 2.2.2
//! (device table), 2.4 (commands), 2.5 (events), 3.4 (registers).
//!
//! Device table entry, 32 bytes a function; requests of a function whose entry has V clear pass
//! untranslated, so every entry has it set:
//!
//! | bits | what |
//! | --- | --- |
//! | 0, 1 | V, TV: the entry, and its translation fields, are valid |
//! | 11:9 | levels of the table; 0: no translation, only the rights below |
//! | 51:12 | page table root |
//! | 61, 62 | IR, IW: what may be read and written at all |
//! | 79:64 | domain id |
#![forbid(unsafe_code)]

use granule::addr::Access;

use crate::FaultReason;

/// Register offsets (3.4), 64 bits each.
pub mod reg {
    /// Device table base and size.
    pub const DEVICE_TABLE: usize = 0x00;
    /// Command buffer base and length.
    pub const COMMAND_BASE: usize = 0x08;
    /// Event log base and length.
    pub const EVENT_BASE: usize = 0x10;
    /// Control.
    pub const CONTROL: usize = 0x18;
    /// Extended features.
    pub const FEATURES: usize = 0x30;
    /// Where the unit reads commands.
    pub const COMMAND_HEAD: usize = 0x2000;
    /// Where the driver writes commands.
    pub const COMMAND_TAIL: usize = 0x2008;
    /// Where the driver reads events.
    pub const EVENT_HEAD: usize = 0x2010;
    /// Where the unit writes events.
    pub const EVENT_TAIL: usize = 0x2018;
    /// Status.
    pub const STATUS: usize = 0x2020;
    /// The registers end here.
    pub const END: usize = 0x2028;
}

/// Bits of the control register (3.4.1, offset 18h).
pub mod control {
    /// Translation is on.
    pub const ENABLE: u64 = 1 << 0;
    /// Events are logged.
    pub const EVENT_LOG: u64 = 1 << 2;
    /// The unit's own reads snoop the CPU's caches.
    pub const COHERENT: u64 = 1 << 10;
    /// Commands are read.
    pub const COMMANDS: u64 = 1 << 12;
    /// The bits that the flags of IVHD set: HtTunEn 0, PassPW 1, ResPassPW 2, Isoc 3.
    pub const fn from_ivhd(flags: u8) -> u64 {
        let flags = flags as u64;
        (flags & 1) << 1 | (flags >> 1 & 1) << 8 | (flags >> 2 & 1) << 9 | (flags >> 3 & 1) << 11
    }
}

/// Bits of the status register.
pub mod status {
    /// Events were lost, and the log stands still.
    pub const EVENT_OVERFLOW: u64 = 1 << 0;
    /// The event log is running.
    pub const EVENT_RUNNING: u64 = 1 << 3;
    /// Commands are being read.
    pub const COMMANDS_RUNNING: u64 = 1 << 4;
}

/// Both rings have 256 entries of 16 bytes: length 8 in bits 59:56 of their base registers.
pub const RING_LENGTH: u64 = 8 << 56;
/// The entries of a ring.
pub const RING_ENTRIES: usize = 256;
/// The size of a ring's entry in bytes.
pub const RING_ENTRY: usize = 16;

/// The extended feature register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// IASup: one command drops everything.
    pub const fn invalidate_all(self) -> bool {
        self.0 >> 6 & 1 != 0
    }

    /// HATS: the most levels of tables.
    pub const fn levels(self) -> u32 {
        match self.0 >> 10 & 3 {
            0 => 4,
            1 => 5,
            _ => 6,
        }
    }
}

/// The size of a device table entry in bytes.
pub const DEVICE_ENTRY: usize = 32;
/// A device table for all functions of a segment, in bytes.
pub const DEVICE_TABLE_BYTES: usize = 65536 * DEVICE_ENTRY;

/// What a device table entry makes of a function's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEntry {
    /// They are refused.
    Blocked,
    /// They pass untranslated.
    PassThrough,
    /// They are translated.
    Translated {
        /// The table's root.
        root: u64,
        /// Its levels.
        levels: u32,
        /// The domain id.
        domain: u16,
    },
}

const VALID: u64 = 0b11;
const READ_WRITE: u64 = 3 << 61;

impl DeviceEntry {
    /// The first 8 bytes, which decide.
    pub const fn low(&self) -> u64 {
        match *self {
            Self::Blocked => VALID,
            Self::PassThrough => VALID | READ_WRITE,
            Self::Translated { root, levels, .. } => {
                VALID | READ_WRITE | root & 0xf_ffff_ffff_f000 | (levels as u64 & 7) << 9
            }
        }
    }

    /// The second 8 bytes.
    pub const fn high(&self) -> u64 {
        match *self {
            Self::Translated { domain, .. } => domain as u64,
            _ => 0,
        }
    }

    /// Reads the parts that matter here.
    pub const fn decode(low: u64, high: u64) -> Self {
        match (low >> 9 & 7, low & READ_WRITE) {
            (0, 0) => Self::Blocked,
            (0, _) => Self::PassThrough,
            (levels, _) => Self::Translated {
                root: low & 0xf_ffff_ffff_f000,
                levels: levels as u32,
                domain: high as u16,
            },
        }
    }
}

/// A command (2.4), 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Writes `value` to `address` (aligned to 8) when all commands before it are done.
    Wait {
        /// Where to.
        address: u64,
        /// What.
        value: u64,
    },
    /// Forgets the device table entry of a function.
    Device {
        /// The function.
        function: u16,
    },
    /// Forgets an aligned block of a domain.
    Pages {
        /// The domain.
        domain: u16,
        /// An address in the block.
        address: u64,
        /// The logarithm of the block's bytes, 12 to 63; 64 is everything.
        size: u32,
        /// Tables too, not only leaves.
        tables: bool,
    },
    /// Forgets everything; only where [`Features::invalidate_all`] says so.
    Everything,
}

impl Command {
    /// The two halves.
    pub const fn encode(&self) -> (u64, u64) {
        match *self {
            Self::Wait { address, value } => (1 << 60 | address & 0xf_ffff_ffff_fff8 | 1, value),
            Self::Device { function } => (2 << 60 | function as u64, 0),
            Self::Pages { domain, address, size, tables } => {
                let low = 3 << 60 | (domain as u64) << 32;
                (low, block(address, size) | (tables as u64) << 1)
            }
            Self::Everything => (8 << 60, 0),
        }
    }
}

/// The address field with its size bit: as in a table's group entry, the lowest 0 from bit 12 on is in
/// the place of half the size (2.4.3).
const fn block(address: u64, size: u32) -> u64 {
    match size {
        0..=12 => address & !0xfff,
        13..=62 => {
            let half = 1u64 << (size - 1);
            (address & !(2 * half - 1) | (half - 1)) & !0xfff | 1
        }
        _ => 0x7fff_ffff_ffff_f001,
    }
}

/// An entry of the event log (2.5), 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which event; 2 is a page fault.
    pub code: u8,
    /// The function, if the event is about one.
    pub function: Option<u16>,
    /// The address, if the event has one.
    pub address: Option<u64>,
    /// What was wanted, if the event says.
    pub access: Access,
    /// In words.
    pub reason: FaultReason,
}

impl Event {
    /// Reads an entry; `None` if it has not been written.
    pub const fn decode(low: u64, high: u64) -> Option<Self> {
        let code = (low >> 60) as u8;
        let function = Some(low as u16);
        let wanted = if low >> 53 & 1 != 0 { Access::WRITE } else { Access::READ };
        let event = match code {
            0 => return None,
            1 => (function, Some(high), wanted, FaultReason::BadTable),
            2 => (function, Some(high), wanted, page_fault(low)),
            3 | 4 => (function, Some(high), wanted, FaultReason::BadTable),
            5 | 6 => (None, Some(high), Access::empty(), FaultReason::BadCommand),
            8 => (function, Some(high), Access::empty(), FaultReason::Other),
            _ => (None, None, Access::empty(), FaultReason::Other),
        };
        let (function, address, access, reason) = event;
        Some(Self { code, function, address, access, reason })
    }
}

/// PR 52, PE 54, RZ 55.
const fn page_fault(low: u64) -> FaultReason {
    if low >> 55 & 1 != 0 {
        FaultReason::BadTable
    } else if low >> 54 & 1 != 0 {
        FaultReason::Permission
    } else {
        FaultReason::NotMapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_the_specifications() {
        let translated = DeviceEntry::Translated { root: 0x1234_5000, levels: 4, domain: 0xabcd };
        assert_eq!((translated.low(), translated.high()), (0x6000_0000_1234_5803, 0xabcd));
        assert_eq!(DeviceEntry::Blocked.low(), 3);
        assert_eq!(DeviceEntry::PassThrough.low(), 0x6000_0000_0000_0003);
        for entry in [translated, DeviceEntry::Blocked, DeviceEntry::PassThrough] {
            assert_eq!(DeviceEntry::decode(entry.low(), entry.high()), entry);
        }
        let qemu = Features(0x29d3);
        assert!(qemu.invalidate_all());
        assert_eq!([qemu.levels(), Features(0).levels(), Features(0x400).levels()], [6, 4, 5]);
        assert_eq!(control::from_ivhd(0b1111), 1 << 1 | 1 << 8 | 1 << 9 | 1 << 11);
        assert_eq!(control::from_ivhd(0xf0), 0);
    }

    #[test]
    fn commands_are_the_specifications() {
        let wait = Command::Wait { address: 0x1234_5678, value: 7 };
        assert_eq!(wait.encode(), (0x1000_0000_1234_5679, 7));
        assert_eq!(Command::Device { function: 0x18 }.encode(), (0x2000_0000_0000_0018, 0));
        assert_eq!(Command::Everything.encode(), (0x8000_0000_0000_0000, 0));
        let pages =
            |address, size, tables| Command::Pages { domain: 5, address, size, tables }.encode();
        assert_eq!(pages(0x1_2345_6000, 12, false), (0x3000_0005_0000_0000, 0x1_2345_6000));
        assert_eq!(pages(0x4000, 13, false).1, 0x4001);
        assert_eq!(pages(0x6000, 14, true).1, 0x5003);
        assert_eq!(pages(0x20_0000, 21, false).1, 0x2f_f001);
        assert_eq!(pages(0, 64, true).1, 0x7fff_ffff_ffff_f003);
    }

    #[test]
    fn events_are_read() {
        let fault = |flags: u64| Event::decode(2 << 60 | flags << 48 | 5 << 32 | 0x18, 0x5000);
        let missing = fault(1 << 5).expect("written");
        assert_eq!((missing.function, missing.address), (Some(0x18), Some(0x5000)));
        assert_eq!((missing.access, missing.reason), (Access::WRITE, FaultReason::NotMapped));
        assert_eq!(fault(1 << 4 | 1 << 6).map(|event| event.reason), Some(FaultReason::Permission));
        assert_eq!(Event::decode(0, 1), None);
        assert_eq!(Event::decode(5 << 60, 1).map(|event| event.function), Some(None));
    }
}
