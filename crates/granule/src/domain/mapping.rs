//! Making mappings: lease addresses, write entries, and undo all of it if anything fails.

use super::counters::{Account, Tally};
use super::{
    Domain, DomainError, Invalidation, Mapped, Placement, Translation, TranslationError,
    UnmapError, fits,
};
use crate::addr::{Attributes, Iova, IovaRange, PhysRange};
use crate::iova::{IovaRequest, Terms};
use crate::mem::Platform;
use crate::table::{Fence, Hint};
use core::sync::atomic::Ordering;

/// The range for a mapping, and the range that was taken for it.
type Leased = Result<(IovaRange, IovaRange), DomainError>;

/// A mapping is counted in, or exposes what it must not.
struct Admission<'a, P: Platform, T: Translation> {
    domain: &'a Domain<P, T>,
    account: &'a Account<'a>,
}

impl<P: Platform, T: Translation> Terms<Tally> for Admission<'_, P, T> {
    #[inline(always)]
    fn admit(self, tally: &mut Tally) -> bool {
        self.domain.admit(tally, Some(self.account))
    }
}

impl<P: Platform, T: Translation> Domain<P, T> {
    /// Takes IOVA space, and counts what will be mapped there. If there is none, what waits in
    /// quarantine is flushed first.
    #[inline]
    fn lease(&self, place: &Placement, account: Option<&Account<'_>>) -> Leased {
        if !place.guard && place.at.is_none() && !self.is_poisoned() {
            // A window that all addresses lie in is none, and costs the allocator no look.
            let open = place.window.contains_range(&self.usable());
            let window = if open { None } else { Some(place.window) };
            let request = IovaRequest { size: place.size, align: place.align, window };
            let mut admitted = true;
            let count = |tally: &mut Tally| admitted = self.admit(tally, account);
            if let Ok(start) = self.iova.alloc_counted(&request, count) {
                // What was allocated lies inside the aperture: a legal range.
                if let Ok(range) = IovaRange::new(start, place.size) {
                    return if admitted { Ok((range, range)) } else { self.refuse(range, account) };
                }
            }
        }
        self.lease_slowly(place, account)
    }

    #[cold]
    #[inline(never)]
    fn lease_slowly(&self, place: &Placement, account: Option<&Account<'_>>) -> Leased {
        if self.is_poisoned() {
            return Err(DomainError::Poisoned);
        }
        let (range, lease) = match self.try_lease(place) {
            Err(DomainError::Iova(_)) if self.has_waiting() => {
                self.flush().map_err(TranslationError::from)?;
                self.try_lease(place)?
            }
            result => result?,
        };
        if self.iova.count(|tally| self.admit(tally, account)) {
            Ok((range, lease))
        } else {
            self.refuse(lease, account)
        }
    }

    /// Gives a range back in which nothing was mapped, since it would expose what it must not.
    #[cold]
    fn refuse(&self, lease: IovaRange, account: Option<&Account<'_>>) -> Leased {
        self.give_back(lease);
        Err(DomainError::Exposes { bytes: account.map_or(0, |account| account.print.exposed) })
    }

    fn try_lease(&self, place: &Placement) -> Leased {
        let overflow =
            || DomainError::Range { range: place.window, reason: "the request passes 2^64 bytes" };
        let guard = if place.guard { place.align.max(self.granule.size()) } else { 0 };
        if let Some(at) = place.at {
            let range = IovaRange::new(at, place.size).map_err(|_| overflow())?;
            if !place.window.contains_range(&range) {
                let reason = "the device cannot use all of it: its mask or window ends before";
                return Err(DomainError::Range { range, reason });
            }
            let guarded = guard_around(range, if place.guard { self.granule.size() } else { 0 })
                .ok_or_else(overflow)?;
            self.iova.alloc_at(guarded)?;
            return Ok((range, guarded));
        }
        let size = place
            .size
            .checked_add(guard)
            .and_then(|s| s.checked_add(guard))
            .ok_or_else(overflow)?;
        let request = IovaRequest { size, align: place.align, window: Some(place.window) };
        let start = self.iova.alloc(&request)?;
        let lease = IovaRange::new(start, size).map_err(|_| overflow())?;
        let range = lease.slice(guard, place.size).ok_or_else(overflow)?;
        Ok((range, lease))
    }

    pub(crate) fn has_waiting(&self) -> bool {
        self.quarantine.as_ref().is_some_and(|quarantine| quarantine.waiting() != 0)
    }

