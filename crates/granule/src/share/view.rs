//! What the devices of a shared buffer see of it: keys, ranges, and addresses that are only carried.

use crate::addr::{Access, DmaAddr, DmaRange};
use crate::dma::{Device, Live};

/// Names a device of a [`Shared`](super::Shared).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) buffer: u64,
    pub(super) leg: u64,
}

/// One device's view of a shared buffer: a single range of its addresses, by type.
#[derive(Clone, Copy, Debug)]
pub struct Contiguous<'s> {
    pub(super) device: &'s Device,
    pub(super) key: Key,
    pub(super) live: &'s Live,
    pub(super) access: Access,
}

impl<'s> Contiguous<'s> {
    /// The device.
    pub fn device(&self) -> &'s Device {
        self.device
    }

    /// The key that leads here.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The address that the device is programmed with.
    pub fn address(&self) -> DmaAddr {
        self.live.dma
    }

    /// The length in bytes: all of the buffer.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.live.len
    }

    /// What the device may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// What is mapped for the device: the buffer and its padding. `None` if that is not a legal
    /// range, which cannot be.
    pub fn mapped(&self) -> Option<DmaRange> {
        DmaRange::new(self.live.dma, self.live.len.checked_add(self.live.print.padding)?).ok()
    }

    /// Bytes mapped beyond the buffer: zeroed, and the buffer's own.
    pub fn padding(&self) -> u64 {
        self.live.print.padding
    }

    /// Bytes mapped that belong to somebody else: always 0.
    pub fn exposed(&self) -> u64 {
        self.live.print.exposed
    }
}

/// An address that a device carries without being able to use it: it means something in another
/// device's space only (a display coprocessor that tells the DMA engine where to read).
///
/// It is no [`Contiguous`]: nothing was mapped for the bearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressGrant<'s> {
    pub(super) bearer: &'s str,
    pub(super) valid_for: &'s str,
    pub(super) address: DmaAddr,
    pub(super) len: u64,
}

impl AddressGrant<'_> {
    /// Who carries the address.
    pub fn bearer(&self) -> &str {
        self.bearer
    }

    /// In whose space it means the buffer.
    pub fn valid_for(&self) -> &str {
        self.valid_for
    }

    /// The address.
    pub fn address(&self) -> DmaAddr {
        self.address
    }

    /// The length in bytes of what lies there.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.len
    }
}
