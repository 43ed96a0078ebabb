//! DMA after unmap and after detach, DMA against the rights that were given,
//! and the record of what was refused.

use alloc::format;
use alloc::vec::Vec;

use granule::addr::{Access, Direction, DmaAddr, Iova};
use granule::domain::{InvalidationPolicy, StreamId, Translation};
use granule_hw::FaultEvent;

use super::Stage;
use crate::ram::{Ram, difference, fresh};
use crate::rig::{Failure, Rig};

/// How many bytes each attempt carries.
const LEN: u64 = 256;

/// Takes memory from a device that used it, from one that never did, and the device from its domain.
pub(super) fn unmap<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(0, InvalidationPolicy::Strict)?;
    let granule = player.granule();
    for (used, how) in [(true, "with its entry cached"), (false, "never used")] {
        let mut ram = Ram::new(granule, granule)?;
        let (buffer, _) = ram.lend(0, granule);
        let mapping = player.device.map(buffer, Direction::Bidirectional)?;
        let address = mapping.address();
        if used {
            let data = fresh(LEN as usize);
            player.put(address, &data)?;
            ram.expect(0, &data);
            let seen = player.get(address, LEN)?;
            stage.same("unmap: before it the device reads", difference(&data, &seen));
            stage.same("unmap: before it the device writes", ram.surprise());
        }
        drop(mapping.unmap()?);
        ram.refill();
        let seen = player.get(address, LEN)?;
        let what = format!("unmap: no read after it, {how}");
        stage.hidden(&what, ram.holds(0, LEN), &seen);
        player.put(address, &fresh(LEN as usize))?;
        stage.same(&format!("unmap: no write after it, {how}"), ram.surprise());
    }
    detach(stage)
}

/// A device that was taken from its domain reaches nothing there: neither what it used nor, where the
/// owner of a mapping forgot it, what is mapped still.
fn detach<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(1, InvalidationPolicy::Strict)?;
    let granule = player.granule();
    let mut ram = Ram::new(granule, granule)?;
    let (buffer, _) = ram.lend(0, granule);
    let mapping = player.device.map(buffer, Direction::Bidirectional)?;
    let address = mapping.address();
    let data = fresh(LEN as usize);
    player.put(address, &data)?;
    ram.expect(0, &data);
    stage.same("detach: before it the device writes", ram.surprise());
    core::mem::forget(mapping);
    let domain = player.domain.clone();
    drop(player);
    ram.refill();
    let mapped = domain.translation().resolve(Iova::new(address.raw())).is_some();
    stage.equal("detach: what was forgotten is mapped still", true, mapped);
    // What the device holds is `data`.
    stage.edus[1].write(address, 0, LEN as usize);
    stage.same("detach: no write after it", ram.surprise());
    drop(domain);
    stage.edus[1].write(address, 0, LEN as usize);
    stage.same("detach: no write after the domain is gone", ram.surprise());
    Ok(())
}

/// Gives memory to be read, and to be written.
pub(super) fn rights<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(0, InvalidationPolicy::Strict)?;
    let granule = player.granule();
    for (cached, how) in [(false, "at first"), (true, "with the entry cached")] {
        let ram = Ram::new(granule, granule)?;
        let (buffer, _) = ram.lend(0, granule);
        let mapping = player.device.map_to_device(buffer)?;
        if cached {
            let seen = player.get(mapping.address(), LEN)?;
            let what = "rights: what is to be read is read";
            stage.same(what, difference(ram.holds(0, LEN), &seen));
        }
        player.put(mapping.address(), &fresh(LEN as usize))?;
        let what = format!("rights: what is to be read is not written, {how}");
        stage.same(&what, ram.surprise());
        drop(mapping.unmap()?);
    }

    let mut ram = Ram::new(granule, granule)?;
    let (buffer, _) = ram.lend(0, granule);
    let mapping = player.device.map(buffer, Direction::FromDevice)?;
    let data = fresh(LEN as usize);
    player.put(mapping.address(), &data)?;
    ram.expect(0, &data);
    stage.same("rights: what is to be written is written", ram.surprise());
    if stage.rig.write_only() {
        stage.equal("rights: the entry says so", false, player.may_read(mapping.address()));
        let seen = player.get(mapping.address(), LEN)?;
        stage.hidden("rights: what is to be written is not read", &data, &seen);
    }
    drop(mapping.unmap()?);
    Ok(())
}

/// A refused access is recorded, with the device and the address, where the hardware records any.
pub(super) fn faults<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(1, InvalidationPolicy::Strict)?;
    let granule = player.granule();
    let ram = Ram::new(granule, granule)?;
    let (buffer, _) = ram.lend(0, granule);
    let address = player.device.map(buffer, Direction::Bidirectional)?.address();
    // The mapping is gone again.
    stage.rig.take_faults(&mut |_| {});
    player.put(address, &fresh(4))?;
    let mut found = Vec::new();
    stage.rig.take_faults(&mut |fault| found.push(fault));
    if !stage.rig.records_faults() {
        return Ok(());
    }
    let rid = u32::from(stage.edus[1].rid);
    // Some units record the page only, and virtio-iommu not what was wanted.
    let page = |address: DmaAddr| address.raw() & !0xfff;
    let is_it = |fault: &FaultEvent| {
        fault.stream.is_some_and(|stream| stream.overlaps(StreamId::exact(rid)))
            && fault.address.map(page) == Some(page(address))
            && (fault.access.is_empty() || fault.access.contains(Access::WRITE))
    };
    let right = found.iter().any(is_it);
    stage.report.check("faults: a refused write is recorded", right, || {
        format!("of {rid:#x} at {address} in {found:?}")
    });
    Ok(())
}
