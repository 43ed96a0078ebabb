//! What the specification says: Intel Virtualization Technology for Directed I/O, revision 4.1:
//! chapter 6 (invalidation), 9 (translation structures), 11 (registers). Legacy mode only.
//!
//! Root entry (9.1, 16 bytes, one a bus): bit 0 present, 63:12 context table. Context entry (9.3, 16
//! bytes, one a function):
//!
//! | bits | what |
//! | --- | --- |
//! | 0 | present |
//! | 1 | fault processing disabled: 0 |
//! | 3:2 | translation type: 0 second stage, 2 pass-through |
//! | 63:12 | second-stage table |
//! | 66:64 | address width: 1 is 39 bits, 2 is 48, 3 is 57 |
//! | 87:72 | domain id |
#![forbid(unsafe_code)]

use granule::addr::{Access, PageSizes};

use crate::FaultReason;

/// Register offsets (11.4).
pub mod reg {
    /// Capabilities, 64 bits.
    pub const CAP: usize = 0x08;
    /// Extended capabilities, 64 bits.
    pub const ECAP: usize = 0x10;
    /// Global command.
    pub const GCMD: usize = 0x18;
    /// Global status.
    pub const GSTS: usize = 0x1c;
    /// Root table address, 64 bits.
    pub const RTADDR: usize = 0x20;
    /// Context command, 64 bits.
    pub const CCMD: usize = 0x28;
    /// Fault status.
    pub const FSTS: usize = 0x34;
    /// Fault event control.
    pub const FECTL: usize = 0x38;
    /// Protected memory enable.
    pub const PMEN: usize = 0x64;
    /// Invalidation queue head, 64 bits.
    pub const IQH: usize = 0x80;
    /// Invalidation queue tail, 64 bits.
    pub const IQT: usize = 0x88;
    /// Invalidation queue address, 64 bits.
    pub const IQA: usize = 0x90;
    /// The fixed registers end here.
    pub const END: usize = 0xc0;
}

/// Bits of the global command and of the global status (11.4.4).
pub mod global {
    /// Translation enable.
    pub const TRANSLATION: u32 = 1 << 31;
    /// Set the root table pointer.
    pub const ROOT: u32 = 1 << 30;
    /// Flush the write buffer.
    pub const WRITE_BUFFER: u32 = 1 << 27;
    /// Queued invalidation enable.
    pub const QUEUE: u32 = 1 << 26;
    /// The bits that last; a one in any other starts something each time it is written.
    pub const LASTING: u32 = 0x96ff_ffff;
}

/// Bits of the fault status (11.4.9.1).
pub mod fault_status {
    /// Faults were lost.
    pub const OVERFLOW: u32 = 1;
    /// The queue met a malformed descriptor.
    pub const QUEUE_ERROR: u32 = 1 << 4;
    /// A device answered an invalidation wrongly.
    pub const COMPLETION_ERROR: u32 = 1 << 5;
    /// A device did not answer an invalidation.
    pub const TIMEOUT_ERROR: u32 = 1 << 6;
}

/// The interrupt of fault events is masked: they are polled.
pub const FECTL_MASK: u32 = 1 << 31;
/// Protected memory regions: enable, and status.
pub const PMEN_ENABLE: u32 = 1 << 31;
/// Protected memory regions are in force.
pub const PMEN_STATUS: u32 = 1;

