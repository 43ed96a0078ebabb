//! Deferred invalidation: memory may stay in reach for a while, but not once it is freed.

use alloc::vec::Vec;

use granule::addr::{Direction, DmaAddr};
use granule::dma::Mapping;
use granule::domain::InvalidationPolicy;

use super::Stage;
use crate::player::Player;
use crate::ram::{Ram, Returned, fresh};
use crate::rig::{Failure, Rig};

/// Few enough that the quarantine overflows; nothing happens by age.
const POLICY: InvalidationPolicy = InvalidationPolicy::Deferred { capacity: 3, max_age: u64::MAX };

/// How many buffers come and go.
const ROUNDS: usize = 6;

/// How many bytes each attempt carries.
const LEN: u64 = 64;

/// A buffer that the device had.
struct Past {
    ram: Ram,
    address: DmaAddr,
    returned: Returned,
    /// Whether its return was noticed, and the memory used for something else.
    reused: bool,
}

/// What happened to all buffers together.
#[derive(Default)]
struct Tally {
    waited: usize,
    reused: usize,
    written: usize,
    read: usize,
    again: usize,
}

/// Buffers come and go; each is used anew the moment it is freed, and the device tries all the old
/// addresses each time.
pub(super) fn freed_is_out_of_reach<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(0, POLICY)?;
    let granule = player.granule();
    let mut past: Vec<Past> = Vec::new();
    let mut tally = Tally::default();
    for _ in 0..ROUNDS {
        let mut ram = Ram::new(granule, granule)?;
        let (buffer, returned) = ram.lend(0, granule);
        let mapping = Mapping::new(
            player.device.clone(),
            buffer,
            Direction::Bidirectional,
            Default::default(),
        )?;
        let address = mapping.address();
        let data = fresh(LEN as usize);
        player.put(address, &data)?;
        ram.expect(0, &data);
        stage.same("deferred: the device writes while it may", ram.surprise());
        tally.again += past.iter().filter(|one| !one.reused && one.address == address).count();
        drop(mapping);
        tally.waited += usize::from(!returned.is_true());
        past.push(Past { ram, address, returned, reused: false });
        try_all(&player, &mut past, &mut tally)?;
    }
    player.device.flush()?;
    let left = past.iter().filter(|one| !one.returned.is_true()).count();
    try_all(&player, &mut past, &mut tally)?;
    stage.report.check("deferred: invalidations were deferred", tally.waited > 0, || {
        "every buffer came back at once".into()
    });
    stage.equal("deferred: a flush gives everything back", 0, left);
    stage.equal("deferred: all memory was used anew", ROUNDS, tally.reused);
    stage.equal("deferred: no freed memory is written", 0, tally.written);
    stage.equal("deferred: no freed memory is read", 0, tally.read);
    stage.equal("deferred: no address comes again before the flush", 0, tally.again);
    Ok(())
}

/// Uses anew what came back, and lets the device try every old address.
fn try_all<R: Rig>(
    player: &Player<'_, R>,
    past: &mut [Past],
    tally: &mut Tally,
) -> Result<(), Failure> {
    for one in past.iter_mut() {
        if one.returned.is_true() && !one.reused {
            one.reused = true;
            tally.reused += 1;
            one.ram.refill();
        }
        let seen = player.get(one.address, LEN)?;
        player.put(one.address, &fresh(LEN as usize))?;
        if one.reused {
            tally.read += usize::from(seen == one.ram.holds(0, LEN));
            tally.written += usize::from(one.ram.part_surprise(0, LEN).is_some());
        }
        one.ram.accept();
    }
    Ok(())
}
