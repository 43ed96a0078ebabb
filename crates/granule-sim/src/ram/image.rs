//! RAM as a sparse raw file, written and read: the form of QEMU's `pmemsave`.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use granule::addr::{PhysAddr, PhysRange};
use rustix::fs::SeekFrom;

use super::{Placed, Ram, RamError};
use crate::walk::PhysRead;

const PAGE: usize = 4096;
const CHUNK: usize = 16 * PAGE;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be opened or read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The host's error.
        error: io::Error,
    },
    /// What stands behind the `@` is no address.
    #[error("`{text}` is not an address: write FILE@0x800000000")]
    Base {
        /// The text.
        text: String,
    },
}

impl Ram {
    /// Writes RAM to a sparse raw file that begins at the lowest RAM address. Pages that were never
    /// touched are not looked at, pages of zeroes are not written.
    ///
    /// # Errors
    /// The host's error; a file of part of RAM may then be left.
    pub fn write_image(&self, path: &Path) -> Result<(), RamError> {
        let out = File::create(path)?;
        let (Some(first), Some(last)) = (self.placed.first(), self.placed.last()) else {
            return Err(RamError::Empty);
        };
        let base = first.range.start().raw();
        out.set_len(last.range.last().raw() - base + 1)?;
        for part in &self.placed {
            let shift = part.range.start().raw() - base;
            self.write_part(part, shift, &out)?;
        }
        Ok(())
    }

    fn write_part(&self, part: &Placed, shift: u64, out: &File) -> io::Result<()> {
        let end = part.offset + part.range.len();
        extents(&self.file, part.offset, end, &mut |at, bytes| {
            for (index, page) in bytes.chunks(PAGE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    let to = at - part.offset + shift + (index * PAGE) as u64;
                    out.write_all_at(page, to)?;
                }
            }
            Ok(())
        })
    }
}

/// Calls `each` with what the file holds between `start` and `end`, a chunk at a time, holes left
/// out.
fn extents(
    file: &File,
    start: u64,
    end: u64,
    each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(at))?.min(end);
        while at < hole {
            let len = (hole - at).min(CHUNK as u64) as usize;
            file.read_exact_at(&mut buffer[..len], at)?;
            each(at, &buffer[..len])?;
            at += len as u64;
        }
    }
    Ok(())
}

/// A dump of physical memory: a raw file and the address of its first byte. Read page by page on
/// demand, never as a whole.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    base: PhysAddr,
    len: u64,
    page: Mutex<Option<(u64, Box<[u8; PAGE]>)>>,
}

impl Image {
    /// Opens the file, whose first byte is the byte at `base`.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn open(path: &Path, base: PhysAddr) -> Result<Self, ImageError> {
        let wrap = |error| ImageError::Io { path: path.into(), error };
        let file = File::open(path).map_err(wrap)?;
        let len = file.metadata().map_err(wrap)?.len();
        Ok(Self { file, path: path.into(), base, len, page: Mutex::new(None) })
    }

    /// Opens `FILE` or `FILE@BASE` (hexadecimal with `0x`, else decimal); without a base the file
    /// begins at address 0.
    ///
    /// # Errors
    /// [`ImageError`] if the file cannot be opened or the base is no number.
    pub fn open_spec(spec: &str) -> Result<Self, ImageError> {
        let Some((path, text)) = spec.rsplit_once('@') else {
            return Self::open(Path::new(spec), PhysAddr::new(0));
        };
        let (digits, radix) = match text.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (text, 10),
        };
        // Rust's numbers may have a sign.
        let base = u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'));
        let base = base.ok_or_else(|| ImageError::Base { text: text.into() })?;
        Self::open(Path::new(path), PhysAddr::new(base))
    }

    /// The addresses that the image holds; `None` if it is empty or passes the end of the space.
    pub fn range(&self) -> Option<PhysRange> {
        PhysRange::new(self.base, self.len).ok()
    }

    /// Reads from the image.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the bytes are not all in the image, or the host fails.
    pub fn read(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ImageError> {
        let wrap = |error| ImageError::Io { path: self.path.clone(), error };
        let offset =
            addr.offset_from(self.base).ok_or(wrap(io::ErrorKind::UnexpectedEof.into()))?;
        self.file.read_exact_at(out, offset).map_err(wrap)
    }

    /// Copies what the image holds (holes left out) to its place in `ram`.
    ///
    /// # Errors
    /// [`RamError`] if data lies outside RAM, or the host fails; RAM is then partly loaded.
    pub fn load_into(&self, ram: &Ram) -> Result<(), RamError> {
        let mut result = Ok(());
        extents(&self.file, 0, self.len, &mut |at, bytes| {
            for (index, page) in bytes.chunks(PAGE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    let to = self.base.raw().wrapping_add(at + (index * PAGE) as u64);
                    result = ram.write(PhysAddr::new(to), page);
                }
                if result.is_err() {
                    return Err(io::ErrorKind::Other.into());
                }
            }
            Ok(())
        })
        .or_else(|error| if result.is_err() { Ok(()) } else { Err(error) })?;
        result
    }

    /// The word at `offset`, through the page that was read last.
    fn word(&self, offset: u64) -> Option<u64> {
        let first = offset & !(PAGE as u64 - 1);
        let mut kept = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|(at, _)| *at != first) {
            let mut page = Box::new([0; PAGE]);
            let len = (self.len - first).min(PAGE as u64) as usize;
            self.file.read_exact_at(&mut page[..len], first).ok()?;
            *kept = Some((first, page));
        }
        let (_, page) = kept.as_ref()?;
        let at = (offset - first) as usize;
        page.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

