//! What a replay measured. Everything here serialises; sizes are bytes, times nanoseconds of the
//! trace's clock unless a name says otherwise.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::{IovaMap, Series};
use crate::findings::Findings;
use crate::hist::Histogram;
use crate::options::Invalidate;

/// What the trace itself says, without any layer: checkable with grep and awk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// `dma_map_page`, `dma_map_phys`, `dma_map_resource`.
    pub map: u64,
    /// Their unmaps.
    pub unmap: u64,
    /// `dma_map_sg`.
    pub map_sg: u64,
    /// `dma_unmap_sg`.
    pub unmap_sg: u64,
    /// `dma_alloc` and its kin.
    pub alloc: u64,
    /// `dma_free` and its kin.
    pub free: u64,
    /// `dma_sync_*`.
    pub sync: u64,
    /// Calls that failed on the recorder.
    pub failed: u64,
    /// Bytes of streaming maps.
    pub mapped_bytes: u64,
    /// Bytes of streaming unmaps.
    pub unmapped_bytes: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Entries of all lists.
    pub sg_entries: u64,
    /// Segments that the recorder made of them.
    pub sg_segments: u64,
}

impl Counts {
    /// Adds another's. Sums end at 2^64 - 1: a damaged trace may hold any number.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.map, other.map),
            (&mut self.unmap, other.unmap),
            (&mut self.map_sg, other.map_sg),
            (&mut self.unmap_sg, other.unmap_sg),
            (&mut self.alloc, other.alloc),
            (&mut self.free, other.free),
            (&mut self.sync, other.sync),
            (&mut self.failed, other.failed),
            (&mut self.mapped_bytes, other.mapped_bytes),
            (&mut self.unmapped_bytes, other.unmapped_bytes),
            (&mut self.allocated_bytes, other.allocated_bytes),
            (&mut self.freed_bytes, other.freed_bytes),
            (&mut self.sg_entries, other.sg_entries),
            (&mut self.sg_segments, other.sg_segments),
        ];
        for (mine, theirs) in pairs {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// A part of the trace between two marks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// What the mark calls it; empty before the first mark.
    pub name: String,
    /// The line of the mark.
    pub line: u64,
    /// When it begins.
    pub begins: u64,
    /// When it ends.
    pub ends: u64,
    /// How many DMA events came before it.
    pub first_event: u64,
}

/// What the trace is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Lines read.
    pub lines: u64,
    /// Bytes of text read, unpacked.
    pub bytes: u64,
    /// Events of all kinds.
    pub events: u64,
    /// Events of the DMA API that were replayed (of the device asked for).
    pub dma_events: u64,
    /// Events that play no part, by name.
    pub skipped: BTreeMap<String, u64>,
    /// Lines that are no events.
    pub damaged: u64,
    /// Events that the tracer lost.
    pub lost: u64,
    /// When the first event happened.
    pub begins: u64,
    /// When the last event happened.
    pub ends: u64,
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// What the trace says of each device, by phase.
    pub devices: Vec<DeviceCounts>,
}

/// What the trace says of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceCounts {
    /// Its name.
    pub name: String,
    /// In all.
    pub total: Counts,
    /// By phase.
    pub phases: Vec<Counts>,
}

/// What is live at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Live {
    /// Bytes that mappings were asked for.
    pub mapped: u64,
    /// Bytes mapped beside them that belong to somebody else.
    pub exposed: u64,
    /// Bytes mapped beside them, owned by the mapping, zeroed.
    pub padding: u64,
    /// Bytes that lie in a bounce buffer.
    pub bounced: u64,
    /// Bytes of IOVA space taken, quarantine included.
    pub iova: u64,
    /// From the lowest to the highest byte of IOVA space that a live mapping has.
    pub span: u64,
    /// Bytes of IOVA space (and so of memory) that wait for an invalidation.
    pub quarantined: u64,
    /// Pages of page table, of one granule each.
    pub table_pages: u64,
}

/// Live bytes over time: byte-seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Integral {
    /// Of mapped bytes.
    pub mapped: f64,
    /// Of exposed bytes.
    pub exposed: f64,
    /// Of bytes in quarantine.
    pub quarantined: f64,
    /// Of IOVA space taken.
    pub iova: f64,
    /// Of IOVA space spanned.
    pub span: f64,
}

