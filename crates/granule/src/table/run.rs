//! Runs of entries: fill them if all are free, clear them and count. The inner loops.
#![forbid(unsafe_code)]

use super::Entry;

/// Entries handled at once: enough to hide the check behind the stores.
const STEP: usize = 8;

/// Writes `first`, `first + stride`, … into entries that are all zero.
///
/// On a conflict, tells how many entries were written; those behind them were not touched.
#[inline(always)]
pub(super) fn fill<E: Entry>(entries: &[E], first: u64, stride: u64) -> Result<(), usize> {
    let mut value = first;
    let mut done = 0;
    let mut eights = entries.chunks_exact(STEP);
    for eight in &mut eights {
        if eight.iter().fold(0, |all, entry| all | entry.peek()) != 0 {
            return Err(done);
        }
        for (n, entry) in eight.iter().enumerate() {
            entry.fill(value.wrapping_add(stride.wrapping_mul(n as u64)));
        }
        value = value.wrapping_add(stride.wrapping_mul(STEP as u64));
        done += STEP;
    }
    for entry in eights.remainder() {
        if entry.peek() != 0 {
            return Err(done);
        }
        entry.fill(value);
        value = value.wrapping_add(stride);
        done += 1;
    }
    Ok(())
}

/// As [`fill`]; on a conflict nothing stays written, and the answer is false.
#[inline(always)]
pub(super) fn fill_or_restore<E: Entry>(entries: &[E], first: u64, stride: u64) -> bool {
    if let [one] = entries {
        let free = one.peek() == 0;
        if free {
            one.fill(first);
        }
        return free;
    }
    match fill(entries, first, stride) {
        Ok(()) => true,
        Err(written) => {
            entries.iter().take(written).for_each(|entry| entry.fill(0));
            false
        }
    }
}

/// Writes entries of a table that nobody else sees.
#[inline(always)]
pub(super) fn fill_private<E: Entry>(entries: &[E], first: u64, stride: u64) {
    let mut value = first;
    let mut eights = entries.chunks_exact(STEP);
    for eight in &mut eights {
        for (n, entry) in eight.iter().enumerate() {
            entry.fill(value.wrapping_add(stride.wrapping_mul(n as u64)));
        }
        value = value.wrapping_add(stride.wrapping_mul(STEP as u64));
    }
    for entry in eights.remainder() {
        entry.fill(value);
        value = value.wrapping_add(stride);
    }
}

/// Zeroes entries; returns how many were not zero.
#[inline(always)]
pub(super) fn clear<E: Entry>(entries: &[E]) -> usize {
    if let [one] = entries {
        let there = one.peek() != 0;
        one.fill(0);
        return usize::from(there);
    }
    let mut count = 0;
    let mut eights = entries.chunks_exact(STEP);
    for eight in &mut eights {
        // Entries of one mapping share a bit, so usually one look tells that all eight are there.
        let all = eight.iter().fold(!0, |all, entry| all & entry.peek()) != 0;
        count += if all { STEP } else { occupied(eight) };
        for entry in eight {
            entry.fill(0);
        }
    }
    for entry in eights.remainder() {
        count += usize::from(entry.peek() != 0);
        entry.fill(0);
    }
    count
}

#[inline(never)]
fn occupied<E: Entry>(entries: &[E]) -> usize {
    entries.iter().filter(|entry| entry.peek() != 0).count()
}
