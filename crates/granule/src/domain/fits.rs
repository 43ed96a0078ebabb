//! Whether memory fits the placement that it is to be mapped at: what is checked of calls from
//! outside, before anything is taken.

use super::{DomainError, Placement};
use crate::addr::PhysRange;

/// Pieces, one behind the other, are as long as the placement.
pub(super) fn filled(
    place: &Placement,
    pieces: impl Iterator<Item = PhysRange>,
) -> Result<(), DomainError> {
    let memory = pieces.fold(0u64, |sum, piece| sum.saturating_add(piece.len()));
    if memory == place.size {
        Ok(())
    } else {
        Err(DomainError::Length { size: place.size, memory })
    }
}

/// Pieces at their offsets follow each other without overlap, inside the placement.
pub(super) fn spread(
    place: &Placement,
    pieces: impl Iterator<Item = (u64, PhysRange)>,
) -> Result<(), DomainError> {
    let mut free = 0;
    for (offset, piece) in pieces {
        let end = offset.checked_add(piece.len()).filter(|end| *end <= place.size);
        match end {
            Some(end) if offset >= free => free = end,
            _ => return Err(DomainError::Piece { offset, len: piece.len(), size: place.size }),
        }
    }
    Ok(())
}
