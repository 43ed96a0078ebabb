//! Rows, as JSON for machines and as a table for people.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::measure::Sample;

/// The names that further figures of a row may have.
const FIGURES: [&str; 5] = ["p50", "p99", "p99.9", "fill", "drain"];

/// One measured figure: a workload, who ran it, nanoseconds an operation.
#[derive(Clone, Debug)]
pub struct Row {
    /// The workload.
    pub of: String,
    /// Who ran it: `granule`, `linux`, or a crate.
    pub by: String,
    /// What was measured.
    pub sample: Sample,
    /// Further figures in nanoseconds, by name.
    pub extra: Vec<(&'static str, f64)>,
}

impl Row {
    /// A row without further figures.
    pub fn new(by: &str, of: &str, sample: Sample) -> Self {
        Self { of: of.into(), by: by.into(), sample, extra: Vec::new() }
    }

    /// A further figure.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.extra.iter().find(|(of, _)| *of == name).map(|(_, value)| *value)
    }

    fn from_json(row: &Value) -> Option<Self> {
        let number = |name: &str| row.get(name).and_then(Value::as_f64);
        let text = |name: &str| row.get(name).and_then(Value::as_str);
        let (of, by) = (text("of").or(text("name"))?, text("by").unwrap_or("granule"));
        let sample = Sample { min: number("ns")?, median: number("median")? };
        let extra = FIGURES.into_iter().filter_map(|name| Some((name, number(name)?)));
        Some(Self { extra: extra.collect(), ..Self::new(by, of, sample) })
    }

    /// Its name in the JSON: the workload's own if it is ours, else `peer/WHO/WORKLOAD`.
    pub fn name(&self) -> String {
        match self.by.as_str() {
            "granule" => self.of.clone(),
            by => format!("peer/{by}/{}", self.of),
        }
    }

    fn json(&self) -> Value {
        let mut row = Map::new();
        row.insert("name".into(), json!(self.name()));
        row.insert("ns".into(), json!(round(self.sample.min)));
        row.insert("median".into(), json!(round(self.sample.median)));
        for (name, value) in &self.extra {
            row.insert((*name).into(), json!(round(*value)));
        }
        if self.by != "granule" {
            row.insert("of".into(), json!(self.of));
            row.insert("by".into(), json!(self.by));
        }
        Value::Object(row)
    }
}

fn round(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { min, median } = self.sample;
        write!(f, "{:16} {:44} {min:10.3} ns  (median {median:.3})", self.by, self.of)?;
        self.extra.iter().try_for_each(|(name, value)| write!(f, "  {name} {value:.1}"))
    }
}

/// A figure that is no time: bytes, pages, counts.
#[derive(Clone, Debug)]
pub struct Amount {
    /// What it is.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Times.
    pub rows: Vec<Row>,
    /// Everything else.
    pub amounts: Vec<Amount>,
}

impl Report {
    /// The time of a workload by somebody.
    pub fn ns(&self, by: &str, of: &str) -> Option<f64> {
        self.row(by, of).map(|row| row.sample.min)
    }

    /// A row.
    pub fn row(&self, by: &str, of: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.by == by && row.of == of)
    }

    /// An amount.
    pub fn amount(&self, name: &str) -> Option<f64> {
        self.amounts.iter().find(|amount| amount.name == name).map(|amount| amount.value)
    }

    /// Notes an amount.
    pub fn note(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        eprintln!("{:16} {name:44} {value:10.3} {unit}", "granule");
        self.amounts.push(Amount { name, value, unit });
    }

    /// `{"rows": [{"name", "ns", …}], "amounts": [{"name", "value", "unit"}]}`.
    pub fn json(&self) -> String {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let amount = |a: &Amount| json!({"name": a.name, "value": round(a.value), "unit": a.unit});
        let amounts: Vec<Value> = self.amounts.iter().map(amount).collect();
        format!("{:#}", json!({"rows": rows, "amounts": amounts}))
    }

    /// The rows of a report that [`json`](Self::json) has written, without its amounts.
    ///
    /// # Errors
    /// What is no such report.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let rows = value.get("rows").and_then(Value::as_array).ok_or("no list named `rows`")?;
        let row = |row: &Value| Row::from_json(row).ok_or(format!("no row: {row}"));
        Ok(Self { rows: rows.iter().map(row).collect::<Result<_, _>>()?, amounts: Vec::new() })
    }

    /// One line a workload: ours, the peers', and their ratios to ours.
    pub fn table(&self) -> String {
        let mut peers: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.by != "granule") {
            peers.entry(&row.of).or_default().push(row);
        }
        let mut text = format!("{:44} {:>10} {:>10}   peers\n", "workload", "ns", "median");
        for row in self.rows.iter().filter(|row| row.by == "granule") {
            let Sample { min, median } = row.sample;
            text += &format!("{:44} {min:10.3} {median:10.3}  ", row.of);
            for (name, value) in &row.extra {
                text += &format!(" [{name} {value:.1}]");
            }
            for peer in peers.remove(row.of.as_str()).unwrap_or_default() {
                let ns = peer.sample.min;
                text += &format!(" {} {ns:.2} (×{:.1})", peer.by, ns / min);
            }
            text.push('\n');
        }
        for row in peers.values().flatten() {
            text += &format!(
                "{:44} {:>10} {:>10}   {} {:.2}\n",
                row.of, "", "", row.by, row.sample.min
            );
        }
        for Amount { name, value, unit } in &self.amounts {
            text += &format!("{name:44} {value:10.2} {unit}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_json() {
        let mut report = Report::default();
        report.rows.push(Row::new("linux", "iova/pair/4K", Sample::of(vec![2.0, 3.0, 5.0])));
        report.rows.push(Row::new("granule", "iova/mixed", Sample::of(vec![4.0])));
        report.rows[1].extra.push(("p99", 7.5));
        let again = Report::from_json(&report.json()).expect("a report");
        assert_eq!(again.ns("linux", "iova/pair/4K"), Some(2.0));
        assert_eq!(again.rows[0].sample.median, 3.0);
        assert_eq!(again.rows[1].figure("p99"), Some(7.5));
        assert_eq!(again.json(), report.json());
        assert!(Report::from_json("{}").is_err() && Report::from_json("[").is_err());
    }
}
