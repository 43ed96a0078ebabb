//! What is impossible is refused: each request by an error of its own kind, with exit status 1, one
//! message, and no output file touched.

mod common;

use std::collections::BTreeSet;

use common::{granule, json, tree};

const DART: &str = "apple,t8103-dart";

/// The arguments behind `share`, and the kind of the refusal.
const IMPOSSIBLE: &[(&[&str], &str)] = &[
    (&["--between", "dcp,nobody"], "unknown_device"),
    (&["--between", "dcp,usb"], "ambiguous_device"),
    (&["--between", "dcp,disp0_dart"], "not_a_device"),
    (&["--between", "dcp,piodma,dcp"], "device_twice"),
    (&["--between", "dcp,nvme", "--untrusted", "nvme"], "untrusted_direct"),
    (&["--between", "dcp,display", "--untrusted", "display"], "untrusted_firmware_mapping"),
    (&["--between", "dcp,piodma", "--untrusted", "isp"], "not_shared"),
    (&["--between", "dcp,piodma", "--same-iova"], "no_common_address"),
    (&["--between", "dcp,piodma", "--mask", "dcp=32"], "mask"),
    (&["--between", "nvme,direct-master", "--mask", "nvme=32"], "no_common_memory"),
    (&["--between", "dcp,nvme", "--mask", "nvme=32"], "no_ram_in_reach"),
    (&["--between", "dcp,direct-master", "--size", "3G"], "common_memory_too_small"),
    (&["--size", "0"], "empty"),
    (&["--size", "0xffffffffffffffff"], "too_long"),
    (&["--size", "5G"], "address_space"),
    (&["--size", "8M", "--memory", "0x800000000+1M"], "out_of_memory"),
    (&["--memory", "0x800000000+4K"], "small_memory"),
    (&["--memory", "0x800000000+128K"], "no_room_for_firmware"),
    (&["--memory", "0x800000000+1M", "--memory", "0x800080000+1M"], "memory_overlap"),
    (&["--board", "nowhere.dtb"], "read"),
    (&["--board", "text.dtb"], "not_a_device_tree"),
    (&["--board", "cut.dtb"], "truncated_device_tree"),
    (&["--board", "bare.dtb"], "no_memory"),
    (&["--board", "lone.dtb"], "no_pair"),
    (&["--board", "odd.dtb", "--between", "off"], "device_disabled"),
    (&["--board", "odd.dtb", "--between", "behind-disabled"], "iommu_disabled"),
    (&["--board", "odd.dtb", "--between", "behind-unknown"], "unknown_iommu"),
    (&["--board", "odd.dtb", "--between", "behind-rockchip"], "no_format"),
    (&["--board", "odd.dtb", "--between", "behind-nothing"], "unresolved_device"),
    (&["--board", "odd.dtb", "--between", "behind-both"], "mixed_formats"),
    (&["--board", "odd.dtb", "--between", "behind-apart"], "no_common_window"),
    (&["--dump", "no/such/folder/out"], "write"),
];

fn boards(folder: &std::path::Path) {
    let write = |name: &str, blob: &[u8]| std::fs::write(folder.join(name), blob).expect("written");
    let odd = tree(
        true,
        &[
            (0x1000_0000, DART, true, None),
            (0x1001_0000, DART, false, None),
            (0x1002_0000, "acme,iommu", true, None),
            (0x1003_0000, "rockchip,iommu", true, None),
            (0x1004_0000, "arm,smmu-v3", true, None),
            (0x1005_0000, DART, true, Some((0, 0x1000_0000))),
            (0x1006_0000, DART, true, Some((0x4000_0000, 0x1000_0000))),
        ],
        &[
            ("off", &[0]),
            ("behind-disabled", &[1]),
            ("behind-unknown", &[2]),
            ("behind-rockchip", &[3]),
            ("behind-nothing", &[70]),
            ("behind-both", &[0, 4]),
            ("behind-apart", &[5, 6]),
        ],
    );
    let odd = odd.expect("a legal tree");
    write("cut.dtb", &odd[..odd.len() - 8]);
    write("odd.dtb", &odd);
    write("text.dtb", b"/dts-v1/; / {};");
    write("bare.dtb", &tree(false, &[], &[("one", &[]), ("two", &[])]).expect("a legal tree"));
    write("lone.dtb", &tree(true, &[], &[("one", &[])]).expect("a legal tree"));
}

#[test]
fn every_impossible_request_has_a_refusal_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    boards(folder.path());
    std::fs::write(folder.path().join("out.svg"), "as it was").expect("written");
    let mut kinds = BTreeSet::new();
    for (args, kind) in IMPOSSIBLE {
        let all = [&["share", "--size", "64K", "--json", "--svg", "out.svg"], *args].concat();
        // A size of the request's own takes the place of ours.
        let own = args.contains(&"--size");
        let all: Vec<_> = if own { [&all[..1], &all[3..]].concat() } else { all };
        let answer = json(folder.path(), 1, &all);
        let error = &answer["error"];
        assert_eq!(error["kind"], *kind, "{args:?}: {error}");
        assert!(kinds.insert(*kind), "{kind} stands for two requests");
        let message = error["message"].as_str().expect("a message");
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
        let kept = std::fs::read_to_string(folder.path().join("out.svg")).expect("still there");
        assert_eq!(kept, "as it was", "{args:?}");
    }
    assert!(kinds.len() >= 15);
    let left = folder.path().read_dir().expect("listed").count();
    assert_eq!(left, 6, "no temporary file is left");
}

#[test]
fn for_people_it_is_one_line_on_standard_error() {
    let folder = tempfile::tempdir().expect("a folder");
    for (args, kind) in IMPOSSIBLE.iter().filter(|(args, _)| !args.contains(&"--board")) {
        let output = granule(folder.path(), &[&["share"], *args].concat());
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{kind}");
        assert!(output.stdout.is_empty(), "{kind}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{kind}: {error}");
    }
}

#[test]
fn an_unknown_name_lists_candidates() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = json(folder.path(), 1, &["share", "--between", "dcp,piodm", "--json"]);
    assert_eq!(answer["error"]["device"], "piodm");
    assert_eq!(answer["error"]["candidates"][0], "piodma");
    let answer = json(folder.path(), 1, &["share", "--between", "usb", "--json"]);
    assert_eq!(answer["error"]["candidates"].as_array().map(Vec::len), Some(2));
}

#[test]
fn bad_usage_is_another_status() {
    let folder = tempfile::tempdir().expect("a folder");
    let bad: &[&[&str]] = &[
        &["share", "--size", "8X"],
        &["share", "--cpu-page", "8K"],
        &["share", "--memory", "0x1000"],
        &["share", "--mask", "dcp=65"],
        &["share", "--svg", "a", "--dump", "a"],
        &["share", "extra"],
        &["walk", "--format", "dart1"],
        &["walk", "--format", "dart9", "--root", "0", "--memory", "x"],
        &["nonsense"],
    ];
    for args in bad {
        let output = granule(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
        let answer = json(folder.path(), 2, &[*args, &["--json"]].concat());
        assert_eq!(answer["error"]["kind"], "usage", "{args:?}");
    }
}
