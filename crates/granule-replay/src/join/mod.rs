//! Joins what ends a mapping to what began it, and counts what the trace says.
//!
//! An unmap names a device and a DMA address; an unmap of a list only the physical addresses of its
//! entries. Both devices of a machine may use one IOVA at the same time, so everything is kept per
//! device. What cannot be joined is a finding.
//!
//! Linux traces an unmap after it is done, so another CPU may have been given the address, and have
//! traced it, before: mappings of one address queue up, and the oldest ends first.

mod live;
mod segments;

use granule::addr::Direction;

use crate::findings::{Finding, FindingKind, Findings};
use crate::reader::{Allocator, DeviceIndex, Event, EventKind, Turn};
use crate::results::Counts;
use live::{Ended, Kind, Live, Table};
use segments::Run;

/// How many `iommu:map` lines are kept for the event that they belong to.
const MAX_RUNS: usize = 4096;

/// The number of a mapping, unique in the trace.
pub(crate) type Key = u64;

/// Something to be done with the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) line: u64,
    pub(crate) time: u64,
    pub(crate) device: DeviceIndex,
    pub(crate) kind: OpKind,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpKind {
    Map {
        key: Key,
        phys: u64,
        len: u64,
        dir: Direction,
        resource: bool,
    },
    MapList {
        key: Key,
        entries: Vec<(u64, u64)>,
        dir: Direction,
    },
    Alloc {
        key: Key,
        len: u64,
        contiguous: bool,
    },
    /// Also of allocations.
    End {
        key: Key,
    },
    Sync {
        key: Key,
        offset: u64,
        len: u64,
        turn: Turn,
    },
    SyncList {
        key: Key,
        turn: Turn,
    },
    /// An event without consequences: it failed, or could not be joined.
    Nothing,
}

/// Joins one event after the other.
pub(crate) struct Joiner {
    tables: Vec<Table>,
    names: Vec<String>,
    runs: Vec<((u32, bool), Run)>,
    next: Key,
    /// By device, then by phase.
    counts: Vec<Vec<Counts>>,
    phase: usize,
}

impl Joiner {
    pub(crate) fn new() -> Self {
        Self {
            tables: Vec::new(),
            names: Vec::new(),
            runs: Vec::new(),
            next: 1,
            counts: Vec::new(),
            phase: 0,
        }
    }

    /// From now on events count for this phase.
    pub(crate) fn set_phase(&mut self, phase: usize) {
        self.phase = phase;
    }

    /// Makes room for devices that appeared.
    pub(crate) fn know(&mut self, names: &[String]) {
        for name in names.iter().skip(self.names.len()) {
            self.names.push(name.clone());
            self.tables.push(Table::default());
            self.counts.push(Vec::new());
        }
    }

    /// What the trace says, by device and phase.
    pub(crate) fn into_counts(self) -> Vec<Vec<Counts>> {
        self.counts
    }

    /// What is to be done for an event; `None` if it is not the DMA API's.
    pub(crate) fn join(&mut self, event: Event, findings: &mut Findings) -> Option<Op> {
        let Event { line, time, context, kind } = event;
        let mut at = At { line, findings };
        let (device, kind) = match kind {
            EventKind::IommuMap { iova, phys, size } => {
                self.remember(context, Run { iova, phys, size });
                return None;
            }
            EventKind::Phase(_) | EventKind::Lost(_) => return None,
            EventKind::Map { device, dir, dma, size, phys, resource } => {
                self.runs.retain(|(other, _)| *other != context);
                (device, self.map(&mut at, device, (dir, resource), (dma, size, phys)))
            }
            EventKind::MapSg { device, dir, entries, segments, dma, sizes, phys } => {
                let list = self.list(&mut at, device, context, &phys, &dma, &sizes, entries);
                let counts = self.count(device);
                grow(&mut counts.sg_entries, entries);
                grow(&mut counts.sg_segments, segments);
                (device, self.map_sg(&mut at, device, dir, &dma, phys, list))
            }
            EventKind::Alloc { device, dma, size, by } => {
                self.runs.retain(|(other, _)| *other != context);
                (device, self.alloc(&mut at, device, dma, size, by))
            }
            EventKind::Unmap { device, dir, dma, size, .. } => {
                grow(&mut self.count(device).unmap, 1);
                grow(&mut self.count(device).unmapped_bytes, size);
                (device, self.end(&mut at, device, dma, size, Some(dir)))
            }
            EventKind::Free { device, dma, size, .. } => {
                grow(&mut self.count(device).free, 1);
                grow(&mut self.count(device).freed_bytes, size);
                (device, self.end(&mut at, device, dma, size, None))
            }
            EventKind::UnmapSg { device, dir, phys } => {
                grow(&mut self.count(device).unmap_sg, 1);
                (device, self.end_list(&mut at, device, dir, &phys))
            }
            EventKind::Sync { device, dma, size, turn } => {
                grow(&mut self.count(device).sync, 1);
                (device, self.sync(&mut at, device, dma, size, turn))
            }
            EventKind::SyncSg { device, dma, turn } => {
                grow(&mut self.count(device).sync, 1);
                (device, self.sync_list(&mut at, device, dma, turn))
            }
            EventKind::Failed { device, what } => {
                grow(&mut self.count(device).failed, 1);
                let name = self.name(device);
                at.found(FindingKind::FailedThere, None, name, || format!("{what} failed"));
                (device, OpKind::Nothing)
            }
        };
        Some(Op { line, time, device, kind })
    }

