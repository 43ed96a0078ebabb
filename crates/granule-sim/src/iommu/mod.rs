//! An IOMMU as hardware: streams, tables in memory, and caches that remember too long.
//!
//! Commands are what registers and queues offer: [`SimIommu::set_stream`], [`SimIommu::invalidate`].
//! What devices do comes through [`SimIommu::access`]. A change of a stream's state takes effect at
//! once (no model of caches for stream tables); what its tables said before stays in the IOTLB, the
//! walk cache and, in caching mode, as negative entries, until an invalidation covers it.
//!
//! The walk of one access is atomic with regard to commands of the same IOMMU.

#![forbid(unsafe_code)]

mod config;
mod reach;
#[cfg(test)]
mod tests;
mod tlb;

use granule::addr::{Access, DmaAddr, Iova, IovaRange, PhysAddr};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::clock::Clock;
use crate::faults::FaultPlan;
use crate::memory::Memory;
use crate::walk::{self, Geometry, Translation, WalkFault};

pub use config::{
    Counters, FaultReason, FaultRecord, IommuConfig, LockedStream, SimIommuError, StreamState,
};
pub use reach::{Reach, Via};
use tlb::Tlb;

/// How many faults the log keeps; more are counted only.
pub const FAULT_LOG: usize = 4096;

#[derive(Debug)]
struct State {
    streams: Vec<StreamState>,
    tlb: Tlb,
    counters: Counters,
    log: Vec<FaultRecord>,
    rng: fastrand::Rng,
}

/// Where an access leads: `len` bytes from `phys` on belong to the same page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The physical address.
    pub phys: PhysAddr,
    /// How many bytes from there on are reached in the same way.
    pub len: u64,
}

/// An IOMMU.
#[derive(Debug)]
pub struct SimIommu {
    config: IommuConfig,
    memory: Memory,
    clock: Clock,
    faults: FaultPlan,
    state: Mutex<State>,
    /// Held by transfers on their way, so that an invalidation can wait for them.
    on_their_way: RwLock<()>,
}

impl SimIommu {
    /// An IOMMU over `memory`. Locked streams translate through firmware's tables from the start,
    /// all others are blocked.
    ///
    /// # Errors
    /// [`SimIommuError`] if the configuration asks for tables or streams that cannot be.
    pub fn new(
        config: IommuConfig,
        memory: Memory,
        clock: Clock,
        faults: FaultPlan,
        seed: u64,
    ) -> Result<Self, SimIommuError> {
        Geometry::new(config.format, config.input_bits, 1)?;
        for locked in &config.locked {
            check_stream(&config, locked.stream)?;
            Geometry::new(config.format, locked.input_bits, locked.roots.len())?;
        }
        let state = State {
            streams: initial(&config),
            tlb: Tlb::new(config.format.granule().size()),
            counters: Counters::default(),
            log: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
        };
        let (state, on_their_way) = (Mutex::new(state), RwLock::new(()));
        Ok(Self { config, memory, clock, faults, state, on_their_way })
    }

    /// What it is like.
    pub fn config(&self) -> &IommuConfig {
        &self.config
    }

    /// The memory that it walks and reaches.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What a stream does.
    ///
    /// # Errors
    /// [`SimIommuError::NoSuchStream`].
    pub fn stream(&self, stream: u32) -> Result<StreamState, SimIommuError> {
        check_stream(&self.config, stream)?;
        Ok(self.state.lock().streams[stream as usize].clone())
    }

    /// Whether firmware has locked a stream.
    pub fn is_locked(&self, stream: u32) -> bool {
        self.config.locked.iter().any(|locked| locked.stream == stream)
    }

