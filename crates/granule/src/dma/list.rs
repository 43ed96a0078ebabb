//! Scatter lists: many buffers, one mapping, as few segments as the device allows.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use super::ops::{ListState, Live, Side, SlotRelease};
use super::{
    Device, DeviceRef, DmaBuffer, DmaBufferMut, DmaError, MapFlags, Memory, Piece, Refused, Words,
};
use crate::addr::{Direction, DmaSegment};
use crate::domain::{Release, UnmapError};

/// Buffers that are mapped together.
///
/// The list keeps what a mapping needs, so that mapping it again allocates nothing. Its entries are
/// never changed by a mapping: unmapping returns the list as it was (law 7).
pub struct ScatterList<B: DmaBuffer> {
    inner: Box<Inner>,
    _buffers: core::marker::PhantomData<B>,
}

/// Without the buffers' type. One box, so that a list can wait in quarantine.
struct Inner {
    words: Vec<Words>,
    pieces: Vec<Piece>,
    state: ListState,
}

// SAFETY: the words stand for buffers, which are `Send`.
unsafe impl<B: DmaBuffer> Send for ScatterList<B> {}
// SAFETY: a shared list only tells lengths and segments.
unsafe impl<B: DmaBuffer> Sync for ScatterList<B> {}

impl<B: DmaBuffer> ScatterList<B> {
    /// A list of these buffers, in order. A buffer of several stretches gives as many entries.
    pub fn new(buffers: impl IntoIterator<Item = B>) -> Self {
        let words: Vec<Words> = buffers.into_iter().map(B::into_words).collect();
        let mut pieces = Vec::new();
        for words in &words {
            // SAFETY: the words are of a `B` that was given up, and are turned back when the list
            // is taken apart.
            pieces.extend_from_slice(unsafe { B::memory(words) }.pieces());
        }
        let state = ListState::with_capacity(pieces.len());
        Self {
            inner: Box::new(Inner { words, pieces, state }),
            _buffers: core::marker::PhantomData,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.inner.pieces.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.inner.pieces.is_empty()
    }

    /// The entries.
    pub fn entries(&self) -> &[Piece] {
        &self.inner.pieces
    }

    /// The buffers.
    pub fn into_buffers(self) -> impl Iterator<Item = B> {
        let mut this = ManuallyDrop::new(self);
        let words = core::mem::take(&mut this.inner.words);
        // SAFETY: `this` is not used again, and its drop does not run.
        drop(unsafe { core::ptr::read(&this.inner) });
        // SAFETY: each entry's words are turned back once.
        words.into_iter().map(|words| unsafe { B::from_words(words) })
    }

    /// # Safety
    /// `raw` came from [`Self::into_raw`], and is used once.
    unsafe fn from_raw(raw: *mut Inner) -> Self {
        // SAFETY: the caller's promise.
        Self { inner: unsafe { Box::from_raw(raw) }, _buffers: core::marker::PhantomData }
    }

    fn into_raw(self) -> *mut Inner {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again, and its drop does not run.
        Box::into_raw(unsafe { core::ptr::read(&this.inner) })
    }
}

impl<B: DmaBuffer> Drop for ScatterList<B> {
    fn drop(&mut self) {
        for words in self.inner.words.drain(..) {
            // SAFETY: each entry's words are turned back once.
            drop(unsafe { B::from_words(words) });
        }
    }
}

/// A scatter list that a device has. What is said of [`Mapping`](super::Mapping) goes for it too.
#[must_use = "a mapping that is dropped at once is unmapped at once"]
pub struct ListMapping<D: DeviceRef, B: DmaBuffer> {
    device: ManuallyDrop<D>,
    list: ManuallyDrop<ScatterList<B>>,
    live: Live,
    direction: Direction,
    flags: MapFlags,
}

impl Device {
    /// Gives the buffers of a list to the device, which may write to them.
    ///
    /// # Errors
    /// The list comes back, unchanged, with the [`DmaError`].
    pub fn map_list<B: DmaBufferMut>(
        &self,
        list: ScatterList<B>,
        direction: Direction,
    ) -> Result<ListMapping<&Self, B>, Refused<ScatterList<B>>> {
        ListMapping::new(self, list, direction, MapFlags::empty())
    }

