//! One statistic over time.

use std::collections::VecDeque;

use serde_json::{Map, Value};

use crate::manifest::{Manifest, StatType};
use crate::stats::quantile;

/// Samples kept of each: two minutes.
const KEPT: usize = 120;

/// A number of a policy, as it was at the last looks.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name, with key and member where it has some.
    pub name: String,
    /// What its numbers mean.
    pub ty: StatType,
    /// What it is now: a counter's total, the largest of a gauge's CPUs, all that a histogram
    /// counted.
    pub value: u64,
    /// Per second over the last look; of a gauge nothing.
    pub rate: Option<f64>,
    /// Each CPU's number; none for a histogram.
    pub per_cpu: Vec<u64>,
    /// Each CPU's growth per second.
    pub per_cpu_rate: Vec<f64>,
    /// Of a histogram: the median and the 99th percentile of what came since the last look.
    pub quantiles: Option<(f64, f64)>,
    /// What a graph shows, the oldest first: rates, or a gauge's values.
    pub past: VecDeque<u64>,
    buckets: Vec<u64>,
}

/// A number as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    name: String,
    ty: StatType,
    per_cpu: Vec<u64>,
    buckets: Vec<u64>,
}

impl Reading {
    /// Its name, with key and member where it has some.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The numbers in the fixed shape of `stats --json`, one by one.
pub fn readings(stats: &Map<String, Value>, manifest: &Manifest) -> Vec<Reading> {
    let mut all = Vec::new();
    for (name, value) in stats {
        let Some(ty) = manifest.stats.get(name).map(|s| s.ty) else { continue };
        flatten(name, ty, value, &mut all);
    }
    all
}

fn flatten(name: &str, ty: StatType, value: &Value, into: &mut Vec<Reading>) {
    let numbers = |v: &Value| -> Vec<u64> {
        v.as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
    };
    let object = value.as_object();
    if let Some(by) = value["by"].as_object() {
        for (key, value) in by {
            flatten(&format!("{name}[{key}]"), ty, value, into);
        }
    } else if let Some(fields) =
        object.filter(|o| !["per_cpu", "buckets"].iter().any(|key| o.contains_key(*key)))
    {
        for (member, value) in fields {
            flatten(&format!("{name}.{member}"), ty, value, into);
        }
    } else {
        let (per_cpu, buckets) = (numbers(&value["per_cpu"]), numbers(&value["buckets"]));
        into.push(Reading { name: name.to_owned(), ty, per_cpu, buckets });
    }
}

impl Series {
    /// The first look at a number.
    pub fn new(reading: Reading) -> Self {
        let mut new = Self {
            name: reading.name.clone(),
            ty: reading.ty,
            value: 0,
            rate: None,
            per_cpu: Vec::new(),
            per_cpu_rate: Vec::new(),
            quantiles: None,
            past: VecDeque::new(),
            buckets: Vec::new(),
        };
        new.take(reading);
        new
    }

    /// The next look, `seconds` after the last.
    pub fn update(&mut self, reading: Reading, seconds: f64) {
        let before = std::mem::take(&mut self.per_cpu);
        let buckets = std::mem::take(&mut self.buckets);
        let value = self.value;
        self.take(reading);
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds.max(0.001);
        let came: Vec<u64> = self
            .buckets
            .iter()
            .zip(&buckets)
            .map(|(now, then)| now.saturating_sub(*then))
            .collect();
        self.quantiles = quantile(&came, 0.5).zip(quantile(&came, 0.99));
        self.per_cpu_rate =
            self.per_cpu.iter().zip(&before).map(|(now, then)| per_second(*now, *then)).collect();
        let shown = match self.ty {
            StatType::Gauge => self.value,
            _ => {
                let rate = per_second(self.value, value);
                self.rate = Some(rate);
                rate.round() as u64
            }
        };
        if self.past.len() == KEPT {
            self.past.pop_front();
        }
        self.past.push_back(shown);
    }

    fn take(&mut self, reading: Reading) {
        self.value = match reading.ty {
            StatType::Gauge => reading.per_cpu.iter().copied().max().unwrap_or(0),
            StatType::Counter => reading.per_cpu.iter().copied().fold(0, u64::wrapping_add),
            StatType::Histogram => reading.buckets.iter().copied().fold(0, u64::wrapping_add),
        };
        self.per_cpu = reading.per_cpu;
        self.buckets = reading.buckets;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest() -> Manifest {
        let text = "[policy]\nname = \"x\"\nkind = \"tcp-cc\"\n[stats.acks]\ntype = \"counter\"\n\
            [stats.depth]\ntype = \"gauge\"\n[stats.waits]\ntype = \"histogram\"\n\
            [stats.rules]\ntype = \"counter\"\nmap = \"m\"\n";
        Manifest::parse(std::path::Path::new("policy.toml"), text).unwrap()
    }

    fn read(acks: u64) -> Vec<Reading> {
        let stats = json!({
            "acks": {"total": acks + 1, "per_cpu": [acks, 1]},
            "depth": {"per_cpu": [3, 9]},
            "waits": {"buckets": [0, 0, acks]},
            "rules": {"by": {"a": {"denied": {"total": 2, "per_cpu": [2, 0]}}}},
        });
        readings(stats.as_object().unwrap(), &manifest())
    }

    #[test]
    fn numbers_become_series() {
        let mut all: Vec<_> = read(10).into_iter().map(Series::new).collect();
        let names: Vec<_> = all.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["acks", "depth", "waits", "rules[a].denied"]);
        assert_eq!(all.iter().map(|s| s.value).collect::<Vec<_>>(), [11, 9, 10, 2]);
        for (series, reading) in all.iter_mut().zip(read(110)) {
            series.update(reading, 2.0);
        }
        assert_eq!((all[0].rate, &all[0].per_cpu_rate), (Some(50.0), &vec![50.0, 0.0]));
        assert_eq!((all[1].rate, all[1].past.back()), (None, Some(&9)));
        assert_eq!(all[2].quantiles, Some((6.0, 7.96)));
        for _ in 0..200 {
            all[0].update(read(110).remove(0), 1.0);
        }
        assert_eq!(all[0].past.len(), KEPT);
    }
}
