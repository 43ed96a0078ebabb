//! Which IOMMUs a machine has, from ACPI: DMAR (Intel), IVRS (AMD), VIOT (virtio).
//!
//! The tables are taken as bytes, from the signature to the length in the header; they need no
//! alignment. Nothing that they say is trusted: what is cut off or unknown is skipped, and structures
//! are read as far as they go. The crates that read ACPI in `no_std` (`acpi`, `acpi_tables`) know the
//! tables' names but not what is in these three.

pub mod dmar;
pub mod ivrs;
mod table;
pub mod viot;

pub use table::AcpiError;

/// Who may use IOVA as firmware had it mapped: a range of memory, and the functions that access it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedMemory {
    /// The range, by physical address, which is its IOVA too.
    pub range: granule::addr::PhysRange,
    /// What the functions do there.
    pub access: granule::addr::Access,
}

impl ReservedMemory {
    /// The range as part of a domain: mapped one to one for its life.
    ///
    /// # Safety
    /// Firmware told the truth: the range is memory that the domain's devices may access.
    pub unsafe fn mapped(&self) -> Option<granule::domain::Reserved> {
        use granule::addr::{Attributes, Iova, IovaRange};
        let iova = Iova::new(self.range.start().raw());
        let range = IovaRange::new(iova, self.range.len()).ok()?;
        let attrs = Attributes::memory(self.access);
        // SAFETY: the caller's promise.
        Some(unsafe { granule::domain::Reserved::mapped(range, self.range.start(), attrs) })
    }
}
