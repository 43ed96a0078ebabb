//! DMA for drivers in user space on Linux: granule's DMA API, and one buffer for several devices, over
//! VFIO (`/dev/vfio`) and over iommufd (`/dev/iommu`).
//!
//! ```no_run
//! use granule::addr::{Access, Direction};
//! use granule::dma::DeviceSpec;
//! use granule::share::Plan;
//! use granule_linux::{Backend, Host};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // An address space with a disk in it, and another one with a network card.
//!     let host = Host::new();
//!     let disk = host.space(Backend::Vfio);
//!     let disk = disk.device("0000:01:00.0".parse()?, DeviceSpec::new("disk")).open()?;
//!     let card = host.space(Backend::Vfio);
//!     let card = card.device("0000:02:00.0".parse()?, DeviceSpec::new("card")).open()?;
//!
//!     // A buffer that both see as one contiguous range each.
//!     let plan = Plan::new(8 << 20).device(disk.dma(), Access::all()).device(card.dma(), Access::READ);
//!     let shared = plan.solve()?.allocate()?;
//!     for range in shared.ranges() {
//!         println!("{} sees it at {}", range.device().name(), range.address());
//!     }
//!
//!     // A queue in coherent memory, its address in a register, and off it goes.
//!     let queue = disk.dma().alloc_coherent(4096)?;
//!     let registers = disk.pci().bar(0)?;
//!     registers.write::<u64>(0x28, queue.address().raw())?;
//!     disk.pci().enable_bus_mastering()?;
//!
//!     // Any buffer: the mapping owns it, and gives it back when the device has lost it.
//!     let mapping = disk.dma().map(vec![0u8; 512], Direction::FromDevice)?;
//!     registers.write::<u64>(0x1000, mapping.address().raw())?;
//!     println!("{:?}", mapping.unmap()?);
//!     Ok(())
//! }
//! ```
//!
//! What stands in the way is refused in words, with what to do about it ([`Error`]);
//! [`Host::doctor`] looks at all of it at once.
//!
//! # What is so on Linux
//!
//! * The kernel finds and pins pages itself, so a "physical address" of granule is here an address of
//!   this process ([`UserMemory`]), and any alignment can be had. Pages in a report are those that
//!   surely are behind a mapping: huge ones where memory came from them, else the CPU's.
//! * An IOMMU whose granule is larger than the CPU's page cannot be expressed and is refused: that case
//!   is what granule serves below an operating system.
//! * Devices of one IOMMU group are in one address space. [`Error::Group`] names them.
//! * A container counts mappings (65,535 unless changed); [`AddressSpace::mappings_left`] says how many
//!   are left. Lists are joined to as few as their memory allows.
//! * What is pinned counts against RLIMIT_MEMLOCK ([`LockedMemory`]): once for each container of VFIO,
//!   once in all for the address spaces of iommufd, which share the pages by `IOMMU_IOAS_COPY`.
//! * Bus mastering is off until [`Pci::enable_bus_mastering`], and off for good when a device leaves its
//!   address space.
//!
//! | module or type | subject |
//! | --- | --- |
//! | [`Host`], [`Space`], [`Device`] | opening |
//! | [`Pci`], [`Bar`] | configuration space, registers |
//! | [`AddressSpace`] | the kernel's address space as a [`granule::domain::Translation`] |
//! | [`UserMemory`] | this process's memory as a [`granule::mem::Platform`] |
//! | [`doctor`] | what a machine offers |
#![cfg(target_os = "linux")]

mod address;
mod bar;
mod checks;
pub mod doctor;
mod error;
mod extents;
mod host;
mod ioctl;
mod iommufd;
mod kernel;
mod limits;
mod memory;
mod open;
mod pci;
mod space;
mod sysfs;
mod vfio;

pub use address::Bdf;
pub use bar::{Bar, Register};
pub use error::Error;
pub use host::{Backend, Device, DeviceBuilder, Host, Space};
pub use limits::LockedMemory;
pub use memory::UserMemory;
pub use pci::Pci;
pub use space::AddressSpace;
pub use sysfs::ReservedRegion;
pub use vfio_ioctls;
