//! What is odd in a trace, or could not be done: told with the line, never a failure.

use std::collections::BTreeMap;

use serde::Serialize;

/// How many findings of one kind are kept; all are counted.
const KEPT: u64 = 40;

/// What kind of oddity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// Mapped and never unmapped: a leak, or in use when the trace ended (a receive ring).
    NeverUnmapped,
    /// Unmapped, though it was unmapped before and not mapped since.
    DoubleUnmap,
    /// Unmapped, though the trace never mapped it: recording began too late, or lost events.
    Unmatched,
    /// Mapped at a DMA address that was live: its unmap was traced late, or is missing.
    Reused,
    /// Unmapped or freed with another size than it was mapped with.
    OtherSize,
    /// Unmapped with another direction.
    OtherDirection,
    /// A sync of memory that is not mapped.
    StraySync,
    /// The recorder's own call failed.
    FailedThere,
    /// The tracer lost events.
    Lost,
    /// A line is damaged.
    Damaged,
    /// The lengths of a list's entries were estimated: enable `iommu:map`.
    Estimated,
    /// The trace was cut short by its printer: a list of more than 128 entries.
    CutList,
    /// The layer refused.
    Refused,
    /// Memory beyond the end of the simulated machine's.
    Outside,
}

impl FindingKind {
    /// What it means, for people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::NeverUnmapped => "mapped and never unmapped",
            Self::DoubleUnmap => "unmapped twice",
            Self::Unmatched => "unmapped, never mapped in this trace",
            Self::Reused => "mapped over a live mapping",
            Self::OtherSize => "unmapped with another size",
            Self::OtherDirection => "unmapped with another direction",
            Self::StraySync => "sync of unmapped memory",
            Self::FailedThere => "failed on the recorder",
            Self::Lost => "events lost by the tracer",
            Self::Damaged => "damaged lines",
            Self::Estimated => "lists with estimated lengths",
            Self::CutList => "lists cut short by the tracer",
            Self::Refused => "refused by the layer",
            Self::Outside => "memory outside of the simulated machine",
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub kind: FindingKind,
    /// The line of the trace, from 1.
    pub line: u64,
    /// The line that it contradicts, if there is one.
    pub earlier: Option<u64>,
    /// The device.
    pub device: Option<String>,
    /// What happened.
    pub detail: String,
}

/// All of them: every kind counted, the first of each kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    counts: BTreeMap<FindingKind, u64>,
    list: Vec<Finding>,
}

impl Findings {
    /// How many there are of each kind.
    pub fn counts(&self) -> &BTreeMap<FindingKind, u64> {
        &self.counts
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: FindingKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// The first forty of each kind, in the order in which they were found.
    pub fn list(&self) -> &[Finding] {
        &self.list
    }

    /// Adds one; its words are only made if it is kept.
    pub(crate) fn add(&mut self, kind: FindingKind, finding: impl FnOnce() -> Finding) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= KEPT {
            self.list.push(finding());
        }
    }

    /// There are at least so many of a kind, kept or not.
    pub(crate) fn at_least(&mut self, kind: FindingKind, number: u64) {
        if number != 0 {
            let count = self.counts.entry(kind).or_default();
            *count = number.max(*count);
        }
    }

    pub(crate) fn note(&mut self, kind: FindingKind, line: u64, detail: impl Into<String>) {
        let detail = detail.into();
        self.add(kind, || Finding { kind, line, earlier: None, device: None, detail });
    }
}
