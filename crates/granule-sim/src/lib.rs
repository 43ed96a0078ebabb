//! A machine in memory.
pub mod walk;
pub mod ram;
