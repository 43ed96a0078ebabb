//! The stream table (IHI 0070, 3.3.1 "Stream table lookup"): linear, or two levels whose second ones
//! are made when their first stream is attached.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use granule::mem::{FrameError, Platform};

use super::spec::entry::{StreamEntry, WORDS, level1};
use super::spec::register as reg;
use crate::dma_memory::DmaMemory;

/// `SPLIT`: so many StreamID bits index a second-level table, of 16 KiB.
const SPLIT: u32 = 8;
/// The widest StreamIDs that are used: a first level of 512 KiB, a linear table of 4 MiB.
const MAX_TWO_LEVEL_BITS: u32 = 24;
const MAX_LINEAR_BITS: u32 = 16;
const ENTRY_BYTES: u64 = 8 * WORDS as u64;

/// The stream table. One CPU at a time, behind the driver's lock.
#[derive(Debug)]
pub(super) struct Streams<P: Platform> {
    platform: P,
    /// The linear table, or the first level.
    top: DmaMemory<P>,
    /// The second levels by number; empty for a linear table.
    tables: Vec<Option<DmaMemory<P>>>,
    bits: u32,
    address_bits: u32,
    coherent: bool,
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Whether only the entry changed; else a table was linked too.
    pub(super) leaf: bool,
}

impl<P: Platform> Streams<P> {
    /// A table in which every stream is blocked.
    pub(super) fn new(platform: &P, features: &reg::Features) -> Result<Self, FrameError> {
        let (address_bits, coherent) = (features.output_bits.min(48), features.coherent);
        let two_levels = features.two_levels && features.stream_bits > SPLIT;
        let most = if two_levels { MAX_TWO_LEVEL_BITS } else { MAX_LINEAR_BITS };
        let bits = features.stream_bits.min(most);
        let (count, bytes) =
            if two_levels { (1u64 << (bits - SPLIT), 8) } else { (1 << bits, ENTRY_BYTES) };
        let top = DmaMemory::new(platform, count * bytes, address_bits, coherent)?;
        let mut tables = Vec::new();
        if two_levels {
            let wanted = usize::try_from(count).map_err(|_| FrameError::Unsupported)?;
            if tables.try_reserve_exact(wanted).is_err() {
                top.free();
                return Err(FrameError::OutOfMemory);
            }
            tables.resize_with(wanted, || None);
        } else {
            block_all(&top);
        }
        Ok(Self { platform: platform.clone(), top, tables, bits, address_bits, coherent })
    }

    /// How many streams there are.
    pub(super) fn limit(&self) -> u32 {
        1 << self.bits
    }

    /// `STRTAB_BASE` and `STRTAB_BASE_CFG`.
    pub(super) fn base(&self) -> (u64, u32) {
        let form = if self.tables.is_empty() { 0 } else { reg::TWO_LEVELS | SPLIT << 6 };
        (self.top.start() | reg::ALLOCATE, form | self.bits)
    }

    /// The words of a stream's entry; `None` where its table does not exist, so that it is blocked.
    pub(super) fn get(&self, stream: u32) -> Option<[u64; WORDS]> {
        let (table, index) = self.find(stream)?;
        Some(core::array::from_fn(|word| table.get(index + word)))
    }

    fn find(&self, stream: u32) -> Option<(&DmaMemory<P>, usize)> {
        if self.tables.is_empty() {
            return Some((&self.top, stream as usize * WORDS));
        }
        let table = self.tables.get((stream >> SPLIT) as usize)?.as_ref()?;
        Some((table, (stream & ((1 << SPLIT) - 1)) as usize * WORDS))
    }

    /// Makes sure that a stream has an entry. Says whether a table was linked for it.
    pub(super) fn prepare(&mut self, stream: u32) -> Result<Change, FrameError> {
        if self.find(stream).is_some() {
            return Ok(Change { leaf: true });
        }
        let bytes = ENTRY_BYTES << SPLIT;
        let table = DmaMemory::new(&self.platform, bytes, self.address_bits, self.coherent)?;
        block_all(&table);
        self.platform.barrier();
        let number = (stream >> SPLIT) as usize;
        self.top.write(number, &[level1(table.start(), SPLIT)]);
        if let Some(place) = self.tables.get_mut(number) {
            *place = Some(table);
        }
        Ok(Change { leaf: false })
    }

    /// Writes all of an entry but its first word, which the unit does not look at while the entry
    /// says that the stream is blocked.
    pub(super) fn write_rest(&self, stream: u32, words: &[u64; WORDS]) {
        if let Some((table, index)) = self.find(stream) {
            table.write(index + 1, &words[1..]);
        }
    }

    /// Writes the first word of an entry: from then on it means what it says.
    pub(super) fn write_first(&self, stream: u32, words: &[u64; WORDS]) {
        if let Some((table, index)) = self.find(stream) {
            self.platform.barrier();
            table.write(index, &words[..1]);
        }
    }

    pub(super) fn free(self) {
        self.top.free();
        self.tables.into_iter().flatten().for_each(DmaMemory::free);
    }
}

fn block_all<P: Platform>(table: &DmaMemory<P>) {
    let abort = StreamEntry::Abort.words();
    for index in (0..table.words()).step_by(WORDS) {
        table.write(index, &abort);
    }
}
