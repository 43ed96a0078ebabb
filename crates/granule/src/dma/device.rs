//! The device: a handle of limits, a route and counters, without a type parameter.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::direct::{Direct, Passage};
use super::ops::Ops;
use super::route::RouteCore;
use super::translated::Translated;
use super::{AttachError, BusWindow, DetachError, DeviceSpec, RouteReport, TrustReason};
use crate::addr::{DmaRange, Granule, Iova, IovaRange};
use crate::bounce::BouncePool;
use crate::domain::{
    Domain, DomainStats, Geometry, Iommu, Stats, Stream, StreamId, Translation, Unit, UnitError,
    Unmanaged,
};
use crate::mem::Platform;

/// A bus master, ready for DMA.
///
/// A handle: clones are of the same device. The last one that goes takes the device off its IOMMU
/// (if the hardware does not answer, the tables stay for ever).
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    ops: Box<dyn Ops>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ops.detach();
    }
}

/// Something that leads to a device and keeps it alive: `&Device` for guards that live on a stack,
/// [`Device`] for guards that are stored.
pub trait DeviceRef: sealed::Sealed {
    /// The device.
    fn device(&self) -> &Device;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Device {}
    impl Sealed for &super::Device {}
}

impl DeviceRef for Device {
    #[inline]
    fn device(&self) -> &Device {
        self
    }
}

impl DeviceRef for &Device {
    #[inline]
    fn device(&self) -> &Device {
        self
    }
}

impl Device {
    /// A device directly on the bus, which sees memory through `windows`.
    ///
    /// # Errors
    /// [`AttachError`]: untrusted, no window, or a mask that reaches none of them.
    pub fn direct<P: Platform>(
        platform: &P,
        spec: DeviceSpec,
        windows: &[BusWindow],
        pool: Option<Arc<BouncePool<P>>>,
    ) -> Result<Self, AttachError> {
        if !spec.trusted {
            return Err(AttachError::Untrusted { device: spec.name, reason: TrustReason::Direct });
        }
        Self::unconfined(platform, spec, windows, pool, "on the bus", None)
    }

    /// A device whose IOMMU lets it through untranslated.
    ///
    /// # Errors
    /// [`AttachError`]: as [`direct`](Self::direct), and [`AttachError::Bypass`] where the IOMMU
    /// cannot, or the stream is locked.
    ///
    /// # Safety
    /// The device reaches all of its windows for as long as it is attached: the caller vouches
    /// for it.
    pub unsafe fn bypassed<P: Platform, U: Unit>(
        platform: &P,
        spec: DeviceSpec,
        iommu: &Arc<Iommu<P, U>>,
        streams: &[StreamId],
        windows: &[BusWindow],
        pool: Option<Arc<BouncePool<P>>>,
    ) -> Result<Self, AttachError> {
        if !spec.trusted {
            return Err(AttachError::Untrusted { device: spec.name, reason: TrustReason::Bypass });
        }
        if streams.is_empty() {
            return Err(AttachError::NoStream { device: spec.name });
        }
        check_spec(&spec)?;
        let mut bypass = Bypass { iommu: iommu.clone(), streams: Vec::new() };
        for stream in streams {
            // SAFETY: the caller vouches for the device.
            if let Err(cause) = unsafe { iommu.bypass(*stream) } {
                bypass.close();
                return Err(AttachError::Bypass { device: spec.name, cause });
            }
            bypass.streams.push(*stream);
        }
        Self::unconfined(platform, spec, windows, pool, "bypassed", Some(Box::new(bypass)))
    }

    /// A device in an identity domain.
    ///
    /// # Errors
    /// [`AttachError`]: as [`direct`](Self::direct), and [`AttachError::Stream`] of the domain.
    pub fn identity<P: Platform, T: Translation>(
        platform: &P,
        spec: DeviceSpec,
        domain: &Arc<Unmanaged<P, T>>,
        streams: &[Stream],
        windows: &[BusWindow],
        pool: Option<Arc<BouncePool<P>>>,
    ) -> Result<Self, AttachError> {
        if !spec.trusted {
            return Err(AttachError::Untrusted {
                device: spec.name,
                reason: TrustReason::Identity,
            });
        }
        if streams.is_empty() {
            return Err(AttachError::NoStream { device: spec.name });
        }
        check_spec(&spec)?;
        let mut passage = Identity { domain: domain.clone(), streams: Vec::new() };
        for stream in streams {
            if let Err(cause) = domain.attach(*stream) {
                passage.close();
                return Err(AttachError::Stream { device: spec.name, cause: cause.into() });
            }
            passage.streams.push(*stream);
        }
        Self::unconfined(platform, spec, windows, pool, "identity domain", Some(Box::new(passage)))
    }

