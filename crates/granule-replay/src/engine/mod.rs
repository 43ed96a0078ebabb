//! Performs a trace on the simulator, through the real layers.
//!
//! ```text
//!   Reader ─ events ─ Joiner ─ operations ─ Crew ─┬─ Runner 4K ──┬─ device ─ Domain ─ Paged<Lpae4k>
//!                                                 ├─ Runner 16K  └─ device ─ ...
//!                                                 └─ Runner 64K
//! ```
//!
//! The trace is read once, whatever is compared; the runs have threads of their own. Streaming mappings are made at the recorded
//! physical addresses: the simulated machine has memory from 0 to far above any of them, sparse, so
//! it costs nothing, and its page tables, coherent buffers and bounce buffers lie above that. The
//! IOMMU is the simulator's model; since a trace holds no data, no device accesses anything, so its
//! IOTLB stays empty and an invalidation costs next to nothing. What it would cost on hardware is
//! not measured: invalidations are counted instead.

mod budget;
mod crew;
mod device;
mod machine;
mod memory;
mod run;
mod series;
mod tracker;

use std::sync::atomic::Ordering;
use std::time::Instant;

use granule::addr::Granule;

pub use series::{Column, IovaMap, Series};

use crate::ReplayError;
use crate::findings::{FindingKind, Findings};
use crate::join::Joiner;
use crate::options::{Options, Progress, Untrusted};
use crate::reader::{Event, EventKind, Input, Reader};
use crate::results::{Counts, DeviceCounts, Phase, Results, Stopped, Trace};
use budget::Share;
use crew::{Crew, Step};
use machine::Settings;
use run::Runner;

/// How often progress is told, in events.
const TOLD: u64 = 1024;
/// How much of the simulated machines' memory may be the host's at once, in bytes, beside what lives
/// in it: page tables, coherent buffers.
const RESIDENT: u64 = 68 << 20;

/// Replays a trace.
///
/// # Errors
/// [`ReplayError`]: the trace cannot be read or has no DMA events, or the options contradict.
/// Oddities inside the trace are [findings](crate::Findings).
pub fn replay(input: Input, mut options: Options) -> Result<Results, ReplayError> {
    let begun = Instant::now();
    let formats = options.formats()?;
    let shares = Share::of(RESIDENT, formats.len());
    let bounces = !matches!(options.untrusted, Untrusted::None);
    let runners = formats.into_iter().zip(shares).map(|(format, share)| {
        let settings = Settings {
            format,
            cpu_page: options.cpu_page.unwrap_or(Granule::K4),
            invalidate: options.invalidate,
            iova_bits: options.iova_bits.unwrap_or(32),
            bounce_pool: bounces.then(|| options.bounce_pool.unwrap_or(64 << 20)),
        };
        Runner::new(settings, share)
    });
    let runners = runners.collect::<Result<_, _>>()?;
    let mut replay = Replay {
        crew: Crew::new(runners, &options.untrusted)?,
        read: input.read_so_far(),
        total: input.total(),
        reader: Reader::new(input),
        joiner: Joiner::new(),
        findings: Findings::default(),
        phases: vec![Phase::default()],
        names: Vec::new(),
        numbers: Vec::new(),
        events: 0,
        told: 0,
        times: None,
    };
    let stopped = replay.all(&mut options)?;
    let mut results = replay.finish(&options, stopped)?;
    results.seconds = begun.elapsed().as_secs_f64();
    Ok(results)
}

/// A replay in the making.
struct Replay {
    crew: Crew,
    reader: Reader,
    read: std::sync::Arc<std::sync::atomic::AtomicU64>,
    total: Option<u64>,
    joiner: Joiner,
    findings: Findings,
    phases: Vec<Phase>,
    /// The devices that are replayed, and for each of the trace's its number among them.
    names: Vec<String>,
    numbers: Vec<Option<u32>>,
    events: u64,
    /// How many there were when progress was last told.
    told: u64,
    times: Option<(u64, u64)>,
}

