//! The hostile thread: the device reads and writes around everything that is or was mapped.

use std::sync::atomic::Ordering;

use granule::addr::DmaAddr;

use super::{Arena, KNOWN, MARK, Space, Tried};

/// Goes on until no worker runs.
///
/// # Panics
/// If the device sees a byte that was not given to it.
pub(super) fn run(arena: &Arena<'_>) -> Tried {
    let mut rng = fastrand::Rng::with_seed(!arena.bench.case.seed);
    let mut tried = Tried::default();
    while arena.running.load(Ordering::Acquire) != 0 {
        let known = arena.known[rng.usize(0..KNOWN)].load(Ordering::Relaxed);
        let granule = arena.bench.case.granule().size();
        let at = match rng.u8(0..8) {
            0 => rng.u64(..) >> rng.u32(22..64),
            1 => known.wrapping_sub(rng.u64(1..=granule)),
            _ => known + rng.u64(0..2 * granule),
        };
        probe(arena, DmaAddr::new(at), &mut tried);
    }
    tried
}

fn probe(arena: &Arena<'_>, at: DmaAddr, tried: &mut Tried) {
    let sim = arena.sim(Space::Dev);
    let mut seen = [0; 64];
    let read = match sim.read(at, &mut seen) {
        Ok(()) => seen.len(),
        Err(fault) => fault.done as usize,
    };
    for (byte, offset) in seen[..read].iter().zip(0u64..) {
        let was_given = matches!(byte, 0 | &MARK | 0x80..);
        let (case, at) = (&arena.bench.case, at.raw() + offset);
        assert!(was_given, "{case:?}: the device read {byte:#x} at {at:#x}");
    }
    let written = sim.write(at, &[MARK; 5]).is_ok();
    tried.probes += 2;
    tried.hits += u64::from(read > 0) + u64::from(written);
}
