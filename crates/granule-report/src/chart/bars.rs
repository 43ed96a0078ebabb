//! Bars in groups: histograms of several series side by side.

use super::WIDTH;
use crate::canvas::{Canvas, colour, text_width};
use crate::units::{Unit, ticks};

const LEFT: f64 = 46.0;
const RIGHT: f64 = 6.0;
const PLOT: f64 = 140.0;

/// What stands at one place of the x axis.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name below the axis.
    pub name: String,
    /// A bar for each series.
    pub values: Vec<f64>,
}

/// A bar chart.
#[derive(Clone, Debug)]
pub struct BarChart {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// What the y axis counts.
    pub unit: Unit,
    /// The series' names.
    pub series: Vec<String>,
    /// The groups, in order.
    pub groups: Vec<Group>,
    /// The name of the x axis.
    pub axis: String,
}

impl BarChart {
    /// Draws it.
    pub fn svg(&self) -> String {
        let mut canvas = Canvas::new(WIDTH);
        let top = canvas.legend(&self.series) + 6.0;
        let values = self.groups.iter().flat_map(|group| &group.values).copied();
        let steps = ticks(values.fold(0.0, f64::max), self.unit);
        let most = steps.last().copied().unwrap_or(1.0);
        let y = |value: f64| top + PLOT * (1.0 - (value / most).clamp(0.0, 1.0));
        for step in &steps {
            canvas.line((LEFT, y(*step)), (WIDTH - RIGHT, y(*step)), "grid");
            canvas.text((LEFT - 5.0, y(*step) + 4.0), "end", "soft", &self.unit.format(*step));
        }
        let width = (WIDTH - LEFT - RIGHT) / self.groups.len().max(1) as f64;
        let bar = (width * 0.84 / self.series.len().max(1) as f64).min(26.0);
        let mut free = 0.0;
        for (place, group) in self.groups.iter().enumerate() {
            let middle = LEFT + (place as f64 + 0.5) * width;
            let first = middle - bar * self.series.len() as f64 / 2.0;
            for (index, value) in group.values.iter().enumerate().filter(|(_, value)| **value > 0.0)
            {
                // A bar of one among thousands is still seen.
                let height = (top + PLOT - y(*value)).max(1.0);
                let title = format!(
                    "{} · {}: {}",
                    self.series.get(index).map_or("", String::as_str),
                    group.name,
                    self.unit.format(*value)
                );
                let at =
                    (first + index as f64 * bar, top + PLOT - height, (bar - 1.0).max(0.5), height);
                canvas.rect(at, &format!("fill {}", colour(index)), &title);
                canvas.count(1);
            }
            let half = text_width(&group.name) / 2.0;
            if middle - half > free {
                let centre = middle.min(WIDTH - half);
                canvas.text((centre, top + PLOT + 14.0), "middle", "soft", &group.name);
                free = centre + half + 4.0;
            }
        }
        canvas.line((LEFT, top + PLOT), (WIDTH - RIGHT, top + PLOT), "axis");
        canvas.text(((LEFT + WIDTH) / 2.0, top + PLOT + 29.0), "middle", "soft", &self.axis);
        canvas.finish(top + PLOT + 35.0, &self.label)
    }
}
