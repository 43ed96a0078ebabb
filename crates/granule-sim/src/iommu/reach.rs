//! Everything that a stream reaches now: what the tables say, and what the caches still remember.

use granule::addr::{Access, Iova, PhysAddr, PhysRange};

use super::tlb::Pointer;
use super::{SimIommu, SimIommuError, StreamState};
use crate::walk::{self, Geometry, Mapping, PhysRead, Translation, WalkLimit};

/// By which way a range is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// The tables map it now.
    Tables,
    /// A leaf in the IOTLB maps it.
    Iotlb,
    /// A pointer in the walk cache leads to a table that maps it.
    WalkCache,
    /// The stream bypasses translation.
    Bypass,
    /// The device is on the bus, with no IOMMU between.
    Direct,
}

/// A range that a device reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The physical range.
    pub phys: PhysRange,
    /// What the device may do.
    pub access: Access,
    /// Where it stands in the device's space, as the table indexes it.
    pub iova: Iova,
    /// The size of the pages that it is mapped with, in bytes; for a bypass or a direct route, which
    /// have none, the length of the range.
    pub page_size: u64,
    /// How it is reached.
    pub via: Via,
}

impl Reach {
    /// A range reached without translation.
    pub(crate) fn untranslated(phys: PhysRange, iova: Iova, via: Via) -> Self {
        Self { phys, access: Access::all(), iova, page_size: phys.len(), via }
    }
}

impl SimIommu {
    /// Everything that `stream` reaches now: a walk of its tables (for a walker that does not snoop,
    /// both as memory holds them and as the CPU sees them, since a line may be written back at any
    /// moment), every cached leaf, and what lies behind every cached pointer. A bypassed stream
    /// reaches all RAM.
    ///
    /// # Errors
    /// [`SimIommuError::NoSuchStream`].
    pub fn reachable(&self, stream: u32) -> Result<Vec<Reach>, SimIommuError> {
        Ok(self.reachable_up_to(stream)?.0)
    }

    /// As [`reachable`](Self::reachable), with the limit that cut a listing short, if one did.
    ///
    /// # Errors
    /// As [`reachable`](Self::reachable).
    pub fn reachable_up_to(
        &self,
        stream: u32,
    ) -> Result<(Vec<Reach>, Option<WalkLimit>), SimIommuError> {
        let mut found = Found::default();
        match self.stream(stream)? {
            StreamState::Blocked => {}
            StreamState::Bypass => {
                for phys in self.memory.ram().ranges() {
                    let iova = Iova::new(phys.start().raw());
                    found.reach.push(Reach::untranslated(phys, iova, Via::Bypass));
                }
            }
            StreamState::Translate { context, roots, input_bits } => {
                self.translated(context, &roots, input_bits, &mut found)?;
            }
        }
        Ok((found.reach, found.limit))
    }

    fn translated(
        &self,
        context: u32,
        roots: &[PhysAddr],
        input_bits: u32,
        found: &mut Found,
    ) -> Result<(), SimIommuError> {
        let format = self.config.format;
        let geometry = Geometry::new(format, input_bits, roots.len())?;
        let (leaves, pointers) = {
            let state = self.state.lock();
            (state.tlb.leaves(context), state.tlb.pointers(context))
        };
        leaves.iter().for_each(|leaf| found.leaf(leaf));
        let both = !self.config.coherent_walk && self.memory.cache().is_some();
        let views: &[bool] = if both { &[false, true] } else { &[self.config.coherent_walk] };
        for snoops in views {
            let memory = self.memory.inspect(*snoops);
            let listing = walk::mappings(&memory, format, roots, input_bits)?;
            found.listing(&listing, Via::Tables);
            for pointer in &pointers {
                if is_current(&memory, &geometry, roots, pointer) {
                    continue; // The listing above has what lies below it.
                }
                let base = pointer.first & ((1 << input_bits) - 1);
                let below = walk::collect_below(&memory, &geometry, pointer.start, base);
                found.listing(&below, Via::WalkCache);
            }
        }
        Ok(())
    }
}

/// Whether the tables themselves lead to the table that the pointer names, with the same rights.
fn is_current<M: PhysRead>(
    memory: &M,
    geometry: &Geometry,
    roots: &[PhysAddr],
    pointer: &Pointer,
) -> bool {
    let iova = Iova::new(pointer.first);
    let Ok(root) = walk::start_at_root(geometry, roots, iova) else { return false };
    let mut current = false;
    // Where the walk ends does not matter, only whether it passes the pointer.
    let _ = walk::walk_from(memory, geometry, iova, root, &mut |start| {
        current |= start == pointer.start;
    });
    current
}

#[derive(Default)]
struct Found {
    reach: Vec<Reach>,
    limit: Option<WalkLimit>,
}

impl Found {
    fn listing(&mut self, listing: &walk::Listing, via: Via) {
        self.limit = self.limit.or(listing.truncated);
        listing.mappings.iter().for_each(|mapping| self.mapping(mapping, via));
    }

    fn mapping(&mut self, mapping: &Mapping, via: Via) {
        let Some((iova, phys, len)) = mapping.reachable() else { return };
        self.push((iova, phys, len), mapping.access, mapping.page_size, via);
    }

    fn leaf(&mut self, leaf: &Translation) {
        let (first, last) = leaf.fence.unwrap_or((0, leaf.page_size - 1));
        let Some(len) = last.checked_sub(first).map(|less| less + 1) else { return };
        let at = (leaf.page_iova.checked_add(first), leaf.page_phys.checked_add(first));
        if let (Some(iova), Some(phys)) = at {
            self.push((iova, phys, len), leaf.access, leaf.page_size, Via::Iotlb);
        }
    }

    fn push(&mut self, place: (Iova, PhysAddr, u64), access: Access, page_size: u64, via: Via) {
        let (iova, phys, len) = place;
        let Ok(phys) = PhysRange::new(phys, len) else { return };
        if !access.is_empty() {
            self.reach.push(Reach { phys, access, iova, page_size, via });
        }
    }
}
