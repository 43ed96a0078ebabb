//! Where a trace comes from: a file or any reader, plain or packed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use zstd::stream::read::Decoder;

use crate::ReplayError;

static SAMPLE: &[u8] = include_bytes!("../../samples/nvme-e1000e.txt.zst");
/// Text is taken in pieces of this size.
const BUFFER: usize = 1 << 16;
/// Packed bytes are: few, so that what was read says how far the replay is.
const PACKED: usize = 1 << 12;
/// The largest window of a zstd frame, as a logarithm: so much memory a trace may ask for. `zstd
/// --long` makes such frames.
const WINDOW: u32 = 27;

/// A trace as plain text, whatever it was packed with.
pub struct Input {
    text: Box<dyn BufRead + Send>,
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

impl Input {
    /// A file, or standard input if it is called `-`.
    ///
    /// # Errors
    /// [`ReplayError::Open`], and as [`new`](Self::new).
    pub fn open(path: &Path) -> Result<Self, ReplayError> {
        if path.as_os_str() == "-" {
            return Self::new(io::stdin());
        }
        let file =
            File::open(path).map_err(|cause| ReplayError::Open { path: path.to_owned(), cause })?;
        let total = file.metadata().ok().filter(|data| data.is_file()).map(|data| data.len());
        Ok(Self { total, ..Self::new(file)? })
    }

    /// A small trace of an NVMe disk and a network card, recorded in a guest; see
    /// `samples/README.md`.
    ///
    /// # Errors
    /// None that could happen: the sample is part of the program.
    pub fn sample() -> Result<Self, ReplayError> {
        Ok(Self { total: Some(SAMPLE.len() as u64), ..Self::new(SAMPLE)? })
    }

    /// Any reader. What it is packed with is told by its first bytes, not by a name.
    ///
    /// # Errors
    /// [`ReplayError::Binary`] for files of the recorders' own, [`ReplayError::Read`].
    pub fn new(reader: impl Read + Send + 'static) -> Result<Self, ReplayError> {
        let failed = |cause| ReplayError::Read { line: 0, cause };
        let reader = Headed::new(reader).map_err(failed)?;
        let (read, head) = (reader.read.clone(), reader.head.clone());
        if head.starts_with(b"\x17\x08Dtracing") {
            let command = "trace-cmd report trace.dat";
            return Err(ReplayError::Binary { tool: "trace-cmd", command });
        }
        if head.starts_with(b"PERFILE2") {
            return Err(ReplayError::Binary { tool: "perf", command: "perf script -i perf.data" });
        }
        let packed = |reader| BufReader::with_capacity(PACKED, reader);
        let text: Box<dyn BufRead + Send> = if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let mut plain = Decoder::with_buffer(packed(reader)).map_err(failed)?;
            plain.window_log_max(WINDOW).map_err(failed)?;
            Box::new(BufReader::with_capacity(BUFFER, plain))
        } else if head.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(packed(reader))))
        } else {
            Box::new(BufReader::with_capacity(BUFFER, reader))
        };
        Ok(Self { text, read, total: None })
    }

    /// The size of the file as it is packed, if it is one.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// How much of it was read so far: keep this, and look at it while the trace is replayed.
    pub fn read_so_far(&self) -> Arc<AtomicU64> {
        self.read.clone()
    }

    pub(super) fn into_text(self) -> Box<dyn BufRead + Send> {
        self.text
    }
}

impl core::fmt::Debug for Input {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Input")
    }
}

/// A reader whose first bytes were looked at, and are given again.
struct Headed<R> {
    head: Vec<u8>,
    given: usize,
    read: Arc<AtomicU64>,
    rest: R,
}

impl<R: Read> Headed<R> {
    fn new(mut rest: R) -> io::Result<Self> {
        let mut head = Vec::new();
        rest.by_ref().take(16).read_to_end(&mut head)?;
        Ok(Self { head, given: 0, read: Arc::default(), rest })
    }
}

impl<R: Read> Read for Headed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = match self.head.get(self.given..).filter(|head| !head.is_empty()) {
            Some(mut head) => {
                let count = head.read(out)?;
                self.given += count;
                count
            }
            None => self.rest.read(out)?,
        };
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
