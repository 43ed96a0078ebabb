//! An unmanaged domain while one of its calls waits for hardware: other calls may change other ranges,
//! and not the same one.

use std::sync::{Arc, Mutex};

use granule::addr::{Access, Attributes, Iova, IovaRange, PageSizes, PhysAddr};
use granule::domain::{
    DomainError, Invalidation, Iommu, Paged, StreamId, Unit, UnitError, UnitInfo, Unmanaged,
    UnmanagedConfig,
};
use granule::table::{Format, Lpae4k, TableLayout};
use granule_checks::phys_range;
use granule_checks::quiet::Quiet;

type During = Box<dyn FnOnce() + Send>;

/// An IOMMU nobody is behind, during whose next invalidation something happens.
struct Interrupted {
    info: UnitInfo,
    during: Arc<Mutex<Option<During>>>,
}

// SAFETY: no device exists, so nothing is ever reached or cached.
unsafe impl Unit for Interrupted {
    type Context = ();

    fn info(&self) -> &UnitInfo {
        &self.info
    }

    fn locked_roots(&self, _: StreamId) -> Vec<PhysAddr> {
        Vec::new()
    }

    fn open(&self, _: &TableLayout) -> Result<(), UnitError> {
        Ok(())
    }

    fn close(&self, (): &()) {}

    unsafe fn attach(&self, (): &(), _: StreamId) -> Result<(), UnitError> {
        Ok(())
    }

    fn detach(&self, (): &(), _: StreamId) -> Result<(), UnitError> {
        Ok(())
    }

    unsafe fn bypass(&self, _: StreamId, _: bool) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate(&self, (): &(), _: &Invalidation) -> Result<(), UnitError> {
        let during = self.during.lock().expect("no panic").take();
        if let Some(during) = during {
            during();
        }
        Ok(())
    }
}

type Owned = Arc<Unmanaged<Quiet, Paged<Lpae4k, Quiet, Interrupted>>>;

fn map(domain: &Owned, at: u64, len: u64) -> Result<(), DomainError> {
    let attributes = Attributes::memory(Access::all());
    // SAFETY: there is no device.
    unsafe { domain.map(Iova::new(at), phys_range(0x10_0000, len), attributes) }
}

fn unmap(domain: &Owned, at: u64, len: u64) -> Result<(), DomainError> {
    let range = IovaRange::new(Iova::new(at), len).expect("a legal range");
    // SAFETY: the test owns every mapping.
    unsafe { domain.unmap(range) }
}

#[test]
fn a_range_that_is_being_unmapped_is_nobody_else_s() {
    let during = Arc::new(Mutex::new(None));
    let info = UnitInfo {
        name: "interrupted".into(),
        formats: vec![Lpae4k::ID],
        input_bits: 39,
        output_bits: 48,
        page_sizes: PageSizes::from_bits(u64::MAX),
        coherent_walk: true,
        caches_absent: false,
        can_bypass: false,
    };
    let platform = Quiet::default();
    let iommu = Iommu::<Quiet, _>::new(Interrupted { info, during: during.clone() });
    let tables = Paged::<Lpae4k, _, _>::new(&platform, &[iommu]).expect("tables");
    let domain = Unmanaged::new(&platform, tables, UnmanagedConfig::default()).expect("a domain");
    map(&domain, 0x10_0000, 0x4000).expect("free");
    map(&domain, 0x20_0000, 0x1000).expect("free");
    let (inner, seen) = (domain.clone(), Arc::new(Mutex::new(Vec::new())));
    let report = seen.clone();
    *during.lock().expect("no panic") = Some(Box::new(move || {
        let answers = [
            map(&inner, 0x10_0000, 0x1000),
            map(&inner, 0xf_f000, 0x2000),
            unmap(&inner, 0x10_3000, 0x1000),
            map(&inner, 0x10_4000, 0x1000),
            unmap(&inner, 0x20_0000, 0x1000),
        ];
        report.lock().expect("no panic").extend(answers);
    }));
    unmap(&domain, 0x10_0000, 0x4000).expect("mapped");
    let seen = seen.lock().expect("no panic");
    for answer in &seen[..3] {
        let Err(DomainError::Range { reason, .. }) = answer else { panic!("{answer:?}") };
        assert!(reason.contains("another call"), "{reason}");
    }
    assert_eq!(seen[3..], [Ok(()), Ok(())]);
    // Afterwards it is free.
    assert_eq!(map(&domain, 0x10_0000, 0x1000), Ok(()));
}
