//! What `share` promises, read from its JSON; what it dumps, read back by `walk`.

mod common;

use std::os::unix::fs::MetadataExt;

use common::{address, granule, json};
use serde_json::Value;

fn device<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let devices = answer["devices"].as_array().expect("devices");
    devices.iter().find(|device| device["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn dcp_and_piodma_have_one_range_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = json(folder.path(), 0, &["share", "--size", "100K", "--json"]);
    assert_eq!(answer["cpu_page"], 4096);
    assert_eq!(answer["size"], 102400);
    for (name, iommu, stream) in
        [("dcp", "/soc/iommu@23130c000", 0), ("piodma", "/soc/iommu@231304000", 4)]
    {
        let row = device(&answer, name);
        assert_eq!(row["route"], "translated");
        assert_eq!((&row["iommu"], &row["stream"]), (&iommu.into(), &stream.into()));
        assert_eq!((&row["granule"], &row["ranges"]), (&16384.into(), &1.into()));
        assert_eq!((&row["length"], &row["padding_bytes"]), (&102400.into(), &12288.into()));
        assert_eq!(row["page_sizes"]["16384"], 7);
        assert_eq!((&row["exposed_bytes"], &row["late_dma"]), (&0.into(), &"blocked".into()));
        assert_eq!(
            (&row["table"]["format"], &row["table"]["levels"]),
            (&"dart1".into(), &2.into())
        );
    }
    assert!(address(&device(&answer, "dcp")["dma_address"]) >= 0xf_0000_0000);
    assert!(address(&device(&answer, "piodma")["dma_address"]) < 0xfc00_0000);
    let memory = answer["memory"].as_array().expect("memory");
    let total: u64 = memory.iter().filter_map(|block| block["length"].as_u64()).sum();
    assert_eq!(total, 0x1c000);
    // Two writers, and for each the other device and the CPU.
    assert_eq!(answer["verified_bytes"], 4 * 102400);
}

#[test]
fn a_direct_device_gets_one_block_and_is_not_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = ["share", "--between", "dcp,direct-master", "--size", "64K", "--json"];
    let answer = json(folder.path(), 0, &args);
    let direct = device(&answer, "direct-master");
    assert_eq!((&direct["route"], &direct["late_dma"]), (&"direct".into(), &"not_enforced".into()));
    assert_eq!((&direct["exposed_bytes"], &direct["iommu"]), (&Value::Null, &Value::Null));
    assert!(direct.get("table").is_none());
    assert_eq!(device(&answer, "dcp")["late_dma"], "blocked");
    let memory = answer["memory"].as_array().expect("memory");
    assert_eq!(memory.len(), 1);
    // Its bus shows the first 2 GiB of RAM at 0x8000_0000.
    let at = address(&memory[0]["address"]);
    assert_eq!(address(&direct["dma_address"]), at - 0x8_0000_0000 + 0x8000_0000);
}

#[test]
fn the_same_address_for_devices_behind_several_iommus() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = ["share", "--between", "isp,piodma,nvme", "--size", "64K", "--json"];
    json(folder.path(), 0, &args);
    let args = ["share", "--between", "isp,piodma", "--same-iova", "--size", "64K", "--json"];
    let answer = json(folder.path(), 0, &args);
    let isp = device(&answer, "isp");
    assert_eq!(isp["dma_address"], device(&answer, "piodma")["dma_address"]);
    assert_eq!(isp["streams"].as_array().map(Vec::len), Some(3));
}

#[test]
fn untrusted_devices_see_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = ["share", "--untrusted", "dcp,piodma", "--size", "10", "--json"];
    let answer = json(folder.path(), 0, &args);
    for name in ["dcp", "piodma"] {
        assert_eq!(device(&answer, name)["exposed_bytes"], 0);
        assert_eq!(device(&answer, name)["padding_bytes"], 16374);
    }
}

