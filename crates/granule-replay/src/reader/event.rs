//! What an event says, after its name: the `print fmt` of the kernel's `trace/events/dma.h` and
//! `iommu.h`.

use granule::addr::Direction;

/// A device's number in the order of appearance; [`Reader::devices`](super::Reader::devices) has
/// the names.
pub type DeviceIndex = u32;

/// Which of the coherent allocators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// `dma_alloc` (`dma_alloc_coherent`): one block for device and CPU.
    Coherent,
    /// `dma_alloc_pages`: one physical block.
    Pages,
    /// `dma_alloc_sgt` (`dma_alloc_noncontiguous`).
    Sgt,
}

/// Whose turn a sync begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// `dma_sync_*_for_cpu`.
    Cpu,
    /// `dma_sync_*_for_device`.
    Device,
}

/// One event, with numbers as the trace prints them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the kernel's events.
pub enum EventKind {
    /// `tracing_mark_write: == NAME`: a phase of the workload begins.
    Phase(String),
    /// `iommu:map`: one physical run.
    IommuMap { iova: u64, phys: u64, size: u64 },
    /// `dma_map_page`, `dma_map_phys`, `dma_map_resource`.
    Map { device: DeviceIndex, dir: Direction, dma: u64, size: u64, phys: u64, resource: bool },
    /// `dma_unmap_page`, `dma_unmap_phys`, `dma_unmap_resource`.
    Unmap { device: DeviceIndex, dir: Direction, dma: u64, size: u64, resource: bool },
    /// `dma_map_sg`. `phys` holds the addresses of the entries (not their lengths, which the kernel
    /// does not print), `dma` and `sizes` those of the segments that the recorder's IOMMU made.
    MapSg {
        device: DeviceIndex,
        dir: Direction,
        entries: u64,
        segments: u64,
        dma: Vec<u64>,
        sizes: Vec<u64>,
        phys: Vec<u64>,
    },
    /// `dma_unmap_sg`: without any DMA address.
    UnmapSg { device: DeviceIndex, dir: Direction, phys: Vec<u64> },
    /// `dma_alloc`, `dma_alloc_pages`, `dma_alloc_sgt`.
    Alloc { device: DeviceIndex, dma: u64, size: u64, by: Allocator },
    /// `dma_free`, `dma_free_pages`, `dma_free_sgt`.
    Free { device: DeviceIndex, dma: u64, size: u64, by: Allocator },
    /// `dma_sync_single_for_*`.
    Sync { device: DeviceIndex, dma: u64, size: u64, turn: Turn },
    /// `dma_sync_sg_for_*`: of the list whose first segment is at `dma`.
    SyncSg { device: DeviceIndex, dma: u64, turn: Turn },
    /// `dma_map_sg_err`, `dma_alloc_sgt_err`, or a map that printed the error address.
    Failed { device: DeviceIndex, what: &'static str },
    /// The tracer lost events here.
    Lost(u64),
}

impl EventKind {
    /// Whether it is one of the DMA API's (and not a mark, or the IOMMU layer's).
    pub fn is_dma(&self) -> bool {
        !matches!(self, Self::Phase(_) | Self::IommuMap { .. } | Self::Lost(_))
    }
}

impl EventKind {
    /// The device, where the event names one.
    pub(crate) fn device_mut(&mut self) -> Option<&mut DeviceIndex> {
        match self {
            Self::Phase(_) | Self::IommuMap { .. } | Self::Lost(_) => None,
            Self::Map { device, .. }
            | Self::Unmap { device, .. }
            | Self::MapSg { device, .. }
            | Self::UnmapSg { device, .. }
            | Self::Alloc { device, .. }
            | Self::Free { device, .. }
            | Self::Sync { device, .. }
            | Self::SyncSg { device, .. }
            | Self::Failed { device, .. } => Some(device),
        }
    }
}

/// `~0`: what the kernel prints for a mapping that failed.
const MAPPING_ERROR: u64 = u64::MAX;

/// The fields of an event: a device's name, then `key=value` in any order.
pub(super) struct Fields<'a> {
    text: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text }
    }

    fn device(&self) -> Option<&'a str> {
        let name = self.text.split_ascii_whitespace().next()?;
        (!name.contains('=')).then_some(name)
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        let words = self.text.split_ascii_whitespace();
        words.filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key).map(|(_, v)| v)
    }

    fn hex(&self, key: &str) -> Option<u64> {
        parse_hex(self.value(key)?)
    }

    fn decimal(&self, key: &str) -> Option<u64> {
        let text = self.value(key)?;
        match text.strip_prefix("0x") {
            Some(hex) => digits(hex, 16),
            None => digits(text, 10),
        }
    }

    fn direction(&self) -> Option<Direction> {
        Some(match self.value("dir")? {
            "TO_DEVICE" | "1" | "0x1" => Direction::ToDevice,
            "FROM_DEVICE" | "2" | "0x2" => Direction::FromDevice,
            "BIDIRECTIONAL" | "0" | "0x0" => Direction::Bidirectional,
            _ => return None,
        })
    }

    /// `{0x1,0x2}`.
    fn array(&self, key: &str) -> Option<Vec<u64>> {
        let inner = self.value(key)?.strip_prefix('{')?.strip_suffix('}')?;
        if inner.is_empty() {
            return Some(Vec::new());
        }
        inner.split(',').map(parse_hex).collect()
    }

    /// The full number of `captured/full`; older kernels print one number.
    fn count(&self, key: &str) -> Option<u64> {
        let text = self.value(key)?;
        digits(text.rsplit('/').next()?, 10)
    }
}

