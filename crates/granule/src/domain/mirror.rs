//! One address space kept in step over several translations that cannot share a table.
//!
//! A device behind two IOMMUs at once (Apple's USB controllers, the image signal processor behind
//! three) sees each address through all of them, so they must agree at every moment that matters:
//! a map is done everywhere or nowhere.

use alloc::vec::Vec;

use super::{
    Attached, Geometry, Invalidation, Stream, Translation, TranslationError, UnitError, UnitReport,
};
use crate::addr::{Attributes, Iova, IovaRange, PageSizes, PhysRange};
use crate::table::{Fence, Hint, Resolved, Unmapped};

/// Several translations that always say the same.
///
/// The streams' unit numbers count through all of them: those of the first translation's units
/// come first.
pub struct Mirror<T: Translation> {
    sides: Vec<T>,
    first_unit: Vec<usize>,
    geometry: Geometry,
}

impl<T: Translation> Mirror<T> {
    /// Keeps `sides` in step from now on. They are empty and have no stream attached.
    ///
    /// # Errors
    /// [`TranslationError::NoCommonPageSize`] if two of them share no page size;
    /// [`TranslationError::NoUnit`] if there is none, or no address that all translate.
    pub fn new(sides: Vec<T>) -> Result<Self, TranslationError> {
        let mut geometry = sides.first().ok_or(TranslationError::NoUnit)?.geometry().clone();
        for side in &sides {
            let other = side.geometry();
            geometry.page_sizes = common_sizes(&sides[0], &geometry, side)?;
            geometry.aperture =
                geometry.aperture.intersection(&other.aperture).ok_or(TranslationError::NoUnit)?;
            geometry.output =
                geometry.output.intersection(&other.output).ok_or(TranslationError::NoUnit)?;
            if geometry.fence_unit != other.fence_unit {
                geometry.fence_unit = 0;
            }
        }
        let mut first_unit = Vec::with_capacity(sides.len());
        let mut count = 0;
        for side in &sides {
            first_unit.push(count);
            count += side.units().len();
        }
        Ok(Self { sides, first_unit, geometry })
    }

    /// The sides, in order.
    pub fn sides(&self) -> &[T] {
        &self.sides
    }

    /// The side that has the stream's unit, and the stream as that side counts.
    fn side_of(&self, stream: Stream) -> Option<(&T, Stream)> {
        let index = self.first_unit.iter().rposition(|first| *first <= stream.unit)?;
        Some((&self.sides[index], stream.at_unit(stream.unit - self.first_unit[index])))
    }

    /// Performs `step` on every side, or undoes it on those where it had succeeded.
    fn all_or_none<R>(
        &self,
        mut step: impl FnMut(&T) -> Result<R, TranslationError>,
        undo: impl Fn(&T),
    ) -> Result<R, TranslationError> {
        let mut first = None;
        for (index, side) in self.sides.iter().enumerate() {
            match step(side) {
                Ok(result) => first = first.or(Some(result)),
                Err(error) => {
                    self.sides[..index].iter().for_each(undo);
                    return Err(error);
                }
            }
        }
        first.ok_or(TranslationError::NoUnit)
    }
}

/// The page sizes that what was seen so far and `side` have in common.
fn common_sizes<T: Translation>(
    first: &T,
    so_far: &Geometry,
    side: &T,
) -> Result<PageSizes, TranslationError> {
    let sizes = so_far.page_sizes.intersection(side.geometry().page_sizes);
    if !sizes.is_empty() {
        return Ok(sizes);
    }
    let name = |side: &T| side.units().first().map(|unit| unit.name.clone()).unwrap_or_default();
    Err(TranslationError::NoCommonPageSize {
        first: name(first),
        first_sizes: so_far.page_sizes,
        second: name(side),
        second_sizes: side.geometry().page_sizes,
    })
}

/// Removes what a failed call had mapped on one side. Its caches are dropped by the caller, who
/// invalidates after every failed map.
fn unmap_range<T: Translation>(side: &T, range: Result<IovaRange, crate::addr::RangeError>) {
    if let Ok(range) = range {
        // SAFETY: the range was just mapped by the call that failed, and belongs to its caller.
        let undone = unsafe { side.unmap(range, Hint::NONE) };
        debug_assert!(
            undone.is_ok(),
            "a range that was just mapped as a whole can be unmapped as one"
        );
    }
}

