//! The device: negotiation, endpoints, faults, reset.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::addr::{DmaAddr, Iova, IovaRange, PageSizes};
use granule::domain::{StreamId, TranslationError, UnitError};
use granule::mem::{FrameError, Platform};
use granule::table::TableError;
use lock_api::Mutex;

use crate::fault::MOST_AT_ONCE;

use super::endpoints::Endpoints;
use super::requests::{EVENT_QUEUE, Events, REQUEST_QUEUE, Requests};
use super::spec::{self, Features, Request, ReservedRegion, config};
use super::transport::{VirtioTransport, status};
use crate::HwError;
use crate::fault::{FaultEvent, FaultReason};
use crate::wait::{Limit, wait_for};

/// What an endpoint's properties may take at most, in bytes.
const MAX_PROPERTIES: u32 = 1 << 16;

/// What the device said when it was started. Constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) features: Features,
    pub(super) page_sizes: PageSizes,
    pub(super) input: IovaRange,
    domains: (u32, u32),
    probe_size: u32,
}

/// A virtio-iommu. Domains of it are [`VirtioDomain`](super::VirtioDomain)s.
///
/// Endpoints that are in no domain reach nothing: bypass is turned off.
pub struct VirtioIommu<P: Platform, T: VirtioTransport> {
    platform: P,
    name: String,
    transport: T,
    limits: Limits,
    requests: Mutex<P::Lock, Option<Requests<P>>>,
    events: Mutex<P::Lock, Option<Events<P>>>,
    endpoints: Mutex<P::Lock, Endpoints>,
}

impl<P: Platform, T: VirtioTransport> VirtioIommu<P, T> {
    /// Starts the device.
    ///
    /// # Errors
    /// [`HwError::Missing`] if it is no IOMMU, or lacks MAP and UNMAP or version 1;
    /// [`HwError::Refused`], [`HwError::Timeout`] or [`HwError::Memory`].
    pub fn new(platform: P, transport: T, name: &str) -> Result<Arc<Self>, HwError> {
        if transport.device_type() != spec::DEVICE_TYPE {
            return Err(HwError::Missing {
                unit: name.to_string(),
                what: "the device type of an IOMMU, 23",
                value: transport.device_type().into(),
            });
        }
        let features = negotiate(&platform, &transport, name)?;
        let limits = read_limits(&transport, name, features)?;
        let size = |queue, least: u16, what| match transport.max_queue_size(queue) {
            size if size < least => {
                Err(HwError::Missing { unit: name.to_string(), what, value: size.into() })
            }
            size => Ok(size),
        };
        let probe_size = usize::try_from(limits.probe_size).unwrap_or(0);
        // A request is a chain of two.
        let most = size(REQUEST_QUEUE, 2, "a queue for requests, of two entries or more")?;
        let requests = Requests::new(&platform, name, most, probe_size)?;
        let most = size(EVENT_QUEUE, 1, "a queue for events")?;
        let events = Events::new(&platform, name, most)?;
        let device = Self {
            platform,
            name: name.to_string(),
            transport,
            limits,
            requests: Mutex::new(Some(requests)),
            events: Mutex::new(Some(events)),
            endpoints: Mutex::new(Endpoints::default()),
        };
        device.start()?;
        Ok(Arc::new(device))
    }

    /// The name given to [`new`](Self::new).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The features in use.
    pub fn features(&self) -> Features {
        self.limits.features
    }

    /// The page sizes that it maps.
    pub fn page_sizes(&self) -> PageSizes {
        self.limits.page_sizes
    }

