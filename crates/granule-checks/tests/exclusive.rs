//! An unmanaged domain while one of its calls waits for hardware: other calls may change other ranges,
//! and not the same one.

use std::slice::from_ref;
use std::sync::{Arc, Mutex};

use granule::addr::{Access, Attributes, Iova, IovaRange};
use granule::domain::{DomainError, Iommu, Paged, Unmanaged, UnmanagedConfig};
use granule::table::{Format, Lpae4k};
use granule_checks::phys_range;
use granule_checks::quiet::{Quiet, QuietUnit};

type Owned = Arc<Unmanaged<Quiet, Paged<Lpae4k, Quiet, QuietUnit>>>;

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
    let platform = Quiet::default();
    let iommu = Iommu::<Quiet, _>::new(QuietUnit::new(Lpae4k::ID));
    let tables = Paged::<Lpae4k, _, _>::new(&platform, from_ref(&iommu)).expect("tables");
    let domain = Unmanaged::new(&platform, tables, UnmanagedConfig::default()).expect("a domain");
    map(&domain, 0x10_0000, 0x4000).expect("free");
    map(&domain, 0x20_0000, 0x1000).expect("free");
    let (inner, seen) = (domain.clone(), Arc::new(Mutex::new(Vec::new())));
    let report = seen.clone();
    iommu.unit().during_next(move || {
        let answers = [
            map(&inner, 0x10_0000, 0x1000),
            map(&inner, 0xf_f000, 0x2000),
            unmap(&inner, 0x10_3000, 0x1000),
            map(&inner, 0x10_4000, 0x1000),
            unmap(&inner, 0x20_0000, 0x1000),
        ];
        report.lock().expect("no panic").extend(answers);
    });
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
