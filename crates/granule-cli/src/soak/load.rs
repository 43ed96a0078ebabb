//! A round of the load: a fresh machine, a device and a thread each, faults, and the reckoning.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use granule::addr::{Direction, DmaAddr, Granule, PhysAddr, PhysRange};
use granule::bounce::{BounceConfig, BouncePool};
use granule::dma::{Coherent, Device, DeviceSpec, Mapping};
use granule::domain::{Domain, DomainConfig, InvalidationPolicy, Iommu, Paged, Stream, UnitError};
use granule::table::Dart1;
use granule_sim::device::SimDevice;
use granule_sim::faults::Point;
use granule_sim::iommu::IommuConfig;
use granule_sim::machine::{DeviceSpec as SimSpec, Machine};
use granule_sim::platform::SimPlatform;
use granule_sim::unit::SimUnit;
use granule_sim::walk::SimFormat;

use crate::error::CliError;

/// Operations of one thread in a round.
const OPERATIONS: u64 = 64;
/// What a thread keeps mapped at once.
const LIVE: usize = 24;
const IOMMU: &str = "dart";
const RAM: u64 = 0x8_0000_0000;

type SimDomain = Domain<SimPlatform, Paged<Dart1, SimPlatform, SimUnit>>;

/// What a round is like.
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) threads: u32,
    pub(super) fault_rate: f64,
    /// Invalidations never fail.
    pub(super) answers: bool,
}

/// What rounds did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) operations: u64,
    pub(super) injected: u64,
    pub(super) failed: u64,
    pub(super) recoveries: u64,
    pub(super) verified: u64,
    pub(super) late: u64,
    /// Bytes that were not given back at the end of rounds in which the hardware always answered.
    pub(super) leaked: u64,
    /// The same of the other rounds: what a failed invalidation keeps out of use.
    pub(super) kept: u64,
    pub(super) peak: u64,
}

impl Counts {
    /// Counts another in; the peak is the higher one.
    pub(super) fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.injected += other.injected;
        self.failed += other.failed;
        self.recoveries += other.recoveries;
        self.verified += other.verified;
        self.late += other.late;
        self.leaked += other.leaked;
        self.kept += other.kept;
        self.peak = self.peak.max(other.peak);
    }
}

fn wrong(what: impl Into<String>) -> CliError {
    CliError::Verification { what: what.into() }
}

fn machine(settings: &Settings) -> Result<Machine, CliError> {
    let ram = PhysRange::new(PhysAddr::new(RAM), 256 << 20).map_err(|e| wrong(e.to_string()))?;
    let mut iommu = IommuConfig::new(IOMMU, SimFormat::Dart1, 32);
    iommu.invalidation_latency = Duration::ZERO;
    iommu.streams = settings.threads;
    let mut builder = Machine::builder().seed(settings.seed).ram(ram).iommu(iommu);
    for number in 0..settings.threads {
        builder = builder.device(SimSpec::behind(&format!("dev{number}"), IOMMU, number));
    }
    Ok(builder.build()?)
}

/// Runs a round.
///
/// # Errors
/// [`CliError::Verification`]: a wrong byte, late DMA that got through, or memory that was lost.
pub(super) fn round(settings: &Settings) -> Result<Counts, CliError> {
    let machine = machine(settings)?;
    let peak = AtomicU64::new(0);
    let mut sum = Counts::default();
    {
        let sim = machine.iommu(IOMMU).ok_or_else(|| wrong("the machine has no IOMMU"))?;
        let unit = SimUnit::new(sim).ok_or_else(|| wrong("the IOMMU's format is not known"))?;
        let iommu = Iommu::new(unit);
        let config = BounceConfig { align: Granule::K16, ..BounceConfig::new(16 << 20) };
        let pool = BouncePool::new(machine.platform(), config).map_err(|e| wrong(e.to_string()))?;
        let pool = Arc::new(pool);
        let workers: Vec<Worker<'_>> = (0..settings.threads)
            .map(|number| Worker::new(&machine, &iommu, &pool, settings, number, &peak))
            .collect::<Result<_, _>>()?;
        let done: Vec<Result<Counts, CliError>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                workers.into_iter().map(|worker| scope.spawn(move || worker.run())).collect();
            let lost = || Err(wrong("a thread of the load panicked"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
        });
        for counts in done {
            sum.add(&counts?);
        }
    }
    sum.injected = machine.faults().fired();
    sum.peak = peak.into_inner();
    let problems = machine.problems();
    let left = machine.frames().live_bytes();
    (sum.leaked, sum.kept) = if settings.answers { (left, 0) } else { (0, left) };
    let leaks = if settings.answers { problems.first() } else { None };
    match leaks {
        Some(problem) => Err(wrong(format!("seed {}: {problem}", settings.seed))),
        None if machine.frames().errors().is_empty() => Ok(sum),
        None => Err(wrong(format!("seed {}: memory was freed that was not held", settings.seed))),
    }
}

