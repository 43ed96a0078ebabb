//! A user who is not root.

use crate::{Failure, Guest, shell};

/// The nodes belong to root.
pub(super) fn permission(guest: &mut Guest) -> Result<(), Failure> {
    let pair = guest.machine.pair()?.map(Clone::clone);
    let outcome = shell::run_as_user(&guest.share_line(&[&pair[0], &pair[1]], 256))?;
    let words = ["permission denied", "/dev/", "chown"];
    outcome.is_refused(&mut guest.report, "share says which file, and what to do", &words);
    Ok(())
}

/// The nodes belong to the user, who may lock little memory: refused with the number that is needed,
/// which is then enough.
pub(super) fn memlock(guest: &mut Guest) -> Result<(), Failure> {
    let pair = guest.machine.pair()?.map(Clone::clone);
    for node in pair.iter().flat_map(|pci| pci.nodes()) {
        shell::must(&format!("chown user {node}"))?;
    }
    if guest.interface == "iommufd" {
        shell::must("chmod 666 /dev/iommu")?;
    }
    let line = guest.share_line(&[&pair[0], &pair[1]], 1024);
    let outcome = shell::run_as_user(&format!("ulimit -l 64; exec {line}"))?;
    outcome.is_refused(&mut guest.report, "share names the limit", &["RLIMIT_MEMLOCK is 64 KiB"]);
    let needed = needed(&outcome)?;
    let mut outcome = shell::run_as_user(&format!("ulimit -l {needed}; exec {line}"))?;
    if guest.interface == "vfio" {
        // Each container of VFIO counts the buffer again, and asks when it comes to it.
        outcome.is_refused(
            &mut guest.report,
            "the second container counts too",
            &["RLIMIT_MEMLOCK"],
        );
        let needed = self::needed(&outcome)?;
        outcome = shell::run_as_user(&format!("ulimit -l {needed}; exec {line}"))?;
    }
    outcome.succeeds(&mut guest.report, "the number that is named is enough");
    Ok(())
}

/// The limit in KiB that a refusal asks for.
fn needed(outcome: &shell::Outcome) -> Result<u64, Failure> {
    let rest = outcome.err.split("ulimit -l ").nth(1).ok_or("no number is named")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}
