//! Mapping: the largest page at every step, one cursor, all or nothing.

use super::cursor::{Cursor, pattern};
use super::format::{Fence, Format, encode, shift};
use super::geometry::check_access;
use super::hint::Hint;
use super::{Entry, PageTable, TableError, TableMemory, run};
use crate::addr::{Attributes, Iova, IovaRange, PhysRange};

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Maps `phys` at `iova` with the largest pages that fit, and returns a hint for
    /// [`unmap`](Self::unmap) if the mapping is small. The entries are visible to the walker when
    /// this returns; the backend decides whether its hardware caches negative entries.
    ///
    /// A table page that exists already is filled, even where a large page would fit: nothing live
    /// is replaced.
    ///
    /// # Errors
    /// A typed error, after which nothing of the call is mapped any more; a request that is wrong
    /// in itself writes nothing at all. After a conflict or a lack of memory, entries stood there
    /// for a while: invalidate the range before reusing its memory or IOVA. Nothing is to be reaped.
    ///
    /// # Safety
    /// The range at `iova` is the caller's own (see [`PageTable`]), and the device may do to the
    /// memory what `attributes` allow until the range was unmapped and invalidated.
    #[inline]
    pub unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attributes: Attributes,
    ) -> Result<Hint, TableError> {
        // SAFETY: the caller's promise.
        match unsafe { self.try_map(iova, phys, attributes) } {
            Some(hint) => Ok(hint),
            None => self.map_long(iova, phys, attributes),
        }
    }

    /// As [`map`](Self::map), if it takes no more than a run of pages in a table that exists. `None` if
    /// it takes more, or cannot be done; then nothing was written.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    #[inline(always)]
    pub unsafe fn try_map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attributes: Attributes,
    ) -> Option<Hint> {
        let hint = match self.map_page(iova.raw(), phys, attributes) {
            Some(hint) => hint,
            None => self.map_few(iova, phys, attributes)?,
        };
        self.memory.barrier();
        Some(hint)
    }

    /// One page in a table that exists. `None` if it is anything else, a wrong request included;
    /// then nothing was written.
    #[inline(always)]
    fn map_page(&self, at: u64, phys: PhysRange, attributes: Attributes) -> Option<Hint> {
        let to = phys.start().raw();
        let sound = phys.len() == F::GRANULE.size()
            && to & self.geometry.not_in_phys == 0
            && !attributes.access.is_empty();
        if !sound {
            return None;
        }
        let (entry, place) = self.page_entry(at)?;
        if entry.peek() != 0 {
            return None;
        }
        entry.fill(encode::<F>(to) | F::leaf(attributes, 0, 0));
        Some(Hint::new(place, 1))
    }

    #[inline(never)]
    fn map_few(&self, iova: Iova, phys: PhysRange, attributes: Attributes) -> Option<Hint> {
        self.map_short(iova.raw(), phys.start().raw(), phys.len(), attributes)
    }

    /// The short way: a run of equal pages in a table that exists. `None` if there is anything to
    /// think about, a wrong request included; then nothing was written.
    #[inline(always)]
    fn map_short(&self, at: u64, phys: u64, len: u64, attributes: Attributes) -> Option<Hint> {
        let g = F::GRANULE.shift();
        let (span, mask) = (1u64 << shift::<F>(1), F::GRANULE.mask());
        let offset = at & (span - 1);
        let sound = (at | phys | len) & mask == 0
            && len < span
            && offset + len <= span
            && (at + (len - 1)) >> self.geometry.input_bits == 0
            && (phys + (len - 1)) >> self.geometry.output_bits == 0
            && !attributes.access.is_empty()
            // Where walkers do not snoop, the slow walk sees to the entries on the way.
            && self.memory.coherent()
            && self.geometry.levels > 1;
        if !sound {
            return None;
        }
        let table = self.lowest(at);
        if table.level != 0 {
            return None;
        }
        let (index, count) = ((offset >> g) as usize, (len >> g) as usize);
        let group = self.geometry.alike::<F>(at, phys, count)?;
        let entries = table.entries.get(index..index + count)?;
        let (first, step) = pattern::<F>(F::leaf(attributes, 0, group), phys, 0, group);
        run::fill_or_restore(entries, first, step)
            .then(|| Hint::new(table.phys + index as u64 * 8, count))
    }

    #[cold]
    #[inline(never)]
    fn map_long(
        &self,
        iova: Iova,
        phys: PhysRange,
        attributes: Attributes,
    ) -> Result<Hint, TableError> {
        let start = self.check(iova, phys, attributes)?;
        let mut cursor = Cursor::new(self, start, attributes);
        let done = cursor.write(phys.start().raw(), phys.len(), self.root_level());
        cursor.finish(start, done)?;
        Ok(cursor.hint(start))
    }

    /// Maps `phys` at `iova` with the first and last granule partly closed to the device, where the
    /// entries can express that (DART). **Unverified on hardware**: see [`Fence`].
    ///
    /// # Errors
    /// As [`map`](Self::map); [`TableError::Unsupported`] if the format has no fences,
    /// [`TableError::BadFence`] if they are not whole units or close a granule altogether.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    pub unsafe fn map_fenced(
        &self,
        iova: Iova,
        phys: PhysRange,
        attributes: Attributes,
        fence: Fence,
    ) -> Result<Hint, TableError> {
        let start = self.check(iova, phys, attributes)?;
        check_fence::<F>(phys, fence)?;
        let mut cursor = Cursor::new(self, start, attributes);
        let done = cursor.write_fenced(phys, fence);
        cursor.finish(start, done)?;
        Ok(cursor.hint(start))
    }

    /// Maps pieces of physical memory one behind the other from `iova`. Pieces that adjoin
    /// physically share large pages. The list is read twice. An empty list maps nothing.
    ///
    /// # Errors
    /// As [`map`](Self::map), for the list as a whole.
    ///
    /// # Safety
    /// As [`map`](Self::map), for every piece.
    pub unsafe fn map_list<I>(
        &self,
        iova: Iova,
        list: I,
        attributes: Attributes,
    ) -> Result<(), TableError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        check_access(attributes)?;
        let total = self.total(&list)?;
        if total == 0 {
            return Ok(());
        }
        let (start, _) = self.geometry.span::<F>(iova, total)?;
        let mut cursor = Cursor::new(self, start, attributes);
        let done = cursor.write_list(list, total);
        cursor.finish(start, done)
    }

    /// Maps a list as [`map_list`](Self::map_list) does, of which it is known that it is `range.len()`
    /// bytes long, so that it is read once. What is found to be wrong on the way is refused all the same,
    /// but tables may have been made by then; nothing is mapped outside the range.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    ///
    /// # Safety
    /// As [`map_list`](Self::map_list).
    pub unsafe fn map_checked_list<I>(
        &self,
        range: IovaRange,
        list: I,
        attributes: Attributes,
    ) -> Result<(), TableError>
    where
        I: Iterator<Item = PhysRange>,
    {
        check_access(attributes)?;
        let (start, _) = self.geometry.span::<F>(range.start(), range.len())?;
        let mut cursor = Cursor::new(self, start, attributes);
        let done = cursor.write_list(list, range.len());
        cursor.finish(start, done)
    }

    /// Checks a list's pieces against granule and output bits, and sums them up.
    #[inline(always)]
    fn total<I>(&self, list: &I) -> Result<u64, TableError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        let (mut total, mut edges, mut lasts) = (0u64, 0u64, 0u64);
        for piece in list.clone() {
            edges |= piece.start().raw() | piece.len();
            lasts |= piece.last().raw();
            // Sums past 2^64 end as a length that no table indexes.
            total = total.checked_add(piece.len()).unwrap_or(F::GRANULE.size().wrapping_neg());
        }
        // One look at all of them says what is usual; which one is wrong takes another pass.
        if edges & F::GRANULE.mask() != 0 || lasts >> self.geometry.output_bits != 0 {
            list.clone().try_for_each(|piece| self.geometry.output::<F>(piece))?;
        }
        Ok(total)
    }

    #[inline(always)]
    fn check(
        &self,
        iova: Iova,
        phys: PhysRange,
        attributes: Attributes,
    ) -> Result<u64, TableError> {
        check_access(attributes)?;
        self.geometry.output::<F>(phys)?;
        self.geometry.span::<F>(iova, phys.len()).map(|(start, _)| start)
    }
}

fn check_fence<F: Format>(phys: PhysRange, fence: Fence) -> Result<(), TableError> {
    let (unit, granule) = (F::FENCE_UNIT, F::GRANULE.size());
    if unit == 0 {
        return Err(TableError::Unsupported { format: F::ID });
    }
    let Fence { front, back } = fence;
    let whole = front % unit == 0 && back % unit == 0;
    let open =
        front < granule && back < granule && (phys.len() > granule || front + back < granule);
    if whole && open { Ok(()) } else { Err(TableError::BadFence { front, back, unit }) }
}
