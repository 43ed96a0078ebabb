//! What is mapped, per device, by DMA address and, for lists, by physical addresses.

use std::collections::{BTreeMap, HashMap, VecDeque};

use granule::addr::Direction;

use super::Key;

/// How many ended mappings are remembered, to tell a double unmap from one of unknown memory.
const REMEMBERED: usize = 1 << 14;

/// What kind of mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Page,
    Resource,
    Alloc,
    List,
}

/// A live mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) key: Key,
    pub(super) line: u64,
    pub(super) size: u64,
    /// `None` for coherent memory.
    pub(super) dir: Option<Direction>,
    pub(super) kind: Kind,
}

/// What an unmap ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Live(Live),
    /// It had been unmapped at this line.
    Twice(u64),
    Never,
}

#[derive(Debug)]
struct List {
    live: Live,
    phys: Vec<u64>,
    dma: u64,
}

/// The mappings of one device.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By DMA address, the oldest first. Lists are here too, for syncs.
    by_dma: BTreeMap<u64, VecDeque<Live>>,
    /// By the first entry's physical address.
    lists: HashMap<u64, VecDeque<List>>,
    ended: Memory,
    ended_lists: Memory,
}

impl Table {
    /// A mapping begins; the line of one that is live at this address, if there is one.
    pub(super) fn begin(&mut self, dma: u64, live: Live) -> Option<u64> {
        self.ended.forget(dma);
        let queue = self.by_dma.entry(dma).or_default();
        let earlier = queue.back().map(|other| other.line);
        queue.push_back(live);
        earlier
    }

    /// A list's mapping begins. Its address says nothing about reuse: its unmap does not name it.
    pub(super) fn begin_list(&mut self, dma: u64, phys: Vec<u64>, live: Live) {
        self.begin(dma, live);
        let first = phys.first().copied().unwrap_or(0);
        self.ended_lists.forget(first);
        self.lists.entry(first).or_default().push_back(List { live, phys, dma });
    }

    /// A mapping (or, if `coherent`, an allocation) ends.
    pub(super) fn end(&mut self, dma: u64, coherent: bool, line: u64) -> Ended {
        let fits = |live: &Live| match live.kind {
            Kind::List => false,
            Kind::Alloc => coherent,
            Kind::Page | Kind::Resource => !coherent,
        };
        match self.take(dma, fits) {
            Some(live) => {
                self.ended.add(dma, line);
                Ended::Live(live)
            }
            None => self.ended.get(dma).map_or(Ended::Never, Ended::Twice),
        }
    }

    fn take(&mut self, dma: u64, fits: impl Fn(&Live) -> bool) -> Option<Live> {
        let queue = self.by_dma.get_mut(&dma)?;
        let live = queue.remove(queue.iter().position(fits)?);
        if queue.is_empty() {
            self.by_dma.remove(&dma);
        }
        live
    }

    /// A list's mapping ends.
    pub(super) fn end_list(&mut self, phys: &[u64], line: u64) -> Ended {
        let Some(first) = phys.first() else { return Ended::Never };
        let Some(list) = self.take_list(*first, phys) else {
            return self.ended_lists.get(*first).map_or(Ended::Never, Ended::Twice);
        };
        self.take(list.dma, |live| live.key == list.live.key);
        self.ended_lists.add(*first, line);
        Ended::Live(list.live)
    }

    /// The tracer may have cut either list short: as much as both have must agree.
    fn take_list(&mut self, first: u64, phys: &[u64]) -> Option<List> {
        let queue = self.lists.get_mut(&first)?;
        let agrees = |list: &List| list.phys.iter().zip(phys).all(|(a, b)| a == b);
        let exact = queue.iter().position(|list| list.phys == phys);
        let list = queue.remove(exact.or_else(|| queue.iter().position(agrees))?);
        if queue.is_empty() {
            self.lists.remove(&first);
        }
        list
    }

    /// The mapping that holds all of a range, and where in it the range begins. A list's first
    /// segment stands for all of it.
    pub(super) fn around(&self, dma: u64, len: u64) -> Option<(Key, Kind, u64)> {
        let (start, queue) = self.by_dma.range(..=dma).next_back()?;
        let (live, offset) = (queue.front()?, dma - start);
        let end = offset.checked_add(len)?;
        (end <= live.size).then_some((live.key, live.kind, offset))
    }

    /// The streaming mappings that are live, by line.
    pub(super) fn streaming(&self) -> Vec<(u64, Live)> {
        let all =
            self.by_dma.iter().flat_map(|(dma, queue)| queue.iter().map(|live| (*dma, *live)));
        let mut all: Vec<_> = all.filter(|(_, live)| live.kind != Kind::Alloc).collect();
        all.sort_by_key(|(_, live)| live.line);
        all
    }
}

/// Addresses that ended lately, and the lines where.
#[derive(Debug, Default)]
struct Memory {
    lines: HashMap<u64, u64>,
    order: VecDeque<u64>,
}

impl Memory {
    fn add(&mut self, address: u64, line: u64) {
        if self.lines.insert(address, line).is_none() {
            self.order.push_back(address);
        }
        if self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.lines.remove(&oldest);
            }
        }
    }

    /// It is live again. It keeps its place in the order: the memory stays bounded.
    fn forget(&mut self, address: u64) {
        if let Some(line) = self.lines.get_mut(&address) {
            *line = 0;
        }
    }

    fn get(&self, address: u64) -> Option<u64> {
        self.lines.get(&address).copied().filter(|line| *line != 0)
    }
}
