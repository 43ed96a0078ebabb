//! `granule doctor`, with devices that can be opened and one that cannot.

use serde_json::Value;

use crate::{Failure, Guest, shell};

pub(super) fn examine(guest: &mut Guest) -> Result<(), Failure> {
    let pair = guest.machine.pair()?.map(Clone::clone);
    let text = shell::run("granule doctor")?;
    text.succeeds(&mut guest.report, "doctor works");
    let words = ["dmar0", &pair[0].address, &pair[1].address];
    text.prints(&mut guest.report, "doctor names the IOMMU and the devices", &words);

    let json = shell::run("granule doctor --json")?;
    json.succeeds(&mut guest.report, "doctor --json works");
    let report: Value = serde_json::from_str(&json.out)?;
    for pci in &pair {
        let devices = report["devices"].as_array().ok_or("no list of devices")?;
        let device = devices.iter().find(|device| device["address"] == pci.address.as_str());
        let device = device.ok_or("a device is missing")?;
        let group = device["group"].as_u64().map(|group| group.to_string());
        guest
            .report
            .check("its group is the kernel's", group == pci.group(), || device.to_string());
        let opens = device["opens_with"].as_array().is_some_and(|backends| {
            backends.iter().any(|backend| backend == guest.interface.as_str())
        });
        guest.report.check("it can be opened", opens, || device.to_string());
        let pages =
            device["page_sizes"].as_array().is_some_and(|sizes| sizes.contains(&4096.into()));
        guest.report.check("its page sizes have the smallest", pages, || device.to_string());
        let msi = device["reserved"]
            .as_array()
            .is_some_and(|regions| regions.iter().any(|region| region["first"] == 0xfee0_0000_u64));
        guest.report.check("its reserved regions have the one for MSI", msi, || device.to_string());
    }
    Ok(())
}
