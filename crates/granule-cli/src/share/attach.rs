//! Domains for the devices: one for each group, over all the IOMMUs that its members are behind.

use std::sync::Arc;

use granule::addr::{Access, Attributes};
use granule::dma::{AttachError, BusWindow, Device, DeviceSpec};
use granule::domain::{
    Domain, DomainConfig, DomainError, Paged, Reserved, Stream, StreamId, TranslationError,
};
use granule::table::{Format, FormatVisitor};
use granule_board::{Board, IovaRegionKind};
use granule_sim::device::SimDevice;
use granule_sim::platform::SimPlatform;

use super::machine::{Bench, BenchIommu, emitted, unique_label, windows};
use super::select::Chosen;
use crate::error::{CliError, failed};

/// A device that shares, as the core and as the simulator know it.
pub(super) struct Party {
    pub(super) chosen: Chosen,
    /// The core's handle.
    pub(super) device: Device,
    /// The hardware; several for a direct device with several windows.
    pub(super) hardware: Vec<SimDevice>,
}

/// Attaches all devices; they come back in the order in which they were chosen.
pub(super) fn attach(
    board: &Board,
    bench: &Bench,
    chosen: &[Chosen],
) -> Result<Vec<Party>, CliError> {
    let mut devices: Vec<(usize, Device)> = Vec::with_capacity(chosen.len());
    let mut done: Vec<usize> = Vec::new();
    for (index, one) in chosen.iter().enumerate() {
        if one.device.is_direct() {
            devices.push((index, direct(bench, one)?));
        } else if !done.contains(&one.device.group) {
            done.push(one.device.group);
            devices.extend(group(board, bench, chosen, one.device.group)?);
        }
    }
    devices.sort_by_key(|(index, _)| *index);
    let parties = devices.into_iter().zip(chosen).map(|((_, device), chosen)| Party {
        chosen: chosen.clone(),
        device,
        hardware: bench.hardware(chosen),
    });
    Ok(parties.collect())
}

fn spec(board: &Board, chosen: &Chosen) -> Result<DeviceSpec, CliError> {
    let mut spec = DeviceSpec::new(&chosen.label);
    if let Some(bits) = chosen.bits {
        spec = spec.mask_bits(bits);
    }
    if !chosen.device.coherent {
        spec = spec.non_snooping();
    }
    if !chosen.trusted {
        spec = spec.untrusted();
    }
    spec.window = emitted(board, chosen)?;
    Ok(spec)
}

fn direct(bench: &Bench, chosen: &Chosen) -> Result<Device, CliError> {
    let mut spec = DeviceSpec::new(&chosen.label);
    if let Some(bits) = chosen.bits {
        spec = spec.mask_bits(bits);
    }
    if !chosen.device.coherent {
        spec = spec.non_snooping();
    }
    if !chosen.trusted {
        spec = spec.untrusted();
    }
    let windows = windows(chosen)?.into_iter();
    let windows = windows.map(|(bus, phys)| BusWindow::new(bus.start(), phys, bus.len()));
    let windows: Vec<_> =
        windows.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    Ok(Device::direct(bench.platform(), spec, &windows, None)?)
}

/// One domain for all chosen members of a group.
fn group(
    board: &Board,
    bench: &Bench,
    chosen: &[Chosen],
    group: usize,
) -> Result<Vec<(usize, Device)>, CliError> {
    let members = chosen.iter().enumerate();
    let members: Vec<_> = members.filter(|(_, one)| one.device.group == group).collect();
    let mut units: Vec<usize> = Vec::new();
    for stream in members.iter().flat_map(|(_, member)| member.streams()) {
        if !units.contains(&stream.iommu) {
            units.push(stream.iommu);
        }
    }
    let Some((_, first)) = members.first() else { return Ok(Vec::new()) };
    let shapes = units.iter().filter_map(|unit| Some((*unit, bench.shapes.get(unit)?)));
    let shapes: Vec<_> = shapes.collect();
    let Some(((first_unit, shape), rest)) = shapes.split_first() else { return Ok(Vec::new()) };
    if let Some((other, _)) = rest.iter().find(|(_, other)| other.format != shape.format) {
        let name = |unit: usize| board.iommus.get(unit).map(|iommu| unique_label(board, iommu));
        return Err(CliError::MixedFormats {
            device: first.label.clone(),
            first: name(*first_unit).unwrap_or_default(),
            second: name(*other).unwrap_or_default(),
        });
    }
    let iommus = units.iter().filter_map(|unit| bench.iommus.get(unit)).cloned().collect();
    let work = Attach { board, bench, members: &members, units: &units, iommus };
    shape.format.visit(work)
}

struct Attach<'a> {
    board: &'a Board,
    bench: &'a Bench,
    members: &'a [(usize, &'a Chosen)],
    units: &'a [usize],
    iommus: Vec<BenchIommu>,
}

impl FormatVisitor for Attach<'_> {
    type Output = Result<Vec<(usize, Device)>, CliError>;

    fn visit<F: Format>(self) -> Self::Output {
        let wrap = |cause: DomainError| {
            let device = self.members.first().map(|(_, member)| member.label.clone());
            CliError::Domain { device: device.unwrap_or_default(), cause }
        };
        let platform = self.bench.platform();
        let paged = Paged::<F, _, _>::new(platform, &self.iommus)
            .map_err(|cause: TranslationError| wrap(cause.into()))?;
        let config = DomainConfig { reserved: self.reserved(), ..DomainConfig::default() };
        let domain: Arc<Domain<SimPlatform, _>> =
            Domain::new(platform, paged, &config).map_err(wrap)?;
        let mut devices = Vec::with_capacity(self.members.len());
        for (index, member) in self.members {
            let streams = self.streams(member);
            let attached: Result<Device, AttachError> =
                domain.attach(spec(self.board, member)?, &streams, None);
            devices.push((*index, attached?));
        }
        Ok(devices)
    }
}

impl Attach<'_> {
    fn streams(&self, member: &Chosen) -> Vec<Stream> {
        let streams = member.streams().iter().filter_map(|stream| {
            let unit = self.units.iter().position(|unit| *unit == stream.iommu)?;
            Some(Stream { unit, id: StreamId { id: stream.id, mask: stream.mask } })
        });
        streams.collect()
    }

    /// What the tree reserves in the members' spaces. A locked stream brings its own along: there
    /// firmware's live entries say what is taken.
    fn reserved(&self) -> Vec<Reserved> {
        let locked = |member: &Chosen| {
            let mut streams = member.streams().iter();
            streams.any(|stream| self.bench.locked_roots(stream.iommu, stream.id).is_some())
        };
        if self.members.iter().any(|(_, member)| locked(member)) {
            return Vec::new();
        }
        let regions = self.members.iter().flat_map(|(_, member)| &member.device.iova_regions);
        let mut taken: Vec<Reserved> = Vec::new();
        for region in regions {
            if taken.iter().any(|other| other.range().overlaps(&region.iova)) {
                continue;
            }
            taken.push(match (region.kind(), region.phys) {
                (IovaRegionKind::Direct, Some(phys)) => {
                    let attributes = Attributes::memory(Access::all());
                    // SAFETY: it is memory of a simulated machine, which the tree gives to the
                    // device for good and the frame allocator keeps out of.
                    unsafe { Reserved::mapped(region.iova, phys.start(), attributes) }
                }
                // As Linux does: what is mapped elsewhere, or not at all, is only kept free.
                _ => Reserved::hole(region.iova),
            });
        }
        taken
    }
}
