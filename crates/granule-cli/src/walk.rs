//! `granule walk`: what the page tables in a dump of physical memory map.

use std::fmt::Write as _;

use granule::addr::{Access, Iova, PhysAddr};
use granule_sim::ram::{Image, ImageError};
use granule_sim::walk::{self, Listing, Mapping, PhysRead, SimFormat};
use serde::Serialize;

use crate::args::WalkArgs;
use crate::error::CliError;
use crate::output;
use crate::text::{self, serialize_hex};

/// More mappings than these are counted, not shown, in the text; JSON has all.
const MAPPINGS_SHOWN: usize = 1000;
/// The same for findings.
const FINDINGS_SHOWN: usize = 20;

/// Runs the command; what to print comes back.
pub(crate) fn run(args: &WalkArgs) -> Result<String, CliError> {
    let image = open(args)?;
    let input_bits = args.input_bits.unwrap_or_else(|| default_input_bits(args.format));
    let roots: Vec<PhysAddr> = args.root.iter().map(|root| PhysAddr::new(*root)).collect();
    match args.iova {
        Some(iova) => translate(args, &image, &roots, input_bits, iova),
        None => list(args, &image, &roots, input_bits),
    }
}

fn default_input_bits(format: SimFormat) -> u32 {
    match format {
        SimFormat::Dart1 | SimFormat::Dart2 => 32,
        SimFormat::Sv39 => 39,
        SimFormat::Sv57 => 57,
        _ => 48,
    }
}

/// Opens the dump, and sees to it that the roots are in it.
fn open(args: &WalkArgs) -> Result<Image, CliError> {
    let (path, base) = &args.memory;
    let image = Image::open(path, *base).map_err(|error| match error {
        ImageError::Io { path, error } => CliError::Read { path, error },
        other => CliError::Usage { message: other.to_string() },
    })?;
    let empty = || CliError::EmptyImage { path: path.clone() };
    if path.is_dir() {
        return Err(empty());
    }
    let held = image.range().ok_or_else(empty)?;
    for root in &args.root {
        if root % 64 != 0 {
            return Err(CliError::RootMisaligned { root: *root, align: 64 });
        }
        if image.read_u64(PhysAddr::new(*root)).is_none() {
            return Err(CliError::RootOutside { root: *root, path: path.clone(), held });
        }
    }
    Ok(image)
}

#[derive(Serialize)]
struct WalkJson {
    mappings: Vec<MappingJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    translation: Option<TranslationJson>,
    findings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<String>,
}

#[derive(Serialize)]
struct MappingJson {
    #[serde(serialize_with = "serialize_hex")]
    iova: u64,
    #[serde(serialize_with = "serialize_hex")]
    physical: u64,
    length: u64,
    page_size: u64,
    read: bool,
    write: bool,
}

#[derive(Serialize)]
struct TranslationJson {
    #[serde(serialize_with = "serialize_hex")]
    iova: u64,
    #[serde(serialize_with = "serialize_hex")]
    physical: u64,
}

impl From<&Mapping> for MappingJson {
    fn from(mapping: &Mapping) -> Self {
        Self {
            iova: mapping.iova.raw(),
            physical: mapping.phys.raw(),
            length: mapping.len,
            page_size: mapping.page_size,
            read: mapping.access.contains(Access::READ),
            write: mapping.access.contains(Access::WRITE),
        }
    }
}

fn list(
    args: &WalkArgs,
    image: &Image,
    roots: &[PhysAddr],
    input_bits: u32,
) -> Result<String, CliError> {
    let listing = walk::mappings(image, args.format, roots, input_bits)?;
    if args.json {
        return Ok(output::json(&WalkJson {
            mappings: listing.mappings.iter().map(MappingJson::from).collect(),
            translation: None,
            findings: listing.findings.iter().map(ToString::to_string).collect(),
            truncated: listing.truncated.map(|limit| limit.to_string()),
        }));
    }
    let rows = listing.mappings.iter().take(MAPPINGS_SHOWN).map(row).collect();
    let mut out = String::new();
    if !listing.mappings.is_empty() {
        out = text::table(&["IOVA", "physical", "length", "page", "access"], &[0, 1, 2, 3], rows);
    }
    if listing.mappings.len() > MAPPINGS_SHOWN {
        let more = listing.mappings.len() - MAPPINGS_SHOWN;
        let _ = writeln!(out, "… and {more} more (--json has them all)");
    }
    out.push_str(&summary(&listing));
    Ok(out)
}

fn row(mapping: &Mapping) -> Vec<String> {
    vec![
        text::hex(mapping.iova.raw()),
        text::hex(mapping.phys.raw()),
        text::size(mapping.len),
        text::size(mapping.page_size),
        match mapping.fence {
            Some((first, last)) => format!("{}, only bytes {first:#x}..={last:#x}", mapping.access),
            None => mapping.access.to_string(),
        },
    ]
}

fn summary(listing: &Listing) -> String {
    let bytes = listing.mappings.iter().map(|mapping| mapping.len).fold(0, u64::saturating_add);
    let tables = text::count(usize::try_from(listing.tables).unwrap_or(usize::MAX), "table");
    let ranges = text::count(listing.mappings.len(), "range");
    let mut out = match listing.mappings.len() {
        0 => format!("nothing is mapped ({tables} read)\n"),
        _ => format!("\n{} mapped in {ranges}, {tables} read\n", text::size(bytes)),
    };
    for finding in listing.findings.iter().take(FINDINGS_SHOWN) {
        let _ = writeln!(out, "odd: {finding}");
    }
    let more = listing.findings_total.saturating_sub(FINDINGS_SHOWN as u64);
    if more > 0 {
        let _ = writeln!(out, "… and {more} more oddities: is this a table of this format?");
    }
    if let Some(limit) = listing.truncated {
        let _ = writeln!(out, "{limit}");
    }
    out
}

fn translate(
    args: &WalkArgs,
    image: &Image,
    roots: &[PhysAddr],
    input_bits: u32,
    address: u64,
) -> Result<String, CliError> {
    let dart = matches!(args.format, SimFormat::Dart1 | SimFormat::Dart2);
    // A DART's tables index the low bits of what the device emits, whatever stands above.
    let mask = if dart && input_bits < 64 { (1 << input_bits) - 1 } else { u64::MAX };
    let iova = Iova::new(address & mask);
    let found = walk::translate(image, args.format, roots, input_bits, iova)?;
    if args.json {
        let mapping = MappingJson {
            iova: found.page_iova.raw(),
            physical: found.page_phys.raw(),
            length: found.page_size,
            page_size: found.page_size,
            read: found.access.contains(Access::READ),
            write: found.access.contains(Access::WRITE),
        };
        return Ok(output::json(&WalkJson {
            mappings: vec![mapping],
            translation: Some(TranslationJson { iova: iova.raw(), physical: found.phys.raw() }),
            findings: Vec::new(),
            truncated: None,
        }));
    }
    let fence = found.fence.map_or(String::new(), |(first, last)| {
        format!(", only bytes {first:#x}..={last:#x} of the page")
    });
    Ok(format!(
        "{address:#x} leads to {:#x}: a page of {} at {:#x}, {}{fence}\n",
        found.phys,
        text::size(found.page_size),
        found.page_phys,
        found.access,
    ))
}
