//! The picture: physical memory in the middle, each device's address space beside it, bands between.
//!
//! Not to scale: a buffer of megabytes in a space of gigabytes would be a hair. Low addresses are on
//! top.

use std::fmt::Write as _;

use super::report::{LateDma, Report, Row};
use crate::text;

const WIDTH: i64 = 1040;
const TOP: i64 = 84;
const PANEL_WIDTH: i64 = 290;
const PANEL_HEIGHT: i64 = 226;
const SPACE_HEIGHT: i64 = 164;
const MEMORY_X: i64 = 410;
const MEMORY_WIDTH: i64 = 220;
const MARGIN: i64 = 30;
const BLOCK_HEIGHT: i64 = 40;
const BLOCK_GAP: i64 = 12;
/// More blocks than these are drawn as one.
const BLOCKS_SHOWN: usize = 8;
/// A longer text is cut.
const CHARS: usize = 44;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1c2330}
.title{font-size:17px;font-weight:600}.name{font-size:15px;font-weight:600}
.small{font-size:11.5px;fill:#4a5568}.mono{font-family:ui-monospace,monospace;font-size:12.5px}
.page{fill:#fff}.space{fill:#f1f4f8;stroke:#8a94a6}.guard{fill:#d64545}
.block{fill:#fff;stroke:#1c2330}.c0{fill:#2f6fdb}.c1{fill:#d97a1e}.c2{fill:#2a9d6f}
.c3{fill:#9352c9}.c4{fill:#b8433f}.c5{fill:#4d8a9e}.band{fill-opacity:.28}.buffer{fill-opacity:.38}
@media (prefers-color-scheme:dark){text{fill:#e8ecf3}.small{fill:#aab4c4}.page{fill:#12161d}
.space{fill:#1d2430;stroke:#5d6880}.block{fill:#12161d;stroke:#e8ecf3}.c0{fill:#6da2ff}.c1{fill:#f0a04b}
.c2{fill:#4fd19c}.c3{fill:#c08bf0}.c4{fill:#f07f7b}.c5{fill:#7fc1d6}}
";

/// Where a device's panel is.
struct Panel<'r> {
    row: &'r Row,
    left: bool,
    x: i64,
    y: i64,
    colour: usize,
}

/// A piece of the memory column and the bytes of the buffer in it.
struct Piece {
    y: i64,
    height: i64,
    offset: u64,
    len: u64,
    label: [String; 2],
}

/// Draws the report.
pub(super) fn draw(report: &Report) -> String {
    let panels = panels(report);
    let rows = i64::try_from(report.rows.len().div_ceil(2)).unwrap_or(1);
    let pieces_height = pieces_height(report);
    let body = (rows * PANEL_HEIGHT).max(pieces_height + 150);
    let height = TOP + body + 46;
    let pieces = pieces(report, TOP + (body - 30 - pieces_height) / 2);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
        escape(&report.title())
    );
    line(&mut out, MARGIN, 36, "title", "start", &cut(&report.title(), 100));
    memory(&mut out, report, body, &pieces);
    for panel in &panels {
        bands(&mut out, panel, &pieces);
    }
    for piece in &pieces {
        block(&mut out, piece);
    }
    for panel in &panels {
        space(&mut out, panel);
    }
    let note = "low addresses on top, not to scale; red: unmapped granules that fault on access";
    line(&mut out, MARGIN, height - 16, "small", "start", note);
    out.push_str("</svg>\n");
    out
}

fn panels(report: &Report) -> Vec<Panel<'_>> {
    let rows = report.rows.iter().enumerate();
    let panel = |(index, row)| {
        let left = index % 2 == 0;
        let x = if left { MARGIN } else { WIDTH - MARGIN - PANEL_WIDTH };
        let y = TOP + i64::try_from(index / 2).unwrap_or(0) * PANEL_HEIGHT;
        Panel { row, left, x, y, colour: index % 6 }
    };
    rows.map(panel).collect()
}

fn shown(report: &Report) -> usize {
    report.memory.len().min(BLOCKS_SHOWN)
}

fn pieces_height(report: &Report) -> i64 {
    let count = i64::try_from(shown(report)).unwrap_or(1).max(1);
    count * (BLOCK_HEIGHT + BLOCK_GAP) - BLOCK_GAP
}

/// The blocks from `top` down; the last one stands for all that are too many.
fn pieces(report: &Report, top: i64) -> Vec<Piece> {
    let count = shown(report);
    let mut offset = 0;
    let mut pieces = Vec::with_capacity(count);
    for (index, block) in report.memory.iter().take(count).enumerate() {
        let last = index + 1 == count;
        let rest = report.memory.len() - count;
        let (len, second) = if last && rest > 0 {
            let all: u64 = report.memory.iter().map(|block| block.len()).sum();
            (all - offset, format!("and {rest} more, {}", text::size(all - offset)))
        } else {
            (block.len(), text::size(block.len()))
        };
        let y = top + i64::try_from(index).unwrap_or(0) * (BLOCK_HEIGHT + BLOCK_GAP);
        let label = [text::hex(block.start().raw()), second];
        pieces.push(Piece { y, height: BLOCK_HEIGHT, offset, len, label });
        offset += len;
    }
    pieces
}

fn memory(out: &mut String, report: &Report, body: i64, pieces: &[Piece]) {
    let middle = MEMORY_X + MEMORY_WIDTH / 2;
    line(out, middle, TOP - 8, "name", "middle", "physical memory");
    rect(out, "space", MEMORY_X, TOP + 4, MEMORY_WIDTH, body - 34);
    if let (Some(first), Some(last)) = (report.ram.first(), report.ram.last()) {
        let start = format!("RAM from {:#x}", first.start());
        line(out, middle, TOP + 22, "small", "middle", &start);
        let end = format!("to {:#x}", last.last());
        line(out, middle, TOP + body - 40, "small", "middle", &end);
    }
    if let Some(first) = pieces.first() {
        let shape = match report.memory.len() {
            1 => "one block".into(),
            count => format!("{count} blocks"),
        };
        line(out, middle, first.y - 8, "small", "middle", &shape);
    }
}

fn block(out: &mut String, piece: &Piece) {
    let middle = MEMORY_X + MEMORY_WIDTH / 2;
    rect(out, "block", MEMORY_X + 10, piece.y, MEMORY_WIDTH - 20, piece.height);
    line(out, middle, piece.y + 17, "mono", "middle", &piece.label[0]);
    line(out, middle, piece.y + 33, "small", "middle", &piece.label[1]);
}

/// Top and height of the buffer inside a device's space.
fn buffer(panel: &Panel<'_>) -> (i64, i64) {
    (panel.y + 34 + 44, 76)
}

fn bands(out: &mut String, panel: &Panel<'_>, pieces: &[Piece]) {
    let (top, height) = buffer(panel);
    let total: u64 = pieces.iter().map(|piece| piece.len).sum();
    let at = |offset: u64| {
        // A picture of a few hundred points: the loss of precision is no matter.
        top + (offset as f64 / total.max(1) as f64 * height as f64).round() as i64
    };
    let (near, far) = match panel.left {
        true => (panel.x + PANEL_WIDTH, MEMORY_X + 10),
        false => (panel.x, MEMORY_X + MEMORY_WIDTH - 10),
    };
    for piece in pieces {
        let (y0, y1) = (at(piece.offset), at(piece.offset + piece.len));
        let bend = (near + far) / 2;
        let (top, bottom) = (piece.y, piece.y + piece.height);
        let _ = writeln!(
            out,
            "<path class=\"c{} band\" d=\"M{near} {y0}C{bend} {y0} {bend} {top} {far} {top}\
             V{bottom}C{bend} {bottom} {bend} {y1} {near} {y1}Z\"/>",
            panel.colour
        );
    }
}

fn space(out: &mut String, panel: &Panel<'_>) {
    let Panel { row, x, y, .. } = panel;
    let (x, y, middle) = (*x, *y, x + PANEL_WIDTH / 2);
    line(out, x, y, "name", "start", &cut(&row.label, 34));
    line(out, x, y + 18, "small", "start", &cut(&row.way, CHARS));
    rect(out, "space", x, y + 28, PANEL_WIDTH, SPACE_HEIGHT);
    let first = format!("from {:#x}", row.space.start());
    line(out, middle, y + 48, "small", "middle", &first);
    let last = format!("to {:#x}", row.space.last());
    line(out, middle, y + 28 + SPACE_HEIGHT - 10, "small", "middle", &last);
    let (top, height) = buffer(panel);
    if row.tables.is_some() {
        rect(out, "guard", x, top - 6, PANEL_WIDTH, 6);
        rect(out, "guard", x, top + height, PANEL_WIDTH, 6);
    }
    rect(out, &format!("c{} buffer", panel.colour), x, top, PANEL_WIDTH, height);
    line(out, middle, top + 22, "mono", "middle", &text::hex(row.address.raw()));
    line(out, middle, top + 42, "small", "middle", &what(row));
    let late = match row.late {
        LateDma::Blocked => "late DMA blocked",
        LateDma::NotEnforced => "no IOMMU: not enforced",
    };
    line(out, middle, top + 62, "small", "middle", late);
}

fn what(row: &Row) -> String {
    let mut text = text::size(row.length);
    if row.tables.is_some() {
        let _ = write!(text, ", {}", row.pages());
    }
    if row.padding() > 0 {
        let _ = write!(text, ", {} padding", text::size(row.padding()));
    }
    cut(&text, CHARS)
}

fn rect(out: &mut String, class: &str, x: i64, y: i64, width: i64, height: i64) {
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>"
    );
}

fn line(out: &mut String, x: i64, y: i64, class: &str, anchor: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
        escape(text)
    );
}

fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.into();
    }
    let kept: String = text.chars().take(chars.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Names come from a device tree: they may hold anything, control characters too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_cut() {
        assert_eq!(escape("a<b & \"c\"\u{1}"), "a&lt;b &amp; &quot;c&quot;\u{fffd}");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
