//! Plain SVG: lines, bars, panels of bars and heat maps.
//!
//! Charts are strings made here, without a library and without a script: they will still draw in
//! ten years. Colours are CSS classes, so that one picture serves light and dark pages; put
//! [`STYLE`] into the page once, or make a picture that stands alone with [`standalone`].
//!
//! All are drawn 480 units wide with text of 11, which a phone can show unscaled.

#![forbid(unsafe_code)]

mod bars;
mod heat;
mod line;
mod panels;
mod scale;

use std::fmt::Write as _;

pub use bars::{BarChart, Group};
pub use heat::{Cell, HeatMap};
pub use line::{Band, Line, LineChart};
pub use panels::{Panel, Panels};
pub use scale::{Unit, ticks};

/// The width of every chart.
pub const WIDTH: f64 = 480.0;

/// What the classes look like.
pub const STYLE: &str = include_str!("style.css");

/// A picture in the making.
#[derive(Clone, Debug, Default)]
pub struct Canvas {
    body: String,
    points: usize,
}

impl Canvas {
    /// Adds elements.
    pub fn add(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// Counts data in: what a test looks at to see that a plot is not empty.
    pub fn count(&mut self, points: usize) {
        self.points += points;
    }

    /// Text with its anchor (`start`, `middle`, `end`) at a point.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: &str, class: &str, text: &str) {
        let text = escape(text);
        self.add(&format!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        ));
    }

    /// A straight line.
    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        self.add(&format!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    /// A rectangle with a title that a pointer shows.
    pub fn rect(&mut self, (x, y, w, h): (f64, f64, f64, f64), class: &str, title: &str) {
        let title = match title {
            "" => String::new(),
            text => format!("<title>{}</title>", escape(text)),
        };
        self.add(&format!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" class="{class}">{title}</rect>"#
        ));
    }

    /// The legend: coloured squares and names in rows from the top. The height that it takes.
    pub fn legend(&mut self, names: &[String]) -> f64 {
        let (mut x, mut y) = (4.0, 4.0);
        for (index, name) in names.iter().enumerate() {
            let width = 24.0 + text_width(name);
            if x + width > WIDTH && x > 4.0 {
                (x, y) = (4.0, y + 16.0);
            }
            self.rect((x, y, 10.0, 10.0), &format!("fill {}", colour(index)), "");
            self.text((x + 14.0, y + 9.0), "start", "label", name);
            x += width;
        }
        if names.is_empty() { 0.0 } else { y + 18.0 }
    }

    /// The picture. `label` says to those who cannot see it what it shows.
    pub fn finish(self, height: f64, label: &str) -> String {
        let (label, points, body) = (escape(label), self.points, self.body);
        let mut svg = String::new();
        let _ = write!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH:.0} {height:.0}" role="img" aria-label="{label}" data-points="{points}">"#
        );
        svg.push('\n');
        svg.push_str(&body);
        svg.push_str("</svg>\n");
        svg
    }
}

/// The class of the colour of the n-th series.
pub fn colour(index: usize) -> &'static str {
    ["c0", "c1", "c2", "c3", "c4", "c5"][index % 6]
}

/// About how wide a text is drawn.
fn text_width(text: &str) -> f64 {
    6.2 * text.chars().count() as f64
}

/// Text that may stand anywhere in XML and HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters are not XML.
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A picture that stands alone: its style inside, on a background of its own.
pub fn standalone(svg: &str) -> String {
    let style =
        format!("<style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n");
    match svg.find('>') {
        Some(at) => format!("{}\n{style}{}", &svg[..=at], svg[at + 1..].trim_start()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_are_text() {
        let mut canvas = Canvas::default();
        canvas.text((0.0, 0.0), "start", "label", "<script>\"x\" & \u{7}");
        let svg = canvas.finish(10.0, "a 'b'");
        assert!(
            svg.contains("&lt;script&gt;&quot;x&quot; &amp; \u{fffd}<")
                && svg.contains("a &#39;b&#39;")
        );
        assert!(!svg.contains("<script"));
    }

    #[test]
    fn a_picture_alone_has_its_style() {
        let svg = standalone(&Canvas::default().finish(10.0, "x"));
        assert!(
            svg.starts_with("<svg ")
                && svg.contains("<style>")
                && svg.trim_end().ends_with("</svg>")
        );
    }
}