#[test]
fn walk_finds_in_the_dump_what_share_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = [
        "share",
        "--between",
        "dcp,piodma,display-subsystem,isp",
        "--size",
        "200K",
        "--json",
        "--dump",
        "ram.raw",
    ];
    let answer = json(folder.path(), 0, &args);
    let dump = folder.path().join("ram.raw").metadata().expect("written");
    assert_eq!(dump.len(), 8 << 30, "all of RAM");
    assert!(dump.blocks() * 512 < 16 << 20, "and sparse");
    for row in answer["devices"].as_array().expect("devices") {
        let roots = row["table"]["roots"].as_array().expect("roots");
        let mut args =
            vec!["walk", "--format", "dart1", "--memory", "ram.raw@0x800000000", "--json"];
        for root in roots {
            args.extend(["--root", root.as_str().expect("an address")]);
        }
        let walked = json(folder.path(), 0, &args);
        // The DART's tables index the low 32 bits of what the device emits.
        let wanted = address(&row["dma_address"]) & 0xffff_ffff;
        let mut mapped = walked["mappings"].as_array().expect("mappings").clone();
        if row["name"] == "display-subsystem" {
            let firmware = mapped.remove(0);
            assert_eq!(address(&firmware["iova"]), 0xa000_0000, "the framebuffer is still there");
        }
        let blocks = answer["memory"].as_array().expect("memory");
        assert_eq!(mapped.len(), blocks.len(), "{row}");
        let mut iova = wanted;
        for (mapping, block) in mapped.iter().zip(blocks) {
            assert_eq!(address(&mapping["iova"]), iova);
            assert_eq!(
                (&mapping["physical"], &mapping["length"]),
                (&block["address"], &block["length"])
            );
            assert_eq!((&mapping["read"], &mapping["write"]), (&true.into(), &true.into()));
            iova += mapping["length"].as_u64().expect("a length");
        }
        assert_eq!(walked["findings"], Value::Array(Vec::new()));
        args.extend(["--iova", row["dma_address"].as_str().expect("an address")]);
        let one = json(folder.path(), 0, &args);
        assert_eq!(one["translation"]["physical"], blocks[0]["address"]);
        let last = args.len() - 1;
        args[last] = "0x10000";
        assert_eq!(json(folder.path(), 1, &args)["error"]["kind"], "not_mapped");
    }
}

#[test]
fn the_picture_is_well_formed_and_replaces_the_old_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.svg");
    std::fs::write(&path, "old").expect("written");
    let output = granule(folder.path(), &["share", "--size", "64K", "--svg", "a.svg"]);
    assert!(output.status.success());
    let svg = std::fs::read_to_string(&path).expect("written");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("piodma") && svg.contains("prefers-color-scheme: dark"));
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
}

#[test]
fn boards_of_all_page_sizes() {
    let folder = tempfile::tempdir().expect("a folder");
    let smmus =
        [(0x1000_0000, "arm,smmu-v3", true, None), (0x1001_0000, "apple,t6000-dart", true, None)];
    let blob = common::tree(true, &smmus, &[("one", &[0]), ("two", &[1]), ("plain", &[])]);
    std::fs::write(folder.path().join("b.dtb"), blob.expect("a legal tree")).expect("written");
    for (page, granule) in [("4K", 4096), ("16K", 16384), ("64K", 65536)] {
        let args = ["share", "--board", "b.dtb", "--cpu-page", page, "--size", "1M", "--json"];
        let answer = json(folder.path(), 0, &args);
        assert_eq!(device(&answer, "one")["granule"], granule);
        assert_eq!(device(&answer, "two")["table"]["format"], "dart2");
        let args = [&args[..], &["--between", "one,two,plain"]].concat();
        assert_eq!(json(folder.path(), 0, &args)["memory"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn memory_may_begin_at_address_zero() {
    let folder = tempfile::tempdir().expect("a folder");
    let between = ["--between", "isp,direct-master", "--size", "64K", "--json"];
    let answer = json(folder.path(), 1, &[&["share", "--memory", "0+64M"], &between[..]].concat());
    assert_eq!(answer["error"]["kind"], "no_ram_in_reach");
    let args = ["share", "--memory", "0+64M", "--between", "isp,nvme", "--size", "64K", "--json"];
    let answer = json(folder.path(), 0, &args);
    assert!(address(&answer["memory"][0]["address"]) > 0);
}
