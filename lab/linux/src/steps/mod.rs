//! What the guest does. A step makes at least one check, or it failed.

mod dma;
mod doctor;
mod nvme;
mod refusals;
mod share;
mod users;

use crate::{Failure, Guest};

type Step = fn(&mut Guest) -> Result<(), Failure>;

/// All steps. Those of a run come in the order of its row (`xtask/src/lab/linux/rows.rs`): the first
/// ones find a system on which nothing has been done.
const STEPS: &[(&str, Step)] = &[
    ("no-modules", refusals::no_modules),
    ("no-iommufd", refusals::no_iommufd),
    ("other-driver", refusals::other_driver),
    ("one-group", refusals::one_group),
    ("doctor", doctor::examine),
    ("share", share::share),
    ("dma", dma::copy),
    ("late-dma", dma::late),
    ("nvme", nvme::read),
    ("permission", users::permission),
    ("memlock", users::memlock),
    ("mapping-limit", refusals::mapping_limit),
    ("unsafe-interrupts", refusals::unsafe_interrupts),
    ("large-granule", refusals::large_granule),
    ("no-iommu", refusals::no_iommu),
];

/// The step of this name.
pub(crate) fn named(name: &str) -> Option<Step> {
    STEPS.iter().find(|(known, _)| *known == name).map(|(_, step)| *step)
}
