//! Ending mappings: invalidate, then give back; or wait in quarantine; or leak and count.

use core::sync::atomic::Ordering;

use super::counters::{Account, Under};
use super::quarantine::{Entry, Pushed, Quarantine, Release, Ticket, Waiting};
use super::{Domain, Invalidation, Mapped, Translation, TranslationError, UnitError, UnmapError};
use crate::addr::IovaRange;
use crate::mem::Platform;

impl<P: Platform, T: Translation> Domain<P, T> {
    /// Ends a mapping; when this returns `Ok` no device reaches the memory any more.
    ///
    /// # Errors
    /// [`UnmapError`] if the invalidation failed: memory and IOVA are leaked, and the domain is
    /// poisoned. The memory must never be reused.
    ///
    /// # Safety
    /// `mapped` came from this domain and is ended once.
    pub unsafe fn unmap(&self, mapped: &Mapped) -> Result<(), UnmapError> {
        // SAFETY: the caller's promise.
        unsafe { self.unmap_counted(mapped, None) }
    }

    /// [`unmap`](Self::unmap), counted.
    ///
    /// # Safety
    /// As [`unmap`](Self::unmap).
    #[inline(always)]
    pub(crate) unsafe fn unmap_counted(
        &self,
        mapped: &Mapped,
        account: Option<&Account<'_>>,
    ) -> Result<(), UnmapError> {
        // SAFETY: the mapping is live and the caller's, who ends it once.
        let unmapped = match unsafe { self.translation.unmap(mapped.range, mapped.hint) } {
            Ok(unmapped) => unmapped,
            Err(cause) => return Err(self.leak(*mapped, cause, account.copied())),
        };
        let request = Invalidation { range: Some(mapped.range), tables: unmapped.tables };
        if let Err(cause) = self.translation.invalidate(&request) {
            return Err(self.leak(*mapped, cause.into(), account.copied()));
        }
        self.reap(mapped.lease, unmapped.tables);
        let freed = self.iova.free_counted(mapped.lease, |tally| {
            tally.invalidations = tally.invalidations.wrapping_add(1);
            if let Some(Account { counters, print }) = account {
                tally.exposed = tally.exposed.wrapping_sub(print.exposed);
                counters.end(tally.cpu, Under::Map, print);
            }
        });
        debug_assert!(freed.is_ok(), "a lease is freed once, as it was taken");
        Ok(())
    }

    /// Ends a mapping at the next flush; at once in strict mode.
    ///
    /// `release` is taken, and runs once the memory may be reused; if that moment never comes it never
    /// runs. The answer tells where the unmap waits.
    ///
    /// # Errors
    /// As [`unmap`](Self::unmap); `release` must then not be run.
    ///
    /// # Safety
    /// `mapped` came from this domain and is ended once.
    #[inline(always)]
    pub(crate) unsafe fn unmap_later(
        &self,
        mapped: &Mapped,
        release: &mut Option<Release>,
        account: &Account<'_>,
    ) -> Result<Option<Ticket>, UnmapError> {
        let Some(quarantine) = &self.quarantine else {
            // SAFETY: the caller's promise. If this fails the release never runs: running it would let
            // memory be reused that a device may still reach.
            unsafe { self.unmap_counted(mapped, Some(account)) }?;
            if let Some(release) = release.take() {
                release.run();
            }
            return Ok(None);
        };
        // SAFETY: the mapping is live and the caller's, who ends it once.
        let unmapped = match unsafe { self.translation.unmap(mapped.range, mapped.hint) } {
            Ok(unmapped) => unmapped,
            Err(cause) => return Err(self.leak(*mapped, cause, Some(*account))),
        };
        let entry = Entry { lease: mapped.lease, tables: unmapped.tables };
        match quarantine.push(&self.platform, entry, release, Some(account)) {
            Pushed::Waiting(ticket) => Ok(Some(ticket)),
            Pushed::Due(ticket) => {
                // The entry is safe where it is; a flush that fails now is tried again.
                let _ = self.flush();
                Ok(Some(ticket))
            }
            Pushed::Full => self.push_again(quarantine, entry, release, *mapped, *account),
        }
    }

