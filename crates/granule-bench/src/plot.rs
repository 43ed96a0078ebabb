//! The picture: every line of the README's table on one logarithmic scale, and how costs grow with
//! what is live.

use std::fmt::Write as _;

use crate::report::Report;
use crate::summary::{LINES, best_crate, number};

const WIDTH: f64 = 1040.0;
const TOP: f64 = 96.0;
const STEP: f64 = 27.0;
/// Where the scale of times begins and ends.
const LEFT: f64 = 318.0;
const RIGHT: f64 = 700.0;
/// The box of the curves.
const CURVE: (f64, f64) = (790.0, 1000.0);

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1c2330}.title{font-size:17px;font-weight:600}
.small{font-size:11.5px;fill:#4a5568}.end{text-anchor:end}.mid{text-anchor:middle}.page{fill:#fff}
.grid{stroke:#d8dee8}.floor{stroke:#8a94a6;stroke-width:2}.span{stroke:#c3ccd9;stroke-width:2}
.granule{fill:#2f6fdb;stroke:#2f6fdb}.linux{fill:#d97a1e;stroke:#d97a1e}.crate{fill:#2a9d6f;stroke:#2a9d6f}
.null{fill:#8a94a6;stroke:#8a94a6}.curve{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 4}
@media (prefers-color-scheme:dark){text{fill:#e8ecf3}.small{fill:#aab4c4}.page{fill:#12161d}
.grid{stroke:#2b3444}.span{stroke:#3c475b}.granule{fill:#6da2ff;stroke:#6da2ff}
.linux{fill:#f0a04b;stroke:#f0a04b}.crate{fill:#4fd19c;stroke:#4fd19c}.curve{fill:none}}
";

/// A logarithmic scale.
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let part = (value / self.from.0).log10() / (self.to.0 / self.from.0).log10();
        self.from.1 + part * (self.to.1 - self.from.1)
    }

    /// The powers of ten that lie on it.
    fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        let (first, last) = (self.from.0.log10().round() as i32, self.to.0.log10().round() as i32);
        (first..=last).map(|power| 10f64.powi(power))
    }
}

/// The powers of ten around some values.
fn decades_around(values: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let values = values.filter(|value| value.is_finite() && *value > 0.0);
    let least = values.clone().min_by(f64::total_cmp)?.log10().floor();
    let most = values.max_by(f64::total_cmp)?.log10().ceil();
    Some((10f64.powf(least), 10f64.powf(most.max(least + 1.0))))
}

fn unit(ns: f64) -> String {
    match ns {
        _ if ns >= 1e6 => format!("{} ms", ns / 1e6),
        _ if ns >= 1e3 => format!("{} µs", ns / 1e3),
        _ => format!("{ns} ns"),
    }
}

/// Draws the report; what it does not have is left out.
pub fn draw(report: &Report) -> String {
    let height = TOP + STEP * LINES.len() as f64 + 52.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"Times of granule beside its peers\">\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"24\" y=\"32\">What an operation takes, in one run on one machine</text>\n"
    );
    legend(&mut svg);
    times(&mut svg, report, height);
    growth(&mut svg, report, height);
    svg + "</svg>\n"
}

fn legend(svg: &mut String) {
    for (n, (class, name)) in
        [("granule", "granule"), ("linux", "Linux 6.12"), ("crate", "fastest crate")]
            .into_iter()
            .enumerate()
    {
        let x = 30.0 + 112.0 * n as f64;
        mark(svg, class, x, 56.0, name);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"60\">{name}</text>", x + 11.0);
    }
    let _ = writeln!(
        svg,
        "<path class=\"floor\" d=\"M366 48v16\"/><text x=\"376\" y=\"60\">floor: stores alone</text>"
    );
}

/// One mark; its shape tells whose it is where colour does not.
fn mark(svg: &mut String, class: &str, x: f64, y: f64, title: &str) {
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    let (x, y) = (format!("{x:.1}"), format!("{y:.1}"));
    let shape = match class {
        "granule" => format!("<circle class=\"granule\" cx=\"{x}\" cy=\"{y}\" r=\"6\">"),
        "linux" => format!("<path class=\"linux\" d=\"M{x} {y}m-5-5h10v10h-10z\">"),
        _ => format!("<path class=\"{class}\" d=\"M{x} {y}m0-6l6 11h-12z\">"),
    };
    let end = if class == "granule" { "circle" } else { "path" };
    let _ = writeln!(svg, "{shape}<title>{title}</title></{end}>");
}

fn times(svg: &mut String, report: &Report, height: f64) {
    let shown = |by: &str| by == "granule" || by == "linux";
    let ns = LINES.iter().flat_map(|line| {
        let named = report.rows.iter().filter(|row| row.of == line.row && shown(&row.by));
        named.map(|row| row.sample.min).chain(best_crate(report, line.row).map(|(ns, _)| ns))
    });
    let Some((least, most)) = decades_around(ns) else { return };
    let scale = Scale { from: (least, LEFT), to: (most, RIGHT) };
    let bottom = height - 40.0;
    for value in scale.decades() {
        let x = scale.at(value);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{x:.1} {:.1}V{bottom:.1}\"/>", TOP - 14.0);
        let _ = writeln!(
            svg,
            "<text class=\"small mid\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 18.0,
            unit(value)
        );
    }
    for (n, line) in LINES.iter().enumerate() {
        let y = TOP + STEP * n as f64;
        let _ = writeln!(
            svg,
            "<text class=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            LEFT - 12.0,
            y + 4.5,
            line.what
        );
        let peer = best_crate(report, line.row);
        let marks = [
            ("crate", peer.map(|(ns, _)| ns), peer.map_or("", |(_, by)| by)),
            ("linux", report.ns("linux", line.row), "Linux"),
            ("granule", report.ns("granule", line.row), "granule"),
        ];
        let found = marks.iter().filter_map(|(_, ns, _)| *ns);
        let ends = (found.clone().fold(f64::MAX, f64::min), found.fold(0.0, f64::max));
        if ends.1 > 0.0 {
            let (from, to) = (scale.at(ends.0), scale.at(ends.1));
            let _ = writeln!(svg, "<path class=\"span\" d=\"M{from:.1} {y:.1}H{to:.1}\"/>");
        }
        if let Some(floor) = line.floor.and_then(|floor| report.ns("granule", floor)) {
            let x = scale.at(floor);
            let _ = writeln!(svg, "<path class=\"floor\" d=\"M{x:.1} {:.1}v18\"/>", y - 9.0);
        }
        for (class, ns, by) in marks {
            if let Some(ns) = ns.filter(|ns| *ns > 0.0) {
                mark(svg, class, scale.at(ns), y, &format!("{by}: {} ns", number(ns)));
            }
        }
    }
}

const LIVE: [(&str, f64); 4] = [("1k", 1e3), ("10k", 1e4), ("100k", 1e5), ("1M", 1e6)];
/// Row, class, name.
const CURVES: [(&str, &str, &str); 4] = [
    ("dma", "granule curve", "map and unmap"),
    ("iova", "granule curve", "IOVA alone"),
    ("null/dma", "null curve dashed", "null, map and unmap"),
    ("null/iova", "null curve dashed", "null, IOVA"),
];

fn growth(svg: &mut String, report: &Report, height: f64) {
    let point = |what: &str, live: &str| {
        report.ns("granule", &format!("growth/{what}/live={live}")).filter(|ns| *ns > 0.0)
    };
    let all =
        CURVES.iter().flat_map(|(what, ..)| LIVE.iter().filter_map(|(live, _)| point(what, live)));
    let Some((least, most)) = decades_around(all) else { return };
    let bottom = height - 40.0;
    let x = Scale { from: (1e3, CURVE.0), to: (1e6, CURVE.1) };
    let y = Scale { from: (least, bottom), to: (most, TOP) };
    let _ =
        writeln!(svg, "<text class=\"title\" x=\"740\" y=\"32\">Growth with what is live</text>");
    let _ = writeln!(
        svg,
        "<text class=\"small\" x=\"740\" y=\"60\">dashed: an allocator that only touches memory</text>"
    );
    for value in y.decades() {
        let at = y.at(value);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{} {at:.1}H{}\"/>", CURVE.0, CURVE.1);
        let _ = writeln!(
            svg,
            "<text class=\"small end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            CURVE.0 - 8.0,
            at + 4.0,
            unit(value)
        );
    }
    for (live, count) in LIVE {
        let at = x.at(count);
        let _ = writeln!(
            svg,
            "<text class=\"small mid\" x=\"{at:.1}\" y=\"{:.1}\">{live}</text>",
            bottom + 18.0
        );
    }
    for (what, class, name) in CURVES {
        let points: Vec<(f64, f64)> = LIVE
            .iter()
            .filter_map(|(live, count)| Some((x.at(*count), y.at(point(what, live)?))))
            .collect();
        let Some(first) = points.first() else { continue };
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{}\"/>", path.join("L"));
        // Below the line, since all of them rise.
        let (x, y) = (first.0 + 6.0, first.1 + 15.0);
        let _ = writeln!(svg, "<text class=\"small\" x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;
    use crate::report::Row;

    #[test]
    fn longer_times_are_further_right_and_nothing_is_outside() {
        let mut report = Report::default();
        for (by, ns) in [("granule", 10.0), ("linux", 150_000.0), ("peer", 0.3)] {
            report.rows.push(Row::new(by, "iova/pair/4K", Sample::of(vec![ns])));
        }
        let svg = draw(&report);
        let x = |class: &str| -> f64 {
            let mark = svg.rsplit(class).next().expect("a mark");
            let digits = mark.trim_start_matches(|c: char| !c.is_ascii_digit());
            let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').expect("an end");
            digits[..end].parse().expect("a number")
        };
        let (ours, linux, peer) =
            (x("class=\"granule\" cx="), x("class=\"linux\" d="), x("class=\"crate\" d="));
        assert!(peer < ours && ours < linux, "{peer} {ours} {linux}");
        assert!(peer >= LEFT && linux <= RIGHT);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn an_empty_report_is_an_empty_picture() {
        assert!(!draw(&Report::default()).contains("NaN"));
    }
}
