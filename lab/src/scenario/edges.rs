//! What lies beside a mapping: unmapped granules for everybody, and bytes in the same granule for a
//! device that is not trusted.

use alloc::vec;

use granule::addr::Direction;
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{DeviceSpec, MapFlags, Mapping};
use granule::domain::InvalidationPolicy;

use super::{NAMES, Stage};
use crate::platform::Lab;
use crate::player::{Player, at};
use crate::ram::{Ram, difference, fresh};
use crate::rig::{Failure, Rig};

/// How far an attempt reaches to each side of an edge.
const SIDE: u64 = 64;

/// Maps the middle one of three granules; the device tries what lies before and behind.
pub(super) fn neighbours<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(1, InvalidationPolicy::Strict)?;
    let granule = player.granule();
    let mut ram = Ram::new(3 * granule, granule)?;
    let (buffer, _) = ram.lend(granule, granule);
    let mapping =
        Mapping::new(player.device.clone(), buffer, Direction::Bidirectional, MapFlags::GUARD)?;
    let address = mapping.address();
    let before = granule::addr::DmaAddr::new(address.raw() - SIDE);
    let last = at(address, (granule - SIDE) as usize);
    let writes = [
        ("over the first byte", before, 2 * SIDE),
        ("over the last byte", last, 2 * SIDE),
        ("the granule before", granule::addr::DmaAddr::new(address.raw() - granule), SIDE),
        ("the granule behind", at(address, granule as usize), SIDE),
    ];
    for (place, to, len) in writes {
        player.put(to, &fresh(len as usize))?;
        let what = alloc::format!("edges: nothing before it is written, {place}");
        stage.same(&what, ram.part_surprise(0, granule));
        let what = alloc::format!("edges: nothing behind it is written, {place}");
        stage.same(&what, ram.part_surprise(2 * granule, granule));
    }
    ram.accept();
    let seen = player.get(before, SIDE)?;
    let what = "edges: nothing before it is read";
    stage.hidden(what, ram.holds(granule - SIDE, SIDE), &seen);
    let seen = player.get(at(address, granule as usize), SIDE)?;
    let what = "edges: nothing behind it is read";
    stage.hidden(what, ram.holds(2 * granule, SIDE), &seen);
    let seen = player.get(last, SIDE)?;
    let what = "edges: its last bytes are read";
    stage.same(what, difference(ram.holds(2 * granule - SIDE, SIDE), &seen));
    drop(mapping);
    drop(player);
    inside_a_granule(stage)
}

/// A buffer beside other bytes in its granule, for a device that is not trusted.
fn inside_a_granule<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let granule = stage.player(0, InvalidationPolicy::Strict)?.domain.granule();
    let config = BounceConfig { align: granule, ..BounceConfig::new(8 * granule.size()) };
    let pool = alloc::sync::Arc::new(BouncePool::new(&Lab, config)?);
    let spec = DeviceSpec::new(NAMES[0]).untrusted();
    let player = stage.player_with(0, InvalidationPolicy::Strict, spec, Some(pool))?;
    untrusted(stage, &player)
}

fn untrusted<R: Rig>(stage: &mut Stage<'_, R>, player: &Player<'_, R>) -> Result<(), Failure> {
    const OFFSET: u64 = 0x345;
    const LEN: u64 = 99;
    let granule = player.granule();
    let mut ram = Ram::new(granule, granule)?;
    let (buffer, _) = ram.lend(OFFSET, LEN);
    let mapping = player.device.map(buffer, Direction::Bidirectional)?;
    let address = mapping.address();
    stage.equal("untrusted: a part of a granule is bounced", true, mapping.is_bounced());
    let seen = player.get(address, LEN)?;
    let what = "untrusted: the device reads the buffer";
    stage.same(what, difference(ram.holds(OFFSET, LEN), &seen));
    // From the start of the slot's CPU page to its end, all but the buffer.
    let page = address.raw() & !0xfff;
    let around = player.get(granule::addr::DmaAddr::new(page), 0x1000)?;
    let mut wanted = vec![0; 0x1000];
    let inside = (address.raw() - page) as usize;
    wanted[inside..inside + LEN as usize].copy_from_slice(ram.holds(OFFSET, LEN));
    stage.same("untrusted: beside the buffer it reads zeroes", difference(&wanted, &around));
    let data = fresh(LEN as usize);
    player.put(address, &data)?;
    let exposed = player.device.stats().exposed_bytes;
    drop(mapping.unmap()?);
    ram.expect(OFFSET, &data);
    stage.same("untrusted: what it writes arrives, and nothing else", ram.surprise());
    stage.equal("untrusted: no byte was exposed", 0, exposed);
    Ok(())
}