    /// Gives the buffers of a list to the device, which only reads them.
    ///
    /// # Errors
    /// The list comes back, unchanged, with the [`DmaError`].
    pub fn map_list_to_device<B: DmaBuffer>(
        &self,
        list: ScatterList<B>,
    ) -> Result<ListMapping<&Self, B>, Refused<ScatterList<B>>> {
        ListMapping::to_device(self, list, MapFlags::empty())
    }
}

impl<D: DeviceRef, B: DmaBufferMut> ListMapping<D, B> {
    /// Gives a list to a device, with attributes.
    ///
    /// # Errors
    /// The list comes back, unchanged, with the [`DmaError`].
    pub fn new(
        device: D,
        list: ScatterList<B>,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Self, Refused<ScatterList<B>>> {
        Self::make(device, list, direction, flags)
    }
}

impl<D: DeviceRef, B: DmaBuffer> ListMapping<D, B> {
    /// Gives a list to a device that only reads it, with attributes.
    ///
    /// # Errors
    /// The list comes back, unchanged, with the [`DmaError`].
    pub fn to_device(
        device: D,
        list: ScatterList<B>,
        flags: MapFlags,
    ) -> Result<Self, Refused<ScatterList<B>>> {
        Self::make(device, list, Direction::ToDevice, flags)
    }

    fn make(
        device: D,
        mut list: ScatterList<B>,
        direction: Direction,
        flags: MapFlags,
    ) -> Result<Self, Refused<ScatterList<B>>> {
        let Inner { pieces, state, .. } = &mut *list.inner;
        // SAFETY: the list owns the buffers, which a device may write if `direction` says so
        // (`new` asks for `DmaBufferMut`), until the mapping has ended or for ever.
        let result = unsafe { device.device().ops().map_list(pieces, direction, flags, state) };
        match result {
            Ok(live) => Ok(Self {
                device: ManuallyDrop::new(device),
                list: ManuallyDrop::new(list),
                live,
                direction,
                flags,
            }),
            Err(error) if error.is_stale() => {
                core::mem::forget(list);
                Err(Refused { buffer: None, error })
            }
            Err(error) => Err(Refused { buffer: Some(list), error }),
        }
    }

    /// What the device is programmed with: at most as many segments as the list has entries, in
    /// order.
    pub fn segments(&self) -> &[DmaSegment] {
        &self.list.inner.state.segments
    }

    /// The sum of all lengths in bytes.
    #[allow(clippy::len_without_is_empty)] // A mapping is never empty.
    pub fn len(&self) -> u64 {
        self.live.print.bytes
    }

    /// How many entries go through bounce buffers.
    pub fn bounced(&self) -> usize {
        self.list.inner.state.slots.len()
    }

    /// The device that has the buffers.
    pub fn device(&self) -> &Device {
        self.device.device()
    }