    fn unconfined<P: Platform>(
        platform: &P,
        spec: DeviceSpec,
        windows: &[BusWindow],
        pool: Option<Arc<BouncePool<P>>>,
        how: &'static str,
        passage: Option<Box<dyn Passage>>,
    ) -> Result<Self, AttachError> {
        let checked = check_spec(&spec).and_then(|()| check_windows(&spec, windows));
        if let Err(error) = checked {
            if let Some(passage) = passage {
                passage.close();
            }
            return Err(error);
        }
        let mut windows = windows.to_vec();
        windows.sort_by_key(|window| window.memory.start());
        let core = RouteCore::new(platform, spec, pool);
        let locks = Direct::locks(platform);
        Ok(Self::from_ops(Box::new(Direct { core, windows, how, passage, locks })))
    }

    fn from_ops(ops: Box<dyn Ops>) -> Self {
        Self { inner: Arc::new(Inner { ops }) }
    }

    #[inline]
    pub(crate) fn ops(&self) -> &dyn Ops {
        &*self.inner.ops
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.ops.spec().name
    }

    /// Its limits.
    pub fn spec(&self) -> &DeviceSpec {
        self.inner.ops.spec()
    }

    /// Whether two handles are of the same device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// What it has mapped now.
    pub fn stats(&self) -> Stats {
        self.inner.ops.stats()
    }

    /// What its domain holds, if one translates for it.
    pub fn domain_stats(&self) -> Option<DomainStats> {
        self.inner.ops.domain_stats()
    }

    /// How it gets to memory, and with which pages `range` is mapped.
    pub fn report(&self, range: Option<DmaRange>) -> RouteReport {
        self.inner.ops.report(range)
    }

    /// The longest buffer that one mapping can carry, in bytes (`dma_max_mapping_size`). For an
    /// untrusted device that is what its bounce pool can lend, since any buffer may need it; buffers
    /// of whole granules may be longer.
    pub fn max_mapping_size(&self) -> u64 {
        self.inner.ops.max_mapping_size()
    }

    /// The size in which entries of a scatter list join to one segment if they are multiples of it:
    /// the granule (`dma_get_merge_boundary` plus one). `None` where nothing translates.
    pub fn merge_boundary(&self) -> Option<Granule> {
        self.inner.ops.demands().translated.map(|translated| translated.granule)
    }

    /// Completes all deferred invalidations of its domain.
    ///
    /// # Errors
    /// [`UnitError::Timeout`]: everything stays in quarantine.
    pub fn flush(&self) -> Result<(), UnitError> {
        self.inner.ops.flush()
    }

    /// Takes the device off its IOMMU.
    ///
    /// # Errors
    /// [`DetachError`] with mappings live or other handles about; the device is handed back.
    pub fn detach(self) -> Result<(), (Self, DetachError)> {
        let live = self.inner.ops.live();
        if live != 0 {
            let error = DetachError::Live { device: self.name().into(), live };
            return Err((self, error));
        }
        let handles = Arc::strong_count(&self.inner) - 1;
        if handles != 0 {
            let error = DetachError::Shared { device: self.name().into(), handles };
            return Err((self, error));
        }
        // The drop of the last handle detaches.
        drop(self);
        Ok(())
    }
}

impl core::fmt::Debug for Device {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Device").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl<P: Platform, T: Translation> Domain<P, T> {
    /// Puts a device behind this domain: from now on it reaches what is mapped here, and nothing
    /// else.
    ///
    /// # Errors
    /// [`AttachError`]: limits that cannot work, a stream in use elsewhere, a locked stream that an
    /// untrusted device must not have. No stream is then attached.
    pub fn attach(
        self: &Arc<Self>,
        spec: DeviceSpec,
        streams: &[Stream],
        pool: Option<Arc<BouncePool<P>>>,
    ) -> Result<Device, AttachError> {
        check_spec(&spec)?;
        if streams.is_empty() {
            return Err(AttachError::NoStream { device: spec.name });
        }
        let base = emitted_base(&spec, self.geometry())?;
        let usable = self.usable();
        let reach = |mask, kind| reachable(&spec, usable, self.granule(), base, mask, kind);
        let streaming = reach(spec.mask, "streaming")?;
        let coherent = reach(spec.coherent_mask, "coherent")?;
        self.attach_streams(streams, spec.trusted)
            .map_err(|cause| AttachError::Stream { device: spec.name.clone(), cause })?;
        let core = RouteCore::new(self.platform(), spec, pool);
        let open = streaming.contains_range(&self.usable())
            && core.spec.snoops
            && !core.spec.unverified_fences;
        Ok(Device::from_ops(Box::new(Translated {
            few: if open { self.translation().few() * self.granule().size() } else { 0 },
            core,
            domain: self.clone(),
            streams: streams.to_vec(),
            base,
            streaming,
            coherent,
        })))
    }
}

