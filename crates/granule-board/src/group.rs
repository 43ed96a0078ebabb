//! Groups: devices whose streams overlap can only share one domain.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::limits::Budget;
use crate::{BoardDevice, BoardError, Stream};

/// Numbers the groups from 0 in the order of the devices.
pub(crate) fn assign(devices: &mut [BoardDevice], budget: &mut Budget) -> Result<(), BoardError> {
    let mut sets = Sets((0..devices.len()).collect());
    let mut exact: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut masked: Vec<(Stream, usize)> = Vec::new();
    let all = devices.iter().enumerate();
    for (index, stream) in all.flat_map(|(i, d)| d.streams.iter().map(move |s| (i, *s))) {
        if stream.mask == 0 {
            let first = *exact.entry((stream.iommu, stream.id)).or_insert(index);
            sets.unite(first, index);
        } else {
            masked.push((stream, index));
        }
    }
    for (at, (stream, index)) in masked.iter().enumerate() {
        let rest = masked.get(at + 1..).unwrap_or_default();
        let exacts = exact.range((stream.iommu, 0)..=(stream.iommu, u32::MAX));
        for (_, other) in exacts.filter(|((_, id), _)| stream.matches(*id)) {
            sets.unite(*index, *other);
        }
        for (_, other) in rest.iter().filter(|(other, _)| stream.overlaps(other)) {
            sets.unite(*index, *other);
        }
        budget.spend(exact.len() + rest.len())?;
    }
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, device) in devices.iter_mut().enumerate() {
        let next = numbers.len();
        device.group = *numbers.entry(sets.root(index)).or_insert(next);
    }
    Ok(())
}

/// Disjoint sets; the root of a set is its smallest member.
struct Sets(Vec<usize>);

impl Sets {
    fn root(&mut self, mut member: usize) -> usize {
        while let Some(&parent) = self.0.get(member).filter(|&&parent| parent != member) {
            let grandparent = self.0.get(parent).copied().unwrap_or(parent);
            if let Some(slot) = self.0.get_mut(member) {
                *slot = grandparent;
            }
            member = grandparent;
        }
        member
    }

    fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if let Some(slot) = self.0.get_mut(a.max(b)) {
            *slot = a.min(b);
        }
    }
}
