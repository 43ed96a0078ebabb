//! A unit together with the list of who is attached to it: groups are kept together here.

use alloc::sync::Arc;
use alloc::vec::Vec;

use lock_api::Mutex;

use super::{StreamId, TranslationError, Unit, UnitError};
use crate::mem::Platform;

/// Who holds a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The domain with this number.
    Domain(usize),
    /// Nobody translates it: it is let through.
    Bypass,
    /// Nobody may use it.
    Blocked,
}

/// One IOMMU of the machine: the driver's [`Unit`] and the streams that are in use.
///
/// Make one for each piece of hardware and share it: it sees to it that streams which overlap are
/// in one domain only.
#[derive(Debug)]
pub struct Iommu<P: Platform, U: Unit> {
    unit: U,
    streams: Mutex<P::Lock, Vec<(StreamId, Holder)>>,
}

impl<P: Platform, U: Unit> Iommu<P, U> {
    /// Takes over a unit.
    pub fn new(unit: U) -> Arc<Self> {
        Arc::new(Self { unit, streams: Mutex::new(Vec::new()) })
    }

    /// The driver.
    pub fn unit(&self) -> &U {
        &self.unit
    }

    /// The streams in use now.
    pub fn streams(&self) -> Vec<StreamId> {
        self.streams.lock().iter().map(|(stream, _)| *stream).collect()
    }

    /// Notes that a domain uses a stream; [`release`](Self::release) undoes it. Answers whether
    /// this is the stream's first user: devices of a group may carry the same one.
    pub(super) fn claim(&self, stream: StreamId, domain: usize) -> Result<bool, TranslationError> {
        self.take(stream, Holder::Domain(domain))
    }

    /// Notes that one user of a stream is gone.
    pub(super) fn release(&self, stream: StreamId) {
        let mut streams = self.streams.lock();
        if let Some(index) = streams.iter().position(|(held, _)| *held == stream) {
            streams.swap_remove(index);
        }
    }

    /// Whether a stream has exactly one user.
    pub(super) fn is_last(&self, stream: StreamId) -> bool {
        self.streams.lock().iter().filter(|(held, _)| *held == stream).count() == 1
    }

    /// Lets a stream through untranslated.
    ///
    /// # Errors
    /// [`TranslationError::Group`] if the stream overlaps one that is translated;
    /// [`TranslationError::Unit`] if the unit cannot or the stream is locked.
    ///
    /// # Safety
    /// As [`Unit::bypass`]: the device reaches all memory.
    pub unsafe fn bypass(&self, stream: StreamId) -> Result<(), TranslationError> {
        let name = || self.unit.info().name.clone();
        if !self.unit.info().can_bypass {
            return Err(UnitError::NoBypass { unit: name(), stream }.into());
        }
        if !self.unit.locked_roots(stream).is_empty() {
            return Err(UnitError::Locked { unit: name(), stream }.into());
        }
        self.take(stream, Holder::Bypass)?;
        // SAFETY: the caller vouches for the device.
        unsafe { self.unit.bypass(stream, true) }.map_err(|error| {
            self.release(stream);
            error.into()
        })
    }

    /// Blocks a stream that was let through.
    ///
    /// # Errors
    /// As [`Unit::bypass`].
    pub fn end_bypass(&self, stream: StreamId) -> Result<(), UnitError> {
        if self.is_last(stream) {
            // SAFETY: `on` is false: the stream loses access.
            unsafe { self.unit.bypass(stream, false) }?;
        }
        self.release(stream);
        Ok(())
    }

    /// Blocks a stream and keeps everybody else from using it, until the result is dropped: a domain
    /// that maps nothing. For a device that misbehaves, or that has no driver yet.
    ///
    /// # Errors
    /// [`TranslationError::Group`] if the stream is in use; [`TranslationError::Unit`] if firmware
    /// locked it, or the unit lacks it.
    pub fn block(self: &Arc<Self>, stream: StreamId) -> Result<Blocked<P, U>, TranslationError> {
        if !self.unit.locked_roots(stream).is_empty() {
            return Err(UnitError::Locked { unit: self.unit.info().name.clone(), stream }.into());
        }
        self.take(stream, Holder::Blocked)?;
        // SAFETY: `on` is false: the stream loses access.
        if let Err(error) = unsafe { self.unit.bypass(stream, false) } {
            self.release(stream);
            return Err(error.into());
        }
        Ok(Blocked { iommu: self.clone(), stream })
    }

    fn take(&self, stream: StreamId, holder: Holder) -> Result<bool, TranslationError> {
        let mut streams = self.streams.lock();
        for (other, held) in streams.iter() {
            if stream.overlaps(*other) && *held != holder {
                return Err(TranslationError::Group {
                    unit: self.unit.info().name.clone(),
                    stream,
                    other: *other,
                });
            }
        }
        let first = !streams.iter().any(|(held, _)| *held == stream);
        streams.push((stream, holder));
        Ok(first)
    }
}

/// A stream that reaches nothing, and that nobody else may use, while this lives.
pub struct Blocked<P: Platform, U: Unit> {
    iommu: Arc<Iommu<P, U>>,
    stream: StreamId,
}

impl<P: Platform, U: Unit> Blocked<P, U> {
    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }
}

impl<P: Platform, U: Unit> Drop for Blocked<P, U> {
    fn drop(&mut self) {
        // The stream stays blocked; it is only free to be attached again.
        self.iommu.release(self.stream);
    }
}
