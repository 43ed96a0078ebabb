//! `granule board`: what a device tree says about DMA.

mod json;
mod page;
mod text;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use granule_board::{Board, BoardDevice, BoardIommu, DEFAULT_BOARD, MAX_BLOB_BYTES};

use crate::args::BoardArgs;
use crate::error::CliError;
use crate::output::Staged;
pub(crate) use json::RangeJson;

/// Runs the command; what to print comes back.
pub(crate) fn run(args: &BoardArgs) -> Result<String, CliError> {
    let board = load(args.file.as_deref())?;
    let mut answer = show(&board, args.json);
    if let Some(path) = &args.report {
        let mut file = Staged::new(path)?;
        file.write(&page::html(&board))?;
        file.commit()?;
        if !args.json {
            answer.push_str(&format!("\nreport: {}\n", path.display()));
        }
    }
    Ok(answer)
}

/// The board as JSON, or as tables.
pub(crate) fn show(board: &Board, as_json: bool) -> String {
    if as_json { json::json(board) } else { text::text(board) }
}

/// Reads a board from a blob, or the built-in one.
pub(crate) fn load(file: Option<&Path>) -> Result<Board, CliError> {
    let Some(path) = file else {
        return Board::from_dtb(DEFAULT_BOARD).map_err(CliError::from);
    };
    let wrap = |error| CliError::Read { path: path.into(), error };
    let mut blob = Vec::new();
    // One byte more than is accepted, so that the reader sees that it is too much.
    let limit = MAX_BLOB_BYTES as u64 + 1;
    File::open(path).map_err(wrap)?.take(limit).read_to_end(&mut blob).map_err(wrap)?;
    Board::from_dtb(&blob).map_err(|error| CliError::BoardFile { path: path.into(), error })
}

/// What a person calls the board.
pub(crate) fn model(board: &Board) -> &str {
    if board.model.is_empty() { "a board without a model" } else { &board.model }
}

/// What a person calls an IOMMU: its label if it has one, else its name.
pub(crate) fn iommu_label(iommu: &BoardIommu) -> &str {
    iommu.aliases.first().unwrap_or(&iommu.name)
}

fn streams<'b>(
    board: &'b Board,
    device: &'b BoardDevice,
) -> impl Iterator<Item = (&'b BoardIommu, &'b granule_board::Stream)> {
    let all = device.streams.iter();
    all.filter_map(|stream| Some((board.iommus.get(stream.iommu)?, stream)))
}

/// `4`, or `0x2100&~0x402` for an id of which the hardware ignores bits.
pub(crate) fn stream_id(stream: &granule_board::Stream) -> String {
    match stream.mask {
        0 if stream.id < 256 => stream.id.to_string(),
        0 => format!("{:#x}", stream.id),
        mask => format!("{:#x}&~{mask:#x}", stream.id),
    }
}
