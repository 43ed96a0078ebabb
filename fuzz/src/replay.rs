//! Traces as text, performed on the simulator through the real layers.

use std::io::Cursor;

use granule::addr::Granule;
use granule::table::FormatId;
use granule_replay::{Input, Invalidate, Options, Untrusted, replay, report};

/// Machines as wide as the widest that a comparison takes are slow: short traces are enough.
const EVENTS: u64 = 200;

/// Performs a trace: the first byte says on what.
pub fn run(data: &[u8]) {
    let Some((&choice, text)) = data.split_first() else { return };
    // What is packed has a target of its own.
    if text.starts_with(&[0x28, 0xb5]) || text.starts_with(&[0x1f, 0x8b]) {
        return;
    }
    let Ok(input) = Input::new(Cursor::new(text.to_vec())) else { return };
    let Ok(mut results) = replay(input, options(choice)) else { return };
    assert!(results.trace.dma_events <= EVENTS);
    results.seconds = 0.0;
    let json = serde_json::to_string(&results).expect("results are JSON");
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
    let page = report::html(&results, "a trace");
    assert!(page.starts_with("<!") && page.contains("</html>"));
}

fn options(choice: u8) -> Options {
    let granules = match choice & 3 {
        0 => vec![Granule::K4],
        1 => vec![Granule::K16],
        2 => vec![Granule::K64],
        _ => vec![Granule::K4, Granule::K16],
    };
    let format = match choice >> 2 & 3 {
        0 if choice & 3 == 1 => Some(FormatId::Dart1),
        1 if choice & 3 == 0 => Some(FormatId::Vtd2),
        _ => None,
    };
    Options {
        granules,
        format,
        cpu_page: (choice & 0x80 != 0).then_some(Granule::K16),
        invalidate: if choice & 0x10 == 0 { Invalidate::Strict } else { Invalidate::Deferred },
        untrusted: if choice & 0x20 == 0 { Untrusted::default() } else { Untrusted::All },
        limit: Some(EVENTS),
        iova_bits: (choice & 0x40 != 0).then_some(24),
        bounce_pool: Some(1 << 20),
        ..Options::default()
    }
}
