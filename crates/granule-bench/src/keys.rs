//! Six key paths whose instructions are counted: counts do not depend on the machine's mood.

use std::hint::black_box;

use granule::domain::InvalidationPolicy;
use granule::table::{Hint, Lpae4k};

use crate::iova::{Ours, Space};
use crate::measure::Rng;
use crate::platform::buffer;
use crate::unit::device;
use crate::{dma, table};

/// A path: its name, how many operations one call of its work does, and what makes the work.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The row's name.
    pub name: &'static str,
    /// Operations a call.
    pub ops: u64,
    make: fn() -> Box<dyn FnMut()>,
}

/// All of them. Tables are of format lpae4k, the IOMMU does nothing, invalidation is strict.
pub const KEYS: [Key; 6] = [
    Key { name: "iova/pair/4K", ops: 1000, make: iova_pair },
    Key { name: "iova/replace/256K/live=1k", ops: 1000, make: iova_replace },
    Key { name: "table/lpae4k/map+unmap/1", ops: 1000, make: table_page },
    Key { name: "table/lpae4k/map+unmap/512", ops: 100, make: table_bulk },
    Key { name: "sg/lpae4k/map+unmap/isolated/64", ops: 100, make: scatter_list },
    Key { name: "dma/single/map+unmap", ops: 1000, make: dma_single },
];

/// The function inside which instructions are counted, as callgrind's pattern for its name.
pub const COUNTED: &str = "*granule_bench*keys*counted*";

/// Does a path's work: often enough to be in the steady state, then once more, counted.
pub fn run(key: &Key) {
    let mut work = (key.make)();
    (0..8).for_each(|_| work());
    counted(&mut *work);
}

#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    // What follows the call keeps it from being a jump, which callgrind would not see return.
    black_box(());
}

fn iova_pair() -> Box<dyn FnMut()> {
    let mut space = Ours::create();
    Box::new(move || {
        for _ in 0..1000 {
            let start = space.alloc(1);
            space.free(black_box(start), 1);
        }
    })
}

fn iova_replace() -> Box<dyn FnMut()> {
    let mut space = Ours::create();
    let mut slots: Vec<u64> = (0..1000).map(|_| space.alloc(64)).collect();
    let mut rng = Rng::new(7);
    Box::new(move || {
        for _ in 0..1000 {
            let slot = &mut slots[rng.below(1000)];
            space.free(*slot, 64);
            *slot = space.alloc(64);
        }
    })
}

fn table_page() -> Box<dyn FnMut()> {
    let table = table::table::<Lpae4k>();
    let rights = table::rights();
    table::make_tables(&table, 4 << 20);
    Box::new(move || {
        for page in 0..1000 {
            let hint = table::map(&table, page << 12, 4096, rights);
            table::unmap(&table, page << 12, 4096, hint);
        }
    })
}

fn table_bulk() -> Box<dyn FnMut()> {
    let table = table::table::<Lpae4k>();
    let rights = table::rights();
    table::make_tables(&table, 4 << 20);
    Box::new(move || {
        for _ in 0..100 {
            table::map(&table, 8 << 12, 2 << 20, rights);
            black_box(table::unmap(&table, 8 << 12, 2 << 20, Hint::NONE));
        }
    })
}

fn scatter_list() -> Box<dyn FnMut()> {
    let device = device::<Lpae4k>(InvalidationPolicy::Strict);
    let mut list = Some(dma::list::<Lpae4k>(64, true));
    Box::new(move || {
        for _ in 0..100 {
            let mapping = list.take().map(|list| device.map_list_to_device(list).expect("space"));
            list = mapping.map(|mapping| mapping.unmap().expect("nothing to wait for"));
        }
    })
}

fn dma_single() -> Box<dyn FnMut()> {
    let (device, page) = (device::<Lpae4k>(InvalidationPolicy::Strict), buffer(4096, 4096));
    Box::new(move || (0..1000).for_each(|_| dma::pair(&device, page)))
}
