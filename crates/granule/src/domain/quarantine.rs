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
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// The range to be given back to the allocator, guards included.
    pub lease: IovaRange,
    /// Whether table pages wait to be reaped.
    pub tables: bool,
}

/// How many words a deferred destructor may hold.
const WORDS: usize = 11;

/// How many of them fit beside an entry: what a buffer consists of. A larger one (a bounce slot is to
/// be given back, too) waits in a place of its own, so that an entry stays one cache line.
const NEAR: usize = 3;

type Near = [MaybeUninit<usize>; NEAR];
type Far = [MaybeUninit<usize>; WORDS];

/// A deferred destructor, kept in place: a closure that needs no allocation.
pub(crate) struct Release {
    storage: Far,
    run: unsafe fn(*mut u8),
    /// Whether the closure is larger than what fits beside an entry.
    far: bool,
}

// SAFETY: `Release::new` only takes closures that are `Send`.
unsafe impl Send for Release {}

impl Release {
    /// Keeps a closure; a closure that does not fit does not compile.
    #[inline]
    pub(crate) fn new<F: FnOnce() + Send + 'static>(closure: F) -> Self {
        const {
            assert!(size_of::<F>() <= size_of::<Far>(), "too large to be deferred");
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
        Self { storage, run: run::<F>, far: size_of::<F>() > size_of::<Near>() }
    }

    /// Runs it. A `Release` that is dropped instead never runs: what it holds is leaked.
    pub(crate) fn run(mut self) {
        // SAFETY: the storage holds what `new` put there, and `self` is consumed.
        unsafe { (self.run)(self.storage.as_mut_ptr().cast()) }
    }
}

/// An entry in a ring, with the destructor that came with it.
#[repr(align(64))]
pub(crate) struct Waiting {
    lease: IovaRange,
    since: u64,
    run: Option<unsafe fn(*mut u8)>,
    /// The destructor's words, if they are few.
    near: Near,
    /// Whether they are too many, and lie apart.
    far: bool,
    tables: bool,
}

// An entry that takes more than a line costs a miss more on its way in and on its way out.
const _: () = assert!(size_of::<usize>() != 8 || size_of::<Option<Waiting>>() == 64);

