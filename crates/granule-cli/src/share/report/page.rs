//! The report as a page.

use granule_report::page::Page;
use granule_report::scheme::Shape;
use granule_report::table::Table;

use super::text::{HEAD, RIGHT};
use super::{Report, Row};
use crate::share::explain::DEMANDS_HEAD;
use crate::text;

impl Report {
    /// The page.
    pub(in crate::share) fn html(&self) -> String {
        let mut page = Page::new("Shared buffer", &self.title());
        page.note(&format!("The buffer lies in memory as {}.", self.memory_line()));
        for sentence in self.not_enforced() {
            page.warning(&format!("Not enforced: {sentence}."));
        }
        let spaces = self.spaces();
        page.shaped_figure(
            "Who sees it where",
            "physical memory, and the address space of each device",
            &spaces.svg(Shape::Wide),
            &spaces.svg(Shape::Narrow),
        );
        page.heading("Devices");
        page.table(&Table::of(&HEAD, &RIGHT, self.rows.iter().map(Row::cells)));
        page.heading("Proof");
        let proofs = self.proofs().into_iter().map(|proof| (sentence(&proof), String::new()));
        page.list(false, proofs);
        self.explain(&mut page);
        self.tables(&mut page);
        page.foot(&[
            "Each device is simulated hardware that walks its page tables. Padding: mapped beside \
             the buffer, owned by it and zeroed. Exposed: bytes of others that the device reaches. \
             Late DMA: an access after the unmap.",
        ]);
        page.finish()
    }

    fn explain(&self, page: &mut Page) {
        page.heading("How the plan was found");
        page.table(&Table::of(&DEMANDS_HEAD, &[1], &self.explanation.demands));
        let forced = self.explanation.forced.iter();
        page.list(false, forced.map(|(what, why)| ((*what).to_owned(), why.clone())));
    }

    /// What hardware walks for each device behind an IOMMU.
    fn tables(&self, page: &mut Page) {
        let rows = self.rows.iter().filter_map(|row| {
            let tables = row.tables.as_ref()?;
            let roots: Vec<_> = tables.roots.iter().map(|root| text::hex(root.raw())).collect();
            Some(vec![
                row.label.clone(),
                tables.format.into(),
                text::size(tables.granule),
                tables.input_bits.to_string(),
                tables.levels.to_string(),
                roots.join("\n"),
            ])
        });
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return;
        }
        page.heading("Page tables");
        let head = ["device", "format", "granule", "input bits", "levels", "roots"];
        page.table(&Table::of(&head, &[2, 3, 4, 5], rows));
    }
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", chars.as_str())
}
