//! An address space of the kernel's, as the translation of a granule domain.
//!
//! The kernel keeps the tables, pins the pages, and has dropped the IOMMU's caches when an unmap
//! returns. It undoes mappings only as they were made, so each is recorded, and a list is joined to as
//! few as its memory allows: a container counts them.

use std::io;
use std::sync::Arc;

use granule::addr::{Access, Attributes, Granule, Iova, IovaRange, PageSizes, PhysAddr, PhysRange};
use granule::domain::{
    Attached, Geometry, Invalidation, MappingRecord, RecordedMapping, Stream, Translation,
    TranslationError, UnitError, UnitReport, map_joined,
};
use granule::mem::Platform;
use granule::table::{Hint, Resolved, TableError, Unmapped};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::kernel::{Kernel, Limits};
use crate::limits::LockedMemory;
use crate::memory::UserMemory;
use crate::pci::Pci;
use crate::sysfs::Sysfs;

/// What a space needs of a device that is in it.
pub(crate) trait Master: Send + Sync {
    /// Ends the device's DMA for good; `false` if that is not certain.
    fn silence(&self) -> bool;
}

impl Master for Pci {
    fn silence(&self) -> bool {
        self.detach().is_ok()
    }
}

/// One IOVA space of the kernel's; [`Domain`](granule::domain::Domain) does the rest.
pub struct AddressSpace {
    kernel: Box<dyn Kernel>,
    name: String,
    sysfs: Sysfs,
    memory: UserMemory,
    geometry: Geometry,
    granule: Granule,
    /// What can be mapped, in order.
    ranges: Vec<IovaRange>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    record: MappingRecord,
    devices: Vec<Entry>,
}

/// A device of the space.
struct Entry {
    stream: u32,
    master: Arc<dyn Master>,
    /// 0 until it is attached.
    users: usize,
}

impl AddressSpace {
    /// A space in which nothing is mapped. `None` if the kernel reports nothing that could be.
    pub(crate) fn new(
        kernel: Box<dyn Kernel>,
        name: String,
        limits: &Limits,
        memory: UserMemory,
        sysfs: Sysfs,
    ) -> Option<Self> {
        let (first, last) = (limits.ranges.first()?, limits.ranges.last()?);
        let cpu_page = memory.cpu_page();
        let alignment = Granule::new(limits.alignment.max(cpu_page.size())).ok()?;
        // Pages below the CPU's are joined by the kernel, and it maps no less than one of the CPU's.
        let known = PageSizes::from_bits(limits.page_sizes.bits() & !(alignment.size() - 1));
        let page_sizes = known.union([alignment.size()].into_iter().collect());
        let geometry = Geometry {
            page_sizes,
            aperture: IovaRange::from_inclusive(first.start(), last.last()).ok()?,
            // Addresses of this process stand for physical ones.
            output: PhysRange::new(PhysAddr::new(0), u64::MAX).ok()?,
            fence_unit: 0,
            upper_bits_ignored: false,
        };
        let (ranges, state) = (limits.ranges.clone(), Mutex::default());
        Some(Self { kernel, name, sysfs, memory, geometry, granule: alignment, ranges, state })
    }

    /// The holes between what can be mapped.
    pub(crate) fn holes(&self) -> Vec<IovaRange> {
        let between = |pair: &[IovaRange]| {
            let start = pair[0].end()?;
            let len = pair[1].start().offset_from(start)?;
            IovaRange::new(start, len).ok()
        };
        self.ranges.windows(2).filter_map(between).collect()
    }

    /// What the kernel lets be mapped now.
    pub(crate) fn limits(&self) -> io::Result<Limits> {
        self.kernel.limits()
    }

    /// The first range of this space that `limits` no longer has.
    pub(crate) fn lost(&self, limits: &Limits) -> Option<IovaRange> {
        let kept = |range: &&IovaRange| limits.ranges.iter().any(|now| now.contains_range(range));
        self.ranges.iter().find(|range| !kept(range)).copied()
    }

    /// How many mappings the kernel still takes, if it counts them.
    pub fn mappings_left(&self) -> Option<u64> {
        self.kernel.limits().ok()?.mappings_left
    }

    /// How many mappings there are.
    pub fn mappings(&self) -> usize {
        self.state.lock().record.iter().count()
    }

    /// The ranges of addresses that can be mapped, in order.
    pub fn ranges(&self) -> &[IovaRange] {
        &self.ranges
    }

    /// Lets a device be attached, as the stream of this number.
    pub(crate) fn admit(&self, stream: u32, master: Arc<dyn Master>) {
        self.state.lock().devices.push(Entry { stream, master, users: 0 });
    }

