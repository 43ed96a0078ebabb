//! A heat map with rows of which only those that hold something are drawn.

use super::WIDTH;
use crate::canvas::{Canvas, text_width};

const LEFT: f64 = 82.0;
const RIGHT: f64 = 6.0;
const PLOT: f64 = 190.0;

/// One stretch of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// The column.
    pub column: usize,
    /// The row's number, any.
    pub row: u64,
    /// How full it is, from 0 to 1.
    pub share: f64,
}

/// A heat map.
#[derive(Clone, Debug)]
pub struct HeatMap {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// How many columns there are.
    pub columns: usize,
    /// The cells that hold something.
    pub cells: Vec<Cell>,
    /// The name of a row.
    pub row_name: fn(u64, u32) -> String,
    /// What is given to `row_name` with the row.
    pub row_shift: u32,
    /// Places, in columns, where a line is drawn, with a short name of what begins there.
    pub marks: Vec<(f64, String)>,
    /// The name of the x axis.
    pub axis: String,
}

impl HeatMap {
    /// Draws it: the highest row on top; a dashed line where rows in between are left out.
    pub fn svg(&self) -> String {
        let mut canvas = Canvas::new(WIDTH);
        let mut rows: Vec<u64> = self.cells.iter().map(|cell| cell.row).collect();
        rows.sort_unstable_by(|a, b| b.cmp(a));
        rows.dedup();
        let top = 16.0;
        let height = PLOT / rows.len().max(1) as f64;
        let width = (WIDTH - LEFT - RIGHT) / self.columns.max(1) as f64;
        let x = |column: usize| LEFT + column as f64 * width;
        self.rows(&mut canvas, &rows, top, height);
        self.cells(&mut canvas, &rows, top, height, &x);
        let ends = self.marks.iter().skip(1).map(|(at, _)| *at).chain([self.columns as f64]);
        for ((at, name), end) in self.marks.iter().zip(ends) {
            let place = |column: f64| LEFT + column.min(self.columns as f64) * width;
            let (from, to) = (place(*at), place(end));
            canvas.line((from, top), (from, top + PLOT), "mark");
            if to - from > text_width(name) + 4.0 {
                canvas.text(((from + to) / 2.0, top - 4.0), "middle", "soft", name);
            }
        }
        canvas.line((LEFT, top + PLOT), (WIDTH - RIGHT, top + PLOT), "axis");
        canvas.text(((LEFT + WIDTH) / 2.0, top + PLOT + 15.0), "middle", "soft", &self.axis);
        canvas.finish(top + PLOT + 21.0, &self.label)
    }

    /// Names of rows, and the gaps.
    fn rows(&self, canvas: &mut Canvas, rows: &[u64], top: f64, height: f64) {
        let mut free = top - 8.0;
        for (index, row) in rows.iter().enumerate() {
            let y = top + index as f64 * height;
            let gap = index > 0 && rows.get(index - 1).is_some_and(|above| above - row > 1);
            if gap {
                canvas.line((LEFT, y), (WIDTH - RIGHT, y), "mark");
            }
            let named = y + height / 2.0;
            if named - free >= 12.0 {
                let name = (self.row_name)(*row, self.row_shift);
                canvas.text((LEFT - 5.0, named + 4.0), "end", "soft", &name);
                free = named;
            }
        }
    }

    /// Cells of equal heat beside each other are one rectangle.
    fn cells(
        &self,
        canvas: &mut Canvas,
        rows: &[u64],
        top: f64,
        height: f64,
        x: &impl Fn(usize) -> f64,
    ) {
        let mut cells = self.cells.clone();
        cells.sort_by(|a, b| b.row.cmp(&a.row).then(a.column.cmp(&b.column)));
        let mut index = 0;
        while let Some(first) = cells.get(index) {
            let heat = heat(first.share);
            let mut count = 1;
            while cells.get(index + count).is_some_and(|next| {
                next.row == first.row
                    && next.column == first.column + count
                    && self::heat(next.share) == heat
            }) {
                count += 1;
            }
            let place = rows.iter().position(|row| *row == first.row).unwrap_or(0);
            let y = top + place as f64 * height;
            let (from, to) = (x(first.column), x(first.column + count));
            let class = format!("heat h{heat}");
            canvas.rect((from, y, to - from, height), &class, "");
            canvas.count(count);
            index += count;
        }
    }
}

fn heat(share: f64) -> u32 {
    match share {
        share if share < 0.25 => 1,
        share if share < 0.5 => 2,
        share if share < 0.75 => 3,
        _ => 4,
    }
}
