//! A trace is read as it comes, packed or not: the first event is there when little was read, how far
//! the replay is follows what was read, and memory does not grow with the trace.
//!
//! One test in a program of its own: it looks at the peak of the whole process's memory.

use std::io::{self, Cursor, Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use granule::addr::Granule;
use granule_replay::reader::Reader;
use granule_replay::{Input, Options, replay};

/// How often the piece below is repeated.
const PIECES: usize = 10;
/// Lines of a piece: about 6 MiB.
const LINES: u64 = 4_000;
/// What reading may add to the process's memory: a window of 8 MiB, buffers, and room for the
/// allocator. The text is three times that.
const GROWTH: u64 = 20 << 20;

/// Lines of a trace that no two of which are alike.
struct Lines {
    next: u64,
    line: Cursor<Vec<u8>>,
}

impl Lines {
    fn new() -> Self {
        Self { next: 0, line: Cursor::default() }
    }
}

impl Read for Lines {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.line.read(out)?;
        if count > 0 || self.next == LINES {
            return Ok(count);
        }
        let (at, random) = (self.next, self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.next += 1;
        let event = if at % 100 == 0 {
            format!(
                " nvme-77 [000] ..... 1.{at:06}: map: IOMMU: iova={at:#x} - {random:#x} paddr=0x1000 size=4096\n"
            )
        } else {
            // Comments are skipped fast.
            format!("# {}\n", format!("{random:016x}").repeat(100))
        };
        self.line = Cursor::new(event.into_bytes());
        self.line.read(out)
    }
}

/// The same bytes again and again.
struct Repeated {
    piece: Arc<Vec<u8>>,
    left: usize,
    at: usize,
}

impl Read for Repeated {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            (self.left, self.at) = (self.left.saturating_sub(1), 0);
        }
        if self.left == 0 {
            return Ok(0);
        }
        let count = (&self.piece[self.at..]).read(out)?;
        self.at += count;
        Ok(count)
    }
}

fn zstd() -> Vec<u8> {
    let mut packer = zstd::Encoder::new(Vec::new(), 1).expect("a packer");
    // The window of the level that `zstd -19` has.
    packer.window_log(23).expect("legal");
    io::copy(&mut Lines::new(), &mut packer).expect("packed");
    packer.finish().expect("packed")
}

fn gzip() -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::copy(&mut Lines::new(), &mut packer).expect("packed");
    packer.finish().expect("packed")
}

fn plain() -> Vec<u8> {
    let mut text = Vec::new();
    io::copy(&mut Lines::new(), &mut text).expect("written");
    text
}

/// A figure of this process in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a figure");
    let number = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    number.expect("a number") * 1024
}

#[test]
fn a_trace_is_read_as_it_comes() {
    for (name, piece) in [("zstd", zstd()), ("gzip", gzip()), ("plain", plain())] {
        let size = piece.len() as u64;
        let input = Repeated { piece: Arc::new(piece), left: PIECES, at: 0 };
        // What was needed to make it is no part of what reading needs.
        let before = begin_anew();
        let input = Input::new(input).expect("a trace");
        let read = input.read_so_far();
        let mut reader = Reader::new(input);
        let first = reader.next_event().expect("readable").expect("an event");
        assert_eq!(first.line, 1, "{name}");
        let needed = read.load(Ordering::Relaxed);
        assert!(needed <= 1 << 17, "{name}: {needed} of {size} bytes for the first event");
        while reader.next_event().expect("readable").is_some() {}
        assert_eq!(reader.stats().lines, PIECES as u64 * LINES, "{name}");
        assert_eq!(read.load(Ordering::Relaxed), PIECES as u64 * size, "{name}");
        let grown = status("VmHWM").saturating_sub(before);
        println!("{name}: {} MiB of text, {} KiB more", reader.stats().bytes >> 20, grown >> 10);
        assert!(grown < GROWTH, "{name}: {grown} bytes more");
    }
    progress_follows_the_file();
    a_coherent_buffer_takes_no_memory();
}

/// The peak begins anew; what there is now.
fn begin_anew() -> u64 {
    std::fs::File::options()
        .write(true)
        .open("/proc/self/clear_refs")
        .and_then(|mut file| file.write_all(b"5"))
        .expect("the peak begins anew");
    status("VmRSS")
}

/// A trace may name any size. Nobody writes to the buffer, so that the host need not have the memory,
/// only the page tables.
fn a_coherent_buffer_takes_no_memory() {
    let size: u64 = 3 << 30;
    let trace = format!(
        "# tracer: nop\n a-1 [000] ..... 1.0: dma_alloc: 0000:00:01.0 dir=BIDIRECTIONAL \
         dma_addr=ffffd000 size={size} virt_addr=0000000012345678 flags=GFP_KERNEL attrs=\n"
    );
    let before = begin_anew();
    let input = Input::new(Cursor::new(trace.into_bytes())).expect("a trace");
    let granules = vec![Granule::K4, Granule::K16];
    let options = Options { granules, ..Options::default() };
    let results = replay(input, options).expect("replayed");
    let grown = status("VmHWM").saturating_sub(before);
    for run in &results.runs {
        assert_eq!(run.all.total.allocations, 1, "{}", run.granule);
    }
    println!("{} machines: {} KiB more", results.runs.len(), grown >> 10);
    assert!(grown < size / 16, "{grown} bytes more");
}

/// How far the replay is, told every 1024 events, is how far the packed file was read.
fn progress_follows_the_file() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let list = told.clone();
    let progress: granule_replay::OnProgress =
        Box::new(move |progress| list.lock().expect("whole").push(progress));
    let options = Options { progress: Some(progress), ..Options::default() };
    let results = replay(Input::sample().expect("the sample"), options).expect("replayed");
    let told = told.lock().expect("whole");
    assert_eq!(told.len() as u64, results.trace.dma_events / 1024);
    for (before, after) in told.iter().zip(told.iter().skip(1)) {
        let total = after.total.expect("a file") as f64;
        let (lines, read) =
            (after.lines as f64 / results.trace.lines as f64, after.read as f64 / total);
        assert!(before.read < after.read, "{told:?}");
        assert!((lines - read).abs() < 0.3, "{lines} of the lines, {read} of the file");
    }
}
