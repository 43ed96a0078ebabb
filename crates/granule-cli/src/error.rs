//! Why the command refuses: a kind for programs, a message for people, an exit status.

use std::io;
use std::path::PathBuf;

use granule::addr::{DmaAddr, PhysRange};
use granule::dma::AttachError;
use granule::domain::{DomainError, StreamError, TranslationError};
use granule::share::{ShareError, Windows};
use granule::table::TableError;
use granule_board::{BoardError, LookupError};
use granule_replay::ReplayError;
use granule_replay::record::RecordError;
use granule_sim::machine::MachineError;
use granule_sim::ram::RamError;
use granule_sim::walk::{FormatError, WalkFault};
use serde_json::{Map, Value, json};

use crate::output;

/// Why the command refuses or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CliError {
    /// The command line makes no sense.
    #[error("{message}")]
    Usage { message: String },
    /// A file cannot be read.
    #[error("{path} can't be read: {error}", path = path.display())]
    Read { path: PathBuf, error: io::Error },
    /// A file cannot be written. What was there is still there.
    #[error("{path} can't be written: {error}", path = path.display())]
    Write { path: PathBuf, error: io::Error },
    /// The built-in board is no board, which cannot be.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The file is no board.
    #[error("{path}: {error}", path = path.display())]
    BoardFile { path: PathBuf, error: BoardError },
    /// A name names no single usable device.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The tree carries no RAM.
    #[error(
        "the tree of {model} names no memory; the boot loader fills it in on the real machine. \
         Give some with --memory BASE+SIZE, as in --memory 0x80000000+4G"
    )]
    NoMemory { model: String },
    /// No whole 64 KiB of the memory are left.
    #[error("the memory at {range} holds no whole 64 KiB: the simulator needs at least that")]
    SmallMemory { range: PhysRange },
    /// No two devices of the board can be simulated.
    #[error("no two devices of {model} can share here; name some with --between ({why})")]
    NoPair { model: String, why: &'static str },
    /// What stands before the device could not be read from the tree.
    #[error(
        "{device}: the tree does not say what stands between it and memory, so it is no candidate \
         (see the warnings of `granule board`)"
    )]
    Unresolved { device: String },
    /// An IOMMU before the device is disabled.
    #[error("{device} is behind {iommu}, which is disabled in the tree")]
    IommuDisabled { device: String, iommu: String },
    /// The IOMMU is not in the table of known ones.
    #[error(
        "{device} is behind {iommu}, an IOMMU that is not known ({compatible}): \
         its pages are not guessed"
    )]
    UnknownIommu { device: String, iommu: String, compatible: String },
    /// The simulator walks no table of this IOMMU.
    #[error(
        "{device} is behind {iommu}, a {kind} IOMMU; its tables are of a format that granule does \
         not write. It has {known}"
    )]
    NoFormat { device: String, iommu: String, kind: String, known: String },
    /// The IOMMUs of one domain walk no common format.
    #[error("{device} is behind {first} and {second}, which walk no common table format")]
    MixedFormats { device: String, first: String, second: String },
    /// The windows of the IOMMUs of one device do not overlap.
    #[error("{device} is behind IOMMUs whose address windows have nothing in common")]
    NoCommonWindow { device: String },
    /// An option names a device that is not one of those that share.
    #[error("{option} names {device}, which is not one of the devices that share ({shared})")]
    NotShared { option: &'static str, device: String, shared: String },
    /// The machine cannot be built.
    #[error("the board can't be simulated: {0}")]
    Machine(#[from] MachineError),
    /// RAM cannot be written to a file, or left where it should not.
    #[error("the simulated RAM: {0}")]
    Ram(#[from] RamError),
    /// A device cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A domain cannot be made.
    #[error("{device}: {cause}")]
    Domain { device: String, cause: DomainError },
    /// The devices cannot share.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A stream that no IOMMU of its kind has.
    #[error("{iommu} has no stream {stream:#x}: the simulator has {limit:#x} of them")]
    NoStream { iommu: String, stream: u32, limit: u32 },
    /// The tables that firmware left need memory.
    #[error("RAM has no free {size:#x} bytes for the tables that firmware left: give it more")]
    FirmwareRoom { size: u64 },
    /// The tables that firmware left cannot be made of what the tree says.
    #[error("what the tree says that firmware left mapped for stream {stream} can't be: {cause}")]
    Firmware { stream: u32, cause: TableError },
    /// All devices have memory in reach, but none that is RAM.
    #[error("{devices} reach {windows}, and no RAM of this board is there: it has {ram}")]
    NoRamInReach { devices: String, windows: Windows, ram: Windows },
    /// A check of what was promised failed: a bug in granule, and never the user's fault.
    #[error("verification failed: {what}")]
    Verification { what: String },
    /// A dump without contents.
    #[error("{path} holds no memory: it is no ordinary file, or empty", path = path.display())]
    EmptyImage { path: PathBuf },
    /// The root table is not in the dump.
    #[error(
        "the root table at {root:#x} is not in {path}, which holds {held}; \
         give the address of its first byte as FILE@BASE",
        path = path.display()
    )]
    RootOutside { root: u64, path: PathBuf, held: PhysRange },
    /// A root that is no table's address.
    #[error("a root table lies at a multiple of {align:#x}, which {root:#x} is not")]
    RootMisaligned { root: u64, align: u64 },
    /// There are no tables of this shape.
    #[error(transparent)]
    Shape(#[from] FormatError),
    /// The address is not mapped.
    #[error(transparent)]
    NotMapped(#[from] WalkFault),
    /// A trace cannot be replayed.
    #[error(transparent)]
    Replay(ReplayError),
    /// A device that is not to be trusted is not there.
    #[error("--untrusted names {device}, which is not one of the devices replayed ({present})")]
    UntrustedAbsent { device: String, present: String },
    /// Ctrl-C came before anything was measured.
    #[error("interrupted after {lines} lines of the trace, before its first DMA event")]
    Interrupted { lines: u64 },
    /// Nothing was recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Ctrl-C cannot be watched.
    #[error("Ctrl-C can't be watched: {error}")]
    Signals { error: io::Error },
    /// A device of this machine cannot be opened or used.
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Linux(#[from] granule_linux::Error),
    /// Something that only Linux offers.
    #[cfg(not(target_os = "linux"))]
    #[error("{what} needs Linux")]
    NotLinux { what: &'static str },
}

impl From<ReplayError> for CliError {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Open { path, cause } => Self::Read { path, error: cause },
            // Two options contradict each other.
            ReplayError::FormatGranule { .. } => Self::Usage { message: error.to_string() },
            error => Self::Replay(error),
        }
    }
}

/// A device reached what it should not, or not what it should.
pub(crate) fn failed(what: impl Into<String>) -> CliError {
    CliError::Verification { what: what.into() }
}

/// The same, at an address.
pub(crate) fn failed_at(device: &str, at: DmaAddr, what: &str) -> CliError {
    failed(format!("{device} at {at:#x}: {what}"))
}

impl CliError {
    /// The exit status: 2 for bad usage, else 1.
    pub(crate) fn status(&self) -> u8 {
        if matches!(self, Self::Usage { .. }) { 2 } else { 1 }
    }

    /// One word (or a few) that programs can rely on.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Usage { .. } => "usage",
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Board(error) | Self::BoardFile { error, .. } => board_kind(error),
            Self::Lookup(error) => lookup_kind(error),
            Self::NoMemory { .. } => "no_memory",
            Self::SmallMemory { .. } => "small_memory",
            Self::NoPair { .. } => "no_pair",
            Self::Unresolved { .. } => "unresolved_device",
            Self::IommuDisabled { .. } => "iommu_disabled",
            Self::UnknownIommu { .. } => "unknown_iommu",
            Self::NoFormat { .. } => "no_format",
            Self::MixedFormats { .. } => "mixed_formats",
            Self::NoCommonWindow { .. } => "no_common_window",
            Self::NotShared { .. } => "not_shared",
            Self::Machine(MachineError::Ram(error)) | Self::Ram(error) => ram_kind(error),
            Self::Machine(_) => "machine",
            Self::Attach(error) => attach_kind(error),
            Self::Domain { .. } => "domain",
            Self::Share(error) => share_kind(error),
            Self::NoStream { .. } => "no_stream",
            Self::FirmwareRoom { .. } => "no_room_for_firmware",
            Self::Firmware { .. } => "firmware_tables",
            Self::NoRamInReach { .. } => "no_ram_in_reach",
            Self::Verification { .. } => "verification",
            Self::EmptyImage { .. } => "empty_image",
            Self::RootOutside { .. } => "root_outside",
            Self::RootMisaligned { .. } => "root_misaligned",
            Self::Shape(_) => "table_shape",
            Self::NotMapped(_) => "not_mapped",
            Self::Replay(error) => replay_kind(error),
            Self::UntrustedAbsent { .. } => "no_such_device",
            Self::Interrupted { .. } => "interrupted",
            Self::Record(error) => record_kind(error),
            Self::Signals { .. } => "signals",
            #[cfg(target_os = "linux")]
            Self::Linux(error) => error.kind(),
            #[cfg(not(target_os = "linux"))]
            Self::NotLinux { .. } => "not_linux",
        }
    }

    /// The object that `--json` prints.
    pub(crate) fn json(&self) -> String {
        let mut error = Map::new();
        error.insert("kind".into(), self.kind().into());
        error.insert("message".into(), self.to_string().into());
        if let Value::Object(details) = self.details() {
            error.extend(details);
        }
        output::json(&json!({ "error": error }))
    }

    /// The values that a program would otherwise have to find in the message.
    fn details(&self) -> Value {
        match self {
            Self::Lookup(
                LookupError::Unknown { name, candidates }
                | LookupError::Ambiguous { name, candidates, .. },
            ) => json!({ "device": name, "candidates": candidates }),
            Self::Lookup(
                LookupError::Disabled { name, path } | LookupError::NotADevice { name, path },
            ) => json!({ "device": name, "path": path }),
            Self::Unresolved { device }
            | Self::NoCommonWindow { device }
            | Self::Domain { device, .. }
            | Self::NotShared { device, .. } => json!({ "device": device }),
            Self::IommuDisabled { device, iommu }
            | Self::UnknownIommu { device, iommu, .. }
            | Self::NoFormat { device, iommu, .. } => json!({ "device": device, "iommu": iommu }),
            Self::Attach(error) => json!({ "device": attach_device(error) }),
            Self::Share(
                ShareError::Windows { first, second, .. }
                | ShareError::WindowTooSmall { first, second, .. }
                | ShareError::NoCommonAddress { first, second, .. },
            ) => json!({ "devices": [first, second] }),
            Self::Share(
                ShareError::Twice { device }
                | ShareError::AddressesTaken { device }
                | ShareError::AddressSpace { device, .. },
            ) => json!({ "device": device }),
            Self::Read { path, .. } | Self::Write { path, .. } | Self::BoardFile { path, .. } => {
                json!({ "path": path.display().to_string() })
            }
            _ => Value::Null,
        }
    }
}

