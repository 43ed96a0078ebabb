//! The drivers of the crate [`virtio_drivers`], unchanged, on memory that granule maps: behind an
//! IOMMU of any granule, or behind none.
//!
//! ```no_run
//! # use core::ptr::NonNull;
//! # fn f<T: virtio_drivers::transport::Transport>(device: granule::dma::Device, transport: T)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use granule_virtio::{AccessPlatform, Binding, GranuleHal, Slot};
//! use virtio_drivers::device::blk::VirtIOBlk;
//!
//! /// One type a device: the functions of `Hal` have no `self`.
//! struct Disk;
//! static DISK: Slot = Slot::new();
//!
//! // SAFETY: device registers are mapped one to one on this machine.
//! unsafe impl Binding for Disk {
//!     type Lock = granule::mem::SpinLock;
//!     fn slot() -> &'static Slot {
//!         &DISK
//!     }
//!     fn registers(address: usize, _: usize) -> NonNull<u8> {
//!         NonNull::new(core::ptr::with_exposed_provenance_mut(address)).expect("not address 0")
//!     }
//! }
//!
//! DISK.bind(device, 64 << 10)?;
//! let mut disk = VirtIOBlk::<GranuleHal<Disk>, _>::new(AccessPlatform::new(transport)?)?;
//! # Ok(())
//! # }
//! ```
//!
//! # When nothing can be mapped
//!
//! [`Hal::share`](virtio_drivers::Hal::share) cannot fail: it returns an address. Here it does the
//! first of these that works, and never panics:
//!
//! 1. It maps the buffer where it lies (or bounces it, by the rules of the device).
//! 2. It copies the buffer into the **reserve**, memory that [`Slot::bind`] has mapped for good.
//!    Drivers that wait for one request at a time never get further if the reserve holds their
//!    largest request.
//! 3. It answers with an address that leads nowhere ([`NOWHERE`]), which no IOMMU translates and no
//!    bus has memory at, and counts that ([`SlotStats::refused`]). The device fails the request, or
//!    stops; no memory is touched. A driver that waits for the answer may wait for ever.
//!
//! [`Hal::unshare`](virtio_drivers::Hal::unshare) cannot fail either. If an invalidation does not
//! complete, the device may still reach the buffer, which its owner takes back all the same: this is
//! counted ([`SlotStats::lost`]), and everything that is shared from then on leads nowhere. Look at
//! [`Slot::stats`] and reset the device.
//!
//! # The feature ACCESS_PLATFORM
//!
//! A virtio device uses the IOMMU only if its driver acknowledges feature bit 33, which the drivers of
//! `virtio_drivers` 0.11 do not. [`AccessPlatform`] wraps a transport and does, and refuses a device
//! that does not offer it: that one would take the addresses for physical ones.
#![no_std]

extern crate alloc;

mod hal;
mod reserve;
mod slot;
mod transport;

pub use hal::{Binding, GranuleHal};
pub use slot::{BindError, NOWHERE, Slot, SlotStats};
pub use transport::{AccessPlatform, NotOffered};
