//! The answer as an object that a program reads.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{LateDma, Report, Row};
use crate::board::RangeJson;
use crate::output;
use crate::text::{self, serialize_hex};

#[derive(Serialize)]
struct ShareJson<'r> {
    board: &'r str,
    cpu_page: u64,
    size: u64,
    devices: Vec<DeviceJson<'r>>,
    memory: Vec<RangeJson>,
    verified_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<&'r str>,
}

#[derive(Serialize)]
struct DeviceJson<'r> {
    name: &'r str,
    path: &'r str,
    route: &'static str,
    iommu: Option<&'r str>,
    stream: Option<u32>,
    /// All of them, where a device has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    streams: Option<Vec<StreamJson<'r>>>,
    granule: Option<u64>,
    #[serde(serialize_with = "serialize_hex")]
    dma_address: u64,
    length: u64,
    ranges: u64,
    page_sizes: BTreeMap<u64, u64>,
    padding_bytes: u64,
    exposed_bytes: Option<u64>,
    late_dma: LateDma,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<TableJson>,
}

#[derive(Serialize)]
struct StreamJson<'r> {
    iommu: &'r str,
    stream: u32,
}

#[derive(Serialize)]
struct TableJson {
    format: &'static str,
    granule: u64,
    input_bits: u32,
    levels: u32,
    roots: Vec<String>,
}

impl Row {
    fn json(&self) -> DeviceJson<'_> {
        let first = self.streams.first();
        let all = self.streams.iter();
        let all = all.map(|(iommu, stream)| StreamJson { iommu, stream: *stream }).collect();
        DeviceJson {
            name: &self.label,
            path: &self.path,
            route: if self.tables.is_some() { "translated" } else { "direct" },
            iommu: first.map(|(iommu, _)| iommu.as_str()),
            stream: first.map(|(_, stream)| *stream),
            streams: (self.streams.len() > 1).then_some(all),
            granule: self.tables.as_ref().map(|tables| tables.granule),
            dma_address: self.address.raw(),
            length: self.length,
            ranges: self.tables.as_ref().map_or(1, |tables| tables.ranges),
            page_sizes: self.tables.as_ref().map(|tables| tables.pages.clone()).unwrap_or_default(),
            padding_bytes: self.padding(),
            exposed_bytes: self.tables.as_ref().map(|_| self.exposed),
            late_dma: self.late,
            table: self.tables.as_ref().map(|tables| TableJson {
                format: tables.format,
                granule: tables.granule,
                input_bits: tables.input_bits,
                levels: tables.levels,
                roots: tables.roots.iter().map(|root| text::hex(root.raw())).collect(),
            }),
        }
    }
}

impl Report {
    pub(in crate::share) fn json(&self, explain: bool) -> String {
        let explanation = explain.then(|| self.explanation.text());
        output::json(&ShareJson {
            board: &self.board,
            cpu_page: self.cpu_page,
            size: self.size,
            devices: self.rows.iter().map(Row::json).collect(),
            memory: self.memory.iter().map(RangeJson::from).collect(),
            verified_bytes: self.verified.compared,
            explanation: explanation.as_deref(),
        })
    }
}
