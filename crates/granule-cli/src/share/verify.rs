//! Proof by DMA: what is mapped is reached byte for byte, what is not mapped is not reached.

use std::fmt::Display;

use granule::addr::{Access, DmaAddr, PhysRange};
use granule::share::{Contiguous, Shared};
use granule_sim::device::SimDevice;
use granule_sim::frames::FreeError;

use super::attach::Party;
use super::machine::Bench;
use super::report::{LateDma, Report};
use crate::error::{CliError, failed, failed_at};

/// Bytes that are transferred and compared at a time.
const CHUNK: usize = 64 << 10;

/// What was done while the buffer was mapped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Verified {
    /// Bytes that a device wrote.
    pub(super) written: u64,
    /// Bytes that somebody else read and compared.
    pub(super) compared: u64,
    /// Accesses beside the buffer that faulted, as they should.
    pub(super) guards: u64,
}

/// What device `seed` writes at `offset`, a multiple of 8: no two devices or places alike.
fn word(seed: u64, offset: u64) -> u64 {
    let mut x = (offset / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

fn pattern(seed: u64, offset: u64, out: &mut [u8]) {
    for (index, part) in out.chunks_mut(8).enumerate() {
        let bytes = word(seed, offset + index as u64 * 8).to_le_bytes();
        let len = part.len();
        part.copy_from_slice(&bytes[..len]);
    }
}

/// Calls `each` with the offset and length of every chunk of `len` bytes.
fn chunks(
    len: u64,
    mut each: impl FnMut(u64, usize) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut offset = 0;
    while offset < len {
        let step = (len - offset).min(CHUNK as u64);
        // At most CHUNK.
        each(offset, step as usize)?;
        offset += step;
    }
    Ok(())
}

impl Party {
    /// The hardware that emits `address`: the part whose window it lies in.
    fn at(&self, address: DmaAddr) -> Result<&SimDevice, CliError> {
        let found = self.hardware.iter().find(|part| part.resolve(address, Access::READ).is_ok());
        found.or(self.hardware.first()).ok_or_else(|| failed("a device is not in the machine"))
    }

    /// Whether any part of the hardware gets through.
    fn reaches(&self, address: DmaAddr, access: Access) -> bool {
        self.hardware.iter().any(|part| part.resolve(address, access).is_ok())
    }
}

/// Lets each device that may write fill the buffer, every other device and the CPU read it back, and
/// probes what lies beside it.
pub(super) fn mapped(
    bench: &Bench,
    parties: &[Party],
    shared: &Shared,
) -> Result<Verified, CliError> {
    let mut verified = Verified::default();
    // What the CPU zeroed must not be written back over what a device writes.
    shared.sync_for_device(0, shared.len())?;
    for (index, writer) in parties.iter().enumerate() {
        let range = range_of(shared, writer)?;
        if !range.access().contains(Access::WRITE) {
            continue;
        }
        let seed = index as u64 + 1;
        fill(writer, &range, seed)?;
        verified.written += range.len();
        verified.compared += read_by_cpu(writer, shared, seed)?;
        for reader in parties.iter().filter(|reader| !reader.device.is(&writer.device)) {
            let range = range_of(shared, reader)?;
            verified.compared += read_by_device(writer, reader, &range, seed)?;
        }
    }
    for party in parties {
        let range = range_of(shared, party)?;
        check_padding(party, &range)?;
        if !party.chosen.device.is_direct() {
            verified.guards += check_guards(bench, party, &range)?;
        }
    }
    Ok(verified)
}

fn range_of<'s>(shared: &'s Shared, party: &Party) -> Result<Contiguous<'s>, CliError> {
    shared.range_of(&party.device).ok_or_else(|| failed("a device has no range of the buffer"))
}

fn at(start: DmaAddr, offset: u64) -> DmaAddr {
    DmaAddr::new(start.raw().wrapping_add(offset))
}

fn stopped(error: impl Display) -> CliError {
    failed(error.to_string())
}

fn fill(writer: &Party, range: &Contiguous<'_>, seed: u64) -> Result<(), CliError> {
    let device = writer.at(range.address())?;
    let mut bytes = vec![0; CHUNK];
    chunks(range.len(), |offset, len| {
        let part = &mut bytes[..len];
        pattern(seed, offset, part);
        device.write(at(range.address(), offset), part).map_err(stopped)
    })
}