    fn count(&mut self, device: DeviceIndex) -> &mut Counts {
        let phases = &mut self.counts[device as usize];
        if phases.len() <= self.phase {
            phases.resize(self.phase + 1, Counts::default());
        }
        &mut phases[self.phase]
    }

    fn name(&self, device: DeviceIndex) -> &str {
        self.names.get(device as usize).map_or("?", String::as_str)
    }

    fn key(&mut self) -> Key {
        self.next += 1;
        self.next - 1
    }

    fn remember(&mut self, context: (u32, bool), run: Run) {
        if self.runs.len() == MAX_RUNS {
            self.runs.drain(..MAX_RUNS / 2);
        }
        self.runs.push((context, run));
    }

    fn map(
        &mut self,
        at: &mut At<'_>,
        device: DeviceIndex,
        (dir, resource): (Direction, bool),
        (dma, size, phys): (u64, u64, u64),
    ) -> OpKind {
        let counts = self.count(device);
        grow(&mut counts.map, 1);
        grow(&mut counts.mapped_bytes, size);
        let key = self.key();
        let kind = if resource { Kind::Resource } else { Kind::Page };
        self.begin(at, device, dma, Live { key, line: at.line, size, dir: Some(dir), kind });
        OpKind::Map { key, phys, len: size, dir, resource }
    }

    fn alloc(
        &mut self,
        at: &mut At<'_>,
        device: DeviceIndex,
        dma: u64,
        size: u64,
        by: Allocator,
    ) -> OpKind {
        let counts = self.count(device);
        grow(&mut counts.alloc, 1);
        grow(&mut counts.allocated_bytes, size);
        let key = self.key();
        self.begin(
            at,
            device,
            dma,
            Live { key, line: at.line, size, dir: None, kind: Kind::Alloc },
        );
        OpKind::Alloc { key, len: size, contiguous: by == Allocator::Pages }
    }

    fn begin(&mut self, at: &mut At<'_>, device: DeviceIndex, dma: u64, live: Live) {
        if let Some(earlier) = self.tables[device as usize].begin(dma, live) {
            let name = self.names[device as usize].as_str();
            let detail = || format!("{dma:#x} was live since line {earlier}");
            at.found(FindingKind::Reused, Some(earlier), name, detail);
        }
    }

    /// The entries of a list with lengths.
    #[allow(clippy::too_many_arguments)] // The fields of one event.
    fn list(
        &mut self,
        at: &mut At<'_>,
        device: DeviceIndex,
        context: (u32, bool),
        phys: &[u64],
        dma: &[u64],
        sizes: &[u64],
        entries: u64,
    ) -> Vec<(u64, u64)> {
        let recent: Vec<Run> =
            self.runs.iter().filter(|(other, _)| *other == context).map(|(_, run)| *run).collect();
        self.runs.retain(|(other, _)| *other != context);
        let runs = dma.first().map_or(&[][..], |dma| segments::chain(&recent, *dma));
        let found = segments::entries(phys, dma, sizes, runs);
        let name = self.name(device);
        if found.estimated {
            let detail = || "enable iommu:map to know the lengths of the entries".into();
            at.found(FindingKind::Estimated, None, name, detail);
        }
        if entries > phys.len() as u64 {
            let detail = || format!("{} of {entries} entries are in the trace", phys.len());
            at.found(FindingKind::CutList, None, name, detail);
        }
        found.list
    }

    fn map_sg(
        &mut self,
        at: &mut At<'_>,
        device: DeviceIndex,
        dir: Direction,
        dma: &[u64],
        phys: Vec<u64>,
        entries: Vec<(u64, u64)>,
    ) -> OpKind {
        let size = entries.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        let counts = self.count(device);
        grow(&mut counts.map_sg, 1);
        grow(&mut counts.mapped_bytes, size);
        let key = self.key();
        let live = Live { key, line: at.line, size, dir: Some(dir), kind: Kind::List };
        let first = dma.first().copied().unwrap_or(0);
        self.tables[device as usize].begin_list(first, phys, live);
        OpKind::MapList { key, entries, dir }
    }

