//! A domain mapped without its devices: memory that does not fit the placement is refused, and nothing
//! is taken for it.

use std::slice::from_ref;
use std::sync::Arc;

use granule::addr::{Access, Attributes, Iova, IovaRange, PhysRange};
use granule::domain::{Domain, DomainConfig, DomainError, Iommu, Mapped, Paged, Placement};
use granule::table::{Format, Lpae4k};
use granule_checks::phys_range;
use granule_checks::quiet::{Quiet, QuietUnit};

type Owned = Arc<Domain<Quiet, Paged<Lpae4k, Quiet, QuietUnit>>>;
type Result = std::result::Result<Mapped, DomainError>;

const AT: Iova = Iova::new(0x40_0000);
const ATTRS: Attributes = Attributes::memory(Access::READ);

fn domain() -> Owned {
    let platform = Quiet::default();
    let iommu = Iommu::<Quiet, _>::new(QuietUnit::new(Lpae4k::ID));
    let tables = Paged::<Lpae4k, _, _>::new(&platform, from_ref(&iommu)).expect("tables");
    Domain::new(&platform, tables, &DomainConfig::default()).expect("a domain")
}

fn place(size: u64) -> Placement {
    let window = IovaRange::new(Iova::new(0x1000), 1 << 30).expect("a legal range");
    Placement { size, align: 0x1000, window, guard: false, at: Some(AT) }
}

/// Memory of these lengths, apart from each other.
fn memory(lens: &[u64]) -> Vec<PhysRange> {
    let starts = (1..).map(|nth| nth << 30);
    lens.iter().zip(starts).map(|(len, start)| phys_range(start, *len)).collect()
}

fn pieces(domain: &Owned, size: u64, pieces: &[(u64, u64)]) -> Result {
    let lens: Vec<u64> = pieces.iter().map(|(_, len)| *len).collect();
    let offsets = pieces.iter().map(|(offset, _)| *offset);
    // SAFETY: there is no device.
    unsafe { domain.map_pieces(&place(size), offsets.zip(memory(&lens)), ATTRS) }
}

fn list(domain: &Owned, size: u64, lens: &[u64]) -> Result {
    // SAFETY: there is no device.
    unsafe { domain.map_list(&place(size), memory(lens).into_iter(), ATTRS) }
}

fn one(domain: &Owned, size: u64, len: u64) -> Result {
    // SAFETY: there is no device.
    unsafe { domain.map(&place(size), memory(&[len])[0], ATTRS, None) }
}

/// Nothing was mapped, and the range is as good as new: the largest placement here gets it.
#[track_caller]
fn refused(domain: &Owned, result: Result, wanted: DomainError) {
    assert_eq!(result, Err(wanted));
    let around = IovaRange::new(Iova::new(0x1000), 1 << 30).expect("a legal range");
    assert_eq!(domain.page_sizes_used(around), []);
    let mapped = one(domain, 0x8000, 0x8000).expect("all of it is free");
    // SAFETY: mapped above, and ended once.
    unsafe { domain.unmap(&mapped) }.expect("unmapped");
}

#[test]
fn memory_is_as_long_as_its_placement() {
    let domain = domain();
    for (size, memory) in [(0x4000, 0x3000), (0x4000, 0x5000), (0x1000, 0x20_0000)] {
        let wanted = DomainError::Length { size, memory };
        refused(&domain, one(&domain, size, memory), wanted.clone());
        refused(&domain, list(&domain, size, &[0x1000, memory - 0x1000]), wanted);
    }
    refused(&domain, list(&domain, 0x4000, &[]), DomainError::Length { size: 0x4000, memory: 0 });
    let half = 1 << 63;
    let wanted = DomainError::Length { size: 0x4000, memory: u64::MAX };
    let halves = [phys_range(0, half), phys_range(half, half), phys_range(0, 0x4000)];
    // SAFETY: there is no device.
    let result = unsafe { domain.map_list(&place(0x4000), halves.into_iter(), ATTRS) };
    refused(&domain, result, wanted);
}

#[test]
fn pieces_are_in_order_apart_and_inside() {
    let domain = domain();
    let wrong = |many: &[(u64, u64)], nth: usize| {
        let (offset, len) = many[nth];
        let wanted = DomainError::Piece { offset, len, size: 0x8000 };
        refused(&domain, pieces(&domain, 0x8000, many), wanted);
    };
    wrong(&[(0x1000, 0x2000), (0x2000, 0x1000)], 1);
    wrong(&[(0x2000, 0x1000), (0x1000, 0x1000)], 1);
    wrong(&[(0, 0x1000), (0x7000, 0x2000)], 1);
    wrong(&[(0x8000, 0x1000)], 0);
    wrong(&[(0, 0x9000)], 0);
    wrong(&[(u64::MAX - 0xfff, 0x1000)], 0);
    wrong(&[(u64::MAX - 0xfff, 0x2000)], 0);
    let mapped = pieces(&domain, 0x8000, &[(0, 0x1000), (0x1000, 0x1000), (0x7000, 0x1000)]);
    let mapped = mapped.expect("as they should be");
    let used = domain.page_sizes_used(mapped.range);
    assert_eq!(used, [(0x1000, 3)]);
}

#[test]
fn what_is_no_whole_granule_is_refused() {
    let domain = domain();
    for (size, len) in [(0x1800, 0x1800), (0x800, 0x800)] {
        let error = one(&domain, size, len).expect_err("half a granule");
        assert!(error.to_string().contains("granule"), "{error}");
        let error = list(&domain, size, &[len]).expect_err("half a granule");
        assert!(error.to_string().contains("granule"), "{error}");
    }
    let error = list(&domain, 0x2000, &[0x1800, 0x800]).expect_err("half a granule");
    assert!(error.to_string().contains("granule"), "{error}");
    let error = pieces(&domain, 0x8000, &[(0x800, 0x1000)]).expect_err("half a granule");
    assert!(error.to_string().contains("granule"), "{error}");
    let mapped = one(&domain, 0x8000, 0x8000).expect("all of it is free");
    assert_eq!(mapped.range.start(), AT);
}
