//! The example that drives an NVMe disk: what it reads is what the disk's file holds.

use std::fs;

use crate::{Failure, Guest, shell};

/// What a byte of the disk's first half is: `xtask/src/lab/disk.rs` fills it so.
fn disk(place: usize) -> u8 {
    let mixed = (place as u32 ^ 0x9e37).wrapping_mul(0x9e37_79b9);
    (mixed >> 13) as u8 ^ mixed as u8
}

pub(super) fn read(guest: &mut Guest) -> Result<(), Failure> {
    const FILE: &str = "/tmp/blocks";
    let pci = guest.machine.disk()?.clone();
    pci.give_to_vfio()?;
    for (first, count) in [(0, 8), (37, 21)] {
        let outcome = shell::run(&format!(
            "nvme_identify {} --backend {} --lba {first} --blocks {count} --output {FILE}",
            pci.address, guest.interface
        ))?;
        if !outcome.succeeds(&mut guest.report, "the example works") {
            continue;
        }
        outcome.prints(&mut guest.report, "it prints the serial number", &["granule-lab"]);
        let read = fs::read(FILE)?;
        let wanted: Vec<u8> = (512 * first..512 * (first + count)).map(disk).collect();
        let what = format!("{count} blocks from {first} are those of the disk's file");
        guest.report.check(&what, read == wanted, || {
            let differs = read.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
            format!("{} bytes of {}, the first difference at {differs:?}", read.len(), wanted.len())
        });
        fs::remove_file(FILE)?;
    }
    Ok(())
}
