//! The front of a line, as three tools print it.
//!
//! | tool | a line |
//! | --- | --- |
//! | tracefs `trace` | `task-12  [000] d..2.  9.393148: dma_map_page: 0000:00:01.0 dir=...` |
//! | `trace-cmd report` | `task-12  [000]  9.393148: dma_map_page:  0000:00:01.0 dir=...` |
//! | `perf script` | `task  12 [000]  9.393148: dma:dma_map_page: 0000:00:01.0 dir=...` |
//!
//! A task's name may hold spaces, dashes and brackets; a process group in parentheses may stand
//! before the CPU.

/// A line that is an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The task's number, 0 if it cannot be read.
    pub(super) pid: u32,
    /// Whether the flags say that an interrupt was being served.
    pub(super) irq: bool,
    /// The time in nanoseconds.
    pub(super) time: u64,
    /// The event's name, without its system.
    pub(super) name: &'a str,
    /// What follows.
    pub(super) text: &'a str,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape<'a> {
    /// An event.
    Event(Line<'a>),
    /// A comment, a header, a stack trace's line, nothing.
    Skip,
    /// The tracer says that it lost so many events.
    Lost(u64),
    /// None of these.
    Damaged,
}

/// Takes a line apart.
pub(super) fn shape(line: &str) -> Shape<'_> {
    let trimmed = line.trim_ascii();
    if trimmed.is_empty() || trimmed.starts_with('#') || trimmed.starts_with("cpus=") {
        return Shape::Skip;
    }
    match event(line) {
        Some(event) => Shape::Event(event),
        None => other(trimmed),
    }
}

fn event(line: &str) -> Option<Line<'_>> {
    let (before, mut rest) = split_cpu(line)?;
    let mut irq = false;
    // At most one word of flags stands before the time.
    for _ in 0..2 {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        if let Some(time) = word.strip_suffix(':').and_then(seconds) {
            let (name, text) = name(after.trim_ascii_start())?;
            return Some(Line { pid: pid(before), irq, time, name, text });
        }
        irq = word.bytes().any(|byte| matches!(byte, b'h' | b'H' | b's' | b'z' | b'Z'));
        rest = after.trim_ascii_start();
    }
    None
}

/// Splits at the first `[digits]`.
fn split_cpu(line: &str) -> Option<(&str, &str)> {
    let mut from = 0;
    loop {
        let open = from + line[from..].find('[')?;
        let close = open + line[open..].find(']')?;
        let inner = &line[open + 1..close];
        if !inner.is_empty() && inner.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some((&line[..open], line[close + 1..].trim_ascii_start()));
        }
        from = open + 1;
    }
}

/// `9.393148` in nanoseconds; any number of decimals.
fn seconds(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    if part.is_empty() || part.len() > 9 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scale = 10u64.pow(9 - part.len() as u32);
    let whole = whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?;
    whole.checked_add(part.parse::<u64>().ok()? * scale)
}

/// `name: text` or `system:name: text`.
fn name(text: &str) -> Option<(&str, &str)> {
    let (word, after) = match text.split_once(' ') {
        Some((word, after)) => (word, after),
        None => (text.trim_ascii_end(), ""),
    };
    let word = word.strip_suffix(':')?;
    let name = word.rsplit(':').next().filter(|name| !name.is_empty())?;
    Some((name, after.trim_ascii()))
}

/// The digits at the end, before a `( 123)` of the process group.
fn pid(before: &str) -> u32 {
    let mut text = before.trim_ascii_end();
    if let Some(open) = text.strip_suffix(')').and_then(|inner| inner.rfind('(')) {
        text = text[..open].trim_ascii_end();
    }
    let start = text.bytes().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |at| at + 1);
    text[start..].parse().unwrap_or(0)
}

/// Lines that are no events and yet no damage.
fn other(text: &str) -> Shape<'_> {
    let lost = text.find("LOST").or_else(|| text.find("EVENTS DROPPED"));
    if let (Some(at), true) = (lost, text.starts_with("CPU")) {
        let digits = text[at..].find(|c: char| c.is_ascii_digit()).map(|first| &text[at + first..]);
        let count = digits.and_then(|digits| {
            digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|word| word.parse().ok())
        });
        return Shape::Lost(count.unwrap_or(1));
    }
    let header =
        text.starts_with("version =") || text.starts_with("CPU ") && text.ends_with("empty");
    let word = text.strip_prefix("=> ").unwrap_or(text).split(' ').next().unwrap_or("");
    let stack = text.starts_with("=> ")
        || word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if header || stack { Shape::Skip } else { Shape::Damaged }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line<'_> {
        match shape(text) {
            Shape::Event(line) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn three_tools_say_the_same() {
        let text = "0000:00:01.0 dir=TO_DEVICE";
        let tracefs =
            " kworker/u4:1-14  [000] d.h1.     9.401605: dma_map_page: 0000:00:01.0 dir=TO_DEVICE";
        let report = "     kworker/u4:1-14    [000]     9.401605: dma_map_page:         0000:00:01.0 dir=TO_DEVICE";
        let perf =
            "kworker/u4:1    14 [000]     9.401605: dma:dma_map_page: 0000:00:01.0 dir=TO_DEVICE";
        for (source, irq) in [(tracefs, true), (report, false), (perf, false)] {
            let expected = Line { pid: 14, irq, time: 9_401_605_000, name: "dma_map_page", text };
            assert_eq!(line(source), expected);
        }
    }

    #[test]
    fn names_of_tasks_are_free() {
        let found = line("[we-ird] 7 [x]-99   (   12) [003] .....  1.5: map: IOMMU: iova=0x1");
        assert_eq!((found.pid, found.time, found.name), (99, 1_500_000_000, "map"));
        assert_eq!(found.text, "IOMMU: iova=0x1");
    }

    #[test]
    fn what_is_no_event() {
        for text in ["", "# tracer: nop", "cpus=4", " => do_idle", "\tffffffff81234567 foo+0x1 (x)"]
        {
            assert_eq!(shape(text), Shape::Skip, "{text}");
        }
        assert_eq!(shape("CPU:2 [LOST 17 EVENTS]"), Shape::Lost(17));
        assert_eq!(shape("CPU:1 [5 EVENTS DROPPED]"), Shape::Lost(1));
        for text in ["x", "task-1 [000] 1.2", "task-1 [000] d... 99999999999999999999.0: map: x"] {
            assert_eq!(shape(text), Shape::Damaged, "{text}");
        }
    }
}
