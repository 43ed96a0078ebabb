//! A page table of ours, walked by one or several IOMMUs: the usual [`Translation`].
//!
//! ```text
//!   Paged ── one PageTable ──┬── context at unit 0 ── streams
//!                            └── context at unit 1 ── streams
//! ```
//!
//! Units that walk the same format share the table; a change is invalidated at each of them. Units
//! that cannot share one are kept in step by [`Mirror`](super::Mirror).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicUsize, Ordering};

use lock_api::Mutex;

use super::{
    Attached, Geometry, Invalidation, Iommu, Stream, Translation, TranslationError, Unit,
    UnitError, UnitReport,
};
use crate::addr::{Attributes, Iova, IovaRange, PhysAddr, PhysRange};
use crate::mem::{FrameError, Platform};
use crate::table::{
    Adopted, Fence, Format, Hint, PageTable, PlatformTables, Resolved, TableConfig, TableError,
    TableLayout, Unmapped,
};

/// Numbers address spaces, so that an IOMMU can tell whether two streams are in the same one.
static NEXT: AtomicUsize = AtomicUsize::new(1);

/// One page table, and the IOMMUs that walk it.
pub struct Paged<F: Format, P: Platform, U: Unit> {
    /// Dropped by hand: a table that hardware may still walk is never freed.
    table: ManuallyDrop<PageTable<F, PlatformTables<P>>>,
    units: Vec<Port<P, U>>,
    geometry: Geometry,
    number: usize,
    caches_absent: bool,
    /// Whether a few entries in a table that exists are all that a small map takes.
    quick: bool,
    streams: Mutex<P::Lock, Streams>,
    /// Held while somebody reads a range that may not be his, and while tables are freed.
    readers: Mutex<P::Lock, ()>,
}

/// A unit and the handle that it gave for our table.
struct Port<P: Platform, U: Unit> {
    iommu: Arc<Iommu<P, U>>,
    context: U::Context,
}

#[derive(Default)]
struct Streams {
    attached: Vec<Entry>,
    /// A stream could not be detached: the tables stay for ever.
    stuck: bool,
}

struct Entry {
    stream: Stream,
    adopted: Option<Adopted>,
    /// Its device is gone, but the hardware did not confirm that the stream is blocked.
    leaving: bool,
}

impl Entry {
    fn new(stream: Stream, adopted: Option<Adopted>) -> Self {
        Self { stream, adopted, leaving: false }
    }
}

impl<F: Format, P: Platform, U: Unit> Paged<F, P, U> {
    /// A page table of format `F` for these units. Its input width is the smallest of theirs.
    ///
    /// # Errors
    /// [`TranslationError`] if a unit does not walk the format, or memory for the root is lacking.
    pub fn new(platform: &P, iommus: &[Arc<Iommu<P, U>>]) -> Result<Self, TranslationError> {
        let config = common_config::<F, P, U>(iommus)?;
        let coherent = iommus.iter().all(|iommu| iommu.unit().info().coherent_walk);
        let memory = PlatformTables::new(platform.clone(), coherent);
        let table = PageTable::<F, _>::new(memory, config)?;
        let layout = table.layout();
        let aperture =
            IovaRange::new(Iova::new(0), 1u64.checked_shl(layout.input_bits).unwrap_or(u64::MAX))
                .map_err(|_| TranslationError::NoUnit)?;
        let output = PhysRange::new(
            PhysAddr::new(0),
            1u64.checked_shl(layout.output_bits).unwrap_or(u64::MAX),
        )
        .map_err(|_| TranslationError::NoUnit)?;
        let units = open_all(iommus, &layout)?;
        let caches_absent = iommus.iter().any(|iommu| iommu.unit().info().caches_absent);
        Ok(Self {
            geometry: Geometry {
                page_sizes: table.page_sizes(),
                aperture,
                output,
                fence_unit: F::FENCE_UNIT,
                upper_bits_ignored: F::UPPER_BITS_IGNORED,
            },
            table: ManuallyDrop::new(table),
            caches_absent,
            quick: coherent && !caches_absent,
            units,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            streams: Mutex::new(Streams::default()),
            readers: Mutex::new(()),
        })
    }

