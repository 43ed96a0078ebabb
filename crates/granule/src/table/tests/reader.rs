//! A second reader of the formats, written from the specifications' tables with plain numbers: it
//! shares no code with the engine.

use super::*;

/// One step of a walk.
enum Step {
    Fault,
    Table(u64),
    /// The address of the entry's own slot, not of its group.
    Page(u64),
    /// A 64 KiB page made of equal entries.
    Napot(u64),
    /// A page of this many bytes made of equal entries.
    Sized(u64, u64),
}

/// (granule bits, index bits, whether the root is short)
fn shape(name: &str) -> (u32, u32) {
    match name {
        "dart1" | "dart2" | "lpae16k" => (14, 11),
        "lpae4k" | "vtd2" | "amdv1" | "sv39" | "sv48" | "sv57" => (12, 9),
        "lpae64k" => (16, 13),
        _ => unreachable!(),
    }
}

fn step(name: &str, entry: u64, last: bool) -> Step {
    match name {
        "dart1" | "dart2" => {
            let to = match name {
                "dart1" => entry & 0xf_ffff_f000,
                _ => (entry & 0x3f_ffff_fc00) << 4,
            };
            match (entry & 1, last) {
                (0, _) => Step::Fault,
                (_, true) => Step::Page(to),
                _ => Step::Table(to),
            }
        }
        "vtd2" => {
            let to = entry & 0x000f_ffff_ffff_f000;
            match (entry & 3, last || entry & 0x80 != 0) {
                (0, _) => Step::Fault,
                (_, true) => Step::Page(to),
                _ => Step::Table(to),
            }
        }
        "amdv1" => {
            let to = entry & 0x000f_ffff_ffff_f000;
            match (entry & 1, (entry >> 9) & 7, last) {
                (0, ..) => Step::Fault,
                (_, 0, _) => Step::Page(to),
                (_, 7, _) => {
                    // The lowest 0 of the address stands where half the size would.
                    let mut half = 0x1000;
                    while to & half != 0 {
                        half <<= 1;
                    }
                    Step::Sized(to & !(half - 1), half * 2)
                }
                (_, _, true) => Step::Fault,
                (_, _, false) => Step::Table(to),
            }
        }
        "sv39" | "sv48" | "sv57" => {
            let to = ((entry >> 10) & ((1 << 44) - 1)) << 12;
            match (entry & 1, (entry >> 1) & 7, last) {
                (0, ..) | (_, 0, true) => Step::Fault,
                (_, 0, false) => Step::Table(to),
                // Svnapot: the low bits of the page number say how many pages.
                _ if entry >> 63 == 1 => Step::Napot(to & !0xffff),
                _ => Step::Page(to),
            }
        }
        _ => {
            let to = entry & 0x0000_ffff_ffff_f000;
            match (entry & 3, last) {
                (3, true) => Step::Page(to),
                (3, false) => Step::Table(to),
                (1, false) => Step::Page(to),
                _ => Step::Fault,
            }
        }
    }
}

/// Translates an address by the bytes that hardware sees.
pub(crate) fn translate(layout: &TableLayout, memory: &TestMemory, address: u64) -> Option<u64> {
    let name = layout.format.name();
    let (granule, index) = shape(name);
    let mut bits = granule + index * (layout.levels - 1);
    let per_root = if name.starts_with("dart") { 1 << index } else { u64::MAX };
    let first = address >> bits;
    let mut at = layout.roots[(first / per_root) as usize].raw() + first % per_root * 8;
    loop {
        match step(name, memory.hardware(at), bits == granule) {
            Step::Fault => return None,
            Step::Page(to) => return Some(to | address & ((1 << bits) - 1)),
            Step::Napot(to) => return Some(to | address & 0xffff),
            Step::Sized(to, size) => return Some(to | address & (size - 1)),
            Step::Table(to) => {
                bits -= index;
                at = to + ((address >> bits) & ((1 << index) - 1)) * 8;
            }
        }
    }
}
