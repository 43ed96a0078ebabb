//! Rows of Linux, by running the programs of a built peers folder and reading what they print.
//!
//! The folder is made apart from this repository (its sources are GPL-2.0); see the README there.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::measure::{Bench, Sample};
use crate::report::Row;

/// Runs what is wanted of the folder's programs.
///
/// # Errors
/// A program that is not there or cannot be run.
pub fn run(bench: &mut Bench, folder: &Path) -> Result<(), String> {
    let programs = [
        ("bench_pt", &["1"][..], &[][..], &["table/"][..]),
        ("bench_sg", &[], &[], &["sg/", "dma/"]),
        (
            "bench_iova",
            &[],
            &[("ONLY2T", "1")],
            &["iova/pair/4K/threads=2", "iova/mixed/threads=2"],
        ),
        ("bench_iova", &[], &[], &["iova/"]),
    ];
    for (program, arguments, environment, rows) in programs {
        if rows.iter().any(|row| bench.wants(row)) {
            let mut command = Command::new(folder.join("bench").join(program));
            command.args(arguments).envs(environment.iter().copied());
            listen(bench, command)?;
        }
    }
    Ok(())
}

/// Enters rows as they come. In a quick run a program has 20 seconds; `bench_iova` takes minutes.
fn listen(bench: &mut Bench, mut command: Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(|error| {
            format!("{name}: {error}; build the peers folder with its setup.sh")
        })?;
    let Some(output) = child.stdout.take() else { return Err(format!("{name}: no output")) };
    let begin = Instant::now();
    let mut section = String::new();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some((of, sample)) = parse(&line, &mut section)
            && bench.wants(&of)
            && bench.report.row("linux", &of).is_none()
        {
            bench.enter(Row::new("linux", &of, sample));
        }
        if bench.quick && begin.elapsed() > Duration::from_secs(20) {
            break;
        }
    }
    // It is ours and is not needed any more; it may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    Ok(())
}

/// A line `WHO WHAT min X med Y` as a row's name and figures. `section` remembers what an unmap line
/// of `bench_sg` belongs to.
fn parse(line: &str, section: &mut String) -> Option<(String, Sample)> {
    let who = line.get(..22)?.trim();
    let rest = line.get(23..)?;
    let (rest, median) = rest.rsplit_once(" med ")?;
    let (what, min) = rest.rsplit_once(" min ")?;
    let (min, median) = (min.trim().parse().ok()?, median.trim().parse().ok()?);
    let what = what.trim();
    let of = match who {
        "linux6.12-iova" => iova(what),
        who if who.starts_with("dma-iommu+") => sg(who, what, section),
        who => table(who, what),
    }?;
    Some((of, Sample { min, median }))
}

fn iova(what: &str) -> Option<String> {
    let words: Vec<&str> = what.split(' ').collect();
    let live = |live: &str| Some(crate::iova::live_name(live.parse().ok()?));
    let size = |size: &str| match size {
        "1024K" => "1M".to_string(),
        "4096K" => "4M".to_string(),
        other => other.to_string(),
    };
    match words.as_slice() {
        ["rcache", "pair", size] => Some(format!("iova/pair/{size}")),
        ["tree", "pair", of, "live", count] => {
            Some(format!("iova/pair/{}/live={}", size(of), live(count)?))
        }
        ["tree", "random-replace", of, "live", count] => {
            Some(format!("iova/replace/{}/live={}", size(of), live(count)?))
        }
        ["mixed", "1..64p", "20k", "live", "lim48", ..] => Some("iova/mixed".into()),
        ["2T", "rcache", "pair", "4K", ..] => Some("iova/pair/4K/threads=2".into()),
        ["2T", "mixed", ..] => Some("iova/mixed/threads=2".into()),
        _ => None,
    }
}

fn format(name: &str) -> Option<&'static str> {
    Some(match name {
        "lpae-s1 4K" | "lpae 4K" => "lpae4k",
        "lpae-s1 16K" | "lpae 16K" => "lpae16k",
        "lpae-s1 64K" => "lpae64k",
        "dart1 16K (ias36)" | "dart1 16K" => "dart1",
        // One character longer than its column.
        _ if name.starts_with("dart2 16K") => "dart2",
        _ => return None,
    })
}

fn table(who: &str, what: &str) -> Option<String> {
    let format = format(who)?;
    let row = match what {
        _ if what.starts_with("iova_to_phys seq") => "resolve".into(),
        _ if what.starts_with("iova_to_phys random") => "resolve/random".into(),
        _ if what.starts_with("1GiB") && what.contains("warm tables map") => "map/1G".into(),
        _ if what.starts_with("1GiB") && what.contains("unmap lazy") => "unmap/1G".into(),
        _ if what.contains(" lazy") => format!("unmap/{}", count(what, "unmap_pages(")?),
        _ => format!("map/{}", count(what, "map_pages(").filter(|_| what.starts_with("map"))?),
    };
    Some(format!("table/{format}/{row}"))
}

/// The number behind `before`, up to the bracket.
fn count<'a>(what: &'a str, before: &str) -> Option<&'a str> {
    Some(what.strip_prefix(before)?.split_once(')')?.0)
}

fn sg(who: &str, what: &str, section: &mut String) -> Option<String> {
    let format = format(who.strip_prefix("dma-iommu+")?)?;
    if what.starts_with("unmap_sg") {
        return (!section.is_empty()).then(|| format!("sg/{format}/unmap/{section}"));
    }
    let what = what.strip_prefix("map_sg ")?;
    let kind = if what.contains("isolated") {
        "isolated"
    } else if what.contains("phys-contig") {
        "adjacent"
    } else {
        section.clear();
        return None;
    };
    let entries = what.split_once("n=")?.1.split_once(' ')?.0;
    *section = format!("{kind}/{entries}");
    Some(format!("sg/{format}/map/{section}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_peers_become_rows() {
        let mut section = String::new();
        let mut name = |line| parse(line, &mut section).map(|(of, sample)| (of, sample.min));
        let line = format!(
            "{:<22} {:<46} min {:9.2}  med {:9.2}",
            "linux6.12-iova", "tree pair 256K live 100000", 166.0, 170.5
        );
        assert_eq!(name(&line), Some(("iova/pair/256K/live=100k".into(), 166.0)));
        let line = format!(
            "{:<22} {:<46} min {:9.2}  med {:9.2}",
            "dart2 16K (ias36,oas42)", "unmap_pages(16) 16K lazy, ns/page", 1.0, 2.0
        );
        assert_eq!(name(&line), Some(("table/dart2/unmap/16".into(), 1.0)));
        let line = format!(
            "{:<22} {:<46} min {:9.2}  med {:9.2}",
            "dma-iommu+lpae 4K", "map_sg 1pg isolated n=64 ->64 seg, ns/entry", 26.0, 27.0
        );
        assert_eq!(name(&line), Some(("sg/lpae4k/map/isolated/64".into(), 26.0)));
        let line = format!(
            "{:<22} {:<46} min {:9.2}  med {:9.2}",
            "dma-iommu+lpae 4K", "  unmap_sg (strict gather, no HW sync), ns/entry", 3.5, 4.0
        );
        assert_eq!(name(&line), Some(("sg/lpae4k/unmap/isolated/64".into(), 3.5)));
        assert_eq!(name("floor                  8B stores L1"), None);
    }
}
