//! Memory and IOVA that may not be reused yet: one preallocated ring a CPU.
//!
//! In deferred mode an unmapped range waits here until an invalidation covers it. Positions count
//! for ever; three of them describe a ring:
//!
//! ```text
//!   taken ≤ flushed ≤ pushed
//!   [taken, flushed)   covered by a finished invalidation, resources being given back
//!   [flushed, pushed)  a device may still reach these
//! ```
//!
//! Nothing is allocated after creation. What an entry holds is given back after the ring was
//! unlocked, perhaps on another CPU.

use alloc::boxed::Box;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use lock_api::Mutex;

use super::counters::{Account, Under};
use crate::addr::IovaRange;
use crate::mem::{PerCpu, Platform};

/// What waits for an invalidation.
pub(crate) struct Entry {
    /// The range to be given back to the allocator, guards included.
    pub lease: IovaRange,
    /// Whether table pages wait to be reaped.
    pub tables: bool,
    /// What to do with the memory.
    pub release: Option<Release>,
}

/// How many words a deferred destructor may hold.
const WORDS: usize = 12;

/// A deferred destructor, kept in place: a closure that needs no allocation.
pub(crate) struct Release {
    storage: [MaybeUninit<usize>; WORDS],
    run: unsafe fn(*mut u8),
}

// SAFETY: `Release::new` only takes closures that are `Send`.
unsafe impl Send for Release {}

impl Release {
    /// Keeps a closure; a closure that does not fit does not compile.
    pub(crate) fn new<F: FnOnce() + Send + 'static>(closure: F) -> Self {
        const {
            assert!(size_of::<F>() <= size_of::<[usize; WORDS]>(), "too large to be deferred");
            assert!(align_of::<F>() <= align_of::<usize>(), "aligned too strictly to be deferred");
        }
        /// # Safety
        /// `storage` holds a live `F`, which is moved out.
        unsafe fn run<F: FnOnce()>(storage: *mut u8) {
            // SAFETY: the caller's promise.
            let closure = unsafe { storage.cast::<F>().read() };
            closure();
        }
        let mut storage = [MaybeUninit::uninit(); WORDS];
        // SAFETY: size and alignment were checked above; the storage is ours.
        unsafe { storage.as_mut_ptr().cast::<F>().write(closure) };
        Self { storage, run: run::<F> }
    }

    /// Runs it. A `Release` that is dropped instead never runs: what it holds is leaked.
    pub(crate) fn run(mut self) {
        // SAFETY: the storage holds what `new` put there, and `self` is consumed.
        unsafe { (self.run)(self.storage.as_mut_ptr().cast()) }
    }
}

/// Where an entry waits: which ring, and at which position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    ring: usize,
    position: u64,
}

/// How many rings one invalidation serves.
const CHUNK: usize = 64;

/// How many entries one flush gives back before it takes the lock again.
const BATCH: usize = 8;

struct Ring {
    entries: Box<[Option<(Entry, u64)>]>,
    pushed: u64,
    taken: u64,
    /// Bytes of IOVA space that wait.
    bytes: u64,
    /// Bytes that mappings exposed, until they came here. Counts for ever.
    concealed: u64,
}

impl Ring {
    fn oldest_is_older(&self, now: u64, age: u64) -> bool {
        let slot = (self.taken % self.entries.len().max(1) as u64) as usize;
        let since = self.entries.get(slot).and_then(Option::as_ref).map(|(_, since)| *since);
        // A machine without a clock says 0 always: nothing is ever due by age.
        since.is_some_and(|since| now > since && now - since >= age)
    }
}

struct Shard<P: Platform> {
    ring: Mutex<P::Lock, Ring>,
    /// Positions below this are covered by a finished invalidation.
    flushed: AtomicU64,
}

/// The rings of all CPUs.
pub(crate) struct Quarantine<P: Platform> {
    shards: PerCpu<Shard<P>>,
    capacity: usize,
    max_age: u64,
}

/// What a push found.
pub(crate) enum Pushed {
    /// The entry waits.
    Waiting(Ticket),
    /// The entry waits, and it is time to flush: the oldest one has reached its age.
    Due(Ticket),
    /// The ring is full; the entry comes back.
    Full(Entry),
}

impl<P: Platform> Quarantine<P> {
    /// Rings of `capacity` entries; the oldest is to wait `max_age` nanoseconds at most.
    pub(crate) fn new(platform: &P, capacity: usize, max_age: u64) -> Self {
        let shards = PerCpu::new(platform, || Shard {
            ring: Mutex::new(Ring {
                entries: (0..capacity).map(|_| None).collect(),
                pushed: 0,
                taken: 0,
                bytes: 0,
                concealed: 0,
            }),
            flushed: AtomicU64::new(0),
        });
        Self { shards, capacity, max_age }
    }

