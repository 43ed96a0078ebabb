//! The disk of the rows that have one: filled before the run, compared afterwards.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Its size in bytes: 2048 sectors.
const SIZE: usize = 1 << 20;

/// What the first half holds; the guest knows it too.
fn first(place: usize) -> u8 {
    let mixed = (place as u32 ^ 0x9e37).wrapping_mul(0x9e37_79b9);
    (mixed >> 13) as u8 ^ mixed as u8
}

/// What the guest makes of a byte of the first half, in the second.
fn changed(byte: u8) -> u8 {
    byte.wrapping_mul(3) ^ 0x5a
}

/// Fills the file; the second half with neither what is read nor what is written.
pub(super) fn fill(path: &Path) -> Result<()> {
    let second = |place| !changed(first(place - SIZE / 2));
    let bytes: Vec<u8> = (0..SIZE)
        .map(|place| if place < SIZE / 2 { first(place) } else { second(place) })
        .collect();
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// Compares all of the file with what the guest had to make of it; the first difference in words.
pub(super) fn compare(path: &Path) -> Result<Option<String>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(difference(&bytes))
}

fn difference(bytes: &[u8]) -> Option<String> {
    if bytes.len() != SIZE {
        return Some(format!("the disk's file has {} bytes, not {SIZE}", bytes.len()));
    }
    let wanted = (0..SIZE / 2).map(first).chain((0..SIZE / 2).map(|place| changed(first(place))));
    let differs = |(_, (found, wanted)): &(usize, (&u8, u8))| **found != *wanted;
    let (at, (found, wanted)) = bytes.iter().zip(wanted).enumerate().find(differs)?;
    Some(format!("the disk's file has {found:#04x} at {at:#x}, not {wanted:#04x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_not_written_differs_everywhere() {
        let folder = std::env::temp_dir().join(format!("lab-disk-{}", std::process::id()));
        fill(&folder).unwrap();
        let mut bytes = fs::read(&folder).unwrap();
        fs::remove_file(&folder).unwrap();
        assert!(difference(&bytes).unwrap().contains("at 0x80000"));
        for place in SIZE / 2..SIZE {
            bytes[place] = changed(bytes[place - SIZE / 2]);
        }
        assert_eq!(difference(&bytes), None);
        bytes[SIZE - 1] ^= 1;
        assert!(difference(&bytes).unwrap().contains("at 0xfffff"));
        assert!(difference(&bytes[1..]).is_some());
    }
}
