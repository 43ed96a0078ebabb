//! The table of `share --live`, and its JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use granule::dma::RouteReport;
use granule::share::{Contiguous, Shared, Solved};
use granule_linux::{Backend, Device};
use serde::Serialize;

use crate::args::ShareArgs;
use crate::error::{CliError, failed};
use crate::output;
use crate::share::report::text::{HEAD, RIGHT};
use crate::text::{self, serialize_hex};

/// What is mapped where.
#[derive(Serialize)]
pub(super) struct Report {
    backend: Backend,
    cpu_page: u64,
    size: u64,
    devices: Vec<Row>,
    /// Blocks of this process's memory.
    memory: Vec<Block>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<String>,
}

#[derive(Serialize)]
struct Block {
    #[serde(serialize_with = "serialize_hex")]
    address: u64,
    length: u64,
}

#[derive(Serialize)]
struct Row {
    name: String,
    group: u32,
    /// Tells address spaces apart: devices with the same number are in one.
    space: usize,
    trusted: bool,
    granule: u64,
    #[serde(serialize_with = "serialize_hex")]
    dma_address: u64,
    length: u64,
    page_sizes: BTreeMap<u64, u64>,
    padding_bytes: u64,
    exposed_bytes: u64,
    /// How many more mappings the kernel takes in this space, if it counts them.
    mappings_left: Option<u64>,
    late_dma: &'static str,
}

impl Report {
    pub(super) fn new(
        args: &ShareArgs,
        backend: Backend,
        devices: &[Device],
        solved: &Solved,
        shared: &Shared,
    ) -> Result<Self, CliError> {
        let rows = devices.iter().enumerate().map(|(index, device)| {
            let range = shared.range_of(device.dma());
            let range = range.ok_or_else(|| failed("a device has no range of the buffer"))?;
            row(device, if args.one_space { 0 } else { index }, &range)
        });
        let blocks = shared.blocks().iter();
        let cpu_page = granule::mem::Platform::cpu_page(&granule_linux::UserMemory::new());
        Ok(Self {
            backend,
            cpu_page: cpu_page.size(),
            size: shared.len(),
            devices: rows.collect::<Result<_, CliError>>()?,
            memory: blocks
                .map(|block| Block { address: block.start().raw(), length: block.len() })
                .collect(),
            explanation: args.explain.then(|| solved.to_string()),
        })
    }

    pub(super) fn json(&self) -> String {
        output::json(self)
    }

    pub(super) fn text(&self) -> String {
        let devices = text::count(self.devices.len(), "device");
        let (size, page) = (text::size(self.size), text::size(self.cpu_page));
        let mut out = format!(
            "this machine, through {}: {size} for {devices}, CPU page {page}\n\n",
            self.backend
        );
        let cells = self.devices.iter().map(|row| row.cells(self.backend)).collect();
        out.push_str(&text::table(&HEAD, &RIGHT, cells));
        let blocks = self.memory.iter();
        let blocks = blocks
            .map(|block| format!("{} at {:#x}", text::size(block.length), block.address))
            .collect::<Vec<_>>();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "\nmemory of this process: {}", blocks.join(", "));
        out.push_str(
            "pages: those that surely are behind the mapping; the kernel joins more where it can\n",
        );
        for row in self.devices.iter().filter(|row| row.space_is_first(&self.devices)) {
            if let Some(left) = row.mappings_left {
                let _ = writeln!(out, "mappings left in the address space of {}: {left}", row.name);
            }
        }
        if let Some(explanation) = &self.explanation {
            let _ = write!(out, "\n{explanation}");
        }
        out
    }

    /// What is said when all is over.
    pub(super) fn farewell(&self) -> String {
        let devices = text::count(self.devices.len(), "device");
        format!("unmapped from {devices}, and freed\n")
    }
}

impl Row {
    fn space_is_first(&self, rows: &[Self]) -> bool {
        let first = rows.iter().find(|row| row.space == self.space);
        first.is_some_and(|row| row.name == self.name)
    }

    fn cells(&self, backend: Backend) -> Vec<String> {
        let trust = if self.trusted { "" } else { ", untrusted" };
        let pages = self.page_sizes.iter().rev();
        let pages = pages.map(|(size, count)| format!("{count} x {}", text::short_size(*size)));
        vec![
            self.name.clone(),
            format!("{backend} group {}{trust}", self.group),
            text::size(self.granule),
            text::hex(self.dma_address),
            text::size(self.length),
            pages.collect::<Vec<_>>().join(" + "),
            text::size(self.padding_bytes),
            text::size(self.exposed_bytes),
            "not tried".into(),
        ]
    }
}

fn row(device: &Device, space: usize, range: &Contiguous<'_>) -> Result<Row, CliError> {
    let report = device.dma().report(range.mapped());
    let RouteReport::Translated { granule, page_sizes, .. } = report else {
        return Err(failed("a device of VFIO or iommufd is not translated"));
    };
    let domain = device.space().domain();
    Ok(Row {
        name: device.address().to_string(),
        group: device.group(),
        space,
        trusted: device.dma().spec().trusted,
        granule: granule.size(),
        dma_address: range.address().raw(),
        length: range.len(),
        page_sizes: page_sizes.into_iter().collect(),
        padding_bytes: range.padding(),
        exposed_bytes: range.exposed(),
        mappings_left: domain.and_then(|domain| domain.translation().mappings_left()),
        late_dma: "not_tried",
    })
}
