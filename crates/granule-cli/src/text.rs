//! Addresses, sizes and tables as people read them.

use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serializer;

/// `8 MiB`, `16 KiB`, `100 B`: the largest unit that divides it.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |shift: u32| bytes != 0 && bytes & ((1 << shift) - 1) == 0;
    match units.iter().find(|(shift, _)| whole(*shift)) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None if bytes == 0 => "0".into(),
        None => format!("{bytes} B"),
    }
}

/// `16K`, `2M`: for narrow columns.
pub(crate) fn short_size(bytes: u64) -> String {
    size(bytes).replace("iB", "").replace(' ', "")
}

/// `0x…`.
pub(crate) fn hex(address: u64) -> String {
    format!("{address:#x}")
}

/// An address in JSON: a string, since JSON's readers keep 53 bits of a number.
pub(crate) fn serialize_hex<S: Serializer>(address: &u64, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&hex(*address))
}

/// A plain table: columns two blanks apart, a line below the head; columns named in `right` are
/// flush right.
pub(crate) fn table(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset("     --            ").set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        let line = line.trim_end();
        if !line.is_empty() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// `1 device`, `2 devices`.
pub(crate) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(8 << 20), "8 MiB");
        assert_eq!(size(0), "0");
        assert_eq!(size(100), "100 B");
        assert_eq!(size(3 << 30), "3 GiB");
        assert_eq!(short_size(16384), "16K");
    }
}