    /// Puts an entry into this CPU's ring, and counts its mapping out.
    #[inline]
    pub(crate) fn push(&self, platform: &P, entry: Entry, account: Option<&Account<'_>>) -> Pushed {
        let cpu = platform.cpu();
        let index = if cpu < self.shards.len() { cpu } else { cpu % self.shards.len() };
        let mut ring = self.shards.at(index).ring.lock();
        let ring = &mut *ring;
        let Some(place) = ring.entries.get_mut((ring.pushed % self.capacity as u64) as usize)
        else {
            return Pushed::Full(entry);
        };
        if ring.pushed - ring.taken >= self.capacity as u64 {
            return Pushed::Full(entry);
        }
        let now = platform.now();
        ring.bytes += entry.lease.len();
        *place = Some((entry, now));
        let ticket = Ticket { ring: index, position: ring.pushed };
        ring.pushed += 1;
        if let Some(Account { counters, print }) = account {
            ring.concealed = ring.concealed.wrapping_add(print.exposed);
            counters.end(index, Under::Ring, print);
        }
        let due = ring.oldest_is_older(now, self.max_age);
        if due { Pushed::Due(ticket) } else { Pushed::Waiting(ticket) }
    }

    /// Whether the entry's invalidation has completed.
    pub(crate) fn is_flushed(&self, ticket: Ticket) -> bool {
        self.shards.at(ticket.ring).flushed.load(Ordering::Acquire) > ticket.position
    }

    /// Whether some ring holds an entry that has reached its age at `now`.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        self.shards.iter().any(|shard| {
            let ring = shard.ring.lock();
            ring.oldest_is_older(now, self.max_age)
        })
    }

    /// Invalidates and gives back everything that waited when this began.
    ///
    /// `invalidate` drops all caches; `give_back` gets entries, a few at once, before their destructors
    /// run. If
    /// the invalidation fails, everything stays where it is.
    pub(crate) fn flush<E>(
        &self,
        mut invalidate: impl FnMut() -> Result<(), E>,
        mut give_back: impl FnMut(&[Option<Entry>]),
    ) -> Result<(), E> {
        // One invalidation serves up to CHUNK rings: the snapshots live on the stack, since a
        // flush must not allocate.
        for first in (0..self.shards.len()).step_by(CHUNK) {
            let chunk = first..self.shards.len().min(first + CHUNK);
            let mut snapshot = [0u64; CHUNK];
            for (slot, index) in snapshot.iter_mut().zip(chunk.clone()) {
                *slot = self.shards.at(index).ring.lock().pushed;
            }
            invalidate()?;
            for (upto, index) in snapshot.iter().zip(chunk) {
                let shard = self.shards.at(index);
                shard.flushed.fetch_max(*upto, Ordering::AcqRel);
                while Self::drain_batch(shard, &mut give_back) {}
            }
        }
        Ok(())
    }

    /// Gives back a few entries that are covered; answers whether there may be more.
    fn drain_batch(shard: &Shard<P>, give_back: &mut impl FnMut(&[Option<Entry>])) -> bool {
        let mut batch: [Option<Entry>; BATCH] = [const { None }; BATCH];
        let mut ring = shard.ring.lock();
        let flushed = shard.flushed.load(Ordering::Acquire);
        let mut count = 0;
        while count < BATCH && ring.taken < flushed {
            let slot = (ring.taken % ring.entries.len().max(1) as u64) as usize;
            batch[count] = ring.entries[slot].take().map(|(entry, _)| entry);
            ring.bytes -= batch[count].as_ref().map_or(0, |entry| entry.lease.len());
            ring.taken += 1;
            count += 1;
        }
        drop(ring);
        give_back(&batch);
        batch.into_iter().flatten().filter_map(|entry| entry.release).for_each(Release::run);
        count == BATCH
    }

    /// How many entries wait, in all rings.
    pub(crate) fn waiting(&self) -> u64 {
        self.sum(|ring| ring.pushed - ring.taken)
    }

    /// How many bytes of IOVA space wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.sum(|ring| ring.bytes)
    }

    /// How many bytes that were exposed have been unmapped into the rings so far.
    pub(crate) fn concealed(&self) -> u64 {
        self.sum(|ring| ring.concealed)
    }

    fn sum(&self, pick: impl Fn(&Ring) -> u64) -> u64 {
        self.shards.iter().map(|shard| pick(&shard.ring.lock())).fold(0, u64::wrapping_add)
    }
}

impl<P: Platform> Drop for Quarantine<P> {
    /// What still waits is leaked: only a flush may give it back.
    fn drop(&mut self) {
        for shard in self.shards.iter() {
            let mut ring = shard.ring.lock();
            ring.entries.iter_mut().filter_map(Option::take).for_each(core::mem::forget);
        }
    }
}

#[cfg(test)]
pub(super) mod model;
