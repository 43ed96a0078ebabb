//! A translation of any geometry that notes what it is told, and holds the layers above to its contract:
//! whole granules, inside of what it can map and put out, nothing twice.

use std::sync::{Arc, Mutex, MutexGuard};

use granule::addr::{Attributes, Iova, IovaRange, PageSizes, PhysAddr, PhysRange};
use granule::domain::{
    Attached, Geometry, Invalidation, MappingRecord, RecordedMapping, Stream, Translation,
    TranslationError, UnitError, UnitReport, map_joined,
};
use granule::table::{Fence, Hint, Resolved, Unmapped};
use proptest::prelude::*;

/// So many pages nobody looks at one by one: there may be 2^51 of them in a mapping.
const MOST_PAGES: usize = 1 << 10;

/// Clones share what is noted.
#[derive(Clone)]
pub(crate) struct Noted {
    geometry: Geometry,
    record: Arc<Mutex<MappingRecord>>,
}

/// Page sizes from any granule up, and spaces from usual to absurd.
pub(crate) fn geometry() -> impl Strategy<Value = Geometry> {
    let sizes = prop_oneof![
        3 => (12u32..64, any::<u64>()).prop_map(|(from, more)| (1 << from) | (more << from)),
        1 => (12u32..64).prop_map(|bit| 1 << bit),
        1 => Just(0),
    ];
    let fence_unit = prop_oneof![4 => Just(0), 1 => (0u32..20).prop_map(|bit| 1 << bit)];
    (sizes, space(), space(), fence_unit, any::<bool>()).prop_map(
        |(sizes, aperture, output, fence_unit, upper_bits_ignored)| Geometry {
            page_sizes: PageSizes::from_bits(sizes),
            aperture: IovaRange::new(Iova::new(aperture.0), aperture.1).expect("a range"),
            output: PhysRange::new(PhysAddr::new(output.0), output.1).expect("a range"),
            fence_unit,
            upper_bits_ignored,
        },
    )
}

/// A start and a length that do not wrap: mostly all of 64 bits but the last byte.
fn space() -> impl Strategy<Value = (u64, u64)> {
    let bits = (12u32..64).prop_map(|bits| (0, 1u64 << bits));
    let odd = (super::number(), super::number())
        .prop_filter("a range", |(at, len)| *len > 0 && at.checked_add(len - 1).is_some());
    prop_oneof![3 => Just((0, u64::MAX)), 2 => bits, 2 => odd]
}

impl Noted {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry, record: Arc::default() }
    }

    /// Whether nothing is mapped.
    pub(crate) fn is_empty(&self) -> bool {
        self.record().iter().next().is_none()
    }

    fn record(&self) -> MutexGuard<'_, MappingRecord> {
        self.record.lock().expect("no panic while held")
    }

    /// Whether a range may be spoken of.
    fn check(&self, range: IovaRange) {
        let granule = self.geometry.page_sizes.granule().expect("a granule");
        assert!(range.is_aligned(granule), "{range} is not of whole granules of {granule}");
        assert!(self.geometry.aperture.contains_range(&range), "{range} is beyond the aperture");
    }

    fn note(
        &self,
        record: &mut MappingRecord,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<(), TranslationError> {
        let range = IovaRange::new(iova, phys.len()).expect("a range of IOVAs");
        self.check(range);
        let granule = self.geometry.page_sizes.granule().expect("a granule");
        assert!(phys.start().is_aligned(granule), "{phys} is not of whole granules of {granule}");
        assert!(self.geometry.output.contains_range(&phys), "{phys} cannot be put out");
        if record.first_in(range).is_some() {
            return Err(TranslationError::Unsupported { what: "a second mapping" });
        }
        record.insert(RecordedMapping { range, phys: phys.start().raw(), attrs });
        Ok(())
    }
}

// SAFETY: no device exists, so none reaches anything.
unsafe impl Translation for Noted {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError> {
        self.note(&mut self.record(), iova, phys, attrs).map(|()| Hint::NONE)
    }

    unsafe fn map_fenced(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
        fence: Fence,
    ) -> Result<Hint, TranslationError> {
        let unit = self.geometry.fence_unit;
        assert!(unit > 0, "fences where there are none: {fence:?}");
        self.note(&mut self.record(), iova, phys, attrs).map(|()| Hint::NONE)
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
        map_joined(
            &mut *self.record(),
            iova,
            pieces,
            |record, at, run| self.note(record, at, run, attrs),
            |record, before| {
                record.remove(before);
            },
        )
    }

    unsafe fn unmap(&self, range: IovaRange, _: Hint) -> Result<Unmapped, TranslationError> {
        self.check(range);
        let mut record = self.record();
        record.check_whole(range)?;
        Ok(Unmapped { bytes: record.remove(range), tables: false })
    }

    fn invalidate(&self, _: &Invalidation) -> Result<(), UnitError> {
        Ok(())
    }

    fn resolve(&self, iova: Iova) -> Option<Resolved> {
        self.record().resolve(iova, self.geometry.page_sizes)
    }

    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64)) {
        let mut pages = 0;
        self.record().for_each_page(range, self.geometry.page_sizes, &mut |at, size| {
            pages += 1;
            assert!(pages < MOST_PAGES, "all pages of {range} are looked at");
            visit(at, size);
        });
    }

    fn mapped_bytes(&self, range: IovaRange) -> u64 {
        self.record().mapped_bytes(range)
    }

    fn units(&self) -> Vec<UnitReport> {
        vec![UnitReport { name: "noted".into(), layout: None }]
    }

    unsafe fn attach(&self, _: Stream) -> Result<Attached, TranslationError> {
        Ok(Attached::default())
    }

    fn detach(&self, _: Stream) -> Result<(), UnitError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), TranslationError> {
        Ok(())
    }
}
