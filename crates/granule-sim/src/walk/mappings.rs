//! Everything that a table maps, merged into ranges, with what is wrong in it.

use core::fmt;

use granule::addr::{Access, Granule, Iova, PhysAddr};

use super::format::{FormatError, Geometry, SimFormat};
use super::{Entry, PhysRead, Rights, Start, decode, group_shift};

/// A range that the table maps with one page size and one set of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mapping {
    /// The first address.
    pub iova: Iova,
    /// Where it leads.
    pub phys: PhysAddr,
    /// The length in bytes.
    pub len: u64,
    /// The size of each leaf in bytes; that of the group where neighbours carry a contiguous hint.
    pub page_size: u64,
    /// What a device may do.
    pub access: Access,
    /// Whether it may fetch instructions.
    pub execute: bool,
    /// First and last byte inside the (then single) page that may be reached, if not the whole.
    pub fence: Option<(u64, u64)>,
}

impl Mapping {
    /// The first reachable IOVA, the physical address there, and the reachable length: the whole
    /// mapping unless it is fenced. `None` if a fence leaves nothing.
    pub fn reachable(&self) -> Option<(Iova, PhysAddr, u64)> {
        let Some((first, last)) = self.fence else {
            return Some((self.iova, self.phys, self.len));
        };
        let len = last.min(self.len.saturating_sub(1)).checked_sub(first)?.checked_add(1)?;
        Some((self.iova.checked_add(first)?, self.phys.checked_add(first)?, len))
    }

    fn continues(&self, next: &Self) -> bool {
        self.fence.is_none()
            && next.fence.is_none()
            && (self.page_size, self.access, self.execute)
                == (next.page_size, next.access, next.execute)
            && self.iova.checked_add(self.len) == Some(next.iova)
            && self.phys.checked_add(self.len) == Some(next.phys)
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.iova.raw().wrapping_add(self.len.wrapping_sub(1));
        write!(f, "{:#x}..={last:#x} -> {:#x}, pages of ", self.iova, self.phys)?;
        match Granule::new(self.page_size) {
            Ok(page) => write!(f, "{page}")?,
            Err(_) => write!(f, "{:#x} bytes", self.page_size)?,
        }
        let execute = if self.execute { ", execute" } else { "" };
        write!(f, ", {}{execute}", self.access)?;
        match self.fence {
            Some((first, last)) => write!(f, ", fenced to {first:#x}..={last:#x}"),
            None => Ok(()),
        }
    }
}

/// What is odd about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FindingKind {
    /// The entry breaks this rule of its format.
    Malformed(&'static str),
    /// The table, or a part of it, lies where there is no memory.
    TableOutsideMemory,
    /// The table is one that the walk is already inside of.
    Loop,
    /// A leaf with a contiguous hint whose group is not contiguous or not uniform.
    BrokenGroup,
    /// A leaf that grants nothing.
    NoRights,
    /// A fence whose end lies before its start.
    EmptyFence,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(rule) => write!(f, "malformed: {rule}"),
            Self::TableOutsideMemory => f.write_str("the table lies where there is no memory"),
            Self::Loop => f.write_str("points back to a table above it"),
            Self::BrokenGroup => f.write_str("contiguous hint on a group that is not uniform"),
            Self::NoRights => f.write_str("a valid leaf that grants nothing"),
            Self::EmptyFence => f.write_str("the sub-page end lies before the start"),
        }
    }
}

/// Something odd, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The first address that the entry speaks for.
    pub iova: Iova,
    /// Where the entry is (for a table outside memory: the table).
    pub at: PhysAddr,
    /// The entry.
    pub raw: u64,
    /// What is odd.
    pub kind: FindingKind,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: entry {:#018x} at {:#x}: {}", self.iova, self.raw, self.at, self.kind)
    }
}

