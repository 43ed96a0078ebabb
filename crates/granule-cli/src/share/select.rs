//! Who shares: the devices that were named, or the board's most telling pair.

use std::collections::BTreeSet;

use granule::addr::Granule;
use granule::share::ShareError;
use granule_board::{Board, BoardDevice, BoardIommu, IommuKind, Stream, TableFormat};

use crate::args::ShareArgs;
use crate::board::iommu_label;
use crate::error::CliError;

/// A device that shares.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// What the tree says of it.
    pub(super) device: BoardDevice,
    /// What it is called in messages and tables: unique among those that share.
    pub(super) label: String,
    /// Whether it may see bytes beside the buffer.
    pub(super) trusted: bool,
    /// `--mask`.
    pub(super) bits: Option<u32>,
}

impl Chosen {
    /// The streams that it uses here. A PCI host has those of all its functions; the first function
    /// stands for them.
    pub(super) fn streams(&self) -> &[Stream] {
        let all = &self.device.streams;
        if self.device.pci.is_some() { all.get(..1).unwrap_or(all) } else { all }
    }
}

/// The devices of `--between`, or the most telling pair, with what the other options say of them.
pub(super) fn choose(board: &Board, args: &ShareArgs) -> Result<Vec<Chosen>, CliError> {
    let devices = if args.between.is_empty() {
        most_telling_pair(board, args.cpu_page)?
    } else {
        named(board, &args.between)?
    };
    let mut chosen: Vec<Chosen> = Vec::with_capacity(devices.len());
    for device in devices {
        check(board, &device)?;
        let label = label(board, &device);
        if chosen.iter().any(|other| other.device.path == device.path) {
            return Err(ShareError::Twice { device: label }.into());
        }
        chosen.push(Chosen { device, label, trusted: true, bits: None });
    }
    for device in named(board, &args.untrusted)? {
        one_of(&mut chosen, &device, "--untrusted")?.trusted = false;
    }
    for mask in &args.mask {
        let device = board.device_or_direct(&mask.device)?;
        one_of(&mut chosen, &device, "--mask")?.bits = Some(mask.bits);
    }
    Ok(chosen)
}

/// Looks names up. A node's name may hold a comma, so a whole value is tried before its parts.
fn named(board: &Board, values: &[String]) -> Result<Vec<BoardDevice>, CliError> {
    let mut devices = Vec::new();
    for value in values {
        match board.device_or_direct(value) {
            Err(_) if value.contains(',') => {
                let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
                for part in parts {
                    devices.push(board.device_or_direct(part)?);
                }
            }
            found => devices.push(found?),
        }
    }
    Ok(devices)
}

fn one_of<'c>(
    chosen: &'c mut [Chosen],
    device: &BoardDevice,
    option: &'static str,
) -> Result<&'c mut Chosen, CliError> {
    let labels: Vec<_> = chosen.iter().map(|other| other.label.clone()).collect();
    let found = chosen.iter_mut().find(|other| other.device.path == device.path);
    found.ok_or_else(|| CliError::NotShared {
        option,
        device: device.name.clone(),
        shared: labels.join(", "),
    })
}

/// The shortest name that only this device has: without unit address, with it, or the path.
fn label(board: &Board, device: &BoardDevice) -> String {
    let base = |name: &str| name.split('@').next().unwrap_or(name).to_string();
    let others = || board.devices.iter().filter(|other| other.path != device.path);
    let short = base(&device.name);
    if others().all(|other| base(&other.name) != short) {
        short
    } else if others().all(|other| other.name != device.name) {
        device.name.clone()
    } else {
        device.path.clone()
    }
}

