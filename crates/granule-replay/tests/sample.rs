//! The sample, replayed: counts against those made by awk, and what must hold of every run.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use granule::addr::Granule;
use granule::table::FormatId;
use granule_replay::results::Stopped;
use granule_replay::{
    FindingKind, Input, Invalidate, Options, ReplayError, Results, Untrusted, replay, report,
};

fn all_granules() -> Options {
    let granules = vec![Granule::K4, Granule::K16, Granule::K64];
    Options { granules, ..Options::default() }
}

fn sample(options: Options) -> Results {
    replay(Input::sample().expect("the sample"), options).expect("replayed")
}

/// A trace of these events, one line each.
fn trace(events: &[&str]) -> Input {
    let lines = events.iter().enumerate();
    let text: String =
        lines.map(|(at, event)| format!(" t-1 [000] ..... 1.{at:06}: {event}\n")).collect();
    Input::new(Cursor::new(text)).expect("text")
}

/// What `counts.awk` says: device and phase, then its nine numbers.
fn counted() -> BTreeMap<(String, String), Vec<u64>> {
    let text = include_str!("../samples/nvme-e1000e.counts");
    let lines = text.lines().map(|line| {
        let mut words = line.split('|');
        let mut name = || words.next().expect("a name").to_owned();
        let key = (name(), name());
        (key, words.map(|word| word.parse().expect("a number")).collect())
    });
    lines.collect()
}

#[test]
fn the_counts_are_the_traces_own() {
    let results = sample(Options::default());
    let mut found = BTreeMap::new();
    for device in &results.trace.devices {
        for (phase, c) in results.trace.phases.iter().zip(&device.phases) {
            let singles = [c.map, c.unmap, c.map_sg, c.unmap_sg, c.alloc, c.mapped_bytes];
            let numbers: Vec<u64> =
                singles.into_iter().chain([c.allocated_bytes, c.sg_entries]).collect();
            if numbers.iter().any(|number| *number != 0) {
                found.insert((device.name.clone(), phase.name.clone()), numbers);
            }
        }
        // Everything in the sample is unmapped before it ends.
        assert_eq!(device.total.mapped_bytes, device.total.unmapped_bytes, "{}", device.name);
    }
    // The awk script cannot know the bytes of unmapped lists: its seventh number is left out.
    let mut expected = counted();
    for numbers in expected.values_mut() {
        numbers.remove(6);
    }
    assert_eq!(found, expected);
    assert!(results.findings.counts().is_empty(), "{:?}", results.findings);
}

#[test]
fn every_event_is_performed_at_every_granule() {
    let results = sample(all_granules());
    let sums = counted().into_values().fold(vec![0; 9], |sums, numbers| {
        sums.iter().zip(numbers).map(|(sum, number)| sum + number).collect::<Vec<u64>>()
    });
    assert_eq!((results.trace.dma_events, results.stopped), (6171, Stopped::Complete));
    for run in &results.runs {
        let total = &run.all.total;
        assert_eq!([total.maps, total.lists, total.allocations], [sums[0], sums[2], sums[4]]);
        assert_eq!((total.mapped_bytes, total.entries, total.refused), (sums[5], sums[8], 0));
        assert_eq!(total.ended, sums[1] + sums[3]);
        assert_eq!(total.unmapped_bytes, total.mapped_bytes);
        assert!(total.segments <= total.entries);
        // One for each unmap, and one or none for each table that was unlinked with it.
        assert_eq!(total.invalidations, total.ended);
        let phases = run.all.phases.iter().map(|phase| phase.mapped_bytes).sum::<u64>();
        let devices = run.devices.iter().map(|device| device.total.mapped_bytes).sum::<u64>();
        assert_eq!((phases, devices), (total.mapped_bytes, total.mapped_bytes));
    }
    let exposed = results.runs.iter().map(|run| run.all.total.peak.exposed).collect::<Vec<_>>();
    assert!(exposed[0] < exposed[1] && exposed[1] < exposed[2], "{exposed:?}");
}

