//! What Arm IHI 0070 (SMMUv3) says: registers, entries, commands and events as plain values.

pub mod command;
pub mod entry;
pub mod event;
pub mod register;
