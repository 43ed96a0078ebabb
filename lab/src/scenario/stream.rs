//! Streaming maps that begin inside a granule, and a scatter list of odd segments.

use alloc::format;
use alloc::vec::Vec;

use granule::addr::Direction;
use granule::dma::ScatterList;
use granule::domain::InvalidationPolicy;

use super::Stage;
use crate::player::Player;
use crate::ram::{Ram, difference, fresh};
use crate::rig::{Failure, Rig};

/// Maps a buffer inside one granule, and one across the edge of two.
pub(super) fn inside_a_granule<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(0, InvalidationPolicy::Strict)?;
    let granule = player.granule();
    one(stage, &player, "inside a granule", granule / 2 + 0x123, 777)?;
    one(stage, &player, "across a granule's edge", granule - 101, 303)
}

fn one<R: Rig>(
    stage: &mut Stage<'_, R>,
    player: &Player<'_, R>,
    place: &str,
    offset: u64,
    len: u64,
) -> Result<(), Failure> {
    let granule = player.granule();
    let mut ram = Ram::new(2 * granule, granule)?;
    let (buffer, _) = ram.lend(offset, len);
    let mapping = player.device.map(buffer, Direction::Bidirectional)?;
    let address = mapping.address();
    let inside = address.raw() & (granule - 1);
    stage.equal(&format!("stream: the offset is kept {place}"), offset & (granule - 1), inside);
    let seen = player.get(address, len)?;
    stage.same(
        &format!("stream: the device reads the buffer {place}"),
        difference(ram.holds(offset, len), &seen),
    );
    let data = fresh(len as usize);
    player.put(address, &data)?;
    drop(mapping.unmap()?);
    ram.expect(offset, &data);
    stage.same(
        &format!("stream: the device writes the buffer {place} and nothing else"),
        ram.surprise(),
    );
    Ok(())
}

/// Maps a list of segments of odd lengths at odd places, two of which join.
pub(super) fn odd_segments<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let player = stage.player(1, InvalidationPolicy::Strict)?;
    let granule = player.granule();
    // Offset and length; whole granules next to each other join for the device.
    let shapes = [
        (0x31, 1),
        (0x100, 777),
        (0, granule),
        (0, granule),
        (5, 3),
        (granule - 3, granule + 5),
        (0xfff, 4111),
    ];
    let mut blocks = Vec::new();
    for _ in shapes {
        blocks.push(Ram::new(3 * granule, granule)?);
    }
    let lent = blocks.iter().zip(shapes).map(|(ram, (offset, len))| ram.lend(offset, len).0);
    let mapping = player.device.map_list(ScatterList::new(lent), Direction::Bidirectional)?;
    let segments = mapping.segments().to_vec();
    let total: u64 = shapes.iter().map(|(_, len)| len).sum();
    stage.equal("list: no byte is lost", total, segments.iter().map(|one| one.len).sum());
    stage.equal("list: whole granules join", shapes.len() - 1, segments.len());

    let wanted: Vec<u8> = blocks
        .iter()
        .zip(shapes)
        .flat_map(|(ram, (offset, len))| ram.holds(offset, len).to_vec())
        .collect();
    let mut seen = Vec::new();
    for segment in &segments {
        seen.extend(player.get(segment.address, segment.len)?);
    }
    stage.same("list: the device reads all of it in order", difference(&wanted, &seen));

    let data = fresh(total as usize);
    let mut written = 0;
    for segment in &segments {
        let end = written + segment.len as usize;
        player.put(segment.address, &data[written..end])?;
        written = end;
    }
    drop(mapping.unmap()?);
    let mut read = 0;
    for (index, (ram, (offset, len))) in blocks.iter_mut().zip(shapes).enumerate() {
        let end = read + len as usize;
        ram.expect(offset, &data[read..end]);
        read = end;
        let what = format!("list: entry {index} is written and nothing else");
        stage.same(&what, ram.surprise());
    }
    Ok(())
}
