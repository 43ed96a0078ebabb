//! From a blob to a board.

use alloc::collections::BTreeSet;
use alloc::string::ToString;

use crate::bus::Buses;
use crate::devices::{self, Parts};
use crate::iommus::Iommus;
use crate::limits::Budget;
use crate::names::NameIndex;
use crate::reserved::{self, Reserved};
use crate::tree::{AlignedBlob, Tree};
use crate::{Board, BoardDevice, BoardError, BoardIommu, Warnings, group};

impl Board {
    /// Reads a device tree blob (version 17). It may lie at any address; bytes behind its end are
    /// ignored.
    ///
    /// # Errors
    /// [`BoardError`] if the blob is no device tree, is cut or broken, or passes a limit.
    pub fn from_dtb(blob: &[u8]) -> Result<Self, BoardError> {
        let mut warnings = Warnings::default();
        let mut budget = Budget::new();
        let blob = AlignedBlob::new(blob)?;
        let tree = Tree::parse(&blob, &mut warnings)?;
        let mut buses = Buses::new(&tree);
        let names = NameIndex::collect(&tree);

        let memory = reserved::memory(&tree, &buses, &mut warnings);
        let reserved = Reserved::collect(&tree, &buses, &mut warnings);
        let (msi, msi_nodes) = reserved::msi_controllers(&tree, &buses, &mut budget)?;
        let iommus = Iommus::collect(&tree, &buses, &names, &mut budget, &mut warnings)?;
        let parts = Parts {
            tree: &tree,
            iommus: &iommus,
            reserved: &reserved,
            msi: &msi_nodes,
            names: &names,
        };
        let (mut devices, mut others) =
            devices::collect(&parts, &mut buses, &mut budget, &mut warnings)?;
        group::assign(&mut devices, &mut budget)?;
        for (index, other) in others.iter_mut().enumerate() {
            other.group = devices.len() + index;
        }
        Ok(Self {
            model: tree.strings(0, "model").next().unwrap_or_default().to_string(),
            compatible: tree.strings(0, "compatible").map(ToString::to_string).collect(),
            memory,
            reserved: reserved.list,
            iommus: iommus.list,
            devices,
            msi,
            warnings: warnings.finish(),
            others,
        })
    }

    /// The IOMMUs that `device` is behind, each once, in the order of its streams.
    pub fn iommus_of<'b>(
        &'b self,
        device: &'b BoardDevice,
    ) -> impl Iterator<Item = (usize, &'b BoardIommu)> {
        let mut seen = BTreeSet::new();
        let first = device.streams.iter().filter(move |stream| seen.insert(stream.iommu));
        first.filter_map(|stream| Some((stream.iommu, self.iommus.get(stream.iommu)?)))
    }
}
