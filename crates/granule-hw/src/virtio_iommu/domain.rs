//! A domain of a virtio-iommu: a translation whose tables are the device's.

use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::addr::{Attributes, Granule, Iova, IovaRange, PhysAddr, PhysRange};
use granule::domain::{
    Attached, Geometry, Invalidation, MappingRecord, RecordedMapping, Stream, StreamId,
    Translation, TranslationError, UnitError, UnitReport, map_joined,
};
use granule::mem::{FrameError, Platform};
use granule::table::{Hint, Resolved, TableError, Unmapped};
use lock_api::Mutex;

use super::VirtioIommu;
use super::spec::{self, Request};
use super::transport::VirtioTransport;

/// One address space of a [`VirtioIommu`].
///
/// The device knows of a domain only while an endpoint is attached to it, and forgets its mappings
/// with the last one. So all mappings are recorded here; the first endpoint to be attached, and
/// [`resume`](Translation::resume), send them.
///
/// A mapping is undone whole: unmapping a part of what one call mapped is refused
/// ([`TableError::CutsPage`]). The record of a mapping takes memory of the global allocator, which
/// has no way to say that there is none.
pub struct VirtioDomain<P: Platform, T: VirtioTransport> {
    device: Arc<VirtioIommu<P, T>>,
    id: u32,
    geometry: Geometry,
    granule: Granule,
    state: Mutex<P::Lock, State>,
}

#[derive(Default)]
struct State {
    mappings: MappingRecord,
    endpoints: Vec<Endpoint>,
}

struct Endpoint {
    id: u32,
    /// Devices of a group may carry the same one.
    users: usize,
    reserved: Vec<IovaRange>,
}

impl<P: Platform, T: VirtioTransport> VirtioDomain<P, T> {
    /// A domain that maps nothing.
    ///
    /// # Errors
    /// [`UnitError::Exhausted`] if the device has no domain id left.
    pub fn new(device: &Arc<VirtioIommu<P, T>>) -> Result<Self, TranslationError> {
        let limits = device.limits();
        let granule = limits.page_sizes.granule().ok_or(TranslationError::NoUnit)?;
        // Physical addresses have 64 bits in a request; the last byte cannot be said as a length.
        let output = PhysRange::new(PhysAddr::new(0), u64::MAX);
        let geometry = Geometry {
            page_sizes: limits.page_sizes,
            aperture: limits.input,
            output: output.map_err(|_| TranslationError::NoUnit)?,
            fence_unit: 0,
            upper_bits_ignored: false,
        };
        let id = device.take_domain()?;
        let state = Mutex::new(State::default());
        Ok(Self { device: device.clone(), id, geometry, granule, state })
    }

    /// The device's number for this domain.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The device.
    pub fn device(&self) -> &Arc<VirtioIommu<P, T>> {
        &self.device
    }

    /// Any endpoint, for the messages of requests that concern the domain.
    fn stream(&self, state: &State) -> StreamId {
        StreamId::exact(state.endpoints.first().map_or(0, |endpoint| endpoint.id))
    }

    fn misaligned(&self, value: u64) -> TableError {
        TableError::Misaligned { value, granule: self.granule }
    }

    fn check_range(&self, iova: Iova, len: u64) -> Result<IovaRange, TableError> {
        if (iova.raw() | len) & self.granule.mask() != 0 {
            return Err(self.misaligned(iova.raw() | len));
        }
        let range = IovaRange::new(iova, len).ok();
        let range = range.filter(|range| self.geometry.aperture.contains_range(range));
        let last = self.geometry.aperture.last().raw();
        let input_bits = 64 - last.leading_zeros();
        range.ok_or(TableError::OutsideInput { iova, len, input_bits })
    }

