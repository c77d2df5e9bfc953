//! The statistics of every attached policy as OpenMetrics text.
//!
//! A statistic is the metric `polity_KIND_NAME_STATISTIC`, with the help of its manifest. A gauge
//! has a label `cpu`, a keyed statistic a label `key`, a histogram a counter for each bucket with
//! the label `below`, the first value that is too large for it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::error::{Error, Result};
use crate::kind::Condition;
use crate::live::{Live, Register};
use crate::stats::{Number, Part, Reader};

/// The media type of [`text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reads all statistics once.
///
/// # Errors
/// Not root, or maps that are gone.
pub fn text() -> Result<String> {
    Scraper::default().text()
}

/// Reads them again and again. What the text looks like is worked out once, and again only when there
/// is another policy or another key; else only the numbers are read and written.
#[derive(Default)]
pub struct Scraper {
    register: Register,
    sources: Vec<Source>,
    /// Every number with the text before it.
    lines: Vec<(String, Slot)>,
    /// What comes after the last.
    end: String,
}

/// A policy whose numbers are read.
struct Source {
    /// The id of its record.
    id: u32,
    reader: Reader,
    attached: bool,
}

/// Where a number comes from.
#[derive(Debug, Clone)]
enum Slot {
    /// Whether the source with this index is attached and does its work.
    Attached(usize),
    /// A number that the source with this index reads.
    Number(usize, Number),
}

impl Scraper {
    /// Reads all statistics.
    ///
    /// # Errors
    /// Not root, or maps that are gone.
    pub fn text(&mut self) -> Result<String> {
        let all = self.register.look()?;
        let mut others = !self.sources.iter().map(|s| s.id).eq(all.iter().map(|l| l.id));
        if others {
            let source = |l: &Live| {
                let reader = Reader::new(l, l.shape());
                Source { id: l.id, reader, attached: false }
            };
            self.sources = all.iter().map(|l| source(l)).collect();
        }
        for (source, live) in self.sources.iter_mut().zip(&all) {
            others |= source.reader.read()?;
            source.attached = live.kind().is_ok_and(|k| k.condition(live) == Condition::Attached);
        }
        if others || self.end.is_empty() {
            (self.lines, self.end) = Families::of(&self.sources, &all).lines()?;
        }
        let mut text = String::new();
        for (before, slot) in &self.lines {
            let number = match slot {
                Slot::Attached(source) => self.sources[*source].attached.into(),
                Slot::Number(source, number) => self.sources[*source].reader.number(number),
            };
            // Nothing fails that writes to a String.
            let _ = write!(text, "{before}{number}");
        }
        Ok(text + &self.end)
    }
}

/// The name of the metric of a policy's statistic.
pub fn name_of(policy: &str, statistic: &str) -> String {
    format!("polity_{}_{statistic}", policy.replace(['/', '-'], "_"))
}

/// The numbers of one metric.
#[derive(Debug)]
struct Family {
    help: String,
    counts: bool,
    /// Each with its labels.
    numbers: Vec<(Vec<(&'static str, String)>, Slot)>,
}

/// All metrics by name.
#[derive(Debug, Default)]
struct Families(BTreeMap<String, Family>);

impl Families {
    /// Those of `sources`, which `all` are.
    fn of(sources: &[Source], all: &[&Live]) -> Self {
        let mut families = Self::default();
        for (index, (source, live)) in sources.iter().zip(all).enumerate() {
            let policy = &live.meta.policy;
            let help = "1 while the policy is attached and does its work";
            let labels = vec![("policy", policy.clone())];
            families.add("polity_attached", help, false, labels, Slot::Attached(index));
            source.reader.each(|place, number| {
                let mut name = name_of(policy, place.stat);
                // A record: each member counts something else.
                place.member.iter().for_each(|member| name.extend(["_", member]));
                let mut labels = Vec::new();
                labels.extend(place.key.map(|key| ("key", key.to_owned())));
                labels.extend(match place.part {
                    Part::Total => None,
                    Part::Cpu(cpu) => Some(("cpu", cpu.to_string())),
                    Part::Bucket(b) => Some(("below", (1u128 << (b + 1).min(64)).to_string())),
                });
                let help = live.meta.manifest.stats.get(place.stat).map_or("", |s| &s.help);
                let counts = !matches!(place.part, Part::Cpu(_));
                families.add(&name, help, counts, labels, Slot::Number(index, number));
            });
        }
        families
    }

    fn add(
        &mut self,
        name: &str,
        help: &str,
        counts: bool,
        labels: Vec<(&'static str, String)>,
        slot: Slot,
    ) {
        let new = || Family { help: help.replace('\n', " "), counts, numbers: Vec::new() };
        self.0.entry(name.to_owned()).or_insert_with(new).numbers.push((labels, slot));
    }

    /// Every number with the text before it, and the text after the last.
    fn lines(self) -> Result<(Vec<(String, Slot)>, String)> {
        let slots: Vec<Slot> =
            self.0.values().flat_map(|f| &f.numbers).map(|(_, slot)| slot.clone()).collect();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .map_err(|e| Error::failed(format!("can't write the metrics: {e}")))?;
        let (mut lines, mut before, mut slots) = (Vec::new(), String::new(), slots.into_iter());
        for line in text.split_inclusive('\n') {
            // All that is no comment ends in a number.
            match line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                None => before.push_str(line),
                Some((name, _)) => {
                    before.extend([name, " "]);
                    lines.extend(slots.next().map(|slot| (before, slot)));
                    before = "\n".to_owned();
                }
            }
        }
        Ok((lines, before))
    }
}

/// The text with a nought for every number.
impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::result::Result<(), fmt::Error> {
        for (name, metric) in &self.0 {
            let ty = if metric.counts { MetricType::Counter } else { MetricType::Gauge };
            let help = metric.help.trim_end_matches('.');
            let mut family = encoder.encode_descriptor(name, help, None, ty)?;
            for (labels, _) in &metric.numbers {
                if labels.is_empty() {
                    nought(&mut family, metric.counts)?;
                } else {
                    nought(&mut family.encode_family(labels)?, metric.counts)?;
                }
            }
        }
        Ok(())
    }
}

fn nought(metric: &mut MetricEncoder<'_>, counts: bool) -> std::result::Result<(), fmt::Error> {
    match counts {
        true => metric.encode_counter::<NoLabelSet, u64, f64>(&0, None),
        false => metric.encode_gauge(&0u64),
    }
}
