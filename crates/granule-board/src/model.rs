//! The topology: plain data, owned, with public fields, so that anything can print or serialise it.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use granule::addr::{DmaAddr, DmaRange, IovaRange, PageSizes, PhysAddr, PhysRange};

use crate::{IommuKind, TableFormat, Warning};

/// A board: who makes DMA, through which IOMMU, to which memory.
///
/// Made by [`Board::from_dtb`]. Devices and IOMMUs stand in the order of the tree; disabled ones
/// are kept and marked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Board {
    /// The root's `model`; empty if it has none.
    pub model: String,
    /// The root's `compatible`, most specific first.
    pub compatible: Vec<String>,
    /// RAM by address, disjoint and merged. Empty on many trees: the boot loader fills it in
    /// ([`Warning::NoMemory`]).
    pub memory: Vec<PhysRange>,
    /// Memory that is spoken for: `/reserved-memory` and the blob's reservation block.
    pub reserved: Vec<ReservedRegion>,
    /// Every node with `#iommu-cells`.
    pub iommus: Vec<BoardIommu>,
    /// The devices that make DMA; [`Master`] says how each was recognised.
    pub devices: Vec<BoardDevice>,
    /// Controllers of message-signalled interrupts whose doorbell is known.
    pub msi: Vec<MsiController>,
    /// What was odd.
    pub warnings: Vec<Warning>,
    /// Enabled and disabled nodes that no rule makes a device; see [`Board::device_or_direct`].
    pub(crate) others: Vec<BoardDevice>,
}

/// An IOMMU.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BoardIommu {
    /// The node's full path.
    pub path: String,
    /// The node's name with its unit address.
    pub name: String,
    /// Its aliases and, in trees compiled with `dtc -@`, its labels.
    pub aliases: Vec<String>,
    /// Its `compatible`, most specific first.
    pub compatible: Vec<String>,
    /// What it is, as far as the table of known IOMMUs goes.
    pub kind: IommuKind,
    /// The page sizes that its hardware has, over all formats. Where `probed` is set, the sizes
    /// that it may have. Empty if they are not known: no guess.
    pub page_sizes: PageSizes,
    /// The table formats of granule that it walks (or, if `probed`, may walk). Empty if it walks
    /// another one, or if it is not known.
    pub formats: &'static [TableFormat],
    /// The width of the addresses that its tables index, in bits; `None` if only its registers say.
    pub input_bits: Option<u32>,
    /// The width of the physical addresses that it emits, in bits; `None` if only its registers say.
    pub output_bits: Option<u32>,
    /// Whether a stream can pass untranslated; `None` if only its registers say.
    pub bypass: Option<bool>,
    /// Whether page sizes, formats and widths depend on identification registers, so that this is
    /// what the hardware may have and not what it has.
    pub probed: bool,
    /// `apple,dma-range`: the addresses that the devices behind it emit. Its tables index only the
    /// low `input_bits` of them.
    pub window: Option<DmaRange>,
    /// Its registers, as the CPU sees them; empty if they can't be translated.
    pub registers: Vec<PhysRange>,
    /// Its `#iommu-cells`.
    pub cells: u32,
    /// `stream-match-mask` of an SMMU with one cell: set bits of a stream id are ignored.
    pub stream_match_mask: u32,
    /// Whether its table walks snoop the CPU's caches (`dma-coherent`, inherited;
    /// DARTs always do).
    pub coherent: bool,
    /// Whether `status` lets it be used.
    pub enabled: bool,
    /// `granule,locked-streams`: streams whose table base firmware has locked. A hint for the
    /// simulator, in boards written for it; real hardware says it in a register.
    pub locked_streams: Vec<u32>,
}

/// What an IOMMU tells one master from another by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    /// Index into [`Board::iommus`].
    pub iommu: usize,
    /// The id; 0 at an IOMMU without cells.
    pub id: u32,
    /// Bits of the id that the hardware ignores (set: ignored); 0 is an exact match.
    pub mask: u32,
}

impl Stream {
    /// Whether some transaction matches both: same IOMMU, ids equal in every bit that neither mask
    /// ignores (Arm SMMUv2, stream matching).
    pub fn overlaps(&self, other: &Self) -> bool {
        self.iommu == other.iommu && (self.id ^ other.id) & !(self.mask | other.mask) == 0
    }

