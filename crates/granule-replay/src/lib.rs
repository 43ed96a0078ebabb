//! Replays a recorded DMA trace.

#![deny(unsafe_code)]

mod error;
pub mod reader;
pub mod record;

pub use error::ReplayError;