impl PhysRead for Image {
    fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        let offset = addr.offset_from(self.base)?;
        let inside = offset.checked_add(8).is_some_and(|end| end <= self.len);
        (inside && addr.raw() % 8 == 0 && offset % 8 == 0).then(|| self.word(offset))?
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).expect("a legal range")
    }

    #[test]
    fn a_dump_is_sparse_and_comes_back() {
        let ranges = [range(0x8_0000_0000, 4 << 30), range(0xa_0000_0000, 1 << 30)];
        let ram = Ram::new(&ranges).expect("RAM");
        let places = [0x8_0000_0000, 0x8_7777_7770, 0xa_3fff_fff8].map(PhysAddr::new);
        for place in places {
            ram.write_u64(place, place.raw() | 1).expect("inside");
        }
        // Touched, and zero: 2 MiB that must not be written.
        ram.fill(range(0xa_0000_0000, 2 << 20), 0).expect("inside");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ram.raw");
        ram.write_image(&path).expect("written");
        let meta = std::fs::metadata(&path).expect("there");
        assert_eq!(meta.len(), 9 << 30);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());

        let image = Image::open(&path, PhysAddr::new(0x8_0000_0000)).expect("opened");
        for place in places {
            assert_eq!(image.read_u64(place), Some(place.raw() | 1));
        }
        assert_eq!(image.read_u64(PhysAddr::new(0x7_ffff_fff8)), None);
        assert_eq!(image.read_u64(PhysAddr::new(0xa_4000_0000)), None);
        let again = Ram::new(&ranges).expect("RAM");
        image.load_into(&again).expect("loaded");
        for place in places {
            assert_eq!(again.read_u64(place), Some(place.raw() | 1));
        }
        let small = Ram::new(&ranges[..1]).expect("RAM");
        assert!(matches!(image.load_into(&small), Err(RamError::Outside { .. })));
    }

    #[test]
    fn the_base_stands_behind_an_at_sign() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("odd.raw");
        std::fs::write(&path, [7; 13]).expect("written");
        let spec = format!("{}@0x1000", path.display());
        let image = Image::open_spec(&spec).expect("opened");
        assert_eq!(image.read_u64(PhysAddr::new(0x1000)), Some(0x0707_0707_0707_0707));
        assert_eq!(image.read_u64(PhysAddr::new(0x1008)), None);
        assert_eq!(image.range(), Some(range(0x1000, 13)));
        for wrong in ["here", "", "0x", "+5", "0x+5"] {
            let spec = format!("{}@{wrong}", path.display());
            assert!(matches!(Image::open_spec(&spec), Err(ImageError::Base { .. })), "{spec}");
        }
        assert!(Image::open_spec("/nowhere/at/all").is_err());
    }
}
