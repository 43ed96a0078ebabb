//! Numbers that a unit tells address spaces apart by: ASIDs, process ids.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

/// Hands out numbers from 1 on. 0 is kept back: it is what a register reads before anybody wrote it.
#[derive(Debug)]
pub(crate) struct Numbers {
    next: u32,
    limit: u32,
    free: Vec<u32>,
}

impl Numbers {
    /// The numbers below `1 << bits`.
    pub(crate) fn new(bits: u32) -> Self {
        let limit = 1u32.checked_shl(bits).unwrap_or(u32::MAX);
        Self { next: 1, limit, free: Vec::new() }
    }

    /// A number that nobody holds. Room for its return is made here, so that giving back never
    /// allocates.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        if self.next >= self.limit {
            return None;
        }
        let handed_out = usize::try_from(self.next).ok()?;
        self.free.try_reserve(handed_out).ok()?;
        self.next += 1;
        Some(self.next - 1)
    }

    /// Takes a number back: nothing is cached under it any more.
    pub(crate) fn give_back(&mut self, number: u32) {
        self.free.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_kept_back_and_numbers_come_round() {
        let mut numbers = Numbers::new(2);
        assert_eq!([numbers.take(), numbers.take(), numbers.take()], [Some(1), Some(2), Some(3)]);
        assert_eq!(numbers.take(), None);
        numbers.give_back(2);
        assert_eq!((numbers.take(), numbers.take()), (Some(2), None));
    }
}
