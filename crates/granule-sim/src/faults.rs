//! Fault injection: which allocation and which invalidation fails.
//!
//! A test arms the plan, runs, and asks whether the fault fired; it loops over `k` until it does
//! not, and has then seen every place where the operation can fail:
//!
//! ```
//! use granule_sim::faults::{FaultPlan, Point};
//! let plan = FaultPlan::new();
//! let mut places = 0;
//! for k in 0.. {
//!     plan.clear();
//!     plan.fail_nth(Point::Frames, k);
//!     // The operation under test; here one that allocates three times.
//!     let failed = (0..3).any(|_| plan.frames_should_fail(4096));
//!     assert_eq!(failed, plan.fired() > 0);
//!     if plan.fired() == 0 {
//!         break;
//!     }
//!     places += 1;
//! }
//! assert_eq!(places, 3);
//! ```

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Point {
    /// An allocation of frames (tables are frames too; see [`FaultPlan::fail_sizes`]).
    Frames,
    /// An invalidation of an IOMMU's caches.
    Invalidation,
}

#[derive(Debug)]
struct Rule {
    point: Point,
    sizes: RangeInclusive<u64>,
    nth: u64,
    forever: bool,
    seen: u64,
}

/// What looks on, with the kind of event.
type Watch = Arc<dyn Fn(Point) + Send + Sync>;

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    watch: Option<Watch>,
    fired: u64,
    frames: u64,
    invalidations: u64,
}

/// A plan that every part of a machine asks; clones are the same plan.
#[derive(Clone, Default)]
pub struct FaultPlan {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("FaultPlan").field("rules", &state.rules).finish_non_exhaustive()
    }
}

impl FaultPlan {
    /// A plan under which nothing fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `watch` at every event from now on, before it takes place: what a device may do in the
    /// middle of an operation, a test does here. Until [`clear`](Self::clear).
    pub fn watch(&self, watch: impl Fn(Point) + Send + Sync + 'static) {
        self.state.lock().watch = Some(Arc::new(watch));
    }

    fn show(&self, point: Point) {
        // Not under the lock: who watches may cause events.
        let watch = self.state.lock().watch.clone();
        if let Some(watch) = watch {
            watch(point);
        }
    }

    /// Forgets all rules and counts, and who watches.
    pub fn clear(&self) {
        *self.state.lock() = State::default();
    }

    /// The `nth` event (from 0, counted from now) at `point` fails, once.
    pub fn fail_nth(&self, point: Point, nth: u64) {
        self.arm(point, 0..=u64::MAX, nth, false);
    }

    /// The `nth` event (from 0, counted from now) at `point` fails, and all after it.
    pub fn fail_from(&self, point: Point, nth: u64) {
        self.arm(point, 0..=u64::MAX, nth, true);
    }

    /// The `nth` allocation (from 0, counted from now) of a size in `sizes` fails, once.
    pub fn fail_sizes(&self, sizes: RangeInclusive<u64>, nth: u64) {
        self.arm(Point::Frames, sizes, nth, false);
    }

    fn arm(&self, point: Point, sizes: RangeInclusive<u64>, nth: u64, forever: bool) {
        self.state.lock().rules.push(Rule { point, sizes, nth, forever, seen: 0 });
    }

    /// How many faults fired since the last [`clear`](Self::clear).
    pub fn fired(&self) -> u64 {
        self.state.lock().fired
    }

    /// How many events of this kind there were since the last [`clear`](Self::clear).
    pub fn seen(&self, point: Point) -> u64 {
        let state = self.state.lock();
        match point {
            Point::Frames => state.frames,
            Point::Invalidation => state.invalidations,
        }
    }

    /// Counts an allocation of `size` bytes and says whether it must fail. For allocators.
    pub fn frames_should_fail(&self, size: u64) -> bool {
        self.show(Point::Frames);
        let mut state = self.state.lock();
        state.frames += 1;
        state.decide(Point::Frames, size)
    }

    /// Counts an invalidation and says whether it must fail. For IOMMUs.
    pub fn invalidation_should_fail(&self) -> bool {
        self.show(Point::Invalidation);
        let mut state = self.state.lock();
        state.invalidations += 1;
        state.decide(Point::Invalidation, 0)
    }
}

impl State {
    fn decide(&mut self, point: Point, size: u64) -> bool {
        let mut fails = false;
        for rule in &mut self.rules {
            if rule.point == point && rule.sizes.contains(&size) {
                fails |= rule.seen == rule.nth || (rule.forever && rule.seen > rule.nth);
                rule.seen += 1;
            }
        }
        self.fired += u64::from(fails);
        fails
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_what_matches_them() {
        let plan = FaultPlan::new();
        plan.fail_sizes(0x4000..=0x4000, 1);
        let sizes = [0x4000, 0x1000, 0x4000, 0x4000];
        let failed: Vec<_> = sizes.into_iter().map(|size| plan.frames_should_fail(size)).collect();
        assert_eq!(failed, [false, false, true, false]);
        assert_eq!((plan.fired(), plan.seen(Point::Frames)), (1, 4));
    }

    #[test]
    fn some_faults_last() {
        let plan = FaultPlan::new();
        plan.fail_from(Point::Invalidation, 1);
        assert!(!plan.invalidation_should_fail());
        assert!(plan.invalidation_should_fail() && plan.invalidation_should_fail());
        assert!(!plan.frames_should_fail(1));
        plan.clear();
        assert!(!plan.invalidation_should_fail());
        assert_eq!(plan.fired(), 0);
    }

    #[test]
    fn who_watches_sees_every_event_until_the_plan_is_cleared() {
        let (plan, seen) = (FaultPlan::new(), Arc::new(Mutex::new(Vec::new())));
        let (inner, log) = (plan.clone(), seen.clone());
        plan.watch(move |point| log.lock().push((point, inner.seen(point))));
        plan.frames_should_fail(1);
        plan.invalidation_should_fail();
        plan.frames_should_fail(1);
        plan.clear();
        plan.frames_should_fail(1);
        let expected = [(Point::Frames, 0), (Point::Invalidation, 0), (Point::Frames, 1)];
        assert_eq!(*seen.lock(), expected);
    }
}
