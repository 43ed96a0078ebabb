//! Tables of a page.

use std::fmt::Write as _;

use crate::canvas::escape;

/// A column: its name, and how its cells are set.
#[derive(Clone, Debug)]
pub struct Column {
    name: String,
    class: &'static str,
}

impl Column {
    /// Numbers, flush right.
    pub fn number(name: impl Into<String>) -> Self {
        Self { name: name.into(), class: "" }
    }

    /// Text, on one line.
    pub fn text(name: impl Into<String>) -> Self {
        Self { name: name.into(), class: "text" }
    }

    /// Sentences, broken where they must be.
    pub fn sentence(name: impl Into<String>) -> Self {
        Self { name: name.into(), class: "text wrap" }
    }

    fn cell(&self, element: &str, html: &str) -> String {
        match self.class {
            "" => format!("<{element}>{html}</{element}>"),
            class => format!("<{element} class=\"{class}\">{html}</{element}>"),
        }
    }
}

/// A table in the making. The first column stays in view where the table scrolls.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: String,
}

impl Table {
    /// A table of these columns.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: String::new() }
    }

    /// A table of texts whose columns numbered in `right` hold numbers.
    pub fn of<T: AsRef<str>, R: AsRef<[T]>>(
        head: &[&str],
        right: &[usize],
        rows: impl IntoIterator<Item = R>,
    ) -> Self {
        let columns = head.iter().enumerate().map(|(index, name)| match right.contains(&index) {
            true => Column::number(*name),
            false => Column::text(*name),
        });
        let mut table = Self::new(columns);
        rows.into_iter().for_each(|row| table.row(row.as_ref()));
        table
    }

    /// A row. A line break in a cell is one on the page.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push_str("<tr>");
        for (column, cell) in self.columns.iter().zip(cells) {
            let lines: Vec<String> = cell.as_ref().split('\n').map(escape).collect();
            self.rows.push_str(&column.cell("td", &lines.join("<br>")));
        }
        self.rows.push_str("</tr>\n");
    }

    /// A title of the rows below.
    pub fn group(&mut self, title: &str) {
        let (span, title) = (self.columns.len(), escape(title));
        // Writing to a string cannot fail.
        let _ = writeln!(self.rows, "<tr class=\"head\"><td colspan=\"{span}\">{title}</td></tr>");
    }

    /// The table.
    pub fn html(&self) -> String {
        let head: String =
            self.columns.iter().map(|column| column.cell("th", &escape(&column.name))).collect();
        format!("<table><tr>{head}</tr>\n{}</table>", self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_set_as_their_columns() {
        let mut table = Table::new([Column::number("n"), Column::sentence("s")]);
        table.row(["1", "a\nb"]);
        let html = table.html();
        assert!(html.contains("<tr><th>n</th><th class=\"text wrap\">s</th></tr>"), "{html}");
        assert!(html.contains("<tr><td>1</td><td class=\"text wrap\">a<br>b</td></tr>"), "{html}");
        let html = Table::of(&["t", "n"], &[1], [["a", "1"]]).html();
        assert!(html.contains("<tr><td class=\"text\">a</td><td>1</td></tr>"), "{html}");
    }
}