/// The capability register (11.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// How many domain ids there are.
    pub const fn domains(self) -> u32 {
        let nd = (self.0 & 7) as u32;
        1 << (4 + 2 * if nd > 6 { 6 } else { nd })
    }

    /// RWBF: writes to memory sit in a buffer that must be flushed.
    pub const fn write_buffer(self) -> bool {
        self.bit(4)
    }

    /// PLMR or PHMR: there are protected memory regions.
    pub const fn protected_memory(self) -> bool {
        self.0 >> 5 & 3 != 0
    }

    /// CM: absent entries are cached.
    pub const fn caching_mode(self) -> bool {
        self.bit(7)
    }

    /// SAGAW: whether tables of so many levels are walked.
    pub const fn walks(self, levels: u32) -> bool {
        levels >= 3 && levels <= 5 && self.bit(8 + levels - 2)
    }

    /// MGAW: the widest address that is translated, in bits.
    pub const fn address_bits(self) -> u32 {
        (self.0 >> 16 & 0x3f) as u32 + 1
    }

    /// Where the fault records lie.
    pub const fn fault_offset(self) -> usize {
        (self.0 >> 24 & 0x3ff) as usize * 16
    }

    /// How many fault records there are.
    pub const fn fault_records(self) -> usize {
        (self.0 >> 40 & 0xff) as usize + 1
    }

    /// SSLPS: the page sizes of second-stage tables.
    pub const fn page_sizes(self) -> PageSizes {
        let large = if self.bit(34) { 1 << 21 } else { 0 } | if self.bit(35) { 1 << 30 } else { 0 };
        PageSizes::from_bits(1 << 12 | large)
    }

    /// PSI: invalidation by pages.
    pub const fn by_page(self) -> bool {
        self.bit(39)
    }

    /// MAMV: the largest block of an invalidation, as the logarithm of its 4 KiB pages.
    pub const fn max_mask(self) -> u32 {
        (self.0 >> 48 & 0x3f) as u32
    }

    /// DWD and DRD: an invalidation can wait for writes and reads under way.
    pub const fn drains(self) -> (bool, bool) {
        (self.bit(54), self.bit(55))
    }

    /// The widest address that tables can index here, and their levels.
    pub fn widest(self) -> Option<(u32, u32)> {
        [(57, 5), (48, 4), (39, 3)].into_iter().find_map(|(width, levels)| {
            let bits = self.address_bits().min(width);
            // Tables of so many levels are made only for addresses that fewer cannot index.
            let fits = levels == 3 && bits >= 30 || bits > width - 9;
            (self.walks(levels) && fits).then_some((bits, levels))
        })
    }
}

/// The extended capability register (11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecap(pub u64);

impl Ecap {
    /// C: table walks snoop the CPU's caches.
    pub const fn coherent(self) -> bool {
        self.0 & 1 != 0
    }

    /// QI: there is an invalidation queue.
    pub const fn queue(self) -> bool {
        self.0 & 2 != 0
    }

    /// PT: there is pass-through.
    pub const fn pass_through(self) -> bool {
        self.0 >> 6 & 1 != 0
    }

    /// IRO: where the two registers of IOTLB invalidation lie.
    pub const fn iotlb_offset(self) -> usize {
        (self.0 >> 8 & 0x3ff) as usize * 16
    }
}

const PRESENT: u64 = 1;

/// The low half of a root entry that names a context table.
pub const fn root_entry(table: u64) -> u64 {
    table & !0xfff | PRESENT
}

/// A context entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEntry {
    /// The second-stage table, or `None` for pass-through.
    pub table: Option<u64>,
    /// Levels of the table; for pass-through the most that the unit walks.
    pub levels: u32,
    /// The domain id.
    pub domain: u16,
}

impl ContextEntry {
    /// The low half, which makes the entry present and is written last.
    pub const fn low(&self) -> u64 {
        match self.table {
            Some(table) => table & !0xfff | PRESENT,
            None => 2 << 2 | PRESENT,
        }
    }

    /// The high half.
    pub const fn high(&self) -> u64 {
        (self.domain as u64) << 8 | (self.levels.saturating_sub(2) & 7) as u64
    }
}

/// Whether the low half of an entry says that it is present.
pub const fn is_present(low: u64) -> bool {
    low & PRESENT != 0
}

/// The domain id in the high half of a context entry.
pub const fn domain_of(high: u64) -> u16 {
    (high >> 8) as u16
}

/// What is to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// All context entries.
    AllContexts,
    /// The context entry of one function.
    Context {
        /// The domain that the entry named.
        domain: u16,
        /// The function.
        source: u16,
    },
    /// All translations.
    AllPages,
    /// All translations of a domain.
    Domain {
        /// The domain.
        domain: u16,
    },
    /// Translations of an aligned block of pages.
    Pages {
        /// The domain.
        domain: u16,
        /// Where the block starts.
        address: u64,
        /// The logarithm of its number of 4 KiB pages.
        mask: u32,
        /// Only leaf entries have changed.
        leaves: bool,
    },
}

