//! One run: the trace on one machine.

use super::budget::Share;
use super::device::{NotDone, Replayed};
use super::machine::{Board, Settings};
use super::series::IovaMap;
use super::tracker::Tracker;
use crate::ReplayError;
use crate::findings::{Finding, FindingKind, Findings};
use crate::join::{Op, OpKind};
use crate::options::{Invalidate, Untrusted};
use crate::results::{Live, Measures, Run};

/// How long the platform's timer waits before it flushes: the quarantine's age (10 ms).
const TIMER: u64 = 10_000_000;

/// The trace on one machine, in the making.
pub(super) struct Runner {
    board: Board,
    settings: Settings,
    devices: Vec<Replayed>,
    all: Tracker,
    findings: Findings,
    phase: usize,
    /// The clock: never goes back, though a trace of several CPUs may.
    now: u64,
}

impl Runner {
    pub(super) fn new(settings: Settings, share: Share) -> Result<Self, ReplayError> {
        Ok(Self {
            board: Board::new(settings, share)?,
            settings,
            devices: Vec::new(),
            all: Tracker::default(),
            findings: Findings::default(),
            phase: 0,
            now: 0,
        })
    }

    /// A phase begins.
    pub(super) fn set_phase(&mut self, phase: usize, time: u64) {
        self.advance(time);
        self.phase = phase;
        // What is live now is part of the new phase's peak.
        for tracker in
            self.devices.iter_mut().map(|device| &mut device.tracker).chain([&mut self.all])
        {
            let (live, invalidations) = (tracker.live(), tracker.invalidations());
            tracker.set(phase, live, invalidations);
        }
    }

    /// Makes the devices that appeared.
    pub(super) fn know(
        &mut self,
        names: &[String],
        untrusted: &Untrusted,
    ) -> Result<(), ReplayError> {
        for name in names.iter().skip(self.devices.len()) {
            let attached = self.board.attach(name, !untrusted.contains(name))?;
            let deferred = self.settings.invalidate == Invalidate::Deferred;
            let (granule, memory) = (self.board.granule(), self.board.recorded());
            self.devices.push(Replayed::new(attached, granule, memory, deferred));
        }
        Ok(())
    }

    /// Performs one operation.
    ///
    /// # Errors
    /// [`ReplayError::Machine`] if the simulated machine fails. What the layer refuses is a finding.
    pub(super) fn perform(&mut self, op: &Op, event: u64) -> Result<(), ReplayError> {
        self.advance(op.time);
        let index = op.device as usize;
        let Some(device) = self.devices.get_mut(index) else { return Ok(()) };
        let mut measures = Measures::default();
        let before = device.tracker.live();
        let result = device.perform(&op.kind, event, &mut measures);
        let (live, invalidations) = device.look();
        measures.exposed_bytes = live.exposed.saturating_sub(before.exposed);
        measures.bounced_bytes = live.bounced.saturating_sub(before.bounced);
        measures.bounces = u64::from(measures.bounced_bytes != 0);
        if let Err(why) = result {
            self.not_done(op, why, &mut measures);
        }
        self.note(index, live, invalidations);
        let Some(device) = self.devices.get_mut(index) else { return Ok(()) };
        device.tracker.measures(self.phase).add(&measures);
        device.tracker.draw(event, self.now);
        let device_is_trusted = device.is_trusted();
        self.all.measures(self.phase).add(&measures);
        self.all.draw(event, self.now);
        // Copies make memory resident; the end of a mapping may copy too.
        let copied = !device_is_trusted && !matches!(op.kind, OpKind::Nothing);
        if copied { self.board.forget() } else { Ok(()) }
    }

    /// A device has this live now; so has the sum of all.
    fn note(&mut self, index: usize, live: Live, invalidations: u64) {
        let Some(device) = self.devices.get_mut(index) else { return };
        let before = device.tracker.live();
        let more = invalidations - device.tracker.invalidations();
        device.tracker.set(self.phase, live, invalidations);
        let sum = self.all.live().each(&live, u64::wrapping_add).each(&before, u64::wrapping_sub);
        self.all.set(self.phase, sum, self.all.invalidations() + more);
    }

    fn not_done(&mut self, op: &Op, why: NotDone, measures: &mut Measures) {
        let (kind, detail) = match why {
            NotDone::Skipped => return,
            NotDone::Refused(error) => (FindingKind::Refused, error.to_string()),
            NotDone::Broken(detail) => (FindingKind::Refused, detail),
            NotDone::Outside(phys) => {
                let top = self.board.recorded().len();
                (FindingKind::Outside, format!("{phys:#x} is beyond {top:#x}, the end of memory"))
            }
        };
        measures.refused += 1;
        let device = self.devices.get(op.device as usize).map(|device| device.name().to_owned());
        self.findings.add(kind, || Finding { kind, line: op.line, earlier: None, device, detail });
    }

    /// Time passes; the platform's timer flushes what is due.
    fn advance(&mut self, time: u64) {
        let time = time.max(self.now);
        let waits = self.settings.invalidate == Invalidate::Deferred && self.now != 0;
        if waits && time - self.now > TIMER && self.all.live().quarantined != 0 {
            self.move_clock(self.now + TIMER);
            self.timer();
        }
        self.move_clock(time);
        if waits {
            self.timer();
        }
    }

    fn move_clock(&mut self, time: u64) {
        self.now = time;
        self.board.set_time(time);
        for device in &mut self.devices {
            device.tracker.pass(self.phase, time);
        }
        self.all.pass(self.phase, time);
    }

    fn timer(&mut self) {
        for index in 0..self.devices.len() {
            let Some(device) = self.devices.get(index) else { return };
            if device.tracker.live().quarantined == 0 {
                continue;
            }
            if let Err(NotDone::Broken(detail)) = device.poll() {
                self.findings.note(FindingKind::Refused, 0, detail);
            }
            let Some(device) = self.devices.get(index) else { return };
            let (live, invalidations) = device.look();
            self.note(index, live, invalidations);
        }
    }

    /// The last event was at this time.
    pub(super) fn set_end(&mut self, time: u64) {
        self.advance(time);
    }

    /// Ends the run: what was measured. Mappings that the trace left are unmapped, unmeasured.
    pub(super) fn finish(mut self, phases: usize, events: u64) -> Run {
        let mut devices = Vec::new();
        for mut device in self.devices {
            if let Err(NotDone::Broken(detail)) = device.clear() {
                self.findings.note(FindingKind::Refused, 0, detail);
            }
            device.map.advance(events.saturating_sub(1));
            let (name, trusted) = (device.name().to_owned(), device.is_trusted());
            devices.push(device.tracker.finish(name, trusted, phases, device.map));
        }
        let trusted = devices.iter().all(|device| device.trusted);
        Run {
            granule: self.board.granule().size(),
            format: self.settings.format.name().to_owned(),
            all: self.all.finish("all".into(), trusted, phases, IovaMap::default()),
            devices,
            findings: self.findings,
        }
    }
}
