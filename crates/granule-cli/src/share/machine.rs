//! The board as a machine in memory: its RAM, the IOMMUs that matter here, the devices that share.

use std::collections::BTreeMap;
use std::sync::Arc;

use granule::addr::{DmaAddr, DmaRange, Granule, PhysAddr, PhysRange};
use granule::domain::Iommu;
use granule::table::FormatId;
use granule_board::{Board, BoardIommu, IommuKind};
use granule_sim::device::SimDevice;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec, Machine, Wiring};
use granule_sim::platform::{CpuConfig, SimPlatform};
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

use super::firmware::{Firmware, format_id};
use super::select::{Chosen, format_of};
use crate::board::iommu_label;
use crate::error::{CliError, failed};

/// An IOMMU of the machine as the core drives it.
pub(super) type BenchIommu = Arc<Iommu<SimPlatform, SimUnit>>;

/// RAM is simulated in pieces of this size.
const RAM_UNIT: u64 = 64 << 10;
/// What a DART whose registers would say indexes.
const DART_INPUT_BITS: u32 = 32;
/// What any other IOMMU whose registers would say indexes.
const INPUT_BITS: u32 = 48;
/// The most that the core's formats put out.
const OUTPUT_BITS: u32 = 48;
/// More streams than these no IOMMU has.
const MAX_STREAMS: u32 = 1 << 20;

/// How an IOMMU is simulated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) format: FormatId,
    pub(super) input_bits: u32,
    pub(super) output_bits: u32,
    pub(super) streams: u32,
}

/// The machine, and its IOMMUs by index of the board.
pub(super) struct Bench {
    pub(super) machine: Machine,
    pub(super) iommus: BTreeMap<usize, BenchIommu>,
    pub(super) shapes: BTreeMap<usize, Shape>,
    pub(super) ram: Vec<PhysRange>,
    pub(super) cpu_page: Granule,
}

impl Bench {
    pub(super) fn platform(&self) -> &SimPlatform {
        self.machine.platform()
    }

    /// The device as hardware: one for each window of a direct device, else a single one.
    pub(super) fn hardware(&self, chosen: &Chosen) -> Vec<SimDevice> {
        let names = (0..).map(|index| part_name(&chosen.label, index));
        names.map_while(|name| self.machine.device(&name).cloned()).collect()
    }

    /// The tables that hardware walks for a stream: firmware's root if it is locked.
    pub(super) fn locked_roots(&self, iommu: usize, stream: u32) -> Option<Vec<PhysAddr>> {
        let unit = self.iommus.get(&iommu)?.unit();
        let locked = unit.iommu().config().locked.iter().find(|lock| lock.stream == stream)?;
        Some(locked.roots.clone())
    }
}

/// A direct device with several windows is several devices to the simulator.
fn part_name(label: &str, index: usize) -> String {
    if index == 0 { label.into() } else { format!("{label}#{index}") }
}

/// The machine's RAM: what the user gives, else what the tree names.
pub(super) fn ram(board: &Board, given: &[PhysRange]) -> Result<Vec<PhysRange>, CliError> {
    let ranges = if given.is_empty() { &board.memory } else { given };
    if ranges.is_empty() {
        return Err(CliError::NoMemory { model: board.model.clone() });
    }
    let unit = Granule::new(RAM_UNIT).map_err(|error| failed(error.to_string()))?;
    let mut whole = Vec::with_capacity(ranges.len());
    for range in ranges {
        match range.align_inward(unit) {
            Some(inside) => whole.push(inside),
            None if given.is_empty() => {}
            None => return Err(CliError::SmallMemory { range: *range }),
        }
    }
    whole.sort_unstable();
    match (whole.is_empty(), ranges.first()) {
        (true, Some(first)) => Err(CliError::SmallMemory { range: *first }),
        _ => Ok(whole),
    }
}