// SAFETY: every side keeps its promises; a call that fails on one side is undone on those before
// it, and invalidation and detachment succeed only if they do on all sides.
unsafe impl<T: Translation> Translation for Mirror<T> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError> {
        self.all_or_none(
            // SAFETY: the caller's promises hold for every side.
            |side| unsafe { side.map(iova, phys, attrs) },
            |side| unmap_range(side, IovaRange::new(iova, phys.len())),
        )
    }

    unsafe fn map_fenced(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
        fence: Fence,
    ) -> Result<Hint, TranslationError> {
        self.all_or_none(
            // SAFETY: the caller's promises hold for every side.
            |side| unsafe { side.map_fenced(iova, phys, attrs, fence) },
            |side| unmap_range(side, IovaRange::new(iova, phys.len())),
        )
    }

    unsafe fn map_list<I>(
        &self,
        iova: Iova,
        pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        let len = pieces.clone().map(|piece| piece.len()).fold(0u64, u64::saturating_add);
        self.all_or_none(
            // SAFETY: the caller's promises hold for every side.
            |side| unsafe { side.map_list(iova, pieces.clone(), attrs) },
            |side| unmap_range(side, IovaRange::new(iova, len)),
        )
    }

    fn sync_map(&self, range: IovaRange) -> Result<(), UnitError> {
        self.sides.iter().try_for_each(|side| side.sync_map(range))
    }

    unsafe fn unmap(&self, range: IovaRange, hint: Hint) -> Result<Unmapped, TranslationError> {
        // A hint is of the first side's table only. All sides hold the same pages of the common
        // sizes or larger ones of their own; a range that was mapped as one cuts none of them.
        let mut result: Option<Unmapped> = None;
        for (index, side) in self.sides.iter().enumerate() {
            let hint = if index == 0 { hint } else { Hint::NONE };
            // SAFETY: the caller's promises hold for every side.
            let unmapped = unsafe { side.unmap(range, hint) }?;
            result = Some(match result {
                Some(first) => Unmapped { tables: first.tables | unmapped.tables, ..first },
                None => unmapped,
            });
        }
        result.ok_or(TranslationError::NoUnit)
    }

    fn invalidate(&self, request: &Invalidation) -> Result<(), UnitError> {
        // All sides are tried, so that one that hangs does not keep the others from forgetting.
        let mut result = Ok(());
        for side in &self.sides {
            result = result.and(side.invalidate(request));
        }
        result
    }

    unsafe fn reap(&self, range: IovaRange) {
        // SAFETY: the caller's promises hold for every side.
        self.sides.iter().for_each(|side| unsafe { side.reap(range) });
    }

    fn resolve(&self, iova: Iova) -> Option<Resolved> {
        self.sides.first()?.resolve(iova)
    }

    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64)) {
        if let Some(side) = self.sides.first() {
            side.for_each_page(range, visit);
        }
    }

    fn mapped_bytes(&self, range: IovaRange) -> u64 {
        self.sides.first().map_or(0, |side| side.mapped_bytes(range))
    }

    fn table_pages(&self) -> usize {
        self.sides.iter().map(Translation::table_pages).sum()
    }

    fn units(&self) -> Vec<UnitReport> {
        self.sides.iter().flat_map(Translation::units).collect()
    }

    unsafe fn attach(&self, stream: Stream) -> Result<Attached, TranslationError> {
        let count = self.sides.iter().map(|side| side.units().len()).sum();
        let (side, local) = self
            .side_of(stream)
            .ok_or(TranslationError::NoSuchUnit { unit: stream.unit, count })?;
        // SAFETY: the side lives as long as this translation.
        unsafe { side.attach(local) }
    }

    fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        match self.side_of(stream) {
            Some((side, local)) => side.detach(local),
            None => Ok(()),
        }
    }

    fn resume(&self) -> Result<(), TranslationError> {
        self.sides.iter().try_for_each(Translation::resume)
    }
}