fn board_kind(error: &BoardError) -> &'static str {
    match error {
        BoardError::NotADeviceTree { .. } => "not_a_device_tree",
        BoardError::Truncated { .. } => "truncated_device_tree",
        BoardError::TooLarge { .. } => "device_tree_too_large",
        _ => "malformed_device_tree",
    }
}

fn lookup_kind(error: &LookupError) -> &'static str {
    match error {
        LookupError::Unknown { .. } => "unknown_device",
        LookupError::Ambiguous { .. } => "ambiguous_device",
        LookupError::Disabled { .. } => "device_disabled",
        LookupError::NotADevice { .. } => "not_a_device",
        _ => "device",
    }
}

fn replay_kind(error: &ReplayError) -> &'static str {
    match error {
        ReplayError::Read { .. } => "read",
        ReplayError::Binary { .. } => "binary_trace",
        ReplayError::NoDma { .. } => "no_dma_events",
        ReplayError::NoSuchDevice { .. } => "no_such_device",
        ReplayError::Machine { .. } => "machine",
        _ => "replay",
    }
}

fn record_kind(error: &RecordError) -> &'static str {
    match error {
        RecordError::NoTracefs => "no_tracefs",
        RecordError::NoEvents => "no_dma_events",
        RecordError::Instance { .. } => "no_tracing_instance",
        _ => "record",
    }
}

