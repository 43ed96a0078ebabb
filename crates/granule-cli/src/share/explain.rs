//! `--explain`: what each device demands, what that makes together, and what it forces.

use std::fmt::Write as _;

use granule::addr::Granule;
use granule::share::{Constraints, Party, Solved, Windows};

use crate::text;

/// How the plan was found.
pub(super) struct Explanation {
    /// What each device demands, and all together.
    pub(super) demands: Vec<Vec<String>>,
    /// What was forced, and why.
    pub(super) forced: Vec<(&'static str, String)>,
}

/// The columns of the demands.
pub(super) const DEMANDS_HEAD: [&str; 6] =
    ["device", "blocks", "pieces", "memory in reach", "its addresses", "alone"];

impl Explanation {
    pub(super) fn new(solved: &Solved, cpu_page: Granule, same_iova: bool) -> Self {
        let mut demands: Vec<Vec<String>> =
            solved.parties().iter().map(|party| row(party, solved.len())).collect();
        let united = solved.constraints();
        let addresses = if same_iova { "one for all" } else { "each its own" };
        demands.push(vec![
            "together".into(),
            text::size(united.align.size()),
            pieces(united).into(),
            windows(&united.windows),
            addresses.into(),
            format!("{} for all", text::size(solved.size())),
        ]);
        Self { demands, forced: forced(solved, cpu_page) }
    }

    /// What `--explain` prints.
    pub(super) fn text(&self) -> String {
        let mut out = String::from("how the plan was found\n");
        out.push_str(&text::table(&DEMANDS_HEAD, &[1], self.demands.clone()));
        out.push_str("\nwhat that forces\n");
        for (what, why) in &self.forced {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "  {what:<11}{why}");
        }
        out
    }
}

fn row(party: &Party, len: u64) -> Vec<String> {
    let own = party.constraints();
    let alone = own.align.round_up(len).map_or("nothing".into(), text::size);
    let shape = if own.contiguous { "one block aligned to" } else { "blocks of" };
    vec![
        party.device().name().into(),
        text::size(own.align.size()),
        pieces(own).into(),
        windows(&own.windows),
        party.addresses().to_string(),
        format!("{alone} in {shape} {}", text::size(own.align.size())),
    ]
}

fn pieces(constraints: &Constraints) -> &'static str {
    if constraints.contiguous { "one" } else { "any number" }
}

fn windows(windows: &Windows) -> String {
    if *windows == Windows::everywhere() { "everywhere".into() } else { windows.to_string() }
}

fn forced(solved: &Solved, cpu_page: Granule) -> Vec<(&'static str, String)> {
    let united = solved.constraints();
    let names = |wanted: &dyn Fn(&Party) -> bool| {
        let names = solved.parties().iter().filter(|party| wanted(party));
        names.map(|party| party.device().name()).collect::<Vec<_>>().join(", ")
    };
    let align = text::size(united.align.size());
    let granules = names(&|party| party.granule() == Some(united.align));
    let page = text::size(cpu_page.size());
    let why = match united.align > cpu_page {
        true => format!("the granule of {granules}, larger than the CPU's page of {page}"),
        false => format!("the CPU's page; no granule is larger ({page})"),
    };
    let mut forced = vec![("alignment", format!("{align}: {why}"))];
    let padding = solved.size() - solved.len();
    let padded =
        if padding > 0 { format!(", {} of them padding", text::size(padding)) } else { "".into() };
    forced.push((
        "blocks",
        match united.contiguous {
            true => {
                let direct = names(&|party| party.constraints().contiguous);
                let size = text::size(solved.size());
                format!(
                    "a single one of {size}{padded}: {direct} has no IOMMU that could join several"
                )
            }
            false => {
                let size = text::size(solved.size());
                format!("multiples of {align}, {size} in all{padded}: every IOMMU can join them")
            }
        },
    ));
    if united.windows != Windows::everywhere() {
        let limiting = names(&|party| party.constraints().windows == united.windows);
        let limiting = if limiting.is_empty() { "what all reach".into() } else { limiting };
        forced.push(("window", format!("{}: {limiting}", united.windows)));
    }
    if united.boundary != 0 {
        forced.push(("boundary", format!("no range crosses {:#x}", united.boundary)));
    }
    forced
}