    /// Whether a transaction with stream id `id` matches.
    pub fn matches(&self, id: u32) -> bool {
        (self.id ^ id) & !self.mask == 0
    }
}

/// A device that makes DMA.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BoardDevice {
    /// The node's full path.
    pub path: String,
    /// The node's name with its unit address.
    pub name: String,
    /// Its aliases and, in trees compiled with `dtc -@`, its labels.
    pub aliases: Vec<String>,
    /// Its `compatible`, most specific first.
    pub compatible: Vec<String>,
    /// Its streams, in the order of `iommus`; for a PCI host those of all its functions. Empty for
    /// a device directly on the bus.
    pub streams: Vec<Stream>,
    /// Set if `iommus`, `iommu-map` or the `dma-ranges` above could not be read whole: `streams` is
    /// not all of them, or `windows` says nothing. The device must not be used, least of all taken
    /// for a direct one.
    pub unresolved: bool,
    /// Devices with equal groups have overlapping streams and can only share one domain. A device
    /// of [`Board::devices`] with no overlap has a group of its own.
    pub group: usize,
    /// Whether it snoops the CPU's caches (`dma-coherent`, inherited; the default of RISC-V is yes).
    pub coherent: bool,
    /// Whether `status`, its own and that of every bus above, lets it be used.
    pub enabled: bool,
    /// What it reaches on its bus (`dma-ranges`). Empty, if not `unresolved`: everything, at the
    /// same address.
    pub windows: Arc<[DmaWindow]>,
    /// Fixed regions of its IOVA space (`iommu-addresses`).
    pub iova_regions: Vec<IovaRegion>,
    /// `memory-region`: indices into [`Board::reserved`].
    pub memory_regions: Vec<usize>,
    /// The map from requester id to stream, of a PCI host (or whatever else has `iommu-map`).
    pub pci: Option<PciMap>,
    /// The controller that its message-signalled interrupts go to: index into [`Board::msi`].
    pub msi: Option<usize>,
    /// What makes it a device.
    pub master: Master,
}

impl BoardDevice {
    /// Whether no IOMMU stands before it. (One that is disabled stands there, and is warned about.)
    pub fn is_direct(&self) -> bool {
        self.streams.is_empty() && !self.unresolved
    }

    /// The physical address that the bus address `addr` reaches, by `dma-ranges`.
    pub fn bus_to_phys(&self, addr: DmaAddr) -> Option<PhysAddr> {
        if self.windows.is_empty() && !self.unresolved {
            return Some(PhysAddr::new(addr.raw()));
        }
        self.windows.iter().find_map(|window| window.bus_to_phys(addr))
    }

    /// The bus address by which it reaches the physical address `addr`, if it reaches it.
    pub fn phys_to_bus(&self, addr: PhysAddr) -> Option<DmaAddr> {
        if self.windows.is_empty() && !self.unresolved {
            return Some(DmaAddr::new(addr.raw()));
        }
        self.windows.iter().find_map(|window| window.phys_to_bus(addr))
    }
}

/// What makes a node a device that makes DMA; the first that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Master {
    /// It has `iommus` or `iommu-map`.
    Streams,
    /// It is a PCI host.
    PciHost,
    /// It says how it is kept coherent (`dma-coherent`, `dma-noncoherent`).
    Coherency,
    /// It has `memory-region` and registers, or a region's `iommu-addresses` names it.
    MemoryRegion,
    /// It is a DMA controller (`#dma-cells`).
    DmaController,
    /// Its generic name is one of those of bus masters.
    GenericName,
    /// Its compatible string is that of a known bus master.
    Compatible,
    /// None of these; it was named by [`Board::device_or_direct`](crate::Board::device_or_direct).
    Named,
}

/// A piece of a bus that reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DmaWindow {
    /// The addresses that the device emits.
    pub bus: DmaRange,
    /// The physical addresses that they reach, of the same length.
    pub phys: PhysRange,
}

impl DmaWindow {
    /// Physical minus bus address, modulo 2^64.
    pub fn offset(&self) -> u64 {
        self.phys.start().raw().wrapping_sub(self.bus.start().raw())
    }

