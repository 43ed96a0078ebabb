//! `granule doctor`: what this machine offers to drivers in user space.

use std::fmt::Write as _;

use granule_linux::Host;
use granule_linux::doctor::{DeviceReport, Report};

use crate::args::DoctorArgs;
use crate::output;
use crate::text;

/// Runs the command; what to print comes back.
pub(crate) fn run(args: &DoctorArgs) -> String {
    let report = Host::at(&args.root).doctor();
    if args.json { output::json(&report) } else { show(&report) }
}

fn show(report: &Report) -> String {
    let mut out = summary(report);
    if !report.devices.is_empty() {
        out.push('\n');
        let head =
            ["device", "what", "driver", "group", "shared with", "IOMMU", "pages", "opens with"];
        out.push_str(&text::table(&head, &[3], report.devices.iter().map(row).collect()));
    }
    out.push_str(&reserved(report));
    for line in &report.log {
        let _ = writeln!(out, "log: {line}");
    }
    out.push_str(&advice(report));
    out
}

fn summary(report: &Report) -> String {
    let mut out = String::new();
    let kernel = if report.kernel.is_empty() { "(release unknown)" } else { &report.kernel };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "Linux {kernel}, CPU page {}", text::size(report.cpu_page));
    if !report.boot_options.is_empty() {
        let _ = writeln!(out, "booted with: {}", report.boot_options.join(" "));
    }
    let iommus = report.iommus.iter().map(|iommu| {
        let pages = iommu.page_sizes.as_deref().map(|sizes| format!(", pages {}", pages(sizes)));
        format!("{} ({}{})", iommu.name, iommu.kind, pages.unwrap_or_default())
    });
    let iommus = iommus.collect::<Vec<_>>().join(", ");
    let iommus = if iommus.is_empty() { "none in use".into() } else { iommus };
    let _ = writeln!(out, "IOMMUs: {iommus}; {}", text::count(report.groups, "group"));
    let interfaces = report.backends.iter().map(|interface| {
        let state = if interface.usable { "can be opened" } else { "cannot be opened" };
        format!("{} {state}", interface.backend)
    });
    let _ = writeln!(out, "interfaces: {}", interfaces.collect::<Vec<_>>().join(", "));
    let _ = writeln!(out, "locked memory: {}", report.locked_memory);
    let huge = report.huge_pages.iter().map(|pool| {
        format!("{} of {} pages of {} free", pool.free, pool.total, text::size(pool.size))
    });
    let huge = huge.collect::<Vec<_>>().join(", ");
    if !huge.is_empty() {
        let _ = writeln!(out, "huge pages: {huge}");
    }
    out
}

/// `4K 2M 1G`, or `4K .. 512G` where it is every power of two.
fn pages(sizes: &[u64]) -> String {
    match sizes {
        [first, .., last] if sizes.len() > 4 => {
            format!("{} .. {}", text::short_size(*first), text::short_size(*last))
        }
        _ => sizes.iter().map(|size| text::short_size(*size)).collect::<Vec<_>>().join(" "),
    }
}

fn row(device: &DeviceReport) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let opens = if device.opens_with.is_empty() {
        let obstacle = device.obstacle.as_deref().unwrap_or("no");
        format!("no: {}", obstacle.replace('_', " "))
    } else {
        let names = device.opens_with.iter().map(ToString::to_string);
        names.collect::<Vec<_>>().join(", ")
    };
    let shared = device.shares_with.join(" ");
    vec![
        device.address.clone(),
        format!("{} {}", device.class, device.ids),
        or_dash(device.driver.clone()),
        or_dash(device.group.map(|group| group.to_string())),
        or_dash(Some(shared).filter(|names| !names.is_empty())),
        or_dash(device.iommu.clone()),
        or_dash(device.page_sizes.as_deref().map(pages)),
        opens,
    ]
}

/// The regions that are not for use, each once with the groups that have it.
fn reserved(report: &Report) -> String {
    let mut regions: Vec<(String, Vec<u32>)> = Vec::new();
    for device in &report.devices {
        for region in &device.reserved {
            let Some(group) = device.group else { continue };
            let name = format!("{:#x}..={:#x} ({})", region.first, region.last, region.kind);
            match regions.iter_mut().find(|(known, _)| *known == name) {
                Some((_, groups)) if groups.contains(&group) => {}
                Some((_, groups)) => groups.push(group),
                None => regions.push((name, vec![group])),
            }
        }
    }
    let lines = regions.iter().map(|(name, groups)| {
        let word = if groups.len() == 1 { "group" } else { "groups" };
        let groups = groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!("reserved: {name} in {word} {groups}\n")
    });
    let text: String = lines.collect();
    if text.is_empty() { text } else { format!("\n{text}") }
}

fn advice(report: &Report) -> String {
    if report.advice.is_empty() {
        return "\nNothing stands in the way.\n".into();
    }
    let mut out = String::from("\nWhat to do:\n");
    for advice in &report.advice {
        let todo = advice.todo.replace('\n', "\n    ");
        let _ = writeln!(out, "* {}:\n    {todo}", advice.what);
    }
    out
}