    /// Maps one piece of physical memory, as long as its placement.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is then mapped or taken.
    ///
    /// # Safety
    /// `phys` is whole granules of memory that the domain's devices may reach as `attrs` says; it
    /// stays allocated until [`unmap`](Self::unmap) has returned `Ok`, or for ever.
    #[inline]
    pub unsafe fn map(
        &self,
        place: &Placement,
        phys: PhysRange,
        attrs: Attributes,
        fence: Option<Fence>,
    ) -> Result<Mapped, DomainError> {
        fits::filled(place, core::iter::once(phys))?;
        self.check_reach(phys)?;
        // SAFETY: the caller's promise.
        unsafe { self.map_within(place, phys, attrs, fence, None) }
    }

    /// [`map`](Self::map) of memory that is known to be in reach and to fill the placement, counted.
    ///
    /// # Safety
    /// As [`map`](Self::map), and the memory is what is said of it.
    pub(crate) unsafe fn map_within(
        &self,
        place: &Placement,
        phys: PhysRange,
        attrs: Attributes,
        fence: Option<Fence>,
        account: Option<&Account<'_>>,
    ) -> Result<Mapped, DomainError> {
        // Only the rare mapping with a fence may be leased where everything is rare.
        let (range, lease) = match fence {
            None => self.lease(place, account)?,
            Some(_) => self.lease_slowly(place, account)?,
        };
        // SAFETY: the range was just leased, so it is ours and unmapped; the memory is the
        // caller's promise.
        let result = unsafe {
            match fence {
                None => self.translation.map(range.start(), phys, attrs),
                Some(fence) => self.translation.map_fenced(range.start(), phys, attrs, fence),
            }
        };
        self.settle(range, lease, result, account)
    }

    /// Maps a few granules that are known to be in reach anywhere in the domain, counted, if that takes
    /// no more than a range that is at hand and entries in a table that exists. `None` if it takes
    /// more, or must not be done: nothing is done then. All of it becomes part of its caller.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    #[inline(always)]
    pub(crate) unsafe fn try_map(
        &self,
        phys: PhysRange,
        attrs: Attributes,
        account: &Account<'_>,
    ) -> Option<(Iova, Hint)> {
        if self.is_poisoned() {
            return None;
        }
        let start = self.iova.take_counted(phys.len(), Admission { domain: self, account })?;
        // SAFETY: the range was just leased, so it is ours and unmapped; the memory is the
        // caller's promise.
        match unsafe { self.translation.try_map(start, phys, attrs) } {
            Some(hint) => Some((start, hint)),
            None => {
                self.forgo(start, phys.len(), *account);
                None
            }
        }
    }

    /// Gives a range back in which nothing was written, and counts it out.
    #[cold]
    #[inline(never)]
    fn forgo(&self, start: Iova, len: u64, account: Account<'_>) {
        self.cancel(&account, false);
        if let Ok(lease) = IovaRange::new(start, len) {
            self.give_back(lease);
        }
    }

