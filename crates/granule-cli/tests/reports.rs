//! The pages of `share` and `board`: whole, alone, and text where a device tree says it is markup.

mod common;

use std::path::Path;

use common::{granule, json, tree};

/// Reads a page, and sees to it that it is whole and needs no network.
fn page(folder: &Path, name: &str) -> String {
    let page = std::fs::read_to_string(folder.join(name)).expect("written");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"), "{page}");
    let ours = page.replace("http://www.w3.org/2000/svg", "");
    for word in ["http://", "https://", "<script", "NaN"] {
        assert!(!ours.contains(word), "{word}");
    }
    page
}

/// How many data each picture has.
fn points(page: &str) -> Vec<u64> {
    let plots = page.split("data-points=\"").skip(1);
    let numbers = plots.filter_map(|plot| plot.split('"').next());
    numbers.map(|number| number.parse().expect("a number")).collect()
}

/// Puts other bytes in place of the only ones of their kind.
fn replace(blob: &mut [u8], old: &[u8], new: &[u8]) {
    let at = blob.windows(old.len()).position(|bytes| bytes == old).expect("in the blob");
    blob[at..at + old.len()].copy_from_slice(new);
}

#[test]
fn a_share_is_drawn_with_its_proof_and_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = ["share", "--between", "dcp,isp,nvme", "--size", "100K", "--report", "share.html"];
    let output = granule(folder.path(), &args);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("report: share.html\n"), "{said}");
    let page = page(folder.path(), "share.html");
    // A band from each device to the one block, in both shapes.
    assert_eq!(points(&page), [3, 3]);
    for text in ["all equal", "isp_dart0:0 + isp_dart1:0", "dart1", "100 KiB, 7 x 16K"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("Not enforced: nothing stands between nvme and memory"));
    assert_eq!(folder.path().read_dir().expect("listed").count(), 1);
}

#[test]
fn a_board_is_drawn_with_every_device_and_iommu() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = granule(folder.path(), &["board", "--report", "board.html"]);
    assert!(String::from_utf8_lossy(&said.stdout).ends_with("\nreport: board.html\n"));
    let board = json(folder.path(), 0, &["board", "--json", "--report", "again.html"]);
    let count = |what: &str| board[what].as_array().map_or(0, Vec::len);
    let page = page(folder.path(), "board.html");
    let all = (count("devices") + count("iommus")) as u64;
    assert_eq!(points(&page), [all, all]);
    let streams = board["devices"].as_array().expect("devices").iter();
    let streams: usize =
        streams.map(|device| device["streams"].as_array().map_or(1, |all| all.len().max(1))).sum();
    // A line for each stream or direct device, and one from each IOMMU to memory; in both shapes.
    assert_eq!(page.matches("<path").count(), 2 * (streams + count("iommus")));
}

#[test]
fn names_of_a_tree_are_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let iommus = [(0x1000_0000, "apple,t8103-dart", true, None)];
    // The writer refuses such names, so they are put into the blob, where nobody does.
    let devices: &[common::DeviceNode] = &[("first-name", &[0]), ("second-name", &[])];
    let mut blob = tree(true, &iommus, devices).expect("a tree");
    replace(&mut blob, b"first-name", b"a<script>&");
    replace(&mut blob, b"second-name", b"b\"onload='x");
    replace(&mut blob, b"test board", b"<b>board&;");
    std::fs::write(folder.path().join("odd.dtb"), blob).expect("written");
    let output = granule(folder.path(), &["board", "odd.dtb", "--report", "board.html"]);
    assert!(output.status.success(), "{output:?}");
    let board = page(folder.path(), "board.html");
    assert!(board.contains("a&lt;script&gt;&amp;") && board.contains("&lt;b&gt;board&amp;;"));
    let args = ["share", "--board", "odd.dtb", "--size", "64K", "--report", "share.html"];
    let output = granule(folder.path(), &args);
    assert!(output.status.success(), "{output:?}");
    assert!(page(folder.path(), "share.html").contains("b&quot;onload=&#39;x"));
}

#[test]
fn an_empty_board_is_a_page_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let blob = tree(false, &[], &[]).expect("a tree");
    std::fs::write(folder.path().join("bare.dtb"), blob).expect("written");
    let output = granule(folder.path(), &["board", "bare.dtb", "--report", "board.html"]);
    assert!(output.status.success(), "{output:?}");
    assert!(page(folder.path(), "board.html").contains("names no device"));
}

#[test]
fn a_refusal_leaves_the_old_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = folder.path().join("old.html");
    std::fs::write(&old, "old").expect("written");
    let share =
        ["share", "--between", "dcp,nvme", "--untrusted", "nvme", "--report", "old.html", "--json"];
    assert_eq!(json(folder.path(), 1, &share)["error"]["kind"], "untrusted_direct");
    let board = ["board", "nowhere.dtb", "--report", "old.html", "--json"];
    assert_eq!(json(folder.path(), 1, &board)["error"]["kind"], "read");
    let twice = ["share", "--svg", "old.html", "--report", "old.html", "--json"];
    assert_eq!(json(folder.path(), 2, &twice)["error"]["kind"], "usage");
    assert_eq!(std::fs::read_to_string(&old).expect("read"), "old");
    assert_eq!(folder.path().read_dir().expect("listed").count(), 1);
}
