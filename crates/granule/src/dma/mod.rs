//! The DMA API for one device.
//!
//! | type | Linux | what it is |
//! | --- | --- | --- |
//! | [`Device`] | `struct device` | limits and a route; made by [`Domain::attach`](crate::domain::Domain::attach) or [`Device::direct`] |
//! | [`Mapping`] | `dma_map_single` | a buffer that the device has |
//! | [`ListMapping`] | `dma_map_sg` | many buffers, as few segments as possible |
//! | [`Coherent`] | `dma_alloc_coherent`, `dma_alloc_noncontiguous` | memory that both sides see |
//! | [`CoherentPool`] | `dma_pool` | small coherent objects |
//! | [`Reservation`] | `dma_iova_try_alloc`, `dma_iova_link` | pieces linked one by one |
//! | [`ResourceMapping`] | `dma_map_resource` | another device's registers |
//!
//! A device holds one trait object; below that call everything is monomorphic. Guards and devices
//! carry no platform parameter.
//!
//! # What a guard proves
//!
//! A guard owns its buffer as raw words. The buffer comes back when the device has lost it, after a
//! completed invalidation, or never: dropping a guard unmaps first, forgetting it leaks, and an
//! invalidation that fails leaks too. No path leads from a device that can still reach memory to
//! that memory being reused. The compiler checks a part of that: see [`proofs`].

mod blocks;
mod buffer;
mod coherent;
mod cpu;
mod debug;
mod device;
mod direct;
mod error;
mod layout;
mod list;
mod mapping;
mod ops;
mod pool;
pub mod proofs;
mod report;
mod reservation;
mod resource;
mod route;
mod runs;
mod spec;
mod translated;
mod window;

pub use buffer::{DmaBuffer, DmaBufferMut, ForeignMemory, Memory, Piece, Plain, Words};
pub use coherent::Coherent;
pub use cpu::CpuAccess;
pub use device::{Device, DeviceRef};
pub use error::{AttachError, BounceReason, DetachError, DmaError, TrustReason};
pub use list::{ListAccess, ListMapping, ScatterList};
pub use mapping::{Mapping, Pending, Refused};
pub use pool::{CoherentPool, PoolObject};
pub use report::RouteReport;
pub use reservation::Reservation;
pub use resource::ResourceMapping;
pub use spec::{DeviceSpec, MapFlags};
pub use window::BusWindow;

pub(crate) use blocks::{BlockRequest, Blocks};
pub(crate) use layout::crosses;
pub(crate) use ops::{BlockPlacement, Demands, FrameSource, Live, Side};
