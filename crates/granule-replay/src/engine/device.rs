//! One device of a run: performs what is to be done on it, and measures.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use granule::addr::{Direction, DmaAddr, DmaRange, Granule, PhysAddr, PhysRange};
use granule::dma::{
    Coherent, Device, DmaError, ForeignMemory, ListMapping, MapFlags, Mapping, ResourceMapping,
    RouteReport, ScatterList,
};

use super::machine::{Attached, Poll};
use super::memory::{recorded, registers};
use super::series::IovaMap;
use super::tracker::Tracker;
use crate::join::{Key, OpKind};
use crate::reader::Turn;
use crate::results::{Live, Measures};

/// A mapping of the layer.
enum Handle {
    Page(Mapping<Device, ForeignMemory>),
    List(ListMapping<Device, ForeignMemory>),
    Coherent(Coherent<Device>),
    Resource(ResourceMapping<Device>),
}

/// A live mapping, and where it lies.
struct Held {
    handle: Handle,
    /// Whole granules of IOVA space: start and length.
    ranges: Vec<(u64, u64)>,
    /// Streaming bytes, 0 for coherent memory.
    bytes: u64,
    /// The CPU has had its turn, the device not yet.
    cpu_turn: bool,
}

/// Why an operation was not done.
#[derive(Debug)]
pub(super) enum NotDone {
    /// The layer refused.
    Refused(DmaError),
    /// Recorded memory beyond the machine's.
    Outside(u64),
    /// An invalidation failed, or the like.
    Broken(String),
    /// The mapping was never made.
    Skipped,
}

/// A device of a run.
pub(super) struct Replayed {
    device: Device,
    poll: Poll,
    granule: Granule,
    memory: PhysRange,
    deferred: bool,
    held: HashMap<Key, Held>,
    /// Live ranges of IOVA space.
    space: BTreeMap<u64, u64>,
    pub(super) tracker: Tracker,
    pub(super) map: IovaMap,
}

