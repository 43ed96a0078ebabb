//! The doctor, and what refuses before the kernel is asked, on machines that are folders.

mod common;

use common::Machine;
use granule::dma::DeviceSpec;
use granule_linux::doctor::DeviceReport;
use granule_linux::{Backend, Bdf, Error, Host};

const EDU: u32 = 0x00ff_0000;
const NVME: u32 = 0x0001_0802;
const BRIDGE: u32 = 0x0006_0400;

fn refused(host: &Host, backend: Backend, device: &str) -> Error {
    let device: Bdf = device.parse().expect("an address");
    let opened = host.space(backend).device(device, DeviceSpec::new("device")).open();
    opened.expect_err("nothing can be opened here")
}

fn report<'r>(report: &'r granule_linux::doctor::Report, address: &str) -> &'r DeviceReport {
    report.devices.iter().find(|device| device.address == address).expect("listed")
}

/// Two devices alone in their groups, two that share one, a disk; VFIO as Debian has it.
fn desktop() -> Machine {
    let machine = Machine::new();
    let all = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:05:01.0", "0000:05:02.0"];
    for address in all {
        machine.device(address, if address == "0000:03:00.0" { NVME } else { EDU });
    }
    machine.device("0000:04:00.0", BRIDGE).driver("0000:04:00.0", "pcieport");
    machine.driver("0000:01:00.0", "vfio-pci").driver("0000:03:00.0", "nvme");
    machine.driver("0000:05:01.0", "vfio-pci").driver("0000:05:02.0", "snd_hda_intel");
    machine.group(6, &["0000:01:00.0"]).group(7, &["0000:02:00.0"]).group(8, &["0000:03:00.0"]);
    machine.group(9, &["0000:04:00.0", "0000:05:01.0", "0000:05:02.0"]);
    machine.intel(&all);
    machine.file("dev/vfio/vfio", "").file("dev/vfio/6", "");
    machine.file("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on quiet\n");
    machine.file("proc/self/limits", "Max locked memory         65536    65536    bytes\n");
    machine.file("proc/self/status", "VmLck:\t       4 kB\nCapEff:\t0000000000000000\n");
    machine
}

#[test]
fn a_machine_without_an_iommu_is_told_what_to_do() {
    let machine = Machine::new();
    machine.device("0000:00:02.0", NVME).driver("0000:00:02.0", "nvme");
    let found = machine.host().doctor();
    let device = report(&found, "0000:00:02.0");
    assert_eq!(device.obstacle.as_deref(), Some("no_iommu"));
    assert_eq!((device.class.as_str(), device.ids.as_str()), ("NVMe disk", "1234:11e8"));
    let advice: Vec<_> = found.advice.iter().map(|advice| advice.what.as_str()).collect();
    assert_eq!(
        advice,
        ["the kernel uses no IOMMU", "VFIO cannot be used", "iommufd cannot be used"]
    );
    assert!(found.advice[0].todo.contains("intel_iommu=on"));
    let error = refused(&machine.host(), Backend::Vfio, "0000:00:02.0");
    assert!(matches!(error, Error::NoIommu { .. }), "{error}");
}

#[test]
fn an_empty_machine_says_so() {
    let found = Machine::new().host().doctor();
    assert_eq!(found.advice[0].what, "no PCI device is visible here");
    let error = refused(&Machine::new().host(), Backend::Vfio, "0000:01:00.0");
    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
}