    fn misaligned(&self, value: u64) -> TableError {
        TableError::Misaligned { value, granule: self.granule }
    }

    fn check_range(&self, iova: Iova, len: u64) -> Result<IovaRange, TableError> {
        if (iova.raw() | len) & self.granule.mask() != 0 {
            return Err(self.misaligned(iova.raw() | len));
        }
        let range = IovaRange::new(iova, len).ok();
        let inside =
            |range: &IovaRange| self.ranges.iter().any(|valid| valid.contains_range(range));
        let input_bits = 64 - self.geometry.aperture.last().raw().leading_zeros();
        range.filter(inside).ok_or(TableError::OutsideInput { iova, len, input_bits })
    }

    /// Maps one run.
    ///
    /// # Safety
    /// As [`Translation::map`].
    unsafe fn map_one(
        &self,
        state: &mut State,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<(), TranslationError> {
        if attrs.access.is_empty() {
            return Err(TableError::NoAccess.into());
        }
        if phys.start().raw() & self.granule.mask() != 0 {
            return Err(self.misaligned(phys.start().raw()).into());
        }
        let range = self.check_range(iova, phys.len())?;
        if let Some(taken) = state.record.first_in(range) {
            return Err(TableError::AlreadyMapped { iova: taken.range.start().max(iova) }.into());
        }
        let (address, len, access) = (phys.start().raw(), phys.len(), attrs.access);
        // SAFETY: the caller's promise.
        let mapped = unsafe { self.kernel.map(iova.raw(), address, len, access) };
        mapped.map_err(|error| {
            let pinned = state.record.iter().map(|mapping| mapping.range.len()).sum();
            self.refusal(&error, range, phys, access, pinned)
        })?;
        state.record.insert(RecordedMapping { range, phys: address, attrs });
        Ok(())
    }

    /// What the kernel's answer to a map means here.
    fn refusal(
        &self,
        error: &io::Error,
        iova: IovaRange,
        memory: PhysRange,
        access: Access,
        pinned: u64,
    ) -> TranslationError {
        let code = error.raw_os_error().unwrap_or(0);
        let reason = match Errno::from_io_error(error) {
            Some(Errno::NOMEM) => {
                // iommufd counts by user, which the process's status does not show.
                let known = LockedMemory::of(&self.sysfs);
                let locked = known.locked.max(pinned);
                no_memory(&LockedMemory { locked, ..known }, memory.len())
            }
            Some(Errno::NOSPC) => no_mapping(self.kernel.mapping_limit()),
            Some(Errno::FAULT) => format!(
                "the memory at {memory} cannot be pinned for {access}: the kernel takes anonymous memory and \
                 memfds, not dma-heaps, udmabufs or files"
            ),
            Some(Errno::EXIST) => format!("something is mapped at {iova} already"),
            Some(Errno::INVAL) => format!("the kernel takes no mapping of {memory} at {iova}"),
            _ => format!("mapping {memory} at {iova} failed: {error}"),
        };
        TranslationError::Backend { unit: self.name.clone(), code: code.unsigned_abs(), reason }
    }

    fn unmap_in(&self, state: &mut State, range: IovaRange) -> Result<u64, TranslationError> {
        state.record.check_whole(range)?;
        let mut bytes = 0;
        // As they were made, since the kernel cuts none.
        while let Some(mapping) = state.record.first_in(range) {
            let (iova, len) = (mapping.range.start().raw(), mapping.range.len());
            if let Err(error) = self.kernel.unmap(iova, len) {
                let code = error.raw_os_error().unwrap_or(0).unsigned_abs();
                let what = "the end of a mapping";
                return Err(UnitError::Refused { unit: self.name.clone(), what, code }.into());
            }
            bytes += state.record.remove(mapping.range);
        }
        Ok(bytes)
    }

    /// The pages that surely lie behind a mapping.
    fn sizes_behind(&self, mapping: &RecordedMapping) -> PageSizes {
        let page = self.memory.page_behind(PhysAddr::new(mapping.phys));
        let most = page.max(self.granule.size());
        PageSizes::from_bits(self.geometry.page_sizes.bits() & (most | (most - 1)))
    }
}

/// What ENOMEM of a map means.
pub(crate) fn no_memory(locked: &LockedMemory, len: u64) -> String {
    match (locked.limit, locked.left()) {
        (Some(limit), Some(left)) if left < len => {
            let needed = locked.locked.saturating_add(len).div_ceil(1 << 10);
            format!(
                "RLIMIT_MEMLOCK is {} KiB, {} KiB are locked, and these {} KiB come on top: it must be {needed} KiB \
                 at least (`ulimit -l {needed}`, LimitMEMLOCK={needed}K in a systemd unit, or CAP_IPC_LOCK)",
                limit >> 10,
                locked.locked >> 10,
                len >> 10
            )
        }
        _ => format!("the kernel has no memory to pin or map {} KiB", len >> 10),
    }
}

/// What ENOSPC of a map means.
fn no_mapping(limit: Option<u64>) -> String {
    let limit = limit.map_or_else(String::new, |limit| format!("{limit} "));
    format!(
        "all {limit}mappings of this VFIO container are in use: map fewer and longer pieces, end some, or raise \
         /{}",
        crate::vfio::ENTRY_LIMIT
    )
}

// SAFETY: the kernel maps the pages behind an address of this process and keeps them pinned; when its
// unmap has returned, it has invalidated the IOMMU's caches. A failed map is nothing to it, and of a
// failed list what was mapped before is ended. What could not be ended stays recorded, and `unmap`
// fails, so that the memory is never reused. Unmapping removes records, which does not allocate. A
// device that is detached has its bus mastering off for good.
unsafe impl Translation for AddressSpace {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn map(
        &self,
        iova: Iova,
        phys: PhysRange,
        attrs: Attributes,
    ) -> Result<Hint, TranslationError> {
        // SAFETY: the caller's promise.
        unsafe { self.map_one(&mut self.state.lock(), iova, phys, attrs) }?;
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
        // SAFETY: the caller's promise.
        let map = |state: &mut State, at, run| unsafe { self.map_one(state, at, run, attrs) };
        map_joined(state, iova, pieces, map, |state, before| {
            // What cannot be ended stays recorded for the caller's unmap, which then fails.
            let _ = self.unmap_in(state, before);
        })
    }

