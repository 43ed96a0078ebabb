//! The answer as a person reads it on a terminal.

use std::fmt::Write as _;

use super::{Report, Row};
use crate::args::ShareArgs;
use crate::text;

/// The columns of [`Row::cells`].
pub(crate) const HEAD: [&str; 9] = [
    "device",
    "way to memory",
    "granule",
    "DMA address",
    "length",
    "pages",
    "padding",
    "exposed",
    "late DMA",
];
/// Those that hold numbers.
pub(crate) const RIGHT: [usize; 5] = [2, 3, 4, 6, 7];
/// More blocks of memory than these are counted, not listed.
const BLOCKS_SHOWN: usize = 4;

impl Row {
    pub(super) fn cells(&self) -> Vec<String> {
        let tables = self.tables.as_ref();
        vec![
            self.label.clone(),
            self.way.clone(),
            tables.map_or("-".into(), |tables| text::size(tables.granule)),
            text::hex(self.address.raw()),
            text::size(self.length),
            self.pages(),
            text::size(self.padding()),
            tables.map_or("all it reaches".into(), |_| text::size(self.exposed)),
            self.late.words().into(),
        ]
    }
}

impl Report {
    pub(in crate::share) fn text(&self, args: &ShareArgs) -> String {
        let mut out = self.title();
        out.push_str("\n\n");
        let cells = self.rows.iter().map(Row::cells).collect();
        out.push_str(&text::table(&HEAD, &RIGHT, cells));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "\nmemory: {}", self.memory_line());
        for (index, proof) in self.proofs().iter().enumerate() {
            let _ = writeln!(out, "{:<9} {proof}", if index == 0 { "verified:" } else { "" });
        }
        for sentence in self.not_enforced() {
            let _ = writeln!(out, "not enforced: {sentence}");
        }
        if args.explain {
            let _ = write!(out, "\n{}", self.explanation.text());
        }
        for (what, path) in [("picture", &args.svg), ("report", &args.report)] {
            if let Some(path) = path {
                let _ = writeln!(out, "{what}: {}", path.display());
            }
        }
        if let Some(path) = &args.dump {
            let _ = writeln!(out, "dump: {}{}", path.display(), self.walk_hint(&path.display()));
        }
        out
    }

    /// Where the buffer is in memory.
    pub(super) fn memory_line(&self) -> String {
        let shown = self.memory.iter().take(BLOCKS_SHOWN);
        let shown =
            shown.map(|block| format!("{} at {:#x}", text::size(block.len()), block.start()));
        let line = shown.collect::<Vec<_>>().join(", ");
        match self.memory.len() {
            count if count > BLOCKS_SHOWN => format!("{line}, … {count} blocks in all"),
            _ => format!("{line}, {}", self.shape()),
        }
    }

    /// How to read the dump back.
    fn walk_hint(&self, path: &dyn std::fmt::Display) -> String {
        let base = self.ram.first().map_or(0, |range| range.start().raw());
        let tables = self.rows.iter().find_map(|row| row.tables.as_ref());
        let Some(tables) = tables else { return String::new() };
        let roots =
            tables.roots.iter().map(|root| format!(" --root {root:#x}")).collect::<String>();
        let (format, bits) = (tables.format, tables.input_bits);
        format!(
            "\n  granule walk --format {format}{roots} --input-bits {bits} --memory {path}@{base:#x}"
        )
    }
}