/// Something mapped, and the number that its bytes are made from.
enum Held {
    Host(Mapping<Device, Vec<u8>>, u64),
    Coherent(Coherent<Device>, u64),
}

struct Worker<'m> {
    machine: &'m Machine,
    domain: Arc<SimDomain>,
    device: Device,
    sim: &'m SimDevice,
    rng: fastrand::Rng,
    fault_rate: f64,
    answers: bool,
    deferred: bool,
    held: Vec<Held>,
    counts: Counts,
    peak: &'m AtomicU64,
}

impl<'m> Worker<'m> {
    fn new(
        machine: &'m Machine,
        iommu: &Arc<Iommu<SimPlatform, SimUnit>>,
        pool: &Arc<BouncePool<SimPlatform>>,
        settings: &Settings,
        number: u32,
        peak: &'m AtomicU64,
    ) -> Result<Self, CliError> {
        let name = format!("dev{number}");
        let deferred = number % 2 == 1;
        let policy = if deferred {
            InvalidationPolicy::Deferred { capacity: 16, max_age: u64::MAX }
        } else {
            InvalidationPolicy::Strict
        };
        let config = DomainConfig { policy, ..DomainConfig::default() };
        let refused = |cause| CliError::Domain { device: name.clone(), cause };
        let tables = Paged::<Dart1, _, _>::new(machine.platform(), std::slice::from_ref(iommu))
            .map_err(|cause| refused(cause.into()))?;
        let domain = Domain::new(machine.platform(), tables, &config).map_err(refused)?;
        let spec = DeviceSpec::new(&name).untrusted();
        let device = domain.attach(spec, &[Stream::new(number)], Some(pool.clone()))?;
        let sim = machine.device(&name).ok_or_else(|| wrong("the machine has no such device"))?;
        Ok(Self {
            machine,
            domain,
            device,
            sim,
            rng: fastrand::Rng::with_seed(settings.seed ^ u64::from(number) << 48),
            fault_rate: settings.fault_rate,
            answers: settings.answers,
            deferred,
            held: Vec::new(),
            counts: Counts::default(),
            peak,
        })
    }

    fn run(mut self) -> Result<Counts, CliError> {
        for _ in 0..OPERATIONS {
            self.counts.operations += 1;
            self.arm();
            let ends = self.held.len() >= LIVE || (!self.held.is_empty() && self.rng.bool());
            if ends {
                self.end()?;
            } else if self.rng.bool() {
                self.host()?;
            } else {
                self.coherent()?;
            }
            self.peak.fetch_max(self.machine.frames().live_bytes(), Ordering::Relaxed);
            self.recover();
        }
        while !self.held.is_empty() {
            self.end()?;
            self.recover();
        }
        // A fault that another thread armed may still hit this: it is tried until it succeeds.
        while self.domain.flush().is_err() {
            self.recover();
        }
        Ok(self.counts)
    }

    fn arm(&mut self) {
        if self.rng.f64() >= self.fault_rate {
            return;
        }
        let allocation = self.answers || self.rng.bool();
        let point = if allocation { Point::Frames } else { Point::Invalidation };
        self.machine.faults().fail_nth(point, self.rng.u64(0..3));
    }

    fn recover(&mut self) {
        while self.domain.is_poisoned() {
            self.counts.recoveries += 1;
            // Another thread's fault may hit this one too: then once more.
            let _ = self.domain.recover();
        }
    }

    fn host(&mut self) -> Result<(), CliError> {
        let (id, len) = (self.rng.u64(..), self.rng.u64(1..40_000));
        match Mapping::new(
            self.device.clone(),
            pattern(id, len),
            Direction::Bidirectional,
            granule::dma::MapFlags::empty(),
        ) {
            Ok(mapping) => {
                self.transfer(mapping.address(), id, len)?;
                self.held.push(Held::Host(mapping, id));
            }
            Err(refused) => {
                self.counts.failed += 1;
                let back = refused.buffer.is_none_or(|buffer| buffer == pattern(id, len));
                if !back {
                    return Err(wrong("a refused buffer came back changed"));
                }
            }
        }
        Ok(())
    }

