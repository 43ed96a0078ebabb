//! Lists for backends that make one request a mapping: as few requests as the memory allows, and none
//! that stays if a later one is refused.
#![forbid(unsafe_code)]

use core::iter;

use super::TranslationError;
use crate::addr::{Iova, IovaRange, PhysRange};
use crate::table::TableError;

/// Maps pieces one behind the other from `iova` on. Pieces that adjoin physically are one call of
/// `map`; if one of these is refused, `unmap` is called with what lies before it, all of which was
/// mapped by this call. Both get `state`.
///
/// # Errors
/// What `map` says, or [`TableError::OutsideInput`] for pieces that pass the last address.
pub fn map_joined<S>(
    state: &mut S,
    iova: Iova,
    pieces: impl Iterator<Item = PhysRange>,
    mut map: impl FnMut(&mut S, Iova, PhysRange) -> Result<(), TranslationError>,
    unmap: impl FnOnce(&mut S, IovaRange),
) -> Result<(), TranslationError> {
    let mut written = 0u64;
    for run in joined(pieces) {
        let len = run.len();
        let place = iova.checked_add(written).filter(|at| IovaRange::new(*at, len).is_ok());
        let mapped = match place {
            Some(at) => map(state, at, run),
            None => Err(TableError::OutsideInput { iova, len, input_bits: 64 }.into()),
        };
        if let Err(error) = mapped {
            if let Ok(before) = IovaRange::new(iova, written) {
                unmap(state, before);
            }
            return Err(error);
        }
        // What was mapped lies inside the address space, from `iova` on.
        written = written.wrapping_add(len);
    }
    Ok(())
}

/// Joins pieces that adjoin physically.
fn joined(pieces: impl Iterator<Item = PhysRange>) -> impl Iterator<Item = PhysRange> {
    let mut pieces = pieces.peekable();
    iter::from_fn(move || {
        let mut run = pieces.next()?;
        while let Some(longer) = pieces.peek().and_then(|next| join(run, *next)) {
            run = longer;
            pieces.next();
        }
        Some(run)
    })
}

/// Both in one, if `next` begins where `run` ends and there is a length for both.
fn join(run: PhysRange, next: PhysRange) -> Option<PhysRange> {
    let len = run.len().checked_add(next.len()).filter(|_| run.is_followed_by(&next))?;
    PhysRange::new(run.start(), len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PhysAddr;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn phys(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a range")
    }

    /// What was mapped, and what was unmapped of it: address and length.
    #[derive(Debug, Default, PartialEq)]
    struct Calls {
        maps: Vec<(u64, PhysRange)>,
        unmapped: Option<(u64, u64)>,
    }

    /// Maps, with the call that has this number refused.
    fn mapped(iova: u64, pieces: &[PhysRange], refuse: usize) -> (Calls, Option<TableError>) {
        let mut calls = Calls::default();
        let map = |calls: &mut Calls, at: Iova, run| {
            if calls.maps.len() == refuse {
                return Err(TableError::NoAccess.into());
            }
            calls.maps.push((at.raw(), run));
            Ok(())
        };
        let unmap = |calls: &mut Calls, range: IovaRange| {
            calls.unmapped = Some((range.start().raw(), range.len()));
        };
        let pieces = pieces.iter().copied();
        let error = match map_joined(&mut calls, Iova::new(iova), pieces, map, unmap) {
            Ok(()) => None,
            Err(TranslationError::Table(error)) => Some(error),
            Err(other) => panic!("{other}"),
        };
        (calls, error)
    }

    #[test]
    fn what_adjoins_is_one_request() {
        let pieces = [
            phys(0x1000, 0x1000),
            phys(0x2000, 0x3000),
            phys(0x9000, 0x1000),
            phys(0x8000, 0x1000),
        ];
        let all = [
            (0x10_0000, phys(0x1000, 0x4000)),
            (0x10_4000, phys(0x9000, 0x1000)),
            (0x10_5000, phys(0x8000, 0x1000)),
        ];
        assert_eq!(
            mapped(0x10_0000, &pieces, 9),
            (Calls { maps: all.into(), unmapped: None }, None)
        );
        for (refuse, unmapped) in
            [(0, None), (1, Some((0x10_0000, 0x4000))), (2, Some((0x10_0000, 0x5000)))]
        {
            let calls = Calls { maps: all[..refuse].into(), unmapped };
            assert_eq!(mapped(0x10_0000, &pieces, refuse), (calls, Some(TableError::NoAccess)));
        }
        assert_eq!(mapped(0x10_0000, &[], 0), (Calls::default(), None));
    }

    #[test]
    fn the_last_address_is_an_address_and_nothing_lies_behind() {
        let top = 0u64.wrapping_sub(0x2000);
        let pieces = [phys(0x1000, 0x1000), phys(0x5000, 0x1000), phys(0x9000, 0x1000)];
        let maps = [(top, pieces[0]), (top + 0x1000, pieces[1])];
        let (calls, error) = mapped(top, &pieces[..2], 9);
        assert_eq!((calls, error), (Calls { maps: maps.into(), unmapped: None }, None));
        let (calls, error) = mapped(top, &pieces, 9);
        let unmapped = Some((top, 0x2000));
        assert_eq!(calls, Calls { maps: maps.into(), unmapped });
        let len = 0x1000;
        assert_eq!(
            error,
            Some(TableError::OutsideInput { iova: Iova::new(top), len, input_bits: 64 })
        );
        // Lengths whose sum is no length: two requests, the second of which is too long.
        let half = 1 << 63;
        let (calls, error) = mapped(0x1000, &[phys(0, half), phys(half, half)], 9);
        let maps = [(0x1000, phys(0, half))];
        assert_eq!(calls, Calls { maps: maps.into(), unmapped: Some((0x1000, half)) });
        let iova = Iova::new(0x1000);
        assert_eq!(error, Some(TableError::OutsideInput { iova, len: half, input_bits: 64 }));
    }

    proptest! {
        /// However the pieces lie, each byte is mapped to what it would be without joining.
        #[test]
        fn joining_moves_nothing(pieces in proptest::collection::vec((0u64..6, 1u64..4), 0..12)) {
            let pieces: Vec<_> = pieces.into_iter().map(|(at, len)| phys(at << 12, len << 12)).collect();
            let granules = |at: u64, run: &PhysRange| {
                let start = run.start().raw();
                (0..run.len() >> 12).map(move |n| (at + (n << 12), start + (n << 12)))
            };
            let mut at = 0x10_0000;
            let mut wanted = Vec::new();
            for piece in &pieces {
                wanted.extend(granules(at, piece));
                at += piece.len();
            }
            let (calls, error) = mapped(0x10_0000, &pieces, usize::MAX);
            prop_assert_eq!(error, None);
            let found: Vec<_> = calls.maps.iter().flat_map(|(at, run)| granules(*at, run)).collect();
            prop_assert_eq!(found, wanted);
            let adjoin = calls.maps.windows(2).any(|two| two[0].1.is_followed_by(&two[1].1));
            prop_assert!(!adjoin);
        }
    }
}