#[test]
fn a_desktop_is_described() {
    let found = desktop().host().doctor();
    assert_eq!(found.boot_options, ["intel_iommu=on"]);
    assert_eq!((found.groups, found.devices.len()), (4, 5), "bridges are left out");
    let ready = report(&found, "0000:01:00.0");
    assert_eq!(ready.opens_with, [Backend::Vfio]);
    assert_eq!((&ready.obstacle, &ready.reason), (&None, &None));
    assert_eq!(ready.page_sizes, Some(vec![1 << 12, 1 << 21, 1 << 30]));
    assert_eq!((ready.reserved[0].first, ready.reserved[0].kind.as_str()), (0xfee0_0000, "msi"));
    let shares = report(&found, "0000:05:01.0");
    assert_eq!(shares.shares_with, ["0000:05:02.0"]);
    assert_eq!(shares.obstacle.as_deref(), Some("group_not_viable"));
    assert_eq!(report(&found, "0000:02:00.0").obstacle.as_deref(), Some("no_driver"));
    assert_eq!(found.locked_memory.left(), Some(60 << 10));
    let limited = found.advice.iter().find(|advice| advice.what.contains("64 KiB, of which 4 KiB"));
    assert!(limited.is_some(), "{:?}", found.advice);
}

#[test]
fn refusals_name_the_culprit_and_the_remedy() {
    let machine = desktop();
    let host = machine.host();
    let words = refused(&host, Backend::Vfio, "0000:03:00.0").to_string();
    assert!(words.contains("in the hands of the driver nvme"), "{words}");
    assert!(words.contains("echo vfio-pci > /sys/bus/pci/devices/0000:03:00.0/driver_override"));
    assert!(words.contains("/driver/unbind; echo 0000:03:00.0 > /sys/bus/pci/drivers_probe"));
    let words = refused(&host, Backend::Vfio, "0000:02:00.0").to_string();
    assert!(words.contains("has no driver") && !words.contains("unbind"), "{words}");
    match refused(&host, Backend::Vfio, "0000:05:01.0") {
        Error::GroupNotViable { group: 9, others, .. } => {
            assert_eq!(others, [("0000:05:02.0".parse().expect("legal"), "snd_hda_intel".into())]);
        }
        other => panic!("{other}"),
    }
    let error = refused(&host, Backend::Vfio, "0000:04:00.0");
    assert!(matches!(error, Error::Bridge { .. }), "{error}");
    let error = refused(&host, Backend::Iommufd, "0000:01:00.0");
    assert!(matches!(error, Error::NoIommufd { .. }), "{error}");
    machine.file("dev/iommu", "");
    let error = refused(&host, Backend::Iommufd, "0000:01:00.0");
    assert!(matches!(error, Error::NoCdev { .. }), "{error}");
    let device: Bdf = "0000:01:00.0".parse().expect("legal");
    let spec = DeviceSpec { snoops: false, ..DeviceSpec::new("x") };
    let error = host.space(Backend::Vfio).device(device, spec).open().expect_err("refused");
    assert!(matches!(error, Error::NotSnooping { .. }), "{error}");
}

#[test]
fn before_the_module_is_loaded_that_is_what_is_missing() {
    let machine = Machine::new();
    machine.device("0000:01:00.0", EDU).group(6, &["0000:01:00.0"]).intel(&["0000:01:00.0"]);
    let error = refused(&machine.host(), Backend::Vfio, "0000:01:00.0");
    assert!(matches!(error, Error::NoVfio { .. }), "{error}");
    assert!(error.to_string().contains("modprobe vfio-pci"), "{error}");
}

#[test]
fn a_granule_that_linux_refuses_is_named() {
    let machine = Machine::new();
    machine.device("0000:00:03.0", EDU).file("sys/class/iommu/virtio0/x", "");
    let line = "4,77,12;virtio_iommu virtio0: granule 0x4000 larger than system page size 0x1000\n";
    machine.file("dev/kmsg", &format!("6,1,1;Linux version 6.12\n{line}"));
    let words = refused(&machine.host(), Backend::Vfio, "0000:00:03.0").to_string();
    assert!(words.contains("virtio0") && words.contains("granule 0x4000 larger"), "{words}");
    let found = machine.host().doctor();
    assert_eq!(found.log.len(), 1);
    assert!(found.advice.iter().any(|advice| advice.what.contains("larger than the CPU's page")));
}