impl Forget {
    /// The 128-bit descriptor for the queue (6.5.2.1 to 6.5.2.3), low half first.
    pub const fn descriptor(&self, drains: (bool, bool)) -> (u64, u64) {
        let iotlb = 2 | (drains.0 as u64) << 6 | (drains.1 as u64) << 7;
        match *self {
            Self::AllContexts => (1 | 1 << 4, 0),
            Self::Context { domain, source } => {
                (1 | 3 << 4 | (domain as u64) << 16 | (source as u64) << 32, 0)
            }
            Self::AllPages => (iotlb | 1 << 4, 0),
            Self::Domain { domain } => (iotlb | 2 << 4 | (domain as u64) << 16, 0),
            Self::Pages { domain, address, mask, leaves } => {
                (iotlb | 3 << 4 | (domain as u64) << 16, page_address(address, mask, leaves))
            }
        }
    }

    /// The command for the registers (11.4.6): CCMD for contexts, else IOTLB with IVA.
    pub const fn command(&self, drains: (bool, bool)) -> Command {
        let go = 1u64 << 63;
        let iotlb = go | (drains.0 as u64) << 48 | (drains.1 as u64) << 49;
        match *self {
            Self::AllContexts => Command::Context(go | 1 << 61),
            Self::Context { domain, source } => {
                Command::Context(go | 3 << 61 | (source as u64) << 16 | domain as u64)
            }
            Self::AllPages => Command::Pages { iotlb: iotlb | 1 << 60, address: 0 },
            Self::Domain { domain } => {
                Command::Pages { iotlb: iotlb | 2 << 60 | (domain as u64) << 32, address: 0 }
            }
            Self::Pages { domain, address, mask, leaves } => Command::Pages {
                iotlb: iotlb | 3 << 60 | (domain as u64) << 32,
                address: page_address(address, mask, leaves),
            },
        }
    }
}

const fn page_address(address: u64, mask: u32, leaves: bool) -> u64 {
    address & !0xfff | (leaves as u64) << 6 | (mask & 0x3f) as u64
}

/// An invalidation by registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// For CCMD.
    Context(u64),
    /// For the IOTLB and IVA registers.
    Pages {
        /// The IOTLB register.
        iotlb: u64,
        /// The IVA register, which is written first.
        address: u64,
    },
}

/// The bit of CCMD and IOTLB that the unit clears when it is done.
pub const COMMAND_BUSY: u64 = 1 << 63;
/// What the unit says that it did: nothing, if these bits of CCMD are clear.
pub const CONTEXT_DONE: u64 = 3 << 59;
/// The same of IOTLB.
pub const PAGES_DONE: u64 = 3 << 57;

/// A descriptor that writes `value` to `address` (aligned to 4) when all before it are done
/// (6.5.2.8). Bits: type 5, write status, fence.
pub const fn wait_descriptor(address: u64, value: u32) -> (u64, u64) {
    (5 | 1 << 5 | 1 << 6 | (value as u64) << 32, address)
}

/// A fault record (11.4.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The page that was asked for.
    pub page: u64,
    /// The function.
    pub source: u16,
    /// The reason.
    pub code: u8,
    /// What it wanted.
    pub access: Access,
}

/// The bit of a record's upper half that says that it is filled; writing it empties the record.
pub const FAULT_FILLED: u64 = 1 << 63;

impl Fault {
    /// Reads a record from its halves; `None` if it is empty.
    pub fn decode(low: u64, high: u64) -> Option<Self> {
        if high & FAULT_FILLED == 0 {
            return None;
        }
        let read = high >> 62 & 1 != 0;
        let access = if read { Access::READ } else { Access::WRITE };
        Some(Self { page: low & !0xfff, source: high as u16, code: (high >> 32) as u8, access })
    }

