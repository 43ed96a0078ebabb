//! One buffer for two devices behind two domains: contiguous for each, in pieces in memory.

use alloc::format;
use alloc::vec;

use granule::addr::{Access, DmaAddr, PhysRange};
use granule::dma::RouteReport;
use granule::domain::InvalidationPolicy;
use granule::share::{Plan, Shared};

use super::Stage;
use crate::platform;
use crate::player::{Player, at};
use crate::ram::{difference, failure, fresh, peek};
use crate::rig::{Failure, Rig};

/// How many bytes are carried at each place that is looked at.
const SAMPLE: u64 = 512;

/// How many bytes are tried after the end.
const FREED: u64 = 48;

/// Shares a buffer for whose every granule memory is found elsewhere.
pub(super) fn pieces<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let writer = stage.player(0, InvalidationPolicy::Strict)?;
    let reader = stage.player(1, InvalidationPolicy::Strict)?;
    let granule = writer.granule().max(reader.granule());
    let len = 3 * granule + 1777;
    platform::limit_blocks(granule);
    let shared = allocate(len, &writer, &reader);
    platform::limit_blocks(u64::MAX);
    let shared = shared?;
    stage.equal("share: its memory is in pieces", 4, shared.blocks().len());

    let (to, from) = addresses(&shared, &writer, &reader)?;
    let places = [0, granule - SAMPLE / 2, 2 * granule - 7, 3 * granule - SAMPLE + 1, len - SAMPLE];
    carry(stage, "share", &shared, (&writer, to), (&reader, from), &places)?;

    // The reader may not write.
    let secret = fresh(64);
    shared.write(granule + 3, &secret)?;
    reader.put(at(from, granule as usize + 3), &fresh(64))?;
    let mut after = vec![0; 64];
    shared.read(granule + 3, &mut after)?;
    stage.same("share: who was given it to read does not write", difference(&secret, &after));

    free(stage, "share", shared, (&writer, to), (&reader, from))
}

/// What was shared is freed: neither device reaches it, at its start and in its middle.
fn free<R: Rig>(
    stage: &mut Stage<'_, R>,
    group: &str,
    shared: Shared,
    (writer, to): (&Player<'_, R>, DmaAddr),
    (reader, from): (&Player<'_, R>, DmaAddr),
) -> Result<(), Failure> {
    let block = *shared.blocks().last().ok_or_else(|| failure("no block"))?;
    let offset = shared.size() - block.len();
    let part = block.slice(0, FREED).ok_or_else(|| failure("a block of a few bytes"))?;
    let secret = fresh(FREED as usize);
    shared.write(offset, &secret)?;
    shared.free()?;
    // Nobody allocates the memory meanwhile: what is in it stays.
    let seen = reader.get(at(from, offset as usize), FREED)?;
    stage.hidden(&format!("{group}: once freed, the reader does not reach it"), &secret, &seen);
    writer.put(at(to, offset as usize), &fresh(FREED as usize))?;
    let what = format!("{group}: once freed, the writer does not reach it");
    stage.same(&what, difference(&secret, &peek(part)));
    Ok(())
}

/// Shares a buffer that holds large pages, where the IOMMU has some.
pub(super) fn large_pages<R: Rig>(stage: &mut Stage<'_, R>) -> Result<(), Failure> {
    let page = stage.rig.large_page();
    if page == 0 {
        return Ok(());
    }
    let writer = stage.player(0, InvalidationPolicy::Strict)?;
    let reader = stage.player(1, InvalidationPolicy::Strict)?;
    // Larger pages still would hide that these work.
    platform::limit_blocks(page);
    let shared = allocate(2 * page + 12_345, &writer, &reader);
    platform::limit_blocks(u64::MAX);
    let shared = shared?;
    for contiguous in shared.ranges() {
        let sizes = match contiguous.device().report(contiguous.mapped()) {
            RouteReport::Translated { page_sizes, .. } => page_sizes,
            RouteReport::Direct { .. } => vec![],
        };
        let large = sizes.iter().any(|(size, count)| *size == page && *count >= 1);
        let name = contiguous.device().name();
        let what = format!("large pages: {name}'s are used");
        stage.report.check(&what, large, || format!("pages of {page:#x} in {sizes:x?}"));
    }
    let (to, from) = addresses(&shared, &writer, &reader)?;
    let places = [0, page - SAMPLE / 2, 2 * page - 7, 2 * page + 12_345 - SAMPLE];
    carry(stage, "large pages", &shared, (&writer, to), (&reader, from), &places)?;
    free(stage, "large pages", shared, (&writer, to), (&reader, from))
}

fn allocate<R: Rig>(
    len: u64,
    writer: &Player<'_, R>,
    reader: &Player<'_, R>,
) -> Result<Shared, Failure> {
    let plan = Plan::new(len).device(&writer.device, Access::all());
    Ok(plan.device(&reader.device, Access::READ).guard(true).solve()?.allocate()?)
}

/// The addresses of the two devices; their ranges are as long as was asked for.
fn addresses<R: Rig>(
    shared: &Shared,
    writer: &Player<'_, R>,
    reader: &Player<'_, R>,
) -> Result<(DmaAddr, DmaAddr), Failure> {
    let range = |player: &Player<'_, R>| {
        shared.range_of(&player.device).ok_or_else(|| failure("a device without a range"))
    };
    let (to, from) = (range(writer)?, range(reader)?);
    if to.len() != shared.len() || from.len() != shared.len() {
        return Err(failure("a range is not as long as the buffer"));
    }
    Ok((to.address(), from.address()))
}

/// At each place one device writes, the CPU and the other device read.
fn carry<R: Rig>(
    stage: &mut Stage<'_, R>,
    group: &str,
    shared: &Shared,
    (writer, to): (&Player<'_, R>, DmaAddr),
    (reader, from): (&Player<'_, R>, DmaAddr),
    places: &[u64],
) -> Result<(), Failure> {
    for place in places {
        let data = fresh(SAMPLE as usize);
        writer.put(at(to, *place as usize), &data)?;
        let what = format!("{group}: the CPU finds what the writer wrote at {place:#x}");
        stage.same(&what, difference(&data, &gather(shared.blocks(), *place, SAMPLE)));
        let seen = reader.get(at(from, *place as usize), SAMPLE)?;
        let what = format!("{group}: the reader finds what the writer wrote at {place:#x}");
        stage.same(&what, difference(&data, &seen));
    }
    Ok(())
}

/// A part of a buffer that lies in these blocks, one behind the other.
fn gather(blocks: &[PhysRange], offset: u64, len: u64) -> alloc::vec::Vec<u8> {
    let mut bytes = vec![];
    let mut start = 0;
    for block in blocks {
        let (from, to) = (offset.max(start), (offset + len).min(start + block.len()));
        if from < to {
            bytes.extend(block.slice(from - start, to - from).map(peek).unwrap_or_default());
        }
        start += block.len();
    }
    bytes
}