/// Builds the machine.
pub(super) fn build(
    board: &Board,
    chosen: &[Chosen],
    ram: &[PhysRange],
    cpu_page: Granule,
) -> Result<Bench, CliError> {
    let shapes = shapes(board, chosen, cpu_page)?;
    let firmware = Firmware::new(board, &shapes, ram)?;
    let mut builder = Machine::builder().cpu(CpuConfig { page: cpu_page, ..CpuConfig::default() });
    for range in ram {
        builder = builder.ram(*range);
    }
    let reserved = board.reserved.iter().flat_map(|region| &region.ranges);
    let tables = firmware.tables.as_ref().map(|(place, _)| place);
    for range in reserved.chain(tables) {
        builder = builder.reserve(*range);
    }
    // No kernel hands out page 0, and a page table there would be taken for none.
    if let Ok(zero) = PhysRange::new(PhysAddr::new(0), RAM_UNIT) {
        builder = builder.reserve(zero);
    }
    for (index, shape) in &shapes {
        if let Some(iommu) = board.iommus.get(*index) {
            let locked = firmware.locked.get(index).cloned().unwrap_or_default();
            let config = config(board, iommu, *shape)?;
            builder = builder.iommu(IommuConfig { locked, ..config });
        }
    }
    for device in chosen {
        for spec in hardware(board, device)? {
            builder = builder.device(spec);
        }
    }
    let machine = builder.build()?;
    firmware.load(&machine)?;
    let mut iommus = BTreeMap::new();
    for index in shapes.keys() {
        let name = board.iommus.get(*index).map(|iommu| unique_label(board, iommu));
        let model = name.and_then(|name| machine.iommu(&name).cloned());
        let unit = model.as_ref().and_then(SimUnit::new);
        let unit = unit.ok_or_else(|| failed("an IOMMU of the board is not in the machine"))?;
        iommus.insert(*index, Iommu::new(unit));
    }
    Ok(Bench { machine, iommus, shapes, ram: ram.to_vec(), cpu_page })
}

/// A label that no other IOMMU of the board has.
pub(super) fn unique_label(board: &Board, iommu: &BoardIommu) -> String {
    let label = iommu_label(iommu);
    let same = board.iommus.iter().filter(|other| iommu_label(other) == label).count();
    if same > 1 { iommu.path.clone() } else { label.into() }
}

fn shapes(
    board: &Board,
    chosen: &[Chosen],
    cpu_page: Granule,
) -> Result<BTreeMap<usize, Shape>, CliError> {
    let mut shapes: BTreeMap<usize, Shape> = BTreeMap::new();
    for stream in chosen.iter().flat_map(Chosen::streams) {
        let Some(iommu) = board.iommus.get(stream.iommu) else { continue };
        let highest = stream.id | stream.mask;
        if highest >= MAX_STREAMS {
            let iommu = iommu_label(iommu).to_string();
            return Err(CliError::NoStream { iommu, stream: highest, limit: MAX_STREAMS });
        }
        let shape = match shapes.get(&stream.iommu) {
            Some(shape) => *shape,
            None => shape(iommu, cpu_page)?,
        };
        let streams = shape.streams.max(highest + 1);
        shapes.insert(stream.iommu, Shape { streams, ..shape });
    }
    Ok(shapes)
}

fn shape(iommu: &BoardIommu, cpu_page: Granule) -> Result<Shape, CliError> {
    let format = format_of(iommu, cpu_page).and_then(format_id);
    let format = format.ok_or_else(|| failed(format!("{} has no format", iommu_label(iommu))))?;
    let model = sim_format(format)?;
    let input_bits = input_bits(iommu).min(model.max_input_bits());
    let most = model.max_output_bits().min(OUTPUT_BITS);
    let output_bits = iommu.output_bits.unwrap_or(most).min(most);
    let locked = iommu.locked_streams.iter().filter(|id| **id < MAX_STREAMS).max();
    let streams = locked.map_or(16, |id| (id + 1).max(16));
    Ok(Shape { format, input_bits, output_bits, streams })
}