    /// Everything that the device might not check.
    fn check_map(
        &self,
        state: &State,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<RecordedMapping, TranslationError> {
        if attrs.access.is_empty() {
            return Err(TableError::NoAccess.into());
        }
        if !phys.is_aligned(self.granule) {
            return Err(self.misaligned(phys.start().raw() | phys.len()).into());
        }
        let range = self.check_range(iova, phys.len())?;
        let reserved = state.endpoints.iter().flat_map(|endpoint| &endpoint.reserved);
        if reserved.clone().any(|reserved| reserved.overlaps(&range)) {
            return Err(TranslationError::Unsupported {
                what: "a mapping inside a range that an endpoint reserves",
            });
        }
        if let Some(taken) = state.mappings.first_in(range) {
            return Err(TableError::AlreadyMapped { iova: taken.range.start().max(iova) }.into());
        }
        Ok(RecordedMapping { range, phys: phys.start().raw(), attrs })
    }

    fn send_map(&self, mapping: &RecordedMapping, stream: StreamId) -> Result<(), UnitError> {
        let request = Request::Map {
            domain: self.id,
            first: mapping.range.start().raw(),
            last: mapping.range.last().raw(),
            phys: mapping.phys,
            flags: spec::map_flags(mapping.attrs, self.device.features()),
        };
        self.device.request(&request, stream)
    }

    /// Maps one run, whose neighbours may be of the same call.
    fn map_one(
        &self,
        state: &mut State,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<(), TranslationError> {
        let mapping = self.check_map(state, iova, phys, attrs)?;
        if !state.endpoints.is_empty() {
            self.send_map(&mapping, self.stream(state))?;
        }
        state.mappings.insert(mapping);
        Ok(())
    }

    fn unmap_in(&self, state: &mut State, range: IovaRange) -> Result<u64, TranslationError> {
        state.mappings.check_whole(range)?;
        if !state.endpoints.is_empty() && state.mappings.first_in(range).is_some() {
            let request = Request::Unmap {
                domain: self.id,
                first: range.start().raw(),
                last: range.last().raw(),
            };
            match self.device.request(&request, self.stream(state)) {
                // There is no such domain: the device was reset, and nothing is mapped.
                Ok(()) | Err(UnitError::Refused { code: NOENT, .. }) => {}
                Err(error) => {
                    if matches!(error, UnitError::Timeout { .. }) {
                        // A resume must not bring back what its owner gave up.
                        state.mappings.remove(range);
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(state.mappings.remove(range))
    }

    /// Makes the device know the domain's first endpoint and all mappings.
    fn send_all(&self, state: &State, endpoint: u32) -> Result<(), UnitError> {
        let stream = StreamId::exact(endpoint);
        let (domain, bypass) = (self.id, false);
        self.device.request(&Request::Attach { domain, endpoint, bypass }, stream)?;
        state.mappings.iter().try_for_each(|mapping| self.send_map(mapping, stream)).inspect_err(
            |_| {
                let _ = self.send_detach(endpoint);
            },
        )
    }

    fn send_attach(&self, endpoint: u32) -> Result<(), UnitError> {
        let request = Request::Attach { domain: self.id, endpoint, bypass: false };
        self.device.request(&request, StreamId::exact(endpoint))
    }

    /// Takes an endpoint off; one that the device does not know in this domain reaches nothing of
    /// it.
    fn send_detach(&self, endpoint: u32) -> Result<(), UnitError> {
        let request = Request::Detach { domain: self.id, endpoint };
        match self.device.request(&request, StreamId::exact(endpoint)) {
            Err(UnitError::Refused { code: NOENT | INVAL, .. }) => Ok(()),
            other => other,
        }
    }

    fn attach_first(&self, state: &mut State, endpoint: u32) -> Result<(), TranslationError> {
        let stream = StreamId::exact(endpoint);
        let regions = self.device.reserved(stream)?;
        let reserved: Vec<IovaRange> = regions.iter().map(|region| region.range).collect();
        for range in &reserved {
            if let Some(taken) = state.mappings.first_in(*range) {
                let iova = taken.range.start().max(range.start());
                return Err(TableError::AlreadyMapped { iova }.into());
            }
        }
        let full = |_| TableError::Frames(FrameError::OutOfMemory);
        state.endpoints.try_reserve(1).map_err(full)?;
        if state.endpoints.is_empty() {
            self.send_all(state, endpoint)?;
        } else {
            self.send_attach(endpoint)?;
        }
        state.endpoints.push(Endpoint { id: endpoint, users: 1, reserved });
        Ok(())
    }
}

const NOENT: u32 = spec::NOENT as u32;
/// What DETACH answers for an endpoint that is not in the domain.
const INVAL: u32 = spec::INVAL as u32;

// SAFETY: the device maps what a MAP says until it has answered the UNMAP, and every UNMAP is waited
// for; after one that was not answered `invalidate` fails until the device was reset. A failed map,
// list or attachment is taken back; where the device does not answer that either, `invalidate` fails
// too. Unmapping removes records, which does not allocate.
unsafe impl<P: Platform, T: VirtioTransport> Translation for VirtioDomain<P, T> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError> {
        self.map_one(&mut self.state.lock(), iova, phys, attrs)?;
        Ok(Hint::NONE)
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
        let state = &mut *self.state.lock();
        let map = |state: &mut State, at, run| self.map_one(state, at, run, attrs);
        map_joined(state, iova, pieces, map, |state, before| {
            // If this fails, the record still has it for the caller's unmap, or the device is stuck and
            // `invalidate` says so.
            let _ = self.unmap_in(state, before);
        })
    }

    unsafe fn unmap(&self, range: IovaRange, _hint: Hint) -> Result<Unmapped, TranslationError> {
        self.check_range(range.start(), range.len())?;
        let bytes = self.unmap_in(&mut self.state.lock(), range)?;
        Ok(Unmapped { bytes, tables: false })
    }

    fn invalidate(&self, _request: &Invalidation) -> Result<(), UnitError> {
        if self.device.is_stuck() { Err(self.device.timeout()) } else { Ok(()) }
    }

    fn resolve(&self, iova: Iova) -> Option<Resolved> {
        self.state.lock().mappings.resolve(iova, self.geometry.page_sizes)
    }

    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64)) {
        self.state.lock().mappings.for_each_page(range, self.geometry.page_sizes, visit);
    }

    fn mapped_bytes(&self, range: IovaRange) -> u64 {
        self.state.lock().mappings.mapped_bytes(range)
    }

    fn units(&self) -> Vec<UnitReport> {
        alloc::vec![UnitReport { name: self.device.name().into(), layout: None }]
    }

    unsafe fn attach(&self, stream: Stream) -> Result<Attached, TranslationError> {
        if stream.unit != 0 {
            return Err(TranslationError::NoSuchUnit { unit: stream.unit, count: 1 });
        }
        let endpoint = self.device.endpoint(stream.id)?;
        let mut state = self.state.lock();
        if let Some(known) = state.endpoints.iter_mut().find(|known| known.id == endpoint) {
            known.users += 1;
            return Ok(Attached::default());
        }
        self.device.claim(endpoint, self.id)?;
        let done = self.attach_first(&mut state, endpoint);
        if done.is_err() {
            self.device.release(endpoint);
        }
        done.map(|()| Attached::default())
    }

    fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        let mut state = self.state.lock();
        let known = |known: &Endpoint| stream.unit == 0 && stream.id == StreamId::exact(known.id);
        let Some(index) = state.endpoints.iter().position(known) else { return Ok(()) };
        let endpoint = &mut state.endpoints[index];
        if endpoint.users > 1 {
            endpoint.users -= 1;
            return Ok(());
        }
        let id = endpoint.id;
        self.send_detach(id)?;
        state.endpoints.swap_remove(index);
        self.device.release(id);
        Ok(())
    }

    fn resume(&self) -> Result<(), TranslationError> {
        let state = self.state.lock();
        for endpoint in &state.endpoints {
            // With its last endpoint the device's idea of the domain goes, whatever it was.
            match self.send_detach(endpoint.id) {
                Err(error @ UnitError::Timeout { .. }) => return Err(error.into()),
                _ => continue,
            }
        }
        let mut endpoints = state.endpoints.iter();
        if let Some(first) = endpoints.next() {
            self.send_all(&state, first.id)?;
        }
        for endpoint in endpoints {
            self.send_attach(endpoint.id)?;
        }
        Ok(())
    }
}

impl<P: Platform, T: VirtioTransport> Drop for VirtioDomain<P, T> {
    fn drop(&mut self) {
        let mut blocked = true;
        for endpoint in &core::mem::take(&mut self.state.get_mut().endpoints) {
            match self.send_detach(endpoint.id) {
                Ok(()) => self.device.release(endpoint.id),
                // It stays claimed: nobody may use it before it is certain where it leads.
                Err(_) => blocked = false,
            }
        }
        if blocked {
            self.device.release_domain(self.id);
        }
    }
}
