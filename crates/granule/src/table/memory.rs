//! Where table pages come from, and how their entries are reached.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{PhysAddr, PhysRange};
use crate::mem::FrameError;

/// One 8-byte entry of a live table, shared with other CPUs and with the table walker.
///
/// A trait, so that a model checker can put its own atomics in the place of the machine's.
///
/// # Safety
/// Every load returns what the latest store in the order of this entry wrote, as for an
/// [`AtomicU64`] with the orders named below: the engine follows pointers that it reads here.
pub unsafe trait Entry: Send + Sync {
    /// Loads with acquire order.
    fn load(&self) -> u64;
    /// Loads with relaxed order.
    fn peek(&self) -> u64;
    /// Stores with release order.
    fn store(&self, value: u64);
    /// Stores with relaxed order.
    fn fill(&self, value: u64);
    /// Replaces `old` by `new` (acquire and release); the value found, if it was another.
    ///
    /// # Errors
    /// The value that stands there instead of `old`.
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64>;
}

// SAFETY: an atomic 64-bit word, with the orders asked for. Hardware reads entries little-endian.
unsafe impl Entry for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        u64::from_le(Self::load(self, Ordering::Acquire))
    }

    #[inline(always)]
    fn peek(&self) -> u64 {
        u64::from_le(Self::load(self, Ordering::Relaxed))
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        Self::store(self, value.to_le(), Ordering::Release);
    }

    #[inline(always)]
    fn fill(&self, value: u64) {
        Self::store(self, value.to_le(), Ordering::Relaxed);
    }

    #[inline(always)]
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        let (old, new) = (old.to_le(), new.to_le());
        match Self::compare_exchange(self, old, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(found) => Err(u64::from_le(found)),
        }
    }
}

/// What a fresh table page must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Zeroes: no entry is valid.
    Zeroed,
    /// Anything: every entry will be written before the page is linked.
    Any,
}

/// Memory for table pages.
///
/// [`PlatformTables`](super::PlatformTables) is the one for a [`Platform`](crate::mem::Platform);
/// tests and models bring their own.
///
/// # Safety
/// The engine follows addresses that it wrote into tables, so:
///
/// * [`alloc`](Self::alloc) returns memory of that size and alignment which nobody else uses until
///   [`free`](Self::free), not at physical address 0, zeroed if asked.
/// * [`entry`](Self::entry) of an 8-byte aligned address inside such memory (or inside a live root
///   that was adopted) points to the entry there, and to the entries behind it up to the end of the
///   memory, as an array; it stays valid until the memory is freed.
pub unsafe trait TableMemory: Send + Sync + 'static {
    /// How entries are reached: [`AtomicU64`] unless a model replaces it.
    type Entry: Entry;
    /// Guards writes of root entries, and nothing else.
    type Lock: lock_api::RawMutex + Send + Sync + 'static;

    /// Allocates a table of `size` bytes aligned to `align`, both powers of two.
    ///
    /// # Errors
    /// [`FrameError`] if there is none.
    fn alloc(&self, size: u64, align: u64, contents: Contents) -> Result<PhysAddr, FrameError>;

    /// Frees a table. Must not allocate.
    ///
    /// # Safety
    /// `table` came from [`alloc`](Self::alloc) with this size, was not freed since, and neither a
    /// CPU nor a walker reaches it any more.
    unsafe fn free(&self, table: PhysAddr, size: u64);

    /// The entry at a physical address.
    fn entry(&self, at: PhysAddr) -> *const Self::Entry;

    /// Whether the table walker sees the CPU's stores without cache maintenance: a property of the
    /// hardware, asked for when a table is made.
    #[inline]
    fn coherent(&self) -> bool {
        true
    }

    /// Makes written entries visible to a walker that does not snoop. Only called where
    /// [`coherent`](Self::coherent) is false.
    fn clean(&self, entries: PhysRange);

    /// Orders earlier stores to entries before later stores, as seen by walkers and devices.
    fn barrier(&self);
}