/// Refuses what the simulator cannot stand for, with the reason.
fn check(board: &Board, device: &BoardDevice) -> Result<(), CliError> {
    let name = || device.name.clone();
    if device.unresolved {
        return Err(CliError::Unresolved { device: name() });
    }
    for iommu in iommus(board, device) {
        let (device, label) = (name(), iommu_label(iommu).to_string());
        if !iommu.enabled {
            return Err(CliError::IommuDisabled { device, iommu: label });
        }
        if iommu.kind == IommuKind::Unknown {
            let compatible = iommu.compatible.join(", ");
            return Err(CliError::UnknownIommu { device, iommu: label, compatible });
        }
        if iommu.formats.is_empty() {
            let known = granule::table::FormatId::ALL.iter().map(|format| format.name());
            let known = known.collect::<Vec<_>>().join(", ");
            let kind = iommu.kind.to_string();
            return Err(CliError::NoFormat { device, iommu: label, kind, known });
        }
    }
    Ok(())
}

fn iommus<'b>(
    board: &'b Board,
    device: &'b BoardDevice,
) -> impl Iterator<Item = &'b BoardIommu> + 'b {
    device.streams.iter().filter_map(|stream| board.iommus.get(stream.iommu))
}

/// The table format that an IOMMU is driven with: the one whose granule is the CPU's page, or the
/// largest below it, or the smallest.
pub(super) fn format_of(iommu: &BoardIommu, cpu_page: Granule) -> Option<TableFormat> {
    let granule = |format: &TableFormat| format.page_sizes().granule();
    let fitting = iommu.formats.iter().filter(|format| granule(format) <= Some(cpu_page));
    let best = fitting.max_by_key(|format| granule(format));
    best.or_else(|| iommu.formats.iter().min_by_key(|format| granule(format))).copied()
}

/// What makes a pair worth showing, the weightiest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Telling {
    /// How many of the two are translated.
    translated: usize,
    /// They are behind different IOMMUs.
    apart: bool,
    /// How far the larger granule is from the CPU's page, as a logarithm.
    distance: u32,
    /// They emit different windows of addresses.
    windows: bool,
    /// One is the other's part in the tree: they are made to work together.
    related: bool,
}

/// The pair that shows most of what is hard; of equals the first in the tree.
fn most_telling_pair(board: &Board, cpu_page: Granule) -> Result<Vec<BoardDevice>, CliError> {
    let usable = board.devices.iter().filter(|device| device.enabled);
    let usable: Vec<_> = usable.filter(|device| check(board, device).is_ok()).collect();
    let mut best: Option<(Telling, [&BoardDevice; 2])> = None;
    for (index, first) in usable.iter().enumerate() {
        for second in usable.iter().skip(index + 1) {
            let telling = rate(board, first, second, cpu_page);
            if best.as_ref().is_none_or(|(most, _)| telling > *most) {
                best = Some((telling, [first, second]));
            }
        }
    }
    let Some((_, pair)) = best else {
        let why = match usable.len() {
            0 => "none of its devices can be simulated: see `granule board`",
            _ => "only one of its devices can be simulated: see `granule board`",
        };
        return Err(CliError::NoPair { model: board.model.clone(), why });
    };
    Ok(pair.into_iter().cloned().collect())
}

fn rate(board: &Board, first: &BoardDevice, second: &BoardDevice, cpu_page: Granule) -> Telling {
    let units = |device: &BoardDevice| -> BTreeSet<usize> {
        device.streams.iter().map(|stream| stream.iommu).collect()
    };
    let distance = |device: &BoardDevice| {
        let granules = iommus(board, device).filter_map(|iommu| format_of(iommu, cpu_page));
        let shifts = granules.filter_map(|format| format.page_sizes().granule());
        shifts.map(|granule| granule.shift().abs_diff(cpu_page.shift())).max().unwrap_or(0)
    };
    let window = |device: &BoardDevice| iommus(board, device).next().and_then(|iommu| iommu.window);
    let inside = |part: &str, whole: &str| part.starts_with(&format!("{whole}/"));
    Telling {
        translated: [first, second].iter().filter(|device| !device.streams.is_empty()).count(),
        apart: units(first).is_disjoint(&units(second)),
        distance: distance(first).max(distance(second)),
        windows: window(first) != window(second),
        related: inside(&second.path, &first.path) || inside(&first.path, &second.path),
    }
}
