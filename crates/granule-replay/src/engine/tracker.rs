//! Measuring one device, or all of them: what is live over time, by phase.

use super::series::{IovaMap, Series};
use crate::results::{Live, Measures, Scope};

/// Measures in the making.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    phases: Vec<Measures>,
    live: Live,
    invalidations: u64,
    /// When `live` began to be what it is.
    since: Option<u64>,
    series: Series,
}

impl Tracker {
    /// The measures of a phase.
    pub(super) fn measures(&mut self, phase: usize) -> &mut Measures {
        if self.phases.len() <= phase {
            self.phases.resize_with(phase + 1, Measures::default);
        }
        &mut self.phases[phase]
    }

    /// What is live.
    pub(super) fn live(&self) -> Live {
        self.live
    }

    /// How many invalidations there were.
    pub(super) fn invalidations(&self) -> u64 {
        self.invalidations
    }

    /// Time passes until `time`, with what is live as it is.
    pub(super) fn pass(&mut self, phase: usize, time: u64) {
        let passed = self.since.map_or(0, |since| time.saturating_sub(since));
        self.since = Some(self.since.map_or(time, |since| since.max(time)));
        let (live, seconds) = (self.live, passed as f64 / 1e9);
        let integral = &mut self.measures(phase).integral;
        integral.mapped += live.mapped as f64 * seconds;
        integral.exposed += live.exposed as f64 * seconds;
        integral.quarantined += live.quarantined as f64 * seconds;
        integral.iova += live.iova as f64 * seconds;
        integral.span += live.span as f64 * seconds;
    }

    /// From now on this is live.
    pub(super) fn set(&mut self, phase: usize, live: Live, invalidations: u64) {
        let more = invalidations.saturating_sub(self.invalidations);
        self.live = live;
        self.invalidations = invalidations;
        let measures = self.measures(phase);
        measures.invalidations += more;
        measures.peak = measures.peak.most(&live);
    }

    /// Draws what is live.
    pub(super) fn draw(&mut self, event: u64, time: u64) {
        let live = self.live;
        self.series.add(event, time, &live);
    }

    /// What was measured.
    pub(super) fn finish(
        mut self,
        name: String,
        trusted: bool,
        phases: usize,
        iova_map: IovaMap,
    ) -> Scope {
        if self.phases.len() < phases {
            self.phases.resize_with(phases, Measures::default);
        }
        let mut total = Measures::default();
        for phase in &self.phases {
            total.add(phase);
        }
        Scope { name, trusted, total, phases: self.phases, series: self.series, iova_map }
    }
}
