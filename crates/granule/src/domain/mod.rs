//! Domains: IOVA space, translation and the rule for when memory may be reused.
//!
//! | file | subject |
//! | --- | --- |
//! | [`Unit`] | what a driver of one IOMMU implements |
//! | [`Iommu`] | a unit and who is attached to it: groups stay together |
//! | [`Translation`] | what a domain needs: map, unmap, invalidate |
//! | [`Paged`] | a translation of our own page table and units |
//! | [`Mirror`] | several translations kept in step |
//! | [`MappingRecord`] | what a backend without tables of ours has mapped |
//! | [`Domain`] | an IOVA space whose addresses granule hands out |
//! | [`Unmanaged`] | an IOVA space whose owner places everything |

mod attach;
mod config;
mod counters;
mod error;
mod fits;
mod iommu;
mod joined;
mod mapping;
mod mirror;
#[cfg(test)]
mod model;
mod paged;
mod quarantine;
mod record;
mod space;
mod translation;
mod unit;
mod unmanaged;
mod unmapping;

pub use attach::StreamError;
pub use config::{DomainConfig, InvalidationPolicy, Reserved, ReservedUse};
pub use counters::{Footprint, Stats};
pub use error::{DomainError, TranslationError};
pub use iommu::{Blocked, Iommu};
pub use joined::map_joined;
pub use mirror::Mirror;
pub use paged::Paged;
pub use record::{MappingRecord, RecordedMapping};
pub use space::{Domain, DomainStats, Mapped, Placement, UnmapError};
pub use translation::{Attached, Geometry, Stream, Translation, UnitReport};
pub use unit::{Invalidation, StreamId, Unit, UnitError, UnitInfo};
pub use unmanaged::{Unmanaged, UnmanagedConfig};

pub(crate) use counters::{Account, Counters, Under};
pub(crate) use quarantine::{Release, Ticket};