/// How many bits its tables index; where only its registers say, what such IOMMUs usually have.
fn input_bits(iommu: &BoardIommu) -> u32 {
    let usual = if iommu.kind == IommuKind::Dart { DART_INPUT_BITS } else { INPUT_BITS };
    iommu.input_bits.unwrap_or(usual)
}

/// The simulator's name of a format.
pub(super) fn sim_format(format: FormatId) -> Result<SimFormat, CliError> {
    Ok(format.name().parse()?)
}

fn config(board: &Board, iommu: &BoardIommu, shape: Shape) -> Result<IommuConfig, CliError> {
    let name = unique_label(board, iommu);
    let config = IommuConfig::new(&name, sim_format(shape.format)?, shape.input_bits);
    Ok(IommuConfig {
        output_bits: shape.output_bits,
        coherent_walk: iommu.coherent,
        can_bypass: iommu.bypass.unwrap_or(false),
        streams: shape.streams,
        ..config
    })
}

/// The device as hardware, as it is wired.
fn hardware(board: &Board, chosen: &Chosen) -> Result<Vec<DeviceSpec>, CliError> {
    let wirings = if chosen.device.is_direct() {
        windows(chosen)?.into_iter().map(|(window, phys)| Wiring::Direct { window, phys }).collect()
    } else {
        let ports = chosen.streams().iter().filter_map(|stream| {
            Some((unique_label(board, board.iommus.get(stream.iommu)?), stream.id))
        });
        vec![Wiring::Streams(ports.collect())]
    };
    let window = emitted(board, chosen)?;
    let specs = wirings.into_iter().enumerate().map(|(index, wiring)| DeviceSpec {
        address_bits: chosen.bits.unwrap_or(64),
        snoops: chosen.device.coherent,
        window,
        ..DeviceSpec::new(&part_name(&chosen.label, index), wiring)
    });
    Ok(specs.collect())
}

/// A direct device's windows onto memory; without `dma-ranges` all of it, at its own address.
pub(super) fn windows(chosen: &Chosen) -> Result<Vec<(DmaRange, PhysAddr)>, CliError> {
    if chosen.device.windows.is_empty() {
        let all = DmaRange::new(DmaAddr::new(0), u64::MAX);
        return Ok(vec![(all.map_err(|error| failed(error.to_string()))?, PhysAddr::new(0))]);
    }
    let windows = chosen.device.windows.iter();
    Ok(windows.map(|window| (window.bus, window.phys.start())).collect())
}

/// The addresses that a translated device emits: what all its IOMMUs' windows have in common.
pub(super) fn emitted(board: &Board, chosen: &Chosen) -> Result<Option<DmaRange>, CliError> {
    let windows = chosen.streams().iter().filter_map(|stream| board.iommus.get(stream.iommu));
    let mut common: Option<DmaRange> = None;
    for window in windows.filter_map(|iommu| iommu.window) {
        common = match common {
            None => Some(window),
            Some(known) => match known.intersection(&window) {
                Some(both) => Some(both),
                None => return Err(CliError::NoCommonWindow { device: chosen.label.clone() }),
            },
        };
    }
    if common.is_some() {
        return Ok(common);
    }
    bus_limit(board, chosen)
}

/// `dma-ranges` of the bus before the IOMMUs limit what a device can emit, where they are narrower
/// than what the IOMMUs index.
fn bus_limit(board: &Board, chosen: &Chosen) -> Result<Option<DmaRange>, CliError> {
    let streams = chosen.streams().iter();
    let bits = streams.filter_map(|stream| board.iommus.get(stream.iommu).map(input_bits)).min();
    let index = bits.filter(|bits| *bits < 64).map_or(u64::MAX, |bits| 1 << bits);
    let indexed =
        DmaRange::new(DmaAddr::new(0), index).map_err(|error| failed(error.to_string()))?;
    let windows = chosen.device.windows.iter().map(|window| window.bus);
    let widest = windows.filter_map(|bus| bus.intersection(&indexed)).max_by_key(|bus| bus.len());
    Ok(widest.filter(|_| !chosen.device.is_direct()))
}
