//! An IOMMU that does nothing: what is measured is granule, not hardware.

use std::sync::Arc;

use granule::addr::PhysAddr;
use granule::dma::{Device, DeviceSpec};
use granule::domain::{
    Domain, DomainConfig, Invalidation, InvalidationPolicy, Iommu, Paged, Stream, StreamId, Unit,
    UnitError, UnitInfo,
};
use granule::table::{Format, FormatId, TableLayout};

use crate::platform::Machine;

/// The unit: everything succeeds at once.
pub struct NoUnit(UnitInfo);

// SAFETY: no device exists behind it, so none reaches anything.
unsafe impl Unit for NoUnit {
    type Context = ();

    fn info(&self) -> &UnitInfo {
        &self.0
    }

    fn locked_roots(&self, _: StreamId) -> Vec<PhysAddr> {
        Vec::new()
    }

    fn open(&self, _: &TableLayout) -> Result<(), UnitError> {
        Ok(())
    }

    fn close(&self, _: &()) {}

    unsafe fn attach(&self, _: &(), _: StreamId) -> Result<(), UnitError> {
        Ok(())
    }

    fn detach(&self, _: &(), _: StreamId) -> Result<(), UnitError> {
        Ok(())
    }

    unsafe fn bypass(&self, _: StreamId, _: bool) -> Result<(), UnitError> {
        Ok(())
    }

    #[inline(always)]
    fn invalidate(&self, _: &(), _: &Invalidation) -> Result<(), UnitError> {
        Ok(())
    }
}

/// The input bits that the peers' benchmarks use.
pub fn input_bits<F: Format>() -> u32 {
    match F::ID {
        FormatId::Dart1 | FormatId::Dart2 => 36,
        FormatId::Lpae16k => 47,
        _ => F::MAX_INPUT_BITS.min(48),
    }
}

/// A domain of format `F`, as it is used in the benchmarks.
pub type BenchDomain<F> = Domain<Machine, Paged<F, Machine, NoUnit>>;

/// A domain with tables of format `F`.
pub fn domain<F: Format>(policy: InvalidationPolicy) -> Arc<BenchDomain<F>> {
    let unit = NoUnit(UnitInfo {
        name: "nothing".into(),
        formats: vec![F::ID],
        input_bits: input_bits::<F>(),
        output_bits: F::MAX_OUTPUT_BITS,
        page_sizes: granule::addr::PageSizes::from_bits(u64::MAX),
        coherent_walk: true,
        caches_absent: false,
        can_bypass: false,
    });
    let paged = Paged::<F, _, _>::new(&Machine, &[Iommu::new(unit)]).expect("a table");
    let config = DomainConfig { policy, ..DomainConfig::default() };
    Domain::new(&Machine, paged, &config).expect("a domain")
}

/// A trusted, coherent device behind a domain of its own.
pub fn device<F: Format>(policy: InvalidationPolicy) -> Device {
    let spec = DeviceSpec::new("bench");
    domain::<F>(policy).attach(spec, &[Stream::new(0)], None).expect("a device")
}