    fn coherent(&mut self) -> Result<(), CliError> {
        let (id, len) = (self.rng.u64(..), self.rng.u64(1..80_000));
        let flags = granule::dma::MapFlags::empty();
        match Coherent::new(self.device.clone(), len, flags) {
            Ok(memory) => {
                memory.write(0, &pattern(id, len)).map_err(|error| wrong(error.to_string()))?;
                self.transfer(memory.address(), id, len)?;
                self.held.push(Held::Coherent(memory, id));
            }
            Err(_) => self.counts.failed += 1,
        }
        Ok(())
    }

    /// The device reads what the CPU wrote, and writes it inverted.
    fn transfer(&mut self, at: DmaAddr, id: u64, len: u64) -> Result<(), CliError> {
        let expected = pattern(id, len);
        let mut seen = vec![0; expected.len()];
        self.sim.read(at, &mut seen).map_err(|fault| wrong(fault.to_string()))?;
        self.verify(&seen, &expected)?;
        seen.iter_mut().for_each(|byte| *byte = !*byte);
        self.sim.write(at, &seen).map_err(|fault| wrong(fault.to_string()))
    }

    fn verify(&mut self, seen: &[u8], expected: &[u8]) -> Result<(), CliError> {
        self.counts.verified += seen.len() as u64;
        match seen.iter().zip(expected).position(|(seen, expected)| seen != expected) {
            Some(at) => Err(wrong(format!("byte {at} of {} is wrong", seen.len()))),
            None => Ok(()),
        }
    }

    /// The CPU finds what the device wrote, and late DMA is blocked.
    fn end(&mut self) -> Result<(), CliError> {
        let place = self.rng.usize(0..self.held.len());
        match self.held.swap_remove(place) {
            Held::Host(mapping, id) => {
                let at = mapping.address();
                let later = self.deferred && self.rng.bool();
                let back: Result<Vec<u8>, Option<UnitError>> = if later {
                    let pending = mapping.unmap_later();
                    pending.map_err(|_| None).and_then(|pending| pending.finish().map_err(Some))
                } else {
                    mapping.unmap().map_err(|_| None)
                };
                let Ok(back) = back else {
                    self.counts.failed += 1;
                    return Ok(());
                };
                let expected: Vec<u8> =
                    pattern(id, back.len() as u64).iter().map(|byte| !byte).collect();
                self.verify(&back, &expected)?;
                self.late(at)
            }
            Held::Coherent(memory, id) => {
                let (at, len) = (memory.address(), memory.len());
                let mut seen = vec![0; len as usize];
                memory.read(0, &mut seen).map_err(|error| wrong(error.to_string()))?;
                let expected: Vec<u8> = pattern(id, len).iter().map(|byte| !byte).collect();
                self.verify(&seen, &expected)?;
                if memory.free().is_err() {
                    self.counts.failed += 1;
                    return Ok(());
                }
                self.late(at)
            }
        }
    }

    fn late(&mut self, at: DmaAddr) -> Result<(), CliError> {
        self.counts.late += 1;
        match self.sim.read(at, &mut [0]) {
            Ok(()) => Err(wrong(format!("DMA to {at:#x} got through after the unmap"))),
            Err(_) => Ok(()),
        }
    }
}

/// Bytes that differ everywhere and from every other buffer's.
fn pattern(id: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    fastrand::Rng::with_seed(id).fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_stream_for_every_thread() {
        let settings = Settings { seed: 2, threads: 64, fault_rate: 0.0, answers: true };
        let machine =
            machine(&settings).expect("a board for the most threads that may be asked for");
        assert!(machine.device("dev63").is_some());
    }

    fn counts(seed: u64) -> Counts {
        let settings = Settings { seed, threads: 1, fault_rate: 0.2, answers: seed % 2 == 0 };
        round(&settings).expect("a round without a wrong byte")
    }

    #[test]
    fn a_round_of_one_thread_is_the_same_again_for_the_same_seed() {
        let all: Vec<Counts> = (0..2).map(counts).collect();
        assert_eq!(all, (0..2).map(counts).collect::<Vec<_>>());
        assert!(all.windows(2).all(|two| two[0].verified != two[1].verified));
        assert!(all.iter().any(|one| one.injected > 0 && one.failed > 0));
        assert!(all.iter().step_by(2).all(|one| one.leaked == 0 && one.kept == 0));
    }
}
