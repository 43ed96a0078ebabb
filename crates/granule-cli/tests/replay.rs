//! A replay's JSON, its report, and standard input.

mod common;

use std::io::Write as _;
use std::process::{Command, Stdio};

use common::{granule, json};

const SHORT: &[&str] = &["replay", "--limit", "400"];

#[test]
fn each_granule_is_a_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = [SHORT, &["--compare", "16K,4K", "--json"]].concat();
    let results = json(folder.path(), 0, &args);
    let runs = results["runs"].as_array().expect("runs");
    let granules: Vec<_> = runs.iter().filter_map(|run| run["granule"].as_u64()).collect();
    assert_eq!(granules, [16384, 4096]);
    for run in runs {
        assert_eq!(run["all"]["total"]["operations"], 400);
    }
    let exposed = |run: usize| runs[run]["all"]["total"]["peak"]["exposed"].as_u64();
    assert!(exposed(0) > exposed(1), "larger granules expose more");
}

#[test]
fn the_report_is_whole_and_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = [SHORT, &["--report", "report.html"]].concat();
    let output = granule(folder.path(), &args);
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "no progress bar in a pipe");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("report: report.html\n"));
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("written");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert_eq!(folder.path().read_dir().expect("listed").count(), 1);
}

#[test]
fn a_refused_replay_leaves_the_old_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.html");
    std::fs::write(&report, "old").expect("written");
    let args = ["replay", "--untrusted", "nobody", "--report", "report.html", "--json"];
    assert_eq!(json(folder.path(), 1, &args)["error"]["kind"], "no_such_device");
    assert_eq!(std::fs::read_to_string(&report).expect("read"), "old");
}

#[test]
fn a_trace_comes_from_standard_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_granule"))
        .args(["replay", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command was built");
    let event = "dma_map_page: 0000:00:02.0 dir=FROM_DEVICE dma_addr=fffff000 size=100 \
                 phys_addr=1000 attrs=";
    let line = format!(" t-1 [000] ..... 1.000000: {event}\n");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(line.as_bytes()).expect("read");
    drop(input);
    let output = child.wait_with_output().expect("ended");
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(results["trace"]["devices"][0]["name"], "0000:00:02.0");
    assert_eq!(results["findings"]["counts"]["never_unmapped"], 1);
}