    /// Resets the device, which then knows of no domain, and starts it again. Afterwards every
    /// domain is resumed ([`Translation::resume`](granule::domain::Translation::resume),
    /// `Domain::recover`).
    ///
    /// # Errors
    /// [`HwError::Timeout`], [`HwError::Refused`], or [`HwError::Missing`] if it offers less than
    /// before.
    pub fn reset(&self) -> Result<(), HwError> {
        let mut requests = self.requests.lock();
        if let Some(requests) = requests.as_mut() {
            requests.stuck = true;
        }
        let features = negotiate(&self.platform, &self.transport, &self.name)?;
        if read_limits(&self.transport, &self.name, features)? != self.limits {
            return Err(HwError::Missing {
                unit: self.name.clone(),
                what: "what it offered before its reset",
                value: features.bits(),
            });
        }
        drop(requests);
        self.start()
    }

    /// From agreed features to a running device.
    fn start(&self) -> Result<(), HwError> {
        let mut requests = self.requests.lock();
        let mut events = self.events.lock();
        if let (Some(requests), Some(events)) = (requests.as_mut(), events.as_mut()) {
            requests.restart(&self.transport);
            events.restart(&self.transport);
        }
        if self.limits.features.contains(Features::BYPASS_CONFIG) {
            self.transport.write_config8(config::BYPASS, 0);
        }
        self.transport.set_status(
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK,
        );
        self.transport.notify(EVENT_QUEUE);
        match self.transport.status() {
            now if now & (status::NEEDS_RESET | status::FAILED) == 0 => Ok(()),
            now => Err(HwError::Refused {
                unit: self.name.clone(),
                what: "to start",
                status: now.into(),
            }),
        }
    }

    /// Whether a request was not answered, and nothing is certain until a
    /// [`reset`](Self::reset).
    pub fn is_stuck(&self) -> bool {
        self.requests.lock().as_ref().is_none_or(|requests| requests.stuck)
    }

    /// What an endpoint cannot use as IOVA: give these ranges to the domain as
    /// [`Reserved::hole`](granule::domain::Reserved::hole). Empty where the device cannot tell.
    ///
    /// # Errors
    /// [`UnitError::NoSuchStream`], [`UnitError::Refused`], [`UnitError::Timeout`].
    pub fn reserved(&self, stream: StreamId) -> Result<Vec<ReservedRegion>, UnitError> {
        let endpoint = self.endpoint(stream)?;
        if !self.limits.features.contains(Features::PROBE) {
            return Ok(Vec::new());
        }
        let mut requests = self.requests.lock();
        let request = Request::Probe { endpoint };
        let requests = requests.as_mut().ok_or_else(|| self.timeout())?;
        let status = requests.send(&self.transport, &request).map_err(|_| self.timeout())?;
        self.check(&request, status, stream)?;
        Ok(spec::reserved_regions(&requests.properties()).collect())
    }

    /// Hands over the faults that were recorded since the last call, 65,536 at most: a device could
    /// go on for ever. Says how many.
    pub fn take_faults(&self, each: &mut dyn FnMut(FaultEvent)) -> usize {
        let mut count = 0;
        while count < MOST_AT_ONCE {
            let fault = self.events.lock().as_mut().and_then(Events::take);
            let Some(fault) = fault else { break };
            count += 1;
            each(FaultEvent {
                unit: self.name.clone(),
                stream: Some(StreamId::exact(fault.endpoint)),
                address: fault.address().map(DmaAddr::new),
                access: fault.access(),
                reason: match fault.reason {
                    1 => FaultReason::NotAttached,
                    // The device does not tell a missing mapping from a missing right.
                    2 => FaultReason::NotMapped,
                    _ => FaultReason::Other,
                },
                code: fault.reason.into(),
            });
        }
        if count != 0 {
            self.transport.notify(EVENT_QUEUE);
        }
        count
    }

