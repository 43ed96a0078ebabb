//! Bounded waits for hardware: by the platform's clock, or by turns where there is none.
#![forbid(unsafe_code)]

use granule::mem::Platform;

/// How long a unit may take to answer, in nanoseconds: one second, which is what Linux gives a VT-d
/// or an SMMU queue before it reports it as hung.
pub const LIMIT_NS: u64 = 1_000_000_000;

/// How many turns a wait takes on a platform whose clock stands still.
pub const LIMIT_TURNS: u64 = 20_000_000;

/// Hardware did not answer within the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hardware did not answer in time")]
pub struct TimedOut;

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Nanoseconds of [`Platform::now`].
    pub nanoseconds: u64,
    /// Turns, which count only while the clock has not moved at all.
    pub turns: u64,
}

impl Default for Limit {
    fn default() -> Self {
        Self { nanoseconds: LIMIT_NS, turns: LIMIT_TURNS }
    }
}

/// Asks `ready` until it answers, with [`Platform::relax`] between the turns.
///
/// # Errors
/// [`TimedOut`] when the limit has passed; `ready` is asked once more after that, so that a CPU that
/// was away for long does not blame the hardware.
pub fn wait_for<P: Platform, T>(
    platform: &P,
    limit: Limit,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    let start = platform.now();
    let mut turns = 0u64;
    loop {
        if let Some(answer) = ready() {
            return Ok(answer);
        }
        turns += 1;
        let passed = platform.now().saturating_sub(start);
        let over = if passed == 0 { turns >= limit.turns } else { passed >= limit.nanoseconds };
        if over {
            return ready().ok_or(TimedOut);
        }
        platform.relax();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Clocked, machine};

    #[test]
    fn a_clock_bounds_the_wait() {
        let platform = machine().platform().clone();
        let limit = Limit { nanoseconds: 50_000, turns: 2 };
        let mut turns = 0;
        let late = wait_for(&platform, limit, || {
            turns += 1;
            None::<()>
        });
        // One turn is a microsecond here; the last question comes after the limit.
        assert_eq!((late, turns), (Err(TimedOut), 52));
        let mut turns = 0;
        let answered = wait_for(&platform, limit, || {
            turns += 1;
            (turns == 52).then_some(7)
        });
        assert_eq!(answered, Ok(7), "answered at the last moment");
    }

    #[test]
    fn turns_bound_the_wait_where_the_clock_stands() {
        let limit = Limit { nanoseconds: 1, turns: 100 };
        let mut turns = 0;
        let late = wait_for(&Clocked::still(&machine()), limit, || {
            turns += 1;
            None::<()>
        });
        assert_eq!((late, turns), (Err(TimedOut), 101));
    }
}
