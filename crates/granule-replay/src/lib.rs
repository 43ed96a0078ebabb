//! Replays a recorded DMA trace through granule, and says what it cost and exposed.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`reader`] | a streaming reader of ftrace text |
//! | [`replay()`] | performs the trace on the simulator, through the real layers |
//! | [`results`] | what was measured, serialisable |
//! | [`report`] | one self-contained HTML page of it |
//! | [`record`] | the steps that record such a trace |

#![deny(unsafe_code)]

mod engine;
mod error;
mod findings;
mod hist;
mod join;
mod options;
pub mod reader;
pub mod record;
pub mod report;
pub mod results;

pub use engine::{Column, IovaMap, Series, replay};
pub use error::ReplayError;
pub use findings::{Finding, FindingKind, Findings};
pub use hist::Histogram;
pub use options::{Invalidate, OnProgress, Options, Progress, Untrusted, granule_of};
pub use reader::Input;
pub use results::Results;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
