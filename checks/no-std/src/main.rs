//! Links the `no_std` crates without std, and calls them.
//!
//! If one of them linked std, this would not build: std brings a panic handler, and so does this
//! program. On Linux it also runs, without a C library; its exit code is the number of the first
//! check in [`calls`] that failed, or 0. On bare metal it only has to link.
#![no_std]
#![no_main]

extern crate alloc;
extern crate granule as _;
extern crate granule_board as _;
extern crate granule_hw as _;
extern crate granule_virtio as _;

mod calls;
mod machine;
mod runtime;

/// Where [`runtime`] enters.
extern "C" fn main() -> ! {
    let failed = calls::first_failure().unwrap_or(0);
    runtime::exit(failed)
}
