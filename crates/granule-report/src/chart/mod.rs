//! Charts, all [`WIDTH`] units wide with text of 11, which a phone can show unscaled.

mod bars;
mod heat;
mod line;
mod panels;

pub use bars::{BarChart, Group};
pub use heat::{Cell, HeatMap};
pub use line::{Band, Line, LineChart};
pub use panels::{Panel, Panels};

/// The width of every chart.
pub const WIDTH: f64 = 480.0;
