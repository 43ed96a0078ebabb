//! DMA mapping and IOMMUs, from bare metal to user space.
//!
//! The layers, each importing only from those below it, each useful alone:
//!
//! ```text
//! share      several devices, one buffer: constraints, plan, Shared
//! dma        the DMA API for one device
//! bounce     aligned bounce pool        domain   IOVA space + translation + invalidation policy
//! iova       IOVA allocator             table    page tables: one radix engine, many formats
//! mem        Platform: what a port implements
//! addr       addresses, granules, page sizes, ranges, segments
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod addr;
pub mod bounce;
pub mod dma;
pub mod domain;
#[cfg(test)]
mod effort;
pub mod iova;
pub mod mem;
pub mod share;
pub mod table;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
