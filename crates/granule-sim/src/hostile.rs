//! A device that wants everything: it lists all that it can reach, stale entries included, and
//! probes its space at random, so that caches hold as much as they can when something is unmapped.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use granule::addr::{Access, DmaAddr, Iova, PhysAddr, PhysRange};

use crate::device::SimDevice;
use crate::iommu::Reach;

/// Memory that a device may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The range.
    pub range: PhysRange,
    /// What it may do there.
    pub access: Access,
}

/// Memory that a device reaches and should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{access} of {phys} is reached by {:?} at IOVA {:#x}, and not allowed", reach.via, reach.iova)]
pub struct Violation {
    /// The part that is not allowed.
    pub phys: PhysRange,
    /// The right that is not allowed.
    pub access: Access,
    /// How it is reached.
    pub reach: Reach,
}

/// A probe that got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// What the device emitted.
    pub address: DmaAddr,
    /// Where it led.
    pub phys: PhysAddr,
    /// What the device did.
    pub access: Access,
}

/// What a device reaches, compared with what it may. Pure, for reports of one's own.
pub fn violations(reach: &[Reach], allowed: &[Allowed]) -> Vec<Violation> {
    let mut found = Vec::new();
    for access in [Access::READ, Access::WRITE] {
        let merged = merge(allowed.iter().filter(|one| one.access.contains(access)));
        for reach in reach.iter().filter(|reach| reach.access.contains(access)) {
            for phys in outside(reach.phys, &merged) {
                found.push(Violation { phys, access, reach: *reach });
            }
        }
    }
    found
}

/// Allowed ranges as first and last address, joined where they touch.
fn merge<'a>(allowed: impl Iterator<Item = &'a Allowed>) -> BTreeMap<u64, u64> {
    let mut sorted: Vec<_> = allowed.map(|one| one.range).collect();
    sorted.sort();
    let mut merged: BTreeMap<u64, u64> = BTreeMap::new();
    for range in sorted {
        let (first, last) = (range.start().raw(), range.last().raw());
        match merged.last_entry() {
            Some(mut entry) if first <= entry.get().saturating_add(1) => {
                let joined = last.max(*entry.get());
                entry.insert(joined);
            }
            _ => {
                merged.insert(first, last);
            }
        }
    }
    merged
}

/// The parts of `range` that no allowed range covers.
fn outside(range: PhysRange, allowed: &BTreeMap<u64, u64>) -> Vec<PhysRange> {
    let mut left = Vec::new();
    let mut push = |first: u64, last: u64| {
        left.extend(PhysRange::from_inclusive(PhysAddr::new(first), PhysAddr::new(last)).ok());
    };
    let (mut at, end) = (range.start().raw(), range.last().raw());
    let before = allowed.range(..=at).next_back().map(|(first, _)| *first).unwrap_or(at);
    for (first, last) in allowed.range(before..=end) {
        if *last < at {
            continue;
        }
        if *first > at {
            push(at, first - 1);
        }
        match last.checked_add(1) {
            Some(next) if next <= end => at = next,
            _ => return left,
        }
    }
    push(at, end);
    left
}

/// A device in hostile hands.
#[derive(Clone, Debug)]
pub struct Hostile {
    device: SimDevice,
    rng: fastrand::Rng,
    /// Addresses that led somewhere before: the likeliest to be stale now.
    known: Vec<DmaAddr>,
}

impl Hostile {
    /// Takes a device over. Same seed, same probes.
    pub fn new(device: SimDevice, seed: u64) -> Self {
        Self { device, rng: fastrand::Rng::with_seed(seed), known: Vec::new() }
    }

    /// The device.
    pub fn device(&self) -> &SimDevice {
        &self.device
    }

    /// Everything it reaches now, stale entries included.
    pub fn reach(&self) -> Vec<Reach> {
        self.device.reachable()
    }

    /// Everything it reaches now and may not.
    pub fn violations(&self, allowed: &[Allowed]) -> Vec<Violation> {
        violations(&self.reach(), allowed)
    }