    /// Maps pieces one behind the other, which together are as long as the placement.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is then mapped or taken.
    ///
    /// # Safety
    /// As [`map`](Self::map), for each piece. The iterator's clones give the same pieces.
    #[inline]
    pub unsafe fn map_list<I>(
        &self,
        place: &Placement,
        pieces: I,
        attrs: Attributes,
    ) -> Result<Mapped, DomainError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        fits::filled(place, pieces.clone())?;
        pieces.clone().try_for_each(|phys| self.check_reach(phys))?;
        let (range, lease) = self.lease(place, None)?;
        // SAFETY: the range was just leased; the rest is the caller's promise.
        let result = unsafe { self.translation.map_list(range.start(), pieces, attrs) };
        self.settle(range, lease, result.map(|()| Hint::NONE), None)
    }

    /// [`map_list`](Self::map_list) of whole granules that are known to be in reach and to fill the
    /// placement, counted.
    ///
    /// # Safety
    /// As [`map_list`](Self::map_list), and the pieces are what is said of them.
    #[inline]
    pub(crate) unsafe fn map_list_within<I>(
        &self,
        place: &Placement,
        pieces: I,
        attrs: Attributes,
        account: Option<&Account<'_>>,
    ) -> Result<Mapped, DomainError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        let (range, lease) = self.lease(place, account)?;
        // SAFETY: the range was just leased; the rest is the caller's promise.
        let result = unsafe { self.translation.map_checked_list(range, pieces, attrs) };
        self.settle(range, lease, result.map(|()| Hint::NONE), account)
    }

    /// Maps pieces at their offsets from the start of the placement: in order, without overlap, and
    /// inside. What lies between stays unmapped.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is then mapped or taken.
    ///
    /// # Safety
    /// As [`map_list`](Self::map_list).
    pub unsafe fn map_pieces<I>(
        &self,
        place: &Placement,
        pieces: I,
        attrs: Attributes,
    ) -> Result<Mapped, DomainError>
    where
        I: Iterator<Item = (u64, PhysRange)> + Clone,
    {
        fits::spread(place, pieces.clone())?;
        pieces.clone().try_for_each(|(_, phys)| self.check_reach(phys))?;
        // SAFETY: the caller's promise.
        unsafe { self.map_pieces_within(place, pieces, attrs, None) }
    }

    /// [`map_pieces`](Self::map_pieces) of memory that is known to be in reach, counted.
    ///
    /// # Safety
    /// As [`map_pieces`](Self::map_pieces), and the pieces lie in the placement as it says there.
    pub(crate) unsafe fn map_pieces_within<I>(
        &self,
        place: &Placement,
        pieces: I,
        attrs: Attributes,
        account: Option<&Account<'_>>,
    ) -> Result<Mapped, DomainError>
    where
        I: Iterator<Item = (u64, PhysRange)> + Clone,
    {
        let (range, lease) = self.lease_slowly(place, account)?;
        // SAFETY: the range was just leased; the rest is the caller's promise.
        let result = unsafe { self.map_runs(range.start(), pieces, attrs) };
        self.settle(range, lease, result.map(|()| Hint::NONE), account)
    }

    /// Maps each run of pieces that follow each other without a gap in one go.
    ///
    /// # Safety
    /// As [`Self::map_pieces`], with everything from `start` on leased.
    unsafe fn map_runs<I>(
        &self,
        start: Iova,
        mut pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = (u64, PhysRange)> + Clone,
    {
        while let Some((offset, count)) = next_run(pieces.clone()) {
            let run = pieces.clone().take(count).map(|(_, phys)| phys);
            let iova = Iova::new(start.raw().wrapping_add(offset));
            // SAFETY: the caller's promise.
            if let Err(error) = unsafe { self.translation.map_list(iova, run, attrs) } {
                if let Ok(before) = IovaRange::new(start, offset) {
                    // SAFETY: all of it is leased, and was mapped by this call or not at all.
                    unsafe { self.translation.unmap(before, Hint::NONE) }?;
                }
                return Err(error);
            }
            pieces.nth(count - 1);
        }
        Ok(())
    }

    /// Takes IOVA space and maps nothing there yet.
    pub(crate) fn reserve_only(
        &self,
        place: &Placement,
        account: &Account<'_>,
    ) -> Result<Mapped, DomainError> {
        let (range, lease) = self.lease_slowly(place, Some(account))?;
        Ok(Mapped { range, lease, hint: Hint::NONE })
    }

    /// Maps memory in a part of a reservation.
    ///
    /// # Safety
    /// As [`map`](Self::map); the part was reserved by the caller and nothing is mapped there.
    pub(crate) unsafe fn link(
        &self,
        part: IovaRange,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<(), DomainError> {
        self.check_reach(phys)?;
        if self.is_poisoned() {
            return Err(DomainError::Poisoned);
        }
        // SAFETY: the caller's promise.
        let linked = unsafe { self.translation.map(part.start(), phys, attrs) };
        let linked = linked.and_then(|_| Ok(self.translation.sync_map(part)?));
        linked.map_err(|error| {
            // SAFETY: the part is the caller's, and nothing else is mapped there.
            match unsafe { self.unlink(part) } {
                Ok(()) => {
                    // A side of a mirror may have undone its map already, and detached tables.
                    // SAFETY: a covering invalidation has completed.
                    unsafe { self.translation.reap(part) };
                    error.into()
                }
                Err(_) => DomainError::Stale { cause: error },
            }
        })
    }

    /// Unmaps a part of a reservation, at once.
    ///
    /// # Safety
    /// The part was linked by the caller.
    pub(crate) unsafe fn unlink(&self, part: IovaRange) -> Result<(), UnmapError> {
        // SAFETY: the caller's promise.
        let unmapped = unsafe { self.translation.unmap(part, Hint::NONE) }
            .map_err(|cause| UnmapError { range: part, cause })?;
        let request = Invalidation { range: Some(part), tables: true };
        if let Err(error) = self.invalidate(&request) {
            self.poison(part.len());
            return Err(UnmapError { range: part, cause: error.into() });
        }
        if unmapped.tables {
            // SAFETY: a covering invalidation has completed.
            unsafe { self.translation.reap(part) };
        }
        Ok(())
    }

    /// A stream could not be blocked: nothing new is mapped for it.
    pub(crate) fn lose(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Ends a map: hands out the mapping, or sees to it that nothing of it is left.
    #[inline(always)]
    fn settle(
        &self,
        range: IovaRange,
        lease: IovaRange,
        result: Result<Hint, TranslationError>,
        account: Option<&Account<'_>>,
    ) -> Result<Mapped, DomainError> {
        match result {
            Ok(hint) => {
                let mapped = Mapped { range, lease, hint };
                match self.translation.sync_map(range) {
                    Ok(()) => Ok(mapped),
                    Err(error) => Err(self.abandon(mapped, error.into(), account)),
                }
            }
            Err(error) => {
                Err(self.abandon(Mapped { range, lease, hint: Hint::NONE }, error, account))
            }
        }
    }

    /// Cleans up after a map that failed. Entries were visible for a moment, so the IOVA may only
    /// be reused once the caches have forgotten them.
    #[cold]
    fn abandon(
        &self,
        mapped: Mapped,
        error: TranslationError,
        account: Option<&Account<'_>>,
    ) -> DomainError {
        // SAFETY: the range is leased to the call that failed.
        let undone = unsafe { self.translation.unmap(mapped.range, Hint::NONE) };
        let request = Invalidation { range: Some(mapped.range), tables: true };
        let dropped = undone.is_ok() && self.invalidate(&request).is_ok();
        if let Some(account) = account {
            self.cancel(account, !dropped);
        }
        if dropped {
            // SAFETY: a covering invalidation has completed.
            unsafe { self.translation.reap(mapped.range) };
            self.give_back(mapped.lease);
            return error.into();
        }
        self.poison(mapped.lease.len());
        DomainError::Stale { cause: error }
    }
}

fn guard_around(range: IovaRange, guard: u64) -> Option<IovaRange> {
    let start = range.start().checked_sub(guard)?;
    IovaRange::new(start, range.len().checked_add(guard)?.checked_add(guard)?).ok()
}

/// The first run of pieces that follow each other without a gap: its offset, and how many pieces
/// it has, at least one.
fn next_run(mut pieces: impl Iterator<Item = (u64, PhysRange)>) -> Option<(u64, usize)> {
    let (offset, first) = pieces.next()?;
    let mut end = offset + first.len();
    let joined = pieces.take_while(|(at, phys)| {
        let joins = *at == end;
        end += phys.len();
        joins
    });
    Some((offset, 1 + joined.count()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PhysAddr;

    #[test]
    fn a_run_ends_at_the_first_gap() {
        let piece = |at: u64, len: u64| {
            (at, PhysRange::new(PhysAddr::new(0x10_0000 + at * 3), len).expect("legal"))
        };
        let pieces = [piece(0x1000, 0x2000), piece(0x3000, 0x1000), piece(0x4000, 0x3000)];
        let behind = [piece(0x8000, 0x1000), piece(0x9000, 0x1000)];
        let run = |pieces: &[(u64, PhysRange)]| next_run(pieces.iter().copied());
        assert_eq!(run(&[]), None);
        assert_eq!(run(&pieces[..1]), Some((0x1000, 1)));
        assert_eq!(run(&pieces), Some((0x1000, 3)));
        assert_eq!(run(&[&pieces[..], &behind].concat()), Some((0x1000, 3)));
        assert_eq!(run(&behind), Some((0x8000, 2)));
    }

    #[test]
    fn guards_stand_on_both_sides_or_the_range_is_refused() {
        let range = |at, len| IovaRange::new(Iova::new(at), len).expect("legal");
        assert_eq!(guard_around(range(0x4000, 0x1000), 0x1000), Some(range(0x3000, 0x3000)));
        assert_eq!(guard_around(range(0x4000, 0x1000), 0), Some(range(0x4000, 0x1000)));
        assert_eq!(guard_around(range(0x800, 0x1000), 0x1000), None);
        assert_eq!(guard_around(range(u64::MAX - 0xfff, 0x1000), 0x1000), None);
    }
}
