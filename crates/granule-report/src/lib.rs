//! Pictures and pages for people: what `granule replay`, `share` and `board` draw.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`canvas`] | an SVG picture in the making, and the look of all of them |
//! | [`chart`] | lines, bars, panels of bars, heat maps |
//! | [`scheme`] | how things hang together: address spaces beside memory, a board's topology |
//! | [`page`] | one HTML page that needs nothing else |
//! | [`table`] | its tables |
//! | [`units`] | numbers as people read them |
//!
//! Everything is a string made here, without a library, a script or a font of its own: it will still
//! draw in ten years. Names come from traces and device trees and may hold anything; they are escaped
//! wherever they enter.
//!
//! ```
//! use granule_report::chart::{Panel, Panels};
//! use granule_report::{page::Page, units::Unit};
//!
//! let picture = Panels {
//!     label: "Bytes that two granules expose".into(),
//!     names: vec!["4 KiB".into(), "64 KiB".into()],
//!     panels: vec![Panel { title: "Exposed".into(), unit: Unit::Bytes, values: vec![3.0, 51.0] }],
//! };
//! let mut page = Page::new("Comparison", "a trace");
//! page.figure("Granules", "side by side", &picture.svg());
//! assert!(page.finish().starts_with("<!DOCTYPE html>"));
//! ```

#![forbid(unsafe_code)]

pub mod canvas;
pub mod chart;
pub mod page;
pub mod scheme;
pub mod table;
pub mod units;
