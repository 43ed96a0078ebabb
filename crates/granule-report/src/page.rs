//! One HTML page that needs nothing else: no script, no network, light and dark, readable on a phone.

use std::fmt::Write as _;

use crate::canvas::{self, escape};
use crate::table::Table;

/// The look of the page; the pictures bring their own.
const STYLE: &str = include_str!("page.css");

/// A page in the making. What it is given as text is escaped; what it is given as HTML is not.
#[derive(Clone, Debug)]
pub struct Page {
    html: String,
}

impl Page {
    /// Begins a page: what kind of report it is, and of what.
    pub fn new(kind: &str, title: &str) -> Self {
        let title = format!("{}: {}", escape(kind), escape(title));
        let mut html = String::with_capacity(1 << 16);
        // Writing to a string cannot fail.
        let _ = writeln!(
            html,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; img-src data:\">\n\
             <link rel=\"icon\" href=\"data:,\">\n\
             <title>{title}</title>\n<style>{}{STYLE}</style></head>\n<body><main>\n<h1>{title}</h1>",
            canvas::STYLE
        );
        Self { html }
    }

    /// HTML as it is.
    pub fn html(&mut self, html: &str) {
        self.html.push_str(html);
        self.html.push('\n');
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        self.element("h2", "", text);
    }

    /// A heading inside of what a [`heading`](Self::heading) began.
    pub fn subheading(&mut self, text: &str) {
        self.element("h3", "", text);
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        self.element("p", "", text);
    }

    /// A paragraph that explains rather than says.
    pub fn note(&mut self, text: &str) {
        self.element("p", " class=\"soft\"", text);
    }

    /// A paragraph that nobody should miss.
    pub fn warning(&mut self, text: &str) {
        self.element("p", " class=\"warn\"", text);
    }

    fn element(&mut self, name: &str, attributes: &str, text: &str) {
        let _ = writeln!(self.html, "<{name}{attributes}>{}</{name}>", escape(text));
    }

    /// A list: each entry is a text and a note on it.
    pub fn list<T: AsRef<str>>(&mut self, numbered: bool, entries: impl Iterator<Item = (T, T)>) {
        let name = if numbered { "ol" } else { "ul" };
        let _ = writeln!(self.html, "<{name}>");
        for (text, note) in entries {
            let (text, note) = (escape(text.as_ref()), escape(note.as_ref()));
            let _ = writeln!(self.html, "<li>{text} <span class=\"soft\">{note}</span></li>");
        }
        let _ = writeln!(self.html, "</{name}>");
    }

    /// A picture with a caption and a note on it.
    pub fn figure(&mut self, caption: &str, note: &str, svg: &str) {
        self.captioned(caption, note, svg);
    }

    /// A picture in two shapes: for wide screens and for phones.
    pub fn shaped_figure(&mut self, caption: &str, note: &str, wide: &str, narrow: &str) {
        let both = format!("<div class=\"wide\">{wide}</div><div class=\"narrow\">{narrow}</div>");
        self.captioned(caption, note, &both);
    }

    fn captioned(&mut self, caption: &str, note: &str, inner: &str) {
        let (caption, note) = (escape(caption), escape(note));
        let _ = writeln!(
            self.html,
            "<figure><figcaption>{caption} <span>{note}</span></figcaption>{inner}</figure>"
        );
    }

    /// What `inside` adds, side by side where there is room.
    pub fn side_by_side(&mut self, inside: impl FnOnce(&mut Self)) {
        self.html("<div class=\"side\">");
        inside(self);
        self.html("</div>");
    }

    /// What `inside` adds, in columns of equal width.
    pub fn columns(&mut self, inside: impl FnOnce(&mut Self)) {
        self.html("<div class=\"grid2\">");
        inside(self);
        self.html("</div>");
    }

    /// A table, which scrolls by itself where it is wider than the page.
    pub fn table(&mut self, table: &Table) {
        let _ = writeln!(self.html, "<div class=\"scroll\">{}</div>", table.html());
    }

    /// A table that is shown on request.
    pub fn folded_table(&mut self, summary: &str, open: bool, table: &Table) {
        let (open, summary) = (if open { " open" } else { "" }, escape(summary));
        let _ = writeln!(
            self.html,
            "<details{open}><summary>{summary}</summary><div class=\"scroll\">{}</div></details>",
            table.html()
        );
    }

    /// The small print, as paragraphs.
    pub fn foot<T: AsRef<str>>(&mut self, paragraphs: &[T]) {
        self.html("<footer>");
        paragraphs.iter().for_each(|text| self.paragraph(text.as_ref()));
        self.html("</footer>");
    }

    /// The page.
    pub fn finish(mut self) -> String {
        self.html.push_str("</main></body></html>\n");
        self.html
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Column;

    #[test]
    fn a_page_is_whole_and_its_texts_are_text() {
        let nasty = "<script>&\"'";
        let mut page = Page::new(nasty, nasty);
        page.heading(nasty);
        page.subheading(nasty);
        page.paragraph(nasty);
        page.note(nasty);
        page.warning(nasty);
        page.list(true, [(nasty, nasty)].into_iter());
        page.figure(nasty, nasty, "<svg></svg>");
        page.shaped_figure(nasty, nasty, "<svg></svg>", "<svg></svg>");
        let mut table = Table::new([Column::text(nasty), Column::number(nasty)]);
        table.group(nasty);
        table.row([nasty, nasty]);
        page.side_by_side(|page| page.table(&table));
        page.columns(|page| page.folded_table(nasty, true, &table));
        page.foot(&[nasty]);
        let html = page.finish();
        assert!(!html.contains("<script"), "{html}");
        for name in ["h1", "h2", "h3", "ol", "li", "figure", "div", "table", "tr", "td", "details"]
        {
            let count = |text: String| html.matches(&text).count();
            let opened = count(format!("<{name}>")) + count(format!("<{name} "));
            assert!(opened > 0 && opened == count(format!("</{name}>")), "{name}: {html}");
        }
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
    }
}
