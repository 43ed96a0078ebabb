//! Numbers that a unit knows its address spaces by.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

/// The numbers in use, sorted.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    taken: Vec<u32>,
}

impl Ids {
    /// Takes the lowest free number from `first` to `last`.
    pub(crate) fn take(&mut self, first: u32, last: u32) -> Option<u32> {
        let mut id = first;
        // Sorted, so that one pass finds the first gap.
        for taken in self.taken.iter().skip_while(|taken| **taken < first) {
            if *taken != id {
                break;
            }
            id = id.checked_add(1)?;
        }
        if id > last || self.taken.try_reserve(1).is_err() {
            return None;
        }
        let at = self.taken.partition_point(|taken| *taken < id);
        self.taken.insert(at, id);
        Some(id)
    }

    /// Gives a number back.
    pub(crate) fn release(&mut self, id: u32) {
        self.taken.retain(|taken| *taken != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_is_taken() {
        let mut ids = Ids::default();
        assert_eq!(ids.take(5, 7), Some(5));
        assert_eq!(ids.take(5, 7), Some(6));
        assert_eq!(ids.take(5, 7), Some(7));
        assert_eq!(ids.take(5, 7), None);
        ids.release(6);
        assert_eq!(ids.take(5, 7), Some(6));
        assert_eq!(ids.take(u32::MAX, u32::MAX), Some(u32::MAX));
        assert_eq!(ids.take(u32::MAX, u32::MAX), None);
    }
}