fn ram_kind(error: &RamError) -> &'static str {
    match error {
        RamError::Overlap { .. } => "memory_overlap",
        RamError::Empty => "no_memory",
        _ => "memory",
    }
}

fn attach_kind(error: &AttachError) -> &'static str {
    match error {
        AttachError::Untrusted { .. } => "untrusted_direct",
        AttachError::Mask { .. } => "mask",
        AttachError::Window { .. } => "window",
        AttachError::NoWindow { .. } => "no_window",
        AttachError::Stream { cause, .. } => match cause {
            StreamError::FirmwareMapping { .. } => "untrusted_firmware_mapping",
            StreamError::Translation(TranslationError::Group { .. }) => "group",
            _ => "stream",
        },
        _ => "attach",
    }
}

fn attach_device(error: &AttachError) -> &str {
    match error {
        AttachError::Stream { device, .. }
        | AttachError::Mask { device, .. }
        | AttachError::Window { device, .. }
        | AttachError::Untrusted { device, .. }
        | AttachError::NoWindow { device }
        | AttachError::NoStream { device }
        | AttachError::Domain { device, .. } => device,
        _ => "",
    }
}

fn share_kind(error: &ShareError) -> &'static str {
    match error {
        ShareError::NoDevice => "no_device",
        ShareError::Empty => "empty",
        ShareError::TooLong { .. } => "too_long",
        ShareError::Twice { .. } => "device_twice",
        ShareError::NoAccess { .. } => "no_access",
        ShareError::Windows { .. } => "no_common_memory",
        ShareError::WindowTooSmall { .. } => "common_memory_too_small",
        ShareError::Segment { .. } => "segment",
        ShareError::Boundary { .. } => "boundary",
        ShareError::AddressSpace { .. } => "address_space",
        ShareError::NoCommonAddress { .. } => "no_common_address",
        ShareError::AddressesTaken { .. } => "addresses_taken",
        ShareError::Memory { .. } => "out_of_memory",
        ShareError::Device(_) => "dma",
        ShareError::Unmap(_) => "unmap",
        _ => "share",
    }
}
