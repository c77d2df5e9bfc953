//! The statistics of every attached policy as OpenMetrics text.
//!
//! A statistic is the metric `polity_KIND_NAME_STATISTIC`, with the help of its manifest. A gauge
//! has a label `cpu`, a keyed statistic a label `key`, a histogram a counter for each bucket with
//! the label `below`, the first value that is too large for it.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::kind::Condition;
use crate::live::{Live, Register};
use crate::manifest::StatType;
use crate::stats::Reader;

/// The media type of [`text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reads all statistics once.
///
/// # Errors
/// Not root, or maps that are gone.
pub fn text() -> Result<String> {
    Scraper::default().text()
}

/// Reads them again and again.
#[derive(Default)]
pub struct Scraper(Register);

impl Scraper {
    /// Reads all statistics.
    ///
    /// # Errors
    /// Not root, or maps that are gone.
    pub fn text(&mut self) -> Result<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Sample::take(&self.0.look()?)?));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .map_err(|e| Error::failed(format!("can't write the metrics: {e}")))?;
        Ok(text)
    }
}

/// The name of the metric of a policy's statistic.
pub fn name_of(policy: &str, statistic: &str) -> String {
    format!("polity_{}_{statistic}", policy.replace(['/', '-'], "_"))
}

/// One metric.
#[derive(Debug)]
struct Metric {
    help: String,
    counts: bool,
    /// Labels and value.
    values: Vec<(Vec<(&'static str, String)>, u64)>,
}

/// What was read at one moment, by metric name.
#[derive(Debug, Default)]
struct Sample(BTreeMap<String, Metric>);

impl Sample {
    fn take(all: &[&Live]) -> Result<Self> {
        let mut sample = Self::default();
        for live in all {
            let policy = &live.meta.policy;
            let on = live.kind().is_ok_and(|k| k.condition(live) == Condition::Attached);
            let help = "1 while the policy is attached and does its work";
            sample.add("polity_attached", help, false, vec![("policy", policy.clone())], on.into());
            let numbers = Reader::new(live, live.shape()).json()?;
            for (name, stat) in &live.meta.manifest.stats {
                let Some(value) = numbers.get(name) else { continue };
                let name = name_of(policy, name);
                sample.statistic(&name, &stat.help, stat.ty, value, &[]);
            }
        }
        Ok(sample)
    }

    fn add(
        &mut self,
        name: &str,
        help: &str,
        counts: bool,
        labels: Vec<(&'static str, String)>,
        value: u64,
    ) {
        let new = || Metric { help: help.to_owned(), counts, values: Vec::new() };
        self.0.entry(name.to_owned()).or_insert_with(new).values.push((labels, value));
    }

    fn statistic(
        &mut self,
        name: &str,
        help: &str,
        ty: StatType,
        value: &Value,
        labels: &[(&'static str, String)],
    ) {
        let with = |label, text: String| [labels, &[(label, text)]].concat();
        let number = |v: &Value| v.as_u64().unwrap_or(0);
        if let Some(by) = value["by"].as_object() {
            for (key, value) in by {
                let labels = with("key", key.clone());
                match value.get("total").or(value.get("per_cpu")) {
                    Some(_) => self.statistic(name, help, ty, value, &labels),
                    // A record: each member counts something else.
                    None => value.as_object().into_iter().flatten().for_each(|(member, value)| {
                        self.statistic(&format!("{name}_{member}"), help, ty, value, &labels);
                    }),
                }
            }
        } else if let Some(buckets) = value["buckets"].as_array() {
            for (i, count) in buckets.iter().enumerate() {
                let below = 1u128 << (i + 1).min(64);
                self.add(name, help, true, with("below", below.to_string()), number(count));
            }
        } else if ty == StatType::Counter {
            self.add(name, help, true, labels.to_vec(), number(&value["total"]));
        } else {
            for (cpu, value) in value["per_cpu"].as_array().into_iter().flatten().enumerate() {
                self.add(name, help, false, with("cpu", cpu.to_string()), number(value));
            }
        }
    }
}

impl Collector for Sample {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::result::Result<(), fmt::Error> {
        for (name, metric) in &self.0 {
            let ty = if metric.counts { MetricType::Counter } else { MetricType::Gauge };
            let help = metric.help.trim_end_matches('.');
            let mut family = encoder.encode_descriptor(name, help, None, ty)?;
            for (labels, value) in &metric.values {
                if labels.is_empty() {
                    write(&mut family, metric.counts, *value)?;
                } else {
                    write(&mut family.encode_family(labels)?, metric.counts, *value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(
    metric: &mut MetricEncoder<'_>,
    counts: bool,
    value: u64,
) -> std::result::Result<(), fmt::Error> {
    match counts {
        true => metric.encode_counter::<NoLabelSet, u64, f64>(&value, None),
        false => metric.encode_gauge(&value),
    }
}