/// A listing was cut short, since no sane table is that large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the listing stops at {at:#x}: {entries} entries were read, which is the limit; \
     is this memory a page table of this format?"
)]
pub struct WalkLimit {
    /// The first address that was not looked at.
    pub at: Iova,
    /// How many entries were read.
    pub entries: u64,
}

/// What a table maps, and what is wrong in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// The mappings in order of their indexed bits, neighbours merged.
    pub mappings: Vec<Mapping>,
    /// What is odd, at most [`Listing::MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many findings there were in all.
    pub findings_total: u64,
    /// How many tables were read.
    pub tables: u64,
    /// Set if the work was cut short; the mappings are then those found until there.
    pub truncated: Option<WalkLimit>,
}

impl Listing {
    /// More findings than these are counted, not kept.
    pub const MAX_FINDINGS: usize = 1000;
    /// How many entries [`mappings`] reads at most: 8 million, 64 MiB of tables.
    pub const MAX_ENTRIES: u64 = 8 << 20;

    fn push(&mut self, next: Mapping) {
        match self.mappings.last_mut() {
            Some(last) if last.continues(&next) => last.len += next.len,
            _ => self.mappings.push(next),
        }
    }

    fn find(&mut self, finding: Finding) {
        self.findings_total += 1;
        if self.findings.len() < Self::MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}

/// Lists everything that the tables at `roots` map, reading at most [`Listing::MAX_ENTRIES`]
/// entries.
///
/// # Errors
/// [`FormatError`] if the format has no tables of this shape. Whatever is wrong *in* the tables is a
/// finding.
pub fn mappings<M: PhysRead + ?Sized>(
    memory: &M,
    format: SimFormat,
    roots: &[PhysAddr],
    input_bits: u32,
) -> Result<Listing, FormatError> {
    mappings_up_to(memory, format, roots, input_bits, Listing::MAX_ENTRIES)
}

/// As [`mappings`], with a limit of one's own on the number of entries read.
///
/// # Errors
/// As [`mappings`].
pub fn mappings_up_to<M: PhysRead + ?Sized>(
    memory: &M,
    format: SimFormat,
    roots: &[PhysAddr],
    input_bits: u32,
    max_entries: u64,
) -> Result<Listing, FormatError> {
    let geometry = Geometry::new(format, input_bits, roots.len())?;
    let mut lister = Lister::new(memory, &geometry, max_entries);
    let shift = geometry.shift(geometry.top + 1);
    for (index, root) in roots.iter().enumerate() {
        let base =
            if index == 0 { 0 } else { (index as u64).checked_shl(shift).unwrap_or(u64::MAX) };
        if base >> input_bits != 0 {
            break; // The input cannot reach this root.
        }
        let start = Start { table: *root, height: geometry.top, limit: Rights::ALL };
        lister.table(start, base);
    }
    Ok(lister.listing)
}

/// Lists what lies below one table, for addresses from `base` on: what a cached pointer still shows.
pub(crate) fn collect_below<M: PhysRead + ?Sized>(
    memory: &M,
    geometry: &Geometry,
    start: Start,
    base: u64,
) -> Listing {
    let mut lister = Lister::new(memory, geometry, Listing::MAX_ENTRIES);
    lister.table(start, base);
    lister.listing
}

struct Lister<'a, M: ?Sized> {
    memory: &'a M,
    geometry: &'a Geometry,
    listing: Listing,
    path: Vec<PhysAddr>,
    entries: u64,
    max_entries: u64,
}

impl<'a, M: PhysRead + ?Sized> Lister<'a, M> {
    fn new(memory: &'a M, geometry: &'a Geometry, max_entries: u64) -> Self {
        let (listing, path) = (Listing::default(), Vec::new());
        Self { memory, geometry, listing, path, entries: 0, max_entries }
    }

