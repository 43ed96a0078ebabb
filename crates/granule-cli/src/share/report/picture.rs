//! The picture: physical memory, and where each device sees the buffer.

use granule_report::canvas;
use granule_report::scheme::{Block, Memory, Shape, Space, Spaces};

use super::{LateDma, Report, Row};
use crate::text;

impl Report {
    /// The picture as a file of its own.
    pub(in crate::share) fn svg(&self) -> String {
        let spaces = Spaces { title: Some(self.title()), ..self.spaces() };
        canvas::standalone(&spaces.svg(Shape::Wide))
    }

    /// What is drawn.
    pub(super) fn spaces(&self) -> Spaces {
        let end = |range: Option<u64>, word: &str| {
            range.map_or(String::new(), |address| format!("{word} {address:#x}"))
        };
        let blocks = self.memory.iter().map(|block| Block {
            address: text::hex(block.start().raw()),
            size: text::size(block.len()),
            len: block.len(),
        });
        Spaces {
            label: self.title(),
            title: None,
            memory: Memory {
                first: end(self.ram.first().map(|range| range.start().raw()), "from"),
                last: end(self.ram.last().map(|range| range.last().raw()), "to"),
                shape: self.shape(),
                blocks: blocks.collect(),
            },
            devices: self.rows.iter().map(Row::space).collect(),
        }
    }
}

impl Row {
    fn space(&self) -> Space {
        let size = match self.tables {
            Some(_) => format!("{}, {}", text::size(self.length), self.pages()),
            None => text::size(self.length),
        };
        let padding = match self.padding() {
            0 => None,
            padding => Some(format!("{} padding", text::size(padding))),
        };
        let late = match self.late {
            LateDma::Blocked => "late DMA blocked",
            LateDma::NotEnforced => "no IOMMU: not enforced",
        };
        Space {
            name: self.label.clone(),
            way: self.way.clone(),
            first: format!("from {:#x}", self.space.start()),
            last: format!("to {:#x}", self.space.last()),
            address: text::hex(self.address.raw()),
            notes: [size].into_iter().chain(padding).chain([late.into()]).collect(),
            guarded: self.tables.is_some(),
        }
    }
}
