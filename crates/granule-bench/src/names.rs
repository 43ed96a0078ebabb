//! The rows that a run must have: those that the list of targets and other programs ask for by name.

use crate::report::Report;

const FORMATS: [&str; 8] =
    ["dart1", "dart2", "lpae4k", "lpae16k", "lpae64k", "vtd2", "amdv1", "sv39"];

/// Alternatives in braces; `{format}` stands for every format.
const PATTERNS: &[&str] = &[
    "iova/pair/4K",
    "iova/pair/256K/live={0|1k|100k}",
    "iova/replace/256K/live={1k|100k}",
    "iova/mixed",
    "iova/pair/4K/threads=2",
    "iova/mixed/threads=2",
    "iova/pair/4K/threads=2/calib/threads={1|2}",
    "iova/mixed/threads=2/calib/threads={1|2}",
    "iova/ramp",
    "iova/cross-cpu",
    "iova/pair/4M",
    "iova/replace/4M/live={1k|100k}",
    "table/{format}/{map|unmap}/{1|16|512|1G|1G-whole}",
    "table/{format}/resolve",
    "sg/{format}/{map|unmap}/{isolated|adjacent}/{1|64|1024}",
    "dma/single/map+unmap",
    "floor/{store|zero}",
    "growth/{iova|dma|null/iova|null/dma}/live={1k|10k|100k|1M}",
];

/// Their names.
pub fn required() -> Vec<String> {
    let formats = format!("{{{}}}", FORMATS.join("|"));
    PATTERNS.iter().flat_map(|pattern| spell_out(&pattern.replace("{format}", &formats))).collect()
}

fn spell_out(pattern: &str) -> Vec<String> {
    let parts = pattern.split_once('{').and_then(|(before, rest)| {
        let (choices, behind) = rest.split_once('}')?;
        Some((before, choices, behind))
    });
    let Some((before, choices, behind)) = parts else { return vec![pattern.into()] };
    choices.split('|').flat_map(|choice| spell_out(&format!("{before}{choice}{behind}"))).collect()
}

/// Those that a run does not have, or has without a time.
pub fn missing(report: &Report) -> Vec<String> {
    let mut names = required();
    names.retain(|name| !report.ns("granule", name).is_some_and(|ns| ns.is_finite() && ns >= 0.0));
    let mixed = report.row("granule", "iova/mixed");
    for figure in ["p50", "p99"] {
        if mixed.and_then(|row| row.figure(figure)).is_none() {
            names.push(format!("iova/mixed with {figure}"));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;
    use crate::report::Row;

    #[test]
    fn patterns_are_spelt_out() {
        let names = required();
        assert_eq!(names.iter().filter(|name| name.starts_with("table/")).count(), 8 * 11);
        assert_eq!(names.iter().filter(|name| name.starts_with("sg/")).count(), 8 * 12);
        assert!(names.contains(&"sg/amdv1/unmap/adjacent/1024".into()));
        assert!(names.iter().all(|name| !name.contains(['{', '}', '|'])));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut report = Report::default();
        for name in required().iter().skip(1) {
            report.rows.push(Row::new("granule", name, Sample::of(vec![1.0])));
        }
        assert_eq!(
            missing(&report),
            ["iova/pair/4K", "iova/mixed with p50", "iova/mixed with p99"]
        );
    }
}