    /// One table, whose first entry speaks for `base`. The depth is bounded by the format's levels,
    /// the width by the limit.
    fn table(&mut self, from: Start, base: u64) {
        if self.listing.truncated.is_some() {
            return;
        }
        self.listing.tables += 1;
        let mut words = vec![None; self.geometry.entries(from.height) as usize];
        self.memory.read_words(from.table, &mut words);
        if words.iter().any(Option::is_none) {
            self.finding(base, from.table, 0, FindingKind::TableOutsideMemory);
        }
        self.path.push(from.table);
        for index in 0..words.len() {
            if !self.entry(from, base, index, &words) {
                break;
            }
        }
        self.path.pop();
    }

    /// One entry; `false` ends the table.
    fn entry(&mut self, from: Start, base: u64, index: usize, words: &[Option<u64>]) -> bool {
        let low = base + ((index as u64) << self.geometry.shift(from.height));
        if low >> self.geometry.input_bits != 0 || self.listing.truncated.is_some() {
            return false;
        }
        if self.entries >= self.max_entries {
            let at = Iova::new(self.geometry.extend(low));
            self.listing.truncated = Some(WalkLimit { at, entries: self.entries });
            return false;
        }
        self.entries += 1;
        let Some(raw) = words[index] else { return true };
        let at = PhysAddr::new(from.table.raw().wrapping_add(index as u64 * 8));
        match decode(self.geometry, from.height, index as u64, raw) {
            Entry::NotPresent => {}
            Entry::Malformed(rule) => self.finding(low, at, raw, FindingKind::Malformed(rule)),
            Entry::Table { next, limit } => {
                if self.path.contains(&next) {
                    self.finding(low, at, raw, FindingKind::Loop);
                }
                let height = from.height.saturating_sub(1);
                self.table(Start { table: next, height, limit: from.limit.and(limit) }, low);
            }
            Entry::Page(page) => self.page(from, low, index, raw, &page, words),
        }
        true
    }

    fn page(
        &mut self,
        from: Start,
        low: u64,
        index: usize,
        raw: u64,
        page: &super::decode::Page,
        words: &[Option<u64>],
    ) {
        let at = PhysAddr::new(from.table.raw().wrapping_add(index as u64 * 8));
        let rights = page.rights.and(from.limit);
        let single = self.geometry.shift(from.height);
        let mut page_shift = group_shift(single, page, low);
        if page.group > 0 && (page_shift == single || !self.uniform(from, index, page, words)) {
            page_shift = single;
            self.finding(low, at, raw, FindingKind::BrokenGroup);
        }
        if rights.access.is_empty() {
            self.finding(low, at, raw, FindingKind::NoRights);
        }
        if page.fence.is_some_and(|(first, last)| last < first) {
            self.finding(low, at, raw, FindingKind::EmptyFence);
        }
        self.listing.push(Mapping {
            iova: Iova::new(self.geometry.extend(low)),
            phys: page.phys,
            len: (1 << single).min(self.geometry.behind(low)),
            page_size: 1 << page_shift,
            access: rights.access,
            execute: rights.execute,
            fence: page.fence,
        });
    }

    /// Whether the whole group around `index` maps one contiguous block with the same rights.
    fn uniform(
        &self,
        from: Start,
        index: usize,
        page: &super::decode::Page,
        words: &[Option<u64>],
    ) -> bool {
        let count = 1usize << page.group;
        let first = index & !(count - 1);
        let single = self.geometry.shift(from.height);
        let base = page.phys.raw() & !((1u64 << (single + page.group)) - 1);
        (0..count).all(|place| {
            let Some(Some(raw)) = words.get(first + place) else { return false };
            let index = (first + place) as u64;
            let Entry::Page(other) = decode(self.geometry, from.height, index, *raw) else {
                return false;
            };
            other.phys.raw() == base | (place as u64) << single
                && other.rights == page.rights
                && other.group == page.group
        })
    }

    fn finding(&mut self, low: u64, at: PhysAddr, raw: u64, kind: FindingKind) {
        let iova = Iova::new(self.geometry.extend(low));
        self.listing.find(Finding { iova, at, raw, kind });
    }
}
