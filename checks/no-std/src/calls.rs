//! Calls into the crates, each a numbered check.

use alloc::string::ToString;

use granule::addr::{AddrRange, Granule, PhysAddr};
use granule::mem::{FrameRequest, OwnedFrames, PerCpu};

use crate::machine::Machine;

/// The checks by number, from 1.
const CHECKS: &[fn() -> bool] =
    &[ranges_never_wrap, errors_print, frames_are_zeroed, one_value_a_cpu];

/// The number of the first check that fails.
pub(crate) fn first_failure() -> Option<u8> {
    let index = CHECKS.iter().position(|check| !check())?;
    Some(u8::try_from(index + 1).unwrap_or(u8::MAX))
}

fn ranges_never_wrap() -> bool {
    AddrRange::new(PhysAddr::new(u64::MAX), 1).is_ok()
        && AddrRange::new(PhysAddr::new(u64::MAX), 2).is_err()
}

/// Formatting goes through the allocator.
fn errors_print() -> bool {
    Granule::new(4097).is_err_and(|error| error.to_string().contains("0x1001"))
}

fn frames_are_zeroed() -> bool {
    let granule = Granule::K16;
    let request = FrameRequest::new(granule.size(), granule.size());
    let Ok(frames) = OwnedFrames::zeroed(&Machine, &request) else { return false };
    let words = granule.size() as usize / size_of::<u64>();
    // SAFETY: the pointer is valid for reads of the whole block, which is aligned and initialised.
    let words = unsafe { core::slice::from_raw_parts(frames.ptr().cast::<u64>(), words) };
    frames.start().is_aligned(granule) && words.iter().all(|word| *word == 0)
}

fn one_value_a_cpu() -> bool {
    let values = PerCpu::new(&Machine, || 7u32);
    values.len() == 1 && *values.local(&Machine) == 7
}