/// What was measured of a device in a phase, or of sums of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Measures {
    /// Calls of the layer.
    pub operations: u64,
    /// Single mappings made.
    pub maps: u64,
    /// Lists mapped.
    pub lists: u64,
    /// Coherent buffers allocated.
    pub allocations: u64,
    /// Mappings and allocations ended.
    pub ended: u64,
    /// Turns between CPU and device.
    pub syncs: u64,
    /// Calls that the layer refused.
    pub refused: u64,
    /// Bytes of streaming mappings made.
    pub mapped_bytes: u64,
    /// Bytes of streaming mappings ended.
    pub unmapped_bytes: u64,
    /// Bytes of other people's that mappings exposed, each time anew.
    pub exposed_bytes: u64,
    /// Bytes that went through a bounce buffer.
    pub bounced_bytes: u64,
    /// Mappings that went through one, in whole or in part.
    pub bounces: u64,
    /// Entries of the lists.
    pub entries: u64,
    /// DMA segments that the device was given for them.
    pub segments: u64,
    /// Invalidations that completed.
    pub invalidations: u64,
    /// How many pages of each size were mapped.
    pub page_sizes: BTreeMap<u64, u64>,
    /// The most that was live at once, each figure for itself.
    pub peak: Live,
    /// Live bytes over time.
    pub integral: Integral,
    /// Sizes of mappings in bytes.
    pub sizes: Histogram,
    /// Time that the layer took to map, in nanoseconds of this machine.
    pub map_time: Histogram,
    /// Time that the layer took to unmap, in nanoseconds of this machine.
    pub unmap_time: Histogram,
}

impl Measures {
    /// How much of the IOVA space that mappings span is free, over time: 0 is none, 1 all.
    pub fn fragmentation(&self) -> f64 {
        if self.integral.span <= 0.0 {
            return 0.0;
        }
        (1.0 - self.integral.iova / self.integral.span).clamp(0.0, 1.0)
    }

    /// Adds what was measured in another phase.
    pub(crate) fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.maps += other.maps;
        self.lists += other.lists;
        self.allocations += other.allocations;
        self.ended += other.ended;
        self.syncs += other.syncs;
        self.refused += other.refused;
        self.mapped_bytes += other.mapped_bytes;
        self.unmapped_bytes += other.unmapped_bytes;
        self.exposed_bytes += other.exposed_bytes;
        self.bounced_bytes += other.bounced_bytes;
        self.bounces += other.bounces;
        self.entries += other.entries;
        self.segments += other.segments;
        self.invalidations += other.invalidations;
        for (size, count) in &other.page_sizes {
            *self.page_sizes.entry(*size).or_default() += count;
        }
        self.peak = self.peak.most(&other.peak);
        self.integral.mapped += other.integral.mapped;
        self.integral.exposed += other.integral.exposed;
        self.integral.quarantined += other.integral.quarantined;
        self.integral.iova += other.integral.iova;
        self.integral.span += other.integral.span;
        self.sizes.merge(&other.sizes);
        self.map_time.merge(&other.map_time);
        self.unmap_time.merge(&other.unmap_time);
    }
}

impl Live {
    /// The larger of each figure.
    pub(crate) fn most(&self, other: &Self) -> Self {
        self.each(other, u64::max)
    }

    /// Each figure of both, combined.
    pub(crate) fn each(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            mapped: with(self.mapped, other.mapped),
            exposed: with(self.exposed, other.exposed),
            padding: with(self.padding, other.padding),
            bounced: with(self.bounced, other.bounced),
            iova: with(self.iova, other.iova),
            span: with(self.span, other.span),
            quarantined: with(self.quarantined, other.quarantined),
            table_pages: with(self.table_pages, other.table_pages),
        }
    }
}

/// A device, or all of them, in one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Scope {
    /// The device's name; "all" for all.
    pub name: String,
    /// Whether it may see its neighbours' bytes.
    pub trusted: bool,
    /// In all.
    pub total: Measures,
    /// By phase.
    pub phases: Vec<Measures>,
    /// What was live, event by event.
    pub series: Series,
    /// Where in its IOVA space; empty for all.
    pub iova_map: IovaMap,
}

/// The trace on one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Run {
    /// The smallest page of the IOMMU, in bytes.
    pub granule: u64,
    /// The page-table format.
    pub format: String,
    /// The sum of all devices. Peaks are of the sum, not sums of peaks.
    pub all: Scope,
    /// Each device.
    pub devices: Vec<Scope>,
    /// What the run found: refusals.
    pub findings: Findings,
}

/// Why the replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stopped {
    /// The trace was over.
    Complete,
    /// [`Options::limit`](crate::Options::limit) was reached.
    Limit,
    /// [`Options::cancel`](crate::Options::cancel) was set.
    Cancelled,
}

/// What a replay measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Results {
    /// The trace.
    pub trace: Trace,
    /// When caches were dropped.
    pub invalidate: Invalidate,
    /// The CPU's page in bytes.
    pub cpu_page: u64,
    /// One run for each granule.
    pub runs: Vec<Run>,
    /// What the trace shows.
    pub findings: Findings,
    /// Whether it is all of the trace.
    pub stopped: Stopped,
    /// How long the replay took, in seconds of this machine.
    pub seconds: f64,
}
