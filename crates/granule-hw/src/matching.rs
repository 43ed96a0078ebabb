//! The stream ids that an id with a mask stands for.
#![forbid(unsafe_code)]

use granule::domain::StreamId;

/// The ids below `limit` that match a stream; `None` if there are none. Mask bits that no id below
/// `limit` can have are ignored.
pub(crate) fn matching(
    stream: StreamId,
    limit: u32,
) -> Option<impl Iterator<Item = u32> + Clone + use<>> {
    let width = u32::BITS - limit.saturating_sub(1).leading_zeros();
    let reach = u32::MAX.checked_shr(u32::BITS - width).unwrap_or(0);
    let mask = stream.mask & reach;
    let base = stream.id & !mask;
    // Counts through the subsets of the mask: adding one with the other bits set carries over them.
    let subset = move |at: &u32| (*at != mask).then(|| (at | !mask).wrapping_add(1) & mask);
    let ids = core::iter::successors(Some(0), subset)
        .map(move |bits| base | bits)
        .filter(move |id| *id < limit);
    ids.clone().next().map(|_| ids)
}

/// Does something for all ids, or undoes it for those before the one where it failed.
pub(crate) fn for_all<E>(
    ids: impl Iterator<Item = u32> + Clone,
    act: impl Fn(u32) -> Result<(), E>,
    undo: impl Fn(u32) -> Result<(), E>,
) -> Result<(), E> {
    for (index, id) in ids.clone().enumerate() {
        if let Err(error) = act(id) {
            for done in ids.take(index) {
                // The first error is the one to tell of.
                let _ = undo(done);
            }
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::cell::RefCell;

    use super::*;

    fn ids(id: u32, mask: u32, limit: u32) -> Option<Vec<u32>> {
        matching(StreamId { id, mask }, limit).map(Iterator::collect)
    }

    #[test]
    fn masks_are_counted_through() {
        assert_eq!(ids(5, 0, 16), Some([5].into()));
        assert_eq!(ids(16, 0, 16), None);
        assert_eq!(ids(7, 0b1010, 16), Some([5, 7, 13, 15].into()));
        assert_eq!(ids(7, 0b1010, 14), Some([5, 7, 13].into()));
        assert_eq!(ids(3, u32::MAX, 4), Some([0, 1, 2, 3].into()));
        assert_eq!(ids(0, 0, 1), Some([0].into()));
        assert_eq!(ids(0, 0, 0), None);
        assert_eq!(ids(u32::MAX, 0, u32::MAX), None);
    }

    #[test]
    fn all_or_those_before_are_undone() {
        let log = RefCell::new(Vec::new());
        let act = |limit| {
            let log = &log;
            move |id: u32| {
                log.borrow_mut().push(i64::from(id));
                if id < limit { Ok(()) } else { Err(id) }
            }
        };
        let undo = |id: u32| {
            log.borrow_mut().push(-i64::from(id));
            Err(0)
        };
        assert_eq!(for_all(1..4, act(9), undo), Ok(()));
        assert_eq!(for_all(4..8, act(6), undo), Err(6));
        assert_eq!(log.into_inner(), [1, 2, 3, 4, 5, 6, -4, -5]);
    }
}
