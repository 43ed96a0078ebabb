//! `iommus` and `iommu-map`: from phandles and cells to streams.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::cells::Cells;
use crate::iommus::Iommus;
use crate::limits::{Budget, MAX_STREAMS};
use crate::tree::{NodeId, Tree};
use crate::{BoardError, PciMap, PciMapEntry, Stream, Warning, Warnings};

/// What one node says about its streams.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) streams: Vec<Stream>,
    pub(crate) pci: Option<PciMap>,
    /// Something could not be read: there are more streams than these.
    pub(crate) unresolved: bool,
}

/// Streams in the order found, each once.
#[derive(Default)]
struct Streams {
    list: Vec<Stream>,
    seen: BTreeSet<Stream>,
}

/// Reads the streams of nodes.
pub(crate) struct StreamReader<'t, 'a> {
    pub(crate) tree: &'t Tree<'a>,
    pub(crate) iommus: &'t Iommus,
    pub(crate) total: usize,
}

impl StreamReader<'_, '_> {
    pub(crate) fn read(
        &mut self,
        id: NodeId,
        budget: &mut Budget,
        warnings: &mut Warnings,
    ) -> Result<Found, BoardError> {
        let mut found = Found::default();
        let mut streams = Streams::default();
        if let Some(value) = self.tree.prop(id, "iommus") {
            found.unresolved |= !self.read_iommus(id, value, &mut streams, budget, warnings)?;
        }
        if let Some(value) = self.tree.prop(id, "iommu-map") {
            let entries = self.read_map(id, value, warnings);
            found.unresolved |= entries.is_none();
            let mask = match self.tree.prop(id, "iommu-map-mask") {
                None => 0xffff,
                Some(_) => self.tree.u32(id, "iommu-map-mask").unwrap_or_else(|| {
                    found.unresolved = true;
                    bad(self.tree, id, "iommu-map-mask", "it is not one cell", warnings);
                    0xffff
                }),
            };
            let map = PciMap { mask, entries: entries.unwrap_or_default() };
            self.expand(&map, &mut streams, budget)?;
            found.pci = Some(map);
        }
        found.streams = streams.list;
        Ok(found)
    }

    /// Adds a stream unless the device has it already.
    fn add(
        &mut self,
        stream: Stream,
        streams: &mut Streams,
        budget: &mut Budget,
    ) -> Result<(), BoardError> {
        budget.spend(1)?;
        if !streams.seen.insert(stream) {
            return Ok(());
        }
        if self.total >= MAX_STREAMS {
            let limit = MAX_STREAMS as u64;
            return Err(BoardError::TooLarge { what: "the number of streams", limit });
        }
        self.total += 1;
        streams.list.push(stream);
        Ok(())
    }

    /// Reads `iommus`; false if it can't be read whole.
    fn read_iommus(
        &mut self,
        id: NodeId,
        value: &[u8],
        streams: &mut Streams,
        budget: &mut Budget,
        warnings: &mut Warnings,
    ) -> Result<bool, BoardError> {
        let mut cells = Cells::new(value);
        if cells.is_empty() {
            bad(self.tree, id, "iommus", "it is empty", warnings);
            return Ok(false);
        }
        while !cells.is_empty() {
            let Some(phandle) = cells.cell() else {
                bad(self.tree, id, "iommus", "its length is no multiple of four", warnings);
                return Ok(false);
            };
            let Some(iommu) = self.iommu(id, "iommus", phandle, warnings) else { return Ok(false) };
            let Some(stream) = self.iommus.stream(iommu, &mut cells) else {
                bad(self.tree, id, "iommus", "the last specifier is cut", warnings);
                return Ok(false);
            };
            self.add(stream, streams, budget)?;
        }
        Ok(true)
    }

    fn iommu(
        &self,
        id: NodeId,
        property: &'static str,
        phandle: u32,
        warnings: &mut Warnings,
    ) -> Option<usize> {
        let Some(target) = self.tree.by_phandle(phandle) else {
            let path = self.tree.path(id);
            warnings.push(Warning::NoSuchPhandle { path, property, phandle });
            return None;
        };
        let index = self.iommus.index_of(target);
        if index.is_none() {
            let (path, target) = (self.tree.path(id), self.tree.path(target));
            warnings.push(Warning::NotAnIommu { path, property, target });
        }
        index
    }

