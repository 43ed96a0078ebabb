//! Where table pages may lie: up to the last byte that an entry can name, and nowhere else.

use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::*;
use crate::mem::{FrameError, SpinLock};

/// Hands out the addresses it is told, whatever is asked for.
#[derive(Clone, Default)]
struct Told(Arc<Inner>);

#[derive(Default)]
struct Inner {
    next: Mutex<VecDeque<u64>>,
    blocks: Mutex<BTreeMap<u64, Box<[AtomicU64]>>>,
}

impl Told {
    fn give(&self, addresses: &[u64]) {
        self.0.next.lock().unwrap().extend(addresses);
    }

    fn live(&self) -> Vec<u64> {
        self.0.blocks.lock().unwrap().keys().copied().collect()
    }
}

// SAFETY: every block is an allocation of its own, alive until it is freed.
unsafe impl TableMemory for Told {
    type Entry = AtomicU64;
    type Lock = SpinLock;

    fn alloc(&self, size: u64, _: u64, _: Contents) -> Result<PhysAddr, FrameError> {
        let at = self.0.next.lock().unwrap().pop_front().ok_or(FrameError::OutOfMemory)?;
        let block = (0..size / 8).map(|_| AtomicU64::new(0)).collect();
        self.0.blocks.lock().unwrap().insert(at, block);
        Ok(PhysAddr::new(at))
    }

    unsafe fn free(&self, table: PhysAddr, _: u64) {
        assert!(self.0.blocks.lock().unwrap().remove(&table.raw()).is_some());
    }

    fn entry(&self, at: PhysAddr) -> *const AtomicU64 {
        let blocks = self.0.blocks.lock().unwrap();
        let (start, block) = blocks.range(..=at.raw()).next_back().expect("a block");
        block.as_ptr().wrapping_add((at.raw() - start) as usize / 8)
    }

    fn clean(&self, _: PhysRange) {}

    fn barrier(&self) {}
}

/// Bits that every format's entries can name more than.
const OUTPUT: u32 = 34;

fn refused(at: u64) -> TableError {
    TableError::TableAddress { phys: PhysAddr::new(at), bits: OUTPUT }
}

fn tables_lie_where_entries_reach<F: Format>() {
    let (input, g) = (F::MAX_INPUT_BITS.min(39), F::GRANULE.size());
    let config = TableConfig::new(input, OUTPUT);
    let new = |told: &Told| PageTable::<F, _>::new(told.clone(), config);
    let (bytes, end) = (8u64 << F::INDEX_BITS, 1u64 << OUTPUT);
    let root_bytes = {
        let told = Told::default();
        told.give(&[1 << 24]);
        let table = new(&told).expect("in the middle");
        let of_each = told.0.blocks.lock().unwrap()[&(1 << 24)].len() as u64 * 8;
        drop(table);
        of_each
    };
    let told = Told::default();
    // Zero cannot be told from an empty entry; 8 and 64 are no table's alignment, and what a
    // detached entry is marked with is among them; the rest lies too high, in part or altogether.
    for at in [0, (1 << 24) + 8, (1 << 24) + 64, end - root_bytes + 0x1000.max(bytes), end] {
        told.give(&[at]);
        assert_eq!(new(&told).err(), Some(refused(at)), "{}", F::ID);
        assert_eq!(told.live(), [], "{}: the root was not freed", F::ID);
    }
    told.give(&[end - root_bytes.max(0x1000)]);
    drop(new(&told).expect("up to the last byte"));
    told.give(&[1 << 24]);
    let table = new(&told).expect("in the middle");
    if table.layout().levels > 1 {
        // SAFETY: tests own all ranges, and there is no device.
        let map = || unsafe { table.map(Iova::new(0), phys(g, g), RW) };
        for at in [0, (1 << 25) + 8, (1 << 25) + 64, end] {
            told.give(&[at]);
            assert_eq!(map(), Err(refused(at)), "{}", F::ID);
            assert_eq!((told.live().len(), table.table_pages()), (1, table.layout().roots.len()));
        }
        // One below the other; the tiny format's tables are smaller than what its entries can name.
        let step = bytes.max(0x1000);
        let below = (1..u64::from(table.layout().levels)).map(|n| end - n * step);
        told.give(&below.collect::<Vec<_>>());
        map().expect("up to the last byte");
        let found = table.resolve(Iova::new(5)).map(|found| found.phys.raw());
        assert_eq!(found, Some(g + 5), "{}", F::ID);
    }
    drop(table);
    assert_eq!(told.live(), []);
}
every_format!(tables_lie_where_entries_can_name_them, tables_lie_where_entries_reach);
