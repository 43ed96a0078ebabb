//! Commands on values instead of files: what the fuzzing targets call.

use std::ffi::OsString;

use clap::Parser;
use granule_board::Board;

use crate::args::{Cli, Command};
use crate::{board, share};

/// Sizes, addresses and ranges as people type them.
pub mod sizes {
    use granule::addr::{Granule, PhysRange};

    use crate::size;

    /// A number of bytes: `8M`, `64K`, `4096`, `0x4000`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn bytes(text: &str) -> Result<u64, String> {
        size::bytes(text)
    }

    /// An address: `0x800000000`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn address(text: &str) -> Result<u64, String> {
        size::address(text)
    }

    /// A range of memory: `0x80000000+4G`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn memory(text: &str) -> Result<PhysRange, String> {
        size::memory(text)
    }

    /// A page: `4K`, `16K` or `64K`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn granule(text: &str) -> Result<Granule, String> {
        size::granule(text)
    }

    /// A device and how many address bits it has: `dcp=32`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn mask(text: &str) -> Result<(String, u32), String> {
        size::mask(text).map(|mask| (mask.device, mask.bits))
    }
}

/// Reads a command line, its first word included, and performs nothing.
///
/// # Errors
/// What the command would print, be it help or what is wrong.
pub fn command_line(words: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    parse(words).map(|_| ())
}

/// `granule board` on a board in memory.
pub fn show(board: &Board, json: bool) -> String {
    board::show(board, json)
}

/// `granule share` on a board in memory: `words` are what stands behind the command's name. They
/// may name no output file.
///
/// # Errors
/// [`Refusal`].
pub fn share(board: &Board, words: &[&str]) -> Result<String, Refusal> {
    let command = ["granule", "share"].iter().chain(words).map(OsString::from);
    let usage = |message| Refusal { kind: "usage", message };
    match parse(command).map_err(usage)?.command {
        Command::Share(args)
            if [&args.svg, &args.report, &args.dump].iter().all(|path| path.is_none()) =>
        {
            share::on_board(board, &args)
                .map_err(|error| Refusal { kind: error.kind(), message: error.to_string() })
        }
        _ => Err(usage("this is `granule share` without output files".into())),
    }
}

/// Why a command refuses, as `--json` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of the error; `verification` is a defect of granule itself.
    pub kind: &'static str,
    /// For people.
    pub message: String,
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, String> {
    Cli::try_parse_from(words).map_err(|error| error.render().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use granule_board::DEFAULT_BOARD;

    #[test]
    fn the_commands_answer_as_they_do_for_files() {
        let board = Board::from_dtb(DEFAULT_BOARD).expect("the built-in board");
        assert!(show(&board, true).starts_with('{'));
        let text = share(&board, &["--size", "64K", "--between", "dcp,piodma"]).expect("shared");
        assert!(text.contains("all equal"), "{text}");
        assert!(share(&board, &["--size", "8X"]).expect_err("no size").message.contains("8X"));
        assert!(share(&board, &["--dump", "ram.raw"]).is_err());
        assert_eq!(command_line(["granule", "board", "my.dtb"].map(OsString::from)), Ok(()));
    }
}