fn parse_hex(text: &str) -> Option<u64> {
    digits(text.strip_prefix("0x").unwrap_or(text), 16)
}

/// A number that has no sign: the kernel prints none, and Rust would accept a `+`.
fn digits(text: &str, radix: u32) -> Option<u64> {
    let signed = text.starts_with('+');
    u64::from_str_radix(text, radix).ok().filter(|_| !signed)
}

/// What became of an event's text.
pub(super) enum Parsed {
    /// An event that matters here.
    Event(EventKind),
    /// An event of another kind.
    Unknown,
    /// An event of a known kind whose fields make no sense.
    Damaged,
}

/// Reads the fields of the event `name`. `device` numbers a device's name.
pub(super) fn parse(
    name: &str,
    text: &str,
    device: &mut impl FnMut(&str) -> DeviceIndex,
) -> Parsed {
    let fields = Fields::new(text);
    let kind = match name {
        "tracing_mark_write" | "print" | "bprint" | "bputs" => return mark(text),
        "map" => iommu_map(text),
        "dma_map_page" | "dma_map_phys" => map(&fields, device, false),
        "dma_map_resource" => map(&fields, device, true),
        "dma_unmap_page" | "dma_unmap_phys" => unmap(&fields, device, false),
        "dma_unmap_resource" => unmap(&fields, device, true),
        "dma_map_sg" => map_sg(&fields, device),
        "dma_unmap_sg" => unmap_sg(&fields, device),
        "dma_alloc" => alloc(&fields, device, Allocator::Coherent),
        "dma_alloc_pages" => alloc(&fields, device, Allocator::Pages),
        "dma_alloc_sgt" => alloc(&fields, device, Allocator::Sgt),
        "dma_free" => free(&fields, device, Allocator::Coherent),
        "dma_free_pages" => free(&fields, device, Allocator::Pages),
        "dma_free_sgt" => free(&fields, device, Allocator::Sgt),
        "dma_sync_single_for_cpu" => sync(&fields, device, Turn::Cpu),
        "dma_sync_single_for_device" => sync(&fields, device, Turn::Device),
        "dma_sync_sg_for_cpu" => sync_sg(&fields, device, Turn::Cpu),
        "dma_sync_sg_for_device" => sync_sg(&fields, device, Turn::Device),
        "dma_map_sg_err" => failed(&fields, device, "dma_map_sg"),
        "dma_alloc_sgt_err" => failed(&fields, device, "dma_alloc_sgt"),
        _ => return Parsed::Unknown,
    };
    kind.map_or(Parsed::Damaged, Parsed::Event)
}

