//! A domain whose addresses its owner chooses: what is mapped is reached, what is not is not.

use granule::addr::{Access, Attributes, DmaAddr, Granule, Iova, IovaRange};
use granule::domain::{DomainError, Stream, TranslationError, Unmanaged, UnmanagedConfig};
use granule::table::Lpae4k;
use granule_checks::{Board, RAM, SimPaged, phys_range};
use granule_sim::faults::Point;
use granule_sim::platform::SimPlatform;

type Owned = std::sync::Arc<Unmanaged<SimPlatform, SimPaged<Lpae4k>>>;

const RW: Attributes = Attributes::memory(Access::all());
const MEMORY: u64 = RAM + 0x10_0000;
const STREAM: Stream = Stream::new(0);

fn board() -> (Board, Owned) {
    let board = Board::usual();
    let config = UnmanagedConfig::default();
    let domain = Unmanaged::new(board.platform(), board.paged::<Lpae4k>(&["smmu"]), config);
    (board, domain.expect("pages of the CPU's size"))
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), len).expect("a legal range")
}

fn map(domain: &Owned, at: u64, len: u64) -> Result<(), DomainError> {
    // SAFETY: the simulated device may reach all of the simulated RAM.
    unsafe { domain.map(Iova::new(at), phys_range(MEMORY, len), RW) }
}

fn unmap(domain: &Owned, at: u64, len: u64) -> Result<(), DomainError> {
    // SAFETY: the test owns every mapping.
    unsafe { domain.unmap(range(at, len)) }
}

#[test]
fn a_device_reaches_what_is_mapped_while_it_is_attached() {
    let (board, domain) = board();
    let at = DmaAddr::new(0x40_0000);
    map(&domain, at.raw(), 0x2000).expect("free");
    assert_eq!(domain.granule(), Granule::K4);
    let found = domain.resolve(Iova::new(0x40_1234)).expect("mapped");
    assert_eq!(found.phys.raw(), MEMORY + 0x1234);
    assert_eq!(domain.resolve(Iova::new(0x40_2000)), None);
    assert!(!board.write("arm", at, &[1]), "not attached yet");
    domain.attach(STREAM).expect("a stream of this IOMMU");
    assert!(board.write("arm", at, &[1]));
    domain.detach(STREAM).expect("it answers");
    assert!(!board.write("arm", at, &[2]));
    domain.attach(STREAM).expect("free again");
    assert!(board.write("arm", at, &[3]));
    unmap(&domain, 0x40_0000, 0x2000).expect("mapped");
    assert!(!board.write("arm", at, &[4]));
}

#[test]
fn addresses_are_those_of_the_aperture() {
    let (_board, domain) = board();
    let end = domain.geometry().aperture.last().raw() + 1;
    assert!(matches!(map(&domain, end, 0x1000), Err(DomainError::Range { .. })));
    assert!(matches!(map(&domain, end - 0x1000, 0x2000), Err(DomainError::Range { .. })));
    map(&domain, end - 0x1000, 0x1000).expect("the last page");
    let taken = map(&domain, end - 0x1000, 0x1000);
    assert!(matches!(taken, Err(DomainError::Translation(_))), "{taken:?}");
    let granule = Granule::K4;
    for value in [0x800, 0x1800] {
        assert_eq!(map(&domain, value, 0x1000), Err(DomainError::Misaligned { value, granule }));
        assert_eq!(map(&domain, 0x1000, value), Err(DomainError::Misaligned { value, granule }));
    }
    let hole = unmap(&domain, end - 0x2000, 0x2000);
    assert!(matches!(hole, Err(DomainError::Range { .. })), "{hole:?}");
    unmap(&domain, end - 0x1000, 0x1000).expect("mapped");
}

/// As many changes as there is room for may be under way: the room is given back by each.
#[test]
fn changes_are_entered_and_taken_out_again() {
    let (_board, domain) = board();
    for round in 0..1000 {
        map(&domain, 0x10_0000 + round * 0x1000, 0x1000).expect("free");
    }
    unmap(&domain, 0x10_0000, 1000 * 0x1000).expect("mapped");
}

#[test]
fn a_failed_invalidation_poisons_until_it_recovers() {
    let (board, domain) = board();
    domain.attach(STREAM).expect("a stream of this IOMMU");
    let at = DmaAddr::new(0x40_0000);
    map(&domain, at.raw(), 0x1000).expect("free");
    assert!(board.write("arm", at, &[1]), "the TLB has it now");
    board.machine.faults().fail_nth(Point::Invalidation, 0);
    let lost = unmap(&domain, at.raw(), 0x1000);
    assert!(matches!(lost, Err(DomainError::Translation(TranslationError::Unit(_)))), "{lost:?}");
    board.machine.faults().clear();
    assert_eq!(domain.leaked_bytes(), 0x1000);
    assert_eq!(map(&domain, 0x80_0000, 0x1000), Err(DomainError::Poisoned));
    domain.recover().expect("hardware that answers again");
    assert_eq!(domain.leaked_bytes(), 0);
    assert!(!board.write("arm", at, &[2]));
    map(&domain, at.raw(), 0x1000).expect("free again");
    assert!(board.write("arm", at, &[3]));
}
