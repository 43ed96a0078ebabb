//! The few rows that the README shows, as a table, and where its table and picture are.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::plot;
use crate::report::Report;

/// One line: what it says, whose row it is, and the row of the floor under it, if there is one.
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) row: &'static str,
    pub(crate) floor: Option<&'static str>,
}

const fn line(what: &'static str, row: &'static str) -> Line {
    Line { what, row, floor: None }
}

const fn above(what: &'static str, row: &'static str, floor: &'static str) -> Line {
    Line { what, row, floor: Some(floor) }
}

/// Page tables are shown in one format that Linux and the crates have too.
pub(crate) const LINES: &[Line] = &[
    line("IOVA: allocate and free 4 KiB", "iova/pair/4K"),
    line("IOVA: 256 KiB, 100,000 live", "iova/pair/256K/live=100k"),
    line("IOVA: replace one of 100,000 of 256 KiB", "iova/replace/256K/live=100k"),
    line("IOVA: replace one of 20,000 of 4 to 256 KiB", "iova/mixed"),
    line("IOVA: the same on two CPUs", "iova/mixed/threads=2"),
    line("table: map 1 page", "table/lpae4k/map/1"),
    line("table: unmap 1 page", "table/lpae4k/unmap/1"),
    line("table: unmap 1 page, by its hint", "table/lpae4k/unmap/1/hint"),
    above("table: map a run of 512, a page", "table/lpae4k/map/512", "floor/store"),
    above("table: unmap it, a page", "table/lpae4k/unmap/512", "floor/store"),
    above(
        "table: map 1 GiB by whole tables, a page",
        "table/lpae4k/map/1G-whole",
        "floor/store/1G",
    ),
    line("table: look up an address", "table/lpae4k/resolve"),
    line("list: map 64 isolated pages, an entry", "sg/lpae4k/map/isolated/64"),
    line("list: unmap it, an entry", "sg/lpae4k/unmap/isolated/64"),
    line("DMA API: map and unmap one page", "dma/single/map+unmap"),
];

/// The best of the crates for a row: its time and its name.
pub(crate) fn best_crate<'r>(report: &'r Report, of: &str) -> Option<(f64, &'r str)> {
    let peers =
        report.rows.iter().filter(|row| row.of == of && row.by != "granule" && row.by != "linux");
    let times = peers.map(|row| (row.sample.min, row.by.as_str()));
    times.filter(|(ns, _)| ns.is_finite()).min_by(|a, b| a.0.total_cmp(&b.0))
}

/// Three significant figures, with commas.
pub(crate) fn number(value: f64) -> String {
    match value {
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let groups: Vec<&str> = digits
                .as_bytes()
                .rchunks(3)
                .rev()
                .filter_map(|group| std::str::from_utf8(group).ok())
                .collect();
            groups.join(",")
        }
    }
}

/// The table, in Markdown: nanoseconds, and how many times as long the others take.
pub fn markdown(report: &Report) -> String {
    let mut text = String::from(
        "| nanoseconds | granule | floor | Linux 6.12 | fastest crate |\n| --- | --: | --: | --: | --: |\n",
    );
    for Line { what, row, floor } in LINES {
        let Some(ours) = report.ns("granule", row) else { continue };
        let times = |ns: f64| format!("{} (×{})", number(ns), number(ns / ours));
        let floor = floor.and_then(|floor| report.ns("granule", floor)).map_or("".into(), number);
        let linux = report.ns("linux", row).map_or("–".into(), times);
        let peer =
            best_crate(report, row).map_or("–".into(), |(ns, by)| format!("{} {by}", times(ns)));
        let p99 = report.row("granule", row).and_then(|row| row.figure("p99"));
        let p99 = p99.map_or(String::new(), |p99| format!(", p99 {}", number(p99)));
        text += &format!("| {what} | **{}**{p99} | {floor} | {linux} | {peer} |\n", number(ours));
    }
    text
}

const BEGIN: &str = "<!-- bench -->\n";
const END: &str = "<!-- /bench -->";

/// The text with what stands between the two marks replaced, or `None` if it has none.
fn between(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, behind) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{behind}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Writes the README's table and picture.
///
/// # Errors
/// Files that cannot be read or written; a README without the two marks.
pub fn write(report: &Report) -> io::Result<()> {
    let (readme, picture) = (root().join("README.md"), root().join("docs/bench.svg"));
    let text = fs::read_to_string(&readme)?;
    let text = between(&text, &markdown(report)).ok_or_else(|| {
        io::Error::other("README.md has no lines `<!-- bench -->` and `<!-- /bench -->`")
    })?;
    fs::write(&readme, text)?;
    fs::write(picture, plot::draw(report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;
    use crate::report::Row;

    fn report() -> Report {
        let row = |by: &str, of: &str, ns| Row::new(by, of, Sample::of(vec![ns]));
        let rows = vec![
            row("granule", "iova/pair/4K", 10.0),
            row("linux", "iova/pair/4K", 25.0),
            row("slow", "iova/pair/4K", 45.0),
            row("fast", "iova/pair/4K", 12345.6),
            row("granule", "table/lpae4k/map/512", 0.4),
            row("granule", "floor/store", 0.25),
        ];
        Report { rows, ..Report::default() }
    }

    #[test]
    fn a_line_has_ours_and_the_ratios_of_the_others() {
        let text = markdown(&report());
        let pair = "| **10.0** |  | 25.0 (×2.50) | 45.0 (×4.50) slow |";
        assert!(text.contains(pair), "{text}");
        assert!(text.contains("| **0.40** | 0.25 | – | – |"), "{text}");
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn numbers_have_three_figures() {
        let all = [0.274, 9.996, 99.96, 1234567.0].map(number);
        assert_eq!(all, ["0.27", "10.0", "100", "1,234,567"]);
    }

    #[test]
    fn what_is_around_the_table_stays() {
        let text = "a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n";
        let new = "a\n<!-- bench -->\nnew\n<!-- /bench -->\nb\n";
        assert_eq!(between(text, "new\n").as_deref(), Some(new));
        assert_eq!(between("nothing", "new\n"), None);
    }

    #[test]
    fn the_readme_has_its_place_and_shows_the_picture() {
        let readme = fs::read_to_string(root().join("README.md")).expect("a README");
        assert!(between(&readme, "").is_some(), "the marks are gone");
        assert!(readme.contains("](docs/bench.svg)"), "the picture is not shown");
    }
}