fn read_by_cpu(writer: &Party, shared: &Shared, seed: u64) -> Result<u64, CliError> {
    let (mut seen, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    shared.sync_for_cpu(0, shared.len())?;
    chunks(shared.len(), |offset, len| {
        shared.read(offset, &mut seen[..len])?;
        pattern(seed, offset, &mut wanted[..len]);
        if seen[..len] == wanted[..len] {
            return Ok(());
        }
        Err(failed(format!(
            "the CPU does not see what {} wrote in the 64 KiB at offset {offset:#x}",
            writer.chosen.label
        )))
    })?;
    Ok(shared.len())
}

fn read_by_device(
    writer: &Party,
    reader: &Party,
    range: &Contiguous<'_>,
    seed: u64,
) -> Result<u64, CliError> {
    if !range.access().contains(Access::READ) {
        return Ok(0);
    }
    let device = reader.at(range.address())?;
    let (mut seen, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    chunks(range.len(), |offset, len| {
        let place = at(range.address(), offset);
        device.read(place, &mut seen[..len]).map_err(stopped)?;
        pattern(seed, offset, &mut wanted[..len]);
        if seen[..len] == wanted[..len] {
            return Ok(());
        }
        let what = format!("it does not read what {} wrote there", writer.chosen.label);
        Err(failed_at(&reader.chosen.label, place, &what))
    })?;
    Ok(range.len())
}

/// Padding is the buffer's own, and zero.
fn check_padding(party: &Party, range: &Contiguous<'_>) -> Result<(), CliError> {
    // Less than a granule, so it fits.
    let mut seen = vec![1; usize::try_from(range.padding()).unwrap_or_default()];
    let place = at(range.address(), range.len());
    party.at(range.address())?.read(place, &mut seen).map_err(stopped)?;
    if seen.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(failed_at(&party.chosen.label, place, "the padding is not zero"))
}

/// The granules before and after must fault, at both of their ends.
fn check_guards(bench: &Bench, party: &Party, range: &Contiguous<'_>) -> Result<u64, CliError> {
    let mapped = range.mapped().ok_or_else(|| failed("a range passes 2^64"))?;
    let granule = party.device.merge_boundary().unwrap_or(bench.cpu_page).size();
    let (first, last) = (mapped.start().raw(), mapped.last().raw());
    let around = [
        first.checked_sub(granule),
        first.checked_sub(1),
        last.checked_add(1),
        last.checked_add(granule),
    ];
    let mut faulted = 0;
    for place in around.into_iter().flatten().map(DmaAddr::new) {
        for access in [Access::READ, Access::WRITE] {
            if party.reaches(place, access) {
                let what = "it gets through where an unmapped granule should stop it";
                return Err(failed_at(&party.chosen.label, place, what));
            }
            faulted += 1;
        }
    }
    Ok(faulted)
}

/// After the unmap: what was cached must be forgotten, every granule must fault. Only a direct
/// device gets through, since nothing stands in its way.
pub(super) fn unmapped(parties: &[Party], report: &mut Report) -> Result<(), CliError> {
    for (party, row) in parties.iter().zip(&mut report.rows) {
        row.late = LateDma::NotEnforced;
        if party.chosen.device.is_direct() {
            continue;
        }
        let step = party.device.merge_boundary().map_or(4096, |granule| granule.size());
        let places = (0..row.mapped_length).step_by(usize::try_from(step).unwrap_or(4096));
        let mut tries = places.flat_map(|offset| [(offset, Access::READ), (offset, Access::WRITE)]);
        let reached =
            tries.find(|(offset, access)| party.reaches(at(row.address, *offset), *access));
        if let Some((offset, _)) = reached {
            let what = "late DMA gets through after the unmap";
            return Err(failed_at(&party.chosen.label, at(row.address, offset), what));
        }
        row.late = LateDma::Blocked;
    }
    Ok(())
}

/// Everything was given back, and no IOMMU saw what it should not. The domains are gone by now, and
/// their table pages with them.
pub(super) fn nothing_left(bench: &Bench) -> Result<(), CliError> {
    let frames = bench.machine.frames();
    let live = frames.live();
    // The core joins neighbouring blocks of a buffer and frees them as one, which the simulator's
    // allocator refuses and records; such a range is no leak.
    let joined = |range: &PhysRange| {
        let inside = live.iter().filter(|block| range.contains_range(block));
        inside.map(|block| block.len()).sum::<u64>() == range.len()
    };
    let mut excused: Vec<PhysRange> = Vec::new();
    let mut problems: Vec<String> = Vec::new();
    for error in frames.errors() {
        match error {
            FreeError::NotLive { range } if joined(&range) => excused.push(range),
            other => problems.push(other.to_string()),
        }
    }
    let leaked = live.iter().filter(|block| !excused.iter().any(|one| one.contains_range(block)));
    problems.extend(leaked.map(|block| format!("{block} leaked")));
    if bench.platform().views() > 0 {
        problems.push("a CPU view is still mapped".into());
    }
    for iommu in bench.machine.iommus().filter(|iommu| iommu.counters().conflicts > 0) {
        problems.push(format!("{} met two page sizes for one address", iommu.config().name));
    }
    if problems.is_empty() { Ok(()) } else { Err(failed(problems.join("; "))) }
}