/// What every address that the device emits has above the bits that the table indexes: nothing, unless
/// the hardware ignores it.
fn emitted_base(spec: &DeviceSpec, geometry: &Geometry) -> Result<u64, AttachError> {
    let Some(window) = spec.window else {
        return Ok(0);
    };
    let bits = 64 - geometry.aperture.last().raw().leading_zeros();
    let index = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
    let (first, last) = (window.start().raw(), window.last().raw());
    // Of a window that is only in part above, the rest can be used.
    if !geometry.upper_bits_ignored && first <= index {
        return Ok(0);
    }
    if geometry.upper_bits_ignored && first & !index == last & !index {
        return Ok(first & !index);
    }
    Err(AttachError::Window { device: spec.name.clone(), first, last, bits })
}

/// The part of the aperture that a mask and a window leave: a granule at least, or nothing could
/// ever be mapped.
fn reachable(
    spec: &DeviceSpec,
    aperture: IovaRange,
    granule: Granule,
    base: u64,
    mask: u64,
    kind: &'static str,
) -> Result<IovaRange, AttachError> {
    let first = base | aperture.start().raw();
    let too_low = || AttachError::Mask { device: String::from(&spec.name), kind, mask, first };
    let highest = mask.checked_sub(base).ok_or_else(too_low)?;
    let masked =
        IovaRange::from_inclusive(aperture.start(), aperture.last().min(Iova::new(highest)));
    let mut left = masked.map_err(|_| too_low())?;
    if let Some(window) = spec.window {
        let start = Iova::new(window.start().raw() - base);
        let window = IovaRange::new(start, window.len()).map_err(|_| too_low())?;
        left = left.intersection(&window).ok_or_else(too_low)?;
    }
    left.align_inward(granule).map(|_| left).ok_or_else(too_low)
}

fn check_spec(spec: &DeviceSpec) -> Result<(), AttachError> {
    if spec.boundary != 0 && !spec.boundary.is_power_of_two() {
        return Err(AttachError::Boundary { device: spec.name.clone(), boundary: spec.boundary });
    }
    if spec.min_align_mask & spec.min_align_mask.wrapping_add(1) != 0 {
        let mask = spec.min_align_mask;
        return Err(AttachError::AlignMask { device: spec.name.clone(), mask });
    }
    if spec.max_segment == 0 {
        return Err(AttachError::NoSegment { device: spec.name.clone() });
    }
    Ok(())
}

fn check_windows(spec: &DeviceSpec, windows: &[BusWindow]) -> Result<(), AttachError> {
    let Some(first) = windows.iter().map(|window| window.bus.raw()).min() else {
        return Err(AttachError::NoWindow { device: spec.name.clone() });
    };
    for (kind, mask) in [("streaming", spec.mask), ("coherent", spec.coherent_mask)] {
        if !windows.iter().any(|window| window.below(mask).is_some()) {
            return Err(AttachError::Mask { device: spec.name.clone(), kind, mask, first });
        }
    }
    Ok(())
}

/// Streams that an IOMMU lets through.
struct Bypass<P: Platform, U: Unit> {
    iommu: Arc<Iommu<P, U>>,
    streams: Vec<StreamId>,
}

impl<P: Platform, U: Unit> Passage for Bypass<P, U> {
    fn close(&self) -> bool {
        self.streams.iter().filter(|stream| self.iommu.end_bypass(**stream).is_err()).count() == 0
    }
}

/// Streams in an identity domain.
struct Identity<P: Platform, T: Translation> {
    domain: Arc<Unmanaged<P, T>>,
    streams: Vec<Stream>,
}

impl<P: Platform, T: Translation> Passage for Identity<P, T> {
    fn close(&self) -> bool {
        self.streams.iter().filter(|stream| self.domain.detach(**stream).is_err()).count() == 0
    }
}
