//! The runs, on as many threads as there are processors for them.
//!
//! The trace is read and joined once, in the caller's thread. What every run has to do is sent in
//! batches, of which only few may wait: memory does not grow if the runs are slower than the reader.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::run::Runner;
use crate::ReplayError;
use crate::join::Op;
use crate::options::Untrusted;
use crate::results::Run;

/// Steps sent at a time.
const BATCH: usize = 64;
/// Batches that may wait for a thread.
const WAITING: usize = 4;

/// What every run does, in this order.
pub(super) enum Step {
    /// Devices appeared: the names of all.
    Devices(Vec<String>),
    /// A phase begins, at a time.
    Phase(usize, u64),
    /// An operation, by its number.
    Perform(Op, u64),
}

type Batch = Arc<Vec<Step>>;
/// Runs, each with its place in the results.
type Runners = Vec<(usize, Runner)>;

/// A thread with some of the runs.
struct Worker {
    batches: SyncSender<Batch>,
    thread: JoinHandle<Result<Runners, ReplayError>>,
}

/// All the runs.
pub(super) struct Crew {
    workers: Vec<Worker>,
    batch: Vec<Step>,
}

impl Crew {
    /// Puts the runs to work.
    ///
    /// # Errors
    /// [`ReplayError::Machine`] if the host has no thread to give.
    pub(super) fn new(runners: Vec<Runner>, untrusted: &Untrusted) -> Result<Self, ReplayError> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = processors.min(runners.len()).max(1);
        let mut shares: Vec<Runners> = (0..threads).map(|_| Vec::new()).collect();
        for (place, runner) in runners.into_iter().enumerate() {
            if let Some(share) = shares.get_mut(place % threads) {
                share.push((place, runner));
            }
        }
        let workers = shares.into_iter().map(|share| Worker::new(share, untrusted.clone()));
        Ok(Self { workers: workers.collect::<Result<_, _>>()?, batch: Vec::with_capacity(BATCH) })
    }

    /// Has every run do this after all that came before.
    ///
    /// # Errors
    /// What ended one of the runs early.
    pub(super) fn send(&mut self, step: Step) -> Result<(), ReplayError> {
        self.batch.push(step);
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ReplayError> {
        let batch: Batch = Arc::new(core::mem::replace(&mut self.batch, Vec::with_capacity(BATCH)));
        // A thread that hears no more has ended early.
        let deaf =
            self.workers.iter().position(|worker| worker.batches.send(batch.clone()).is_err());
        match deaf {
            None => Ok(()),
            Some(index) => self.workers.swap_remove(index).join().map(drop),
        }
    }

    /// Waits for the runs: what each measured, in the order in which they were given.
    ///
    /// # Errors
    /// What ended one of them early.
    pub(super) fn finish(
        mut self,
        end: u64,
        phases: usize,
        events: u64,
    ) -> Result<Vec<Run>, ReplayError> {
        self.flush()?;
        let mut runners = Runners::new();
        for worker in self.workers {
            runners.extend(worker.join()?);
        }
        runners.sort_by_key(|(place, _)| *place);
        let finish = |(_, mut runner): (usize, Runner)| {
            runner.set_end(end);
            runner.finish(phases, events)
        };
        Ok(runners.into_iter().map(finish).collect())
    }
}

impl Worker {
    fn new(runners: Runners, untrusted: Untrusted) -> Result<Self, ReplayError> {
        let (batches, waiting) = sync_channel(WAITING);
        let thread = thread::Builder::new()
            .name("replay".into())
            .spawn(move || work(runners, &untrusted, &waiting))
            .map_err(|error| ReplayError::Machine { cause: error.to_string() })?;
        Ok(Self { batches, thread })
    }

    fn join(self) -> Result<Runners, ReplayError> {
        drop(self.batches);
        let panicked = |_| ReplayError::Machine { cause: "a run ended by a panic".into() };
        self.thread.join().map_err(panicked)?
    }
}

fn work(
    mut runners: Runners,
    untrusted: &Untrusted,
    batches: &Receiver<Batch>,
) -> Result<Runners, ReplayError> {
    for batch in batches {
        for (_, runner) in &mut runners {
            for step in batch.iter() {
                match step {
                    Step::Devices(names) => runner.know(names, untrusted)?,
                    Step::Phase(phase, time) => runner.set_phase(*phase, *time),
                    Step::Perform(op, event) => runner.perform(op, *event)?,
                }
            }
        }
    }
    Ok(runners)
}
