//! How things hang together, drawn: not to scale, every name in its place.
//!
//! | picture | shows |
//! | --- | --- |
//! | [`Spaces`] | a buffer in physical memory and in the address space of each device |
//! | [`Topology`] | a board's devices, the IOMMUs that they are behind, memory |
//!
//! Each is drawn in two shapes, since what fits a desk does not fit a phone.

mod spaces;
mod topology;

pub use spaces::{Block, Memory, Space, Spaces};
pub use topology::{Link, Node, Topology, Way};

/// What a picture is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A desk: 960 units wide.
    Wide,
    /// A phone: 360 units wide.
    Narrow,
}

impl Shape {
    /// How wide the picture is.
    pub fn width(self) -> f64 {
        match self {
            Self::Wide => 960.0,
            Self::Narrow => 360.0,
        }
    }
}
