//! Reading tables of firmware's: unaligned, and perhaps broken.
#![forbid(unsafe_code)]

/// Why bytes are not the table that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// Another table, or none.
    #[error("the table's signature is {found:?}, not {expected:?}")]
    Signature {
        /// What was asked for.
        expected: [u8; 4],
        /// What is there.
        found: [u8; 4],
    },
    /// The table is longer than the bytes, or shorter than its header.
    #[error("the table says that it has {said} bytes, but {given} were given")]
    Length {
        /// What its header says.
        said: u32,
        /// How many bytes there are.
        given: usize,
    },
    /// The bytes do not add up to zero.
    #[error("the table's checksum is wrong: its bytes add up to {sum:#x}, not 0")]
    Checksum {
        /// Their sum.
        sum: u8,
    },
}

/// Bytes with readers that never leave them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    pub(super) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(super) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    pub(super) fn from(self, at: usize) -> Option<Self> {
        self.0.get(at..).map(Self)
    }

    /// The structures from `at` on, whose length `len_of` reads; ends at one that is cut off or
    /// shorter than `least`.
    pub(super) fn structures(
        self,
        at: usize,
        least: usize,
        len_of: impl Fn(Bytes<'a>) -> Option<usize>,
    ) -> impl Iterator<Item = Bytes<'a>> {
        let mut rest = self.from(at);
        core::iter::from_fn(move || {
            let bytes = rest?;
            let len = len_of(bytes).filter(|len| *len >= least.max(1))?;
            let one = bytes.0.get(..len).map(Bytes)?;
            rest = bytes.from(len);
            Some(one)
        })
    }
}

/// Checks signature, length and checksum; gives the table without what follows it.
pub(super) fn check(bytes: &[u8], signature: [u8; 4]) -> Result<Bytes<'_>, AcpiError> {
    let given = bytes.len();
    let table = Bytes(bytes);
    let found = table.array(0).unwrap_or_default();
    if found != signature {
        return Err(AcpiError::Signature { expected: signature, found });
    }
    let said = table.u32(4).unwrap_or(0);
    let len = usize::try_from(said).ok().filter(|len| *len >= 36);
    let table = len.and_then(|len| bytes.get(..len)).ok_or(AcpiError::Length { said, given })?;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if sum != 0 {
        return Err(AcpiError::Checksum { sum });
    }
    Ok(Bytes(table))
}

/// Tables for the tests.
#[cfg(test)]
pub(super) mod testing {
    use std::vec::Vec;

    /// A table with this signature and what follows the 36 bytes of the header.
    pub(crate) fn table(signature: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = signature.to_vec();
        bytes.extend((36 + body.len() as u32).to_le_bytes());
        bytes.resize(36, 0);
        bytes.extend(body);
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = 0u8.wrapping_sub(sum);
        bytes
    }

    /// Bytes of several pieces.
    pub(crate) fn join(pieces: &[&[u8]]) -> Vec<u8> {
        pieces.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_table_is_said_to_be_broken() {
        let good = testing::table(*b"DMAR", &[1, 2, 3]);
        assert_eq!(check(&good, *b"DMAR").map(|table| table.0.len()), Ok(39));
        assert!(
            matches!(check(&good, *b"IVRS"), Err(AcpiError::Signature { found, .. }) if found == *b"DMAR")
        );
        assert!(matches!(
            check(&good[..38], *b"DMAR"),
            Err(AcpiError::Length { said: 39, given: 38 })
        ));
        let mut bad = good.clone();
        bad[38] ^= 1;
        assert!(matches!(check(&bad, *b"DMAR"), Err(AcpiError::Checksum { .. })));
        assert!(matches!(check(&[], *b"DMAR"), Err(AcpiError::Signature { .. })));
        let mut longer = good;
        longer.extend([9; 5]);
        assert_eq!(check(&longer, *b"DMAR").map(|table| table.0.len()), Ok(39));
    }
}