/// A mark of a phase: `== NAME`. Marks of other people's are skipped.
fn mark(text: &str) -> Parsed {
    let text = text
        .find("== ")
        .filter(|at| *at == 0 || text[..*at].ends_with(": "))
        .map(|at| &text[at + 3..]);
    match text {
        Some(name) => Parsed::Event(EventKind::Phase(name.trim().to_owned())),
        None => Parsed::Unknown,
    }
}

/// `IOMMU: iova=0x.. - 0x.. paddr=0x.. size=N`.
fn iommu_map(text: &str) -> Option<EventKind> {
    let fields = Fields::new(text.strip_prefix("IOMMU:")?);
    Some(EventKind::IommuMap {
        iova: fields.hex("iova")?,
        phys: fields.hex("paddr")?,
        size: fields.decimal("size")?,
    })
}

type Number<'n> = &'n mut dyn FnMut(&str) -> DeviceIndex;

fn map(fields: &Fields<'_>, device: Number<'_>, resource: bool) -> Option<EventKind> {
    let (dma, size) = (fields.hex("dma_addr")?, fields.decimal("size")?);
    let (dir, phys) = (fields.direction()?, fields.hex("phys_addr")?);
    let device = device(fields.device()?);
    if dma == MAPPING_ERROR {
        return Some(EventKind::Failed { device, what: "dma_map_page" });
    }
    Some(EventKind::Map { device, dir, dma, size, phys, resource })
}

fn unmap(fields: &Fields<'_>, device: Number<'_>, resource: bool) -> Option<EventKind> {
    let (dma, size) = (fields.hex("dma_addr")?, fields.decimal("size")?);
    let dir = fields.direction()?;
    Some(EventKind::Unmap { device: device(fields.device()?), dir, dma, size, resource })
}

fn map_sg(fields: &Fields<'_>, device: Number<'_>) -> Option<EventKind> {
    let (dma, sizes) = (fields.array("dma_addrs")?, fields.array("sizes")?);
    let phys = fields.array("phys_addrs")?;
    let dir = fields.direction()?;
    if dma.len() != sizes.len() || phys.is_empty() || dma.is_empty() {
        return None;
    }
    Some(EventKind::MapSg {
        dir,
        entries: fields.count("nents").unwrap_or(phys.len() as u64),
        segments: fields.count("ents").unwrap_or(dma.len() as u64),
        device: device(fields.device()?),
        dma,
        sizes,
        phys,
    })
}

fn unmap_sg(fields: &Fields<'_>, device: Number<'_>) -> Option<EventKind> {
    let phys = fields.array("phys_addrs").filter(|phys| !phys.is_empty())?;
    let dir = fields.direction()?;
    Some(EventKind::UnmapSg { device: device(fields.device()?), dir, phys })
}

fn alloc(fields: &Fields<'_>, device: Number<'_>, by: Allocator) -> Option<EventKind> {
    let (dma, size) = (fields.hex("dma_addr")?, fields.decimal("size")?);
    let device = device(fields.device()?);
    if dma == MAPPING_ERROR || size == 0 {
        return Some(EventKind::Failed { device, what: "dma_alloc" });
    }
    Some(EventKind::Alloc { device, dma, size, by })
}

fn free(fields: &Fields<'_>, device: Number<'_>, by: Allocator) -> Option<EventKind> {
    let (dma, size) = (fields.hex("dma_addr")?, fields.decimal("size")?);
    Some(EventKind::Free { device: device(fields.device()?), dma, size, by })
}

fn sync(fields: &Fields<'_>, device: Number<'_>, turn: Turn) -> Option<EventKind> {
    let (dma, size) = (fields.hex("dma_addr")?, fields.decimal("size")?);
    Some(EventKind::Sync { device: device(fields.device()?), dma, size, turn })
}

fn sync_sg(fields: &Fields<'_>, device: Number<'_>, turn: Turn) -> Option<EventKind> {
    let dma = *fields.array("dma_addrs")?.first()?;
    Some(EventKind::SyncSg { device: device(fields.device()?), dma, turn })
}

fn failed(fields: &Fields<'_>, device: Number<'_>, what: &'static str) -> Option<EventKind> {
    Some(EventKind::Failed { device: device(fields.device()?), what })
}