#[test]
fn untrusted_devices_see_nothing_of_others() {
    for invalidate in [Invalidate::Strict, Invalidate::Deferred] {
        // Copies are slow in a debug build: not the whole trace.
        let (untrusted, limit) = (Untrusted::All, Some(1500));
        let options = Options { invalidate, untrusted, limit, ..all_granules() };
        for run in sample(options).runs {
            let total = &run.all.total;
            assert_eq!((total.peak.exposed, total.exposed_bytes), (0, 0), "{}", run.format);
            assert!(total.bounced_bytes > 0 && total.bounced_bytes <= total.mapped_bytes);
        }
    }
    let nvme = Untrusted::Devices(["0000:00:01.0".to_owned()].into());
    let results = sample(Options { untrusted: nvme, ..Options::default() });
    let exposed = results.runs[0].devices.iter().map(|device| device.total.peak.exposed > 0);
    assert_eq!(exposed.collect::<Vec<_>>(), [false, true]);
}

#[test]
fn deferred_invalidates_seldom_and_waits() {
    let strict = &sample(Options::default()).runs[0].all.total;
    let options = Options { invalidate: Invalidate::Deferred, ..Options::default() };
    let deferred = &sample(options).runs[0].all.total;
    assert_eq!(strict.peak.quarantined, 0);
    assert!(deferred.peak.quarantined > 0 && deferred.integral.quarantined > 0.0);
    assert!(deferred.invalidations * 10 < strict.invalidations);
    // No range waits longer than the timer allows: 10 ms of what all unmaps together covered.
    assert!(deferred.integral.quarantined < 0.02 * strict.unmapped_bytes as f64 * 2.0);
}

#[test]
fn one_device_a_limit_and_an_interruption() {
    let device = Some("0000:00:02.0".to_owned());
    let results = sample(Options { device, ..Options::default() });
    assert_eq!(results.trace.dma_events, 263 + 8 + 2 + 1355 + 1610);
    assert_eq!(results.runs[0].devices.len(), 1);

    let results = sample(Options { limit: Some(100), ..Options::default() });
    assert_eq!((results.trace.dma_events, results.stopped), (100, Stopped::Limit));

    let cancel = Arc::new(AtomicBool::new(false));
    let seen = cancel.clone();
    let progress: granule_replay::OnProgress = Box::new(move |progress| {
        seen.store(progress.dma_events >= 2048, std::sync::atomic::Ordering::Relaxed);
    });
    let (progress, cancel) = (Some(progress), Some(cancel));
    let results = sample(Options { progress, cancel, ..Options::default() });
    assert_eq!((results.trace.dma_events, results.stopped), (2048, Stopped::Cancelled));

    let options = Options { device: Some("eth0".into()), ..Options::default() };
    let error = replay(Input::sample().expect("the sample"), options).expect_err("no eth0");
    assert!(error.to_string().contains("0000:00:01.0, 0000:00:02.0"), "{error}");
}

#[test]
fn other_formats_and_larger_cpu_pages() {
    for format in FormatId::ALL {
        let (format, cpu_page) = (Some(*format), Some(Granule::K16));
        let results = sample(Options { format, cpu_page, limit: Some(600), ..Options::default() });
        let total = &results.runs[0].all.total;
        assert_eq!((total.refused, total.operations), (0, 600), "{format:?}");
    }
}

