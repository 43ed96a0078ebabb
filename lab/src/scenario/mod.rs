//! The same checks on every IOMMU, with two `edu` devices on streams of their own.
//!
//! | file | what is checked |
//! | --- | --- |
//! | `share` | one buffer for both, contiguous for each, though it is not in memory |
//! | `stream` | streaming maps that begin inside a granule; a scatter list of odd segments |
//! | `after` | DMA after unmap, with and without the entry cached; after detach; rights; faults |
//! | `deferred` | deferred invalidation: freed means out of reach |
//! | `edges` | what lies beside a mapping stays as it is; an untrusted device sees nothing of it |
//!
//! Every stretch of memory has bytes of its own, the devices' memory is filled with others before
//! each read, so that nothing is found where it was not carried.

mod after;
mod deferred;
mod edges;
mod share;
mod stream;

use alloc::string::String;
use alloc::sync::Arc;

use granule::addr::Granule;
use granule::bounce::BouncePool;
use granule::dma::DeviceSpec;
use granule::domain::InvalidationPolicy;

use crate::edu::Edu;
use crate::platform::{self, Lab};
use crate::player::Player;
use crate::report::Report;
use crate::rig::{Failure, Rig, Sabotage};

/// What the checks work with.
pub(crate) struct Stage<'s, R: Rig> {
    /// The IOMMU.
    pub rig: &'s R,
    /// The granule that the row is about.
    pub granule: Granule,
    /// The devices.
    pub edus: &'s [Edu; 2],
    /// How the driver is broken, if it is.
    pub sabotage: Option<Sabotage>,
    /// Where results go.
    pub report: &'s mut Report,
}

/// A group of checks.
type Group<R> = fn(&mut Stage<'_, R>) -> Result<(), Failure>;

impl<'s, R: Rig> Stage<'s, R> {
    /// Runs all checks.
    pub(crate) fn run(&mut self) {
        let groups: [(&str, Group<R>); 9] = [
            ("share", share::pieces),
            ("large pages", share::large_pages),
            ("streaming", stream::inside_a_granule),
            ("scatter list", stream::odd_segments),
            ("after unmap", after::unmap),
            ("rights", after::rights),
            ("faults", after::faults),
            ("deferred invalidation", deferred::freed_is_out_of_reach),
            ("edges", edges::neighbours),
        ];
        // The first attachment may allocate what the driver then keeps.
        self.group("granule", granule);
        let begin = platform::pages_in_use();
        for (name, group) in groups {
            self.group(name, group);
        }
        let end = platform::pages_in_use();
        self.equal("all memory came back", begin, end);
    }

    fn group(&mut self, name: &str, group: Group<R>) {
        if let Err(error) = group(self) {
            self.report.broken(name, &error);
        }
        self.print_faults();
    }

    /// Prints the first fault that the checks caused, and how many there were.
    fn print_faults(&self) {
        let (mut first, mut count) = (None, 0);
        self.rig.take_faults(&mut |fault| {
            count += 1;
            first.get_or_insert(fault);
        });
        if let Some(fault) = first {
            println!("faults  {count}, the first: {fault}");
        }
    }

    /// A device behind a new domain.
    fn player(&self, index: usize, policy: InvalidationPolicy) -> Result<Player<'s, R>, Failure> {
        self.player_with(index, policy, DeviceSpec::new(NAMES[index]), None)
    }

    /// The same, with limits and a bounce pool.
    fn player_with(
        &self,
        index: usize,
        policy: InvalidationPolicy,
        spec: DeviceSpec,
        pool: Option<Arc<BouncePool<Lab>>>,
    ) -> Result<Player<'s, R>, Failure> {
        Player::new(self.rig, self.sabotage, &self.edus[index], policy, spec, pool)
    }

    /// A check that there is no difference.
    fn same(&mut self, what: &str, difference: Option<String>) {
        self.report.check(what, difference.is_none(), || difference.unwrap_or_default());
    }

    /// A check that a value is what it should be.
    fn equal<V: PartialEq + core::fmt::Debug>(&mut self, what: &str, wanted: V, found: V) {
        let holds = wanted == found;
        self.report.check(what, holds, || alloc::format!("{found:?}, not {wanted:?}"));
    }

    /// A check that a device did not get at bytes: nothing that it read is what lies there.
    fn hidden(&mut self, what: &str, secret: &[u8], seen: &[u8]) {
        let got = secret.iter().zip(seen).filter(|(a, b)| a == b).count();
        // Chance alone makes one byte in 256 agree.
        let holds = got <= 2 + secret.len() / 16;
        let len = secret.len();
        self.report.check(what, holds, || alloc::format!("it read {got} of {len} bytes"));
    }
}

/// The row is what its name says.
fn granule<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    for index in [0, 1] {
        let found = stage.player(index, InvalidationPolicy::Strict)?.domain.granule();
        stage.equal("the granule is the row's", stage.granule, found);
    }
    Ok(())
}

/// What the devices are called.
const NAMES: [&str; 2] = ["edu0", "edu1"];
