//! An SVG picture in the making: elements are added, and the picture comes out.
//!
//! Colours are CSS classes, so that one picture serves light and dark pages: a page holds [`STYLE`]
//! once, and a picture that stands alone ([`standalone`]) brings it along.

use std::fmt::Write as _;

/// What the classes look like.
pub const STYLE: &str = include_str!("style.css");

/// A picture in the making.
#[derive(Clone, Debug)]
pub struct Canvas {
    width: f64,
    body: String,
    points: usize,
}

impl Canvas {
    /// Nothing yet, so many units wide. An HTML page shows it as wide as there is room.
    pub fn new(width: f64) -> Self {
        Self { width, body: String::new(), points: 0 }
    }

    /// Adds elements.
    pub fn add(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// Counts data in: what a test looks at to see that a picture is not empty.
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

    /// Text that reads upwards, its middle at a point.
    pub fn upright(&mut self, (x, y): (f64, f64), class: &str, text: &str) {
        let text = escape(text);
        self.add(&format!(
            r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" text-anchor="middle" class="{class}">{text}</text>"#
        ));
    }

    /// A straight line.
    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        self.add(&format!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    /// A line that leaves and arrives level, with a title that a pointer shows.
    pub fn curve(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str, title: &str) {
        let (bend, title) = ((x1 + x2) / 2.0, title_element(title));
        self.add(&format!(
            r#"<path d="M{x1:.1} {y1:.1}C{bend:.1} {y1:.1} {bend:.1} {y2:.1} {x2:.1} {y2:.1}" class="{class}">{title}</path>"#
        ));
    }

    /// A band between two upright edges, each from one height to another.
    pub fn band(&mut self, (x1, top1, end1): (f64, f64, f64), to: (f64, f64, f64), class: &str) {
        let (x2, top2, end2) = to;
        let bend = (x1 + x2) / 2.0;
        self.add(&format!(
            "<path d=\"M{x1:.1} {top1:.1}C{bend:.1} {top1:.1} {bend:.1} {top2:.1} {x2:.1} {top2:.1}\
             V{end2:.1}C{bend:.1} {end2:.1} {bend:.1} {end1:.1} {x1:.1} {end1:.1}Z\" \
             class=\"{class}\"/>"
        ));
    }

    /// A rectangle with a title that a pointer shows.
    pub fn rect(&mut self, (x, y, w, h): (f64, f64, f64, f64), class: &str, title: &str) {
        let title = title_element(title);
        self.add(&format!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" class="{class}">{title}</rect>"#
        ));
    }

    /// The legend: coloured squares and names in rows from the top. The height that it takes.
    pub fn legend(&mut self, names: &[String]) -> f64 {
        let (mut x, mut y) = (4.0, 4.0);
        for (index, name) in names.iter().enumerate() {
            let width = 24.0 + text_width(name);
            if x + width > self.width && x > 4.0 {
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
        let (label, points, width, body) = (escape(label), self.points, self.width, self.body);
        let mut svg = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{label}" data-points="{points}">"#
        );
        svg.push('\n');
        svg.push_str(&body);
        svg.push_str("</svg>\n");
        svg
    }
}

fn title_element(title: &str) -> String {
    if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) }
}

/// The class of the colour of the n-th series.
pub fn colour(index: usize) -> &'static str {
    ["c0", "c1", "c2", "c3", "c4", "c5"][index % 6]
}

/// About how wide a text is drawn, whichever font the system has: some are wider than others.
pub fn text_width(text: &str) -> f64 {
    text.chars().map(character_width).sum()
}

fn character_width(c: char) -> f64 {
    match c {
        '@' | 'M' | 'W' | 'm' | 'w' | '…' => 9.5,
        '0'..='9' | 'A'..='Z' => 7.1,
        'i' | 'j' | 'l' | '.' | ',' | ':' | ' ' => 3.6,
        c if c.is_ascii() => 6.4,
        _ => 9.5,
    }
}

/// As much of a text as is drawn in that width.
pub fn fit(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.into();
    }
    let kept: String = text.chars().take(fitting(text.chars(), width)).collect();
    format!("{kept}…")
}

/// As [`fit`], but of a path it is the end that stays: there is what tells it from others.
pub fn fit_name(name: &str, width: f64) -> String {
    if !name.starts_with('/') || text_width(name) <= width {
        return fit(name, width);
    }
    let cut = name.chars().count() - fitting(name.chars().rev(), width);
    format!("…{}", name.chars().skip(cut).collect::<String>())
}

/// How many of these have room beside a `…`.
fn fitting(chars: impl Iterator<Item = char>, width: f64) -> usize {
    let mut left = width - character_width('…');
    let fits = |c: &char| {
        left -= character_width(*c);
        left >= 0.0
    };
    chars.take_while(fits).count()
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
            // Control characters are not XML, and these two are no characters.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A picture that stands alone: its size and style inside, on a background of its own.
pub fn standalone(svg: &str) -> String {
    let style =
        format!("<style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n");
    match svg.split_once('>') {
        Some((head, body)) => format!("{head}{}>\n{style}{}", size(head), body.trim_start()),
        None => String::new(),
    }
}

/// The size that a view box asks for, as attributes.
fn size(head: &str) -> String {
    let view = head.split("viewBox=\"0 0 ").nth(1).and_then(|rest| rest.split('"').next());
    let view = view.and_then(|numbers| numbers.split_once(' '));
    view.map_or(String::new(), |(w, h)| format!(r#" width="{w}" height="{h}""#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_are_text() {
        let mut canvas = Canvas::new(100.0);
        canvas.text((0.0, 0.0), "start", "label", "<script>\"x\" & \u{7}");
        canvas.upright((0.0, 0.0), "label", "<b>");
        canvas.rect((0.0, 0.0, 1.0, 1.0), "fill", "</title>");
        canvas.curve((0.0, 0.0), (1.0, 1.0), "stroke", "a & b");
        let svg = canvas.finish(10.0, "a 'b'");
        assert!(
            svg.contains("&lt;script&gt;&quot;x&quot; &amp; \u{fffd}<")
                && svg.contains("a &#39;b&#39;")
                && svg.contains("&lt;b&gt;")
                && svg.contains("<title>&lt;/title&gt;</title>")
                && svg.contains("a &amp; b")
        );
        assert!(!svg.contains("<script") && !svg.contains("<b>"));
    }

    #[test]
    fn a_picture_alone_has_its_size_and_style() {
        let svg = standalone(&Canvas::new(480.0).finish(10.0, "x > y"));
        assert!(
            svg.starts_with("<svg ")
                && svg.contains(r#"data-points="0" width="480" height="10">"#)
                && svg.contains("<style>")
                && svg.trim_end().ends_with("</svg>")
        );
    }

    #[test]
    fn a_long_text_is_cut() {
        let room = |text| text_width(text) + 0.01;
        assert_eq!([fit("abcdef", room("abc…")), fit("abcd", room("abcd"))], ["abc…", "abcd"]);
        assert_eq!(fit_name("/soc/usb@1", room("…usb@1")), "…usb@1");
        assert_eq!([fit_name("abcdef", 0.0), fit_name("/abc", 0.0)], ["…", "…"]);
    }
}
