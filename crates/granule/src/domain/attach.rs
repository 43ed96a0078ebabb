//! Attaching the streams of a device to a domain: all of them, or none.

use super::{Domain, Stream, Translation, TranslationError};
use crate::addr::IovaRange;
use crate::mem::Platform;

/// Why streams could not be attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The translation or its hardware refused.
    #[error(transparent)]
    Translation(#[from] TranslationError),
    /// Firmware's entries in a locked root reach memory that an untrusted device was not given.
    #[error(
        "firmware left {range} mapped in a locked root: an untrusted device cannot be kept from it. \
         Trust the device, or keep it blocked"
    )]
    FirmwareMapping {
        /// What firmware mapped.
        range: IovaRange,
    },
    /// The domain exposes bytes to its devices already.
    #[error(
        "{exposed} bytes are exposed to the devices of this domain now: \
         unmap them before an untrusted device joins"
    )]
    Exposing {
        /// How many bytes.
        exposed: u64,
    },
    /// Live mappings lie where firmware's entries are.
    #[error(
        "firmware's entries in the locked root occupy {range}, which this domain has in use: attach before mapping"
    )]
    Occupied {
        /// The range.
        range: IovaRange,
    },
}

impl<P: Platform, T: Translation> Domain<P, T> {
    /// Attaches all streams of a device. The least trusted device sets the domain's trust.
    ///
    /// # Errors
    /// [`StreamError`]; no stream is then attached that was not before.
    pub(crate) fn attach_streams(
        &self,
        streams: &[Stream],
        trusted: bool,
    ) -> Result<(), StreamError> {
        if trusted {
            return self.attach_all(streams, trusted);
        }
        self.distrust().map_err(|exposed| StreamError::Exposing { exposed })?;
        // What exposed something and was unmapped may still be cached.
        let flushed = self.flush().map_err(TranslationError::from);
        let attached =
            flushed.map_err(StreamError::from).and_then(|()| self.attach_all(streams, trusted));
        if attached.is_err() && !self.is_poisoned() {
            self.trust_again();
        }
        attached
    }

    fn attach_all(&self, streams: &[Stream], trusted: bool) -> Result<(), StreamError> {
        for (index, stream) in streams.iter().enumerate() {
            if let Err(error) = self.attach_one(*stream, trusted) {
                if !self.block_streams(&streams[..index]) {
                    self.lose();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn attach_one(&self, stream: Stream, trusted: bool) -> Result<(), StreamError> {
        // SAFETY: the translation is part of this domain, whose drop waits for its devices; its own
        // drop detaches what is left before it frees a table.
        let attached = unsafe { self.translation().attach(stream) }?;
        for range in &attached.firmware {
            if let Err(error) = self.admit_firmware(*range, trusted) {
                if self.translation().detach(stream).is_err() {
                    self.lose();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Keeps the allocator away from firmware's entries.
    fn admit_firmware(&self, range: IovaRange, trusted: bool) -> Result<(), StreamError> {
        if !trusted {
            return Err(StreamError::FirmwareMapping { range });
        }
        match range.intersection(&self.aperture()) {
            Some(inside) => self
                .allocator()
                .reserve(inside)
                .map_err(|_| StreamError::Occupied { range: inside }),
            None => Ok(()),
        }
    }

    /// Takes a device's streams off the domain: the counterpart of
    /// [`attach_streams`](Self::attach_streams), with the same arguments. A stream that cannot be
    /// blocked keeps the domain's tables alive for ever; the answer is whether all were blocked.
    pub(crate) fn detach_streams(&self, streams: &[Stream], trusted: bool) -> bool {
        let blocked = self.block_streams(streams);
        if blocked && !trusted {
            self.trust_again();
        }
        blocked
    }

    /// Blocks streams. All are tried, even behind one that hangs.
    fn block_streams(&self, streams: &[Stream]) -> bool {
        streams.iter().filter(|stream| self.translation().detach(**stream).is_err()).count() == 0
    }
}
