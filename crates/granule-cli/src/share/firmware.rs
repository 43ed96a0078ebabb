//! What firmware left behind: live tables in streams whose table base it has locked.
//!
//! The tables are made by the core on a scratch machine whose only RAM is the piece that firmware
//! keeps, and copied into the real one: the simulator's walker then finds them as hardware would.

use std::any::Any;
use std::collections::BTreeMap;

use granule::addr::{Access, Attributes, Granule, IovaRange, PhysAddr, PhysRange};
use granule::table::{
    Format, FormatId, FormatVisitor, PageTable, PlatformTables, TableConfig, TableError,
};
use granule_board::{Board, BoardIommu, Stream};
use granule_sim::iommu::LockedStream;
use granule_sim::machine::Machine;
use granule_sim::platform::SimPlatform;
use granule_sim::unit::FIRMWARE_CONTEXTS;

use super::machine::Shape;
use crate::error::CliError;

const UNIT: u64 = 64 << 10;

/// Firmware's memory and what is in it.
#[derive(Debug, Default)]
pub(super) struct Firmware {
    /// Where its tables lie, and their bytes.
    pub(super) tables: Option<(PhysRange, Vec<u8>)>,
    /// The locked streams, by index of the IOMMU.
    pub(super) locked: BTreeMap<usize, Vec<LockedStream>>,
}

impl Firmware {
    /// Makes the tables of all locked streams of these IOMMUs.
    pub(super) fn new(
        board: &Board,
        shapes: &BTreeMap<usize, Shape>,
        ram: &[PhysRange],
    ) -> Result<Self, CliError> {
        let streams = shapes.iter().flat_map(|(index, shape)| {
            let iommu = board.iommus.get(*index);
            let ids = iommu.map(|iommu: &BoardIommu| iommu.locked_streams.as_slice());
            ids.unwrap_or_default().iter().map(move |id| (*index, *shape, *id))
        });
        let streams: Vec<_> = streams.filter(|(_, shape, id)| *id < shape.streams).collect();
        if streams.is_empty() {
            return Ok(Self::default());
        }
        let size = streams.len() as u64 * (256 << 10);
        let place = free_place(board, ram, size).ok_or(CliError::FirmwareRoom { size })?;
        let scratch = Machine::builder().ram(place).build()?;
        let mut locked: BTreeMap<usize, Vec<LockedStream>> = BTreeMap::new();
        let mut tables: Vec<Box<dyn Any>> = Vec::new();
        for (index, shape, id) in streams {
            let regions = regions(board, Stream { iommu: index, id, mask: 0 });
            let build = Build { platform: scratch.platform(), shape, regions: &regions };
            let (roots, table) = shape
                .format
                .visit(build)
                .map_err(|cause| CliError::Firmware { stream: id, cause })?;
            tables.push(table);
            let context = FIRMWARE_CONTEXTS.saturating_add(id);
            let input_bits = shape.input_bits;
            locked.entry(index).or_default().push(LockedStream {
                stream: id,
                context,
                roots,
                input_bits,
            });
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        scratch.ram().read(place.start(), &mut bytes)?;
        drop(tables);
        Ok(Self { tables: Some((place, bytes)), locked })
    }

    /// Puts the tables into the machine's RAM.
    pub(super) fn load(&self, machine: &Machine) -> Result<(), CliError> {
        match &self.tables {
            Some((place, bytes)) => Ok(machine.ram().write(place.start(), bytes)?),
            None => Ok(()),
        }
    }
}

/// The highest piece of RAM of that size that nobody has reserved.
fn free_place(board: &Board, ram: &[PhysRange], size: u64) -> Option<PhysRange> {
    let taken = || board.reserved.iter().flat_map(|region| &region.ranges);
    let size = size.next_multiple_of(UNIT);
    ram.iter().rev().find_map(|range| {
        let top = range.start().checked_add(range.len().checked_sub(size)?)?;
        let mut start = PhysAddr::new(top.raw() / UNIT * UNIT);
        loop {
            let place =
                PhysRange::new(start, size).ok().filter(|place| range.contains_range(place))?;
            // Below the lowest of what is in the way, again.
            match taken().filter(|other| other.overlaps(&place)).map(|other| other.start()).min() {
                None => return Some(place),
                Some(other) => {
                    start = PhysAddr::new(other.checked_sub(size)?.raw() / UNIT * UNIT);
                }
            }
        }
    })
}

/// What firmware has mapped for a stream: the regions that the tree gives to its devices.
fn regions(board: &Board, stream: Stream) -> Vec<(IovaRange, PhysRange)> {
    let devices = board.devices.iter();
    let devices = devices.filter(|device| device.streams.iter().any(|own| own.overlaps(&stream)));
    let regions = devices.flat_map(|device| &device.iova_regions);
    let mut regions: Vec<_> =
        regions.filter_map(|region| Some((region.iova, region.phys?))).collect();
    regions.sort_unstable();
    regions.dedup();
    regions
}

struct Build<'a> {
    platform: &'a SimPlatform,
    shape: Shape,
    regions: &'a [(IovaRange, PhysRange)],
}

impl FormatVisitor for Build<'_> {
    type Output = Result<(Vec<PhysAddr>, Box<dyn Any>), TableError>;

    fn visit<F: Format>(self) -> Self::Output {
        let config = TableConfig::new(self.shape.input_bits, self.shape.output_bits);
        let table =
            PageTable::<F, _>::new(PlatformTables::new(self.platform.clone(), true), config)?;
        for (iova, phys) in self.regions {
            let Some((iova, phys)) = whole(iova, phys, F::GRANULE) else { continue };
            // SAFETY: the table belongs to a machine without devices; nothing walks it before it is
            // firmware's, and what it maps is what the tree says that firmware has mapped.
            unsafe { table.map(iova.start(), phys, Attributes::memory(Access::all())) }?;
        }
        Ok((table.layout().roots, Box::new(table)))
    }
}

/// The region in whole granules; `None` where IOVA and memory are not at the same place in one.
pub(super) fn whole(
    iova: &IovaRange,
    phys: &PhysRange,
    granule: Granule,
) -> Option<(IovaRange, PhysRange)> {
    if iova.start().offset_in(granule) != phys.start().offset_in(granule) {
        return None;
    }
    Some((iova.align_outward(granule)?, phys.align_outward(granule)?))
}

/// The core's name of a board's format.
pub(super) fn format_id(format: granule_board::TableFormat) -> Option<FormatId> {
    format.name().parse().ok()
}
