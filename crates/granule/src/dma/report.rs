//! What a person is told about a device's way to memory.

use alloc::string::String;
use alloc::vec::Vec;

use crate::addr::Granule;
use crate::domain::{Stream, UnitReport};

/// How a device gets to memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteReport {
    /// Through an IOMMU.
    Translated {
        /// The granule of its domain.
        granule: Granule,
        /// The IOMMUs.
        units: Vec<UnitReport>,
        /// Its streams, by index of the IOMMU.
        streams: Vec<Stream>,
        /// How many pages of each size the range is mapped with, smallest first.
        page_sizes: Vec<(u64, u64)>,
    },
    /// Directly: nothing stops it from reaching all of its bus window, for ever.
    Direct {
        /// Why it is direct: "on the bus", "bypassed", "identity domain".
        how: String,
    },
}
