//! The segments of a mapped scatter list, as a device is given them.

use super::{DmaAddr, PhysRange};

/// One piece of a mapped scatter list: what goes into one descriptor of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DmaSegment {
    /// The address that the device is programmed with.
    pub address: DmaAddr,
    /// The length in bytes, never zero.
    pub len: u64,
}

/// The sum of the lengths in bytes, or `None` past 2^64.
pub fn total_len(segments: &[PhysRange]) -> Option<u64> {
    segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len()))
}
