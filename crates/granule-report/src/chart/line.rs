//! Lines over events, with the phases as bands behind them.

use super::WIDTH;
use crate::canvas::{Canvas, colour, text_width};
use crate::units::{Unit, ticks};

const LEFT: f64 = 58.0;
const RIGHT: f64 = 8.0;
const PLOT: f64 = 150.0;
const BELOW: f64 = 36.0;

/// One line: (x, y), x ascending.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A stretch of the x axis with a short name.
#[derive(Clone, Debug)]
pub struct Band {
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// Its name, a character or two.
    pub name: String,
}

/// A line chart.
#[derive(Clone, Debug)]
pub struct LineChart {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// What the y axis counts.
    pub unit: Unit,
    /// The end of the x axis, which begins at 0.
    pub end: f64,
    /// Marks of the x axis.
    pub marks: Vec<(f64, String)>,
    /// The name of the x axis.
    pub axis: String,
    /// The bands.
    pub bands: Vec<Band>,
    /// The lines.
    pub lines: Vec<Line>,
}

impl LineChart {
    /// Draws it.
    pub fn svg(&self) -> String {
        let mut canvas = Canvas::new(WIDTH);
        let names: Vec<String> = self.lines.iter().map(|line| line.name.clone()).collect();
        // The first of the bands' names stands above the plot.
        let top = canvas.legend(&names) + 14.0;
        let values = self.lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y);
        let steps = ticks(values.fold(0.0, f64::max), self.unit);
        let most = steps.last().copied().unwrap_or(1.0);
        let end = self.end.max(1.0);
        let x = |value: f64| LEFT + (value / end).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| top + PLOT * (1.0 - (value / most).clamp(0.0, 1.0));
        for (index, band) in self.bands.iter().enumerate() {
            let (from, to) = (x(band.from), x(band.to));
            if index % 2 == 1 {
                canvas.rect((from, top, to - from, PLOT), "band", "");
            }
            if to - from > 10.0 {
                canvas.text(((from + to) / 2.0, top - 4.0), "middle", "soft", &band.name);
            }
        }
        for step in &steps {
            canvas.line((LEFT, y(*step)), (WIDTH - RIGHT, y(*step)), "grid");
            let text = self.unit.format(*step);
            canvas.text((LEFT - 5.0, y(*step) + 4.0), "end", "soft", &text);
        }
        for (index, line) in self.lines.iter().enumerate() {
            draw(&mut canvas, line, index, &x, &y);
        }
        let bottom = top + PLOT;
        canvas.line((LEFT, bottom), (WIDTH - RIGHT, bottom), "axis");
        let mut free = LEFT - 20.0;
        for (at, text) in &self.marks {
            let half = text_width(text) / 2.0;
            let at = x(*at);
            let place = at.clamp(LEFT, WIDTH - half);
            if place - half > free {
                canvas.line((at, bottom), (at, bottom + 4.0), "axis");
                canvas.text((place, bottom + 15.0), "middle", "soft", text);
                free = place + half + 6.0;
            }
        }
        canvas.text(((LEFT + WIDTH) / 2.0, bottom + 30.0), "middle", "soft", &self.axis);
        canvas.finish(bottom + BELOW, &self.label)
    }
}

/// A line as steps: a value holds until the next.
fn draw(
    canvas: &mut Canvas,
    line: &Line,
    index: usize,
    x: &impl Fn(f64) -> f64,
    y: &impl Fn(f64) -> f64,
) {
    let mut path = String::new();
    let mut last: Option<(f64, f64)> = None;
    for (at, value) in &line.points {
        let (px, py) = (x(*at), y(*value));
        match last {
            // Points on one height are one line.
            Some((_, before)) if (before - py).abs() < 0.05 => continue,
            Some((_, before)) => path.push_str(&format!("{px:.1},{before:.1} {px:.1},{py:.1} ")),
            None => path.push_str(&format!("{px:.1},{py:.1} ")),
        }
        last = Some((px, py));
    }
    if let (Some((_, before)), Some((at, _))) = (last, line.points.last()) {
        path.push_str(&format!("{:.1},{before:.1}", x(*at)));
    }
    canvas.count(line.points.len());
    canvas.add(&format!(
        r#"<polyline class="stroke {}" points="{}"/>"#,
        colour(index),
        path.trim_end()
    ));
}