#[test]
fn a_trace_without_dma_says_what_to_enable() {
    let error = replay(trace(&["sched_switch: x", "irq_handler_entry: y"]), Options::default());
    match error {
        Err(error @ ReplayError::NoDma { lines: 2, skipped: 2, damaged: 0 }) => {
            let text = error.to_string();
            assert!(
                text.contains("trace-cmd record -e dma") && text.contains("perf record"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_done_is_found_with_its_line() {
    let far = "dma_map_page: d dir=TO_DEVICE dma_addr=1000 size=64 phys_addr=fffffffff000 attrs=";
    let nothing = "dma_map_page: d dir=TO_DEVICE dma_addr=2000 size=0 phys_addr=5000 attrs=";
    let ends = [
        "dma_unmap_page: d dir=TO_DEVICE dma_addr=1000 size=64 attrs=",
        "dma_unmap_page: d dir=TO_DEVICE dma_addr=2000 size=0 attrs=",
    ];
    let results =
        replay(trace(&[far, nothing, ends[0], ends[1]]), Options::default()).expect("run");
    let found = results.runs[0].findings.list();
    let kinds: Vec<_> = found.iter().map(|found| (found.kind, found.line)).collect();
    assert_eq!(kinds, [(FindingKind::Outside, 1), (FindingKind::Refused, 2)]);
    assert_eq!(results.runs[0].all.total.refused, 2);
    assert!(results.findings.counts().is_empty());
}

#[test]
fn registers_and_syncs_are_performed() {
    let events = [
        "dma_map_resource: d dir=BIDIRECTIONAL dma_addr=f000 size=4096 phys_addr=fe000000 attrs=",
        "dma_map_page: d dir=FROM_DEVICE dma_addr=1000 size=1500 phys_addr=5020 attrs=",
        "dma_sync_single_for_cpu: d dir=FROM_DEVICE dma_addr=1000 size=64",
        "dma_sync_single_for_device: d dir=FROM_DEVICE dma_addr=1000 size=64",
        "dma_sync_single_for_device: d dir=FROM_DEVICE dma_addr=1000 size=64",
        "dma_unmap_page: d dir=FROM_DEVICE dma_addr=1000 size=1500 attrs=",
        "dma_unmap_resource: d dir=BIDIRECTIONAL dma_addr=f000 size=4096 attrs=",
    ];
    let options = Options { untrusted: Untrusted::All, ..Options::default() };
    let results = replay(trace(&events), options).expect("run");
    let total = &results.runs[0].all.total;
    assert_eq!((total.maps, total.ended, total.syncs, total.refused), (2, 2, 3, 0));
    // The device's turn is part of the CPU's call, the second is a call of its own.
    assert_eq!((total.operations, total.bounced_bytes), (6, 1500));
    assert!(results.findings.counts().is_empty(), "{:?}", results.findings);
}

#[test]
fn the_report_is_whole() {
    let results = sample(all_granules());
    let page = report::html(&results, "a <b> trace");
    assert!(page.contains("a &lt;b&gt; trace") && page.trim_end().ends_with("</html>"));
    for word in ["http://", "https://", "<script", "NaN", "inf"] {
        let ours = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!ours.contains(word), "{word}");
    }
    let plots: Vec<&str> = page.split("data-points=\"").skip(1).collect();
    assert!(plots.len() >= 10, "{}", plots.len());
    for plot in plots {
        let points: u64 = plot.split('"').next().and_then(|n| n.parse().ok()).expect("a number");
        assert!(points > 0);
    }
    let json = serde_json::to_string(&results).expect("serialises");
    assert!(json.contains("\"exposed\"") && json.contains("\"p99\""));
    assert!(report::comparison_svg(&results).starts_with("<svg"));
}

/// The first lines of the sample.
fn beginning() -> &'static str {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TEXT.get_or_init(|| {
        use std::io::Read as _;
        let packed = &include_bytes!("../samples/nvme-e1000e.txt.zst")[..];
        let mut decoder = zstd::Decoder::new(packed).expect("zstd");
        let mut bytes = vec![0; 1 << 18];
        decoder.read_exact(&mut bytes).expect("long enough");
        String::from_utf8(bytes).expect("text")
    })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// Any letters of real lines changed, any lines lost: no panic, and as many operations as events.
    #[test]
    fn damage_is_survived(
        from in 0usize..1500,
        changes in proptest::collection::vec((0usize..20_000, proptest::sample::select(&b"0f9{,}= x"[..])), 0..60),
        deferred in proptest::bool::ANY,
        trust in proptest::bool::ANY,
    ) {
        let lines: Vec<&str> = beginning().lines().skip(from).take(60).collect();
        let mut bytes = lines.join("\n").into_bytes();
        for (at, byte) in changes {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        let options = Options {
            invalidate: if deferred { Invalidate::Deferred } else { Invalidate::Strict },
            untrusted: if trust { Untrusted::None } else { Untrusted::All },
            bounce_pool: Some(1 << 20),
            ..all_granules()
        };
        match replay(Input::new(Cursor::new(bytes)).expect("text"), options) {
            Ok(results) => {
                for run in &results.runs {
                    let total = &run.all.total;
                    proptest::prop_assert!(total.operations <= results.trace.dma_events);
                    proptest::prop_assert!(trust || total.peak.exposed == 0);
                }
                proptest::prop_assert!(report::html(&results, "x").contains("</html>"));
            }
            Err(ReplayError::NoDma { .. }) => {}
            Err(error) => proptest::prop_assert!(false, "{}", error),
        }
    }
}