    /// The physical address behind a bus address of this window.
    pub fn bus_to_phys(&self, addr: DmaAddr) -> Option<PhysAddr> {
        let offset = addr.offset_from(self.bus.start())?;
        if offset < self.bus.len() { self.phys.start().checked_add(offset) } else { None }
    }

    /// The bus address for a physical address of this window.
    pub fn phys_to_bus(&self, addr: PhysAddr) -> Option<DmaAddr> {
        let offset = addr.offset_from(self.phys.start())?;
        if offset < self.phys.len() { self.bus.start().checked_add(offset) } else { None }
    }
}

/// A part of a device's IOVA space that `iommu-addresses` speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IovaRegion {
    /// The range of the device's addresses.
    pub iova: IovaRange,
    /// The memory behind it, of the same length; `None` for a mere reservation.
    pub phys: Option<PhysRange>,
    /// Index into [`Board::reserved`].
    pub reserved: usize,
}

/// What an [`IovaRegion`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IovaRegionKind {
    /// Never hand out these IOVAs.
    Reserved,
    /// Keep this memory mapped at its own address (Linux: `IOMMU_RESV_DIRECT`).
    Direct,
    /// Firmware left this memory mapped at another address, and the device may be using it.
    /// Linux warns and only reserves the IOVA.
    Translated,
}

impl IovaRegion {
    /// What it asks for.
    pub fn kind(&self) -> IovaRegionKind {
        match self.phys {
            None => IovaRegionKind::Reserved,
            Some(phys) if phys.start().raw() == self.iova.start().raw() => IovaRegionKind::Direct,
            Some(_) => IovaRegionKind::Translated,
        }
    }
}

/// Memory that is spoken for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReservedRegion {
    /// The node's full path; empty for an entry of the blob's reservation block.
    pub path: String,
    /// The node's name; empty for an entry of the reservation block.
    pub name: String,
    /// Its `compatible`.
    pub compatible: Vec<String>,
    /// Where it lies. Empty if it is yet to be placed, or is only a reservation of IOVAs.
    pub ranges: Vec<PhysRange>,
    /// `size`: bytes to be placed anywhere.
    pub size: Option<u64>,
    /// `alignment` of what is to be placed, in bytes.
    pub alignment: Option<u64>,
    /// `alloc-ranges`: where it may be placed; empty for anywhere.
    pub alloc_ranges: Vec<PhysRange>,
    /// `no-map`: the CPU must not even map it.
    pub no_map: bool,
    /// `reusable`: may be used until its owner wants it.
    pub reusable: bool,
    /// Whether `status` lets it be used.
    pub enabled: bool,
}

/// A controller of message-signalled interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsiController {
    /// The node's full path.
    pub path: String,
    /// The registers that devices write to; an IOMMU has to map the pages around them. (For
    /// RISC-V's IMSIC, the interrupt files of all harts.)
    pub doorbells: Vec<PhysRange>,
    /// Whether `status` lets it be used.
    pub enabled: bool,
}

/// `iommu-map`: which stream a PCI function appears as.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciMap {
    /// `iommu-map-mask`: the bits of the requester id that count.
    pub mask: u32,
    /// The entries, in order; the first that covers a requester id counts.
    pub entries: Vec<PciMapEntry>,
}

/// An entry of `iommu-map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciMapEntry {
    /// The first requester id (bus << 8 | device << 3 | function), under the mask.
    pub rid_base: u32,
    /// Index into [`Board::iommus`].
    pub iommu: usize,
    /// The stream of the first requester id.
    pub stream_base: u32,
    /// How many requester ids it covers.
    pub len: u32,
}

impl PciMap {
    /// The stream of the function with requester id `rid`, if an IOMMU translates it.
    pub fn stream(&self, rid: u16) -> Option<Stream> {
        let rid = u32::from(rid) & self.mask;
        self.entries.iter().find_map(|entry| {
            let offset = rid.checked_sub(entry.rid_base).filter(|&offset| offset < entry.len)?;
            let id = entry.stream_base.checked_add(offset)?;
            Some(Stream { iommu: entry.iommu, id, mask: 0 })
        })
    }
}
