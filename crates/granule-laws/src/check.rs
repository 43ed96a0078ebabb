//! What the tables say by an independent walker, what a device reaches, and what is counted.

use granule::addr::{Access, DmaAddr, Iova, PhysAddr, PhysRange};
use granule_sim::hostile::Allowed;
use granule_sim::iommu::{StreamState, Via};
use granule_sim::walk;

use crate::bench::Bench;

/// Checks law 1 on the table's bytes: from `address` on a stream reaches these pieces, byte for
/// byte and in order, and hands back the pages that a walk met: address and size.
///
/// # Panics
/// If it does not.
pub fn walks_to(
    bench: &Bench,
    iommu: usize,
    stream: u32,
    address: DmaAddr,
    pieces: &[PhysRange],
) -> Vec<(u64, u64)> {
    let sim = bench.iommus[iommu].unit().iommu();
    let Ok(StreamState::Translate { roots, input_bits, .. }) = sim.stream(stream) else {
        panic!("stream {stream} of {iommu} does not translate");
    };
    let memory = bench.machine.memory().inspect(sim.config().coherent_walk);
    let mut pages: Vec<(u64, u64)> = Vec::new();
    let mut at = address.raw();
    for piece in pieces {
        let mut offset = 0;
        while offset < piece.len() {
            let iova = Iova::new(at + offset);
            let found = walk::translate(&memory, sim.config().format, &roots, input_bits, iova);
            let found = found.unwrap_or_else(|fault| panic!("{iova:?} in {piece}: {fault}"));
            assert_eq!(found.phys.raw(), piece.start().raw() + offset, "{iova:?} in {piece}");
            let page = (found.page_iova.raw(), found.page_size);
            if pages.last() != Some(&page) {
                pages.push(page);
            }
            offset += found.page_size - (iova.raw() & (found.page_size - 1));
        }
        at += piece.len();
    }
    pages
}

/// Where the table leads from an address.
pub fn physical(bench: &Bench, iommu: usize, stream: u32, iova: u64) -> Option<PhysAddr> {
    translation(bench, iommu, stream, iova).map(|found| found.phys)
}

/// What the table says of an address.
pub fn translation(
    bench: &Bench,
    iommu: usize,
    stream: u32,
    iova: u64,
) -> Option<walk::Translation> {
    let sim = bench.iommus[iommu].unit().iommu();
    let Ok(StreamState::Translate { roots, input_bits, .. }) = sim.stream(stream) else {
        return None;
    };
    let memory = bench.machine.memory().inspect(sim.config().coherent_walk);
    let iova = Iova::new(iova);
    walk::translate(&memory, sim.config().format, &roots, input_bits, iova).ok()
}

/// Whether a walk of the table finds nothing at an address.
pub fn walks_nowhere(bench: &Bench, iommu: usize, stream: u32, iova: u64) -> bool {
    physical(bench, iommu, stream, iova).is_none()
}

/// Checks law 1 by DMA: the device reads these bytes from `address` on.
///
/// # Panics
/// If it does not.
pub fn reads(bench: &Bench, name: &str, address: DmaAddr, expected: &[u8]) {
    let device = bench.machine.device(name).expect("as built");
    let mut seen = vec![0; expected.len()];
    device.read(address, &mut seen).unwrap_or_else(|fault| panic!("{fault}"));
    if let Some(at) = (0..seen.len()).find(|at| seen[*at] != expected[*at]) {
        panic!("{name} at {address:?}: byte {at:#x} of {:#x} differs", seen.len());
    }
}

/// Lets the device write these bytes.
///
/// # Panics
/// If it cannot.
pub fn writes(bench: &Bench, name: &str, address: DmaAddr, data: &[u8]) {
    let device = bench.machine.device(name).expect("as built");
    device.write(address, data).unwrap_or_else(|fault| panic!("{fault}"));
}

/// What a device may reach: everything in whole units, since a format may express less exactly what
/// is asked for than it is asked (Arm: write implies read).
pub fn allow(ranges: &[PhysRange], access: Access) -> Vec<Allowed> {
    let access = if access.contains(Access::WRITE) { Access::all() } else { access };
    ranges.iter().map(|range| Allowed { range: *range, access }).collect()
}

/// Checks law 2 and 3: the device reaches nothing that is not in the list, by its tables or by what
/// its IOMMU remembers.
///
/// # Panics
/// If it does.
pub fn confined(bench: &Bench, name: &str, allowed: &[Allowed], when: &str) {
    let found = bench.hostile(name).violations(allowed);
    assert!(found.is_empty(), "{:?} {when}: {} ({} in all)", bench.case, found[0], found.len());
}

/// Bytes of physical memory that the tables show a device, each counted as often as it is mapped.
pub fn bytes_in_tables(bench: &Bench, name: &str) -> u64 {
    let reach = bench.hostile(name).reach();
    // A walker that does not snoop is judged by both views of memory; at rest both are the same.
    let mut seen: Vec<(u64, u64)> = Vec::new();
    for one in reach.iter().filter(|one| one.via == Via::Tables) {
        let page = (one.iova.raw(), one.phys.len());
        if !seen.contains(&page) {
            seen.push(page);
        }
    }
    seen.iter().map(|(_, len)| len).sum()
}

/// Where a leased address is in the IOMMU's index space: benches give devices no window, so it is
/// the address.
pub fn iova(address: DmaAddr) -> Iova {
    Iova::new(address.raw())
}
