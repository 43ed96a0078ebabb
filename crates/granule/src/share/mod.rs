//! One buffer for several devices, contiguous for each: the helper that the thread wished for.
//!
//! ```text
//!   demands of each device ──union──► constraints ──► blocks aligned to the largest granule
//!                                                        │
//!            one contiguous range a device, by type  ◄──map each block list in each domain
//! ```
//!
//! The function that was meant for this, `dma_get_sgtable` followed by `dma_map_sg`, is right only by
//! luck: the first buffer need not be aligned to the second device's granule. Here all devices are
//! known before memory is allocated. [`Shared::attach`] serves the late one, and refuses in words if
//! the memory does not suit it.

mod address;
mod constraints;
mod error;
mod plan;
mod shared;
mod view;

pub use constraints::{Constraints, Windows};
pub use error::ShareError;
pub use plan::{Party, Plan, Solved};
pub use shared::Shared;
pub use view::{AddressGrant, Contiguous, Key};