impl Replay {
    /// Everything, until the trace, the limit or the caller ends it.
    fn all(&mut self, options: &mut Options) -> Result<Stopped, ReplayError> {
        let limit = options.limit.unwrap_or(u64::MAX);
        loop {
            if self.events >= limit {
                return Ok(Stopped::Limit);
            }
            if options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Ok(Stopped::Cancelled);
            }
            let Some(event) = self.reader.next_event()? else {
                return Ok(Stopped::Complete);
            };
            self.know(options)?;
            self.one(event)?;
            if self.events >= self.told + TOLD {
                self.told = self.events;
                if let Some(tell) = &mut options.progress {
                    tell(self.progress());
                }
            }
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            lines: self.reader.stats().lines,
            dma_events: self.events,
            read: self.read.load(Ordering::Relaxed),
            total: self.total,
        }
    }

    /// Devices that appeared are numbered, those that are not asked for left out.
    fn know(&mut self, options: &Options) -> Result<(), ReplayError> {
        let known = self.numbers.len();
        if known == self.reader.devices().len() {
            return Ok(());
        }
        for name in self.reader.devices().iter().skip(known) {
            if options.device.as_ref().is_some_and(|wanted| wanted != name) {
                self.numbers.push(None);
                continue;
            }
            self.numbers.push(u32::try_from(self.names.len()).ok());
            self.names.push(name.clone());
        }
        self.joiner.know(&self.names);
        self.crew.send(Step::Devices(self.names.clone()))
    }

    fn one(&mut self, mut event: Event) -> Result<(), ReplayError> {
        if let EventKind::Lost(count) = event.kind {
            let detail = format!("the tracer lost {count} events here");
            self.findings.note(FindingKind::Lost, event.line, detail);
            return Ok(());
        }
        let time = event.time;
        let (begins, ends) = self.times.unwrap_or((time, time));
        self.times = Some((begins.min(time), ends.max(time)));
        if let EventKind::Phase(name) = event.kind {
            return self.begin_phase(name, event.line, time);
        }
        if !self.renumber(&mut event.kind) {
            return Ok(());
        }
        if let Some(op) = self.joiner.join(event, &mut self.findings) {
            self.crew.send(Step::Perform(op, self.events))?;
            self.events += 1;
        }
        Ok(())
    }

    fn begin_phase(&mut self, name: String, line: u64, time: u64) -> Result<(), ReplayError> {
        let phase = Phase { name, line, begins: time, ends: time, first_event: self.events };
        // The first mark names what was before it, if that was nothing.
        let replaces = self.phases.len() == 1 && self.events == 0 && self.phases[0].line == 0;
        if replaces {
            self.phases.clear();
        } else if let Some(last) = self.phases.last_mut() {
            last.ends = time;
        }
        self.phases.push(phase);
        let index = self.phases.len() - 1;
        self.joiner.set_phase(index);
        self.crew.send(Step::Phase(index, time))
    }

    /// Puts the replay's number of a device in place of the reader's; whether it takes part.
    fn renumber(&self, kind: &mut EventKind) -> bool {
        let Some(device) = kind.device_mut() else { return true };
        match self.numbers.get(*device as usize) {
            Some(Some(number)) => {
                *device = *number;
                true
            }
            _ => false,
        }
    }

    fn finish(mut self, options: &Options, stopped: Stopped) -> Result<Results, ReplayError> {
        let stats = self.reader.stats().clone();
        if self.events == 0 && stopped == Stopped::Complete {
            return Err(match (&options.device, self.reader.devices()) {
                (Some(wanted), present) if !present.is_empty() => {
                    ReplayError::NoSuchDevice { wanted: wanted.clone(), present: present.to_vec() }
                }
                _ => ReplayError::NoDma {
                    lines: stats.lines,
                    skipped: stats.events - stats.dma_events,
                    damaged: stats.damaged,
                },
            });
        }
        for line in &stats.damaged_lines {
            self.findings.note(FindingKind::Damaged, *line, "not an event, skipped");
        }
        self.findings.at_least(FindingKind::Damaged, stats.damaged);
        if stopped == Stopped::Complete {
            self.joiner.finish(&mut self.findings);
        }
        let (begins, ends) = self.times.unwrap_or_default();
        if let Some(last) = self.phases.last_mut() {
            last.ends = ends;
        }
        if let Some(first) = self.phases.first_mut().filter(|first| first.line == 0) {
            first.begins = begins;
        }
        let (events, phases) = (self.events, self.phases.len());
        let runs = self.crew.finish(ends, phases, events)?;
        let counts = self.joiner.into_counts().into_iter().zip(self.names);
        let devices = counts.map(|(counts, name)| device_counts(name, counts, phases)).collect();
        Ok(Results {
            trace: Trace {
                lines: stats.lines,
                bytes: stats.bytes,
                events: stats.events,
                dma_events: events,
                skipped: stats.skipped,
                damaged: stats.damaged,
                lost: stats.lost,
                begins,
                ends,
                phases: self.phases,
                devices,
            },
            invalidate: options.invalidate,
            cpu_page: options.cpu_page.unwrap_or(Granule::K4).size(),
            runs,
            findings: self.findings,
            stopped,
            seconds: 0.0,
        })
    }
}

fn device_counts(name: String, mut phases: Vec<Counts>, number: usize) -> DeviceCounts {
    phases.resize(number, Counts::default());
    let mut total = Counts::default();
    phases.iter().for_each(|phase| total.add(phase));
    DeviceCounts { name, total, phases }
}
