//! Pictures of bounded size of traces of any length: columns of so many events, which are joined in
//! pairs when there are too many of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::results::Live;

/// Columns of a series, at most.
const COLUMNS: usize = 480;
/// Columns of an IOVA map, at most.
const MAP_COLUMNS: usize = 160;
/// Rows of an IOVA map that hold something, at most.
const MAP_ROWS: usize = 96;

/// The most that was live in a stretch of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Column {
    /// The time of its first event.
    pub time: u64,
    /// The most of each figure.
    pub most: Live,
}

/// What was live, event by event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Series {
    /// How many DMA events a column stands for; the first begins at event 0.
    pub events_per_column: u64,
    /// The columns.
    pub columns: Vec<Column>,
    /// What was live after the last event.
    #[serde(skip)]
    last: Live,
}

impl Series {
    /// Notes what is live after an event.
    pub(crate) fn add(&mut self, event: u64, time: u64, live: &Live) {
        self.events_per_column = self.events_per_column.max(1);
        while event / self.events_per_column >= COLUMNS as u64 {
            self.halve();
        }
        let column = (event / self.events_per_column) as usize;
        while self.columns.len() <= column {
            // What was live goes on being live.
            self.columns.push(Column { time, most: self.last });
        }
        if let Some(found) = self.columns.get_mut(column) {
            found.most = found.most.most(live);
        }
        self.last = *live;
    }

    fn halve(&mut self) {
        self.events_per_column *= 2;
        let join = |pair: &[Column]| {
            let (first, last) = (pair[0], pair[pair.len() - 1]);
            Column { time: first.time, most: first.most.most(&last.most) }
        };
        self.columns = self.columns.chunks(2).map(join).collect();
    }
}

/// How much of each stretch of IOVA space was mapped, event by event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IovaMap {
    /// How many DMA events a column stands for; the first begins at event 0.
    pub events_per_column: u64,
    /// The logarithm of the bytes that a row stands for.
    pub row_shift: u32,
    /// For each column the rows that hold something: row (IOVA >> `row_shift`) and the most bytes
    /// of it that were mapped.
    pub columns: Vec<BTreeMap<u64, u64>>,
    /// What is mapped now, in the same rows.
    #[serde(skip)]
    now: BTreeMap<u64, u64>,
    /// The rows that ever held something.
    #[serde(skip)]
    used: BTreeSet<u64>,
}

impl IovaMap {
    /// Notes that a range was mapped, or (`!mapped`) unmapped.
    pub(crate) fn add(&mut self, event: u64, range: (u64, u64), mapped: bool) {
        self.row_shift = self.row_shift.max(12);
        self.advance(event);
        self.cover(range);
        let (start, len) = range;
        let end = start.saturating_add(len);
        for row in start >> self.row_shift..=end.saturating_sub(1) >> self.row_shift {
            let (from, to) = (row << self.row_shift, (row + 1) << self.row_shift);
            let bytes = end.min(to).saturating_sub(start.max(from));
            self.change(row, bytes, mapped);
        }
    }

    fn change(&mut self, row: u64, bytes: u64, mapped: bool) {
        let now = self.now.entry(row).or_default();
        *now = if mapped { *now + bytes } else { now.saturating_sub(bytes) };
        let value = *now;
        if value == 0 {
            self.now.remove(&row);
        }
        if let (Some(column), true) = (self.columns.last_mut(), value != 0) {
            let most = column.entry(row).or_default();
            *most = value.max(*most);
        }
    }

    /// Columns up to the one that an event belongs to; each begins with what is mapped.
    pub(crate) fn advance(&mut self, event: u64) {
        self.events_per_column = self.events_per_column.max(1);
        while event / self.events_per_column >= MAP_COLUMNS as u64 {
            self.events_per_column *= 2;
            self.columns = self.columns.chunks(2).map(join).collect();
        }
        let column = (event / self.events_per_column) as usize;
        while self.columns.len() <= column {
            self.columns.push(self.now.clone());
        }
    }

    /// Makes rows tall enough for all that ever held something to be few.
    fn cover(&mut self, (start, len): (u64, u64)) {
        let last = start.saturating_add(len.saturating_sub(1));
        while (last >> self.row_shift) - (start >> self.row_shift) >= MAP_ROWS as u64 {
            self.coarsen();
        }
        self.used.extend(start >> self.row_shift..=last >> self.row_shift);
        while self.used.len() > MAP_ROWS {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.row_shift += 1;
        self.used = self.used.iter().map(|row| row >> 1).collect();
        for column in self.columns.iter_mut().chain([&mut self.now]) {
            *column = coarser(column);
        }
    }
}

/// Two columns as one: the most of both.
fn join(pair: &[BTreeMap<u64, u64>]) -> BTreeMap<u64, u64> {
    let mut joined = pair[0].clone();
    for (row, bytes) in pair.iter().skip(1).flatten() {
        let most = joined.entry(*row).or_default();
        *most = (*bytes).max(*most);
    }
    joined
}

/// Two rows as one: the sum of both.
fn coarser(column: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    let mut rows = BTreeMap::new();
    for (row, bytes) in column {
        *rows.entry(row >> 1).or_default() += bytes;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(mapped: u64) -> Live {
        Live { mapped, ..Live::default() }
    }

    #[test]
    fn a_series_keeps_its_peak_and_its_size() {
        let mut series = Series::default();
        for event in 0..10_000u64 {
            let mapped = if event == 7777 { 99 } else { 1 };
            series.add(event, event, &live(mapped));
        }
        assert!(series.columns.len() <= COLUMNS && series.columns.len() > COLUMNS / 2);
        let place = (7777 / series.events_per_column) as usize;
        let peaks: Vec<_> = series.columns.iter().map(|column| column.most.mapped).collect();
        assert_eq!(
            (peaks[place], peaks.iter().filter(|peak| **peak == 1).count()),
            (99, peaks.len() - 1)
        );
    }

    #[test]
    fn events_of_others_are_filled_in() {
        let mut series = Series::default();
        series.add(3, 30, &live(5));
        series.add(6, 60, &live(2));
        let mapped: Vec<_> = series.columns.iter().map(|column| column.most.mapped).collect();
        assert_eq!(mapped, [0, 0, 0, 5, 5, 5, 5]);
    }

    #[test]
    fn a_map_keeps_its_bytes_and_its_size() {
        let mut map = IovaMap::default();
        for event in 0..1000u64 {
            map.add(event, (event << 14, 0x4000), true);
        }
        let last: u64 = map.columns.last().expect("columns").values().sum();
        assert_eq!(last, 1000 * 0x4000);
        assert!(
            map.columns.len() <= MAP_COLUMNS && map.columns.iter().all(|c| c.len() <= MAP_ROWS)
        );
        for event in 0..1000u64 {
            map.add(1000 + event, (event << 14, 0x4000), false);
        }
        assert!(map.now.is_empty());
        map.advance(4000);
        assert!(map.columns.last().expect("columns").is_empty());
    }
}