    /// Where the tables lie and how they are walked.
    pub fn layout(&self) -> TableLayout {
        self.table.layout()
    }

    fn port(&self, index: usize) -> Result<&Port<P, U>, TranslationError> {
        self.units
            .get(index)
            .ok_or(TranslationError::NoSuchUnit { unit: index, count: self.units.len() })
    }

    /// Mirrors our root entries into a root that firmware locked.
    fn adopt(
        &self,
        port: &Port<P, U>,
        stream: Stream,
    ) -> Result<Option<Adopted>, TranslationError> {
        let live = port.iommu.unit().locked_roots(stream.id);
        if live.is_empty() {
            return Ok(None);
        }
        // SAFETY: the unit vouches that these are the roots its hardware walks for this stream;
        // they are kept until `release`, which follows the stream's detachment.
        let adopted = unsafe { self.table.adopt_root(&live) }?;
        Ok(Some(adopted))
    }

    /// Takes a half-made attachment back. A locked root showed our entries for a moment: what the
    /// walker may have cached of them must go, or the tables stay for ever.
    fn undo_attach(
        &self,
        port: &Port<P, U>,
        stream: Stream,
        adopted: Option<Adopted>,
        error: UnitError,
    ) -> TranslationError {
        let exposed = adopted.is_some();
        self.disown(adopted);
        if exposed && port.iommu.unit().invalidate(&port.context, &Invalidation::ALL).is_err() {
            self.streams.lock().stuck = true;
        }
        port.iommu.release(stream.id);
        error.into()
    }

    /// Blocking a stream with a mask blocks all that it overlaps: those of other devices of the group
    /// are routed again. One that the hardware refuses stays blocked, which is safe.
    fn attach_overlapping(&self, port: &Port<P, U>, gone: Stream, attached: &[Entry]) {
        let overlaps = |entry: &&Entry| {
            entry.stream.unit == gone.unit
                && entry.stream.id != gone.id
                && entry.stream.id.overlaps(gone.id)
                && !entry.leaving
        };
        for entry in attached.iter().filter(overlaps) {
            // SAFETY: as in `attach`; the stream is ours, and the table is live.
            let _ = unsafe { port.iommu.unit().attach(&port.context, entry.stream.id) };
        }
    }

    fn disown(&self, adopted: Option<Adopted>) {
        if let Some(adopted) = adopted {
            // SAFETY: it came from `adopt_root` of this table, and the stream is detached.
            unsafe { self.table.release_root(adopted) };
        }
    }
}

/// The widths that all units can serve.
fn common_config<F: Format, P: Platform, U: Unit>(
    iommus: &[Arc<Iommu<P, U>>],
) -> Result<TableConfig, TranslationError> {
    let mut config: Option<TableConfig> = None;
    for iommu in iommus {
        let info = iommu.unit().info();
        if !info.formats.contains(&F::ID) {
            return Err(TranslationError::Format { unit: info.name.clone(), format: F::ID });
        }
        // A unit may be wider than a format of its can express.
        let mut input_bits = info.input_bits.min(F::MAX_INPUT_BITS);
        let mut output_bits = info.output_bits.min(F::MAX_OUTPUT_BITS);
        let mut sizes = info.page_sizes;
        if let Some(known) = config {
            input_bits = known.input_bits.min(input_bits);
            output_bits = known.output_bits.min(output_bits);
            sizes = known.page_sizes.intersection(sizes);
        }
        config = Some(TableConfig::new(input_bits, output_bits).limited_to(sizes));
    }
    config.ok_or(TranslationError::NoUnit)
}