    /// Lets an endpoint through untranslated.
    ///
    /// # Errors
    /// [`UnitError::NoBypass`] if the device cannot; [`TranslationError::Group`] if the endpoint is
    /// in a domain; as [`VirtioDomain`](super::VirtioDomain) for the rest.
    ///
    /// # Safety
    /// The device behind the endpoint reaches all memory from then on: the caller vouches for it.
    pub unsafe fn bypass(&self, stream: StreamId) -> Result<(), TranslationError> {
        let endpoint = self.endpoint(stream)?;
        if !self.limits.features.contains(Features::BYPASS_CONFIG) {
            return Err(UnitError::NoBypass { unit: self.name.clone(), stream }.into());
        }
        let domain = self.take_domain()?;
        let request = Request::Attach { domain, endpoint, bypass: true };
        let done = self.claim(endpoint, domain).and_then(|()| {
            let done = self.request(&request, stream);
            if done.is_err() {
                self.release(endpoint);
            }
            Ok(done?)
        });
        if done.is_err() {
            self.release_domain(domain);
        }
        done
    }

    /// Blocks an endpoint that was let through.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: it may still be let through. [`UnitError::NoSuchStream`],
    /// [`UnitError::Refused`].
    pub fn end_bypass(&self, stream: StreamId) -> Result<(), UnitError> {
        let endpoint = self.endpoint(stream)?;
        let Some(domain) = self.endpoints.lock().domain_of(endpoint) else { return Ok(()) };
        self.request(&Request::Detach { domain, endpoint }, stream)?;
        self.release(endpoint);
        self.release_domain(domain);
        Ok(())
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The endpoint that a stream names: exactly one.
    pub(super) fn endpoint(&self, stream: StreamId) -> Result<u32, UnitError> {
        match stream.mask {
            0 => Ok(stream.id),
            _ => Err(self.no_such_stream(stream)),
        }
    }

    pub(super) fn take_domain(&self) -> Result<u32, UnitError> {
        let (first, last) = self.limits.domains;
        let id = self.endpoints.lock().take_domain(first, last);
        id.ok_or_else(|| UnitError::Exhausted { unit: self.name.clone(), what: "domain ids" })
    }

    pub(super) fn release_domain(&self, id: u32) {
        self.endpoints.lock().release_domain(id);
    }

    pub(super) fn claim(&self, endpoint: u32, domain: u32) -> Result<(), TranslationError> {
        let stream = StreamId::exact(endpoint);
        match self.endpoints.lock().claim(endpoint, domain) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TableError::Frames(FrameError::OutOfMemory).into()),
            Err(()) => {
                Err(TranslationError::Group { unit: self.name.clone(), stream, other: stream })
            }
        }
    }

    pub(super) fn release(&self, endpoint: u32) {
        self.endpoints.lock().release(endpoint);
    }

    /// Sends a request on behalf of `stream` and waits for it.
    pub(super) fn request(&self, request: &Request, stream: StreamId) -> Result<(), UnitError> {
        let mut requests = self.requests.lock();
        let requests = requests.as_mut().ok_or_else(|| self.timeout())?;
        let status = requests.send(&self.transport, request).map_err(|_| self.timeout())?;
        self.check(request, status, stream)
    }

    fn check(&self, request: &Request, status: u8, stream: StreamId) -> Result<(), UnitError> {
        let unit = self.name.clone();
        match (status, request) {
            (spec::OK, _) => Ok(()),
            (spec::NOENT, Request::Attach { .. } | Request::Probe { .. }) => {
                Err(self.no_such_stream(stream))
            }
            (spec::NOMEM, _) => Err(UnitError::Exhausted { unit, what: "memory for mappings" }),
            _ => Err(UnitError::Refused { unit, what: request.name(), code: status.into() }),
        }
    }

    pub(super) fn timeout(&self) -> UnitError {
        UnitError::Timeout { unit: self.name.clone() }
    }

    fn no_such_stream(&self, stream: StreamId) -> UnitError {
        UnitError::NoSuchStream { unit: self.name.clone(), stream, limit: u32::MAX }
    }
}

