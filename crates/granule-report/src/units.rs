//! Numbers as people read them, and where an axis has its ticks.

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, in powers of 1024.
    Bytes,
    /// Things.
    Count,
    /// Nanoseconds, shown as ns, µs, ms or s.
    Nanos,
    /// Byte-seconds.
    ByteSeconds,
    /// A share of 1, shown in percent.
    Share,
}

impl Unit {
    /// A number with its unit.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Bytes => scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]),
            Self::ByteSeconds => {
                scaled(value, 1024.0, &["B·s", "KiB·s", "MiB·s", "GiB·s", "TiB·s", "PiB·s"])
            }
            Self::Nanos => scaled(value, 1000.0, &["ns", "µs", "ms", "s"]),
            Self::Count if value < 10_000.0 => grouped(value),
            Self::Count => scaled(value, 1000.0, &["", "k", "M", "G", "T"]),
            Self::Share => format!("{:.0} %", value * 100.0),
        }
    }
}

fn grouped(value: f64) -> String {
    let whole = value.round() as u64;
    if whole < 1000 { whole.to_string() } else { format!("{},{:03}", whole / 1000, whole % 1000) }
}

fn scaled(value: f64, base: f64, names: &[&str]) -> String {
    let mut value = value;
    let mut names = names.iter();
    let mut name = names.next().copied().unwrap_or("");
    for next in names {
        if value < base {
            break;
        }
        value /= base;
        name = next;
    }
    let digits = if value.fract() < 0.005 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if name.is_empty() { text.to_owned() } else { format!("{text} {name}") }
}

/// Round numbers from 0 to at least `most`, about four of them.
pub fn ticks(most: f64, unit: Unit) -> Vec<f64> {
    let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
    let base: f64 = match unit {
        Unit::Bytes | Unit::ByteSeconds => 2.0,
        _ => 10.0,
    };
    let rough = most / 4.0;
    let power = base.powf(rough.log(base).floor());
    let steps: &[f64] = if base == 2.0 { &[1.0, 2.0] } else { &[1.0, 2.0, 5.0, 10.0] };
    let step = steps.iter().map(|step| step * power).find(|step| *step >= rough * 0.999);
    let mut step = step.unwrap_or(power * base);
    if unit == Unit::Count {
        step = step.max(1.0);
    }
    let count = (most / step).ceil().max(1.0) as usize;
    (0..=count).map(|index| index as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let bytes = |value| Unit::Bytes.format(value);
        assert_eq!([bytes(0.0), bytes(1536.0), bytes(1023.0)], ["0 B", "1.5 KiB", "1023 B"]);
        assert_eq!([bytes(33_035_250.0), bytes(65536.0)], ["31.5 MiB", "64 KiB"]);
        assert_eq!(
            [Unit::Count.format(9_999.0), Unit::Count.format(55_172.0)],
            ["9,999", "55.2 k"]
        );
        assert_eq!([Unit::Nanos.format(431.0), Unit::Nanos.format(4351.0)], ["431 ns", "4.35 µs"]);
    }

    #[test]
    fn ticks_cover_and_are_few() {
        for unit in [Unit::Bytes, Unit::Count, Unit::Nanos] {
            for most in [0.0, 0.3, 1.0, 7.0, 4096.0, 33_035_250.0, 1e15, f64::NAN] {
                let found = ticks(most, unit);
                let last = found.last().copied().expect("ticks");
                assert!(last >= most || most.is_nan(), "{most} {found:?}");
                assert!(found.len() >= 2 && found.len() <= 7, "{most} {found:?}");
            }
        }
        assert_eq!(ticks(33_035_250.0, Unit::Bytes)[1], 8388608.0);
    }
}