impl Replayed {
    pub(super) fn new(
        attached: Attached,
        granule: Granule,
        memory: PhysRange,
        deferred: bool,
    ) -> Self {
        Self {
            device: attached.device,
            poll: attached.poll,
            granule,
            memory,
            deferred,
            held: HashMap::new(),
            space: BTreeMap::new(),
            tracker: Tracker::default(),
            map: IovaMap::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.device.name()
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.device.spec().trusted
    }

    /// The platform's timer ran.
    pub(super) fn poll(&self) -> Result<(), NotDone> {
        (self.poll)().map_err(|error| NotDone::Broken(error.to_string()))
    }

    /// What is live now, and how many invalidations there were.
    pub(super) fn look(&self) -> (Live, u64) {
        let (mine, domain) = (self.device.stats(), self.device.domain_stats().unwrap_or_default());
        let first = self.space.keys().next().copied();
        let end = self.space.iter().next_back().map(|(start, len)| start + len);
        let live = Live {
            mapped: mine.mapped_bytes,
            exposed: mine.exposed_bytes,
            padding: mine.padding_bytes,
            bounced: mine.bounced_bytes,
            iova: domain.iova_bytes,
            span: first.zip(end).map_or(0, |(first, end)| end - first),
            quarantined: domain.quarantined_bytes,
            table_pages: domain.table_pages,
        };
        (live, domain.invalidations)
    }

    /// Performs one operation. What it measured is added to `measures`; the sums over phases and
    /// devices are made of these.
    pub(super) fn perform(
        &mut self,
        op: &OpKind,
        event: u64,
        measures: &mut Measures,
    ) -> Result<(), NotDone> {
        match op {
            OpKind::Map { key, phys, len, dir, resource } => {
                self.map_one(*key, (*phys, *len), *dir, *resource, event, measures)
            }
            OpKind::MapList { key, entries, dir } => {
                self.map_list(*key, entries, *dir, event, measures)
            }
            OpKind::Alloc { key, len, contiguous } => {
                self.allocate(*key, *len, *contiguous, event, measures)
            }
            OpKind::End { key } => self.end(*key, event, measures),
            OpKind::Sync { key, offset, len, turn } => {
                self.sync(*key, Some((*offset, *len)), *turn, measures)
            }
            OpKind::SyncList { key, turn } => self.sync(*key, None, *turn, measures),
            OpKind::Nothing => Ok(()),
        }
    }

    fn inside(&self, phys: u64, len: u64) -> Result<PhysRange, NotDone> {
        if len == 0 {
            return Err(NotDone::Broken("a mapping of 0 bytes".into()));
        }
        let range = PhysRange::new(PhysAddr::new(phys), len).ok();
        range.filter(|range| self.memory.contains_range(range)).ok_or(NotDone::Outside(phys))
    }

    fn map_one(
        &mut self,
        key: Key,
        (phys, len): (u64, u64),
        dir: Direction,
        resource: bool,
        event: u64,
        measures: &mut Measures,
    ) -> Result<(), NotDone> {
        let range = self.inside(phys, len)?;
        let device = self.device.clone();
        let (handle, address) = if resource {
            let begin = Instant::now();
            let made = registers(device, range, dir);
            measures.map_time.add(nanos(begin));
            let made = made.map_err(NotDone::Refused)?;
            let address = made.address();
            (Handle::Resource(made), address)
        } else {
            let memory = recorded(&[range]);
            let begin = Instant::now();
            let made = Mapping::new(device, memory, dir, MapFlags::empty());
            measures.map_time.add(nanos(begin));
            let made = made.map_err(|refused| NotDone::Refused(refused.error))?;
            let address = made.address();
            (Handle::Page(made), address)
        };
        measures.maps += 1;
        measures.mapped_bytes += len;
        measures.sizes.add(len);
        self.hold(key, handle, &[(address.raw(), len)], len, event, measures);
        Ok(())
    }

    fn map_list(
        &mut self,
        key: Key,
        entries: &[(u64, u64)],
        dir: Direction,
        event: u64,
        measures: &mut Measures,
    ) -> Result<(), NotDone> {
        let pages: Vec<PhysRange> =
            entries.iter().map(|(phys, len)| self.inside(*phys, *len)).collect::<Result<_, _>>()?;
        let list = ScatterList::new([recorded(&pages)]);
        let device = self.device.clone();
        let begin = Instant::now();
        let made = ListMapping::new(device, list, dir, MapFlags::empty());
        measures.map_time.add(nanos(begin));
        let made = made.map_err(|refused| NotDone::Refused(refused.error))?;
        let segments: Vec<(u64, u64)> =
            made.segments().iter().map(|segment| (segment.address.raw(), segment.len)).collect();
        let len = made.len();
        measures.lists += 1;
        measures.mapped_bytes += len;
        measures.entries += entries.len() as u64;
        measures.segments += segments.len() as u64;
        measures.sizes.add(len);
        self.hold(key, Handle::List(made), &segments, len, event, measures);
        Ok(())
    }

    fn allocate(
        &mut self,
        key: Key,
        len: u64,
        contiguous: bool,
        event: u64,
        measures: &mut Measures,
    ) -> Result<(), NotDone> {
        let flags = if contiguous { MapFlags::CONTIGUOUS } else { MapFlags::empty() };
        let device = self.device.clone();
        let begin = Instant::now();
        let made = Coherent::new(device, len, flags);
        measures.map_time.add(nanos(begin));
        let made = made.map_err(NotDone::Refused)?;
        measures.allocations += 1;
        measures.sizes.add(len);
        let address = made.address().raw();
        self.hold(key, Handle::Coherent(made), &[(address, len)], 0, event, measures);
        Ok(())
    }

    /// Remembers a mapping, and counts its pages.
    fn hold(
        &mut self,
        key: Key,
        handle: Handle,
        pieces: &[(u64, u64)],
        bytes: u64,
        event: u64,
        measures: &mut Measures,
    ) {
        measures.operations += 1;
        let ranges = outward(pieces, self.granule);
        for range in &ranges {
            self.count_pages(*range, measures);
            self.space.insert(range.0, range.1);
            self.map.add(event, *range, true);
        }
        self.held.insert(key, Held { handle, ranges, bytes, cpu_turn: false });
    }

    fn count_pages(&self, (start, len): (u64, u64), measures: &mut Measures) {
        let Ok(range) = DmaRange::new(DmaAddr::new(start), len) else { return };
        if let RouteReport::Translated { page_sizes, .. } = self.device.report(Some(range)) {
            for (size, count) in page_sizes {
                *measures.page_sizes.entry(size).or_default() += count;
            }
        }
    }

    fn end(&mut self, key: Key, event: u64, measures: &mut Measures) -> Result<(), NotDone> {
        let held = self.held.remove(&key).ok_or(NotDone::Skipped)?;
        for range in &held.ranges {
            self.space.remove(&range.0);
            self.map.add(event, *range, false);
        }
        measures.operations += 1;
        measures.ended += 1;
        measures.unmapped_bytes += held.bytes;
        let begin = Instant::now();
        let result = release(held.handle, self.deferred);
        measures.unmap_time.add(nanos(begin));
        result
    }

    fn sync(
        &mut self,
        key: Key,
        part: Option<(u64, u64)>,
        turn: Turn,
        measures: &mut Measures,
    ) -> Result<(), NotDone> {
        let held = self.held.get_mut(&key).ok_or(NotDone::Skipped)?;
        measures.syncs += 1;
        // One call of the layer is the CPU's whole turn: it begins with the CPU's sync and ends with
        // the device's. The device's own event is only performed if no CPU's came before it.
        let done = core::mem::replace(&mut held.cpu_turn, turn == Turn::Cpu);
        if done && turn == Turn::Device {
            return Ok(());
        }
        measures.operations += 1;
        match (&mut held.handle, part) {
            (Handle::Page(mapping), part) => {
                let (offset, len) = part.unwrap_or((0, mapping.len()));
                let part = offset..offset.saturating_add(len);
                mapping.sync_for_cpu(part).map(drop).map_err(NotDone::Refused)
            }
            (Handle::List(mapping), _) => {
                mapping.sync_for_cpu(|_| ());
                Ok(())
            }
            (Handle::Coherent(_) | Handle::Resource(_), _) => Ok(()),
        }
    }

    /// Unmaps what the trace did not.
    pub(super) fn clear(&mut self) -> Result<(), NotDone> {
        for (_, held) in self.held.drain() {
            release(held.handle, self.deferred)?;
        }
        self.device.flush().map_err(|error| NotDone::Broken(error.to_string()))
    }
}

/// Ends a mapping: at once, or in deferred mode at the next flush.
fn release(handle: Handle, deferred: bool) -> Result<(), NotDone> {
    let result = match handle {
        Handle::Page(mapping) if deferred => {
            drop(mapping);
            Ok(())
        }
        Handle::List(mapping) if deferred => {
            drop(mapping);
            Ok(())
        }
        Handle::Page(mapping) => mapping.unmap().map(drop),
        Handle::List(mapping) => mapping.unmap().map(drop),
        Handle::Coherent(buffer) => buffer.free(),
        Handle::Resource(mapping) => {
            drop(mapping);
            Ok(())
        }
    };
    result.map_err(|error| NotDone::Broken(error.to_string()))
}

fn nanos(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Pieces grown to whole granules, neighbours joined.
fn outward(pieces: &[(u64, u64)], granule: Granule) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(1);
    for (start, len) in pieces {
        let first = start & !granule.mask();
        let end = granule.round_up(start.saturating_add(*len)).unwrap_or(u64::MAX);
        match ranges.last_mut() {
            Some(last) if last.0 + last.1 >= first && last.0 <= first => {
                last.1 = last.1.max(end - last.0);
            }
            _ => ranges.push((first, end - first)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        let pieces = [(0x1e00, 0x200), (0x2000, 0x10), (0x9000, 1)];
        assert_eq!(outward(&pieces, Granule::K4), [(0x1000, 0x2000), (0x9000, 0x1000)]);
        assert_eq!(outward(&[(0x1e00, 0x400)], Granule::K16), [(0, 0x4000)]);
    }
}
