//! Runs the command, and writes small device trees for it.
#![allow(dead_code)] // Every test crate uses its own part of this.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use vm_fdt::{Error, FdtWriter};

/// Runs `granule` in `folder`.
pub(crate) fn granule(folder: &Path, args: &[&str]) -> Output {
    let command =
        Command::new(env!("CARGO_BIN_EXE_granule")).current_dir(folder).args(args).output();
    command.expect("the command was built")
}

/// Runs it and reads the JSON on its standard output; the exit status has to be as said.
pub(crate) fn json(folder: &Path, status: i32, args: &[&str]) -> Value {
    let output = granule(folder, args);
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {text}{error}");
    assert_eq!(error, "", "{args:?}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// The number behind a JSON string like "0x4000".
pub(crate) fn address(value: &Value) -> u64 {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    u64::from_str_radix(digits.expect("an address"), 16).expect("hexadecimal")
}

/// An IOMMU node: address, compatible, whether it is enabled, and `apple,dma-range`.
pub(crate) type IommuNode = (u64, &'static str, bool, Option<(u64, u64)>);
/// A device node: name, the IOMMUs that it is behind (by index; one too high is no IOMMU).
pub(crate) type DeviceNode = (&'static str, &'static [u32]);

/// A tree with 256 MiB of RAM (or none), these IOMMUs and these devices.
pub(crate) fn tree(
    memory: bool,
    iommus: &[IommuNode],
    devices: &[DeviceNode],
) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("model", "test board")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    if memory {
        let node = fdt.begin_node("memory@80000000")?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[0x8000_0000, 0x1000_0000])?;
        fdt.end_node(node)?;
    }
    for (index, (at, compatible, enabled, window)) in iommus.iter().enumerate() {
        let node = fdt.begin_node(&format!("iommu@{at:x}"))?;
        fdt.property_string("compatible", compatible)?;
        fdt.property_array_u64("reg", &[*at, 0x1000])?;
        fdt.property_u32("#iommu-cells", 1)?;
        fdt.property_u32("phandle", index as u32 + 1)?;
        if !enabled {
            fdt.property_string("status", "disabled")?;
        }
        if let Some((start, len)) = window {
            fdt.property_array_u64("apple,dma-range", &[*start, *len])?;
        }
        fdt.end_node(node)?;
    }
    for (name, behind) in devices {
        let node = fdt.begin_node(name)?;
        fdt.property_string("compatible", "test,device")?;
        if behind.is_empty() {
            fdt.property_null("dma-coherent")?;
        } else {
            let cells: Vec<u32> = behind.iter().flat_map(|index| [index + 1, 0]).collect();
            fdt.property_array_u32("iommus", &cells)?;
        }
        if name.starts_with("off") {
            fdt.property_string("status", "disabled")?;
        }
        fdt.end_node(node)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}
