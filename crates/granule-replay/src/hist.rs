//! Histograms of logarithmic buckets: sixteen to each power of two, so a value is known to 1/16.

use serde::{Serialize, Serializer, ser::SerializeStruct};

const STEPS: u32 = 16;
const STEP_BITS: u32 = 4;

/// How often values of each magnitude occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
}

impl Histogram {
    /// Counts a value in.
    pub fn add(&mut self, value: u64) {
        let bucket = bucket(value);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.min = if self.count == 0 { value } else { self.min.min(value) };
        self.max = self.max.max(value);
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Counts all values of another histogram in.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.min = if self.count == 0 { other.min } else { self.min.min(other.min) };
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest value.
    pub fn min(&self) -> u64 {
        self.min
    }

    /// The largest value.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, rounded down; 0 of nothing.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The value that `percent` of all values do not exceed, to 1/16; 0 of nothing.
    pub fn percentile(&self, percent: f64) -> u64 {
        let wanted = (percent / 100.0 * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return high(index).clamp(self.min, self.max);
            }
        }
        self.max
    }

    /// The counts of the powers of two that occur: from (inclusive), to (exclusive), how many.
    pub fn powers(&self) -> Vec<(u64, u64, u64)> {
        let mut powers: Vec<(u64, u64, u64)> = Vec::new();
        for (index, count) in self.counts.iter().enumerate().filter(|(_, count)| **count != 0) {
            let low = low(index);
            let from = if low == 0 { 0 } else { 1 << low.ilog2() };
            match powers.last_mut() {
                Some(last) if last.0 == from => last.2 += count,
                _ => powers.push((from, from.max(1).saturating_mul(2), *count)),
            }
        }
        powers
    }
}

/// Values below 16 have a bucket each.
fn bucket(value: u64) -> usize {
    if value < u64::from(STEPS) {
        return value as usize;
    }
    let power = value.ilog2();
    let step = (value >> (power - STEP_BITS)) as u32 - STEPS;
    ((power - STEP_BITS + 1) * STEPS + step) as usize
}

/// The smallest value of a bucket.
fn low(index: usize) -> u64 {
    let (row, step) = (index as u32 / STEPS, index as u64 % u64::from(STEPS));
    if row == 0 { step } else { (u64::from(STEPS) + step) << (row - 1) }
}

/// The largest value of a bucket.
fn high(index: usize) -> u64 {
    let row = index as u32 / STEPS;
    if row <= 1 { low(index) } else { low(index) + ((1 << (row - 1)) - 1) }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Histogram", 8)?;
        out.serialize_field("count", &self.count)?;
        out.serialize_field("min", &self.min)?;
        out.serialize_field("mean", &self.mean())?;
        out.serialize_field("p50", &self.percentile(50.0))?;
        out.serialize_field("p90", &self.percentile(90.0))?;
        out.serialize_field("p99", &self.percentile(99.0))?;
        out.serialize_field("max", &self.max)?;
        out.serialize_field("powers", &self.powers())?;
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_holds_its_values(value in any::<u64>()) {
            let index = bucket(value);
            prop_assert!(low(index) <= value && value <= high(index));
            prop_assert!(high(index) - low(index) <= value / 16);
        }

        #[test]
        fn percentiles_are_near(mut values in proptest::collection::vec(0u64..1 << 40, 1..200)) {
            let (mut all, mut half) = (Histogram::default(), Histogram::default());
            for (index, value) in values.iter().enumerate() {
                if index % 2 == 0 { all.add(*value) } else { half.add(*value) }
            }
            all.merge(&half);
            values.sort_unstable();
            for percent in [1.0, 50.0, 99.0, 100.0] {
                let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
                let exact = values[rank.max(1) - 1];
                let found = all.percentile(percent);
                prop_assert!(found >= exact && found - exact <= exact / 16);
            }
            let powers: u64 = all.powers().iter().map(|(_, _, count)| count).sum();
            prop_assert_eq!((all.count(), all.min(), powers), (values.len() as u64, values[0], values.len() as u64));
        }
    }
}
