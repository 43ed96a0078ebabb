//! The kit that the tests of the laws share: machines over format × granule × CPU page, buffers in
//! simulated memory, and checks by an independent walker and by hostile devices.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`mod@bench`] | a machine with domains and devices on it |
//! | [`buffer`] | buffers of simulated memory that know their bytes |
//! | [`check`] | what a table says, what a device reaches, what is counted |
//! | [`effort`] | how much a run tries |
//! | [`model`] | a domain beside a brute-force map of its pages |
//! | [`program`] | random programs of maps and unmaps |
//! | [`threads`] | real threads on one device, with a hostile one beside them |
//!
//! Unsafe code: `buffer.rs` (a buffer type of its own) and `model.rs` (mappings by hand), nowhere else.

pub mod bench;
pub mod buffer;
pub mod check;
pub mod effort;
pub mod model;
pub mod program;
pub mod threads;
