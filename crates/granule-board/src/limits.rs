//! The limits that keep memory and time bounded whatever a blob says.

use crate::BoardError;

/// The largest blob that is read, in bytes. (Linux accepts 2 MiB on arm64.)
pub const MAX_BLOB_BYTES: usize = 4 << 20;
/// The most nodes in a tree. Real boards have a few thousand.
pub const MAX_NODES: usize = 1 << 16;
/// The deepest nesting of nodes. Real boards stay below 12.
pub const MAX_DEPTH: usize = 64;
/// The longest path of a node, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// The most streams on a board.
pub const MAX_STREAMS: usize = 1 << 14;
/// The most warnings kept; later ones are counted.
pub const MAX_WARNINGS: usize = 256;
/// The steps that may be spent on translating ranges, expanding maps and comparing streams.
const MAX_STEPS: u64 = 1 << 24;

/// Steps left to spend.
#[derive(Debug)]
pub(crate) struct Budget(u64);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(MAX_STEPS)
    }

    /// Takes `steps` off, or says that the tree asks for too much.
    pub(crate) fn spend(&mut self, steps: usize) -> Result<(), BoardError> {
        match self.0.checked_sub(steps as u64) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(BoardError::TooLarge { what: "the work to resolve it", limit: MAX_STEPS }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_runs_out_and_stays_out() {
        let mut budget = Budget::new();
        assert!(budget.spend(MAX_STEPS as usize).is_ok());
        assert!(budget.spend(1).is_err());
        assert!(budget.spend(0).is_ok());
    }
}