    /// Flushes for an entry that found no room.
    #[cold]
    #[inline(never)]
    fn push_again(
        &self,
        quarantine: &Quarantine<P>,
        entry: Entry,
        release: &mut Option<Release>,
        mapped: Mapped,
        account: Account<'_>,
    ) -> Result<Option<Ticket>, UnmapError> {
        loop {
            if let Err(cause) = self.flush() {
                return Err(self.leak(mapped, cause.into(), Some(account)));
            }
            match quarantine.push(&self.platform, entry, release, Some(&account)) {
                Pushed::Waiting(ticket) | Pushed::Due(ticket) => return Ok(Some(ticket)),
                Pushed::Full => {}
            }
        }
    }

    /// Invalidates, and gives back everything that waits in quarantine.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: everything stays in quarantine, and the domain is poisoned until
    /// [`recover`](Self::recover).
    #[inline(never)]
    pub fn flush(&self) -> Result<(), UnitError> {
        let Some(quarantine) = &self.quarantine else {
            return Ok(());
        };
        let result = quarantine.flush(
            || self.invalidate(&Invalidation::ALL),
            |batch| {
                let entries = batch.iter().flatten().map(Waiting::entry);
                entries.clone().for_each(|entry| self.reap(entry.lease, entry.tables));
                let leases = entries.map(|entry| entry.lease);
                let freed = self.iova.free_many(leases, |_, _| ());
                debug_assert!(freed.is_ok(), "a lease is freed once, as it was taken");
            },
        );
        if result.is_err() {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }

    /// Flushes if something has waited as long as it may. For the platform's timer.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn poll(&self) -> Result<(), UnitError> {
        match &self.quarantine {
            Some(quarantine) if quarantine.is_due(self.platform.now()) => self.flush(),
            _ => Ok(()),
        }
    }

    /// Tries to leave the poisoned state after the hardware was reset or has recovered: programs
    /// the streams again, drops all caches, and gives back what waits in quarantine. What was leaked
    /// stays leaked.
    ///
    /// # Errors
    /// [`TranslationError`]; the domain stays poisoned.
    pub fn recover(&self) -> Result<(), TranslationError> {
        self.translation.resume()?;
        self.invalidate(&Invalidation::ALL)?;
        self.flush()?;
        self.poisoned.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether a deferred unmap has been flushed.
    pub(crate) fn is_flushed(&self, ticket: Ticket) -> bool {
        self.quarantine.as_ref().is_none_or(|quarantine| quarantine.is_flushed(ticket))
    }

    #[inline]
    pub(super) fn invalidate(&self, request: &Invalidation) -> Result<(), UnitError> {
        let result = self.translation.invalidate(request);
        if result.is_ok() {
            self.iova.count(|tally| tally.invalidations = tally.invalidations.wrapping_add(1));
        }
        result
    }

    /// Frees the tables of a range, if there are any, after a completed invalidation.
    #[inline]
    fn reap(&self, lease: IovaRange, tables: bool) {
        if tables {
            // SAFETY: an invalidation of tables that covers the range has completed, and the
            // lease keeps the range ours.
            unsafe { self.translation.reap(lease) };
        }
    }

    pub(super) fn give_back(&self, lease: IovaRange) {
        let freed = self.iova.free(lease);
        debug_assert!(freed.is_ok(), "a lease is freed once, as it was taken");
    }

    /// Leaves a mapping's memory and IOVA in quarantine for ever.
    #[cold]
    #[inline(never)]
    fn leak(
        &self,
        mapped: Mapped,
        cause: TranslationError,
        account: Option<Account<'_>>,
    ) -> UnmapError {
        self.poison(mapped.lease.len());
        if let Some(account) = &account {
            self.end(account, false);
        }
        UnmapError { range: mapped.range, cause }
    }

    pub(super) fn poison(&self, bytes: u64) {
        self.leaked.fetch_add(bytes, Ordering::Relaxed);
        self.poisoned.store(true, Ordering::Release);
    }
}
