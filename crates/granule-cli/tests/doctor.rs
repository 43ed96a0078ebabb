//! `granule doctor` and the refusals of `share --live`, on machines that are folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn granule(arguments: &[&str]) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_granule")).args(arguments).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn file(root: &Path, below: &str, text: &str) {
    let path = root.join(below);
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    fs::write(path, text).expect("written");
}

fn device(root: &Path, address: &str, class: &str, group: u32, driver: Option<&str>) {
    let folder = format!("sys/bus/pci/devices/{address}");
    file(root, &format!("{folder}/class"), class);
    file(root, &format!("{folder}/vendor"), "0x1b36");
    file(root, &format!("{folder}/device"), "0x0010");
    let link = |name: &str, target: String| {
        symlink(target, root.join(&folder).join(name)).expect("linked");
    };
    link("iommu_group", format!("../../../../kernel/iommu_groups/{group}"));
    link("iommu", "../../../virtual/iommu/dmar0".into());
    if let Some(driver) = driver {
        link("driver", format!("../../drivers/{driver}"));
    }
    let groups = format!("sys/kernel/iommu_groups/{group}");
    file(root, &format!("{groups}/devices/{address}"), "");
    file(root, &format!("{groups}/type"), "DMA-FQ");
    file(root, &format!("{groups}/reserved_regions"), "0xfee00000 0xfeefffff msi");
}

/// A machine with Intel's IOMMU, a device ready for user space, a disk, and two that share a group.
fn desktop(root: &Path) {
    device(root, "0000:01:00.0", "0x00ff00", 6, Some("vfio-pci"));
    device(root, "0000:03:00.0", "0x010802", 8, Some("nvme"));
    device(root, "0000:05:01.0", "0x020000", 9, Some("e1000e"));
    device(root, "0000:05:02.0", "0x040300", 9, None);
    file(root, "sys/class/iommu/dmar0/intel-iommu/cap", "d2008c222f0606");
    file(root, "dev/vfio/vfio", "");
    file(root, "dev/vfio/6", "");
    file(root, "proc/cmdline", "root=/dev/sda1 intel_iommu=on quiet");
    file(root, "proc/sys/kernel/osrelease", "6.12.0");
    file(root, "proc/self/limits", "Max locked memory  8388608  8388608  bytes");
    file(root, "proc/self/status", "VmLck:\t0 kB\nCapEff:\t0000000000000000");
    file(root, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0");
    file(root, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0");
}

const DESKTOP: &str = "\
Linux 6.12.0, CPU page 4 KiB
booted with: intel_iommu=on
IOMMUs: dmar0 (Intel VT-d, pages 4K 2M 1G); 3 groups
interfaces: VFIO can be opened, iommufd cannot be opened
locked memory: 8192 KiB, of which 0 KiB are used
huge pages: 0 of 0 pages of 2 MiB free

device         what                     driver     group   shared with    IOMMU   pages      opens with
---------------------------------------------------------------------------------------------------------------
0000:01:00.0   device 1b36:0010         vfio-pci       6   -              dmar0   4K 2M 1G   VFIO
0000:03:00.0   NVMe disk 1b36:0010      nvme           8   -              dmar0   4K 2M 1G   no: other driver
0000:05:01.0   network card 1b36:0010   e1000e         9   0000:05:02.0   dmar0   4K 2M 1G   no: other driver
0000:05:02.0   multimedia 1b36:0010     -              9   0000:05:01.0   dmar0   4K 2M 1G   no: no driver

reserved: 0xfee00000..=0xfeefffff (msi) in groups 6, 8, 9

What to do:
* iommufd cannot be used:
    /dev/iommu is not there: this kernel was built without CONFIG_IOMMUFD (Debian's are), or it is not loaded: `modprobe iommufd`. The VFIO backend needs neither
* 0000:03:00.0 is not for user space yet:
    0000:03:00.0 is in the hands of the driver nvme, not vfio-pci. As root:
      echo vfio-pci > /sys/bus/pci/devices/0000:03:00.0/driver_override
      echo 0000:03:00.0 > /sys/bus/pci/devices/0000:03:00.0/driver/unbind; echo 0000:03:00.0 > /sys/bus/pci/drivers_probe
* memory that devices may reach is limited: 8192 KiB, of which 0 KiB are used:
    raise RLIMIT_MEMLOCK to what you share and 64 MiB more: `ulimit -l`, /etc/security/limits.conf, or LimitMEMLOCK= in a systemd unit
* no huge page is free: large buffers are mapped in small pages:
    as root: echo 64 > /proc/sys/vm/nr_hugepages
";

#[test]
fn a_desktop() {
    let folder = tempfile::tempdir().expect("a folder");
    desktop(folder.path());
    let root = folder.path().to_str().expect("text");
    let (status, out, err) = granule(&["doctor", "--root", root]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert_eq!(out, DESKTOP);
}

#[test]
fn a_desktop_for_programs() {
    let folder = tempfile::tempdir().expect("a folder");
    desktop(folder.path());
    let root = folder.path().to_str().expect("text");
    let (status, out, _) = granule(&["doctor", "--json", "--root", root]);
    let found: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(status, 0);
    assert_eq!(
        found["iommus"][0]["page_sizes"],
        serde_json::json!([4096, 2_097_152, 1_073_741_824])
    );
    assert_eq!(found["devices"][0]["opens_with"], serde_json::json!(["vfio"]));
    assert_eq!(found["devices"][1]["obstacle"], "other_driver");
    assert_eq!(found["devices"][2]["shares_with"], serde_json::json!(["0000:05:02.0"]));
    assert_eq!(found["locked_memory"]["limit"], 8 << 20);
}

#[test]
fn a_machine_with_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (status, out, _) = granule(&["doctor", "--root", folder.path().to_str().expect("text")]);
    assert_eq!(status, 0);
    assert!(out.contains("no PCI device is visible here"), "{out}");
    assert!(out.contains("modprobe vfio-pci") && out.contains("CONFIG_IOMMUFD"), "{out}");
}

#[test]
fn live_devices_are_asked_for_rightly_or_refused() {
    let (status, _, err) = granule(&["share", "--live", "nvme0,0000:01:00.0"]);
    assert_eq!(status, 1);
    assert!(err.contains("`nvme0` is no PCI address"), "{err}");
    // No machine has this one.
    let (status, out, _) =
        granule(&["share", "--live", "ffff:ff:1f.7", "--seconds", "0", "--json"]);
    let refused: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((status, refused["error"]["kind"].as_str()), (1, Some("no_device")));
    for wrong in [
        &["share", "--live", "01:00.0", "--board", "x.dtb"][..],
        &["share", "--seconds", "1"],
        &["share", "--live", "01:00.0", "--backend", "uio"],
    ] {
        assert_eq!(granule(wrong).0, 2, "{wrong:?}");
    }
    let (status, _, err) =
        granule(&["share", "--live", "ffff:ff:1f.7", "--untrusted", "01:00.0", "--seconds", "0"]);
    assert_eq!(status, 1);
    assert!(err.contains("--untrusted names 01:00.0"), "{err}");
}