    /// The reason in words (table 26 of 7.2.3). An absent second-stage entry is one that allows
    /// neither reading nor writing, so it reads as a missing right.
    pub const fn reason(&self) -> FaultReason {
        match self.code {
            0x1 | 0x2 => FaultReason::NotAttached,
            0x4 => FaultReason::AddressSize,
            0x5 | 0x6 => FaultReason::Permission,
            0x3 | 0x7..=0xd => FaultReason::BadTable,
            _ => FaultReason::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_qemu() {
        let cap = Cap(0x00d2_008c_222f_0606);
        assert_eq!((cap.domains(), cap.address_bits()), (1 << 16, 48));
        assert!(!cap.write_buffer() && !cap.caching_mode() && !cap.protected_memory());
        assert_eq!([3, 4, 5].map(|levels| cap.walks(levels)), [true, true, false]);
        assert_eq!((cap.fault_offset(), cap.fault_records()), (0x220, 1));
        assert!(cap.page_sizes().iter().eq([1 << 12, 1 << 21, 1 << 30]));
        assert_eq!((cap.by_page(), cap.max_mask(), cap.drains()), (true, 18, (true, true)));
        assert_eq!(cap.widest(), Some((48, 4)));
        let ecap = Ecap(0xf42);
        assert!(!ecap.coherent() && ecap.queue() && ecap.pass_through());
        assert_eq!(ecap.iotlb_offset(), 0xf0);
    }

    #[test]
    fn widths_follow_what_is_walked() {
        let cap = |sagaw: u64, bits: u64| Cap(sagaw << 8 | (bits - 1) << 16);
        assert_eq!(cap(0b1110, 57).widest(), Some((57, 5)));
        assert_eq!(cap(0b1110, 48).widest(), Some((48, 4)));
        assert_eq!(cap(0b0010, 48).widest(), Some((39, 3)));
        assert_eq!(cap(0b0110, 39).widest(), Some((39, 3)));
        assert_eq!(cap(0b0100, 39).widest(), None);
        assert_eq!(cap(0, 48).widest(), None);
        assert!(!cap(u64::MAX, 48).walks(6) && !cap(u64::MAX, 48).walks(2));
    }

    #[test]
    fn entries_are_the_specifications() {
        assert_eq!(root_entry(0x1234_5000), 0x1234_5001);
        let entry = ContextEntry { table: Some(0x7_6543_2000), levels: 4, domain: 0xabcd };
        assert_eq!((entry.low(), entry.high()), (0x7_6543_2001, 0xab_cd02));
        assert_eq!(domain_of(entry.high()), 0xabcd);
        let through = ContextEntry { table: None, levels: 3, domain: 1 };
        assert_eq!((through.low(), through.high()), (9, 0x101));
    }

    #[test]
    fn invalidations_are_the_specifications() {
        let all = (true, true);
        let context = Forget::Context { domain: 0x12, source: 0x0310 };
        assert_eq!(context.descriptor(all), (0x0310_0012_0031, 0));
        assert_eq!(Forget::AllContexts.descriptor(all), (0x11, 0));
        assert_eq!(Forget::AllPages.descriptor(all), (0xd2, 0));
        assert_eq!(Forget::Domain { domain: 0x12 }.descriptor((false, false)), (0x12_0022, 0));
        let pages = Forget::Pages { domain: 0x12, address: 0x1_0020_0000, mask: 9, leaves: true };
        assert_eq!(pages.descriptor(all), (0x12_00f2, 0x1_0020_0049));
        assert_eq!(
            pages.command(all),
            Command::Pages { iotlb: 0xb003_0012_0000_0000, address: 0x1_0020_0049 }
        );
        assert_eq!(context.command(all), Command::Context(0xe000_0000_0310_0012));
        assert_eq!(Forget::AllContexts.command(all), Command::Context(0xa000_0000_0000_0000));
        assert_eq!(wait_descriptor(0x5000, 7), (0x7_0000_0065, 0x5000));
    }

    #[test]
    fn faults_are_read() {
        let high = FAULT_FILLED | 1 << 62 | 6 << 32 | 0x18;
        let fault = Fault::decode(0x1234_5678, high).expect("filled");
        assert_eq!((fault.page, fault.source, fault.code), (0x1234_5000, 0x18, 6));
        assert_eq!((fault.access, fault.reason()), (Access::READ, FaultReason::Permission));
        assert_eq!(Fault::decode(0x1234_5678, high & !FAULT_FILLED), None);
    }
}
