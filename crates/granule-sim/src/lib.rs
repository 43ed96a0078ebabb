//! A machine in memory.
pub mod walk;
pub mod ram;
pub mod cache;
pub mod clock;
pub mod faults;
pub mod memory;
pub mod frames;
pub mod platform;
pub mod iommu;
