//! A board as an object that a program reads.

use granule_board::Board;
use serde::Serialize;

use super::streams;
use crate::output;
use crate::text::serialize_hex;

#[derive(Serialize)]
struct BoardJson<'b> {
    model: &'b str,
    memory: Vec<RangeJson>,
    iommus: Vec<IommuJson<'b>>,
    devices: Vec<DeviceJson<'b>>,
    warnings: Vec<String>,
}

/// A range of physical memory.
#[derive(Serialize)]
pub(crate) struct RangeJson {
    #[serde(serialize_with = "serialize_hex")]
    address: u64,
    length: u64,
}

impl From<&granule::addr::PhysRange> for RangeJson {
    fn from(range: &granule::addr::PhysRange) -> Self {
        Self { address: range.start().raw(), length: range.len() }
    }
}

#[derive(Serialize)]
struct IommuJson<'b> {
    path: &'b str,
    compatible: &'b [String],
    page_sizes: Vec<u64>,
    enabled: bool,
}

#[derive(Serialize)]
struct DeviceJson<'b> {
    path: &'b str,
    streams: Vec<StreamJson<'b>>,
    group: usize,
    coherent: bool,
    enabled: bool,
}

#[derive(Serialize)]
struct StreamJson<'b> {
    iommu: &'b str,
    id: u32,
    mask: u32,
}

pub(super) fn json(board: &Board) -> String {
    let iommus = board.iommus.iter().map(|iommu| IommuJson {
        path: &iommu.path,
        compatible: &iommu.compatible,
        page_sizes: iommu.page_sizes.iter().collect(),
        enabled: iommu.enabled,
    });
    let devices = board.devices.iter().map(|device| DeviceJson {
        path: &device.path,
        streams: streams(board, device)
            .map(|(iommu, stream)| StreamJson {
                iommu: &iommu.path,
                id: stream.id,
                mask: stream.mask,
            })
            .collect(),
        group: device.group,
        coherent: device.coherent,
        enabled: device.enabled,
    });
    output::json(&BoardJson {
        model: &board.model,
        memory: board.memory.iter().map(RangeJson::from).collect(),
        iommus: iommus.collect(),
        devices: devices.collect(),
        warnings: board.warnings.iter().map(ToString::to_string).collect(),
    })
}
