//! The machine's clock: set by hand, so that timing decides no test, or the host's.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A clock in nanoseconds; clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Manual(Arc<AtomicU64>),
    Real(Instant),
}

impl Clock {
    /// A clock that stands at 0 and moves only when told.
    pub fn manual() -> Self {
        Self { kind: Kind::Manual(Arc::default()) }
    }

    /// The host's monotonic clock, from now on.
    pub fn real() -> Self {
        Self { kind: Kind::Real(Instant::now()) }
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        match &self.kind {
            Kind::Manual(now) => now.load(Ordering::Acquire),
            Kind::Real(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Sets a manual clock to `nanos` since the start; never back, so that it stays monotonic. The
    /// host's clock is left alone.
    pub fn set(&self, nanos: u64) {
        if let Kind::Manual(now) = &self.kind {
            now.fetch_max(nanos, Ordering::AcqRel);
        }
    }

    /// Lets time pass: a manual clock is moved, with the host's the thread sleeps.
    pub fn pass(&self, time: Duration) {
        match &self.kind {
            Kind::Manual(now) => {
                let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                let add = |at: u64| Some(at.saturating_add(nanos));
                let _ = now.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
            }
            Kind::Real(_) if time.is_zero() => {}
            Kind::Real(_) => std::thread::sleep(time),
        }
    }

    /// One turn of a waiting loop: a microsecond of a manual clock, so that a time-out comes without
    /// anybody's help; with the host's a yield.
    pub fn relax(&self) {
        if matches!(self.kind, Kind::Manual(_)) {
            self.pass(Duration::from_micros(1));
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_when_told() {
        let clock = Clock::manual();
        let same = clock.clone();
        assert_eq!(clock.now(), 0);
        same.pass(Duration::from_millis(3));
        clock.relax();
        assert_eq!(same.now(), 3_001_000);
        clock.set(5);
        assert_eq!(clock.now(), 3_001_000);
        clock.set(4_000_000);
        assert_eq!(clock.now(), 4_000_000);
        clock.pass(Duration::MAX);
        assert_eq!(clock.now(), u64::MAX);
    }

    #[test]
    fn the_real_clock_never_goes_back() {
        let clock = Clock::real();
        let before = clock.now();
        clock.pass(Duration::from_micros(1));
        assert!(clock.now() > before);
    }
}
