//! What can go wrong when a blob is read, or a name looked up.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A blob that is no board.
///
/// Whatever is wrong with a single device or IOMMU is a [`Warning`](crate::Warning) instead, so that
/// the rest of the board stays usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoardError {
    /// The first four bytes are not the magic number of a device tree blob.
    #[error(
        "this is no device tree blob: it starts with {found:#010x}, not 0xd00dfeed (compile sources with dtc -O dtb)"
    )]
    NotADeviceTree {
        /// What stands there instead, big-endian; 0 for a blob of less than four bytes.
        found: u32,
    },
    /// The blob ends before its header says so.
    #[error("the device tree blob is cut: {len} bytes of {needed} are here")]
    Truncated {
        /// The bytes that there are.
        len: u64,
        /// The bytes that there should be.
        needed: u64,
    },
    /// The header or the structure block breaks the format (Devicetree Specification, chapter 5).
    #[error("the device tree blob is broken: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// A limit that keeps memory and time bounded on any input is passed.
    #[error("the device tree is too large to be a board: {what} passes the limit of {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The most that is accepted.
        limit: u64,
    },
}

/// A name that names no single device or IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LookupError {
    /// Nothing has this name.
    Unknown {
        /// The name asked for.
        name: String,
        /// The closest names that exist, best first, at most eight.
        candidates: Vec<String>,
    },
    /// Several have this name.
    Ambiguous {
        /// The name asked for.
        name: String,
        /// The paths that it may mean, at most eight.
        candidates: Vec<String>,
        /// How many there are in all.
        matches: usize,
    },
    /// The node exists and its `status`, or that of a bus above it, disables it.
    Disabled {
        /// The name asked for.
        name: String,
        /// The path of the node.
        path: String,
    },
    /// The node exists and is an IOMMU, memory or the like, which is no DMA master.
    NotADevice {
        /// The name asked for.
        name: String,
        /// The path of the node.
        path: String,
    },
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, candidates } if candidates.is_empty() => {
                write!(f, "the board has no '{name}'")
            }
            Self::Unknown { name, candidates } => {
                write!(f, "the board has no '{name}'; the closest names: {}", candidates.join(", "))
            }
            Self::Ambiguous { name, candidates, matches } => {
                write!(f, "'{name}' names {matches} nodes: {}", candidates.join(", "))?;
                if *matches > candidates.len() {
                    f.write_str(", …")?;
                }
                f.write_str("; give the unit address or the path")
            }
            Self::Disabled { name, path } => {
                write!(f, "'{name}' ({path}) is disabled by its status or that of a bus above it")
            }
            Self::NotADevice { name, path } => {
                write!(f, "'{name}' ({path}) is not a device that makes DMA")
            }
        }
    }
}

impl core::error::Error for LookupError {}
