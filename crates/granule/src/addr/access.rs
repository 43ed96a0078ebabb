//! What a device may do with memory, and what kind of memory it is.

use core::fmt;

bitflags::bitflags! {
    /// What a device may do with a range.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Access: u8 {
        /// The device reads memory.
        const READ = 1;
        /// The device writes memory.
        const WRITE = 2;
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.contains(Self::READ), self.contains(Self::WRITE)) {
            (true, true) => "read and write",
            (true, false) => "read",
            (false, true) => "write",
            (false, false) => "none",
        })
    }
}

/// Which way a streaming mapping carries data; the words of the kernel's DMA API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device reads what the CPU wrote (`DMA_TO_DEVICE`).
    ToDevice,
    /// The CPU reads what the device writes (`DMA_FROM_DEVICE`).
    FromDevice,
    /// Both (`DMA_BIDIRECTIONAL`).
    Bidirectional,
}

impl Direction {
    /// The rights a device needs for this direction.
    #[inline]
    pub const fn access(self) -> Access {
        match self {
            Self::ToDevice => Access::READ,
            Self::FromDevice => Access::WRITE,
            Self::Bidirectional => Access::READ.union(Access::WRITE),
        }
    }

    /// Whether the device may write.
    #[inline]
    pub const fn device_writes(self) -> bool {
        !matches!(self, Self::ToDevice)
    }

    /// Whether the device may read.
    #[inline]
    pub const fn device_reads(self) -> bool {
        !matches!(self, Self::FromDevice)
    }
}

/// What stands at the physical end of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// Memory, in a DMA path that snoops the CPU's caches.
    Coherent,
    /// Memory, in a DMA path that does not snoop.
    NonCoherent,
    /// Another device's registers or doorbell.
    Device,
}

/// What a page-table entry says besides the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// What the device may do.
    pub access: Access,
    /// What is mapped, and whether it is snooped.
    pub kind: MemoryKind,
}

impl Attributes {
    /// Snooped memory with these rights.
    #[inline]
    pub const fn memory(access: Access) -> Self {
        Self { access, kind: MemoryKind::Coherent }
    }
}
