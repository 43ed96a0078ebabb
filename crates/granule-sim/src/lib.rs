//! A machine in memory, against which DMA code is proven.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`machine`] | the parts put together: start here |
//! | [`ram`] | RAM at its physical addresses, sparse, with dumps |
//! | [`frames`] | frames, fragmented on request; double frees and leaks are found |
//! | [`cache`], [`memory`] | masters that do not snoop |
//! | [`platform`] | [`granule::mem::Platform`] on all that |
//! | [`walk`] | page-table walkers, written from the specifications alone |
//! | [`iommu`] | IOMMUs that remember what they were not told to forget |
//! | [`mod@unit`] | the driver through which the core programs them |
//! | [`dart_regs`] | the registers of a DART, for drivers that program hardware |
//! | [`device`], [`hostile`] | bus masters, honest and not |
//! | [`faults`], [`clock`] | what fails, and when |
//!
//! Everything left to chance hangs on one seed: in a test with one thread, same seed, same run.
//!
//! ```
//! use granule::addr::{DmaAddr, PhysAddr, PhysRange};
//! use granule_sim::iommu::{IommuConfig, StreamState};
//! use granule_sim::machine::{DeviceSpec, Machine};
//! use granule_sim::walk::SimFormat;
//!
//! let machine = Machine::builder()
//!     .ram(PhysRange::new(PhysAddr::new(0x8_0000_0000), 8 << 30)?)
//!     .iommu(IommuConfig::new("dart", SimFormat::Dart1, 32))
//!     .device(DeviceSpec::behind("dcp", "dart", 0))
//!     .build()?;
//!
//! // One page by hand: root entry 0, leaf entry 1.
//! let (root, leaf, page) = (0x8_0010_0000, 0x8_0010_4000, 0x8_0020_0000_u64);
//! machine.ram().write_u64(PhysAddr::new(root), leaf | 1)?;
//! machine.ram().write_u64(PhysAddr::new(leaf + 8), page | 0x000f_ff00_0000_0001)?;
//! let iommu = machine.iommu("dart").expect("as built");
//! iommu.set_stream(
//!     0,
//!     StreamState::Translate { context: 1, roots: vec![PhysAddr::new(root)], input_bits: 32 },
//! )?;
//!
//! let device = machine.device("dcp").expect("as built");
//! device.write(DmaAddr::new(0x4000), b"frame")?;
//! let mut seen = [0; 5];
//! machine.ram().read(PhysAddr::new(page), &mut seen)?;
//! assert_eq!(&seen, b"frame");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Unsafe code: `ram/view.rs` (a second mapping of pages) and `platform.rs` (the implementation of
//! an unsafe trait), nowhere else.

pub mod cache;
pub mod clock;
pub mod dart_regs;
pub mod device;
pub mod faults;
pub mod frames;
pub mod hostile;
pub mod iommu;
pub mod machine;
pub mod memory;
pub mod platform;
pub mod ram;
pub mod unit;
pub mod walk;

/// The README's example, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
