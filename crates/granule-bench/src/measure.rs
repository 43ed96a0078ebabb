//! Samples: how a workload is timed, and what of it becomes a row.

use std::time::{Duration, Instant};

use crate::report::{Report, Row};

/// What one row was measured as, in nanoseconds an operation.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The best of all.
    pub min: f64,
    /// The middle one.
    pub median: f64,
}

impl Sample {
    /// Of these figures.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len() / 2) }
    }
}

/// The run: what is wanted, and what was found so far.
#[derive(Debug)]
pub struct Bench {
    /// Only rows whose names begin so.
    pub only: Option<String>,
    /// Fewer samples.
    pub quick: bool,
    /// What was found.
    pub report: Report,
    clock: f64,
}

impl Bench {
    /// Nothing measured yet.
    pub fn new(only: Option<String>, quick: bool) -> Self {
        Self { only, quick, report: Report::default(), clock: clock_cost() }
    }

    /// Whether a row of this name, or one whose name begins so, is wanted.
    pub fn wants(&self, name: &str) -> bool {
        let Some(only) = &self.only else { return true };
        name.starts_with(only.as_str()) || only.starts_with(name)
    }

    /// How many samples to take of a workload.
    pub fn samples(&self) -> usize {
        if self.quick { 5 } else { 31 }
    }

    /// What reading the clock costs, in nanoseconds.
    pub fn clock(&self) -> f64 {
        self.clock
    }

    /// Enters a row of ours.
    pub fn row(&mut self, name: &str, sample: Sample) {
        self.enter(Row::new("granule", name, sample));
    }

    /// Enters a row.
    pub fn enter(&mut self, row: Row) {
        eprintln!("{row}");
        self.report.rows.push(row);
    }

    /// Times `work`, which does `ops` operations, and enters the row of `by`.
    pub fn time(&mut self, by: &str, name: &str, ops: usize, mut work: impl FnMut()) {
        if !self.wants(name) {
            return;
        }
        work();
        let times = (0..self.samples()).map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed().as_nanos() as f64 / ops as f64
        });
        let sample = Sample::of(times.collect());
        self.enter(Row::new(by, name, sample));
    }

    /// Times `work` of as many operations as fit some milliseconds, for a workload whose speed is
    /// not known beforehand. Gives up sampling after three seconds.
    pub fn time_auto(&mut self, by: &str, name: &str, mut work: impl FnMut(usize)) {
        if !self.wants(name) {
            return;
        }
        let begin = Instant::now();
        work(64);
        let each = (begin.elapsed().as_nanos() as f64 / 64.0).max(1.0);
        let ops = ((4e6 / each) as usize).clamp(64, 200_000);
        work(ops);
        let all = Instant::now();
        let cap = Duration::from_secs(if self.quick { 1 } else { 3 });
        let mut times = Vec::new();
        while times.len() < self.samples() && (times.len() < 3 || all.elapsed() < cap) {
            let begin = Instant::now();
            work(ops);
            times.push(begin.elapsed().as_nanos() as f64 / ops as f64);
        }
        self.enter(Row::new(by, name, Sample::of(times)));
    }
}

/// The least time between two readings of the clock.
fn clock_cost() -> f64 {
    let pair = || {
        let begin = Instant::now();
        begin.elapsed().as_nanos() as f64
    };
    (0..10_000).map(|_| pair()).fold(f64::MAX, f64::min)
}

/// Ties this thread to a CPU, if the machine has it and the system can.
pub fn pin(cpu: usize) {
    crate::platform::run_on(cpu);
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

/// The generator of the peers' benchmarks, so that all see the same sequences.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    #[inline(always)]
    #[allow(clippy::should_implement_trait)] // It never ends.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`.
    #[inline(always)]
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }
}

/// Sizes of 1 to 64 pages, small ones more often: uniform in their logarithm.
pub fn sizes() -> Vec<u8> {
    let mut rng = Rng::new(0x9E37_79B9_7F4A_7C15);
    let size = |_| {
        let unit = (rng.next() >> 11) as f64 / 9_007_199_254_740_992.0;
        ((6.0 * unit).exp2() + 0.5).clamp(1.0, 64.0) as u8
    };
    (0..65536).map(size).collect()
}
