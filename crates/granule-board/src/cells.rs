//! Reading a property cell by cell.

/// Reads big-endian 32-bit cells from a property value.
#[derive(Clone, Debug)]
pub(crate) struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Cells<'a> {
    pub(crate) fn new(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next cell, or `None` at the end or where less than a cell is left.
    pub(crate) fn cell(&mut self) -> Option<u32> {
        let (four, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(u32::from_be_bytes(*four))
    }

    /// Skips `count` cells.
    pub(crate) fn skip(&mut self, count: usize) -> Option<()> {
        self.rest = self.rest.get(count.checked_mul(4)?..)?;
        Some(())
    }

    /// A number of `count` cells; `None` if it is cut or does not fit 64 bits. No cells are 0.
    pub(crate) fn number(&mut self, count: u32) -> Option<u64> {
        let mut value: u64 = 0;
        for _ in 0..count {
            if value >> 32 != 0 {
                return None;
            }
            value = (value << 32) | u64::from(self.cell()?);
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
        assert_eq!(Cells::new(&bytes).number(2), Some(0x1_0000_0002));
        assert_eq!(Cells::new(&bytes).number(3), None);
        assert_eq!(Cells::new(&bytes).number(0), Some(0));
        assert_eq!(Cells::new(&bytes).number(u32::MAX), None);
    }

    #[test]
    fn a_cut_cell_is_no_cell() {
        let mut cells = Cells::new(&[0, 0, 0, 1, 0]);
        assert_eq!(cells.cell(), Some(1));
        assert_eq!(cells.cell(), None);
        assert!(!cells.is_empty());
        assert_eq!(cells.skip(usize::MAX), None);
    }
}