    unsafe fn unmap(&self, range: IovaRange, _hint: Hint) -> Result<Unmapped, TranslationError> {
        let bytes = self.unmap_in(&mut self.state.lock(), range)?;
        Ok(Unmapped { bytes, tables: false })
    }

    fn invalidate(&self, _request: &Invalidation) -> Result<(), UnitError> {
        Ok(())
    }

    fn resolve(&self, iova: Iova) -> Option<Resolved> {
        let state = self.state.lock();
        let mapping = state.record.overlapping(IovaRange::new(iova, 1).ok()?).next()?;
        state.record.resolve(iova, self.sizes_behind(&mapping))
    }

    fn for_each_page(&self, range: IovaRange, visit: &mut dyn FnMut(Iova, u64)) {
        let state = self.state.lock();
        for mapping in state.record.overlapping(range) {
            let Some(part) = mapping.range.intersection(&range) else { continue };
            state.record.for_each_page(part, self.sizes_behind(&mapping), visit);
        }
    }

    fn mapped_bytes(&self, range: IovaRange) -> u64 {
        self.state.lock().record.mapped_bytes(range)
    }

    fn units(&self) -> Vec<UnitReport> {
        vec![UnitReport { name: self.name.clone(), layout: None }]
    }

    unsafe fn attach(&self, stream: Stream) -> Result<Attached, TranslationError> {
        if stream.unit != 0 {
            return Err(TranslationError::NoSuchUnit { unit: stream.unit, count: 1 });
        }
        let mut state = self.state.lock();
        let limit = state.devices.len() as u32;
        let found = state.devices.iter_mut().find(|entry| entry.stream == stream.id.id);
        let entry = found.ok_or_else(|| {
            let (unit, stream) = (self.name.clone(), stream.id);
            UnitError::NoSuchStream { unit, stream, limit }
        })?;
        entry.users += 1;
        Ok(Attached::default())
    }

    fn detach(&self, stream: Stream) -> Result<(), UnitError> {
        let mut state = self.state.lock();
        let known = |entry: &Entry| stream.unit == 0 && entry.stream == stream.id.id;
        let Some(index) = state.devices.iter().position(known) else { return Ok(()) };
        let entry = &mut state.devices[index];
        if entry.users > 1 {
            entry.users -= 1;
            return Ok(());
        }
        if !entry.master.silence() {
            return Err(UnitError::Timeout { unit: self.name.clone() });
        }
        state.devices.swap_remove(index);
        Ok(())
    }

    fn resume(&self) -> Result<(), TranslationError> {
        // The kernel restores its IOMMUs itself.
        Ok(())
    }
}

#[cfg(test)]
mod tests;
