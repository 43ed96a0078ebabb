//! What an IOMMU tells about a transaction that it refused.
#![forbid(unsafe_code)]

use alloc::string::String;
use core::fmt;

use granule::addr::{Access, DmaAddr};
use granule::domain::StreamId;

/// How many faults one call hands over at most: a device could fault as fast as they are read.
pub(crate) const MOST_AT_ONCE: usize = 1 << 16;

/// Why a transaction was refused, in words that all IOMMUs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultReason {
    /// The stream is attached to nothing: its entry is absent, invalid or says so.
    NotAttached,
    /// Nothing is mapped at the address.
    NotMapped,
    /// Something is mapped, but not with this right.
    Permission,
    /// The address is wider than what the tables index or the unit puts out.
    AddressSize,
    /// The unit read an entry of ours that it does not understand, or could not read it: a bug, or
    /// memory that was overwritten.
    BadTable,
    /// The unit reports a command of ours that it could not carry out.
    BadCommand,
    /// Events were lost: the log was full.
    Overflow,
    /// Anything else; see the code.
    Other,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAttached => "the stream is attached to no domain",
            Self::NotMapped => "nothing is mapped there",
            Self::Permission => "the mapping does not allow it",
            Self::AddressSize => "the address is out of range",
            Self::BadTable => "a table entry is malformed or unreadable",
            Self::BadCommand => "the unit refused a command",
            Self::Overflow => "events were lost",
            Self::Other => "unspecified",
        })
    }
}

/// One refused transaction, or another event of the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// The unit's name.
    pub unit: String,
    /// The stream that made the transaction, if the unit says.
    pub stream: Option<StreamId>,
    /// The address that the device put out, if the unit says. Some units clear its low bits.
    pub address: Option<DmaAddr>,
    /// What the device wanted; empty if the unit does not say.
    pub access: Access,
    /// Why it was refused.
    pub reason: FaultReason,
    /// The reason as the hardware's specification numbers it.
    pub code: u32,
}

impl fmt::Display for FaultEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.unit)?;
        if let Some(stream) = self.stream {
            write!(f, "stream {stream}, ")?;
        }
        if !self.access.is_empty() {
            write!(f, "{} ", self.access)?;
        }
        if let Some(address) = self.address {
            write!(f, "at {address}: ")?;
        }
        write!(f, "{} (code {:#x})", self.reason, self.code)
    }
}
