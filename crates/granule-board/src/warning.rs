//! What was odd about a board that could be read all the same.

use alloc::string::String;
use alloc::vec::Vec;

use crate::limits::MAX_WARNINGS;

/// Something that a person should know about a board. Paths are full node paths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// No memory node has a size: the boot loader fills it in on the real machine.
    #[error("the tree names no memory; the boot loader fills it in on the real machine")]
    NoMemory,
    /// Two nodes carry one phandle; the first one wins.
    #[error("phandle {phandle:#x} is used by both {first} and {second}; the first one counts")]
    DuplicatePhandle {
        /// The phandle.
        phandle: u32,
        /// The node that counts.
        first: String,
        /// The node that is ignored.
        second: String,
    },
    /// An IOMMU that is not in the table of known ones: no page sizes are guessed.
    #[error("{path}: unknown IOMMU '{compatible}'; its page sizes are not known")]
    UnknownIommu {
        /// The IOMMU.
        path: String,
        /// Its most specific compatible string, or nothing.
        compatible: String,
    },
    /// A property that could not be read; `effect` says what came of it.
    #[error("{path}: {property} can't be read ({reason}); {effect}")]
    BadProperty {
        /// The node.
        path: String,
        /// The property.
        property: &'static str,
        /// Why it can't be read.
        reason: &'static str,
        /// What that leads to.
        effect: &'static str,
    },
    /// A phandle in `property` that no node carries.
    #[error("{path}: {property} refers to phandle {phandle:#x}, which no node has")]
    NoSuchPhandle {
        /// The node.
        path: String,
        /// The property.
        property: &'static str,
        /// The phandle.
        phandle: u32,
    },
    /// `iommus` or `iommu-map` points at a node without `#iommu-cells`.
    #[error("{path}: {property} refers to {target}, which is no IOMMU (it has no #iommu-cells)")]
    NotAnIommu {
        /// The device.
        path: String,
        /// The property.
        property: &'static str,
        /// The node that is no IOMMU.
        target: String,
    },
    /// An enabled device behind a disabled IOMMU. Linux drives such a device without the IOMMU.
    #[error(
        "{device} is behind {iommu}, which is disabled; Linux would drive it as a direct device"
    )]
    DisabledIommu {
        /// The device.
        device: String,
        /// The IOMMU.
        iommu: String,
    },
    /// More specifier cells than are understood for this kind of IOMMU: the first is taken as id.
    #[error(
        "{path}: {cells} cells per stream are not understood for '{compatible}'; the first is taken as the stream id"
    )]
    UnknownSpecifier {
        /// The IOMMU.
        path: String,
        /// Its most specific compatible string, or nothing.
        compatible: String,
        /// Its `#iommu-cells`.
        cells: u32,
    },
    /// The deprecated binding of the SMMU lists its devices in `mmu-masters`. It is not read.
    #[error("{path}: the deprecated mmu-masters is not read; its devices appear without streams")]
    LegacyMasters {
        /// The IOMMU.
        path: String,
    },
    /// Two memory nodes overlap; they are united.
    #[error("memory nodes overlap at {at:#x}; they are taken as one")]
    OverlappingMemory {
        /// The first byte that both claim.
        at: u64,
    },
    /// `iommu-addresses` puts a region at an IOVA that is not its physical address. Linux treats it
    /// as a reservation; firmware has mapped it so.
    #[error(
        "{region} is mapped for {device} at IOVA {iova:#x}, not at its physical address; Linux only reserves that IOVA"
    )]
    TranslatedRegion {
        /// The reserved-memory node.
        region: String,
        /// The device.
        device: String,
        /// The first IOVA.
        iova: u64,
    },
    /// The way to memory (`interconnects` named dma-mem) runs in a circle.
    #[error("{path}: its way to memory runs in a circle; what it reaches is not known")]
    CircularBus {
        /// The node.
        path: String,
    },
    /// There are more warnings than are kept.
    #[error("{count} more warnings are not shown")]
    More {
        /// How many.
        count: usize,
    },
}

/// Collects warnings up to the limit.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    list: Vec<Warning>,
    dropped: usize,
}

impl Warnings {
    pub(crate) fn push(&mut self, warning: Warning) {
        if self.list.len() >= MAX_WARNINGS {
            self.dropped = self.dropped.saturating_add(1);
        } else if !self.list.contains(&warning) {
            self.list.push(warning);
        }
    }

    pub(crate) fn finish(mut self) -> Vec<Warning> {
        if self.dropped > 0 {
            self.list.push(Warning::More { count: self.dropped });
        }
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded_and_the_rest_counted() {
        let mut warnings = Warnings::default();
        for at in 0..MAX_WARNINGS as u64 + 5 {
            warnings.push(Warning::OverlappingMemory { at });
        }
        let list = warnings.finish();
        assert_eq!(list.len(), MAX_WARNINGS + 1);
        assert_eq!(list.last(), Some(&Warning::More { count: 5 }));
    }
}
