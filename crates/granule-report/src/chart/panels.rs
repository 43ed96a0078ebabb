//! Several small bar charts below each other, one for each figure: a comparison at a glance.

use super::WIDTH;
use crate::canvas::{Canvas, colour};
use crate::units::Unit;

const LEFT: f64 = 64.0;
const VALUE: f64 = 84.0;
const BAR: f64 = 15.0;

/// One figure of everything that is compared.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What the figure is.
    pub title: String,
    /// What it counts.
    pub unit: Unit,
    /// The figure of each.
    pub values: Vec<f64>,
}

/// A comparison.
#[derive(Clone, Debug)]
pub struct Panels {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// What is compared.
    pub names: Vec<String>,
    /// The figures. Each has a scale of its own, which begins at 0.
    pub panels: Vec<Panel>,
}

impl Panels {
    /// Draws it.
    pub fn svg(&self) -> String {
        let mut canvas = Canvas::new(WIDTH);
        let mut y = 4.0;
        for panel in &self.panels {
            canvas.text((4.0, y + 11.0), "start", "strong", &panel.title);
            y += 17.0;
            let most = panel.values.iter().copied().fold(0.0, f64::max);
            for (index, value) in panel.values.iter().enumerate() {
                let name = self.names.get(index).map_or("", String::as_str);
                let text = panel.unit.format(*value);
                canvas.text((LEFT - 6.0, y + 11.0), "end", "soft", name);
                let share = if most > 0.0 { value / most } else { 0.0 };
                let length = (WIDTH - LEFT - VALUE) * share;
                let title = format!("{}, {name}: {text}", panel.title);
                let class = format!("fill {}", colour(index));
                canvas.rect((LEFT, y + 1.0, length.max(1.0), BAR - 3.0), &class, &title);
                canvas.text((LEFT + length.max(1.0) + 5.0, y + 11.0), "start", "label", &text);
                canvas.count(1);
                y += BAR;
            }
            y += 9.0;
        }
        canvas.finish(y, &self.label)
    }
}