    fn end(
        &mut self,
        at: &mut At<'_>,
        device: DeviceIndex,
        dma: u64,
        size: u64,
        dir: Option<Direction>,
    ) -> OpKind {
        let ended = self.tables[device as usize].end(dma, dir.is_none(), at.line);
        let name = self.name(device);
        let live = match ended {
            Ended::Live(live) => live,
            Ended::Twice(earlier) => {
                let detail = || format!("{dma:#x} was unmapped at line {earlier}");
                at.found(FindingKind::DoubleUnmap, Some(earlier), name, detail);
                return OpKind::Nothing;
            }
            Ended::Never => {
                let detail = || format!("nothing is mapped at {dma:#x}");
                at.found(FindingKind::Unmatched, None, name, detail);
                return OpKind::Nothing;
            }
        };
        if live.size != size {
            let detail = || format!("{size} bytes at {dma:#x}, mapped as {}", live.size);
            at.found(FindingKind::OtherSize, Some(live.line), name, detail);
        }
        at.check_direction(&live, dir, name);
        OpKind::End { key: live.key }
    }

    fn end_list(
        &mut self,
        at: &mut At<'_>,
        device: DeviceIndex,
        dir: Direction,
        phys: &[u64],
    ) -> OpKind {
        let ended = self.tables[device as usize].end_list(phys, at.line);
        let first = phys.first().copied().unwrap_or(0);
        match ended {
            Ended::Live(live) => {
                grow(&mut self.count(device).unmapped_bytes, live.size);
                at.check_direction(&live, Some(dir), self.name(device));
                OpKind::End { key: live.key }
            }
            Ended::Twice(earlier) => {
                let detail = || format!("the list at {first:#x} was unmapped at line {earlier}");
                at.found(FindingKind::DoubleUnmap, Some(earlier), self.name(device), detail);
                OpKind::Nothing
            }
            Ended::Never => {
                let detail = || format!("no list that begins at {first:#x} is mapped");
                at.found(FindingKind::Unmatched, None, self.name(device), detail);
                OpKind::Nothing
            }
        }
    }

    fn sync(
        &mut self,
        at: &mut At<'_>,
        device: DeviceIndex,
        dma: u64,
        len: u64,
        turn: Turn,
    ) -> OpKind {
        match self.tables[device as usize].around(dma, len) {
            Some((key, Kind::List, _)) => OpKind::SyncList { key, turn },
            Some((key, Kind::Page, offset)) => OpKind::Sync { key, offset, len, turn },
            Some(_) => OpKind::Nothing,
            None => self.stray(at, device, dma),
        }
    }

    fn sync_list(&mut self, at: &mut At<'_>, device: DeviceIndex, dma: u64, turn: Turn) -> OpKind {
        match self.tables[device as usize].around(dma, 1) {
            Some((key, Kind::List, _)) => OpKind::SyncList { key, turn },
            Some(_) => OpKind::Nothing,
            None => self.stray(at, device, dma),
        }
    }

    fn stray(&self, at: &mut At<'_>, device: DeviceIndex, dma: u64) -> OpKind {
        let detail = || format!("nothing is mapped at {dma:#x}");
        at.found(FindingKind::StraySync, None, self.name(device), detail);
        OpKind::Nothing
    }

    /// Tells what is live at the end.
    pub(crate) fn finish(&self, findings: &mut Findings) {
        for (table, name) in self.tables.iter().zip(&self.names) {
            for (dma, live) in table.streaming() {
                let detail =
                    || format!("{} bytes at {dma:#x}, live when the trace ends", live.size);
                let mut at = At { line: live.line, findings: &mut *findings };
                at.found(FindingKind::NeverUnmapped, None, name, detail);
            }
        }
    }
}

/// Counts: a damaged trace may hold any number.
fn grow(count: &mut u64, by: u64) {
    *count = count.saturating_add(by);
}

/// Where a finding is made.
struct At<'f> {
    line: u64,
    findings: &'f mut Findings,
}

impl At<'_> {
    fn found(
        &mut self,
        kind: FindingKind,
        earlier: Option<u64>,
        device: &str,
        detail: impl FnOnce() -> String,
    ) {
        let line = self.line;
        let device = || Some(device.to_owned());
        self.findings.add(kind, || Finding {
            kind,
            line,
            earlier,
            device: device(),
            detail: detail(),
        });
    }

    fn check_direction(&mut self, live: &Live, dir: Option<Direction>, name: &str) {
        if dir.is_some() && live.dir.is_some() && dir != live.dir {
            let detail = || format!("{:?}, mapped as {:?}", dir, live.dir);
            self.found(FindingKind::OtherDirection, Some(live.line), name, detail);
        }
    }
}

#[cfg(test)]
mod tests;
