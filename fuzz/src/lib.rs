//! What granule reads from the outside, fed with rubbish. Each module is a target: a function of bytes
//! that panics if a promise is broken.
//!
//! | target | reads | checks, besides that nothing panics, hangs or grows |
//! | --- | --- | --- |
//! | [`board`] | a device tree, as bytes | what a [`Board`](granule_board::Board) promises of itself; its tables and JSON |
//! | [`plan`] | a device tree, by construction, and options of `granule share` | what is planned is verified by DMA, or refused in words; nothing is left |
//! | [`trace`] | a trace, plain, gzip or zstd | events and lines add up |
//! | [`replay`] | a trace as text | it is performed; JSON and report of the result |
//! | [`walk`] | page tables in arbitrary memory | listing and translation agree; work is bounded |
//! | [`acpi`] | DMAR, IVRS, VIOT | answers lie in the table |
//! | [`virtio`] | what a virtio-iommu and its PCI function answer | the driver knows what is mapped |
//! | [`sizes`] | sizes, addresses, ranges, command lines | a second reading of each |
#![deny(unsafe_code)]

pub mod acpi;
pub mod board;
#[allow(unsafe_code)]
mod hasty;
#[cfg(feature = "command")]
pub mod plan;
#[cfg(feature = "command")]
pub mod replay;
#[cfg(feature = "command")]
pub mod sizes;
#[cfg(feature = "command")]
pub mod trace;
pub mod virtio;
pub mod walk;

/// Runs a target over the files that the command line names: what a fuzzer found, without a fuzzer.
///
/// # Panics
/// If the target does, or a file cannot be read.
pub fn replay_files(run: fn(&[u8])) {
    for path in std::env::args_os().skip(1).map(std::path::PathBuf::from) {
        println!("{}", path.display());
        run(&std::fs::read(&path).expect("a file"));
    }
}