impl Waiting {
    /// What waited.
    pub(crate) fn entry(&self) -> Entry {
        Entry { lease: self.lease, tables: self.tables }
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
const BATCH: usize = 16;

/// How many of them may have a large destructor.
const FEW: usize = 4;

struct Ring {
    /// A power of two.
    entries: Box<[Option<Waiting>]>,
    /// The words of large destructors, at the same places.
    far: Box<[Far]>,
    pushed: u64,
    taken: u64,
    /// Bytes of IOVA space that wait.
    bytes: u64,
    /// Bytes that mappings exposed, until they came here. Counts for ever.
    concealed: u64,
}

impl Ring {
    fn new(capacity: usize) -> Self {
        let size = capacity.checked_next_power_of_two().unwrap_or(capacity);
        Self {
            entries: (0..size).map(|_| None).collect(),
            far: (0..size).map(|_| [MaybeUninit::uninit(); WORDS]).collect(),
            pushed: 0,
            taken: 0,
            bytes: 0,
            concealed: 0,
        }
    }

    /// Where the entry of a position lies.
    #[inline]
    fn place(&self, position: u64) -> usize {
        position as usize & (self.entries.len().wrapping_sub(1))
    }

    /// Puts an entry in, for which there is room, and answers its position.
    #[inline(always)]
    fn put(&mut self, entry: Entry, since: u64, release: Option<Release>) -> u64 {
        let (position, place) = (self.pushed, self.place(self.pushed));
        let Entry { lease, tables } = entry;
        let near = [MaybeUninit::uninit(); NEAR];
        let mut waiting = Waiting { lease, since, run: None, near, far: false, tables };
        if let Some(Release { storage, run, far }) = release {
            (waiting.run, waiting.far) = (Some(run), far);
            if far {
                self.far[place] = storage;
            } else {
                waiting.near = [storage[0], storage[1], storage[2]];
            }
        }
        self.entries[place] = Some(waiting);
        self.bytes += entry.lease.len();
        self.pushed += 1;
        position
    }

    #[inline]
    fn oldest_is_older(&self, now: u64, age: u64) -> bool {
        let oldest = self.entries.get(self.place(self.taken)).and_then(Option::as_ref);
        // A machine without a clock says 0 always: nothing is ever due by age.
        oldest.is_some_and(|oldest| now > oldest.since && now - oldest.since >= age)
    }
}

/// Entries on their way out.
struct Batch {
    entries: [Option<Waiting>; BATCH],
    far: [Far; FEW],
}

impl Batch {
    /// Takes some of a ring's entries that lie before `flushed`.
    fn take(ring: &mut Ring, flushed: u64) -> Self {
        let far = [[MaybeUninit::uninit(); WORDS]; FEW];
        let mut batch = Self { entries: [const { None }; BATCH], far };
        let mut room = batch.far.iter_mut();
        for entry in &mut batch.entries {
            let place = ring.place(ring.taken);
            if ring.taken >= flushed {
                break;
            }
            if ring.entries[place].as_ref().is_some_and(|waiting| waiting.far) {
                let Some(room) = room.next() else { break };
                *room = ring.far[place];
            }
            *entry = ring.entries[place].take();
            ring.bytes -= entry.as_ref().map_or(0, |waiting| waiting.lease.len());
            ring.taken += 1;
        }
        batch
    }

    /// Runs the destructors.
    fn release(self) {
        let mut far = self.far.into_iter();
        for mut waiting in self.entries.into_iter().flatten() {
            let large = if waiting.far { far.next() } else { None };
            match (waiting.run, large) {
                // SAFETY: the words are what `Release::new` kept; they left the ring once, in order.
                (Some(run), Some(mut words)) => unsafe { run(words.as_mut_ptr().cast()) },
                // SAFETY: as above.
                (Some(run), None) => unsafe { run(waiting.near.as_mut_ptr().cast()) },
                (None, _) => {}
            }
        }
    }
}

struct Shard<P: Platform> {
    ring: Mutex<P::Lock, Ring>,
    /// Positions below this are covered by a finished invalidation.
    flushed: AtomicU64,
}

/// The rings of all CPUs. What still waits when they are dropped is leaked: only a flush may give it
/// back.
pub(crate) struct Quarantine<P: Platform> {
    shards: PerCpu<Shard<P>>,
    capacity: u64,
    max_age: u64,
}

/// What a push found.
pub(crate) enum Pushed {
    /// The entry waits.
    Waiting(Ticket),
    /// The entry waits, and it is time to flush: the oldest one has reached its age.
    Due(Ticket),
    /// The ring is full: nothing was put in.
    Full,
}

impl<P: Platform> Quarantine<P> {
    /// Rings of `capacity` entries; the oldest is to wait `max_age` nanoseconds at most.
    pub(crate) fn new(platform: &P, capacity: usize, max_age: u64) -> Self {
        let shards = PerCpu::new(platform, || Shard {
            ring: Mutex::new(Ring::new(capacity)),
            flushed: AtomicU64::new(0),
        });
        Self { shards, capacity: capacity as u64, max_age }
    }

    /// Puts an entry into this CPU's ring, with its destructor, if it has one, and counts its mapping
    /// out.
    #[inline(always)]
    pub(crate) fn push(
        &self,
        platform: &P,
        entry: Entry,
        release: &mut Option<Release>,
        account: Option<&Account<'_>>,
    ) -> Pushed {
        let cpu = platform.cpu();
        let index = if cpu < self.shards.len() { cpu } else { cpu % self.shards.len() };
        let mut ring = self.shards.at(index).ring.lock();
        if ring.pushed - ring.taken >= self.capacity {
            return Pushed::Full;
        }
        let now = platform.now();
        let position = ring.put(entry, now, release.take());
        if let Some(Account { counters, print }) = account {
            ring.concealed = ring.concealed.wrapping_add(print.exposed);
            counters.end(index, Under::Ring, print);
        }
        let due = ring.oldest_is_older(now, self.max_age);
        let ticket = Ticket { ring: index, position };
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
        mut give_back: impl FnMut(&[Option<Waiting>]),
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
    fn drain_batch(shard: &Shard<P>, give_back: &mut impl FnMut(&[Option<Waiting>])) -> bool {
        let mut ring = shard.ring.lock();
        let flushed = shard.flushed.load(Ordering::Acquire);
        let batch = Batch::take(&mut ring, flushed);
        let more = ring.taken < flushed;
        drop(ring);
        give_back(&batch.entries);
        batch.release();
        more
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

#[cfg(test)]
pub(super) mod model;
