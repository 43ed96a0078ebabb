//! What the RISC-V IOMMU Architecture Specification 1.0 says: registers, commands, device contexts
//! and fault records as plain values.

pub mod command;
pub mod context;
pub mod fault;
pub mod register;