    /// Lets the CPU at all buffers while `look` runs: it gets the entries' copies through a
    /// function that copies bytes of one entry out (`dma_sync_sg_for_cpu` and back).
    ///
    /// # Errors
    /// What `look` returns.
    pub fn sync_for_cpu<R>(&mut self, look: impl FnOnce(&mut ListAccess<'_>) -> R) -> R {
        let ops = self.device.device().ops();
        let inner = &self.list.inner;
        // SAFETY: the mapping is live and of these entries.
        unsafe { ops.sync_list(&inner.pieces, &inner.state, self.direction, Side::Cpu) };
        let result = look(&mut ListAccess { device: self.device.device(), pieces: &inner.pieces });
        // SAFETY: as above.
        unsafe { ops.sync_list(&inner.pieces, &inner.state, self.direction, Side::Device) };
        result
    }

    /// Takes the buffers back; in deferred mode this flushes.
    ///
    /// # Errors
    /// [`UnmapError`] if the hardware did not confirm that the device lost the memory: the buffers
    /// are leaked.
    pub fn unmap(self) -> Result<ScatterList<B>, UnmapError> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again; its parts end once, here.
        unsafe {
            let device = ManuallyDrop::take(&mut this.device);
            let ops = device.device().ops();
            ops.end(&this.live)?;
            let mut list = ManuallyDrop::take(&mut this.list);
            let Inner { pieces, state, .. } = &mut *list.inner;
            let bounced = this.live.print.bounced != 0;
            let syncs = bounced || !device.device().spec().snoops;
            if syncs && !this.flags.contains(MapFlags::SKIP_CPU_SYNC) {
                ops.sync_list(pieces, state, this.direction, Side::Cpu);
            }
            for (_, slot) in state.slots.drain(..) {
                ops.release_slot(slot);
            }
            state.clear();
            Ok(list)
        }
    }
}

impl<D: DeviceRef, B: DmaBuffer> Drop for ListMapping<D, B> {
    fn drop(&mut self) {
        let ops = self.device.device().ops();
        let pool = ops.slot_releaser();
        // SAFETY: the list is not used again.
        let raw = unsafe { ManuallyDrop::take(&mut self.list) }.into_raw();
        let mut release = Some(Release::new(deferred_drop::<B>(Sendable(raw), pool)));
        // SAFETY: the mapping ends once. If the invalidation fails the buffers are leaked.
        let _ = unsafe { ops.end_later(&self.live, &mut release) };
        // SAFETY: not used again.
        unsafe { ManuallyDrop::drop(&mut self.device) };
    }
}

/// A pointer to a list on its way through quarantine.
struct Sendable(*mut Inner);

// SAFETY: the list behind it is `Send`.
unsafe impl Send for Sendable {}

fn deferred_drop<B: DmaBuffer>(
    raw: Sendable,
    pool: Option<alloc::sync::Arc<dyn SlotRelease>>,
) -> impl FnOnce() + Send + 'static {
    move || {
        let raw = raw;
        // SAFETY: the pointer came from `into_raw` of such a list, and this runs once.
        let mut list = unsafe { ScatterList::<B>::from_raw(raw.0) };
        for (_, slot) in list.inner.state.slots.drain(..) {
            if let Some(pool) = &pool {
                // SAFETY: no device reaches the slot any more; draining makes this happen once.
                unsafe { pool.release_slot(slot) };
            }
        }
        drop(list);
    }
}

/// The CPU's turn at a mapped list.
pub struct ListAccess<'m> {
    device: &'m Device,
    pieces: &'m [Piece],
}

impl ListAccess<'_> {
    /// Copies bytes of an entry out, from `offset` bytes into it.
    ///
    /// # Errors
    /// [`DmaError::OutOfBounds`] if there is no such entry or the bytes are not inside.
    pub fn read(&self, entry: usize, offset: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        let len = self.pieces.get(entry).map_or(0, Piece::len);
        let end = offset.saturating_add(bytes.len() as u64);
        let Some(piece) = self.pieces.get(entry).filter(|_| end <= len) else {
            return Err(DmaError::OutOfBounds {
                device: self.device.name().into(),
                offset,
                end,
                len,
            });
        };
        let base = match piece {
            Piece::Cpu { ptr, .. } => *ptr,
            Piece::Phys(range) => self.device.ops().ptr(range.start()),
        };
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: inside a mapped buffer, which is valid for reads; volatile, since the device
            // may write at any moment.
            *byte = unsafe { base.wrapping_add(offset as usize + index).read_volatile() };
        }
        Ok(())
    }
}

/// Whole lists as one range: a list whose buffers join at granules.
impl<B: DmaBuffer> ScatterList<B> {
    /// The memory of all entries.
    pub fn memory(&self) -> Memory<'_> {
        Memory::Many(&self.inner.pieces)
    }
}