/// Opens a context at every unit, or at none.
fn open_all<P: Platform, U: Unit>(
    iommus: &[Arc<Iommu<P, U>>],
    layout: &TableLayout,
) -> Result<Vec<Port<P, U>>, TranslationError> {
    let mut ports: Vec<Port<P, U>> = Vec::with_capacity(iommus.len());
    for iommu in iommus {
        match iommu.unit().open(layout) {
            Ok(context) => ports.push(Port { iommu: iommu.clone(), context }),
            Err(error) => {
                ports.iter().for_each(|port| port.iommu.unit().close(&port.context));
                return Err(error.into());
            }
        }
    }
    Ok(ports)
}

// SAFETY: the table translates as mapped; invalidation and detachment are the units' promises; a
// failed attach undoes the claim and the adoption it made.
unsafe impl<F: Format, P: Platform, U: Unit> Translation for Paged<F, P, U> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline(always)]
    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError> {
        // SAFETY: the caller's promises are the table's.
        Ok(unsafe { self.table.map(iova, phys, attrs) }?)
    }

    fn few(&self) -> u64 {
        match (self.quick, F::GROUPS[0]) {
            (false, _) => 0,
            (true, 0) => 64,
            // Fewer pages than the smallest group has hold none, and as many are one or hold none.
            (true, sizes) => 1 << sizes.trailing_zeros().min(6),
        }
    }

    #[inline(always)]
    unsafe fn try_map(&self, iova: Iova, phys: PhysRange, attrs: Attributes) -> Option<Hint> {
        if !self.quick {
            return None;
        }
        // SAFETY: the caller's promises are the table's.
        unsafe { self.table.try_map(iova, phys, attrs) }
    }

    unsafe fn map_fenced(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
        fence: Fence,
    ) -> Result<Hint, TranslationError> {
        // SAFETY: the caller's promises are the table's.
        Ok(unsafe { self.table.map_fenced(iova, phys, attrs, fence) }?)
    }

    #[inline]
    unsafe fn map_list<I>(
        &self,
        iova: Iova,
        pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        // SAFETY: the caller's promises are the table's.
        Ok(unsafe { self.table.map_list(iova, pieces, attrs) }?)
    }

    #[inline]
    unsafe fn map_checked_list<I>(
        &self,
        range: IovaRange,
        pieces: I,
        attrs: Attributes,
    ) -> Result<(), TranslationError>
    where
        I: Iterator<Item = PhysRange> + Clone,
    {
        // SAFETY: the caller's promises are the table's.
        Ok(unsafe { self.table.map_checked_list(range, pieces, attrs) }?)
    }

    #[inline(always)]
    fn sync_map(&self, range: IovaRange) -> Result<(), UnitError> {
        if !self.caches_absent {
            return Ok(());
        }
        // Tables may have been linked for it, so absent table entries must go as well.
        self.invalidate(&Invalidation { range: Some(range), tables: true })
    }

    #[inline(always)]
    unsafe fn unmap(&self, range: IovaRange, hint: Hint) -> Result<Unmapped, TranslationError> {
        // SAFETY: the caller's promises are the table's.
        Ok(unsafe { self.table.unmap(range, hint) }?)
    }

    #[inline(always)]
    fn invalidate(&self, request: &Invalidation) -> Result<(), UnitError> {
        for port in &self.units {
            port.iommu.unit().invalidate(&port.context, request)?;
        }
        Ok(())
    }

    unsafe fn reap(&self, range: IovaRange) {
        let _nobody_reads = self.readers.lock();
        // SAFETY: the caller's promises are the table's.
        unsafe { self.table.reap(range) };
    }

    fn resolve(&self, iova: Iova) -> Option<Resolved> {
        let _nothing_is_freed = self.readers.lock();
        self.table.resolve(iova)
    }

    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64)) {
        let _nothing_is_freed = self.readers.lock();
        self.table.for_each_leaf(range, |leaf| visit(leaf.iova, leaf.to.page_size));
    }

    fn table_pages(&self) -> usize {
        self.table.table_pages()
    }

    fn units(&self) -> Vec<UnitReport> {
        let layout = self.table.layout();
        let report = |port: &Port<P, U>| UnitReport {
            name: port.iommu.unit().info().name.clone(),
            layout: Some(layout.clone()),
        };
        self.units.iter().map(report).collect()
    }

    unsafe fn attach(&self, stream: Stream) -> Result<Attached, TranslationError> {
        let port = self.port(stream.unit)?;
        let mut streams = self.streams.lock();
        streams.attached.try_reserve(1).map_err(|_| TableError::Frames(FrameError::OutOfMemory))?;
        if streams.attached.iter().any(|entry| entry.leaving && entry.stream == stream) {
            let unit = port.iommu.unit().info().name.clone();
            return Err(UnitError::Timeout { unit }.into());
        }
        if !port.iommu.claim(stream.id, self.number)? {
            // Another device of the group brought this stream in.
            streams.attached.push(Entry::new(stream, None));
            return Ok(Attached::default());
        }
        drop(streams);
        let adopted = match self.adopt(port, stream) {
            Ok(adopted) => adopted,
            Err(error) => {
                port.iommu.release(stream.id);
                return Err(error);
            }
        };
        // SAFETY: the table outlives the attachment: it is only freed when nothing is attached.
        if let Err(error) = unsafe { port.iommu.unit().attach(&port.context, stream.id) } {
            return Err(self.undo_attach(port, stream, adopted, error));
        }
        let firmware =
            adopted.as_ref().map(|adopted| adopted.firmware().to_vec()).unwrap_or_default();
        self.streams.lock().attached.push(Entry::new(stream, adopted));
        Ok(Attached { firmware })
    }

    fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        let mut streams = self.streams.lock();
        let (Ok(port), Some(_)) =
            (self.port(stream.unit), streams.attached.iter().find(|entry| entry.stream == stream))
        else {
            return Ok(());
        };
        if port.iommu.is_last(stream.id) {
            // Our entries leave a locked root before its caches are dropped by `detach`.
            let entry = streams.attached.iter_mut().find(|entry| entry.stream == stream);
            let Some(entry) = entry else { return Ok(()) };
            self.disown(entry.adopted.take());
            if let Err(error) = port.iommu.unit().detach(&port.context, stream.id) {
                entry.leaving = true;
                streams.stuck = true;
                return Err(error);
            }
        }
        port.iommu.release(stream.id);
        self.attach_overlapping(port, stream, &streams.attached);
        // The entry that holds the adopted root goes last: the others are mere users of it.
        let user = |entry: &Entry| entry.stream == stream && entry.adopted.is_none();
        if let Some(index) = streams.attached.iter().position(user) {
            streams.attached.swap_remove(index);
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), TranslationError> {
        let leaving: Vec<Stream> = {
            let streams = self.streams.lock();
            let leaving = streams.attached.iter().filter(|entry| entry.leaving);
            leaving.map(|entry| entry.stream).collect()
        };
        leaving.into_iter().try_for_each(|stream| self.detach(stream))?;
        let streams = self.streams.lock();
        for entry in &streams.attached {
            let port = self.port(entry.stream.unit)?;
            // SAFETY: as in `attach`; the stream is ours, and the table is live.
            unsafe { port.iommu.unit().attach(&port.context, entry.stream.id) }?;
        }
        drop(streams);
        self.invalidate(&Invalidation::ALL)?;
        // Nobody is left in the tables but those who are attached.
        let mut streams = self.streams.lock();
        streams.stuck = streams.attached.iter().any(|entry| entry.leaving);
        drop(streams);
        Ok(())
    }
}

impl<F: Format, P: Platform, U: Unit> Drop for Paged<F, P, U> {
    fn drop(&mut self) {
        let left: Vec<Stream> =
            self.streams.lock().attached.iter().map(|entry| entry.stream).collect();
        let detached = left.into_iter().all(|stream| self.detach(stream).is_ok());
        let safe =
            detached && !self.streams.lock().stuck && self.invalidate(&Invalidation::ALL).is_ok();
        self.units.iter().for_each(|port| port.iommu.unit().close(&port.context));
        if safe {
            // SAFETY: no stream walks the table and no cache holds a pointer into it; it is not
            // used after this.
            unsafe { ManuallyDrop::drop(&mut self.table) };
        }
    }
}