impl<P: Platform, T: VirtioTransport> Drop for VirtioIommu<P, T> {
    fn drop(&mut self) {
        self.transport.set_status(0);
        let stopped = wait_for(&self.platform, Limit::default(), || {
            (self.transport.status() == 0).then_some(())
        });
        if stopped.is_err() {
            // The device may still write there.
            self.requests.get_mut().take().into_iter().for_each(Requests::leak);
            self.events.get_mut().take().into_iter().for_each(Events::leak);
        }
    }
}

/// From any state to agreed features (virtio 1.2, 3.1.1).
fn negotiate<P: Platform, T: VirtioTransport>(
    platform: &P,
    transport: &T,
    name: &str,
) -> Result<Features, HwError> {
    let unit = || name.to_string();
    transport.set_status(0);
    wait_for(platform, Limit::default(), || (transport.status() == 0).then_some(()))
        .map_err(|_| HwError::Timeout { unit: unit(), what: "the device's reset" })?;
    transport.set_status(status::ACKNOWLEDGE);
    transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
    let offered = transport.device_features();
    let wanted = Features::all() - Features::BYPASS;
    let features = Features::from_bits_truncate(offered) & wanted;
    let missing = if !features.contains(Features::VERSION_1) {
        Some("version 1 of virtio")
    } else if !features.contains(Features::MAP_UNMAP) {
        Some("MAP and UNMAP requests")
    } else {
        None
    };
    if let Some(what) = missing {
        transport.set_status(status::FAILED);
        return Err(HwError::Missing { unit: unit(), what, value: offered });
    }
    transport.set_driver_features(features.bits());
    let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    transport.set_status(agreed);
    match transport.status() {
        now if now & status::FEATURES_OK != 0 => Ok(features),
        now => {
            transport.set_status(status::FAILED);
            Err(HwError::Refused { unit: unit(), what: "the features", status: now.into() })
        }
    }
}

/// Reads the configuration until it did not change meanwhile (virtio 1.2, 2.5.3).
fn read_limits<T: VirtioTransport>(
    transport: &T,
    name: &str,
    features: Features,
) -> Result<Limits, HwError> {
    let word = |at| transport.config32(at);
    let long = |at| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    for _ in 0..16 {
        let generation = transport.config_generation();
        let sizes = long(config::PAGE_SIZE_MASK);
        let input = (long(config::INPUT_START), long(config::INPUT_END));
        let domains = (word(config::DOMAIN_START), word(config::DOMAIN_END));
        let probe = word(config::PROBE_SIZE);
        if transport.config_generation() == generation {
            return limits(name, features, sizes, input, domains, probe);
        }
    }
    Err(HwError::Timeout { unit: name.to_string(), what: "a stable configuration" })
}

fn limits(
    name: &str,
    features: Features,
    sizes: u64,
    input: (u64, u64),
    domains: (u32, u32),
    probe_size: u32,
) -> Result<Limits, HwError> {
    let missing = |what, value| HwError::Missing { unit: name.to_string(), what, value };
    let page_sizes = PageSizes::from_bits(sizes);
    let granule = page_sizes.granule().ok_or(missing("page sizes of 4 KiB or more", sizes))?;
    let (first, last) =
        if features.contains(Features::INPUT_RANGE) { input } else { (0, u64::MAX) };
    // The last granule of 64 bits cannot be said as a length, and is left out.
    let last = last.min(!granule.mask() - 1);
    let input = IovaRange::from_inclusive(Iova::new(first), Iova::new(last))
        .ok()
        .and_then(|range| range.align_inward(granule))
        .ok_or(missing("a usable input range", last))?;
    let domains = if features.contains(Features::DOMAIN_RANGE) { domains } else { (0, u32::MAX) };
    let probe_size = if features.contains(Features::PROBE) { probe_size } else { 0 };
    if probe_size > MAX_PROPERTIES {
        return Err(missing("properties of 64 KiB at most", probe_size.into()));
    }
    Ok(Limits { features, page_sizes, input, domains, probe_size })
}
