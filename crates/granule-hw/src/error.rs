//! Why a driver could not take a unit into service.
#![forbid(unsafe_code)]

use alloc::string::String;

use granule::mem::FrameError;

/// Why a driver could not be started, or a unit not be reset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HwError {
    /// No memory for a queue or a table of the unit.
    #[error("{unit}: no memory for {what}: {cause}")]
    Memory {
        /// The unit.
        unit: String,
        /// What the memory was for.
        what: &'static str,
        /// Why there is none.
        cause: FrameError,
    },
    /// The unit did not do something in time.
    #[error("{unit}: {what} did not complete in time; the unit is stuck, reset it")]
    Timeout {
        /// The unit.
        unit: String,
        /// What was waited for.
        what: &'static str,
    },
    /// The unit lacks something that the driver cannot do without.
    #[error("{unit} lacks {what} (its capability register reads {value:#x})")]
    Missing {
        /// The unit.
        unit: String,
        /// What is missing.
        what: &'static str,
        /// What the register that says so reads.
        value: u64,
    },
    /// The register block is smaller than the registers that the driver uses.
    #[error("{unit}: the register block has {len:#x} bytes, at least {need:#x} are needed")]
    Registers {
        /// The unit.
        unit: String,
        /// How large it is.
        len: usize,
        /// How large it must be.
        need: usize,
    },
    /// The device refused what it was told.
    #[error("{unit} refused {what} (status {status:#x})")]
    Refused {
        /// The unit.
        unit: String,
        /// What it refused.
        what: &'static str,
        /// What it answered.
        status: u32,
    },
}

impl HwError {
    /// Words why memory for `what` could not be had.
    pub(crate) fn no_memory(unit: &str, what: &'static str) -> impl Fn(FrameError) -> Self {
        move |cause| Self::Memory { unit: unit.into(), what, cause }
    }
}