    /// Programs a stream. Invalidates nothing.
    ///
    /// # Errors
    /// [`SimIommuError`]: no such stream, no bypass, tables of an impossible shape; or the stream is
    /// locked, and this is not the root and the input size that it has.
    pub fn set_stream(&self, stream: u32, wanted: StreamState) -> Result<(), SimIommuError> {
        check_stream(&self.config, stream)?;
        self.check_lock(stream, &wanted)?;
        match &wanted {
            StreamState::Bypass if !self.config.can_bypass => {
                return Err(SimIommuError::NoBypass { iommu: self.config.name.clone(), stream });
            }
            StreamState::Translate { roots, input_bits, .. } => {
                let (input_bits, limit) = (*input_bits, self.config.input_bits);
                Geometry::new(self.config.format, input_bits, roots.len())?;
                if input_bits > limit {
                    let iommu = self.config.name.clone();
                    return Err(SimIommuError::InputBits { iommu, input_bits, limit });
                }
            }
            _ => {}
        }
        self.state.lock().streams[stream as usize] = wanted;
        Ok(())
    }

    fn check_lock(&self, stream: u32, wanted: &StreamState) -> Result<(), SimIommuError> {
        let Some(lock) = self.config.locked.iter().find(|lock| lock.stream == stream) else {
            return Ok(());
        };
        let same = matches!(wanted, StreamState::Translate { roots, input_bits, .. }
            if *roots == lock.roots && *input_bits == lock.input_bits);
        if same {
            Ok(())
        } else {
            Err(SimIommuError::Locked { iommu: self.config.name.clone(), stream })
        }
    }

    /// Drops what is cached for `context`: leaves and negative entries in `range` (everywhere
    /// without one), and unless `leaf_only` also pointers to tables that serve the range. Returns
    /// when it is done.
    ///
    /// # Errors
    /// [`SimIommuError::InvalidationTimedOut`] if the fault plan says so: everything is still
    /// cached.
    pub fn invalidate(
        &self,
        context: u32,
        range: Option<IovaRange>,
        leaf_only: bool,
    ) -> Result<(), SimIommuError> {
        self.complete(|tlb| tlb.invalidate(context, range, leaf_only))
    }

