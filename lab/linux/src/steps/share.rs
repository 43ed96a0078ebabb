//! `granule share --live`: the main job on devices that are there.

use crate::{Failure, Guest, shell};

pub(super) fn share(guest: &mut Guest) -> Result<(), Failure> {
    let [first, second] = guest.machine.pair()?.map(Clone::clone);
    let line = format!(
        "granule share --live {},{} --backend {} --size 8M --seconds 0",
        first.address, second.address, guest.interface
    );
    let outcome = shell::run(&line)?;
    outcome.succeeds(&mut guest.report, "share works");
    let words = ["8 MiB", &first.address, &second.address];
    outcome.prints(&mut guest.report, "its table has both devices", &words);
    // Huge pages, where the machine has some.
    shell::must("echo 8 > /proc/sys/vm/nr_hugepages")?;
    let outcome = shell::run(&line)?;
    outcome.succeeds(&mut guest.report, "share works with huge pages");
    outcome.prints(&mut guest.report, "they are used", &["4 x 2M"]);
    shell::must("echo 0 > /proc/sys/vm/nr_hugepages")?;
    Ok(())
}