    /// Touches every page that is reached now, at its first and its last byte, so that the caches
    /// hold all of it; returns what got through.
    pub fn touch_all(&mut self) -> Vec<Hit> {
        let mut hits = Vec::new();
        for reach in self.reach() {
            let mut offset = 0;
            while offset < reach.phys.len() {
                let at = |offset| self.device.address_of(reach.iova.checked_add(offset)?);
                let page_last = offset.saturating_add(reach.page_size.max(1) - 1);
                let last = page_last.min(reach.phys.len() - 1);
                let ends = [at(offset), at(last)];
                for address in ends.into_iter().flatten() {
                    hits.extend(self.try_both(address));
                }
                offset = last + 1;
            }
        }
        hits
    }

    /// Probes `count` addresses: half of the time ones that are or were mapped, or their neighbours,
    /// else anywhere in its space. Returns what got through.
    pub fn probe(&mut self, count: usize) -> Vec<Hit> {
        let reach = self.reach();
        let mut hits = Vec::new();
        for _ in 0..count {
            if let Some(address) = self.pick(&reach) {
                hits.extend(self.try_both(address));
            }
        }
        hits
    }

    fn pick(&mut self, reach: &[Reach]) -> Option<DmaAddr> {
        let near = [-0x4001i64, -0x1000, -1, 0, 1, 0xfff, 0x1000, 0x4000];
        match self.rng.u8(0..4) {
            0 if !self.known.is_empty() => {
                let place = self.rng.usize(0..self.known.len());
                self.known.get(place).copied()
            }
            1 if !reach.is_empty() => {
                let reach = reach[self.rng.usize(0..reach.len())];
                let inside = self.rng.u64(0..reach.phys.len());
                self.device.address_of(reach.iova.checked_add(inside)?)
            }
            2 if !reach.is_empty() => {
                let reach = reach[self.rng.usize(0..reach.len())];
                let edge = if self.rng.bool() { 0 } else { reach.phys.len() };
                let offset = near[self.rng.usize(0..near.len())];
                let at = reach.iova.raw().wrapping_add(edge).wrapping_add_signed(offset);
                self.device.address_of(Iova::new(at))
            }
            _ => {
                let bits = self.rng.u32(1..=64);
                let at = self.rng.u64(..) >> (64 - bits);
                self.device.address_of(Iova::new(at))
            }
        }
    }

    fn try_both(&mut self, address: DmaAddr) -> Vec<Hit> {
        let mut hits = Vec::new();
        for access in [Access::READ, Access::WRITE] {
            if let Ok(target) = self.device.resolve(address, access) {
                hits.push(Hit { address, phys: target.phys, access });
            }
        }
        if !hits.is_empty() && self.known.last() != Some(&address) && self.known.len() < 1 << 16 {
            self.known.push(address);
        }
        hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommu::Via;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    fn reach(start: u64, len: u64, access: Access) -> Reach {
        let (iova, via) = (Iova::new(0), Via::Tables);
        Reach { phys: range(start, len), access, iova, page_size: 0x1000, via }
    }

    fn allow(start: u64, len: u64, access: Access) -> Allowed {
        Allowed { range: range(start, len), access }
    }

    #[test]
    fn what_is_allowed_in_pieces_is_allowed() {
        let allowed = [
            allow(0x3000, 0x1000, Access::all()),
            allow(0x1000, 0x2000, Access::all()),
            allow(0x1800, 0x10, Access::READ),
        ];
        assert!(violations(&[reach(0x1000, 0x3000, Access::all())], &allowed).is_empty());
    }

    #[test]
    fn every_byte_and_right_too_many_is_named() {
        let allowed = [allow(0x1000, 0x1000, Access::READ), allow(0x4000, 0x1000, Access::all())];
        let found = violations(&[reach(0x800, 0x4000, Access::READ)], &allowed);
        let parts: Vec<_> = found.iter().map(|violation| violation.phys).collect();
        assert_eq!(parts, [range(0x800, 0x800), range(0x2000, 0x2000)]);
        let found = violations(&[reach(0x1000, 0x1000, Access::all())], &allowed);
        assert_eq!((found.len(), found[0].access), (1, Access::WRITE));
        assert_eq!(violations(&[reach(u64::MAX, 1, Access::READ)], &[]).len(), 1);
        assert!(found[0].to_string().contains("not allowed"));
    }
}