    /// Drops everything that is cached, for every context.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub fn invalidate_all(&self) -> Result<(), SimIommuError> {
        self.complete(Tlb::clear)
    }

    fn complete(&self, drop: impl FnOnce(&mut Tlb)) -> Result<(), SimIommuError> {
        self.clock.pass(self.config.invalidation_latency);
        let fails = self.faults.invalidation_should_fail();
        let mut state = self.state.lock();
        if fails {
            state.counters.timeouts += 1;
            return Err(SimIommuError::InvalidationTimedOut { iommu: self.config.name.clone() });
        }
        drop(&mut state.tlb);
        state.counters.invalidations += 1;
        std::mem::drop(state);
        // What was translated before must have arrived when this returns.
        std::mem::drop(self.on_their_way.write());
        Ok(())
    }

    /// While this is held no invalidation completes: for a transfer, from its translation until its
    /// bytes have arrived.
    pub(crate) fn transfer(&self) -> RwLockReadGuard<'_, ()> {
        // A device with two ports may hold it twice.
        self.on_their_way.read_recursive()
    }

    /// Power is lost: every stream is as after reset, and nothing is cached.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.streams = initial(&self.config);
        state.tlb.clear();
    }

    /// What a device that emits `address` on `stream` reaches, with everything stale honoured.
    ///
    /// # Errors
    /// [`FaultReason`]; the fault is logged.
    pub fn access(
        &self,
        stream: u32,
        address: DmaAddr,
        access: Access,
    ) -> Result<Target, FaultReason> {
        let mut state = self.state.lock();
        let result = self.look_up(&mut state, stream, address, access);
        if let Err(reason) = &result {
            state.counters.faults += 1;
            if state.log.len() < FAULT_LOG {
                state.log.push(FaultRecord { stream, address, access, reason: reason.clone() });
            }
        }
        result
    }

    fn look_up(
        &self,
        state: &mut State,
        stream: u32,
        address: DmaAddr,
        access: Access,
    ) -> Result<Target, FaultReason> {
        if self.config.evict_one_in > 0 && state.rng.u32(0..self.config.evict_one_in) == 0 {
            let State { tlb, rng, .. } = state;
            tlb.evict(rng);
        }
        let (context, roots, input_bits) = match state.streams.get(stream as usize) {
            None => return Err(FaultReason::NoSuchStream),
            Some(StreamState::Blocked) => return Err(FaultReason::Blocked),
            Some(StreamState::Bypass) => {
                let len = (u64::MAX - address.raw()).saturating_add(1);
                return Ok(Target { phys: PhysAddr::new(address.raw()), len });
            }
            Some(StreamState::Translate { context, roots, input_bits }) => {
                (*context, roots.clone(), *input_bits)
            }
        };
        let iova = self.index_of(address);
        let geometry =
            Geometry::new(self.config.format, input_bits, roots.len()).map_err(WalkFault::Shape)?;
        let found = match state.tlb.leaf(context, iova) {
            Some((translation, conflict)) => {
                state.counters.hits += 1;
                state.counters.conflicts += u64::from(conflict);
                translation.at(iova)
            }
            None => self.walk(state, &geometry, context, &roots, iova)?,
        };
        self.check(&found, iova, access)
    }

    /// The part of a device's address that indexes the table.
    pub(crate) fn index_of(&self, address: DmaAddr) -> Iova {
        let bits = self.config.input_bits;
        let mask = if self.config.index_low_bits { (1 << bits) - 1 } else { u64::MAX };
        Iova::new(address.raw() & mask)
    }

    fn walk(
        &self,
        state: &mut State,
        geometry: &Geometry,
        context: u32,
        roots: &[PhysAddr],
        iova: Iova,
    ) -> Result<Translation, FaultReason> {
        if self.config.caching_mode && state.tlb.negative(context, iova) {
            state.counters.negative_hits += 1;
            return Err(FaultReason::NegativeEntry);
        }
        let root = walk::start_at_root(geometry, roots, iova)?;
        let cached = state.tlb.pointer(geometry, context, iova);
        state.counters.walks += 1;
        state.counters.walk_cache_hits += u64::from(cached.is_some());
        let memory = self.memory.master(self.config.coherent_walk);
        let tlb = &mut state.tlb;
        let walked =
            walk::walk_from(&memory, geometry, iova, cached.unwrap_or(root), &mut |table| {
                tlb.add_pointer(geometry, context, iova, table);
            });
        match walked {
            Ok(translation) => {
                state.tlb.add_leaf(context, translation);
                Ok(translation)
            }
            Err(fault) => {
                if self.config.caching_mode {
                    state.tlb.add_negative(context, iova);
                }
                Err(fault.into())
            }
        }
    }

    fn check(
        &self,
        found: &Translation,
        iova: Iova,
        access: Access,
    ) -> Result<Target, FaultReason> {
        if !found.grants(access) {
            return Err(FaultReason::Permission { granted: found.access });
        }
        let output_bits = self.config.output_bits;
        if output_bits < 64 && found.phys.raw() >> output_bits != 0 {
            return Err(FaultReason::OutputSize { phys: found.phys, output_bits });
        }
        let inside = iova.raw().wrapping_sub(found.page_iova.raw()) & (found.page_size - 1);
        let (first, last) = found.fence.unwrap_or((0, found.page_size - 1));
        if inside < first || inside > last {
            return Err(FaultReason::Fence { first, last });
        }
        Ok(Target { phys: found.phys, len: last - inside + 1 })
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.state.lock().counters
    }

    /// The faults so far, at most [`FAULT_LOG`].
    pub fn faults(&self) -> Vec<FaultRecord> {
        self.state.lock().log.clone()
    }

    /// Takes the fault log, leaving it empty.
    pub fn take_faults(&self) -> Vec<FaultRecord> {
        std::mem::take(&mut self.state.lock().log)
    }
}

fn check_stream(config: &IommuConfig, stream: u32) -> Result<(), SimIommuError> {
    if stream < config.streams {
        return Ok(());
    }
    let last = config.streams.saturating_sub(1);
    Err(SimIommuError::NoSuchStream { iommu: config.name.clone(), stream, last })
}

fn initial(config: &IommuConfig) -> Vec<StreamState> {
    let mut streams = vec![StreamState::Blocked; config.streams as usize];
    for lock in &config.locked {
        if let Some(state) = streams.get_mut(lock.stream as usize) {
            *state = StreamState::Translate {
                context: lock.context,
                roots: lock.roots.clone(),
                input_bits: lock.input_bits,
            };
        }
    }
    streams
}
