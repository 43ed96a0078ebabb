//! Traces as files, plain, gzip or zstd: read to the end.

use std::io::Cursor;

use granule_replay::Input;
use granule_replay::reader::Reader;

/// What a packed trace may become before it is let go: a few bytes unpack to any number.
const ENOUGH: u64 = 4 << 20;

/// Reads a trace.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::new(Cursor::new(data.to_vec())) else { return };
    let mut reader = Reader::new(input);
    let mut events = 0;
    let mut line = 0;
    while let Ok(Some(event)) = reader.next_event() {
        events += 1;
        assert!(event.line > line, "a line gives one event at most, in order");
        line = event.line;
        if reader.stats().bytes > ENOUGH {
            break;
        }
    }
    let stats = reader.stats();
    assert!(events <= stats.lines && stats.lines <= stats.bytes);
    assert!(stats.damaged + stats.events <= stats.lines);
    assert!(stats.dma_events <= stats.events);
    assert!(stats.damaged_lines.len() as u64 <= stats.damaged);
    assert!(stats.skipped.values().sum::<u64>() <= stats.events);
    assert!(reader.devices().len() as u64 <= stats.lines.min(1000));
}
