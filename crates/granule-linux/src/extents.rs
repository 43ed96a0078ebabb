//! Stretches of address space that are free: first fit, neighbours joined.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use granule::addr::PhysRange;

/// Free stretches by their first address.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    free: BTreeMap<u64, u64>,
}

impl Extents {
    /// Takes `size` bytes at a multiple of `align` (a power of two), inside `window` if one is given:
    /// the lowest place there is.
    pub(crate) fn take(&mut self, size: u64, align: u64, window: Option<PhysRange>) -> Option<u64> {
        let (first, last) =
            window.map_or((0, u64::MAX), |range| (range.start().raw(), range.last().raw()));
        let fits = |(start, len): (&u64, &u64)| {
            let end = start.checked_add(*len)?;
            let at = (*start).max(first).checked_next_multiple_of(align)?;
            let stop = at.checked_add(size)?;
            (stop <= end && stop - 1 <= last).then_some(at)
        };
        let at = self.free.iter().find_map(fits)?;
        self.cut(at, size).then_some(at)
    }

    /// Takes exactly these bytes; `false` if they are not all free.
    pub(crate) fn cut(&mut self, at: u64, size: u64) -> bool {
        let Some((&start, &len)) = self.free.range(..=at).next_back() else { return false };
        let (before, Some(after)) = (at - start, len.checked_sub(at - start + size)) else {
            return false;
        };
        self.free.remove(&start);
        if before > 0 {
            self.free.insert(start, before);
        }
        if after > 0 {
            self.free.insert(at + size, after);
        }
        true
    }

    /// Gives bytes back that are not free.
    pub(crate) fn put(&mut self, at: u64, size: u64) {
        let (mut start, mut len) = (at, size);
        if let Some((&before, &bytes)) = self.free.range(..at).next_back() {
            if before + bytes == at {
                (start, len) = (before, len + bytes);
            }
        }
        if let Some(after) = self.free.remove(&(at + size)) {
            len += after;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use granule::addr::PhysAddr;
    use proptest::prelude::*;

    proptest! {
        /// Against a list of single units.
        #[test]
        fn what_is_taken_is_free_aligned_and_inside(
            steps in proptest::collection::vec((1u64..9, 0u32..4, 0u64..40, any::<bool>()), 1..80)
        ) {
            let mut extents = Extents::default();
            extents.put(16, 64);
            let mut free = [true; 64];
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (size, align, low, take) in steps {
                if !take && !taken.is_empty() {
                    let (at, size) = taken.swap_remove((low as usize) % taken.len());
                    extents.put(at, size);
                    (at..at + size).for_each(|unit| free[(unit - 16) as usize] = true);
                    continue;
                }
                let align = 1 << align;
                let window = PhysRange::new(PhysAddr::new(low), 40).expect("legal");
                let fits = |at: u64| at % align == 0 && at >= low && at + size <= low + 40
                    && (at..at + size).all(|unit| (16..80).contains(&unit) && free[(unit - 16) as usize]);
                let want = (16..80).find(|at| fits(*at));
                let got = extents.take(size, align, Some(window));
                prop_assert_eq!(got, want);
                if let Some(at) = got {
                    (at..at + size).for_each(|unit| free[(unit - 16) as usize] = false);
                    taken.push((at, size));
                }
            }
            taken.into_iter().for_each(|(at, size)| extents.put(at, size));
            prop_assert_eq!(extents.free.into_iter().collect::<Vec<_>>(), vec![(16, 64)]);
        }
    }
}
