//! Law 8: translations that can say no page in common are not kept in step; those that can are, and
//! the pages are of a size that all have.

use granule::addr::{Attributes, Direction, Iova, IovaRange, PageSizes, PhysRange};
use granule::dma::DeviceSpec;
use granule::domain::{
    Attached, Domain, DomainConfig, Geometry, Invalidation, Mirror, Stream, Translation,
    TranslationError, UnitError, UnitReport,
};
use granule::table::{Dart1, Hint, Lpae4k, Resolved, Unmapped};
use granule_checks::{Board, Buf, SimPaged};
use granule_sim::machine::{DeviceSpec as SimSpec, Wiring};

/// A page table of which only some page sizes are used.
struct Some4k {
    inner: SimPaged<Lpae4k>,
    geometry: Geometry,
}

impl Some4k {
    fn new(board: &Board, sizes: u64) -> Self {
        let inner = board.paged::<Lpae4k>(&["smmu"]);
        let page_sizes = PageSizes::from_bits(sizes);
        let geometry = Geometry { page_sizes, ..inner.geometry().clone() };
        Self { inner, geometry }
    }
}

// SAFETY: everything but the geometry is the page table's.
unsafe impl Translation for Some4k {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.map(iova, phys, attrs) }
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
        // SAFETY: the caller's promise.
        unsafe { self.inner.map_list(iova, pieces, attrs) }
    }

    unsafe fn unmap(&self, range: IovaRange, hint: Hint) -> Result<Unmapped, TranslationError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.unmap(range, hint) }
    }

    fn invalidate(&self, request: &Invalidation) -> Result<(), UnitError> {
        self.inner.invalidate(request)
    }

    fn resolve(&self, iova: Iova) -> Option<Resolved> {
        self.inner.resolve(iova)
    }

    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64)) {
        self.inner.for_each_page(range, visit);
    }

    fn units(&self) -> Vec<UnitReport> {
        self.inner.units()
    }

    unsafe fn attach(&self, stream: Stream) -> Result<Attached, TranslationError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.attach(stream) }
    }

    fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        self.inner.detach(stream)
    }

    fn resume(&self) -> Result<(), TranslationError> {
        self.inner.resume()
    }
}

#[test]
fn no_common_page_size() {
    let board = Board::usual();
    let sides = vec![Some4k::new(&board, 0x1000), Some4k::new(&board, 0x20_0000)];
    let error = Mirror::new(sides).err().expect("4 KiB here, 2 MiB there");
    let wanted = TranslationError::NoCommonPageSize {
        first: "smmu".into(),
        first_sizes: PageSizes::from_bits(0x1000),
        second: "smmu".into(),
        second_sizes: PageSizes::from_bits(0x20_0000),
    };
    assert_eq!(error, wanted);
    let sides = vec![Some4k::new(&board, 0x20_1000), Some4k::new(&board, 0x1000)];
    let mirror = Mirror::new(sides).unwrap_or_else(|error| panic!("{error}, but 4 KiB is in both"));
    assert_eq!(mirror.geometry().page_sizes, PageSizes::from_bits(0x1000));
}

/// A device behind two DARTs with a table each reaches the same memory through both, or none.
#[test]
fn two_tables_in_step() {
    let wiring = Wiring::Streams(vec![("dart".into(), 5), ("other".into(), 6)]);
    let board = Board::build(Board::parts().device(SimSpec::new("usb", wiring)));
    {
        let sides = vec![board.paged::<Dart1>(&["dart"]), board.paged::<Dart1>(&["other"])];
        let mirror = Mirror::new(sides)
            .unwrap_or_else(|error| panic!("{error}, but their page sizes are equal"));
        let domain = Domain::new(board.platform(), mirror, &DomainConfig::default());
        let streams = [Stream::new(5), Stream::new(6).at_unit(1)];
        let domain = domain.expect("a domain");
        let device = domain.attach(DeviceSpec::new("usb"), &streams, None).expect("both streams");
        let mapping = device.map(Buf::at(&board.machine, 0x100, 0x9000), Direction::Bidirectional);
        let mapping = mapping.expect("mapped");
        let at = mapping.address();
        assert!(board.write("usb", at, b"through both"));
        assert_eq!(&mapping.unmap().expect("unmapped").bytes()[..12], b"through both");
        assert!(!board.write("usb", at, b"gone"));
        board.assert_reaches_live_only("usb");
    }
    board.assert_clean();
}
