//! Addresses near 2^64, nothing and too much, misaligned everything: typed errors, no panic, and the
//! same answers in a build that checks overflow and in one that does not. The digest of all answers
//! is printed; `cargo xtask trust` compares it between the two builds.

use std::fmt::{self, Debug, Write};

use granule::addr::{Access, DmaAddr, Granule, Iova, IovaRange, PhysAddr, PhysRange};
use granule::domain::Placement;
use granule::share::Plan;
use granule_laws::bench::{Bench, Case};
use granule_laws::check::confined;

/// FNV-1a over the text of all answers.
struct Digest {
    hash: u64,
    answers: u64,
    refused: u64,
}

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        Ok(())
    }
}

impl Digest {
    fn answer<T: Debug, E: Debug>(&mut self, answer: &Result<T, E>) {
        self.answers += 1;
        self.refused += u64::from(answer.is_err());
        write!(self, "{answer:?};").expect("a digest takes everything");
    }

    fn maybe<T: Debug>(&mut self, answer: &Option<T>) {
        self.answer(&answer.as_ref().ok_or(()));
    }
}

/// Powers of two and what lies beside them, from 0 to the last address.
fn edges() -> Vec<u64> {
    let powers = [0, 3, 6, 11, 12, 14, 16, 21, 30, 31, 32, 35, 36, 38, 39, 42, 47, 48, 57, 62, 63];
    let around = |bit: u32| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1];
    let mut all: Vec<u64> = powers.into_iter().flat_map(around).collect();
    let below = |from_top: u64| u64::MAX - from_top;
    all.extend([0, 1, 0xfff, 0x1000, 0x3fff, 0xffff, 0x1_0000].map(below));
    all.sort_unstable();
    all.dedup();
    all
}

/// Every pair of edges as a range, and what ranges can be asked.
fn ranges(digest: &mut Digest) {
    for start in edges() {
        for len in edges() {
            let made = PhysRange::new(PhysAddr::new(start), len);
            digest.answer(&made);
            assert_eq!(made.is_ok(), len > 0 && start.checked_add(len - 1).is_some());
            let inclusive = PhysRange::from_inclusive(PhysAddr::new(start), PhysAddr::new(len));
            digest.answer(&inclusive);
            digest.maybe(&DmaAddr::new(start).checked_add(len));
            digest.maybe(&Iova::new(start).checked_sub(len));
            let Ok(range) = made else { continue };
            assert_eq!(range.last().raw(), start + (len - 1));
            for granule in [Granule::K4, Granule::K16, Granule::K64] {
                digest.maybe(&range.align_outward(granule));
                let (up, size) = (granule.round_up(len), u128::from(granule.size()));
                // In more bits than addresses have.
                let exact = u128::from(len).div_ceil(size) * size;
                assert_eq!(up, u64::try_from(exact).ok(), "{len:#x} in whole {granule:?}");
                digest.maybe(&up);
                digest.maybe(&range.slice(granule.size(), len));
                digest.maybe(&range.slice(len, granule.size()));
            }
        }
    }
}

/// Mappings by hand, at every edge, of every length: none may reach what it was not given.
fn mappings(digest: &mut Digest, bench: &Bench) {
    let aperture = bench.domain.aperture_low();
    for at in edges() {
        for size in edges() {
            let Ok(window) = IovaRange::new(Iova::new(at), size) else { continue };
            let size = size & !(bench.case.granule().size() - 1);
            let Ok(memory) = PhysRange::new(PhysAddr::new(at), size) else { continue };
            if size > 1 << 20 && size <= aperture.len() {
                continue; // Legal perhaps, and millions of pages.
            }
            for fixed in [None, Some(Iova::new(at))] {
                let guard = at & 1 != 0;
                let place = Placement { size, align: 1, window, guard, at: fixed };
                let made = bench.domain.map_low(&place, &[(0, memory)], Access::READ);
                digest.answer(&made);
                if let Ok(mapped) = made {
                    assert!(aperture.contains_range(&mapped.range));
                    assert!(window.contains_range(&mapped.range));
                    bench.domain.unmap_low(&mapped).expect("hardware that answers");
                }
            }
        }
    }
    confined(bench, "dev", &[], "after every edge");
}

/// Buffers and plans of impossible lengths.
fn requests(digest: &mut Digest, bench: &Bench) {
    for len in edges() {
        let plan = Plan::new(len).device(bench.dev(), Access::all()).solve();
        digest.answer(&plan.map(|_| ()));
        let iova = bench.dev().reserve_iova::<Vec<u8>>(len);
        digest.answer(&iova.map(|held| held.address()));
        if len > 1 << 40 || len == 0 {
            assert!(bench.dev().alloc_coherent(len).is_err(), "{len:#x} bytes of memory");
        }
    }
}

#[test]
fn every_edge_has_the_same_answer_in_every_build() {
    let mut digest = Digest { hash: 0xcbf2_9ce4_8422_2325, answers: 0, refused: 0 };
    ranges(&mut digest);
    for case in Case::all().iter().step_by(2) {
        let bench = Case { pool: 0, ..case.clone() }.bench();
        requests(&mut digest, &bench);
        mappings(&mut digest, &bench);
        assert_eq!(bench.close(), [""; 0], "{case:?}");
    }
    let Digest { hash, answers, refused } = digest;
    println!("arithmetic: {answers} answers, {refused} refusals, digest {hash:016x}");
    assert!(refused > 10_000 && answers - refused > 10_000);
}