    /// Reads `iommu-map`: (requester id, IOMMU, stream, length). The stream is one cell whatever
    /// `#iommu-cells` says, as all trees have it and as Linux reads it.
    fn read_map(
        &self,
        id: NodeId,
        value: &[u8],
        warnings: &mut Warnings,
    ) -> Option<Vec<PciMapEntry>> {
        if value.len() % 16 != 0 {
            bad(self.tree, id, "iommu-map", "its length is no multiple of four cells", warnings);
            return None;
        }
        let mut cells = Cells::new(value);
        let mut entries = Vec::new();
        while !cells.is_empty() {
            let (rid_base, phandle) = (cells.cell()?, cells.cell()?);
            let (stream_base, len) = (cells.cell()?, cells.cell()?);
            let iommu = self.iommu(id, "iommu-map", phandle, warnings)?;
            entries.push(PciMapEntry { rid_base, iommu, stream_base, len });
        }
        Some(entries)
    }

    /// All streams of all requester ids, as few aligned blocks.
    fn expand(
        &mut self,
        map: &PciMap,
        streams: &mut Streams,
        budget: &mut Budget,
    ) -> Result<(), BoardError> {
        for entry in &map.entries {
            let mut run: Option<(u64, u64)> = None;
            let last = u64::from(entry.rid_base) + u64::from(entry.len);
            let mut next = first_from(map.mask & 0xffff, entry.rid_base);
            while let Some(rid) = next.filter(|&rid| u64::from(rid) < last) {
                let contiguous = contiguous_from(map.mask & 0xffff, rid);
                let count = u64::from(contiguous).min(last - u64::from(rid));
                let id = u64::from(entry.stream_base) + u64::from(rid - entry.rid_base);
                budget.spend(1)?;
                run = match run {
                    Some((start, len)) if start + len == id => Some((start, len + count)),
                    Some((start, len)) => {
                        self.add_run(entry.iommu, start, len, streams, budget)?;
                        Some((id, count))
                    }
                    None => Some((id, count)),
                };
                let after = u64::from(rid) + count;
                next = u32::try_from(after).ok().and_then(|after| {
                    if after > 0xffff { None } else { first_from(map.mask & 0xffff, after) }
                });
            }
            if let Some((start, len)) = run {
                self.add_run(entry.iommu, start, len, streams, budget)?;
            }
        }
        Ok(())
    }

    /// Cuts a run of stream ids into blocks that an id and a mask describe.
    fn add_run(
        &mut self,
        iommu: usize,
        start: u64,
        len: u64,
        streams: &mut Streams,
        budget: &mut Budget,
    ) -> Result<(), BoardError> {
        let (mut start, mut left) = (start, len.min((1u64 << 32).saturating_sub(start)));
        while left > 0 {
            let aligned = if start == 0 { 1 << 32 } else { start & start.wrapping_neg() };
            let block = aligned.min(1 << left.ilog2());
            let stream = Stream { iommu, id: start as u32, mask: (block - 1) as u32 };
            self.add(stream, streams, budget)?;
            start += block;
            left -= block;
        }
        Ok(())
    }
}

/// The smallest number from `from` up whose bits all lie in `mask`.
fn first_from(mask: u32, from: u32) -> Option<u32> {
    if from & !mask == 0 {
        return Some(from);
    }
    // Above the highest bit that does not fit, keep the bits and step to the next number that
    // fits; below, all zero.
    let high = 31 - (from & !mask).leading_zeros();
    let kept = from & !((1u32 << high) | ((1u32 << high) - 1));
    let above = mask & !((1u32 << high) | ((1u32 << high) - 1));
    // Adding one through the gaps between the bits of the mask.
    Some((kept | !above).checked_add(1)? & above)
}

/// How many numbers from `rid` up all fit `mask` in a row.
fn contiguous_from(mask: u32, rid: u32) -> u32 {
    let low = mask.trailing_ones().min(16);
    (1 << low) - (rid & ((1 << low) - 1))
}

fn bad(
    tree: &Tree<'_>,
    id: NodeId,
    property: &'static str,
    reason: &'static str,
    warnings: &mut Warnings,
) {
    let effect = "its streams are not all known";
    warnings.push(Warning::BadProperty { path: tree.path(id), property, reason, effect });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submasks_are_found_in_order() {
        for mask in [0xffffu32, 0xff00, 0, 0xf0f0, 0x8001, 0x5555, 0xfff8] {
            let mut expected: Option<u32> = None;
            for from in (0..=0xffffu32).rev() {
                if from & !mask == 0 {
                    expected = Some(from);
                }
                assert_eq!(first_from(mask, from), expected, "mask {mask:#x} from {from:#x}");
            }
        }
    }

    #[test]
    fn runs_of_submasks_are_counted() {
        assert_eq!(contiguous_from(0xffff, 0), 0x1_0000);
        assert_eq!(contiguous_from(0xffff, 0xfffe), 2);
        assert_eq!(contiguous_from(0xff00, 0x100), 1);
        assert_eq!(contiguous_from(0x00ff, 0x10), 0xf0);
    }
}
